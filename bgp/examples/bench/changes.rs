//! How soon one change is in the peer's kernel.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Instant;

use bellrock_bgp::Attributes;

use crate::{DEADLINE, Process, ground, receiver, runtime_in, spawn, v4, wait};

const CHANGES: usize = 300;

/// Milliseconds from one call to the peer's kernel, for announcements and for
/// withdrawals.
pub(crate) fn changes() -> (Vec<f64>, Vec<f64>) {
    let (node, router) = ground();
    let _receiver = receiver(&router, true);
    let mut monitor = router
        .command("ip")
        .args(["-o", "monitor", "route"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = monitor.stdout.take().unwrap();
    let _monitor = Process(monitor);
    let (seen, events) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if seen.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    // It takes a moment until the monitor hears anything.
    router.sh("ip link set lo up").unwrap();
    wait(|| {
        let line = "ip route replace 203.0.113.1 dev lo; ip route del 203.0.113.1 dev lo";
        router.sh(line).unwrap();
        events.try_recv().is_ok()
    });
    let runtime = runtime_in(&node);
    let peer = spawn(&runtime, BTreeMap::new());
    let mut status = peer.status();
    wait(|| status.borrow_and_update().messages_sent.update >= 1);
    let (mut announced, mut withdrawn) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let prefix = v4(u32::try_from(n).unwrap());
        let name = prefix.addr().to_string();
        for (times, attributes) in [
            (&mut announced, Some(Attributes::default())),
            (&mut withdrawn, None),
        ] {
            let gone = attributes.is_none();
            let start = Instant::now();
            runtime.block_on(peer.change(vec![(prefix, attributes)]));
            let at = loop {
                let (at, line) = events.recv_timeout(DEADLINE).unwrap();
                let mut words = line.split_whitespace();
                let deleted = line.starts_with("Deleted");
                if deleted == gone && words.any(|word| word == name) {
                    break at;
                }
            };
            times.push((at - start).as_secs_f64() * 1000.0);
        }
    }
    (announced, withdrawn)
}

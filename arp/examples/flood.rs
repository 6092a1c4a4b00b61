//! A flood of ARP requests beside one client that asks a hundred times a
//! second: who is answered, how the memory stays, how long a takeover lasts.
//! Prints lines `bench: NAME VALUE UNIT`. Needs root.
//!
//! ```text
//! make bench-flood
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measurement reads the clock and prints"
)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bellrock_arp::frame::{ARP, Arp, Ethernet, Operation};
use bellrock_arp::{Assignment, Config, Eligibility, EventReceiver, Handle, MacAddr, State};
use bellrock_e2e::netns::{Netns, veth, wait_for};
use bellrock_sys::packet::PacketSocket;

/// Requests a second, half of them for our addresses.
const RATE: u32 = 50_000;
const ADDRESSES: u8 = 8;
const EVERY: Duration = Duration::from_millis(10);
const ASKS: u16 = 1_500;
/// Answers that came later than this are none.
const PATIENCE: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

fn vip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 7, 0, 200_u8.saturating_add(n))
}

struct Host {
    ns: Netns,
    mac: MacAddr,
    index: u32,
}

impl Host {
    fn new(switch: &Netns, name: &str, last: u8) -> Result<Self> {
        let ns = Netns::new(name)?;
        veth(&ns, "eth1", switch, name)?;
        switch.sh(&format!("ip link set {name} master br0"))?;
        ns.sh(&format!("ip addr add 10.7.0.{last}/16 dev eth1"))?;
        let read = |file: &str| ns.sh(&format!("cat /sys/class/net/eth1/{file}"));
        Ok(Self {
            mac: read("address")?.trim().parse()?,
            index: read("ifindex")?.trim().parse()?,
            ns,
        })
    }

    fn socket(&self) -> Result<PacketSocket> {
        let open = || PacketSocket::open(self.index, ARP, &[]);
        self.ns.run(open)?.context("open a packet socket")
    }

    fn request(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        Arp {
            sender,
            ..Arp::probe(self.mac, target)
        }
        .frame()
    }
}

fn node(switch: &Netns, name: &str, last: u8) -> Result<(Host, Handle, EventReceiver)> {
    let host = Host::new(switch, name, last)?;
    let config = Config::new(name, "flood", b"a key of some length".to_vec());
    let (handle, events) = host.ns.run(|| Handle::start(config))??;
    for n in 0..ADDRESSES {
        let assignment = Assignment {
            desired: Some("n1".to_owned()),
            successors: vec!["n2".to_owned()],
            created: 1_700_000_000,
            recorded: None,
            eligibility: Eligibility::Eligible,
            interfaces: None,
        };
        handle.assign(IpAddr::V4(vip(n)), assignment);
    }
    Ok((host, handle, events))
}

fn owns_all(handle: &Handle) -> Result<()> {
    let snapshot = handle.snapshot();
    let mut states = snapshot.addresses.values();
    ensure!(states.all(|address| address.state == State::Own));
    Ok(())
}

/// Sends until told to stop, evenly, and counts.
fn flood(host: &Host, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let socket = host.socket()?;
    let frames: Vec<Vec<u8>> = (0..=u8::MAX)
        .map(|n| {
            let target = if n % 2 == 0 {
                vip(n / 2 % ADDRESSES)
            } else {
                Ipv4Addr::new(10, 7, 9, n)
            };
            host.request(Ipv4Addr::new(10, 7, 8, n), target)
        })
        .collect();
    let start = Instant::now();
    for (n, frame) in (1..).zip(frames.iter().cycle()) {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        // A full queue is this machine's limit, not the node's.
        if socket.send(frame).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        let due = Duration::from_micros(n * 1_000_000 / u64::from(RATE));
        if let Some(early) = due.checked_sub(start.elapsed())
            && early > Duration::from_micros(500)
        {
            std::thread::sleep(early);
        }
    }
    Ok(())
}

/// A client that asks for the first address, each time in another name.
struct Client {
    host: Host,
    socket: PacketSocket,
    asked: u16,
}

impl Client {
    fn name(ask: u16) -> Ipv4Addr {
        let [high, low] = ask.to_be_bytes();
        Ipv4Addr::new(10, 7, 128_u8.saturating_add(high), low)
    }

    fn ask(&mut self) -> Result<()> {
        let request = self.host.request(Self::name(self.asked), vip(0));
        self.asked = self.asked.saturating_add(1);
        Ok(self.socket.send(&request)?)
    }

    /// Who is answered, and by whom.
    fn answers(&self) -> Result<Vec<(Ipv4Addr, MacAddr)>> {
        let mut buffer = [0; 128];
        let mut answers = Vec::new();
        while let Some(length) = self.socket.receive(&mut buffer)? {
            let frame = Ethernet::decode(buffer.get(..length).unwrap_or_default())?;
            let arp = Arp::decode(frame.payload)?;
            if arp.operation == Operation::Reply && arp.sender == vip(0) {
                answers.push((arp.target, arp.sender_mac));
            }
        }
        Ok(answers)
    }

    /// Percent of the asks that are answered.
    fn pace(&mut self) -> Result<f64> {
        let mut answered = BTreeSet::new();
        let start = Instant::now();
        for ask in 0..ASKS {
            self.ask()?;
            let due = EVERY * u32::from(ask + 1);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            answered.extend(self.answers()?);
        }
        std::thread::sleep(PATIENCE);
        answered.extend(self.answers()?);
        let names: BTreeSet<Ipv4Addr> = answered.into_iter().map(|(name, _)| name).collect();
        let names = u32::try_from(names.len())?;
        Ok(f64::from(names) * 100.0 / f64::from(ASKS))
    }

    /// Milliseconds until `mac` answers.
    fn until_answered_by(&mut self, mac: MacAddr) -> Result<u128> {
        let start = Instant::now();
        while start.elapsed() < LONG {
            self.ask()?;
            std::thread::sleep(EVERY);
            if self.answers()?.iter().any(|(_, by)| *by == mac) {
                return Ok(start.elapsed().as_millis());
            }
        }
        bail!("no answer by {mac} in {LONG:?}")
    }
}

/// Of this process, which has the nodes in it.
fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

fn main() -> Result<()> {
    let switch = Netns::new("switch")?;
    switch.bridge("br0")?;
    let (first, first_handle, _events) = node(&switch, "n1", 1)?;
    let (second, second_handle, _second_events) = node(&switch, "n2", 2)?;
    let flooder = Host::new(&switch, "flooder", 66)?;
    let host = Host::new(&switch, "client", 99)?;
    // The flood is for the nodes: the client would lose answers in it.
    switch.sh("bridge link set dev client bcast_flood off")?;
    let socket = host.socket()?;
    let mut client = Client {
        host,
        socket,
        asked: 0,
    };
    wait_for("the owner", LONG, || owns_all(&first_handle));
    client.until_answered_by(first.mac)?;

    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&flooder, &stop, &sent));
        let measured = measure(&switch, &mut client, &second_handle, second.mac, &sent);
        stop.store(true, Ordering::Relaxed);
        let flooded = flood.join().map_err(|_| anyhow::anyhow!("the flood"))?;
        measured.and(flooded)
    })
}

fn measure(
    switch: &Netns,
    client: &mut Client,
    second: &Handle,
    second_mac: MacAddr,
    sent: &AtomicU64,
) -> Result<()> {
    let mut missed = Vec::new();
    let mut line = |name: &str, value: f64, unit: &str, holds: bool| {
        println!("bench: l2.{name} {value:.1} {unit}");
        if !holds {
            missed.push(name.to_owned());
        }
    };
    // Buffers and counters grow to what the flood needs before it counts.
    std::thread::sleep(Duration::from_secs(3));
    let (memory, before, start) = (
        resident_kib()?,
        sent.load(Ordering::Relaxed),
        Instant::now(),
    );
    let answered = client.pace()?;
    let frames = sent.load(Ordering::Relaxed).saturating_sub(before);
    let rate = u32::try_from(frames).map(f64::from)? / start.elapsed().as_secs_f64();
    let grown = i32::try_from(resident_kib()?.saturating_sub(memory))?;
    line(
        "flood_rate",
        rate,
        "frames/s",
        rate >= 0.98 * f64::from(RATE),
    );
    line("flood_answered", answered, "percent", answered >= 99.0);
    line("flood_rss_growth", grown.into(), "KiB", grown <= 256);
    let claims = second.snapshot().counters.get("claims").copied();
    let claims = u32::try_from(claims.unwrap_or(0))?;
    line("flood_false_claims", claims.into(), "claims", claims == 0);

    switch.sh("ip link set n1 nomaster")?;
    let took = client.until_answered_by(second_mac)?;
    let took = f64::from(u32::try_from(took)?);
    line("flood_takeover", took, "ms", took <= 1_000.0);
    ensure!(missed.is_empty(), "missed: {}", missed.join(", "));
    Ok(())
}

//! A host that speaks ARP by itself, past its kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bellrock_arp::MacAddr;
use bellrock_arp::frame::{ARP, Arp, Ethernet};
use bellrock_sys::packet::PacketSocket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::lab::Lab;

/// Requests of the flood, a second.
const RATE: u64 = 20_000;
/// Time between two requests for the same address.
const AGAIN: Duration = Duration::from_millis(50);
/// Requests sent before answers are read.
const BURST: usize = 50;

pub(super) struct Wire {
    socket: PacketSocket,
    mac: MacAddr,
    own: Ipv4Addr,
}

impl Wire {
    pub(super) fn open(lab: &Lab, host: &str) -> Result<Self> {
        let index = lab.host(host).sh("cat /sys/class/net/eth1/ifindex")?;
        let index = index.trim().parse()?;
        let socket = lab
            .host(host)
            .run(|| PacketSocket::open(index, ARP, &[]))?
            .context("open a packet socket")?;
        // Best effort: what does not fit is asked again.
        let _ = socket.grow_receive_buffer(4 << 20);
        Ok(Self {
            socket,
            mac: lab.mac(host)?.parse()?,
            own: lab.address(host),
        })
    }

    fn request(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        Arp {
            sender,
            ..Arp::probe(self.mac, target)
        }
        .frame()
    }

    /// Sends requests until told to stop, every other one for `ours`; how many.
    pub(super) fn flood(&self, ours: Ipv4Addr, stop: &AtomicBool) -> Result<u64> {
        let frames: Vec<Vec<u8>> = (0..=u8::MAX)
            .map(|n| {
                let foreign = Ipv4Addr::new(10, 10, 9, n);
                let target = if n % 2 == 0 { ours } else { foreign };
                self.request(Ipv4Addr::new(10, 10, 8, n), target)
            })
            .collect();
        let (start, mut sent) = (Instant::now(), 0);
        for (n, frame) in (1..).zip(frames.iter().cycle()) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // A full queue is this machine's limit, not the nodes'.
            sent += u64::from(self.socket.send(frame).is_ok());
            let due = Duration::from_micros(n * 1_000_000 / RATE);
            if let Some(early) = due.checked_sub(start.elapsed())
                && early > Duration::from_micros(500)
            {
                std::thread::sleep(early);
            }
        }
        Ok(sent)
    }

    /// Asks for addresses until each is answered for by a node other than
    /// `not`: who that is, and when the last answer came.
    pub(super) fn census(
        &self,
        targets: &[Ipv4Addr],
        not: Option<MacAddr>,
        within: Duration,
    ) -> Result<(BTreeMap<Ipv4Addr, MacAddr>, Duration)> {
        let start = Instant::now();
        let mut open: BTreeSet<Ipv4Addr> = targets.iter().copied().collect();
        let mut found = BTreeMap::new();
        let mut last = Duration::ZERO;
        while !open.is_empty() {
            if start.elapsed() > within {
                bail!("{} of {} are not answered", open.len(), targets.len());
            }
            let again = Instant::now() + AGAIN;
            for burst in open.iter().copied().collect::<Vec<_>>().chunks(BURST) {
                for target in burst {
                    let _ = self.socket.send(&self.request(self.own, *target));
                }
                self.listen(Instant::now() + Duration::from_millis(1), |arp| {
                    if Some(arp.sender_mac) != not && open.remove(&arp.sender) {
                        found.insert(arp.sender, arp.sender_mac);
                        last = start.elapsed();
                    }
                })?;
            }
            self.listen(again, |arp| {
                if Some(arp.sender_mac) != not && open.remove(&arp.sender) {
                    found.insert(arp.sender, arp.sender_mac);
                    last = start.elapsed();
                }
            })?;
        }
        Ok((found, last))
    }

    fn listen(&self, until: Instant, mut heard: impl FnMut(Arp)) -> Result<()> {
        let mut buffer = [0; 128];
        loop {
            while let Some(length) = self.socket.receive(&mut buffer)? {
                let frame = buffer.get(..length).unwrap_or_default();
                if let Ok(ethernet) = Ethernet::decode(frame)
                    && ethernet.source != self.mac
                    && let Ok(arp) = Arp::decode(ethernet.payload)
                {
                    heard(arp);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let wait = PollTimeout::try_from(left + Duration::from_micros(999));
            let fd = PollFd::new(self.socket.as_fd(), PollFlags::POLLIN);
            poll(&mut [fd], wait.unwrap_or(PollTimeout::ZERO))?;
        }
    }
}

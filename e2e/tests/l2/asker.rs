//! A host that asks for an address by ARP all the time, past its kernel, and
//! tells who answers.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bellrock_arp::MacAddr;
use bellrock_arp::frame::{ARP, Arp, Ethernet, Operation};
use bellrock_e2e::lab::Lab;
use bellrock_sys::packet::PacketSocket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Time between two questions.
const EVERY: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    heard: Mutex<Heard>,
}

/// Since [`Asker::forget`].
#[derive(Clone, Default)]
pub(crate) struct Heard {
    /// Questions sent.
    pub(crate) asked: usize,
    /// Who answered, in order.
    pub(crate) answers: Vec<MacAddr>,
}

/// Dropping it ends it.
pub(crate) struct Asker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Asker {
    pub(crate) fn start(lab: &Lab, host: &str, target: Ipv4Addr) -> Result<Self> {
        let index = lab.host(host).sh("cat /sys/class/net/eth1/ifindex")?;
        let index = index.trim().parse()?;
        let socket = lab
            .host(host)
            .run(|| PacketSocket::open(index, ARP, &[]))?
            .context("open a packet socket")?;
        let mac: MacAddr = lab.mac(host)?.parse()?;
        let request = Arp {
            sender: lab.address(host),
            ..Arp::probe(mac, target)
        };
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || ask(&socket, request, &shared))
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn heard(&self) -> Heard {
        self.shared.lock().clone()
    }

    /// What came so far counts no more.
    pub(crate) fn forget(&self) {
        *self.shared.lock() = Heard::default();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ask(socket: &PacketSocket, request: Arp, shared: &Shared) {
    let mut buffer = [0; 128];
    while !shared.stop.load(Ordering::Relaxed) {
        if socket.send(&request.frame()).is_ok() {
            shared.lock().asked += 1;
        }
        let next = Instant::now() + EVERY;
        loop {
            while let Ok(Some(length)) = socket.receive(&mut buffer) {
                let frame = buffer.get(..length).unwrap_or_default();
                if let Ok(ethernet) = Ethernet::decode(frame)
                    && let Ok(arp) = Arp::decode(ethernet.payload)
                    && arp.operation == Operation::Reply
                    && arp.sender == request.target
                    && arp.target_mac == request.sender_mac
                {
                    shared.lock().answers.push(arp.sender_mac);
                }
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let wait = PollTimeout::try_from(left + Duration::from_micros(999));
            let fd = PollFd::new(socket.as_fd(), PollFlags::POLLIN);
            // Interrupted: what is there is read, and the rest is waited for.
            let _ = poll(&mut [fd], wait.unwrap_or(PollTimeout::ZERO));
        }
    }
}

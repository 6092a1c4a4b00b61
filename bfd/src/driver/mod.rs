//! The engine on real sockets.
//!
//! One OS thread waits (ppoll) for datagrams, commands and the next deadline;
//! then it reads what waited, obeys, runs timers and sends, in this order: a
//! thread that was kept from running must not take packets that have arrived
//! for silence. Commands do not queue: for each session the last one counts.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is the part that has a clock and sockets"
)]

mod socket;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bellrock_sys::datagram::{self, interface_index};
use bellrock_sys::{clock, schedule, wait};
use socket2::Socket;
use tokio::sync::mpsc;

use self::socket::Sender;
use crate::config::Path;
use crate::engine::{Datagram, Engine, Output, Port};
use crate::handle::{Pending, Shared};
use crate::status::{Event, SessionId, Snapshot};
use crate::time::Instant;

/// More than the longest packet that Length can say.
const DATAGRAM: usize = 512;
/// Datagrams of one socket that are read before it is time for timers: more
/// than its buffer holds, so all that had come when the turn began is read.
const READS: usize = 4096;
/// When a socket is tried again that could not be opened.
const REOPEN: Duration = Duration::from_secs(1);
/// Before threads without real-time priority, after most of those with it.
const PRIORITY: u8 = 10;

/// The sending side of a session.
#[derive(Debug)]
struct Link {
    path: Path,
    interface: Option<u32>,
    sender: Option<Sender>,
    /// The socket is to be opened anew.
    broken: bool,
    /// The source port, whatever socket has it.
    port: u16,
    error: Option<String>,
    errors: u64,
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    engine: Engine,
    links: BTreeMap<SessionId, Link>,
    /// By port and whether it is IPv4.
    receivers: BTreeMap<(Port, bool), io::Result<Socket>>,
    reopen: Option<Instant>,
    events_dropped: u64,
    no_real_time: Option<String>,
}

fn now() -> Instant {
    Instant::from_start(clock::boottime())
}

/// A number that nobody can guess: a keyed hash of nothing. The key is the
/// system's random number plus how often this was called.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, events: mpsc::Sender<Event>) -> Self {
        Self {
            shared,
            events,
            engine: Engine::new(random),
            links: BTreeMap::new(),
            receivers: BTreeMap::new(),
            reopen: None,
            events_dropped: 0,
            no_real_time: None,
        }
    }

    /// Runs until told to stop, or until waiting itself fails.
    pub(crate) fn run(mut self) -> io::Result<()> {
        if let Err(error) = schedule::real_time(PRIORITY) {
            tracing::warn!(%error, "BFD has no real-time priority: on a busy machine it may be late");
            self.no_real_time = Some(error.to_string());
        }
        let mut ready = Vec::new();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            self.wait(&mut ready)?;
            self.read(&ready, &mut buffer);
            let mut pending = self.shared.take();
            let stop = pending.stop;
            if stop {
                let all = self.links.keys().map(|id| (*id, None));
                pending.sessions.extend(all);
            }
            self.obey(pending);
            self.engine.timeout(now());
            self.flush();
            if stop {
                return self.leave(&mut ready, &mut buffer);
            }
        }
    }

    /// Until each peer knows that we are down on purpose.
    fn leave(&mut self, ready: &mut Vec<bool>, buffer: &mut [u8]) -> io::Result<()> {
        while self.engine.leaves() {
            self.wait(ready)?;
            self.read(ready, buffer);
            self.shared.wake.clear();
            self.engine.timeout(now());
            self.flush();
        }
        Ok(())
    }

    fn wait(&self, ready: &mut Vec<bool>) -> io::Result<()> {
        let deadline = self
            .engine
            .next_deadline()
            .into_iter()
            .chain(self.reopen)
            .min();
        let timeout = deadline.map(|at| at.since(now()));
        let fds: Vec<_> = std::iter::once(self.shared.wake.as_fd())
            .chain(self.receivers.values().flatten().map(AsFd::as_fd))
            .collect();
        wait::readable(&fds, timeout, ready)
    }

    fn read(&mut self, ready: &[bool], buffer: &mut [u8]) {
        let ready = ready.iter().skip(1);
        let open = self
            .receivers
            .iter()
            .filter_map(|(key, socket)| Some((key.0, socket.as_ref().ok()?)));
        for ((port, socket), _) in open.zip(ready).filter(|(_, ready)| **ready) {
            for _ in 0..READS {
                match datagram::receive(socket.as_fd(), buffer) {
                    Ok(Some(received)) => {
                        let datagram = Datagram {
                            port,
                            source: received.source.ip(),
                            destination: received.destination,
                            interface: received.interface,
                            ttl: received.ttl,
                            payload: buffer.get(..received.length).unwrap_or_default(),
                        };
                        // What is discarded is counted.
                        let _ = self.engine.receive(&datagram, now());
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, ?port, "reading a datagram");
                    }
                }
            }
        }
    }

    fn obey(&mut self, pending: Pending) {
        for (id, wanted) in pending.sessions {
            match wanted {
                Some((path, settings)) => {
                    if self.links.contains_key(&id) {
                        self.engine.change(id, settings, now());
                        continue;
                    }
                    let interface = path.interface.as_deref().map(interface_index);
                    let interface = interface.and_then(Result::ok);
                    self.links.insert(id, Link::new(path.clone()));
                    self.engine.add(id, path, interface, settings, now());
                    self.open(id);
                }
                None => self.engine.remove(id, now()),
            }
        }
        if self.reopen.is_some_and(|at| at <= now()) {
            self.reopen = None;
            let broken = self.links.iter().filter(|(_, link)| link.broken);
            let broken: Vec<SessionId> = broken.map(|(id, _)| *id).collect();
            for id in broken {
                self.open(id);
            }
            let deaf = self.receivers.iter().filter(|(_, socket)| socket.is_err());
            let deaf: Vec<(Port, bool)> = deaf.map(|(key, _)| *key).collect();
            for key in deaf {
                self.hear(key);
            }
        }
        for reply in pending.snapshots {
            // A caller that gave up waiting is no concern.
            let _ = reply.try_send(self.snapshot());
        }
    }

    /// Opens a session's sockets, or sets the time of another attempt.
    fn open(&mut self, id: SessionId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let key = (Port::of(link.path.hops), link.path.peer.is_ipv4());
        match link.open() {
            Ok(()) => self.engine.set_interface(id, link.interface),
            Err(error) => {
                tracing::warn!(peer = %link.path.peer, %error, "a BFD session cannot send");
                link.error = Some(error.to_string());
                self.reopen = Some(self.reopen.unwrap_or(now() + REOPEN));
            }
        }
        if !self.receivers.contains_key(&key) {
            self.hear(key);
        }
    }

    fn hear(&mut self, key: (Port, bool)) {
        let socket = socket::receiver(key.0, key.1);
        if let Err(error) = &socket {
            tracing::warn!(port = key.0.number(), %error, "BFD cannot hear on its port");
            self.reopen = Some(self.reopen.unwrap_or(now() + REOPEN));
        }
        self.receivers.insert(key, socket);
    }

    fn flush(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Send(id, packet) => {
                    // Another process of this node may hold the port, and the
                    // session: to begin another would end that.
                    if self.is_deaf(id) {
                        continue;
                    }
                    let Some(link) = self.links.get_mut(&id) else {
                        continue;
                    };
                    if let Err(error) = link.send(&packet) {
                        link.errors += 1;
                        link.error = Some(error.to_string());
                        if link.broken {
                            self.reopen = Some(self.reopen.unwrap_or(now() + REOPEN));
                        }
                    }
                }
                Output::Event(event) => {
                    let peer = self.links.get(&event.session).map(|link| link.path.peer);
                    tracing::info!(?peer, change = ?event.change, "BFD");
                    if self.events.try_send(event).is_err() {
                        self.events_dropped += 1;
                    }
                }
                Output::Gone(id) => {
                    self.links.remove(&id);
                }
            }
        }
    }

    /// Whether a session's packets cannot be heard.
    fn is_deaf(&self, id: SessionId) -> bool {
        let Some(link) = self.links.get(&id) else {
            return false;
        };
        let key = (Port::of(link.path.hops), link.path.peer.is_ipv4());
        matches!(self.receivers.get(&key), Some(Err(_)))
    }

    fn snapshot(&self) -> Snapshot {
        let mut sessions = self.engine.status(now());
        for (id, status) in &mut sessions {
            let Some(link) = self.links.get(id) else {
                continue;
            };
            status.counters.send_errors = link.errors;
            let key = (Port::of(link.path.hops), link.path.peer.is_ipv4());
            let deaf = match self.receivers.get(&key) {
                Some(Err(error)) => Some(format!("UDP port {}: {error}", key.0.number())),
                Some(Ok(_)) | None => None,
            };
            status.error = deaf.or_else(|| link.error.clone());
        }
        Snapshot {
            sessions,
            discards: self.engine.discards().clone(),
            events_dropped: self.events_dropped,
            no_real_time: self.no_real_time.clone(),
        }
    }
}

impl Link {
    fn new(path: Path) -> Self {
        let [a, b, ..] = random().to_le_bytes();
        Self {
            path,
            interface: None,
            sender: None,
            broken: true,
            // The upper quarter of all ports is the range to send from.
            port: u16::from_le_bytes([a, b]) | 0xc000,
            error: None,
            errors: 0,
        }
    }

    fn open(&mut self) -> io::Result<()> {
        self.broken = true;
        // Its port must be free for the next.
        self.sender = None;
        self.interface = match &self.path.interface {
            Some(name) => Some(interface_index(name)?),
            None => None,
        };
        let sender = Sender::open(&self.path, self.interface, self.port)?;
        self.port = sender.port;
        self.sender = Some(sender);
        self.error = None;
        self.broken = false;
        Ok(())
    }

    /// Sends. If that fails the socket may be of no use any longer, its address
    /// or its interface being gone: it is then opened anew, and used until
    /// then.
    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let Some(sender) = &self.sender else {
            // The reason is in `error` already.
            let error = self.error.clone().unwrap_or_default();
            return Err(io::Error::other(error));
        };
        let sent = sender.send(packet);
        match &sent {
            Ok(()) => {
                self.error = None;
                self.broken = false;
            }
            // The queue is full; the peer's port is closed.
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused => {}
                _ => self.broken = true,
            },
        }
        sent
    }
}

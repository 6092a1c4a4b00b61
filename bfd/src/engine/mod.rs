//! All sessions of a node: which a datagram is for, and which is due when.
//! Pure.
//!
//! A packet with a Your Discriminator is for the session of that name and for
//! no other, wherever it comes from (RFC 5880 section 6.3). One without is
//! matched by its addresses, its interface and its port.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::config::{Hops, Path, Settings};
use crate::discard::{Discard, Discards};
use crate::packet::{Control, Discriminator, LENGTH, State};
use crate::session::{Input, Output as SessionOutput, Session};
use crate::status::{Event, SessionId, SessionStatus};
use crate::time::Instant;

mod entry;
#[cfg(test)]
mod tests;

use self::entry::Entry;

/// Which of the two ports a datagram came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// 3784, of single-hop sessions.
    SingleHop,
    /// 4784, of multihop sessions.
    Multihop,
}

impl Port {
    /// Both.
    pub const ALL: [Self; 2] = [Self::SingleHop, Self::Multihop];

    /// Its number (RFC 5881 section 4, RFC 5883 section 5).
    pub fn number(self) -> u16 {
        match self {
            Self::SingleHop => 3784,
            Self::Multihop => 4784,
        }
    }

    /// The one of a session.
    pub fn of(hops: Hops) -> Self {
        match hops {
            Hops::Single => Self::SingleHop,
            Hops::Multi { .. } => Self::Multihop,
        }
    }
}

/// A datagram that came, with what the system says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The port that it was sent to.
    pub port: Port,
    /// Who sent it.
    pub source: IpAddr,
    /// Our address that it was sent to.
    pub destination: IpAddr,
    /// Index of the interface that it came by.
    pub interface: u32,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// What is in it.
    pub payload: &'a [u8],
}

/// What an engine wants done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Send this for a session.
    Send(SessionId, [u8; LENGTH]),
    /// Tell the owner.
    Event(Event),
    /// A session that was removed has said its goodbye: it is no more.
    Gone(SessionId),
}

/// All sessions of a node.
pub struct Engine {
    sessions: BTreeMap<SessionId, Entry>,
    by_discriminator: BTreeMap<Discriminator, SessionId>,
    /// Without those that leave.
    by_peer: BTreeMap<(Port, IpAddr), BTreeSet<SessionId>>,
    deadlines: BTreeSet<(Instant, SessionId)>,
    discards: Discards,
    outputs: VecDeque<Output>,
    random: Box<dyn FnMut() -> u64 + Send>,
}

impl Engine {
    /// Without sessions. `random` gives discriminators, and the seeds of
    /// jitter; whoever can guess it can forge packets (RFC 5880 section 9).
    pub fn new(random: impl FnMut() -> u64 + Send + 'static) -> Self {
        Self {
            sessions: BTreeMap::new(),
            by_discriminator: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            discards: Discards::new(),
            outputs: VecDeque::new(),
            random: Box::new(random),
        }
    }

    /// Adds a session whose path and settings are valid. One that leaves the
    /// same path is gone at once: two senders would confuse the peer.
    pub fn add(
        &mut self,
        id: SessionId,
        path: Path,
        interface: Option<u32>,
        settings: Settings,
        now: Instant,
    ) {
        let leaving = |(old, entry): (&SessionId, &Entry)| {
            (entry.leaves.is_some() && entry.path == path).then_some(*old)
        };
        let old: Vec<SessionId> = self.sessions.iter().filter_map(leaving).collect();
        for old in old {
            self.forget(old);
            self.outputs.push_back(Output::Gone(old));
        }
        self.forget(id);
        let discriminator = self.new_discriminator();
        let session = Session::new(discriminator, settings, (self.random)(), now);
        self.by_discriminator.insert(discriminator, id);
        let key = (Port::of(path.hops), path.peer);
        self.by_peer.entry(key).or_default().insert(id);
        self.sessions
            .insert(id, Entry::new(path, interface, discriminator, session, now));
        self.follow(id, now);
    }

    /// Its interface has another index now.
    pub fn set_interface(&mut self, id: SessionId, interface: Option<u32>) {
        if let Some(entry) = self.sessions.get_mut(&id) {
            entry.interface = interface;
        }
    }

    /// Changes what can be changed while it runs.
    pub fn change(&mut self, id: SessionId, settings: Settings, now: Instant) {
        self.feed(id, Input::Settings(settings), now);
    }

    /// Puts it into AdminDown, tells the peer, and forgets it once the peer
    /// knows, or would not wait for us any longer (RFC 5880 section 6.8.16).
    pub fn remove(&mut self, id: SessionId, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        let session = &entry.session;
        let detection = session.intervals().detection.unwrap_or_default();
        entry.leaves = Some(now + detection.max(session.remote_detection_time()));
        let key = (Port::of(entry.path.hops), entry.path.peer);
        if let Some(ids) = self.by_peer.get_mut(&key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_peer.remove(&key);
            }
        }
        let settings = Settings {
            enabled: false,
            ..*session.settings()
        };
        self.feed(id, Input::Settings(settings), now);
    }

    /// Takes a datagram.
    ///
    /// # Errors
    /// The check for which it was discarded; it is counted.
    pub fn receive(&mut self, datagram: &Datagram<'_>, now: Instant) -> Result<SessionId, Discard> {
        let selected = self.select(datagram);
        match selected {
            Ok((id, control)) => {
                if let Some(entry) = self.sessions.get_mut(&id) {
                    entry.counters.received += 1;
                }
                self.feed(id, Input::Received(control), now);
                Ok(id)
            }
            Err(discard) => {
                *self.discards.entry(discard).or_default() += 1;
                Err(discard)
            }
        }
    }

    /// Runs every session that is due.
    pub fn timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.feed(id, Input::Timeout, now);
        }
    }

    /// When to call [`timeout`](Self::timeout) at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Some session still says its goodbye.
    pub fn leaves(&self) -> bool {
        self.sessions.values().any(|entry| entry.leaves.is_some())
    }

    /// What was discarded.
    pub fn discards(&self) -> &Discards {
        &self.discards
    }

    /// The conditions of all sessions but those that leave.
    pub fn status(&self, now: Instant) -> BTreeMap<SessionId, SessionStatus> {
        self.sessions
            .iter()
            .filter(|(_, entry)| entry.leaves.is_none())
            .map(|(id, entry)| (*id, entry.status(now)))
            .collect()
    }

    /// The checks of RFC 5881 section 5, RFC 5880 section 6.8.6 and RFC 5883
    /// section 5, in this order.
    fn select(&self, datagram: &Datagram<'_>) -> Result<(SessionId, Control), Discard> {
        if datagram.port == Port::SingleHop && datagram.ttl != 255 {
            return Err(Discard::HopLimit);
        }
        let decoded = Control::decode(datagram.payload)?;
        let control = decoded.control;
        let (id, entry) = match control.your_discriminator {
            Some(discriminator) => self
                .by_discriminator
                .get(&discriminator)
                .and_then(|id| Some((*id, self.sessions.get(id)?)))
                .filter(|(_, entry)| Port::of(entry.path.hops) == datagram.port)
                .ok_or(Discard::YourDiscriminator)?,
            None => match control.state {
                State::Init | State::Up => return Err(Discard::NoDiscriminator),
                State::Down | State::AdminDown => {
                    self.by_address(datagram).ok_or(Discard::UnknownPeer)?
                }
            },
        };
        if decoded.authentication.is_some() {
            return Err(Discard::Authentication);
        }
        match entry.path.hops {
            Hops::Multi { minimum_ttl } if datagram.ttl < minimum_ttl => Err(Discard::MinimumTtl),
            Hops::Multi { .. } | Hops::Single => Ok((id, control)),
        }
    }

    fn by_address(&self, datagram: &Datagram<'_>) -> Option<(SessionId, &Entry)> {
        let ids = self.by_peer.get(&(datagram.port, datagram.source))?;
        let entries = ids
            .iter()
            .filter_map(|id| Some((*id, self.sessions.get(id)?)));
        // The session that says most about where its peer is.
        entries
            .filter(|(_, entry)| {
                let Path {
                    local, interface, ..
                } = &entry.path;
                local.is_none_or(|local| local == datagram.destination)
                    && (interface.is_none() || entry.interface == Some(datagram.interface))
            })
            .max_by_key(|(_, entry)| (entry.path.interface.is_some(), entry.path.local.is_some()))
    }

    fn new_discriminator(&mut self) -> Discriminator {
        loop {
            let [a, b, c, d, ..] = (self.random)().to_le_bytes();
            if let Some(discriminator) = NonZeroU32::new(u32::from_le_bytes([a, b, c, d]))
                && !self.by_discriminator.contains_key(&discriminator)
            {
                return discriminator;
            }
        }
    }

    fn feed(&mut self, id: SessionId, input: Input, now: Instant) {
        if let Some(entry) = self.sessions.get_mut(&id) {
            entry.session.handle(input, now);
            self.follow(id, now);
        }
    }

    /// Takes what a session wants done, and its next deadline.
    fn follow(&mut self, id: SessionId, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        while let Some(output) = entry.session.poll_output() {
            match output {
                SessionOutput::Send(control) => {
                    entry.counters.sent += 1;
                    self.outputs.push_back(Output::Send(id, control.encode()));
                }
                SessionOutput::Changed(change) => {
                    entry.note(change);
                    if entry.leaves.is_none() {
                        let event = Event {
                            session: id,
                            change,
                        };
                        self.outputs.push_back(Output::Event(event));
                    }
                }
            }
        }
        entry.follow_state(now);
        if entry.has_left(now) {
            self.outputs.push_back(Output::Gone(id));
            self.forget(id);
            return;
        }
        let deadline = entry
            .session
            .next_deadline()
            .into_iter()
            .chain(entry.leaves)
            .min();
        let before = std::mem::replace(&mut entry.deadline, deadline);
        if before != deadline {
            if let Some(at) = before {
                self.deadlines.remove(&(at, id));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, id));
            }
        }
    }

    fn forget(&mut self, id: SessionId) {
        let Some(entry) = self.sessions.remove(&id) else {
            return;
        };
        self.by_discriminator.remove(&entry.discriminator);
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, id));
        }
        let key = (Port::of(entry.path.hops), entry.path.peer);
        if let Some(ids) = self.by_peer.get_mut(&key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_peer.remove(&key);
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("sessions", &self.sessions)
            .field("discards", &self.discards)
            .finish_non_exhaustive()
    }
}

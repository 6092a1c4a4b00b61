//! One node on one segment.

mod decide;
mod egress;
mod filter;
mod giving;
mod hearing;
mod ingress;
mod rounds;
mod told;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::peers::{Holdings, Peers};
use super::rank;
use crate::MacAddr;
use crate::frame::{Credentials, Entry};
use crate::time::{Instant, Timers};
use crate::types::{Assignment, Cause, Event, Held, PeerState, State};
use filter::Filtered;
use giving::Moves;
use hearing::Hearing;

/// What a [`Segment`] is told once.
#[derive(Clone, Debug)]
pub struct SegmentConfig {
    /// This node's name.
    pub node: String,
    /// The interface's name, for events.
    pub interface: String,
    /// What makes frames ours.
    pub credentials: Credentials,
    /// The EtherType of our own frames.
    pub ethertype: u16,
    /// The timers; they must be [valid](Timers::validate).
    pub timers: Timers,
    /// Must grow with each start of this node's process.
    pub incarnation: u64,
    /// The interface's hardware address.
    pub mac: MacAddr,
    /// What the process before this one left a moment ago: this one goes on
    /// with it, also with its incarnation.
    pub held: Option<Held>,
}

/// What can happen. A run can be recorded and replayed: it depends on nothing
/// else but the times at which these came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// A frame came in.
    Frame(Vec<u8>),
    /// An address is to be served here, or its assignment changed.
    Assign {
        /// The address.
        address: IpAddr,
        /// Who may hold it.
        assignment: Assignment,
    },
    /// An address is not to be served here any more.
    Remove {
        /// The address.
        address: IpAddr,
    },
    /// The interface's state, at start and after each change.
    Link {
        /// Whether it has a carrier.
        up: bool,
        /// Its hardware address.
        mac: MacAddr,
        /// The hardware addresses of all of this node's interfaces.
        local: BTreeSet<MacAddr>,
    },
    /// The time that [`Segment::next_deadline`] named has come.
    Timeout,
    /// This node is about to leave: it hands over what it holds, and takes
    /// nothing. When [`Segment::holds`] says no, or after a second,
    /// [`Input::Shutdown`] should follow.
    Drain,
    /// This node leaves. May be repeated, against loss.
    Shutdown,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this frame.
    Frame(Vec<u8>),
    /// Tell who is interested.
    Event(Event),
}

/// One address, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressView {
    /// Where it stands.
    pub state: State,
    /// The highest epoch known.
    pub epoch: u64,
    /// Who holds it.
    pub owner: Option<String>,
    /// This node's rank now, in WAIT and PROBE.
    pub rank: Option<usize>,
    /// When the state was entered.
    pub entered: Instant,
    /// Why the address was claimed, or last lost.
    pub cause: Option<Cause>,
    /// A foreign host seen with it.
    pub foreign: Option<MacAddr>,
    /// A node that answers for it while its HELLO does not come.
    pub filtered: Option<String>,
}

#[derive(Debug)]
struct Record {
    machine: Machine,
    assignment: Assignment,
    /// Its entry in `Segment::deadlines`.
    deadline: Option<Instant>,
    /// Whether it is in `Segment::queue`.
    queued: bool,
    moves: Moves,
    filtered: Filtered,
}

/// One node on one segment: its HELLOs, its peers, its addresses.
#[derive(Debug)]
pub struct Segment {
    config: SegmentConfig,
    local: BTreeSet<MacAddr>,
    up: bool,
    leaving: bool,
    draining: bool,
    hearing: Hearing,
    seq: u64,
    /// What the process before this one held, until the first round.
    held: BTreeMap<IpAddr, u64>,
    /// When the next HELLO is due.
    round: Instant,
    /// Rounds executed, and the time that must have passed, before silence
    /// means anything: at start and after the carrier came.
    listening: Option<(u32, Instant)>,
    peers: Peers,
    records: BTreeMap<IpAddr, Record>,
    holdings: Holdings,
    deadlines: BTreeSet<(Instant, IpAddr)>,
    /// When the next dead peer may be found.
    silent: Option<Instant>,
    /// Addresses whose probe or announcement waits for its turn.
    queue: VecDeque<IpAddr>,
    /// Theoretical arrival time of the next paced frame (GCRA).
    paced: Instant,
    claims: BTreeMap<IpAddr, u64>,
    claims_to: BTreeMap<MacAddr, BTreeMap<IpAddr, u64>>,
    handovers: BTreeMap<MacAddr, BTreeMap<IpAddr, u64>>,
    /// By whether the address is gone.
    releases: BTreeMap<bool, Vec<Entry>>,
    outputs: VecDeque<Output>,
    counters: BTreeMap<&'static str, u64>,
}

impl Segment {
    /// A node that hears nobody yet. It has a carrier until told otherwise.
    pub fn new(mut config: SegmentConfig, now: Instant) -> Self {
        let held = config.held.take().unwrap_or(Held {
            incarnation: config.incarnation,
            ..Held::default()
        });
        config.incarnation = held.incarnation;
        let dead_after = config.timers.dead_after();
        Self {
            local: BTreeSet::from([config.mac]),
            seq: held.seq,
            held: held.claims,
            config,
            up: true,
            leaving: false,
            draining: false,
            hearing: Hearing::default(),
            round: now,
            listening: Some((0, now + dead_after)),
            peers: Peers::default(),
            records: BTreeMap::new(),
            holdings: Holdings::default(),
            deadlines: BTreeSet::new(),
            silent: None,
            queue: VecDeque::new(),
            paced: now,
            claims: BTreeMap::new(),
            claims_to: BTreeMap::new(),
            handovers: BTreeMap::new(),
            releases: BTreeMap::new(),
            outputs: VecDeque::new(),
            counters: BTreeMap::new(),
        }
    }

    /// Takes an input that came at `now`; times never go back.
    ///
    /// Before anything else, it checks whether it was called later than it
    /// wanted by half the dead time: then others may have taken over, and
    /// nothing is answered unverified. So after a standstill, any input will
    /// do; the frames that waited should come before [`Input::Timeout`].
    pub fn handle(&mut self, input: Input, now: Instant) {
        self.check_late(now);
        match input {
            Input::Frame(frame) => self.frame(&frame, now),
            Input::Assign {
                address,
                assignment,
            } => self.assign(address, assignment, now),
            Input::Remove { address } => self.remove(address, now),
            Input::Link { up, mac, local } => self.link(up, mac, local, now),
            Input::Timeout => self.timeout(now),
            Input::Drain => self.drain(now),
            Input::Shutdown => self.shutdown(now),
        }
        self.flush(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.up || self.leaving {
            return None;
        }
        let listened = self
            .listening
            .filter(|(rounds, _)| *rounds >= self.config.timers.misses)
            .map(|(_, until)| until);
        let paced = (!self.queue.is_empty()).then(|| self.may_transmit_at());
        let own = self.deadlines.first().map(|(at, _)| *at);
        [Some(self.round), listened, self.silent, paced, own]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether this node answers for any address.
    pub fn holds(&self) -> bool {
        let mut records = self.records.values();
        records.any(|record| record.machine.owned().is_some())
    }

    /// What to leave to the process that goes on in this one's place. Nothing
    /// may be sent after that.
    pub fn held(&self) -> Held {
        let owned =
            |(address, record): (&IpAddr, &Record)| Some((*address, record.machine.owned()?));
        Held {
            incarnation: self.config.incarnation,
            seq: self.seq,
            claims: self.records.iter().filter_map(owned).collect(),
        }
    }

    /// The addresses assigned here.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.records.keys().copied()
    }

    /// How one of them stands.
    pub fn address(&self, address: IpAddr) -> Option<AddressView> {
        let record = self.records.get(&address)?;
        let machine = &record.machine;
        let owner = match machine.owned() {
            Some(_) => Some(self.config.node.clone()),
            None => self
                .peers
                .holder(address, machine.base())
                .map(|(_, node)| node.to_string()),
        };
        Some(AddressView {
            state: machine.state(),
            epoch: machine.owned().unwrap_or(machine.highest()),
            owner,
            // It costs a hash for each live peer: too much for every address.
            rank: matches!(machine.state(), State::Wait | State::Probe)
                .then(|| self.rank(address, &record.assignment)),
            entered: machine.entered(),
            cause: machine.cause(),
            foreign: machine.foreign(),
            filtered: self.filtered_by(record),
        })
    }

    /// The live peers.
    pub fn peers(&self, now: Instant) -> Vec<PeerState> {
        self.peers
            .live()
            .map(|(mac, peer)| PeerState {
                node: peer.node.to_string(),
                mac,
                heard: now.since(peer.heard),
                holds: peer.holdings.entries().len(),
            })
            .collect()
    }

    /// What was counted, by name.
    pub fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.counters
    }

    /// The hardware address of the interface.
    pub fn mac(&self) -> MacAddr {
        self.config.mac
    }

    fn count(&mut self, name: &'static str) {
        let counter = self.counters.entry(name).or_default();
        *counter = counter.saturating_add(1);
    }

    fn rank(&self, address: IpAddr, assignment: &Assignment) -> usize {
        rank::rank(
            assignment,
            address,
            &self.config.node,
            self.peers.candidates(),
        )
    }
}

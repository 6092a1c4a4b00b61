//! One node on one segment.

mod egress;
mod ingress;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::{Machine, Trigger};
use super::peers::{Holdings, Peers};
use super::rank;
use crate::MacAddr;
use crate::frame::{Credentials, Entry};
use crate::time::{Instant, Timers};
use crate::types::{Assignment, Cause, Eligibility, Event, PeerState, State};

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
}

#[derive(Debug)]
struct Record {
    machine: Machine,
    assignment: Assignment,
    /// Its entry in `Segment::deadlines`.
    deadline: Option<Instant>,
    /// Whether it is in `Segment::queue`.
    queued: bool,
}

/// One node on one segment: its HELLOs, its peers, its addresses.
#[derive(Debug)]
pub struct Segment {
    config: SegmentConfig,
    local: BTreeSet<MacAddr>,
    up: bool,
    leaving: bool,
    seq: u64,
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
    /// By whether the address is gone.
    releases: BTreeMap<bool, Vec<Entry>>,
    outputs: VecDeque<Output>,
    counters: BTreeMap<&'static str, u64>,
}

impl Segment {
    /// A node that hears nobody yet. It has a carrier until told otherwise.
    pub fn new(config: SegmentConfig, now: Instant) -> Self {
        let dead_after = config.timers.dead_after();
        Self {
            local: BTreeSet::from([config.mac]),
            config,
            up: true,
            leaving: false,
            seq: 0,
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

    // --- time

    fn check_late(&mut self, now: Instant) {
        if !self.up || self.leaving || now.since(self.round) <= self.config.timers.dead_after() / 2
        {
            return;
        }
        self.count("late");
        self.round = now;
        self.doubt(Cause::Frozen, now);
    }

    /// Nothing that was believed a moment ago is certain now.
    fn doubt(&mut self, cause: Cause, now: Instant) {
        self.peers.pardon(now);
        self.silent = None;
        self.outputs
            .retain(|output| matches!(output, Output::Event(_)));
        self.for_all(now, |_| Trigger::Doubt { cause });
    }

    fn timeout(&mut self, now: Instant) {
        if !self.up || self.leaving {
            return;
        }
        if now >= self.round {
            self.hello(false);
            self.peers.round(now);
            self.silent = self.peers.next_silent(&self.config.timers);
            if let Some((rounds, _)) = &mut self.listening {
                *rounds = rounds.saturating_add(1);
            }
            let next = self.round + self.config.timers.hello;
            self.round = if next > now {
                next
            } else {
                now + self.config.timers.hello
            };
        }
        if self.silent.is_some_and(|at| now >= at) {
            let silent = self.peers.silent(&self.config.timers, now);
            let mut orphans = Vec::new();
            // All of them first: ranks must not count the dead.
            for mac in silent {
                self.count("peer_silent");
                orphans.extend(self.peers.bury(mac));
            }
            self.silent = self.peers.next_silent(&self.config.timers);
            self.reconsider_all(orphans, Duration::ZERO, Cause::OwnerSilent, now);
        }
        if let Some((rounds, until)) = self.listening
            && rounds >= self.config.timers.misses
            && now >= until
        {
            self.listening = None;
            let all: Vec<IpAddr> = self.records.keys().copied().collect();
            self.reconsider_all(all, Duration::ZERO, Cause::OwnerSilent, now);
        }
        while let Some((at, address)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(record) = self.records.get_mut(&address) {
                record.deadline = None;
            }
            self.step(address, Trigger::Due, now);
        }
    }

    // --- what this node is told

    fn assign(&mut self, address: IpAddr, assignment: Assignment, now: Instant) {
        let base = assignment.created.saturating_mul(1 << 20);
        let new = !self.records.contains_key(&address);
        let record = self.records.entry(address).or_insert_with(|| Record {
            machine: Machine::new(base, now),
            assignment: assignment.clone(),
            deadline: None,
            queued: false,
        });
        let actions = record.machine.rebase(base);
        let mut mine = false;
        if let Some(recorded) = &assignment.recorded
            && recorded.epoch > record.machine.base()
        {
            mine = recorded.owner == self.config.node;
            record.machine.learn(recorded.epoch);
            if new && mine {
                record.machine.recall(recorded.epoch);
            }
        }
        if let Some((epoch, _)) = self.peers.holder(address, record.machine.base()) {
            record.machine.learn(epoch);
        }
        let eligible = assignment.eligibility == Eligibility::Eligible;
        record.assignment = assignment;
        for action in actions {
            self.perform(address, action, now);
        }
        self.note_claim(address);
        if !eligible {
            self.step(
                address,
                Trigger::Stop {
                    cause: Cause::Ineligible,
                },
                now,
            );
        } else if new && mine && self.up && !self.leaving {
            self.step(
                address,
                Trigger::Resume {
                    cause: Cause::Restart,
                },
                now,
            );
        } else {
            self.reconsider(address, Duration::ZERO, Cause::OwnerReleased, now);
        }
    }

    fn remove(&mut self, address: IpAddr, now: Instant) {
        self.step(
            address,
            Trigger::Stop {
                cause: Cause::Removed,
            },
            now,
        );
        if let Some(record) = self.records.remove(&address)
            && let Some(at) = record.deadline
        {
            self.deadlines.remove(&(at, address));
        }
    }

    fn link(&mut self, up: bool, mac: MacAddr, local: BTreeSet<MacAddr>, now: Instant) {
        let moved = mac != self.config.mac;
        self.config.mac = mac;
        self.local = local;
        self.local.insert(mac);
        match (self.up, up) {
            (false, false) => {}
            (true, false) => {
                self.up = false;
                self.for_all(now, |_| Trigger::LinkDown);
                self.queue.clear();
                for record in self.records.values_mut() {
                    record.queued = false;
                }
                self.outputs
                    .retain(|output| matches!(output, Output::Event(_)));
            }
            (false, true) => {
                self.up = true;
                self.round = now;
                self.peers.pardon(now);
                self.silent = None;
                self.listening = Some((0, now + self.config.timers.dead_after()));
                self.for_all(now, |assignment| match assignment.eligibility {
                    Eligibility::Eligible => Trigger::Resume {
                        cause: Cause::LinkChange,
                    },
                    Eligibility::Ineligible => Trigger::Stop {
                        cause: Cause::Ineligible,
                    },
                });
            }
            (true, true) if moved => self.doubt(Cause::LinkChange, now),
            (true, true) => {}
        }
    }

    fn shutdown(&mut self, now: Instant) {
        self.leaving = true;
        self.hello(true);
        self.for_all(now, |_| Trigger::Stop {
            cause: Cause::Shutdown,
        });
        self.queue.clear();
    }

    fn for_all(&mut self, now: Instant, trigger: impl Fn(&Assignment) -> Trigger) {
        let all: Vec<(IpAddr, Trigger)> = self
            .records
            .iter()
            .map(|(address, record)| (*address, trigger(&record.assignment)))
            .collect();
        for (address, trigger) in all {
            self.step(address, trigger, now);
        }
    }

    // --- what this node decides

    fn reconsider_all(
        &mut self,
        addresses: Vec<IpAddr>,
        delay: Duration,
        cause: Cause,
        now: Instant,
    ) {
        for address in addresses {
            self.reconsider(address, delay, cause, now);
        }
    }

    /// Whether nobody has `address` and this node may; then it gets in line.
    fn reconsider(&mut self, address: IpAddr, extra: Duration, cause: Cause, now: Instant) {
        if !self.up || self.leaving || self.listening.is_some() {
            return;
        }
        let Some(record) = self.records.get(&address) else {
            return;
        };
        let machine = &record.machine;
        if record.assignment.eligibility != Eligibility::Eligible
            || machine.state() != State::Idle
            || self.peers.holder(address, machine.base()).is_some()
        {
            return;
        }
        let rank = self.rank(address, &record.assignment);
        let behind = u32::try_from(rank.saturating_sub(1)).unwrap_or(u32::MAX);
        let mut delay = extra + self.config.timers.stagger.saturating_mul(behind);
        let mut cause = cause;
        if machine.is_first() {
            cause = Cause::FirstClaim;
            let elsewhere = record.assignment.desired.as_deref().is_some_and(|desired| {
                desired != self.config.node && self.peers.candidates().contains(desired)
            });
            if elsewhere {
                delay += self.config.timers.first_claim_grace;
            }
        }
        self.step(address, Trigger::Unowned { delay, cause }, now);
    }

    fn step(&mut self, address: IpAddr, trigger: Trigger, now: Instant) {
        let Some(record) = self.records.get_mut(&address) else {
            return;
        };
        let claim = record.machine.claim();
        let actions = record.machine.step(trigger, now, &self.config.timers);
        let deadline = record.machine.deadline();
        if deadline != record.deadline {
            if let Some(at) = record.deadline {
                self.deadlines.remove(&(at, address));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, address));
            }
            record.deadline = deadline;
        }
        if record.machine.claim() != claim {
            self.note_claim(address);
        }
        for action in actions {
            self.perform(address, action, now);
        }
    }

    /// Brings what HELLO says in line with the address's state. An address
    /// that this node means to go on owning is in the list while it is
    /// probed: a short doubt moves nothing.
    fn note_claim(&mut self, address: IpAddr) {
        match self
            .records
            .get(&address)
            .and_then(|record| record.machine.claim())
        {
            Some(epoch) => self.holdings.insert(address, epoch),
            None => {
                self.holdings.remove(address);
                self.claims.remove(&address);
            }
        }
    }
}

//! The event loop: virtual time, and everything that happens in it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bellrock_arp::frame::{ARP, Arp, Operation};
use bellrock_arp::ownership::{AddressView, Input, Output, Segment};
use bellrock_arp::{Eligibility, Event, Held, Instant, MacAddr, Recorded, State, Timers};

use crate::check::Check;
use crate::client::{ASK_EVERY, Client, FORGETS};
use crate::cluster::{Cluster, EPOCH, address, name, number, v4};
use crate::fault::{Fault, Scheduled};
use crate::node::Node;
use crate::rng::Rng;
use crate::wire::{Station, Wire};

/// How often each client sends to each address.
const PING: Duration = Duration::from_millis(10);
/// How often the checks look at what lasts.
const TICK: Duration = Duration::from_millis(5);
/// How late a node's timer is at most.
const LATE: Duration = Duration::from_micros(1_500);
/// What a client of an older kernel takes longer: it holds an announcement
/// back for a second, and takes the one after.
const LOCKED: Duration = Duration::from_millis(1_300);

/// What is due at some time.
#[derive(Clone, Debug)]
pub(crate) enum Due {
    Timer(usize),
    Frame(Station, Rc<[u8]>),
    Ping(usize),
    Tick,
    /// The API server tells a node of an address.
    Told(usize, usize),
    /// A node's speaker has started and lists.
    Listed(usize),
    /// The controller looks.
    Reconcile,
    /// A node writes that it owns an address.
    Record(usize, usize, u64),
    Begin(usize),
    End(usize),
    /// The next step of a link flap.
    Flap(usize, bool),
    /// An address's object is made.
    Create(usize),
    Start(usize),
    /// A node's speaker ends when it holds nothing, or after so many looks.
    Leave(usize, u32),
    /// The speaker that waited goes on with what the one before it held.
    GoOn(usize, Held),
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) timers: Timers,
    pub(crate) rng: Rng,
    pub(crate) wire: Wire,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Vec<Client>,
    /// The station of the host that is none of ours.
    pub(crate) alien: (Station, MacAddr),
    pub(crate) cluster: Cluster,
    pub(crate) faults: Vec<Scheduled>,
    pub(crate) active: BTreeSet<usize>,
    /// For each address that was made again unseen by its owner: the owner.
    pub(crate) unseen: BTreeMap<usize, usize>,
    /// Clients (and addresses) that were where no speaker was when the address
    /// moved, and heard nothing of it since. When they are back nobody can know
    /// that they need to be told: they find out themselves.
    missed: BTreeSet<(usize, usize)>,
    /// Nodes whose carrier a flap takes at this moment.
    pub(crate) flapped: BTreeSet<usize>,
    /// Nodes whose machine is down.
    pub(crate) crashed: BTreeSet<usize>,
    /// Addresses that a foreign host had: nodes that were blocked by it look
    /// again a minute later.
    pub(crate) blocked: BTreeSet<usize>,
    pub(crate) check: Check,
    /// Something changed that the picture does not show yet; whether that must
    /// cost nothing.
    pub(crate) changed: Option<bool>,
    pub(crate) trace: bool,
    /// Frames sent in all.
    pub(crate) frames: u64,
    queue: BTreeMap<(Instant, u64), Due>,
    serial: u64,
}

impl World {
    pub(crate) fn assemble(
        timers: Timers,
        mut rng: Rng,
        (nodes, vips, switches): (usize, usize, usize),
        faults: Vec<Scheduled>,
        trace: bool,
    ) -> Self {
        let clients = switches.max(2);
        // Each switch has a client.
        let mut places: Vec<usize> = (0..nodes).map(|_| rng.index(switches)).collect();
        places.extend((0..clients).map(|client| client % switches));
        places.push(rng.index(switches));
        let wire = Wire::new(switches, &places, rng.fork());
        let client = |client: usize| {
            let number = u8::try_from(client).unwrap_or_default();
            let mac = MacAddr(2, 0, 0, 1, 0, number);
            Client::new(nodes + client, mac, number, client == 1)
        };
        let mut world = Self {
            now: Instant(0),
            check: Check::new(timers.clone(), vips),
            timers,
            wire,
            nodes: (0..nodes).map(Node::new).collect(),
            clients: (0..clients).map(client).collect(),
            alien: (nodes + clients, MacAddr(2, 0, 0, 2, 0, 0)),
            cluster: Cluster::new(nodes, vips),
            faults,
            active: BTreeSet::new(),
            unseen: BTreeMap::new(),
            missed: BTreeSet::new(),
            flapped: BTreeSet::new(),
            crashed: BTreeSet::new(),
            blocked: BTreeSet::new(),
            changed: Some(false),
            trace,
            frames: 0,
            queue: BTreeMap::new(),
            serial: 0,
            rng,
        };
        world.tell(|| format!("switches of nodes, clients and the alien: {places:?}"));
        for node in 0..nodes {
            world.later(Duration::from_millis(7 * node as u64), Due::Start(node));
        }
        for vip in 0..vips {
            let at = world.rng.range(1_000, 3_000);
            world.later(Duration::from_millis(at), Due::Create(vip));
        }
        for client in 0..world.clients.len() {
            world.later(
                Duration::from_millis(5_000 + client as u64),
                Due::Ping(client),
            );
        }
        world.later(TICK, Due::Tick);
        let times: Vec<_> = world.faults.iter().map(|f| (f.at, f.until)).collect();
        for (index, (at, until)) in times.into_iter().enumerate() {
            world.at(at, Due::Begin(index));
            world.at(until, Due::End(index));
        }
        world
    }

    pub(crate) fn at(&mut self, at: Instant, due: Due) {
        self.serial += 1;
        self.queue.insert((at, self.serial), due);
    }

    pub(crate) fn later(&mut self, after: Duration, due: Due) {
        self.at(self.now + after, due);
    }

    /// After a random time between, in milliseconds.
    pub(crate) fn soon(&mut self, (least, most): (u64, u64), due: Due) {
        let after = Duration::from_micros(self.rng.range(least * 1_000, most * 1_000));
        self.later(after, due);
    }

    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            let at = self.now.since(Instant(0));
            #[allow(clippy::print_stdout, reason = "a trace is asked for by a flag")]
            {
                println!("{:>10.4} s  {}", at.as_secs_f64(), what());
            }
        }
    }

    /// Runs until `end`, or until an invariant breaks.
    pub(crate) fn run(&mut self, end: Instant) {
        while let Some(((at, _), due)) = self.queue.pop_first() {
            if at > end || self.check.violation.is_some() {
                break;
            }
            self.now = at;
            self.happen(due);
            if self.changed.is_some() {
                self.look();
            }
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Timer(node) => self.timer(node),
            Due::Frame(station, frame) => self.arrive(station, &frame),
            Due::Ping(client) => self.ping(client),
            Due::Tick => self.tick(),
            Due::Told(node, vip) => self.told(node, vip),
            Due::Listed(node) => {
                for vip in 0..self.cluster.vips.len() {
                    self.told(node, vip);
                }
            }
            Due::Reconcile => {
                if self.cluster.up {
                    for vip in self.cluster.reconcile() {
                        self.publish(vip);
                    }
                }
            }
            Due::Record(node, vip, epoch) => self.record(node, vip, epoch),
            Due::Begin(index) => self.begin(index),
            Due::End(index) => self.end(index),
            Due::Flap(index, down) => self.flap(index, down),
            Due::Create(vip) => {
                let seconds = self.now.since(Instant(0)).as_secs();
                self.tell(|| format!("address {vip} is made"));
                self.cluster.create(vip, EPOCH + seconds, None);
                self.publish(vip);
            }
            Due::Start(node) => self.start(node),
            Due::GoOn(node, held) => self.go_on(node, held),
            Due::Leave(node, looks) => {
                let holds = |node: &Node| node.segment.as_ref().is_some_and(|it| it.holds());
                if looks > 0 && self.nodes.get(node).is_some_and(holds) {
                    self.later(Duration::from_millis(20), Due::Leave(node, looks - 1));
                } else {
                    self.feed(node, Input::Shutdown);
                    self.kill(node);
                    self.changed = Some(true);
                }
            }
        }
    }

    // --- nodes

    pub(crate) fn start(&mut self, node: usize) {
        let (timers, now) = (self.timers.clone(), self.now);
        let Some(it) = self.nodes.get_mut(node) else {
            return;
        };
        if it.segment.is_some() || self.crashed.contains(&node) {
            return;
        }
        it.start(&timers, now);
        self.tell(|| format!("{} starts", name(node)));
        self.changed = Some(false);
        self.link(node);
        self.feed(node, Input::Timeout);
        self.soon((30, 300), Due::Listed(node));
    }

    /// Ends a node's speaker; another, which has been told everything, waits for
    /// it to end.
    pub(crate) fn replace(&mut self, node: usize) {
        let Some(it) = self.nodes.get_mut(node).filter(|it| it.runs()) else {
            return;
        };
        if let Some(old) = it.segment.take() {
            self.soon((1, 20), Due::GoOn(node, old.held()));
        }
    }

    fn go_on(&mut self, node: usize, held: Held) {
        let (timers, now) = (self.timers.clone(), self.now);
        let Some(it) = self.nodes.get_mut(node) else {
            return;
        };
        if it.segment.is_some() || self.crashed.contains(&node) {
            return;
        }
        it.go_on(&timers, held, now);
        let told: Vec<_> = it.told.clone().into_iter().collect();
        self.tell(|| format!("{} is replaced", name(node)));
        self.link(node);
        for (vip, assignment) in told {
            let address = address(vip);
            self.feed(
                node,
                Input::Assign {
                    address,
                    assignment,
                },
            );
        }
        for vip in 0..self.cluster.vips.len() {
            let segment = self.nodes.get(node).and_then(|it| it.segment.as_ref());
            let view = segment.and_then(|segment| segment.address(address(vip)));
            if !view
                .is_some_and(|view| matches!(view.state, State::Own | State::Deaf | State::Give))
            {
                self.check.lost(node, vip, None, self.now);
            }
        }
        self.feed(node, Input::Timeout);
        self.soon((30, 300), Due::Listed(node));
    }

    /// Ends a node's speaker without a word.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(it) = self.nodes.get_mut(node) {
            it.segment = None;
            it.frozen = false;
        }
        for vip in 0..self.cluster.vips.len() {
            self.check.lost(node, vip, None, self.now);
        }
        self.changed = Some(false);
    }

    /// Tells a node's speaker how its link is.
    pub(crate) fn link(&mut self, node: usize) {
        if let Some(it) = self.nodes.get(node) {
            let (up, mac) = (it.carrier, it.mac);
            let local = BTreeSet::from([mac]);
            self.feed(node, Input::Link { up, mac, local });
        }
    }

    fn timer(&mut self, node: usize) {
        let now = self.now;
        let Some(it) = self.nodes.get_mut(node) else {
            return;
        };
        // Another was queued for an earlier time.
        if it.timer != Some(now) {
            return;
        }
        it.timer = None;
        let Some(segment) = it.segment.as_ref().filter(|_| !it.frozen) else {
            return;
        };
        if segment.next_deadline().is_some_and(|at| at <= now) {
            self.feed(node, Input::Timeout);
        } else {
            self.arm(node);
        }
    }

    /// Queues the node's next timer, a little late, as machines are.
    fn arm(&mut self, node: usize) {
        let Some(it) = self.nodes.get_mut(node).filter(|it| it.runs()) else {
            return;
        };
        let deadline = it.segment.as_ref().and_then(Segment::next_deadline);
        let Some(at) = deadline.map(|at| at.max(self.now)) else {
            return;
        };
        // One that comes too early looks again.
        if it.timer.is_none_or(|queued| queued > at + LATE) {
            let late = u64::try_from(LATE.as_micros()).unwrap_or(0);
            let at = at + Duration::from_micros(self.rng.below(late));
            it.timer = Some(at);
            self.at(at, Due::Timer(node));
        }
    }

    /// Gives a node's speaker an input, and does what it says.
    pub(crate) fn feed(&mut self, node: usize, input: Input) {
        let now = self.now;
        let Some(it) = self.nodes.get_mut(node).filter(|it| it.runs()) else {
            return;
        };
        let Some(segment) = &mut it.segment else {
            return;
        };
        segment.handle(input, now);
        let outputs: Vec<Output> = std::iter::from_fn(|| segment.poll_output()).collect();
        for output in outputs {
            match output {
                Output::Frame(frame) => self.emit(node, &frame),
                Output::Event(event) => self.event(node, &event),
            }
        }
        self.arm(node);
    }

    fn emit(&mut self, node: usize, frame: &[u8]) {
        self.frames += 1;
        if let Some(it) = self.nodes.get_mut(node) {
            if self.now.since(it.sent.0) >= Duration::from_secs(1) {
                let sent = std::mem::replace(&mut it.sent, (self.now, 0));
                self.check.sent(node, sent, self.now);
            }
            it.sent.1 += 1;
        }
        if let Some((vip, arp)) = arp_of(frame)
            && arp.sender == v4(vip)
        {
            self.check.said(node, vip, self.now);
        }
        if let Some((_, arp)) = arp_of(frame) {
            self.tell(|| {
                format!(
                    "{} sends {:?} {} for {}",
                    name(node),
                    arp.operation,
                    arp.sender,
                    arp.target
                )
            });
        }
        self.transmit(node, frame);
    }

    fn event(&mut self, node: usize, event: &Event) {
        let Some(vip) = event.address().and_then(number) else {
            return;
        };
        self.tell(|| format!("{} {event:?}", name(node)));
        match *event {
            Event::Owned { epoch, cause, .. } => {
                self.check.owned(node, vip, cause, self.now);
                self.note_missed(vip);
                self.soon((50, 800), Due::Record(node, vip, epoch));
            }
            Event::Lost { cause, .. } => self.check.lost(node, vip, Some(cause), self.now),
            Event::Blocked { .. }
            | Event::ForeignClaim { .. }
            | Event::HelloFiltered { .. }
            | Event::PeerHeard { .. }
            | Event::PeerSilent { .. }
            | Event::Unblocked { .. } => {}
        }
    }

    fn note_missed(&mut self, vip: usize) {
        for (index, client) in self.clients.iter().enumerate() {
            let mut nodes = self.nodes.iter().filter(|node| node.runs());
            if !nodes.any(|node| self.wire.connected(node.number, client.station)) {
                self.missed.insert((index, vip));
            }
        }
    }

    // --- the wire

    pub(crate) fn transmit(&mut self, from: Station, frame: &[u8]) {
        let frame: Rc<[u8]> = frame.into();
        for (to, at) in self.wire.send(from, &frame, self.now) {
            self.at(at, Due::Frame(to, frame.clone()));
        }
    }

    fn arrive(&mut self, station: Station, frame: &Rc<[u8]>) {
        if let Some(node) = self.nodes.get_mut(station) {
            // The network card filters: what is for another is not heard.
            let mine = frame.first().is_some_and(|octet| octet & 1 == 1)
                || frame.get(..6) == Some(&<[u8; 6]>::from(node.mac));
            if !mine || node.segment.is_none() {
            } else if node.frozen {
                node.keep(frame.clone());
            } else {
                self.feed(station, Input::Frame(frame.to_vec()));
            }
            return;
        }
        let index = station - self.nodes.len();
        let sign = self
            .clients
            .get(index)
            .and_then(|client| client.answers(frame));
        if let Some(answer) = sign {
            self.transmit(station, &answer);
            return;
        }
        let Some((vip, arp)) = arp_of(frame) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(index) {
            if arp.sender == v4(vip) {
                client.hear(vip, &arp, self.now);
                if client.cached(vip) == Some(arp.sender_mac) {
                    self.missed.remove(&(index, vip));
                }
            }
        } else if arp.operation == Operation::Request
            && arp.target == v4(vip)
            && arp.sender != arp.target
            && self.alien_answers(vip, &arp)
        {
            let answer = arp.answer(self.alien.1).frame();
            self.transmit(station, &answer);
        }
    }

    fn alien_answers(&self, vip: usize, arp: &Arp) -> bool {
        self.active_faults().any(|fault| match fault {
            Fault::Foreign(of) => *of == vip,
            // Proxies do not answer probes.
            Fault::Proxy => !arp.is_probe(),
            _ => false,
        })
    }

    pub(crate) fn active_faults(&self) -> impl Iterator<Item = &Fault> {
        let active = self
            .active
            .iter()
            .filter_map(|index| self.faults.get(*index));
        active.map(|scheduled| &scheduled.fault)
    }

    // --- clients

    fn ping(&mut self, index: usize) {
        self.later(PING, Due::Ping(index));
        for vip in 0..self.cluster.vips.len() {
            let Some(client) = self.clients.get_mut(index) else {
                return;
            };
            let question = client.asks(vip, self.now);
            let (station, mac, cached) = (client.station, client.mac, client.cached(vip));
            let waits = client.waits(vip, self.now);
            let mut extra = if client.old { LOCKED } else { Duration::ZERO };
            if let Some(question) = question {
                self.transmit(station, &question);
            }
            if cached == Some(self.alien.1) {
                // It believes the other host until it asks again.
                continue;
            }
            if waits {
                // The packet is kept until the answer comes.
                continue;
            }
            if cached.is_none() {
                extra += ASK_EVERY;
            } else if self.missed.contains(&(index, vip)) {
                extra += FORGETS;
            }
            let arrived = cached.is_some_and(|to| {
                let at = self.wire.path(station, mac, to, self.now);
                let node = self.nodes.iter().find(|node| node.mac == to);
                node.is_some_and(|node| {
                    at.contains(&node.number) && self.serves(node.number, vip, station)
                })
            });
            let first = !self.known(vip);
            let what = || {
                format!(
                    "packets of client {index} for {vip} do not arrive: it sends to {cached:?}, {:?} answer",
                    self.check.owners(vip)
                )
            };
            let what = if arrived { String::new() } else { what() };
            let key = (station, vip);
            self.check
                .pinged(key, arrived, (extra, first), || what, self.now);
        }
    }

    /// Whether a node's kernel passes packets for the address on, and back.
    fn serves(&self, node: usize, vip: usize, client: Station) -> bool {
        self.forwards(node)
            && self.wire.connected(node, client)
            && self.cluster.eligibility(vip, node) != Eligibility::Ineligible
    }

    /// Whether any speaker knows a claim to the address.
    fn known(&self, vip: usize) -> bool {
        let object = self.cluster.vips.get(vip).and_then(Option::as_ref);
        object.is_some_and(|object| {
            let base = object.created << 20;
            self.nodes
                .iter()
                .filter_map(|node| node.segment.as_ref())
                .any(|segment| {
                    segment
                        .address(address(vip))
                        .is_some_and(|view| view.epoch > base)
                })
        })
    }

    fn tick(&mut self) {
        self.later(TICK, Due::Tick);
        let nodes = &self.nodes;
        let gives = |node: usize, vip: usize| {
            let segment = nodes.get(node).and_then(|node| node.segment.as_ref());
            let view = segment.and_then(|segment| segment.address(address(vip)));
            view.is_some_and(|view| view.state == State::Give)
        };
        self.check.tick(gives, self.now);
    }

    // --- the API server

    /// The object of an address, or what matters about nodes, changed.
    pub(crate) fn publish(&mut self, vip: usize) {
        self.changed.get_or_insert(false);
        if self.cluster.up {
            for node in 0..self.nodes.len() {
                self.soon((1, 50), Due::Told(node, vip));
            }
        }
    }

    pub(crate) fn told(&mut self, node: usize, vip: usize) {
        let deaf = |fault: &Fault| *fault == Fault::Watch(node);
        let unaware = self.unseen.values().any(|owner| *owner == node);
        if !self.cluster.up || unaware || self.active_faults().any(deaf) {
            return;
        }
        let assignment = self.cluster.assignment(vip, node);
        let Some(it) = self.nodes.get_mut(node).filter(|it| it.runs()) else {
            return;
        };
        let known = it.told.get(&vip);
        let address = address(vip);
        let input = match assignment {
            Some(assignment) if known == Some(&assignment) => return,
            // As the speaker: what this node never might hold is not its business.
            Some(assignment)
                if assignment.eligibility != Eligibility::Eligible && known.is_none() =>
            {
                return;
            }
            Some(assignment) => {
                it.told.insert(vip, assignment.clone());
                Input::Assign {
                    address,
                    assignment,
                }
            }
            None if known.is_none() => return,
            None => {
                it.told.remove(&vip);
                Input::Remove { address }
            }
        };
        self.feed(node, input);
        self.changed.get_or_insert(false);
    }

    fn record(&mut self, node: usize, vip: usize, epoch: u64) {
        let owns = |view: &AddressView| view.owner == Some(name(node)) && view.epoch == epoch;
        let still = self.nodes.get(node).is_some_and(|it| {
            let view = it
                .segment
                .as_ref()
                .and_then(|segment| segment.address(address(vip)));
            view.as_ref().is_some_and(owns)
        });
        if !still {
            return;
        }
        if !self.cluster.up {
            self.later(Duration::from_secs(2), Due::Record(node, vip, epoch));
            return;
        }
        if let Some(Some(object)) = self.cluster.vips.get_mut(vip) {
            object.recorded = Some(Recorded {
                owner: name(node),
                epoch,
            });
            self.publish(vip);
        }
    }

    pub(crate) fn forwards(&self, node: usize) -> bool {
        let paused = |fault: &Fault| *fault == Fault::Pause(node);
        !self.crashed.contains(&node) && !self.active_faults().any(paused)
    }
}

/// An ARP frame about one of our addresses: whose sender or target it is.
fn arp_of(frame: &[u8]) -> Option<(usize, Arp)> {
    if frame.get(12..14) != Some(&ARP.to_be_bytes()) {
        return None;
    }
    let arp = Arp::decode(frame.get(14..)?).ok()?;
    let vip = |address: std::net::Ipv4Addr| number(address.into()).filter(|n| *n < 100);
    let vip = vip(arp.sender).or_else(|| vip(arp.target))?;
    Some((vip, arp))
}

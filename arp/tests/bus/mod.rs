//! A segment in memory and in virtual time: several nodes' state machines on
//! one wire with delay, loss and partitions. Deterministic from its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bellrock_arp::frame::{self, Arp, Credentials, Ethernet, Operation};
use bellrock_arp::ownership::{Input, Output, Segment, SegmentConfig};
use bellrock_arp::{
    Assignment, Eligibility, Event, Held, Instant, MacAddr, Recorded, State, Timers,
};

pub(crate) const CREATED: u64 = 1_700_000_000;

/// k * I + W, the rounding up to the own round, probes, the wire.
pub(crate) const BOUND: Duration = Duration::from_millis(320 + 40 + 10);

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn vip(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
}

pub(crate) fn name(index: usize) -> String {
    char::from(b'a' + u8::try_from(index).unwrap()).to_string()
}

pub(crate) fn mac(index: usize) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, u8::try_from(index).unwrap())
}

pub(crate) const STRANGER: MacAddr = MacAddr(2, 0, 0, 0, 0xff, 0xff);

pub(crate) fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => panic!("an IPv4 address"),
    }
}

pub(crate) fn arp_of(frame: &[u8]) -> Option<Arp> {
    let ethernet = Ethernet::decode(frame).unwrap();
    (ethernet.ethertype == frame::ARP).then(|| Arp::decode(ethernet.payload).unwrap())
}

/// Desired node first, then the successors.
pub(crate) fn assignment(order: &[usize]) -> Assignment {
    let mut names = order.iter().map(|index| name(*index));
    Assignment {
        desired: names.next(),
        successors: names.collect(),
        created: CREATED,
        recorded: None,
        eligibility: Eligibility::Eligible,
        interfaces: None,
    }
}

pub(crate) fn recorded(owner: usize, epoch: u64) -> Option<Recorded> {
    Some(Recorded {
        owner: name(owner),
        epoch,
    })
}

/// Whether clients are answered in this state.
pub(crate) fn answers(state: State) -> bool {
    match state {
        State::Own | State::Deaf | State::Give => true,
        State::Idle | State::Blocked | State::Wait | State::Probe => false,
    }
}

pub(crate) struct Node {
    pub(crate) segment: Option<Segment>,
    pub(crate) frozen: bool,
    /// Nodes of one number hear each other.
    pub(crate) part: usize,
    pub(crate) up: bool,
    /// The incarnation of the last start.
    pub(crate) starts: u64,
    /// When the last frame on its way arrives.
    last: Instant,
    /// What came while it was frozen.
    backlog: Vec<Vec<u8>>,
    /// What the node is told at its start.
    pub(crate) told: BTreeMap<IpAddr, Assignment>,
}

pub(crate) struct Bus {
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Node>,
    pub(crate) timers: Timers,
    /// Milliseconds a frame takes, at random in this range. Frames to one node
    /// keep their order, unless `reorder`.
    pub(crate) delay: (u64, u64),
    pub(crate) reorder: bool,
    /// Frames lost of a hundred.
    pub(crate) loss: u64,
    /// Frames that must not arrive.
    pub(crate) drop: Option<fn(&[u8]) -> bool>,
    /// A host that is none of ours and has this address.
    pub(crate) stranger: Option<Ipv4Addr>,
    /// How often [`Self::run_until`] looks.
    pub(crate) tick: Duration,
    /// What was told of addresses, and of nodes.
    pub(crate) events: Vec<(Instant, usize, Event)>,
    pub(crate) peers: Vec<(Instant, usize, Event)>,
    /// Every frame sent, by whom and when.
    pub(crate) sent: Vec<(Instant, usize, Vec<u8>)>,
    pub(crate) record_sent: bool,
    pub(crate) count_sent: u64,
    /// The longest time that an address had two owners that hear each other.
    pub(crate) overlap: Duration,
    overlaps: BTreeMap<IpAddr, Instant>,
    watched: BTreeSet<IpAddr>,
    flight: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    serial: u64,
    rng: u64,
}

impl Bus {
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        let node = |_| Node {
            segment: None,
            frozen: false,
            part: 0,
            up: true,
            starts: 0,
            last: Instant(0),
            backlog: Vec::new(),
            told: BTreeMap::new(),
        };
        Self {
            now: Instant(0),
            nodes: (0..nodes).map(node).collect(),
            timers: Timers::default(),
            delay: (0, 1),
            reorder: false,
            loss: 0,
            drop: None,
            stranger: None,
            tick: Duration::from_micros(500),
            events: Vec::new(),
            peers: Vec::new(),
            sent: Vec::new(),
            record_sent: false,
            count_sent: 0,
            overlap: Duration::ZERO,
            overlaps: BTreeMap::new(),
            watched: BTreeSet::new(),
            flight: BTreeMap::new(),
            serial: 0,
            rng: seed ^ 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Nodes that all run and were all told of address 1 in the order of
    /// their names, settled.
    pub(crate) fn settled(nodes: usize, seed: u64) -> Self {
        let mut bus = Self::new(nodes, seed);
        let order: Vec<usize> = (0..nodes).collect();
        for index in 0..nodes {
            bus.start(index);
            bus.assign(index, vip(1), assignment(&order));
            bus.run(ms(7));
        }
        bus.run(ms(2_000));
        assert_eq!(bus.owners(vip(1)), [0]);
        bus
    }

    fn random(&mut self, below: u64) -> u64 {
        // xorshift64*
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        (self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    pub(crate) fn credentials() -> Credentials {
        Credentials::new("test", b"0123456789abcdef")
    }

    pub(crate) fn start(&mut self, index: usize) {
        self.begin(index, None);
    }

    /// The process ends; another goes on in its place after `gap`, told of this
    /// only.
    pub(crate) fn replace(&mut self, index: usize, gap: Duration, told: &[(IpAddr, Assignment)]) {
        let old = self.nodes[index].segment.take().expect("it runs");
        self.run(gap);
        self.nodes[index].told = told.iter().cloned().collect();
        self.begin(index, Some(old.held()));
    }

    fn begin(&mut self, index: usize, held: Option<Held>) {
        let node = &mut self.nodes[index];
        node.starts += 1;
        node.frozen = false;
        node.backlog.clear();
        node.segment = Some(Segment::new(
            SegmentConfig {
                node: name(index),
                interface: "eth0".to_owned(),
                credentials: Self::credentials(),
                ethertype: frame::ETHERTYPE,
                timers: self.timers.clone(),
                incarnation: node.starts,
                mac: mac(index),
                held,
            },
            self.now,
        ));
        let told: Vec<_> = node.told.clone().into_iter().collect();
        for (address, assignment) in told {
            self.feed(
                index,
                Input::Assign {
                    address,
                    assignment,
                },
            );
        }
        self.feed(index, Input::Timeout);
    }

    /// Gone without a word.
    pub(crate) fn kill(&mut self, index: usize) {
        self.nodes[index].segment = None;
        self.nodes[index].backlog.clear();
    }

    pub(crate) fn assign(&mut self, index: usize, address: IpAddr, assignment: Assignment) {
        self.watched.insert(address);
        self.nodes[index].told.insert(address, assignment.clone());
        self.feed(
            index,
            Input::Assign {
                address,
                assignment,
            },
        );
    }

    pub(crate) fn remove(&mut self, index: usize, address: IpAddr) {
        self.nodes[index].told.remove(&address);
        self.feed(index, Input::Remove { address });
    }

    pub(crate) fn link(&mut self, index: usize, up: bool) {
        self.nodes[index].up = up;
        self.feed(
            index,
            Input::Link {
                up,
                mac: mac(index),
                local: BTreeSet::new(),
            },
        );
    }

    pub(crate) fn freeze(&mut self, index: usize) {
        self.nodes[index].frozen = true;
    }

    /// As the driver does it: the frames that waited come first.
    pub(crate) fn thaw(&mut self, index: usize) {
        self.nodes[index].frozen = false;
        for frame in std::mem::take(&mut self.nodes[index].backlog) {
            self.feed(index, Input::Frame(frame));
        }
        self.feed(index, Input::Timeout);
    }

    pub(crate) fn state(&self, index: usize, address: IpAddr) -> State {
        self.view(index, address).state
    }

    pub(crate) fn view(
        &self,
        index: usize,
        address: IpAddr,
    ) -> bellrock_arp::ownership::AddressView {
        self.nodes[index]
            .segment
            .as_ref()
            .unwrap()
            .address(address)
            .unwrap()
    }

    pub(crate) fn counter(&self, index: usize, name: &str) -> u64 {
        let counters = self.nodes[index].segment.as_ref().unwrap().counters();
        counters.get(name).copied().unwrap_or(0)
    }

    /// Who answers for the address. A frozen node answers nobody.
    pub(crate) fn owners(&self, address: IpAddr) -> Vec<usize> {
        let owns = |node: &Node| {
            !node.frozen
                && node
                    .segment
                    .as_ref()
                    .and_then(|segment| segment.address(address))
                    .is_some_and(|view| answers(view.state))
        };
        (0..self.nodes.len())
            .filter(|index| owns(&self.nodes[*index]))
            .collect()
    }

    /// Events of a node since `since`.
    pub(crate) fn events_of(&self, index: usize, since: Instant) -> Vec<Event> {
        self.events
            .iter()
            .filter(|(at, of, _)| *at >= since && *of == index)
            .map(|(_, _, event)| event.clone())
            .collect()
    }

    /// Puts a frame on the wire as if node `from` had sent it.
    pub(crate) fn inject(&mut self, from: usize, frame: &[u8]) {
        self.transmit(from, frame);
    }

    pub(crate) fn feed(&mut self, index: usize, input: Input) {
        let now = self.now;
        let Some(segment) = &mut self.nodes[index].segment else {
            return;
        };
        segment.handle(input, now);
        let mut outputs = Vec::new();
        while let Some(output) = segment.poll_output() {
            outputs.push(output);
        }
        for output in outputs {
            match output {
                Output::Frame(frame) => {
                    if self.record_sent {
                        self.sent.push((now, index, frame.clone()));
                    }
                    self.count_sent += 1;
                    self.transmit(index, &frame);
                }
                Output::Event(event) => match event.address() {
                    Some(address) => {
                        self.events.push((now, index, event));
                        self.watch(address);
                    }
                    None => self.peers.push((now, index, event)),
                },
            }
        }
    }

    fn transmit(&mut self, from: usize, bytes: &[u8]) {
        let ethernet = Ethernet::decode(bytes).unwrap();
        if !self.nodes[from].up || self.drop.is_some_and(|drop| drop(bytes)) {
            return;
        }
        for to in 0..self.nodes.len() {
            if to == from
                || self.nodes[to].part != self.nodes[from].part
                || !self.nodes[to].up
                || (ethernet.destination.is_unicast() && ethernet.destination != mac(to))
                || self.random(100) < self.loss
            {
                continue;
            }
            self.deliver(to, bytes.to_vec());
        }
        if let Some(address) = self.stranger
            && ethernet.ethertype == frame::ARP
            && let Ok(arp) = Arp::decode(ethernet.payload)
            && arp.operation == Operation::Request
            && arp.target == address
            && arp.sender != address
        {
            self.deliver(from, arp.answer(STRANGER).frame());
        }
    }

    fn deliver(&mut self, to: usize, frame: Vec<u8>) {
        let (least, most) = self.delay;
        // In tenths of a millisecond, so that frames rarely tie.
        let tenths = least * 10 + self.random((most - least) * 10 + 1);
        let mut at = self.now + Duration::from_micros(tenths * 100);
        if !self.reorder {
            at = at.max(self.nodes[to].last);
            self.nodes[to].last = at;
        }
        self.serial += 1;
        self.flight.insert((at, self.serial), (to, frame));
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timer = (0..self.nodes.len())
                .filter(|index| !self.nodes[*index].frozen)
                .filter_map(|index| {
                    Some((self.nodes[index].segment.as_ref()?.next_deadline()?, index))
                })
                .min();
            let frame = self.flight.first_key_value().map(|((at, _), _)| *at);
            let next = timer.map(|(at, _)| at).into_iter().chain(frame).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if frame.is_some_and(|at| at <= next) {
                let (_, (to, frame)) = self.flight.pop_first().unwrap();
                if self.nodes[to].frozen {
                    self.nodes[to].backlog.push(frame);
                } else {
                    self.feed(to, Input::Frame(frame));
                }
            } else if let Some((_, index)) = timer {
                self.feed(index, Input::Timeout);
            }
        }
        self.now = end;
        self.watch_all();
    }

    /// Runs until `condition`, at most for `within`; how long it took.
    pub(crate) fn run_until(
        &mut self,
        within: Duration,
        condition: impl Fn(&Self) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        while self.now.since(start) < within {
            if condition(self) {
                return Some(self.now.since(start));
            }
            self.run(self.tick);
        }
        None
    }

    /// Keeps account of addresses with two owners in one connected part.
    fn watch(&mut self, address: IpAddr) {
        let mut parts = BTreeMap::<usize, usize>::new();
        for index in self.owners(address) {
            if self.nodes[index].up {
                *parts.entry(self.nodes[index].part).or_default() += 1;
            }
        }
        if parts.values().any(|count| *count > 1) {
            let since = *self.overlaps.entry(address).or_insert(self.now);
            self.overlap = self.overlap.max(self.now.since(since));
        } else if let Some(since) = self.overlaps.remove(&address) {
            self.overlap = self.overlap.max(self.now.since(since));
        }
    }

    fn watch_all(&mut self) {
        for address in self.watched.clone() {
            self.watch(address);
        }
    }

    pub(crate) fn two_owners_now(&self) -> bool {
        !self.overlaps.is_empty()
    }

    pub(crate) fn ever_two_owners(&self) -> bool {
        self.overlap > Duration::ZERO || self.two_owners_now()
    }
}

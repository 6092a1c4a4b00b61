//! Neighbour Discovery at one node's state machine: what it answers, what it
//! takes for a conflict, what it ignores.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use bellrock_arp::frame::{
    Advertisement, Credentials, ETHERTYPE, Ethernet, IPV6, Ndp, Solicitation,
};
use bellrock_arp::ownership::{Input, Output, Segment, SegmentConfig};
use bellrock_arp::{Assignment, Eligibility, Event, Instant, MacAddr, State, Timers};

const VIP: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
const OWN: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
const OTHER: MacAddr = MacAddr(2, 0, 0, 0, 0, 9);
const INCARNATION: u64 = 7;

/// A node alone on its segment, in steps of a millisecond.
struct Node {
    segment: Segment,
    now: Instant,
    sent: Vec<Ndp>,
    events: Vec<Event>,
}

impl Node {
    fn new() -> Self {
        let now = Instant(1_000_000_000);
        let config = SegmentConfig {
            node: "a".to_owned(),
            interface: "eth0".to_owned(),
            credentials: credentials(),
            ethertype: ETHERTYPE,
            timers: Timers::default(),
            incarnation: INCARNATION,
            mac: OWN,
            held: None,
        };
        let mut node = Self {
            segment: Segment::new(config, now),
            now,
            sent: Vec::new(),
            events: Vec::new(),
        };
        let assignment = Assignment {
            desired: Some("a".to_owned()),
            successors: Vec::new(),
            created: 1_700_000_000,
            recorded: None,
            eligibility: Eligibility::Eligible,
            interfaces: None,
        };
        node.handle(Input::Assign {
            address: IpAddr::V6(VIP),
            assignment,
        });
        node
    }

    /// Owns the address, its first announcements made.
    fn owner() -> Self {
        let mut node = Self::new();
        node.run(Duration::from_secs(5));
        assert_eq!(node.state(), State::Own);
        node.sent.clear();
        node.events.clear();
        node
    }

    /// Has just asked whether somebody has the address.
    fn prober() -> Self {
        let mut node = Self::new();
        while node.state() != State::Probe {
            node.run(Duration::from_millis(1));
        }
        node
    }

    fn state(&self) -> State {
        self.segment.address(IpAddr::V6(VIP)).unwrap().state
    }

    fn count(&self, name: &str) -> u64 {
        self.segment.counters().get(name).copied().unwrap_or(0)
    }

    fn handle(&mut self, input: Input) {
        self.segment.handle(input, self.now);
        while let Some(output) = self.segment.poll_output() {
            match output {
                Output::Frame(frame) => {
                    let ethernet = Ethernet::decode(&frame).unwrap();
                    if ethernet.ethertype == IPV6 {
                        self.sent.push(Ndp::decode(&ethernet).unwrap());
                    }
                }
                Output::Event(event) if event.address().is_some() => self.events.push(event),
                Output::Event(_) => {}
            }
        }
    }

    fn hear(&mut self, frame: Vec<u8>) {
        self.handle(Input::Frame(frame));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(1);
            if self
                .segment
                .next_deadline()
                .is_some_and(|at| at <= self.now)
            {
                self.handle(Input::Timeout);
            }
        }
    }
}

fn credentials() -> Credentials {
    Credentials::new("test", b"a key of some length")
}

fn question(target: Ipv6Addr) -> Solicitation {
    Solicitation {
        mac: OTHER,
        source: CLIENT,
        target,
        nonce: None,
    }
}

fn probe(mac: MacAddr) -> Solicitation {
    Solicitation::probe(mac, VIP, [9; 6])
}

/// What this node's own probes for the address carry.
fn own_probe(mac: MacAddr) -> Solicitation {
    let nonce = credentials().nonce(OWN, INCARNATION, VIP);
    Solicitation::probe(mac, VIP, nonce)
}

#[test]
fn an_address_is_probed_with_a_nonce_claimed_and_announced() {
    let mut node = Node::new();
    node.run(Duration::from_secs(5));
    let probe = Ndp::Solicitation(own_probe(OWN));
    let told = Ndp::Advertisement(Advertisement::announcement(OWN, VIP));
    let expected = [[probe; 2].as_slice(), &[told; 5]].concat();
    assert_eq!(node.sent, expected);
    assert_eq!((node.count("probes"), node.count("announcements")), (2, 5));
}

#[test]
fn who_asks_for_a_held_address_is_answered_and_who_probes_it_tells_all() {
    let mut node = Node::owner();
    node.hear(question(VIP).frame());
    assert_eq!(
        node.sent.pop(),
        Some(Ndp::Advertisement(question(VIP).answer(OWN)))
    );
    node.hear(probe(OTHER).frame());
    let all = Advertisement::announcement(OWN, VIP);
    assert_eq!(node.sent.pop(), Some(Ndp::Advertisement(all)));
    node.hear(question(CLIENT).frame());
    assert_eq!(node.sent, [], "not ours");
    assert_eq!(node.count("answers"), 2);
    assert_eq!(node.events, [], "nothing to report");
    assert_eq!(node.state(), State::Own);
}

#[test]
fn an_address_that_is_not_held_is_not_answered() {
    let mut node = Node::new();
    node.hear(question(VIP).frame());
    let mut probing = Node::prober();
    probing.sent.clear();
    probing.hear(question(VIP).frame());
    assert_eq!((node.sent, probing.sent), (vec![], vec![]));
}

#[test]
fn another_host_that_has_probes_or_uses_the_address_blocks_the_first_claim() {
    let answered = question(VIP).answer(OTHER);
    let uses = Solicitation {
        source: VIP,
        ..question(CLIENT)
    };
    let frames = [
        ("it answers", answered.frame()),
        (
            "it announces",
            Advertisement::announcement(OTHER, VIP).frame(),
        ),
        ("it probes", probe(OTHER).frame()),
        ("it asks with it", uses.frame()),
    ];
    for (what, frame) in frames {
        let mut node = Node::prober();
        node.hear(frame);
        assert_eq!(node.state(), State::Blocked, "{what}");
        let blocked = Event::Blocked {
            address: IpAddr::V6(VIP),
            mac: OTHER,
            interface: "eth0".to_owned(),
        };
        assert_eq!(node.events, [blocked], "{what}");
    }
}

#[test]
fn a_held_address_is_defended_and_reported_and_kept() {
    let mut node = Node::owner();
    let foreign = Advertisement::announcement(OTHER, VIP);
    for _ in 0..100 {
        node.hear(foreign.frame());
        node.run(Duration::from_millis(1));
    }
    let own = Ndp::Advertisement(Advertisement::announcement(OWN, VIP));
    assert_eq!(node.sent, [own], "once in ten seconds");
    let reported = Event::ForeignClaim {
        address: IpAddr::V6(VIP),
        mac: OTHER,
        interface: "eth0".to_owned(),
    };
    assert_eq!(node.events, [reported]);
    assert_eq!(node.state(), State::Own);
}

#[test]
fn its_own_frames_that_come_back_are_nobody() {
    // As they went, and with the source that a bridge in the loop gave them.
    let looped = [
        own_probe(OWN).frame(),
        own_probe(OTHER).frame(),
        Advertisement::announcement(OWN, VIP).frame(),
        question(VIP).answer(OWN).frame(),
    ];
    for frame in looped {
        for mut node in [Node::prober(), Node::owner()] {
            let before = node.state();
            node.sent.clear();
            node.hear(frame.clone());
            assert_eq!(node.state(), before);
            assert_eq!((&node.sent[..], &node.events[..]), (&[][..], &[][..]));
            assert_eq!(node.count("looped"), 1);
        }
    }
    // Another interface of this node on the same segment.
    let mut node = Node::owner();
    node.handle(Input::Link {
        up: true,
        mac: OWN,
        local: BTreeSet::from([OWN, OTHER]),
    });
    node.hear(Advertisement::announcement(OTHER, VIP).frame());
    assert_eq!((node.count("looped"), node.events.len()), (1, 0));
}

#[test]
fn what_is_not_sound_is_counted_by_kind_and_changes_nothing() {
    let foreign = Advertisement::announcement(OTHER, VIP).frame();
    let with = |offset: usize, byte: u8| {
        let mut frame = foreign.clone();
        frame[offset] = byte;
        frame
    };
    let cases = [
        ("ndp_hop_limit", with(21, 64)),
        ("ndp_checksum", with(60, 1)),
        ("ndp_format", with(20, 0)),
        ("truncated", foreign[..80].to_vec()),
        ("ethertype", with(13, 0xde)),
    ];
    for (kind, frame) in cases {
        for mut node in [Node::prober(), Node::owner()] {
            let before = (node.state(), node.sent.len(), node.events.len());
            node.hear(frame.clone());
            let after = (node.state(), node.sent.len(), node.events.len());
            assert_eq!(before, after, "{kind}");
            assert_eq!(node.count(kind), 1, "{kind}");
        }
    }
}

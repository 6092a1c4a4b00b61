//! One node on a segment, played by a script of bytes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bellrock_arp::frame::{
    ARP, Advertisement, Arp, Body, Credentials, ETHERTYPE, Ethernet, GROUP, IPV6, Message, Ndp,
    Operation, Solicitation,
};
use bellrock_arp::ownership::{Input, Output, Segment, SegmentConfig};
use bellrock_arp::{Assignment, Eligibility, Instant, MacAddr, Recorded, State, Timers};

const CREATED: u64 = 1_700_000_000;
const OWN: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
/// One input makes no more frames and events than this.
const OUTPUTS: usize = 1024;
/// Time does not stand still for more timeouts than this.
const TIMEOUTS: usize = 256;

struct Script<'a> {
    rest: &'a [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                *first
            }
            None => 0,
        }
    }

    fn address(&mut self) -> IpAddr {
        match self.byte() % 4 {
            n @ 0..2 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)),
            n => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into())),
        }
    }

    /// This node's own, two peers', a stranger's.
    fn mac(&mut self) -> MacAddr {
        MacAddr(2, 0, 0, 0, 0, 1 + self.byte() % 4)
    }

    fn node(&mut self) -> String {
        ["a", "b", "c"][usize::from(self.byte() % 3)].to_owned()
    }

    fn epoch(&mut self) -> u64 {
        (CREATED << 20) + u64::from(self.byte() % 8)
    }

    fn entries(&mut self) -> Vec<(IpAddr, u64)> {
        let count = self.byte() % 4;
        (0..count).map(|_| (self.address(), self.epoch())).collect()
    }

    fn assignment(&mut self) -> Assignment {
        let flags = self.byte();
        Assignment {
            desired: (flags & 1 != 0).then(|| self.node()),
            successors: vec![self.node(), self.node()],
            created: CREATED + u64::from(flags >> 6),
            recorded: (flags & 2 != 0).then(|| Recorded {
                owner: self.node(),
                epoch: self.epoch(),
            }),
            eligibility: if flags & 4 == 0 {
                Eligibility::Eligible
            } else {
                Eligibility::Ineligible
            },
            interfaces: None,
        }
    }

    /// What a client, a peer or a stranger says to all.
    fn neighbour(&mut self) -> Vec<u8> {
        let (kind, mac, address) = (self.byte(), self.mac(), self.address());
        match address {
            IpAddr::V4(target) => {
                let asks = Arp {
                    sender: Ipv4Addr::new(10, 0, 0, 99),
                    ..Arp::probe(mac, target)
                };
                match kind % 4 {
                    0 => asks.frame(),
                    1 => asks.answer(mac).frame(),
                    2 => Arp::probe(mac, target).frame(),
                    _ => Arp::announcement(mac, target).frame(),
                }
            }
            IpAddr::V6(target) => {
                let asks = Solicitation {
                    source: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99),
                    nonce: None,
                    ..Solicitation::probe(mac, target, [kind; 6])
                };
                match kind % 4 {
                    0 => asks.frame(),
                    1 => asks.answer(mac).frame(),
                    2 => Solicitation::probe(mac, target, [kind; 6]).frame(),
                    _ => Advertisement::announcement(mac, target).frame(),
                }
            }
        }
    }

    fn message(&mut self, credentials: &Credentials) -> Vec<u8> {
        let body = match self.byte() % 6 {
            0 => Body::Hello {
                deaf: self.byte() % 2 == 1,
                leaving: self.byte() % 8 == 1,
                count: self.byte().into(),
                digest: self.byte().into(),
            },
            1 => Body::Claim(self.entries()),
            2 => Body::Handover(self.entries()),
            3 => Body::Release {
                removed: self.byte() % 2 == 1,
                entries: self.entries(),
            },
            4 => Body::Sync,
            _ => Body::SyncAnswer {
                from: self.address(),
                to: self.address(),
                entries: self.entries(),
            },
        };
        let message = Message {
            node: self.node(),
            incarnation: (self.byte() % 4).into(),
            seq: self.byte().into(),
            body,
        };
        message.frame(credentials, ETHERTYPE, self.mac(), GROUP)
    }
}

struct Player {
    segment: Segment,
    now: Instant,
}

impl Player {
    /// Feeds one input, and looks at what comes of it.
    fn feed(&mut self, input: Input) {
        let owned = self.owned();
        self.segment.handle(input, self.now);
        let owned: BTreeSet<IpAddr> = owned.union(&self.owned()).copied().collect();
        let mut outputs = 0;
        while let Some(output) = self.segment.poll_output() {
            outputs += 1;
            assert!(outputs <= OUTPUTS, "an input makes a flood");
            if let Output::Frame(frame) = output {
                check(&frame, &owned);
            }
        }
    }

    fn owned(&self) -> BTreeSet<IpAddr> {
        let owns = |address: &IpAddr| {
            let view = self.segment.address(*address);
            view.is_some_and(|view| matches!(view.state, State::Own | State::Deaf | State::Give))
        };
        self.segment.addresses().filter(owns).collect()
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        let mut last = (self.now, 0);
        while let Some(at) = self.segment.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            last = (self.now, if self.now == last.0 { last.1 + 1 } else { 0 });
            assert!(last.1 <= TIMEOUTS, "time stands still");
            self.feed(Input::Timeout);
        }
        self.now = end;
    }
}

/// A frame that is sound, and tells only of what is owned.
fn check(frame: &[u8], owned: &BTreeSet<IpAddr>) {
    let Ok(ethernet) = Ethernet::decode(frame) else {
        panic!("a short frame")
    };
    assert!(!ethernet.source.is_multicast());
    let told = match ethernet.ethertype {
        ARP => match Arp::decode(ethernet.payload) {
            Ok(arp) if arp.is_probe() => None,
            Ok(arp) => {
                let announces = arp.operation == Operation::Request && arp.sender == arp.target;
                assert!(announces || arp.operation == Operation::Reply, "{arp:?}");
                Some(IpAddr::V4(arp.sender))
            }
            Err(error) => panic!("{error}"),
        },
        IPV6 => match Ndp::decode(&ethernet) {
            Ok(Ndp::Solicitation(asks)) => {
                assert!(asks.is_probe(), "{asks:?}");
                None
            }
            Ok(Ndp::Advertisement(tells)) => Some(IpAddr::V6(tells.target)),
            Err(error) => panic!("{error}"),
        },
        _ => None,
    };
    if let Some(told) = told {
        assert!(owned.contains(&told), "{told} is told of and not owned");
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut script = Script { rest: data };
    let credentials = Credentials::new("test", super::KEY);
    let now = Instant(1_000_000_000);
    let config = SegmentConfig {
        node: "a".to_owned(),
        interface: "eth0".to_owned(),
        credentials: credentials.clone(),
        ethertype: ETHERTYPE,
        timers: Timers::default(),
        incarnation: 2,
        mac: OWN,
        held: None,
    };
    let mut player = Player {
        segment: Segment::new(config, now),
        now,
    };
    while !script.rest.is_empty() {
        match script.byte() % 16 {
            0 | 1 => player.wait(Duration::from_millis(script.byte().into())),
            2 => player.wait(Duration::from_millis(u64::from(script.byte()) * 50)),
            // Its loop stood still.
            3 => player.now = player.now + Duration::from_millis(u64::from(script.byte()) * 4),
            4 | 5 => {
                let (address, assignment) = (script.address(), script.assignment());
                player.feed(Input::Assign {
                    address,
                    assignment,
                });
            }
            6 => {
                let address = script.address();
                player.feed(Input::Remove { address });
            }
            7..10 => player.feed(Input::Frame(script.neighbour())),
            10..13 => player.feed(Input::Frame(script.message(&credentials))),
            13 => {
                let mac = if script.byte().is_multiple_of(4) {
                    script.mac()
                } else {
                    player.segment.mac()
                };
                player.feed(Input::Link {
                    up: !script.byte().is_multiple_of(3),
                    mac,
                    local: BTreeSet::from([mac]),
                });
            }
            14 => {
                let length = usize::from(script.byte()).min(script.rest.len());
                let (frame, rest) = script.rest.split_at(length);
                script.rest = rest;
                player.feed(Input::Frame(frame.to_vec()));
            }
            _ => {
                if script.byte() == 0xff {
                    player.feed(Input::Shutdown);
                }
            }
        }
    }
}

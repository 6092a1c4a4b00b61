//! The driver against peers that misbehave: a listener on the loopback that
//! follows a script.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests may panic and measure time"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bellrock_bgp::message::{Context, Decoder, Message, Notification, Open, Update};
use bellrock_bgp::{Attributes, Peer, PeerAsn, PeerConfig, PeerStatus, State, StopReason};
use bellrock_e2e::netns::wait_for;
use ipnet::{IpNet, Ipv4Net};
use tokio::runtime::Runtime;

const LONG: Duration = Duration::from_secs(60);
const CONTEXT: Context = Context {
    four_octet_as: true,
    internal: false,
    ..Context::BEFORE_OPEN
};

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn listener() -> (TcpListener, PeerConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = PeerConfig::new(
        "127.0.0.1".parse().unwrap(),
        64512,
        PeerAsn::Exact(64513),
        Ipv4Addr::new(192, 0, 2, 10),
    );
    // An address of its own: a peer is never told that it is the next hop.
    config.source = Some("127.0.0.2".parse().unwrap());
    config.port = listener.local_addr().unwrap().port();
    config.connect_retry = Duration::from_secs(1);
    (listener, config)
}

fn prefixes(count: u32) -> BTreeMap<IpNet, Attributes> {
    (0..count)
        .map(|n| {
            let net = Ipv4Net::new((0x0a00_0000 + n).into(), 32).unwrap();
            (IpNet::V4(net), Attributes::default())
        })
        .collect()
}

fn wait_status(peer: &Peer, what: &str, condition: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
    let status = peer.status();
    wait_for(what, LONG, || {
        let status = status.borrow().clone();
        ensure!(condition(&status), "{status:?}");
        Ok(status)
    })
}

/// One connection of a scripted peer.
struct Scripted {
    stream: TcpStream,
    decoder: Decoder,
}

impl Scripted {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    fn send(&mut self, message: &Message) {
        let mut octets = Vec::new();
        message.encode(CONTEXT, &mut octets).unwrap();
        self.stream.write_all(&octets).unwrap();
    }

    /// The next message; an error at the end of the stream.
    fn receive(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.decoder.next(CONTEXT) {
                return message.map_err(|error| anyhow::anyhow!("we sent nonsense: {error}"));
            }
            let mut octets = [0; 4096];
            let count = self.stream.read(&mut octets)?;
            ensure!(count > 0, "end of stream");
            self.decoder.push(&octets[..count]);
        }
    }

    fn open() -> Message {
        Message::Open(Open::new(64513, 90, Ipv4Addr::new(192, 0, 2, 1)))
    }

    /// Up to Established on both sides.
    fn handshake(&mut self) {
        assert!(matches!(self.receive().unwrap(), Message::Open(_)));
        self.send(&Self::open());
        assert_eq!(self.receive().unwrap(), Message::Keepalive);
        self.send(&Message::Keepalive);
    }

    /// The first NOTIFICATION; what comes before it does not matter here.
    fn notification(&mut self) -> Notification {
        loop {
            if let Message::Notification(notification) = self.receive().unwrap() {
                return notification;
            }
        }
    }
}

#[test]
fn each_malformed_message_is_answered_on_the_wire_before_the_connection_closes() {
    let octets = |text: &[u8]| -> Vec<u8> { [&[0xff; 16], text].concat() };
    let (listener, config) = listener();
    let runtime = runtime();
    let cases = [
        (b"GET / HTTP/1.1\r\n".to_vec(), (1, 1)),
        (octets(&[0, 18, 4]), (1, 2)),
        (octets(&[0, 19, 255]), (1, 3)),
        (octets(&[0, 23, 2, 0, 9, 0, 0]), (3, 1)),
        (octets(&[0, 26, 2, 0, 0, 0, 0, 33, 1, 2]), (3, 10)),
        (octets(&[0, 22, 5, 0, 1, 0]), (7, 1)),
        // A second OPEN in Established.
        (
            octets(&[0, 29, 1, 4, 252, 1, 0, 90, 192, 0, 2, 1, 0]),
            (5, 3),
        ),
    ];
    for (text, (code, subcode)) in cases {
        // A peer of its own each time: pauses grow within one.
        let peer = {
            let _guard = runtime.enter();
            Peer::spawn(config.clone(), prefixes(3)).unwrap()
        };
        let mut scripted = Scripted::accept(&listener);
        scripted.handshake();
        wait_status(&peer, "Established", |status| {
            status.state == State::Established
        });
        scripted.stream.write_all(&text).unwrap();
        let answer = scripted.notification();
        assert_eq!((answer.code, answer.subcode), (code, subcode), "{text:?}");
        assert!(
            scripted.receive().is_err(),
            "nothing follows a NOTIFICATION"
        );
        let status = wait_status(&peer, "the end", |status| status.state == State::Idle);
        let reason = status.last_error.unwrap();
        assert_eq!(reason, format!("the peer broke the protocol: {answer}"));
        assert_eq!((status.prefixes_wanted, status.prefixes_sent), (3, 0));
    }
}

#[test]
fn an_open_one_octet_at_a_time_is_an_open() {
    let (listener, config) = listener();
    let runtime = runtime();
    let peer = {
        let _guard = runtime.enter();
        Peer::spawn(config, prefixes(1)).unwrap()
    };
    let mut scripted = Scripted::accept(&listener);
    scripted.stream.set_nodelay(true).unwrap();
    let mut octets = Vec::new();
    Scripted::open().encode(CONTEXT, &mut octets).unwrap();
    for octet in octets {
        scripted.stream.write_all(&[octet]).unwrap();
    }
    scripted.send(&Message::Keepalive);
    wait_status(&peer, "Established", |status| {
        status.state == State::Established
    });
}

#[test]
fn a_peer_that_closes_after_our_open_is_named_and_not_hammered() {
    let (listener, config) = listener();
    let runtime = runtime();
    let peer = {
        let _guard = runtime.enter();
        Peer::spawn(config, prefixes(1)).unwrap()
    };
    let mut times = Vec::new();
    for _ in 0..4 {
        let mut scripted = Scripted::accept(&listener);
        times.push(Instant::now());
        assert!(matches!(scripted.receive().unwrap(), Message::Open(_)));
    }
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        gaps.iter().all(|gap| *gap >= Duration::from_millis(700)),
        "{gaps:?}"
    );
    wait_status(&peer, "the reason", |status| {
        status.last_error.as_deref() == Some("connection closed by the peer")
    });
}

#[test]
fn a_peer_that_resets_each_session_is_left_alone_longer_each_time() {
    let (listener, config) = listener();
    let runtime = runtime();
    let peer = {
        let _guard = runtime.enter();
        Peer::spawn(config, prefixes(1)).unwrap()
    };
    let mut times = Vec::new();
    for _ in 0..4 {
        let mut scripted = Scripted::accept(&listener);
        times.push(Instant::now());
        scripted.handshake();
        wait_status(&peer, "Established", |status| {
            status.state == State::Established
        });
        scripted.send(&Message::Notification(Notification::new(6, 5)));
        wait_status(&peer, "the end", |status| {
            status.state != State::Established
        });
    }
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (gap, least) in gaps.iter().zip([700, 1400, 2900]) {
        assert!(*gap >= Duration::from_millis(least), "{gaps:?}");
    }
    let status = peer.status().borrow().clone();
    assert_eq!(
        status.last_error.as_deref(),
        Some("the peer ended the session: Cease: Connection Rejected (code 6, subcode 5)")
    );
    assert_eq!(status.messages_received.notification, 4);
    assert_eq!(status.messages_sent.notification, 0);
}

#[test]
fn a_peer_that_reads_nothing_blocks_nobody_and_is_left_in_bounded_time() {
    let (stuck_listener, stuck_config) = listener();
    socket2::SockRef::from(&stuck_listener)
        .set_recv_buffer_size(4096)
        .unwrap();
    let (listener, config) = listener();
    let runtime = runtime();
    let (stuck, peer) = {
        let _guard = runtime.enter();
        // More than both sockets' buffers hold: each prefix has communities
        // of its own, and so a message of its own.
        let mut routes = prefixes(50_000);
        for (prefix, attributes) in &mut routes {
            let IpNet::V4(net) = prefix else {
                unreachable!()
            };
            attributes.communities = (0..40).map(|n| net.addr().to_bits() ^ n << 24).collect();
        }
        (
            Peer::spawn(stuck_config, routes).unwrap(),
            Peer::spawn(config, prefixes(10)).unwrap(),
        )
    };
    let mut unread = Scripted::accept(&stuck_listener);
    unread.handshake();
    wait_status(&stuck, "Established", |status| {
        status.state == State::Established
    });
    let first = wait_status(&stuck, "a full socket", |status| {
        status.messages_sent.update > 0
    });
    assert!(first.prefixes_pending > 0, "{first:?}");

    let mut scripted = Scripted::accept(&listener);
    scripted.handshake();
    wait_status(&peer, "the other's routes", |status| {
        status.prefixes_sent == 10
    });

    // Changes are taken although nothing moves.
    let start = Instant::now();
    for _ in 0..1000 {
        let prefix: IpNet = "198.51.100.1/32".parse().unwrap();
        runtime.block_on(stuck.announce(prefix, Attributes::default()));
        runtime.block_on(stuck.withdraw(prefix));
    }
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    let still = stuck.status().borrow().clone();
    assert!(
        still.prefixes_pending > 10_000,
        "built only what the socket took: {still:?}"
    );

    let start = Instant::now();
    runtime.block_on(stuck.stop(StopReason::PeerDeconfigured));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    drop(unread);

    runtime.block_on(peer.stop(StopReason::AdministrativeShutdown(Some("bye".into()))));
    let answer = scripted.notification();
    assert_eq!(answer, Notification::administrative_shutdown(Some("bye")));
}

#[test]
fn what_a_peer_announces_is_counted_and_survived() {
    let (listener, config) = listener();
    let runtime = runtime();
    let peer = {
        let _guard = runtime.enter();
        Peer::spawn(config, BTreeMap::new()).unwrap()
    };
    let mut scripted = Scripted::accept(&listener);
    scripted.handshake();
    for _ in 0..1000 {
        scripted.send(&Message::Update(Update {
            nlri: vec!["203.0.113.0/24".parse().unwrap()],
            ..Update::default()
        }));
    }
    // Without attributes they count as withdrawn (RFC 7606).
    let status = wait_status(&peer, "all counted", |status| {
        status.malformed_updates == 1000
    });
    assert_eq!(
        (status.state, status.messages_received.update),
        (State::Established, 1000)
    );
}

#[test]
fn dropping_a_peer_closes_its_connection() {
    let (listener, config) = listener();
    let runtime = runtime();
    let peer = {
        let _guard = runtime.enter();
        Peer::spawn(config, prefixes(1)).unwrap()
    };
    let mut scripted = Scripted::accept(&listener);
    scripted.handshake();
    wait_status(&peer, "Established", |status| {
        status.state == State::Established
    });
    drop(peer);
    while scripted.receive().is_ok() {}
}

#[test]
fn stopping_a_peer_that_never_came_up_returns_at_once() {
    let (listener, config) = listener();
    drop(listener);
    let runtime = runtime();
    let peer = {
        let _guard = runtime.enter();
        Peer::spawn(config, prefixes(1)).unwrap()
    };
    wait_status(&peer, "a reason", |status| status.last_error.is_some());
    let status = peer.status();
    let start = Instant::now();
    runtime.block_on(peer.stop(StopReason::PeerDeconfigured));
    assert!(start.elapsed() < Duration::from_secs(2));
    let last = status.borrow().last_error.clone();
    assert_eq!(
        last.as_deref(),
        Some("stopped: the peer is no longer configured")
    );
}

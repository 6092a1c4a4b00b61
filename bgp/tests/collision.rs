//! Two of our own speakers that listen and connect at once, over TCP.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests may panic and measure time"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use bellrock_bgp::{Attributes, Listener, Peer, PeerAsn, PeerConfig, State};
use bellrock_e2e::netns::wait_for;
use tokio::runtime::Runtime;

const LONG: Duration = Duration::from_secs(60);
const ROUNDS: u32 = 200;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn listen(runtime: &Runtime, address: [u8; 4]) -> (Listener, SocketAddr) {
    let _guard = runtime.enter();
    let listener = Listener::bind((address, 0).into()).unwrap();
    let bound = listener.address().unwrap();
    (listener, bound)
}

fn config(own: IpAddr, peer: SocketAddr, asn: u32, peer_asn: u32) -> PeerConfig {
    let IpAddr::V4(router_id) = own else {
        panic!("IPv4 addresses only")
    };
    let asn = (asn, PeerAsn::Exact(peer_asn));
    let mut config = PeerConfig::new(peer.ip(), asn.0, asn.1, router_id);
    config.port = peer.port();
    config.source = Some(own);
    config.connect_retry = Duration::from_secs(1);
    config
}

#[test]
fn two_hundred_times_both_connect_and_one_session_stays() {
    let runtime = runtime();
    let (one, two) = ([127, 0, 1, 1], [127, 0, 1, 2]);
    let ((door_one, at_one), (door_two, at_two)) = (listen(&runtime, one), listen(&runtime, two));
    let mut collisions = 0;
    for round in 0..ROUNDS {
        let peers = {
            let _guard = runtime.enter();
            let routes = || [("10.0.0.1/32".parse().unwrap(), Attributes::default())].into();
            [
                Peer::spawn(config(at_one.ip(), at_two, 64512, 64513), routes()).unwrap(),
                Peer::spawn(config(at_two.ip(), at_one, 64513, 64512), routes()).unwrap(),
            ]
        };
        door_one.attach(&peers[0]).unwrap();
        door_two.attach(&peers[1]).unwrap();
        wait_for(&format!("one session in round {round}"), LONG, || {
            for peer in &peers {
                let status = peer.status().borrow().clone();
                ensure!(status.state == State::Established, "{status:?}");
                ensure!(status.prefixes_sent == 1, "{status:?}");
                ensure!(status.messages_received.update >= 2, "{status:?}");
            }
            Ok(())
        });
        let sent = |n: usize| peers[n].status().borrow().messages_sent.notification;
        collisions += u32::from(sent(0) + sent(1) > 0);
    }
    println!("{collisions} collisions in {ROUNDS} rounds");
}

#[test]
fn a_port_that_is_taken_is_an_error_and_a_stranger_is_sent_away() {
    let runtime = runtime();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let _guard = runtime.enter();
    let error = Listener::bind(taken.local_addr().unwrap()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);

    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut stranger = TcpStream::connect(listener.address().unwrap()).unwrap();
    stranger.set_read_timeout(Some(LONG)).unwrap();
    let mut octets = [0; 16];
    let read = std::io::Read::read(&mut stranger, &mut octets);
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[test]
fn a_storm_of_connections_opens_no_more_than_one_session_at_a_time() {
    let runtime = runtime();
    let (listener, at) = listen(&runtime, [127, 0, 1, 3]);
    let mut config = config(at.ip(), "127.0.1.4:1".parse().unwrap(), 64512, 64513);
    config.address = "127.0.0.1".parse().unwrap();
    let peer = {
        let _guard = runtime.enter();
        Peer::spawn(config, [].into()).unwrap()
    };
    listener.attach(&peer).unwrap();
    let storm: Vec<_> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
    let status = wait_for("an OPEN to one of them", LONG, || {
        let status = peer.status().borrow().clone();
        ensure!(status.messages_sent.open == 1, "{status:?}");
        Ok(status)
    });
    assert_eq!(status.state, State::OpenSent);
    drop(storm);
    wait_for("the end of it", LONG, || {
        let status = peer.status().borrow().clone();
        ensure!(status.state < State::OpenSent, "{status:?}");
        Ok(())
    });
}

//! Many peers for a long time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bellrock_bgp::{Attributes, Peer, PeerAsn, PeerConfig, PeerStatus, State};
use bellrock_e2e::bird::Bird;
use bellrock_e2e::netns::Netns;
use tokio::runtime::Runtime;
use tokio::sync::watch::Receiver;

use crate::{NODE, runtime_in, v4, wait};

const PEERS: u32 = 500;
const ROUTES: u32 = 10_000;
const TIME: Duration = Duration::from_secs(600);

/// The router's address of one session, on its loopback interface.
fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 255, 0, 1)) + n)
}

/// Sessions that ended in ten minutes: 500 neighbours, all of one BIRD, which
/// takes 10,000 routes from each.
pub(crate) fn flaps() -> f64 {
    let ground = Netns::new("both").unwrap();
    ground
        .sh(&format!("ip link set lo up; ip addr add {NODE}/32 dev lo"))
        .unwrap();
    let all = (0..PEERS).map(|n| format!("addr add {}/32 dev lo\n", address(n)));
    let batch = all.collect::<String>();
    ground
        .sh(&format!(
            "printf '{}' | ip -batch -",
            batch.replace('\n', "\\n")
        ))
        .unwrap();
    let _router = Bird::start(&ground, &router()).unwrap();
    let runtime = runtime_in(&ground);
    let routes: BTreeMap<_, _> = (0..ROUTES)
        .map(|n| (v4(n), Attributes::default()))
        .collect();
    let peers: Vec<_> = (0..PEERS)
        .map(|n| spawn(&runtime, n, routes.clone()))
        .collect();
    let mut seen: Vec<Receiver<PeerStatus>> = peers.iter().map(Peer::status).collect();
    wait(|| {
        seen.iter_mut().all(|status| {
            let status = status.borrow_and_update();
            status.state == State::Established && status.prefixes_pending == 0
        })
    });
    println!("{PEERS} peers with {ROUTES} routes each are up; now {TIME:?} of waiting");
    let watched = seen.into_iter().map(|status| runtime.spawn(ends(status)));
    let watched: Vec<_> = watched.collect();
    let count = watched
        .into_iter()
        .map(|task| runtime.block_on(task).unwrap())
        .sum::<u32>();
    f64::from(count)
}

fn router() -> String {
    let mut text = "router id 10.255.0.1;\nprotocol device {}\n".to_owned();
    for n in 0..PEERS {
        writeln!(
            text,
            "protocol bgp p{n} {{ strict bind on; passive; local {} as 64513; \
             neighbor {NODE} as 64512; multihop; ipv4 {{ import all; export none; }}; }}",
            address(n)
        )
        .unwrap();
    }
    text
}

fn spawn(runtime: &Runtime, n: u32, routes: BTreeMap<ipnet::IpNet, Attributes>) -> Peer {
    let own: Ipv4Addr = NODE.parse().unwrap();
    let mut config = PeerConfig::new(address(n).into(), 64512, PeerAsn::Exact(64513), own);
    config.source = Some(own.into());
    config.multihop = true;
    config.connect_retry = Duration::from_secs(1);
    let _guard = runtime.enter();
    Peer::spawn(config, routes).unwrap()
}

/// How often a session ends from now on.
async fn ends(mut status: Receiver<PeerStatus>) -> u32 {
    let end = Instant::now() + TIME;
    let mut ends = 0;
    let mut since = status.borrow_and_update().since;
    while let Ok(Ok(())) = tokio::time::timeout_at(end.into(), status.changed()).await {
        let now = status.borrow_and_update().since;
        ends += u32::from(now != since);
        since = now;
    }
    ends
}

//! Our end: BGP with one route, and BFD beside it, as the speaker has them.

use std::time::Duration;

use anyhow::ensure;
use bellrock_bfd::State;
use bellrock_bgp::{Attributes, PeerAsn};
use bellrock_e2e::netns::{Netns, wait_for};
use bellrock_forward::ServiceKey;
use bellrock_speaker::apply::bfd::Bfd;
use bellrock_speaker::apply::bgp::Bgp;
use bellrock_speaker::cluster::{BfdProfile, Change, Cluster, Dirty, Node as ClusterNode, Peer};
use bellrock_speaker::routes::Routes;
use tokio::runtime::Runtime;

use crate::ground::Ground;

const ME: &str = "n1";
const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    netns: Netns,
    runtime: Runtime,
    routes: Routes,
    cluster: Cluster,
    bgp: Bgp,
    bfd: Bfd,
}

impl Node {
    pub(crate) fn new(ground: &Ground, interval: u32) -> Self {
        Self::begin(ground, interval, false)
    }

    /// One that takes over from another.
    pub(crate) fn resumed(ground: &Ground, interval: u32) -> Self {
        Self::begin(ground, interval, true)
    }

    fn begin(ground: &Ground, interval: u32, resumed: bool) -> Self {
        let interval = Duration::from_millis(interval.into());
        let mut cluster = Cluster::default();
        let node = ClusterNode {
            addresses: [[192, 0, 2, 10].into()].into(),
            ..ClusterNode::default()
        };
        let mut settings = bellrock_bfd::Settings::default();
        settings.timers.transmit = interval;
        settings.timers.receive = interval;
        let profile = BfdProfile {
            settings,
            minimum_ttl: 254,
            echo: false,
        };
        let peer = Peer {
            bfd_profile: Some("fast".to_owned()),
            graceful_restart: true,
            connect_time: Some(Duration::from_secs(1)),
            ..Peer::new([192, 0, 2, 1].into(), 64512, PeerAsn::Exact(64513))
        };
        for change in [
            Change::Node(ME.to_owned(), Some(node)),
            Change::BfdProfile("fast".to_owned(), Some(profile)),
            Change::Peer("tor".to_owned(), Some(peer)),
        ] {
            cluster.apply(change, ME, &mut Dirty::default());
        }
        let netns = Netns::of_others(ground.node.name());
        let runtime = || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let guard = runtime.enter();
            let routes = Routes::open().unwrap();
            drop(guard);
            (runtime, routes)
        };
        let (runtime, routes) = netns.run(runtime).unwrap();
        let mut bgp = Bgp::default();
        if resumed {
            bgp.set_resumed();
        }
        let service = ServiceKey {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        let address = "198.51.100.1/32".parse().unwrap();
        let route = [(address, Attributes::default())].into();
        bgp.set(&service, &[].into(), &[("tor".to_owned(), route)].into());
        runtime.block_on(bgp.set_peers(&cluster, ME));
        Self {
            netns,
            runtime,
            routes,
            cluster,
            bgp,
            bfd: Bfd::default(),
        }
    }

    /// What the speaker's loop does.
    pub(crate) fn follow(&mut self) {
        let Self {
            netns,
            runtime,
            routes,
            cluster,
            bgp,
            bfd,
        } = self;
        let follow = || {
            runtime.block_on(async {
                bfd.follow(cluster, ME, bgp, routes).await;
                let soon = Duration::from_millis(1);
                while let Ok(event) = tokio::time::timeout(soon, bfd.event()).await {
                    let (peer, change) = event.unwrap();
                    bfd.obey(bgp, &peer, change).await;
                }
            });
        };
        netns.run(follow).unwrap();
    }

    pub(crate) fn wait_up(&mut self) {
        wait_for("our BFD", LONG, || {
            self.follow();
            let shown = self.runtime.block_on(self.bfd.show());
            let state = shown.sessions.get("tor").map(|(_, status)| status.state);
            let bgp = self.bgp.status();
            ensure!(state == Some(State::Up), "{state:?}, {bgp:?}");
            Ok(())
        });
    }

    /// As a speaker that ends for another to begin.
    pub(crate) fn stop(mut self) {
        self.runtime.block_on(async {
            self.bgp.stop(false).await;
            self.bfd.stop().await;
        });
    }
}

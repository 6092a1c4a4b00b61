//! A node and a router on one cable.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use bellrock_bgp::{Attributes, Peer, PeerAsn, PeerConfig, PeerStatus, State};
use bellrock_e2e::netns::{Netns, veth, wait_for};
use ipnet::IpNet;
use tokio::runtime::Runtime;

use crate::kind::{Kind, LONG, Router, Session};

pub(crate) const NODE: &str = "192.0.2.10";
pub(crate) const ROUTER: &str = "192.0.2.1";
pub(crate) const NODE_V6: &str = "2001:db8::10";
pub(crate) const ROUTER_V6: &str = "2001:db8::1";

pub(crate) struct Lab {
    pub(crate) runtime: Runtime,
    kind: Kind,
    pub(crate) router: Router,
    pub(crate) ground: Netns,
    pub(crate) node: Netns,
}

pub(crate) fn runtime_in(node: &Netns) -> Runtime {
    let build = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    node.run(build).unwrap()
}

impl Lab {
    pub(crate) fn new(kind: Kind, session: &Session) -> Self {
        let (node, ground) = (Netns::new("node").unwrap(), Netns::new("router").unwrap());
        veth(&node, "eth0", &ground, "eth0").unwrap();
        for (ns, v4, v6) in [(&node, NODE, NODE_V6), (&ground, ROUTER, ROUTER_V6)] {
            ns.sh(&format!(
                "ip addr add {v4}/24 dev eth0; ip addr add {v6}/64 dev eth0 nodad"
            ))
            .unwrap();
        }
        Self {
            runtime: runtime_in(&node),
            kind,
            router: kind.start(&ground, session),
            ground,
            node,
        }
    }

    pub(crate) fn spawn(&self, config: PeerConfig, routes: BTreeMap<IpNet, Attributes>) -> Peer {
        let _guard = self.runtime.enter();
        Peer::spawn(config, routes).unwrap()
    }

    /// The routes of ours that the router uses: those in its kernel, where it
    /// puts any there. A single address is written without its length.
    pub(crate) fn installed(&self) -> Result<BTreeSet<String>> {
        if !self.kind.has_kernel() {
            let table = self.router.table()?;
            let short = |prefix: &String| {
                let single = prefix
                    .strip_suffix("/32")
                    .or_else(|| prefix.strip_suffix("/128"));
                single.unwrap_or(prefix).to_owned()
            };
            return Ok(table.iter().map(short).collect());
        }
        let text = self.ground.sh("ip -o route show; ip -o -6 route show")?;
        Ok(text
            .lines()
            .filter(|line| line.contains("proto bgp") || line.contains("proto bird"))
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect())
    }

    pub(crate) fn wait_installed(&self, what: &str, prefixes: &[&str]) {
        let wanted: BTreeSet<String> = prefixes.iter().map(|p| (*p).to_owned()).collect();
        wait_for(what, LONG, || {
            let have = self.installed()?;
            ensure!(have == wanted, "{have:?}");
            Ok(())
        });
    }
}

/// Our side of a session.
pub(crate) fn config(session: &Session) -> PeerConfig {
    let mut config = PeerConfig::new(
        session.router().parse().unwrap(),
        64512,
        PeerAsn::Exact(64513),
        NODE.parse().unwrap(),
    );
    config.source = Some(session.node().parse().unwrap());
    config.connect_retry = std::time::Duration::from_secs(1);
    config
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn routes(prefixes: &[&str]) -> BTreeMap<IpNet, Attributes> {
    let plain = |prefix: &&str| (net(prefix), Attributes::default());
    prefixes.iter().map(plain).collect()
}

pub(crate) fn wait_status(
    peer: &Peer,
    what: &str,
    condition: impl Fn(&PeerStatus) -> bool,
) -> PeerStatus {
    let status = peer.status();
    wait_for(what, LONG, || {
        let status = status.borrow().clone();
        ensure!(condition(&status), "{status:?}");
        Ok(status)
    })
}

pub(crate) fn wait_established(peer: &Peer) -> PeerStatus {
    wait_status(peer, "the session", |status| {
        status.state == State::Established
    })
}

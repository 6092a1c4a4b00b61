//! A node, a router, and what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use bellrock_bgp::{Attributes, Peer, PeerAsn, PeerConfig, PeerStatus, State};
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::{Netns, veth, wait_for};
use ipnet::IpNet;
use serde_json::Value;
use tokio::runtime::Runtime;

pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const NODE: &str = "192.0.2.10";
pub(crate) const ROUTER: &str = "192.0.2.1";

/// A node with a runtime whose threads live in it, and a router.
pub(crate) struct Lab {
    pub(crate) runtime: Runtime,
    pub(crate) node: Netns,
    pub(crate) router: Netns,
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

pub(crate) fn lab() -> Lab {
    let (node, router) = (Netns::new("node").unwrap(), Netns::new("router").unwrap());
    veth(&node, "eth0", &router, "eth0").unwrap();
    node.sh(&format!(
        "ip addr add {NODE}/24 dev eth0; ip addr add 2001:db8::10/64 dev eth0 nodad"
    ))
    .unwrap();
    router
        .sh(&format!(
            "ip addr add {ROUTER}/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad"
        ))
        .unwrap();
    Lab {
        runtime: runtime_in(&node),
        node,
        router,
    }
}

pub(crate) fn frr_config(neighbors: &[&str], asn: &str) -> String {
    let mut text = format!(
        "debug bgp neighbor-events\nrouter bgp 64513\n bgp router-id {ROUTER}\n \
         no bgp ebgp-requires-policy\n"
    );
    for neighbor in neighbors {
        text += &format!(" neighbor {neighbor} remote-as {asn}\n neighbor {neighbor} passive\n");
    }
    text + " address-family ipv4 unicast\n  maximum-paths 8\n exit-address-family\nexit\n"
}

pub(crate) fn frr(lab: &Lab) -> Frr {
    Frr::start(&lab.router, &frr_config(&[NODE], "64512")).unwrap()
}

pub(crate) fn config() -> PeerConfig {
    let mut config = PeerConfig::new(
        ROUTER.parse().unwrap(),
        64512,
        PeerAsn::Exact(64513),
        NODE.parse().unwrap(),
    );
    config.connect_retry = Duration::from_secs(1);
    config
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn routes(prefixes: &[&str]) -> BTreeMap<IpNet, Attributes> {
    prefixes
        .iter()
        .map(|prefix| (net(prefix), Attributes::default()))
        .collect()
}

impl Lab {
    pub(crate) fn spawn(&self, config: PeerConfig, routes: BTreeMap<IpNet, Attributes>) -> Peer {
        let _guard = self.runtime.enter();
        Peer::spawn(config, routes).unwrap()
    }
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

/// The kernel's BGP routes of a router.
pub(crate) fn kernel(router: &Netns) -> Result<Vec<String>> {
    let text = router.sh("ip -o route show proto bgp; ip -o -6 route show proto bgp")?;
    Ok(text.lines().map(str::to_owned).collect())
}

pub(crate) fn wait_kernel(router: &Netns, prefixes: &[&str]) {
    let wanted: BTreeSet<&str> = prefixes.iter().copied().collect();
    wait_for("the kernel's routes", LONG, || {
        let lines = kernel(router)?;
        let have: BTreeSet<&str> = lines
            .iter()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        ensure!(have == wanted, "{lines:?}");
        Ok(())
    });
}

pub(crate) fn neighbor(frr: &Frr, address: &str) -> Value {
    let all = frr
        .json(&format!("show bgp neighbors {address} json"))
        .unwrap();
    all[address].clone()
}

pub(crate) fn path(frr: &Frr, prefix: &str) -> Value {
    let detail = frr
        .json(&format!("show bgp ipv4 unicast {prefix} json"))
        .unwrap();
    detail["paths"][0].clone()
}

/// A process that ends with the test.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A capture of port 179 on the node.
pub(crate) struct Capture {
    _dumpcap: Process,
    folder: tempfile::TempDir,
}

impl Capture {
    pub(crate) fn start(node: &Netns) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = node
            .command("dumpcap")
            .args(["-q", "-P", "-i", "eth0", "-f", "tcp port 179", "-w"])
            .arg(folder.path().join("bgp.pcap"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let capture = Self {
            _dumpcap: Process(child),
            folder,
        };
        // The file's header is written once the socket is open.
        wait_for("dumpcap", LONG, || {
            ensure!(std::fs::metadata(capture.folder.path().join("bgp.pcap"))?.len() >= 24);
            Ok(())
        });
        capture
    }

    /// Fields of the packets that match a display filter, a line a packet.
    pub(crate) fn read(&self, filter: &str, fields: &[&str]) -> Result<Vec<String>> {
        let mut command = Command::new("tshark");
        command.arg("-r").arg(self.folder.path().join("bgp.pcap"));
        command.args(["-Y", filter, "-T", "fields"]);
        for field in fields {
            command.args(["-e", field]);
        }
        // While dumpcap writes, the last packet may be cut.
        let output = command.output()?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}

//! A node with its sessions, and a router.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use bellrock_bfd::SessionStatus;
use bellrock_bgp::State;
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::{Netns, veth, wait_for};
use bellrock_forward::ServiceKey;
use bellrock_speaker::apply::bfd::Bfd;
use bellrock_speaker::apply::bgp::Bgp;
use bellrock_speaker::cluster::{Change, Cluster, Dirty};
use bellrock_speaker::convert;
use bellrock_speaker::plan::{ServicePlan, Settings, plan_service};
use bellrock_speaker::routes::Routes;
use bellrock_speaker::watch::Parsed;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const ME: &str = "n1";

pub(crate) fn parsed<K: DeserializeOwned>(object: Value, parse: fn(&K) -> Parsed) -> Change {
    match parse(&serde_json::from_value(object).unwrap()) {
        Parsed::Change(change) => change,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn ours(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": kind,
        "metadata": { "name": name, "namespace": "bellrock-system" }, "spec": spec,
    })
}

/// A node with its sessions, a router, and what the API server says.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) router: Netns,
    pub(crate) frr: Frr,
    pub(crate) cluster: Cluster,
    pub(crate) bgp: Bgp,
    pub(crate) bfd: Bfd,
    pub(crate) changes: Vec<(String, bellrock_bfd::Change)>,
    routes: Routes,
    plan: ServicePlan,
    pub(crate) node: Netns,
}

impl World {
    pub(crate) fn new(frr: &str) -> Self {
        let (node, router) = (Netns::new("node").unwrap(), Netns::new("router").unwrap());
        veth(&node, "eth0", &router, "eth0").unwrap();
        for (ns, n) in [(&node, 10), (&router, 1)] {
            ns.sh(&format!(
                "ip addr add 192.0.2.{n}/24 dev eth0; ip addr add 2001:db8::{n}/64 dev eth0 nodad"
            ))
            .unwrap();
        }
        let build = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        };
        let runtime = node.run(build).unwrap();
        let routes = node
            .run(|| {
                let _guard = runtime.enter();
                Routes::open()
            })
            .unwrap()
            .unwrap();
        let mut world = Self {
            runtime,
            routes,
            bfd: Bfd::default(),
            changes: Vec::new(),
            frr: Frr::start(&router, frr).unwrap(),
            router,
            cluster: Cluster::default(),
            bgp: Bgp::default(),
            plan: ServicePlan::default(),
            node,
        };
        let addresses = ["192.0.2.10", "2001:db8::10"]
            .map(|address| json!({ "type": "InternalIP", "address": address }));
        let node = json!({
            "metadata": { "name": ME }, "status": { "addresses": addresses },
        });
        world.apply(parsed(node, convert::node));
        let service = json!({
            "metadata": { "name": "web", "namespace": "default" },
            "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local",
                "ports": [{ "port": 80, "protocol": "TCP" }],
            },
        });
        world.apply(parsed(service, convert::service));
        for (name, kind, endpoints) in [
            ("web-4", "IPv4", vec!["10.244.1.5", "10.244.1.6"]),
            ("web-6", "IPv6", vec!["2001:db8:1::5"]),
        ] {
            let endpoints: Vec<_> = endpoints
                .into_iter()
                .map(|address| json!({ "addresses": [address], "nodeName": ME }))
                .collect();
            let slice = json!({
                "metadata": {
                    "name": name, "namespace": "default",
                    "labels": { "kubernetes.io/service-name": "web" },
                },
                "addressType": kind, "endpoints": endpoints,
                "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            });
            world.apply(parsed(slice, convert::slice));
        }
        for (name, address) in [
            ("198.51.100.1", "198.51.100.1"),
            ("2001-0db8-0005-0000-0000-0000-0000-0001", "2001:db8:5::1"),
        ] {
            let claim = json!({ "namespace": "default", "name": "web", "uid": "1" });
            let spec = json!({ "address": address, "claims": [claim] });
            world.apply(parsed(ours("VirtualIP", name, &spec), convert::virtual_ip));
        }
        world
    }

    pub(crate) fn listen(&mut self) {
        let (runtime, bgp) = (&self.runtime, &mut self.bgp);
        let listen = || {
            let _guard = runtime.enter();
            bgp.listen();
        };
        self.node.run(listen).unwrap();
    }

    pub(crate) fn apply(&mut self, change: Change) {
        self.cluster.apply(change, ME, &mut Dirty::default());
    }

    pub(crate) fn peer(&mut self, name: &str, spec: &Value) {
        let mut all = json!({ "myASN": 64512, "peerASN": 64513, "connectTime": "1s" });
        let fields = all.as_object_mut().unwrap();
        fields.extend(spec.as_object().unwrap().clone());
        self.apply(parsed(ours("BGPPeer", name, &all), convert::bgp_peer));
    }

    pub(crate) fn advertise(&mut self, name: &str, spec: &Value) {
        let object = ours("BGPAdvertisement", name, spec);
        self.apply(parsed(object, convert::bgp_advertisement));
    }

    /// What the speaker does after changes.
    pub(crate) fn turn(&mut self) {
        let key = ServiceKey {
            namespace: "default".into(),
            name: "web".into(),
        };
        let plan = plan_service(&self.cluster, ME, &key, &Settings::default(), false);
        self.bgp.set(&key, &self.plan.routes, &plan.routes);
        self.plan = plan;
        self.runtime.block_on(async {
            self.bgp.set_peers(&self.cluster, ME).await;
            self.bgp.flush().await;
        });
        self.watch();
    }

    /// Has peers watched, and takes what BFD says, as the speaker's loop does.
    pub(crate) fn watch(&mut self) {
        let Self {
            runtime,
            routes,
            cluster,
            bgp,
            bfd,
            changes,
            node,
            ..
        } = self;
        let watch = || {
            runtime.block_on(async {
                bfd.follow(cluster, ME, bgp, routes).await;
                let soon = Duration::from_millis(5);
                while let Ok(event) = tokio::time::timeout(soon, bfd.event()).await {
                    let (peer, change) = event.unwrap();
                    bfd.obey(bgp, &peer, change).await;
                    changes.push((peer, change));
                }
            });
        };
        // BFD's thread is of the namespace of whoever starts it.
        node.run(watch).unwrap();
    }

    /// The BFD session with a peer, at this moment.
    pub(crate) fn watched(&self, name: &str) -> Option<SessionStatus> {
        let shown = self.runtime.block_on(self.bfd.show());
        shown.sessions.get(name).map(|(_, status)| status.clone())
    }

    pub(crate) fn opens(&self) -> BTreeMap<String, u64> {
        let all = self.bgp.status().into_iter();
        all.map(|(name, (_, status))| (name, status.messages_sent.open))
            .collect()
    }

    pub(crate) fn wait_established(&self, name: &str) {
        wait_for("the session", LONG, || {
            let status = self.bgp.status();
            let state = status.get(name).map(|(_, status)| status.state);
            ensure!(state == Some(State::Established), "{status:?}");
            Ok(())
        });
    }

    pub(crate) fn wait_kernel(&self, wanted: &[&str]) {
        wait_for("the routes in the router's kernel", LONG, || {
            let router = &self.router;
            let text = router.sh("ip -o route show proto bgp; ip -o -6 route show proto bgp")?;
            let have: Vec<_> = text
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .collect();
            ensure!(have == wanted, "{text}");
            Ok(())
        });
    }

    pub(crate) fn says(&self, command: &str) -> String {
        self.frr.vtysh(command).unwrap()
    }
}

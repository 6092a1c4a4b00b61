//! The speaker's one loop: changes in, plans made, differences applied.
//!
//! The order within a turn keeps traffic whole: what must not be announced
//! any longer is withdrawn first, then the forwarding changes, and only what
//! the forwarding carries is announced.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bellrock_forward::{Report, ServiceKey};
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::CancellationToken;

use crate::apply::bgp::Bgp;
use crate::apply::forward::Forwarding;
use crate::apply::l2::L2;
use crate::cluster::{Cluster, Dirty};
use crate::plan::{self, Carried, ServicePlan, Settings};
use crate::routes::{self, Routes};
use crate::status::{Recorder, View};
use crate::watch::{Kind, Update};

/// How many updates one turn takes in before it plans.
const UPDATES_PER_TURN: usize = 4096;
/// How often the forwarding table is checked for foreign changes, failed
/// work is tried again and the status is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Everything that the loop owns.
#[derive(Debug)]
pub struct Core {
    me: String,
    settings: Settings,
    cluster: Cluster,
    waiting: BTreeSet<Kind>,
    dirty: Dirty,
    /// The table has been made ours once since the start.
    adopted: bool,
    plans: BTreeMap<ServiceKey, ServicePlan>,
    carried: BTreeMap<ServiceKey, Carried>,
    /// Services whose forwarding, as planned, the kernel has not confirmed.
    unconfirmed: BTreeSet<ServiceKey>,
    refused: BTreeMap<ServiceKey, String>,
    forwarding_error: Option<String>,
    invalid: BTreeMap<(Kind, String), String>,
    forwarding: Forwarding,
    l2: L2,
    bgp: Bgp,
    routes: Routes,
    /// What the routing table says about sessions that are not up.
    hints: BTreeMap<String, &'static str>,
}

impl Core {
    /// A loop that has seen nothing yet.
    pub fn new(
        me: String,
        settings: Settings,
        forwarding: Forwarding,
        l2: L2,
        routes: Routes,
    ) -> Self {
        Self {
            me,
            settings,
            cluster: Cluster::default(),
            waiting: Kind::ALL.into_iter().collect(),
            dirty: Dirty {
                all: true,
                node: true,
                peers: true,
                ..Dirty::default()
            },
            adopted: false,
            plans: BTreeMap::new(),
            carried: BTreeMap::new(),
            unconfirmed: BTreeSet::new(),
            refused: BTreeMap::new(),
            forwarding_error: None,
            invalid: BTreeMap::new(),
            forwarding,
            l2,
            bgp: Bgp::default(),
            routes,
            hints: BTreeMap::new(),
        }
    }

    /// Runs until `stop`; then yields the segment and the peers, and leaves
    /// the forwarding in place.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut ownership: bellrock_arp::EventReceiver,
        recorder: Recorder,
        view: channel::Sender<View>,
        stop: CancellationToken,
    ) {
        let mut batch = Vec::with_capacity(UPDATES_PER_TURN);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = updates.recv_many(&mut batch, UPDATES_PER_TURN) => {
                    if count == 0 {
                        break;
                    }
                    for update in batch.drain(..) {
                        self.take(update);
                    }
                }
                Some(event) = ownership.recv() => {
                    recorder.ownership(&self.cluster, event);
                    continue;
                }
                _ = tick.tick() => {
                    self.check_table().await;
                    self.look_at_routes().await;
                    view.send_replace(self.view());
                }
            }
            if self.waiting.is_empty() {
                let adopted = self.adopted;
                self.turn().await;
                if self.adopted != adopted {
                    view.send_replace(self.view());
                }
            }
        }
        tracing::info!("stopping: handing addresses over and closing BGP sessions");
        self.bgp.stop().await;
        let handle = self.l2.into_handle();
        let shutdown = tokio::task::spawn_blocking(move || handle.shutdown(SHUTDOWN));
        if let Err(error) = shutdown.await {
            tracing::warn!(%error, "the ownership driver did not stop in order");
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Change { kind, name, change } => {
                self.invalid.remove(&(kind, name));
                self.cluster.apply(change, &self.me, &mut self.dirty);
            }
            Update::Invalid {
                kind,
                name,
                message,
            } => {
                tracing::warn!(
                    ?kind,
                    name,
                    message,
                    "object refused; what it said before stays"
                );
                self.invalid.insert((kind, name), message);
            }
            Update::Synced(kind) => {
                self.waiting.remove(&kind);
            }
        }
    }

    async fn turn(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return;
        }
        if dirty.peers {
            self.bgp.set_peers(&self.cluster, &self.me).await;
        }
        let keys: BTreeSet<ServiceKey> = if dirty.all {
            self.cluster
                .services
                .keys()
                .chain(self.plans.keys())
                .cloned()
                .collect()
        } else {
            dirty.services
        };
        let mut changes = BTreeMap::new();
        for key in &keys {
            if let Some(forward) = self.plan(key) {
                changes.insert(key.clone(), forward);
            }
        }
        // What must not be announced any longer goes first.
        self.bgp.flush().await;
        if dirty.node && self.adopted {
            let node = plan::forward_node(&self.cluster, &self.me);
            let result = self.forwarding.set_node(node).await;
            if self.forwarded(result).is_none() {
                self.dirty.node = true;
            }
        }
        let result = if !self.adopted {
            let node = plan::forward_node(&self.cluster, &self.me);
            let all = self
                .plans
                .iter()
                .filter_map(|(key, plan)| Some((key.clone(), plan.forward.clone()?)))
                .collect();
            self.forwarding.sync(node, all).await
        } else if changes.is_empty() {
            return;
        } else {
            self.forwarding.apply(changes.clone()).await
        };
        let Some(report) = self.forwarded(result) else {
            // The table is as it was; try again at the next tick.
            self.dirty.all |= !self.adopted;
            self.dirty.services.extend(changes.into_keys());
            return;
        };
        self.adopted = true;
        for (key, forward) in changes {
            self.unconfirmed.remove(&key);
            match (report.refused.get(&key), forward) {
                (_, None) => {
                    self.carried.remove(&key);
                    self.refused.remove(&key);
                }
                (Some(why), Some(_)) => {
                    tracing::error!(service = %key, why, "the kernel refused this Service's forwarding");
                    self.carried.insert(key.clone(), Carried::Refused);
                    self.refused.insert(key.clone(), why.clone());
                }
                (None, Some(_)) => {
                    self.carried.insert(key.clone(), Carried::Yes);
                    self.refused.remove(&key);
                }
            }
            self.plan(&key);
        }
        self.bgp.flush().await;
    }

    /// Plans one Service and applies what concerns the segment and the peers.
    /// Returns its forwarding if that is not what was handed over before.
    fn plan(&mut self, key: &ServiceKey) -> Option<Option<bellrock_forward::Service>> {
        let carried = self.carried.get(key).cloned().unwrap_or(Carried::NotYet);
        let new = plan::plan_service(&self.cluster, &self.me, key, self.settings, &carried);
        let old = self.plans.remove(key).unwrap_or_default();
        self.l2.set(&self.cluster, key, &old.l2, &new.l2);
        self.bgp.set(key, &old.routes, &new.routes);
        for verdict in &new.verdicts {
            if !old.verdicts.contains(verdict) {
                log_verdict(key, verdict);
            }
        }
        if old.forward != new.forward {
            self.unconfirmed.insert(key.clone());
        }
        let forward = new.forward.clone();
        if self.cluster.services.contains_key(key) {
            self.plans.insert(key.clone(), new);
        }
        self.unconfirmed.contains(key).then_some(forward)
    }

    async fn check_table(&mut self) {
        if !self.adopted {
            return;
        }
        match self.forwarding.check().await {
            Ok(report) if report.batches > 0 => {
                tracing::warn!("the nftables table was changed by somebody else; put back");
            }
            Ok(_) => self.forwarding_error = None,
            Err(error) => self.forwarding_error = Some(format!("{error:#}")),
        }
    }

    async fn look_at_routes(&mut self) {
        self.hints.clear();
        for (name, (address, status)) in self.bgp.status() {
            let multihop = self.cluster.peers.get(&name).is_some_and(|peer| {
                // Peers of our own AS may be any number of hops away.
                peer.multihop || peer.peer_asn.is_internal(peer.local_asn)
            });
            if status.state == bellrock_bgp::State::Established {
                continue;
            }
            match self.routes.to(address).await {
                Ok(route) => {
                    if let Some(hint) = routes::hint(route, multihop) {
                        self.hints.insert(name, hint);
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = name, error = format!("{error:#}"), "no route known")
                }
            }
        }
    }

    fn forwarded(&mut self, result: anyhow::Result<Report>) -> Option<Report> {
        match result {
            Ok(report) => {
                self.forwarding_error = None;
                Some(report)
            }
            Err(error) => {
                let message = format!("{error:#}");
                tracing::error!(error = message, "forwarding not updated; trying again");
                self.forwarding_error = Some(message);
                None
            }
        }
    }

    fn view(&self) -> View {
        View {
            node: self.me.clone(),
            ready: self.waiting.is_empty() && self.adopted,
            waiting: self.waiting.clone(),
            services: self
                .carried
                .values()
                .filter(|c| **c == Carried::Yes)
                .count(),
            forwarding_error: self.forwarding_error.clone(),
            refused: self.refused.clone(),
            invalid: self.invalid.clone(),
            unusable_peers: self.bgp.refused().clone(),
            verdicts: self
                .plans
                .iter()
                .flat_map(|(key, plan)| {
                    plan.verdicts
                        .iter()
                        .map(move |verdict| (key.clone(), verdict.clone()))
                })
                .collect(),
            sessions: self.bgp.status(),
            hints: self.hints.clone(),
            segment: self.l2.handle().snapshot(),
        }
    }
}

/// How long the successor has to take over before the process ends anyway.
const SHUTDOWN: Duration = Duration::from_secs(2);

fn log_verdict(key: &ServiceKey, verdict: &plan::Verdict) {
    let address = verdict
        .address
        .map(|address| address.to_string())
        .unwrap_or_default();
    match verdict.refused {
        None => tracing::info!(service = %key, address, way = ?verdict.way, "may announce"),
        Some(reason) => tracing::info!(
            service = %key, address, way = ?verdict.way, reason = reason.as_str(), "not announced"
        ),
    }
}

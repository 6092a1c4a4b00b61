//! The speaker's one loop: changes in, turns made, differences applied.
//!
//! What to do, and in which order, is [`Turn`]'s; this is the wiring.

mod looks;
mod moves;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use bellrock_api::NodeReason;
use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_forward::{Report, SecondChance, ServiceKey};
use tokio::sync::{mpsc, watch as channel};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::apply::bfd::Bfd;
use crate::apply::bgp::Bgp;
use crate::apply::forward::Forwarding;
use crate::apply::kernels::Kernels;
use crate::apply::l2::L2;
use crate::chances::Chances;
use crate::cluster::PeerPassword;
use crate::health_check::HealthChecks;
use crate::history::History;
use crate::plan::{self, Settings};
use crate::routes::Routes;
use crate::silence::Silence;
use crate::status::{Recorder, View};
use crate::succession::{Heirs, Post};
use crate::surroundings::KubeProxy;
use crate::turn::{Forward, Step, Turn};
use crate::uninstall::Installation;
use crate::watch::{Kind, Update};

/// How many updates one turn takes in before it plans.
const UPDATES_PER_TURN: usize = 4096;
/// How often failed work is tried again, and the rest is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long the successor has to take over before the process ends anyway.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// How long the segment's thread may take to tell what it holds.
const BEQUEATH: Duration = Duration::from_millis(500);

/// The edges of the speaker.
#[derive(Debug)]
pub struct Edges {
    /// The kernel's forwarding.
    pub forwarding: Forwarding,
    /// The segment.
    pub l2: L2,
    /// The kernel's routes.
    pub routes: Routes,
    /// Names of the Secrets that peers need; somebody else reads them.
    pub secrets: channel::Sender<BTreeSet<String>>,
    /// Whether another speaker of this node is still there.
    pub post: channel::Receiver<Post>,
    /// Tells it that this one can go on in its place.
    pub ready: channel::Sender<bool>,
    /// Speakers that wait for this one to end.
    pub heirs: Heirs,
    /// What is said of kube-proxy on this node.
    pub kube_proxy: KubeProxy,
    /// Where BGP peers may connect to.
    pub bgp_listen: Vec<SocketAddr>,
    /// Tells whether the end is that of the installation.
    pub(crate) installation: Option<Arc<Installation>>,
    /// Writes ownership and Events.
    pub recorder: Recorder,
    /// Who wants to know how it stands.
    pub view: channel::Sender<View>,
}

/// Everything that the loop owns.
#[derive(Debug)]
pub struct Core {
    me: String,
    settings: Settings,
    turn: Turn,
    waiting: BTreeSet<Kind>,
    edges: Edges,
    bgp: Bgp,
    bfd: Bfd,
    health_checks: HealthChecks,
    /// What may keep traffic from arriving.
    warnings: Vec<(NodeReason, String)>,
    touched: looks::Touched,
    /// When another speaker of this node was last there.
    another: Option<Instant>,
    /// kube-proxy's health port answered at the last look.
    answers: bool,
    forwarding_error: Option<String>,
    invalid: BTreeMap<(Kind, String), String>,
    /// What the routing table says about sessions that are not up.
    hints: BTreeMap<String, &'static str>,
    history: Arc<History>,
    silence: Silence,
    chances: Chances,
    /// The second chances in force.
    given: BTreeMap<IpAddr, SecondChance>,
    kernels: Kernels,
    /// What the times of these count from.
    started: Instant,
    /// The node was leaving at the last turn.
    leaving: bool,
    /// Something happened since the last picture.
    stale: bool,
}

impl Core {
    /// A loop that has seen nothing yet.
    pub fn new(me: String, settings: Settings, edges: Edges) -> Self {
        Self {
            turn: Turn::new(me.clone(), settings.clone()),
            me,
            settings,
            waiting: Kind::ALL.into_iter().collect(),
            bgp: Bgp::at(&edges.bgp_listen),
            bfd: Bfd::default(),
            health_checks: HealthChecks::default(),
            warnings: Vec::new(),
            touched: looks::Touched::default(),
            another: None,
            answers: false,
            edges,
            forwarding_error: None,
            invalid: BTreeMap::new(),
            hints: BTreeMap::new(),
            history: Arc::default(),
            silence: Silence::default(),
            chances: Chances::default(),
            given: BTreeMap::new(),
            kernels: Kernels::default(),
            started: Instant::now(),
            leaving: false,
            stale: true,
        }
    }

    /// Runs until `stop`; then yields the segment and the peers, and leaves
    /// the forwarding in place. An error means that a part that the speaker
    /// cannot do without has ended.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut ownership: bellrock_arp::EventReceiver,
        stop: CancellationToken,
    ) -> Result<()> {
        let mut batch = Vec::with_capacity(UPDATES_PER_TURN);
        let mut events = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks: u32 = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = updates.recv_many(&mut batch, UPDATES_PER_TURN) => {
                    if count == 0 {
                        bail!("the watches have ended");
                    }
                    for update in batch.drain(..) {
                        self.take(update);
                    }
                }
                count = ownership.recv_many(&mut events, UPDATES_PER_TURN) => {
                    if count == 0 {
                        bail!("the thread that answers on the segment has ended");
                    }
                    for event in events.drain(..) {
                        self.hear(event);
                    }
                    self.look_for_silence();
                    self.give_chances().await?;
                    self.ask_kernels();
                }
                Ok(()) = self.edges.post.changed() => {
                    self.serve().await;
                    continue;
                }
                Some((node, lives)) = self.kernels.answer() => {
                    if !lives {
                        self.chances.died(&node);
                        self.give_chances().await?;
                    }
                    continue;
                }
                event = self.bfd.event() => {
                    let Some((peer, change)) = event else {
                        bail!("the thread that watches peers by BFD has ended");
                    };
                    self.bfd.obey(&self.bgp, &peer, change).await;
                    self.stale = true;
                    continue;
                }
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.tick(ticks).await?;
                }
            }
            if self.waiting.is_empty() && self.turn.is_due() {
                let adopted = self.turn.adopted();
                if !adopted {
                    // What there is besides us must be known before anything
                    // is announced or taken over.
                    self.look_around().await;
                }
                self.make_turn().await?;
                self.give_chances().await?;
                if self.turn.adopted() != adopted {
                    self.edges.ready.send_replace(true);
                    self.show().await;
                }
            }
        }
        tracing::info!("stopping: handing addresses over and closing BGP sessions");
        self.health_checks = HealthChecks::default();
        // The forwarding goes with an installation: routers must not count on it.
        let ends = match &self.edges.installation {
            Some(installation) => installation.is_over().await,
            None => false,
        };
        let leaving = ends || self.leaves();
        // Peers that keep our routes over a restart must have been told of the
        // restart when BFD goes: to some, any end of it is a failure.
        self.bgp.stop(leaving).await;
        self.bfd.stop().await;
        let (l2, heirs) = (self.edges.l2, self.edges.heirs);
        if !ends && heirs.any_ready() {
            bequeath(&l2, &heirs).await;
        }
        let shutdown = tokio::task::spawn_blocking(move || l2.shutdown(SHUTDOWN));
        if let Err(error) = shutdown.await {
            tracing::warn!(%error, "the ownership driver did not stop in order");
        }
        Ok(())
    }

    /// The speaker of this node is this one.
    fn serves(&self) -> bool {
        *self.edges.post.borrow() != Post::Standby
    }

    /// The speaker before has ended.
    async fn serve(&mut self) {
        let post = self.edges.post.borrow_and_update().clone();
        if let Post::Serving(estate) = post {
            self.edges.l2.handle().begin(estate);
            if self.turn.adopted() {
                self.set_peers().await;
            }
            self.stale = true;
        }
    }

    fn take(&mut self, update: Update) {
        self.stale = true;
        match update {
            Update::Change { kind, name, change } => {
                self.invalid.remove(&(kind, name));
                self.turn.take(change);
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
                let known = self.invalid.insert((kind, name.clone()), message.clone());
                if known.as_ref() != Some(&message) {
                    self.edges.recorder.invalid(kind, &name, message);
                }
            }
            Update::Synced(kind) => {
                self.waiting.remove(&kind);
            }
        }
    }

    async fn make_turn(&mut self) -> Result<()> {
        self.stale = true;
        let begun = self.turn.begin();
        self.apply(begun.steps);
        // What must not be announced any longer goes first.
        self.bgp.flush().await;
        if begun.peers {
            self.read_secrets();
            // The first sessions start with all their routes: a peer that kept
            // those of the last speaker drops what End-of-RIB finds missing.
            if self.turn.adopted() {
                self.set_peers().await;
            }
        }
        let leaving = self.leaves();
        if leaving && !self.leaving {
            self.bgp.drain().await;
        }
        self.leaving = leaving;
        if begun.forward.node.is_some() {
            self.health_checks
                .listen_on(&self.turn.node_port_addresses());
        }
        if !begun.forward.is_empty() {
            self.forward(begun.forward).await?;
        }
        self.show_health();
        self.bgp.flush().await;
        Ok(())
    }

    /// The table is ours to keep.
    fn forwards(&self) -> bool {
        self.settings.forwarding == plan::Forwarding::Nftables
    }

    fn show_health(&self) {
        self.health_checks
            .set_healthy(self.turn.adopted() && self.forwarding_error.is_none());
    }

    async fn forward(&mut self, forward: Forward) -> Result<()> {
        let first = !self.turn.adopted();
        let result = self.hand_over(&forward).await?;
        // What this process finds at its start, or may have been that of the
        // speaker before, is nobody's doing now.
        if let (false, Some(report)) = (forward.whole, &result) {
            self.note_touched(report);
        }
        let steps = match &result {
            Some(report) => self.turn.confirm(forward, Ok(&report.refused)),
            None => self.turn.confirm(forward, Err(())),
        };
        self.apply(steps);
        if let (true, Some(report)) = (first, result) {
            // Each Service has elements of its own in the table: with fewer
            // new ones than Services, some were there. What others forward
            // goes on without us.
            if !self.forwards() || report.elements_added < report.programmed {
                self.bgp.set_resumed();
            }
            self.set_peers().await;
        }
        Ok(())
    }

    /// BGP sessions, and BFD sessions beside them.
    async fn set_peers(&mut self) {
        // Peers would close the other speaker's sessions for ours.
        if !self.serves() {
            return;
        }
        let cluster = self.turn.cluster();
        self.bgp.set_peers(cluster, &self.me).await;
        self.watch_peers().await;
    }

    async fn watch_peers(&mut self) {
        if !self.serves() {
            return;
        }
        let (cluster, routes) = (self.turn.cluster(), &self.edges.routes);
        self.bfd.follow(cluster, &self.me, &self.bgp, routes).await;
    }

    /// Nothing, if the kernel did not take it.
    async fn hand_over(&mut self, forward: &Forward) -> Result<Option<Report>> {
        let forwarding = &self.edges.forwarding;
        let result = match (&forward.node, forward.whole) {
            (Some(node), true) => {
                let some = |(key, service): (&ServiceKey, &Option<_>)| {
                    Some((key.clone(), Option::clone(service)?))
                };
                let services = forward.services.iter().filter_map(some).collect();
                forwarding.sync(node.clone(), services).await
            }
            (node, _) => {
                let result = match node {
                    Some(node) => forwarding.set_node(node.clone()).await,
                    None => Ok(Report::default()),
                };
                match result {
                    Ok(report) if forward.services.is_empty() => Ok(report),
                    Ok(before) => {
                        let applied = forwarding.apply(forward.services.clone()).await;
                        applied.map(|report| Report {
                            replaced: report.replaced.or(before.replaced),
                            disturbed: report.disturbed.or(before.disturbed),
                            ..report
                        })
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match result {
            Ok(report) => {
                self.forwarding_error = None;
                Ok(Some(report))
            }
            Err(error) => {
                forwarding.check_alive()?;
                let message = format!("{error:#}");
                tracing::error!(error = message, "forwarding not updated; trying again");
                self.forwarding_error = Some(message);
                Ok(None)
            }
        }
    }

    fn apply(&mut self, steps: Vec<Step>) {
        for Step {
            service,
            before,
            now,
        } in steps
        {
            self.edges
                .l2
                .set(self.turn.cluster(), &service, &before.l2, &now.l2);
            self.bgp.set(&service, &before.routes, &now.routes);
            if before.health != now.health {
                self.health_checks.set(&service, now.health);
            }
            for verdict in &now.verdicts {
                if !before.verdicts.contains(verdict) {
                    log_verdict(&service, verdict);
                }
            }
        }
    }

    /// Names the Secrets that this node's peers need.
    fn read_secrets(&self) {
        let cluster = self.turn.cluster();
        let names: BTreeSet<String> = plan::peers_of(cluster, &self.me)
            .filter_map(|name| match &cluster.peers.get(name)?.password {
                Some(PeerPassword::Secret(name)) => Some(name.clone()),
                Some(PeerPassword::Text(_)) | None => None,
            })
            .collect();
        self.edges.secrets.send_if_modified(|known| {
            let changed = *known != names;
            *known = names;
            changed
        });
    }

    /// Whether this node is on its way out, and forwards until it is gone.
    fn leaves(&self) -> bool {
        matches!(
            plan::unfit(self.turn.cluster(), &self.me, &self.settings),
            Some(Reason::NodeExcluded | Reason::NodeBeingDeleted | Reason::NodeDrained)
        )
    }

    /// Peers that are not as they were asked for, and why.
    fn unusable_peers(&self) -> BTreeMap<String, String> {
        let mut all = self.bgp.refused();
        for (peer, problem) in self.bfd.problems() {
            all.entry(peer.clone())
                .and_modify(|known| *known = format!("{known}; {problem}"))
                .or_insert_with(|| problem.clone());
        }
        all
    }

    async fn show(&mut self) {
        let handle = Arc::clone(self.edges.l2.handle());
        // The driver answers between two frames; no runtime thread waits.
        let segment = tokio::task::spawn_blocking(move || handle.snapshot()).await;
        let view = View {
            node: self.me.clone(),
            ready: self.waiting.is_empty() && self.turn.adopted(),
            standby: !self.serves(),
            waiting: self.waiting.clone(),
            services: self.turn.carried(),
            forwarding_error: self.forwarding_error.clone(),
            warnings: self
                .touched
                .warning()
                .chain(self.warnings.clone())
                .collect(),
            refused: self.turn.refused().clone(),
            invalid: self.invalid.clone(),
            unusable_peers: self.unusable_peers(),
            verdicts: self.turn.verdicts(),
            sessions: self.bgp.status(),
            bfd: self.bfd.show().await,
            hints: self.hints.clone(),
            segment: segment.unwrap_or_default(),
            history: Arc::clone(&self.history),
        };
        self.edges.view.send_replace(view);
    }
}

/// Nothing moves: the speaker that waits goes on with what this one holds.
async fn bequeath(l2: &L2, heirs: &Heirs) {
    let handle = Arc::clone(l2.handle());
    let estate = tokio::task::spawn_blocking(move || handle.bequeath(BEQUEATH)).await;
    let Ok(Some(estate)) = estate else { return };
    if heirs.leave(&estate).await {
        tracing::info!("the next speaker of this node goes on with its addresses");
    } else {
        tracing::warn!("the next speaker of this node does not go on; others take over");
    }
}

fn log_verdict(key: &ServiceKey, verdict: &plan::Verdict) {
    let address = verdict
        .address
        .as_ref()
        .map(IpAddr::to_string)
        .unwrap_or_default();
    match verdict.refused {
        None => tracing::info!(service = %key, address, way = ?verdict.way, "may announce"),
        Some(reason) => tracing::info!(
            service = %key, address, way = ?verdict.way, reason = reason.as_str(), "not announced"
        ),
    }
}

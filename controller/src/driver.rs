//! The loop: reports from the watches in, plans out, answers back. It alone owns the [`Core`]; it
//! never waits for the API server itself.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is what reads the clock"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::core::{Change, Core, Kind, Plan, Settings, Work};
use crate::election::{Fence, Role, Tenure};
use crate::http::Waiting;
use crate::ipam::ServiceKey;
use crate::metrics::Metrics;
use crate::publish::{self, Herald};
use crate::watch::Report;
use crate::webhook::Question;
use crate::write::{Answer, Outcome, Reread, Writer};

/// Reports that may wait for the loop; the watches wait beyond that.
const REPORTS: usize = 4096;

/// Plans that may be under way at once.
const MAX_BUSY: usize = 16;

/// Reports taken in before plans are started again.
const BATCH: usize = 256;

/// How long pool counters may lag behind.
const POOL_STATUS_DELAY: Duration = Duration::from_millis(500);

/// How often an unreachable API server is logged.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// How long writes under way may take after the order to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// First and last delay of a plan that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

pub(crate) struct Driver {
    core: Core,
    client: Client,
    namespace: String,
    writer: Writer,
    herald: Herald,
    metrics: Arc<Metrics>,
    waiting: watch::Sender<Waiting>,
    fence: Fence,
    roles: watch::Receiver<Role>,
    role: Role,
    /// The watches, and what they report.
    watches: JoinSet<()>,
    reports: mpsc::Receiver<Report>,
    /// What the webhook asks.
    questions: mpsc::Receiver<Question>,
    start: Instant,
    /// When that was, since the epoch.
    began: Duration,
    /// Plans under way; their work by task, in case one panics.
    plans: JoinSet<Outcome>,
    busy: BTreeMap<Id, Work>,
    /// Work to be tried again, by when; a number keeps equal times apart.
    retries: BTreeMap<(Instant, u64), Work>,
    failures: BTreeMap<Work, u32>,
    count: u64,
    /// New Services without an address, since when.
    new: BTreeMap<ServiceKey, Instant>,
    /// When to look at the pools' status next.
    pools_due: Option<Instant>,
    pool_writer: JoinSet<bool>,
    interrupted: BTreeMap<Kind, String>,
    logged: Option<Instant>,
    was_ready: bool,
}

impl Driver {
    #[allow(
        clippy::too_many_arguments,
        reason = "each is an end of a channel or a handle that it alone gets"
    )]
    pub(crate) fn new(
        settings: Settings,
        client: Client,
        namespace: String,
        herald: Herald,
        metrics: Arc<Metrics>,
        waiting: watch::Sender<Waiting>,
        tenure: Tenure,
        questions: mpsc::Receiver<Question>,
    ) -> Self {
        Self {
            core: Core::new(settings),
            writer: Writer::new(client.clone(), tenure.fence.clone()),
            fence: tenure.fence,
            roles: tenure.roles,
            role: Role::Undecided,
            watches: JoinSet::new(),
            // Until the watches start, nothing is to be received.
            reports: mpsc::channel(1).1,
            questions,
            client,
            namespace,
            herald,
            metrics,
            waiting,
            start: Instant::now(),
            began: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
            plans: JoinSet::new(),
            busy: BTreeMap::new(),
            retries: BTreeMap::new(),
            failures: BTreeMap::new(),
            count: 0,
            new: BTreeMap::new(),
            pools_due: None,
            pool_writer: JoinSet::new(),
            interrupted: BTreeMap::new(),
            logged: None,
            was_ready: false,
        }
    }

    /// Runs until `stop`, then lets the writes under way finish.
    ///
    /// Reading starts when it is known who leads, and anew when this controller comes to lead.
    ///
    /// Every branch of the `select!` is cancel-safe: receiving from a channel, joining from a
    /// `JoinSet`, sleeping.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        self.tell_ready();
        loop {
            self.start_plans();
            let timer = self.next_timer();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(outcome) = self.plans.join_next_with_id() => self.ended(outcome),
                changed = self.roles.changed() => {
                    if changed.is_err() {
                        tracing::error!("the election has ended abnormally");
                        break;
                    }
                    self.change_role();
                }
                Some(report) = self.reports.recv() => {
                    self.take(report);
                    for _ in 1..BATCH {
                        match self.reports.try_recv() {
                            Ok(report) => self.take(report),
                            Err(_) => break,
                        }
                    }
                    self.tell_ready();
                }
                Some(Question { subject, service_cidrs, answer }) = self.questions.recv() => {
                    // Who asked may have gone.
                    let _ = answer.send(self.core.judge(&subject, &service_cidrs));
                }
                Some(done) = self.pool_writer.join_next() => {
                    if !done.unwrap_or(false) {
                        self.pools_due = Some(Instant::now() + LOG_EVERY);
                    }
                }
                () = sleep_until(timer) => self.on_timer(),
            }
        }
        tracing::info!(under_way = self.plans.len(), "stopping");
        let rest = async { while self.plans.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, rest).await.is_err() {
            tracing::warn!("writes under way are given up; the next start adopts what they did");
        }
    }

    /// The time since the epoch; it goes on evenly, whatever is done to the clock.
    fn now(&self) -> Duration {
        self.began.saturating_add(self.start.elapsed())
    }

    fn leads(&self) -> bool {
        matches!(self.role, Role::Leads(_))
    }

    fn may_write(&self) -> bool {
        self.leads() && self.fence.is_open()
    }

    /// Follows the election. Who comes to lead reads everything again before it decides anything:
    /// what the leader before wrote last may not have been told yet.
    fn change_role(&mut self) {
        let role = *self.roles.borrow_and_update();
        let before = std::mem::replace(&mut self.role, role);
        if role == before {
            return;
        }
        if matches!(before, Role::Leads(_)) {
            tracing::warn!("this controller leads no more; it goes on watching");
            self.stand_down();
        }
        self.metrics.leads(matches!(role, Role::Leads(_)));
        match role {
            Role::Leads(_) => {
                tracing::info!("this controller leads");
                self.core.take_up();
                self.read_anew();
            }
            Role::Follows if before == Role::Undecided => {
                tracing::info!("this controller does not lead; it watches");
                self.read_anew();
            }
            Role::Follows | Role::Undecided => {}
        }
    }

    /// Starts the watches, instead of those that run.
    fn read_anew(&mut self) {
        let (reports, received) = mpsc::channel(REPORTS);
        // What the old ones have reported and nobody took is dropped with them.
        self.watches = JoinSet::new();
        self.interrupted.clear();
        self.reports = received;
        crate::watch::start(&mut self.watches, &self.client, &self.namespace, &reports);
    }

    /// Drops what is under way. A write that was sent may be made or not, as in a crash.
    fn stand_down(&mut self) {
        self.plans = JoinSet::new();
        self.pool_writer = JoinSet::new();
        self.busy.clear();
        self.retries.clear();
        self.failures.clear();
        self.new.clear();
        self.core.stand_down();
    }

    fn start_plans(&mut self) {
        if !self.leads() {
            self.core.look_on(self.now());
        }
        while self.plans.len() < MAX_BUSY && self.may_write() {
            let Some(plan) = self.core.next(self.now()) else {
                break;
            };
            let Plan { work, .. } = &plan;
            let work = work.clone();
            let task = self.plans.spawn(self.writer.clone().run(plan));
            self.busy.insert(task.id(), work);
        }
        self.herald.hold_back(self.plans.len() >= MAX_BUSY);
        self.metrics.count(&mut self.core);
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Change(change) => {
                self.note_new(&change);
                if matches!(
                    change,
                    Change::Pool(..)
                        | Change::VirtualIp(..)
                        | Change::Gone(..)
                        | Change::Complete(..)
                ) {
                    self.pools_changed();
                }
                self.core.apply(change, self.now());
            }
            Report::Unreadable { kind, name, error } => {
                tracing::warn!(
                    kind = kind.as_str(),
                    name,
                    error,
                    "cannot be read; what it said before stays in force"
                );
            }
            Report::Interrupted { kind, error } => {
                self.metrics.watch_error(kind.as_str());
                self.interrupted.insert(kind, error);
                self.log_interrupted();
            }
            Report::Resumed(kind) => {
                self.interrupted.remove(&kind);
                if self.interrupted.is_empty() {
                    tracing::info!("the API server answers again");
                }
            }
        }
    }

    /// Starts the clock of a Service that is seen for the first time without an address, and stops
    /// it when it has one: here or in the answer to our own write, whichever comes first.
    fn note_new(&mut self, change: &Change) {
        match change {
            Change::Service(key, view) if !view.ingress.is_empty() => self.note_address(key),
            Change::Service(key, view) => {
                let is_new = view.is_load_balancer && view.condition().is_none();
                let leads = matches!(self.role, Role::Leads(_));
                if is_new && leads && self.core.is_synced() {
                    self.new.entry(key.clone()).or_insert_with(Instant::now);
                }
            }
            Change::Gone(Kind::Service, namespace, name, _) => {
                self.new.remove(&ServiceKey::new(namespace, name));
            }
            Change::Namespace(..)
            | Change::Node(..)
            | Change::Pool(..)
            | Change::L2Advertisement(..)
            | Change::VirtualIp(..)
            | Change::Gone(..)
            | Change::Listing(..)
            | Change::Complete(..) => {}
        }
    }

    fn note_address(&mut self, key: &ServiceKey) {
        if let Some(since) = self.new.remove(key) {
            self.metrics.latency(since.elapsed());
        }
    }

    fn ended(&mut self, outcome: Result<(Id, Outcome), JoinError>) {
        let outcome = match outcome {
            Ok((id, outcome)) => {
                self.busy.remove(&id);
                outcome
            }
            Err(error) => {
                tracing::error!(%error, "a write ended abnormally");
                if let Some(work) = self.busy.remove(&error.id()) {
                    self.core.done(&work, false);
                    self.retry(work);
                }
                return;
            }
        };
        for (call, answer) in outcome.answers {
            self.metrics.write(call, true);
            self.learn(answer);
        }
        if let Some(read) = outcome.reread {
            self.learn_reread(read);
        }
        self.pools_changed();
        let Some(stop) = outcome.stop else {
            self.failures.remove(&outcome.work);
            self.core.done(&outcome.work, false);
            return;
        };
        self.metrics.write(stop.call, false);
        let call = stop.call;
        // A conflict is the ordinary way to learn that somebody else was first.
        if stop.reread && !self.failures.contains_key(&outcome.work) {
            tracing::debug!(
                verb = call.verb,
                resource = call.resource,
                error = stop.error,
                "refused; read again"
            );
            self.failures.insert(outcome.work.clone(), 0);
            self.core.done(&outcome.work, true);
            return;
        }
        let (service, address) = match &outcome.work {
            Work::Service(key) => (Some(key.to_string()), None),
            Work::Vip(ip) => (None, Some(ip.to_string())),
        };
        tracing::warn!(
            service,
            address,
            verb = call.verb,
            resource = call.resource,
            error = stop.error,
            "cannot write; trying again"
        );
        self.core.done(&outcome.work, false);
        self.retry(outcome.work);
    }

    fn learn(&mut self, answer: Answer) {
        match answer {
            Answer::Vip(ip, view, remembers) => {
                let before = self.core.server_forgets();
                self.core.vip_written(ip, *view, remembers, self.now());
                if self.core.server_forgets() && !before {
                    tracing::warn!(
                        "the definition of VirtualIP in the cluster is older than this controller, \
                         and drops what it records of those who share an address: apply what \
                         `bellrock crds` prints"
                    );
                }
            }
            Answer::Deleted(ip, uid) => {
                tracing::info!(address = %ip, "released");
                self.core.vip_deleted(ip, &uid, self.now());
            }
            Answer::Service { key, view, event } => {
                if view.ingress.is_empty() {
                    // Refused: how long it waits from here on is not our speed.
                    self.new.remove(&key);
                } else {
                    self.note_address(&key);
                }
                if let Some((reason, note)) = event {
                    let addresses: Vec<String> = view
                        .status_addresses()
                        .iter()
                        .map(ToString::to_string)
                        .collect();
                    let address = addresses.join(",");
                    tracing::info!(service = %key, address, reason = reason.as_str(), "{note}");
                    self.herald.service(&key, &view.version.uid, reason, &note);
                }
                self.core.service_written(&key, *view);
            }
        }
    }

    fn learn_reread(&mut self, read: Reread) {
        match read {
            Reread::Vip(ip, view, refused) => {
                self.core
                    .vip_reread(ip, *view, refused.as_ref(), self.now());
            }
            Reread::Service(key, view, refused) => {
                self.core.service_reread(&key, *view, &refused);
            }
            Reread::Gone(ip, uid) => {
                tracing::info!(address = %ip, "released by somebody else");
                self.core.vip_deleted(ip, &uid, self.now());
            }
        }
    }

    /// Puts `work` off, longer with each failure.
    fn retry(&mut self, work: Work) {
        let failures = self.failures.entry(work.clone()).or_default();
        let (first, last) = RETRY;
        let delay = first.saturating_mul(1 << (*failures).min(10)).min(last);
        *failures = failures.saturating_add(1);
        self.count += 1;
        self.retries
            .insert((Instant::now() + delay, self.count), work);
    }

    fn pools_changed(&mut self) {
        if self.pools_due.is_none() {
            self.pools_due = Some(Instant::now() + POOL_STATUS_DELAY);
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let retry = self.retries.keys().next().map(|(at, _)| *at);
        let deadline = self.core.next_deadline();
        let rest = deadline.filter(|_| self.may_write() || !self.leads());
        let rest = rest.map(|at| self.start + at.saturating_sub(self.began));
        [retry, rest, self.pools_due].into_iter().flatten().min()
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.retries.first_entry()
            && entry.key().0 <= now
        {
            let work = entry.remove();
            self.core.requeue(work);
        }
        if self.pools_due.is_some_and(|due| due <= now) {
            self.pools_due = None;
            self.write_pools();
        }
    }

    fn write_pools(&mut self) {
        self.metrics.measure(&self.core);
        if !self.core.is_synced() || !self.may_write() {
            return;
        }
        if !self.pool_writer.is_empty() {
            self.pools_changed();
            return;
        }
        let patches = self.core.pool_patches();
        if !patches.is_empty() {
            let (client, namespace) = (self.client.clone(), self.namespace.clone());
            self.pool_writer.spawn(publish::pools(
                client,
                namespace,
                patches,
                self.fence.clone(),
                self.herald.clone(),
            ));
        }
    }

    fn log_interrupted(&mut self) {
        let now = Instant::now();
        if self.logged.is_some_and(|at| now < at + LOG_EVERY) {
            return;
        }
        self.logged = Some(now);
        let kinds: Vec<&str> = self.interrupted.keys().map(|kind| kind.as_str()).collect();
        let error = self
            .interrupted
            .values()
            .next()
            .map(String::as_str)
            .unwrap_or_default();
        tracing::warn!(
            kinds = kinds.join(","),
            error,
            "cannot watch the API server; trying again, and going on with what is known"
        );
    }

    /// Says what is waited for. Once ready, it stays so: what runs does not depend on the API
    /// server's being there.
    fn tell_ready(&mut self) {
        if self.was_ready {
            return;
        }
        if self.core.is_synced() {
            self.was_ready = true;
            let census = self.core.census();
            tracing::info!(
                services = census.services,
                virtual_ips = census.virtual_ips,
                "everything is read"
            );
            self.waiting.send_replace(None);
            return;
        }
        // Kinds that fail alike are named together.
        let mut kinds: BTreeMap<Option<&String>, Vec<&str>> = BTreeMap::new();
        for kind in self.core.unsynced() {
            let error = self.interrupted.get(&kind);
            kinds.entry(error).or_default().push(kind.as_str());
        }
        let parts: Vec<String> = kinds
            .into_iter()
            .map(|(error, kinds)| match error {
                Some(error) => format!("{} ({error})", kinds.join(", ")),
                None => kinds.join(", "),
            })
            .collect();
        self.waiting
            .send_replace(Some(format!("waiting to read: {}", parts.join(", "))));
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

//! The edge of [`crate::lease`]: its calls made, its outcome told to the loop and to every writer.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is what reads the clock"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bellrock_api::annotations::CONTROLLER_NAME;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::lease::{Answer, Ask, Election, Record, Times};
use crate::watch::in_full;

/// Name of the Lease, in Bellrock's namespace.
pub(crate) const LEASE: &str = "bellrock-controller";

/// How long a call may take. A leader waits no longer than its Lease lasts.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long giving the Lease up may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a failing election is logged.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Whether this controller leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Not known yet.
    Undecided,
    /// Another one leads, or nobody can be asked.
    Follows,
    /// This one, in the term of this number.
    Leads(u64),
}

/// What every writer asks before each write: whether the Lease is still held, by this process's
/// own monotonic clock, whatever has been heard or not.
#[derive(Debug, Clone)]
pub(crate) struct Fence {
    start: Instant,
    /// Milliseconds after `start`.
    until: Arc<AtomicU64>,
}

impl Fence {
    /// A fence that is closed.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            until: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Whether this controller may write now.
    pub(crate) fn is_open(&self) -> bool {
        self.now() < Duration::from_millis(self.until.load(Ordering::Acquire))
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn open_until(&self, until: Duration) {
        let millis = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.until.store(millis, Ordering::Release);
    }
}

/// What the loop needs of the election.
#[derive(Debug)]
pub(crate) struct Tenure {
    pub(crate) fence: Fence,
    pub(crate) roles: watch::Receiver<Role>,
}

/// Stands for election until it is told to stop, then gives the Lease up.
pub(crate) struct Candidate {
    api: Api<Lease>,
    identity: String,
    times: Times,
    election: Election,
    fence: Fence,
    roles: watch::Sender<Role>,
    logged: Option<Duration>,
}

impl Candidate {
    pub(crate) fn new(client: Client, namespace: &str, identity: String) -> (Self, Tenure) {
        let times = Times::default();
        let fence = Fence::new();
        let (sender, roles) = watch::channel(Role::Undecided);
        let tenure = Tenure {
            fence: fence.clone(),
            roles,
        };
        let candidate = Self {
            api: Api::namespaced(client, namespace),
            election: Election::new(identity.clone(), times),
            identity,
            times,
            fence,
            roles: sender,
            logged: None,
        };
        (candidate, tenure)
    }

    /// Every branch of the `select!` is cancel-safe; a call is never cut short by `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let now = self.fence.now();
            let ask = self.election.due(now);
            self.tell();
            if let Some(ask) = ask {
                let lasts = self.election.leads(now);
                let patience = lasts.map_or(CALL_TIMEOUT, |(_, until)| {
                    CALL_TIMEOUT.min(until.saturating_sub(now))
                });
                let answer = self.call(&ask, patience).await;
                self.election.answer(answer, self.fence.now());
                self.tell();
                continue;
            }
            let next = self.fence.start + self.election.next_deadline();
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
        if let Some(ask) = self.election.release(self.fence.now()) {
            self.fence.open_until(Duration::ZERO);
            let answer = self.call(&ask, RELEASE_TIMEOUT).await;
            if matches!(answer, Answer::Is(_)) {
                tracing::info!("the lease is given up");
            }
        }
    }

    /// Opens or closes the fence, and tells the loop what is new.
    fn tell(&mut self) {
        let leads = self.election.leads(self.fence.now());
        self.fence
            .open_until(leads.map_or(Duration::ZERO, |(_, until)| until));
        let role = match leads {
            Some((term, _)) => Role::Leads(term),
            None if self.election.is_decided() => Role::Follows,
            None => Role::Undecided,
        };
        self.roles.send_if_modified(|present| {
            let news = *present != role;
            *present = role;
            news
        });
    }

    async fn call(&mut self, ask: &Ask, patience: Duration) -> Answer {
        match tokio::time::timeout(patience, self.make(ask)).await {
            Ok(Ok(lease)) => Answer::Is(record(lease)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => match ask {
                // The namespace is missing, then.
                Ask::Create => self.failed(&status.to_string()),
                Ask::Read | Ask::Take { .. } | Ask::Renew { .. } | Ask::Release { .. } => {
                    Answer::Missing
                }
            },
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Answer::Refused,
            Ok(Err(error)) => self.failed(&in_full(&error)),
            Err(_) => self.failed("the API server does not answer"),
        }
    }

    fn failed(&mut self, error: &str) -> Answer {
        let now = self.fence.now();
        if self.logged.is_none_or(|at| at + LOG_EVERY <= now) {
            self.logged = Some(now);
            tracing::warn!(error, "cannot read or write the lease; trying again");
        }
        Answer::Failed
    }

    async fn make(&self, ask: &Ask) -> kube::Result<Lease> {
        let now = MicroTime(Timestamp::now());
        match ask {
            Ask::Read => self.api.get(LEASE).await,
            Ask::Create => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(LEASE.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(self.identity.clone()),
                        lease_duration_seconds: Some(self.seconds()),
                        acquire_time: Some(now.clone()),
                        renew_time: Some(now),
                        lease_transitions: Some(0),
                        ..LeaseSpec::default()
                    }),
                };
                let params = PostParams {
                    field_manager: Some(CONTROLLER_NAME.to_owned()),
                    ..PostParams::default()
                };
                self.api.create(&params, &lease).await
            }
            Ask::Take {
                version,
                transitions,
            } => {
                let spec = json!({
                    "holderIdentity": self.identity,
                    "leaseDurationSeconds": self.seconds(),
                    "acquireTime": now,
                    "renewTime": now,
                    "leaseTransitions": transitions,
                });
                self.patch(version, &spec).await
            }
            Ask::Renew { version } => self.patch(version, &json!({ "renewTime": now })).await,
            Ask::Release { version } => {
                self.patch(version, &json!({ "holderIdentity": null }))
                    .await
            }
        }
    }

    async fn patch(&self, version: &str, spec: &Value) -> kube::Result<Lease> {
        let body = json!({ "metadata": { "resourceVersion": version }, "spec": spec });
        let params = PatchParams {
            field_manager: Some(CONTROLLER_NAME.to_owned()),
            ..PatchParams::default()
        };
        self.api.patch(LEASE, &params, &Patch::Merge(&body)).await
    }

    fn seconds(&self) -> i32 {
        i32::try_from(self.times.duration.as_secs()).unwrap_or(i32::MAX)
    }
}

fn record(lease: Lease) -> Record {
    let spec = lease.spec.unwrap_or_default();
    let seconds = spec.lease_duration_seconds;
    Record {
        version: lease.metadata.resource_version.unwrap_or_default(),
        holder: spec.holder_identity,
        duration: seconds.and_then(|s| u64::try_from(s).ok().map(Duration::from_secs)),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

//! What is said beside the decisions: Events, and the status of pools. Neither is in the way of an
//! address: Events wait in a bounded queue while many addresses are given, pool status is written
//! by a task of its own.

use std::sync::Arc;
use std::time::Duration;

use bellrock_api::annotations::{CONDITION_ACCEPTED, CONTROLLER_NAME};
use bellrock_api::{AllocationReason, GROUP, IPAddressPool, VERSION};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::core::PoolPatch;
use crate::election::Fence;
use crate::ipam::ServiceKey;
use crate::metrics::Metrics;
use crate::watch::in_full;

/// Events that may wait: as many as the start of a large cluster tells.
const QUEUE: usize = 16_384;

/// How long an Event waits at most for addresses that are given: the API server's time is theirs
/// first.
const PATIENCE: Duration = Duration::from_secs(5);

/// Events that are remembered, to count one that repeats instead of writing it again. Each is kept
/// whole; ours are written at changes only, and seldom repeat.
const REMEMBERED: usize = 32;

/// Longest note that the API server takes.
const NOTE_MAX: usize = 1024;

/// What an Event is about.
enum About {
    Service(ServiceKey),
    /// Namespace and name.
    Pool(String, String),
}

/// An Event that waits: no more of it than it takes.
struct Said {
    about: About,
    uid: String,
    good: bool,
    reason: &'static str,
    note: String,
    /// When it has waited long enough.
    latest: Instant,
}

impl Said {
    fn event(self) -> (Event, ObjectReference) {
        let (api_version, kind, namespace, name) = match self.about {
            About::Service(key) => {
                let (namespace, name) = (key.namespace.clone(), key.name.clone());
                ("v1".to_owned(), "Service", namespace, name)
            }
            About::Pool(namespace, name) => (
                format!("{GROUP}/{VERSION}"),
                "IPAddressPool",
                namespace,
                name,
            ),
        };
        let event = Event {
            type_: if self.good {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: self.reason.to_owned(),
            note: Some(self.note),
            action: "Allocate".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind.to_owned()),
            namespace: Some(namespace),
            name: Some(name),
            uid: Some(self.uid),
            ..ObjectReference::default()
        };
        (event, about)
    }
}

/// Publishes Events.
#[derive(Clone)]
pub(crate) struct Herald {
    queue: mpsc::Sender<Said>,
    /// Whether as many addresses are given as may be at once.
    crowded: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

impl Herald {
    /// A herald, and the task that publishes; it ends when the herald is dropped.
    pub(crate) fn new(
        client: &Client,
        fence: Fence,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (queue, mut said) = mpsc::channel::<Said>(QUEUE);
        let (crowded, mut crowd) = watch::channel(false);
        let counts = Arc::clone(&metrics);
        let client = client.clone();
        let new = move || Recorder::new(client.clone(), CONTROLLER_NAME.into());
        let task = async move {
            let (mut recorder, mut count) = (new(), 0usize);
            while let Some(said) = said.recv().await {
                until_due(&mut crowd, said.latest).await;
                if !fence.is_open() {
                    counts.event_dropped();
                    continue;
                }
                count += 1;
                if count.is_multiple_of(REMEMBERED) {
                    recorder = new();
                }
                let (event, about) = said.event();
                if let Err(error) = recorder.publish(&event, &about).await {
                    counts.event_dropped();
                    tracing::debug!(error = in_full(&error), "cannot publish an event");
                }
            }
        };
        let herald = Self {
            queue,
            crowded,
            metrics,
        };
        (herald, task)
    }

    /// Says whether Events should wait, for a while, because addresses are given as fast as the
    /// API server takes them.
    pub(crate) fn hold_back(&self, hold: bool) {
        self.crowded
            .send_if_modified(|crowded| std::mem::replace(crowded, hold) != hold);
    }

    /// Tells what became of a Service's request.
    pub(crate) fn service(
        &self,
        key: &ServiceKey,
        uid: &str,
        reason: AllocationReason,
        note: &str,
    ) {
        self.say(Said {
            about: About::Service(key.clone()),
            uid: uid.to_owned(),
            good: reason == AllocationReason::Allocated,
            reason: reason.as_str(),
            note: shortened(note),
            latest: Instant::now() + PATIENCE,
        });
    }

    fn pool(&self, namespace: &str, patch: &PoolPatch) {
        self.say(Said {
            about: About::Pool(namespace.to_owned(), patch.name.clone()),
            uid: patch.version.uid.clone(),
            good: patch.accepted,
            reason: patch.reason.as_str(),
            note: shortened(&patch.message),
            latest: Instant::now() + PATIENCE,
        });
    }

    fn say(&self, said: Said) {
        if self.queue.try_send(said).is_err() {
            self.metrics.event_dropped();
        }
    }
}

/// Waits until no more addresses are given than may be at once, but not beyond `latest`.
async fn until_due(crowd: &mut watch::Receiver<bool>, latest: Instant) {
    // Whatever ends this wait, the Event is due: a herald that is gone included.
    let quiet = crowd.wait_for(|crowded| !crowded);
    let _ = tokio::time::timeout_at(latest, quiet).await;
}

fn shortened(note: &str) -> String {
    if note.len() <= NOTE_MAX {
        return note.to_owned();
    }
    let end = (0..=NOTE_MAX - 3)
        .rev()
        .find(|at| note.is_char_boundary(*at))
        .unwrap_or(0);
    format!("{}...", note.get(..end).unwrap_or_default())
}

/// Writes the status of pools; true when all went well.
pub(crate) async fn pools(
    client: Client,
    namespace: String,
    patches: Vec<PoolPatch>,
    fence: Fence,
    herald: Herald,
) -> bool {
    let api = Api::<IPAddressPool>::namespaced(client, &namespace);
    let params = PatchParams {
        field_manager: Some(CONTROLLER_NAME.to_owned()),
        ..PatchParams::default()
    };
    let mut all_well = true;
    for patch in patches {
        if !fence.is_open() {
            return false;
        }
        let mut status = patch.status.clone();
        status.conditions.push(Condition {
            type_: CONDITION_ACCEPTED.to_owned(),
            status: if patch.accepted { "True" } else { "False" }.to_owned(),
            reason: patch.reason.as_str().to_owned(),
            message: patch.message.clone(),
            last_transition_time: patch
                .since
                .clone()
                .unwrap_or_else(|| Time(Timestamp::now())),
            observed_generation: patch.generation,
        });
        let version =
            json!({ "uid": patch.version.uid, "resourceVersion": patch.version.resource });
        let body = json!({ "metadata": version, "status": status });
        match api
            .patch_status(&patch.name, &params, &Patch::Merge(&body))
            .await
        {
            Ok(_) => {
                if patch.news {
                    let (pool, reason) = (&patch.name, patch.reason.as_str());
                    if patch.accepted {
                        tracing::info!(pool, reason, "{}", patch.message);
                    } else {
                        tracing::warn!(pool, reason, "{}", patch.message);
                    }
                    herald.pool(&namespace, &patch);
                }
            }
            Err(error) => {
                tracing::debug!(
                    pool = patch.name,
                    error = in_full(&error),
                    "cannot write the pool's status"
                );
                all_well = false;
            }
        }
    }
    all_well
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_event_waits_for_addresses_but_not_for_ever() {
        let far = || Instant::now() + Duration::from_secs(60);
        let (crowded, mut crowd) = watch::channel(false);
        let begun = Instant::now();
        until_due(&mut crowd, far()).await;
        crowded.send_replace(true);
        let latest = Instant::now() + Duration::from_millis(50);
        until_due(&mut crowd, latest).await;
        assert!(Instant::now() >= latest, "it waits while they are given");
        let (_, ()) = tokio::join!(until_due(&mut crowd, far()), async {
            tokio::task::yield_now().await;
            crowded.send_replace(false);
        });
        crowded.send_replace(true);
        drop(crowded);
        until_due(&mut crowd, far()).await;
        assert!(begun.elapsed() < Duration::from_secs(30), "and no longer");
    }

    #[test]
    fn a_note_is_cut_to_what_the_api_server_takes() {
        assert_eq!(shortened("short"), "short");
        let cut = shortened(&"ü".repeat(2000));
        assert!(
            cut.len() <= NOTE_MAX && cut.ends_with("..."),
            "{}",
            cut.len()
        );
    }
}

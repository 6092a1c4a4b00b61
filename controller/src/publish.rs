//! What is said beside the decisions: Events, and the status of pools. Neither is in the way of an
//! address: Events wait in a bounded queue, pool status is written by a task of its own.

use std::sync::Arc;

use bellrock_api::annotations::{CONDITION_ACCEPTED, CONTROLLER_NAME};
use bellrock_api::{AllocationReason, GROUP, IPAddressPool, VERSION};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use crate::core::PoolPatch;
use crate::election::Fence;
use crate::ipam::ServiceKey;
use crate::metrics::Metrics;
use crate::watch::in_full;

/// Events that may wait.
const QUEUE: usize = 1024;

/// Events that are remembered, to count one that repeats instead of writing it again. Each is kept
/// whole; ours are written at changes only, and seldom repeat.
const REMEMBERED: usize = 256;

/// Longest note that the API server takes.
const NOTE_MAX: usize = 1024;

type Said = (Event, ObjectReference);

/// Publishes Events.
#[derive(Clone)]
pub(crate) struct Herald {
    queue: mpsc::Sender<Said>,
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
        let client = client.clone();
        let new = move || Recorder::new(client.clone(), CONTROLLER_NAME.into());
        let task = async move {
            let (mut recorder, mut count) = (new(), 0usize);
            while let Some((event, about)) = said.recv().await {
                if !fence.is_open() {
                    continue;
                }
                count += 1;
                if count.is_multiple_of(REMEMBERED) {
                    recorder = new();
                }
                if let Err(error) = recorder.publish(&event, &about).await {
                    tracing::debug!(error = in_full(&error), "cannot publish an event");
                }
            }
        };
        (Self { queue, metrics }, task)
    }

    /// Tells what became of a Service's request.
    pub(crate) fn service(
        &self,
        key: &ServiceKey,
        uid: &str,
        reason: AllocationReason,
        note: &str,
    ) {
        self.say(
            reason == AllocationReason::Allocated,
            reason.as_str(),
            note,
            ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                namespace: Some(key.namespace.clone()),
                name: Some(key.name.clone()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            },
        );
    }

    fn pool(&self, namespace: &str, patch: &PoolPatch) {
        self.say(
            patch.accepted,
            patch.reason.as_str(),
            &patch.message,
            ObjectReference {
                api_version: Some(format!("{GROUP}/{VERSION}")),
                kind: Some("IPAddressPool".to_owned()),
                namespace: Some(namespace.to_owned()),
                name: Some(patch.name.clone()),
                uid: Some(patch.version.uid.clone()),
                ..ObjectReference::default()
            },
        );
    }

    fn say(&self, good: bool, reason: &str, note: &str, about: ObjectReference) {
        let event = Event {
            type_: if good {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: reason.to_owned(),
            note: Some(shortened(note)),
            action: "Allocate".to_owned(),
            secondary: None,
        };
        if self.queue.try_send((event, about)).is_err() {
            self.metrics.event_dropped();
        }
    }
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

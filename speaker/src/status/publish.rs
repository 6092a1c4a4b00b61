//! Writes the node's SpeakerStatus: when it changed, at most every ten
//! seconds, and never watched by other speakers.

use std::time::Duration;

use bellrock_api::SpeakerStatus;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch as channel;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{FIELD_MANAGER, View};

/// Least time between two writes.
const INTERVAL: Duration = Duration::from_secs(10);

/// Publishes until `stop`.
#[allow(
    clippy::disallowed_methods,
    reason = "the edge that paces API writes reads the clock"
)]
pub async fn publish(
    client: Client,
    node: String,
    mut viewed: channel::Receiver<View>,
    stop: CancellationToken,
) {
    let api: Api<SpeakerStatus> = Api::all(client);
    let mut written = None;
    let mut earliest = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = viewed.changed() => if changed.is_err() { return },
        }
        // Before everything is listed there is nothing worth telling, and a
        // look in between would be stale at once.
        if viewed.borrow().ready {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(earliest) => {}
            }
        }
        let status = viewed.borrow_and_update().to_api();
        if !viewed.borrow().ready || written.as_ref() == Some(&status) {
            continue;
        }
        match write(&api, &node, &json!({ "status": status })).await {
            Ok(()) => written = Some(status),
            Err(error) => tracing::warn!(%error, "cannot write the SpeakerStatus; trying again"),
        }
        earliest = Instant::now() + INTERVAL;
    }
}

async fn write(
    api: &Api<SpeakerStatus>,
    node: &str,
    status: &serde_json::Value,
) -> Result<(), kube::Error> {
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut object = json!({
        "apiVersion": "bellrock.dev/v1beta1",
        "kind": "SpeakerStatus",
        "metadata": { "name": node },
    });
    match api
        .patch_status(node, &params, &Patch::Apply(merge(&object, status)))
        .await
    {
        Err(kube::Error::Api(error)) if error.code == 404 => {
            api.patch(node, &params, &Patch::Apply(&object)).await?;
            object = merge(&object, status);
            api.patch_status(node, &params, &Patch::Apply(&object))
                .await
                .map(drop)
        }
        result => result.map(drop),
    }
}

fn merge(object: &serde_json::Value, status: &serde_json::Value) -> serde_json::Value {
    let mut merged = object.clone();
    if let (Some(into), Some(from)) = (merged.as_object_mut(), status.as_object()) {
        into.extend(from.clone());
    }
    merged
}

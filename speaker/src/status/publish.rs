//! Writes the node's SpeakerStatus: when it changed, at most every ten
//! seconds, and every minute in any case. Other speakers do not watch it.

use std::time::Duration;

use bellrock_api::SpeakerStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch as channel;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{FIELD_MANAGER, View};

/// Least time between two writes.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most time between two writes: so that a speaker that died is told from one
/// that has nothing new to say.
const RENEWAL: Duration = Duration::from_secs(60);

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
    let (mut earliest, mut latest) = (Instant::now(), Instant::now() + RENEWAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = viewed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(latest) => {}
        }
        // Before everything is listed there is nothing worth telling.
        let idle = |view: &View| view.standby || !view.ready;
        if idle(&viewed.borrow_and_update()) {
            latest = Instant::now() + RENEWAL;
            continue;
        }
        // A look before the time of the next write would be stale at once.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(earliest) => {}
        }
        let mut status = viewed.borrow_and_update().to_api();
        if written.as_ref() == Some(&status) && Instant::now() < latest {
            continue;
        }
        let seen = status.clone();
        status.renewed = Some(Time(Timestamp::now()));
        match write(&api, &node, &json!({ "status": status })).await {
            Ok(()) => {
                written = Some(seen);
                latest = Instant::now() + RENEWAL;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot write the SpeakerStatus; trying again");
                latest = Instant::now() + INTERVAL;
            }
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

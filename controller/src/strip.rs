//! Takes the cleanup finalizer off every Service, before an uninstallation: a Service that nobody
//! can release any more must not be held.
//!
//! No controller may add it again meanwhile, so the Lease is taken first, in nobody's name and for
//! an hour: whoever leads finds that out at the next renewal, and nobody takes over. When it has
//! run out, or is deleted, controllers that are still there go on.

use std::time::Duration;

use anyhow::{Context, Result};
use bellrock_api::annotations::FINALIZER_CLEANUP;
use futures_util::{TryStreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::election::LEASE;
use crate::lease::Times;

/// Who holds the Lease then.
const HOLDER: &str = "uninstallation";

/// How long.
const HELD: Duration = Duration::from_secs(3600);

/// Attempts at a write that somebody else came before.
const ATTEMPTS: usize = 10;

/// Patches under way at a time.
const CONCURRENT: usize = 8;

/// Services in one page of a list.
const PAGE: u32 = 500;

/// Takes the Lease, waits until nobody writes any more, and strips all Services.
///
/// # Errors
/// When the API server does not let it, or something else writes the same objects all the time.
pub(crate) async fn run(client: Client, namespace: &str) -> Result<()> {
    take_lease(&Api::namespaced(client.clone(), namespace)).await?;
    // As long as whoever led may believe that it still does.
    tokio::time::sleep(Times::default().hold).await;
    let all: Api<Service> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut count = 0;
    loop {
        let page = all.list_metadata(&params).await.context("list Services")?;
        let next = page.metadata.continue_.clone();
        let held = page.items.iter().filter(|service| is_held(service));
        let found: Vec<(String, String)> = held
            .map(|service| (service.namespace().unwrap_or_default(), service.name_any()))
            .collect();
        count += found.len();
        stream::iter(found.into_iter().map(Ok))
            .try_for_each_concurrent(CONCURRENT, |(namespace, name)| {
                let api = Api::<Service>::namespaced(client.clone(), &namespace);
                async move {
                    let stripped = strip(&api, &name).await;
                    stripped.with_context(|| format!("Service {namespace}/{name}"))
                }
            })
            .await?;
        match next.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => break,
        }
    }
    tracing::info!(services = count, "no Service is held any more");
    Ok(())
}

async fn take_lease(api: &Api<Lease>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let present = api.get_opt(LEASE).await.context("the Lease")?;
        // No controller has ever led.
        let Some(present) = present else {
            return Ok(());
        };
        let transitions = present.spec.as_ref().and_then(|s| s.lease_transitions);
        let now = MicroTime(Timestamp::now());
        let body = json!({
            "metadata": { "resourceVersion": present.resource_version() },
            "spec": {
                "holderIdentity": HOLDER, "leaseDurationSeconds": HELD.as_secs(),
                "acquireTime": now, "renewTime": now,
                "leaseTransitions": transitions.unwrap_or(0) + 1,
            },
        });
        match api
            .patch(LEASE, &PatchParams::default(), &Patch::Merge(&body))
            .await
        {
            Ok(_) => return Ok(()),
            // The leader has renewed it.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).context("take the Lease"),
        }
    }
    anyhow::bail!("the Lease is written by others all the time")
}

async fn strip(api: &Api<Service>, name: &str) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let Some(service) = gone_is_none(api.get_metadata(name).await)? else {
            return Ok(());
        };
        if !is_held(&service) {
            return Ok(());
        }
        let mut finalizers = service.finalizers().to_vec();
        finalizers.retain(|name| name != FINALIZER_CLEANUP);
        let body = json!({ "metadata": {
            "uid": service.uid(), "resourceVersion": service.resource_version(),
            "finalizers": finalizers,
        } });
        let params = PatchParams::default();
        match api
            .patch_metadata(name, &params, &Patch::Merge(&body))
            .await
        {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("it is written by others all the time")
}

fn gone_is_none<T>(read: kube::Result<T>) -> kube::Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_held(service: &PartialObjectMeta<Service>) -> bool {
    service.finalizers().iter().any(|f| f == FINALIZER_CLEANUP)
}

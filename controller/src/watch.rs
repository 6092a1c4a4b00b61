//! Watches: each kind's objects become [`Change`]s, relists included.
//!
//! Our own kinds are read as plain JSON and parsed one by one, so that one object that does not
//! parse cannot hide the others of its kind.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use bellrock_api::annotations::{RELEASED_AT, RELEASED_BY};
use bellrock_api::{
    IPAddressPool, L2Advertisement, VirtualIP, VirtualIPSpec, parse_virtual_ip_name,
    virtual_ip_name,
};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::core::{Change, Kind};
use crate::ipam::ServiceKey;
use crate::pools::PoolView;
use crate::view::{AdvertisementView, NodeView, Release, ServiceView, Version, VipView};
use crate::{MANAGED_BY_LABEL, MANAGED_BY_VALUE};

/// After so long without an error, the next one is the first again.
const PATIENCE_RESET: Duration = Duration::from_secs(10);

/// Objects in one page of a list: as long as it is parsed, a page is there twice, and whole objects
/// are many times what is kept of them.
const PAGE: u32 = 100;

/// What a watch reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// The cluster says something.
    Change(Change),
    /// An object cannot be read; what it said before stays in force.
    Unreadable {
        /// Of which kind.
        kind: Kind,
        /// Which.
        name: String,
        /// What is wrong.
        error: String,
    },
    /// The watch is interrupted, and will be tried again.
    Interrupted {
        /// Of which kind.
        kind: Kind,
        /// Why.
        error: String,
    },
    /// The watch works again.
    Resumed(Kind),
}

/// Starts a watch of each kind; they end with `tasks`.
pub(crate) fn start(
    tasks: &mut JoinSet<()>,
    client: &Client,
    namespace: &str,
    reports: &mpsc::Sender<Report>,
) {
    let send = || reports.clone();
    let all = || client.clone();
    tasks.spawn(follow(
        Api::<Service>::all(all()),
        Kind::Service,
        service,
        send(),
    ));
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(all());
    tasks.spawn(follow(namespaces, Kind::Namespace, labels, send()));
    tasks.spawn(follow(Api::<Node>::all(all()), Kind::Node, node, send()));
    let vips = Api::<DynamicObject>::all_with(all(), &ApiResource::erase::<VirtualIP>(&()));
    tasks.spawn(follow(vips, Kind::VirtualIp, vip, send()));
    let own =
        |resource: ApiResource| Api::<DynamicObject>::namespaced_with(all(), namespace, &resource);
    let pools = own(ApiResource::erase::<IPAddressPool>(&()));
    tasks.spawn(follow(pools, Kind::Pool, pool, send()));
    let l2 = own(ApiResource::erase::<L2Advertisement>(&()));
    tasks.spawn(follow(l2, Kind::L2Advertisement, advertisement, send()));
}

/// Follows one kind for ever.
async fn follow<K>(
    api: Api<K>,
    kind: Kind,
    parse: fn(&K) -> Result<Option<Change>, String>,
    reports: mpsc::Sender<Report>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = watcher(api, watcher::Config::default().page_size(PAGE))
        .backoff(ResetTimerBackoff::new(Patience::default(), PATIENCE_RESET))
        .modify(|object| object.meta_mut().managed_fields = None);
    let mut stream = std::pin::pin!(stream);
    let mut listed: BTreeSet<(String, String)> = BTreeSet::new();
    let mut interrupted = false;
    while let Some(event) = stream.next().await {
        let mut out = Vec::new();
        // `Init` says only that listing is about to be tried.
        let alive = !matches!(event, Err(_) | Ok(watcher::Event::Init));
        if alive && std::mem::take(&mut interrupted) {
            out.push(Report::Resumed(kind));
        }
        interrupted |= event.is_err();
        match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                out.push(Report::Change(Change::Listing(kind)));
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(identity(kind, &object));
                out.extend(read(kind, &object, parse));
            }
            Ok(watcher::Event::InitDone) => {
                out.push(Report::Change(Change::Complete(
                    kind,
                    std::mem::take(&mut listed),
                )));
            }
            Ok(watcher::Event::Apply(object)) => out.extend(read(kind, &object, parse)),
            Ok(watcher::Event::Delete(object)) => {
                let (namespace, name) = identity(kind, &object);
                let uid = object.uid().unwrap_or_default();
                out.push(Report::Change(Change::Gone(kind, namespace, name, uid)));
            }
            Err(error) => out.push(Report::Interrupted {
                kind,
                error: in_full(&error),
            }),
        }
        for report in out {
            if reports.send(report).await.is_err() {
                return;
            }
        }
    }
}

/// Namespace (of Services only, as in [`Change::Complete`]) and name.
fn identity<K: ResourceExt>(kind: Kind, object: &K) -> (String, String) {
    match kind {
        Kind::Service => (object.namespace().unwrap_or_default(), object.name_any()),
        Kind::Namespace | Kind::Node | Kind::Pool | Kind::L2Advertisement | Kind::VirtualIp => {
            (String::new(), object.name_any())
        }
    }
}

fn read<K: ResourceExt>(
    kind: Kind,
    object: &K,
    parse: fn(&K) -> Result<Option<Change>, String>,
) -> Option<Report> {
    match parse(object) {
        Ok(change) => change.map(Report::Change),
        Err(error) => Some(Report::Unreadable {
            kind,
            name: object.name_any(),
            error,
        }),
    }
}

/// An error with its causes: kube's own text names the layer only.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn service(object: &Service) -> Result<Option<Change>, String> {
    Ok(ServiceView::of(object).map(|(key, view)| Change::Service(key, Box::new(view))))
}

fn labels(object: &PartialObjectMeta<Namespace>) -> Result<Option<Change>, String> {
    Ok(Some(Change::Namespace(
        object.name_any(),
        object.labels().clone(),
    )))
}

fn node(object: &Node) -> Result<Option<Change>, String> {
    Ok(Some(Change::Node(object.name_any(), NodeView::of(object))))
}

fn spec<T: DeserializeOwned>(object: &DynamicObject) -> Result<T, String> {
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    serde_json::from_value(spec).map_err(|error| format!("spec: {error}"))
}

fn pool(object: &DynamicObject) -> Result<Option<Change>, String> {
    let status = object.data.get("status").cloned();
    let view = PoolView {
        version: Version::of(&object.metadata),
        generation: object.metadata.generation,
        created: object
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |t| t.0.as_second()),
        labels: object.labels().clone(),
        spec: spec(object),
        status: status
            .and_then(|s| serde_json::from_value(s).ok())
            .unwrap_or_default(),
    };
    Ok(Some(Change::Pool(object.name_any(), Box::new(view))))
}

fn advertisement(object: &DynamicObject) -> Result<Option<Change>, String> {
    let view = AdvertisementView {
        spec: spec(object)?,
    };
    Ok(Some(Change::L2Advertisement(
        object.name_any(),
        Box::new(view),
    )))
}

fn vip(object: &DynamicObject) -> Result<Option<Change>, String> {
    let view = vip_view(&object.metadata, spec(object)?);
    let ip = parse_virtual_ip_name(&object.name_any()).map_err(|error| error.to_string())?;
    match view.spec.ip() {
        Ok(stated) if stated == ip => Ok(Some(Change::VirtualIp(ip, Box::new(view)))),
        Ok(stated) => Err(format!(
            "spec.address {stated} should be in {}",
            virtual_ip_name(stated)
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// The view of a VirtualIP.
pub(crate) fn vip_view(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    mut spec: VirtualIPSpec,
) -> VipView {
    spec.claims.shrink_to_fit();
    let label = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY_LABEL));
    VipView {
        version: Version::of(meta),
        managed: label.is_some_and(|value| value == MANAGED_BY_VALUE),
        spec,
        released: release(meta),
    }
}

/// When and by whom a VirtualIP was released, as its annotations say.
fn release(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Release> {
    let annotation = |name: &str| meta.annotations.as_ref()?.get(name);
    let at: Timestamp = annotation(RELEASED_AT)?.parse().ok()?;
    let by = annotation(RELEASED_BY).and_then(|text| text.split_once('/'));
    Some(Release {
        at: Duration::from_millis(u64::try_from(at.as_millisecond()).ok()?),
        by: by.map(|(namespace, name)| ServiceKey::new(namespace, name)),
    })
}

/// Delays between attempts: from a tenth of a second to three seconds, so that the controller is
/// back soon after an API server that was restarted.
#[derive(Debug, Default)]
struct Patience {
    attempts: u32,
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = Duration::from_millis(100).saturating_mul(1 << self.attempts.min(5));
        self.attempts = self.attempts.saturating_add(1);
        Some(delay.min(Duration::from_secs(3)))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(json: serde_json::Value) -> DynamicObject {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_pool_that_does_not_parse_is_told_with_what_is_wrong() {
        let change = pool(&object(json!({
            "metadata": { "name": "bad" }, "spec": { "addresses": ["192.0.2.0/24"], "reuseDelay": "soon" },
        })));
        let Ok(Some(Change::Pool(name, view))) = change else {
            panic!("{change:?}");
        };
        assert_eq!(name, "bad");
        assert!(view.spec.unwrap_err().contains("soon"));
    }

    #[test]
    fn a_virtual_ip_is_ours_by_its_label_and_named_after_its_address() {
        let named = |name: &str, address: &str, labels: serde_json::Value| {
            vip(&object(json!({
                "metadata": { "name": name, "labels": labels }, "spec": { "address": address },
            })))
        };
        for (labels, managed) in [
            (json!({}), false),
            (json!({ MANAGED_BY_LABEL: "Helm" }), false),
            (json!({ MANAGED_BY_LABEL: MANAGED_BY_VALUE }), true),
        ] {
            let Ok(Some(Change::VirtualIp(_, view))) = named("192.0.2.1", "192.0.2.1", labels)
            else {
                panic!();
            };
            assert_eq!(view.managed, managed);
        }
        assert!(named("192.0.2.1", "192.0.2.2", json!({})).is_err());
        assert!(named("web", "192.0.2.2", json!({})).is_err());
    }

    #[test]
    fn a_release_is_read_as_it_is_written_and_nonsense_is_none() {
        let read = |annotations: serde_json::Value| {
            let spec = json!({ "address": "192.0.2.1" });
            let object = object(json!({
                "metadata": { "name": "192.0.2.1", "annotations": annotations }, "spec": spec,
            }));
            let Ok(Some(Change::VirtualIp(_, view))) = vip(&object) else {
                panic!();
            };
            view.released
        };
        let release = Release {
            at: Duration::from_millis(1_767_225_600_123),
            by: Some(ServiceKey::new("default", "web")),
        };
        assert_eq!(
            read(crate::write::annotations(Some(&release))),
            Some(release)
        );
        assert_eq!(read(json!({})), None);
        assert_eq!(read(json!({ RELEASED_AT: "soon" })), None);
        assert_eq!(read(json!({ RELEASED_AT: "1969-01-01T00:00:00Z" })), None);
    }

    #[test]
    fn attempts_are_spaced_out_but_never_far() {
        let mut patience = Patience::default();
        let delays: Vec<u128> = patience.by_ref().take(8).map(|d| d.as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        patience.reset();
        assert_eq!(patience.next(), Some(Duration::from_millis(100)));
    }
}

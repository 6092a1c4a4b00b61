//! Records ownership: VirtualIP.status of the addresses that this node owns,
//! and an Event on each Service concerned.
//!
//! The record is never in the path of a takeover. It is written afterwards,
//! one at a time, and only the newest state of each address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellrock_api::VirtualIP;
use bellrock_arp::Event;
use bellrock_forward::ServiceKey;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{self, EventType, Reporter};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::FIELD_MANAGER;
use crate::cluster::Cluster;

/// Time between a failed write and the next try.
const RETRY: Duration = Duration::from_secs(2);

/// Takes ownership events in without waiting.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<BTreeMap<IpAddr, Pending>>,
    changed: Notify,
}

#[derive(Debug, Clone)]
struct Pending {
    services: Vec<ServiceKey>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Owned {
        epoch: u64,
        since: Timestamp,
        cause: String,
    },
    Foreign {
        mac: String,
    },
}

impl Recorder {
    /// Starts the task that writes.
    pub fn start(
        tasks: &mut JoinSet<()>,
        client: Client,
        node: &str,
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        tasks.spawn(write_all(shared.clone(), client, node.to_owned(), stop));
        Self { shared }
    }

    /// Notes what happened to an address on the segment.
    pub fn ownership(&self, cluster: &Cluster, event: Event) {
        match event {
            Event::Owned {
                address,
                epoch,
                cause,
                interface,
            } => {
                tracing::info!(%address, epoch, %cause, interface, "owns the address");
                let since = Timestamp::now();
                self.note(
                    cluster,
                    address,
                    What::Owned {
                        epoch,
                        since,
                        cause: cause.to_string(),
                    },
                );
            }
            Event::Lost {
                address,
                cause,
                to,
                interface,
            } => {
                tracing::info!(%address, %cause, to, interface, "owns the address no longer");
                self.shared.pending().remove(&address);
            }
            Event::Blocked {
                address,
                mac,
                interface,
            }
            | Event::ForeignClaim {
                address,
                mac,
                interface,
            } => {
                tracing::warn!(%address, %mac, interface, "a foreign host holds the address");
                self.note(
                    cluster,
                    address,
                    What::Foreign {
                        mac: mac.to_string(),
                    },
                );
            }
            Event::Unblocked { address, .. } => {
                tracing::info!(%address, "the foreign host is gone");
            }
        }
    }

    fn note(&self, cluster: &Cluster, address: IpAddr, what: What) {
        let services = cluster
            .virtual_ips
            .get(&address)
            .map(|vip| vip.claims.iter().cloned().collect())
            .unwrap_or_default();
        self.shared
            .pending()
            .insert(address, Pending { services, what });
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<(IpAddr, Pending)> {
        self.pending().pop_first()
    }
}

async fn write_all(shared: Arc<Shared>, client: Client, node: String, stop: CancellationToken) {
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: Some(node.clone()),
    };
    let events = events::Recorder::new(client.clone(), reporter);
    let api: Api<VirtualIP> = Api::all(client);
    loop {
        let Some((address, pending)) = shared.next() else {
            tokio::select! {
                () = stop.cancelled() => return,
                () = shared.changed.notified() => continue,
            }
        };
        match write(&api, &node, address, &pending.what).await {
            Ok(()) => tell(&events, &node, address, &pending).await,
            // The address has been released meanwhile.
            Err(kube::Error::Api(error)) if error.code == 404 => {}
            Err(error) => {
                tracing::warn!(%address, %error, "cannot record the owner; trying again");
                shared.pending().entry(address).or_insert(pending);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}

async fn write(
    api: &Api<VirtualIP>,
    node: &str,
    address: IpAddr,
    what: &What,
) -> Result<(), kube::Error> {
    let What::Owned {
        epoch,
        since,
        cause,
    } = what
    else {
        return Ok(());
    };
    let name = bellrock_api::virtual_ip_name(address);
    let patch = json!({
        "apiVersion": "bellrock.dev/v1beta1",
        "kind": "VirtualIP",
        "metadata": { "name": name },
        "status": { "owner": node, "epoch": epoch, "since": since.to_string(), "cause": cause },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(&name, &params, &Patch::Apply(patch))
        .await
        .map(drop)
}

async fn tell(events: &events::Recorder, node: &str, address: IpAddr, pending: &Pending) {
    let (type_, reason, note) = match &pending.what {
        What::Owned { cause, .. } => (
            EventType::Normal,
            "AddressOwned",
            format!("node {node} answers for {address} on the segment: {cause}"),
        ),
        What::Foreign { mac } => (
            EventType::Warning,
            bellrock_api::AnnouncementReason::HeldByForeignHost.as_str(),
            format!("node {node}: {mac} answers for {address} and is no speaker of ours"),
        ),
    };
    let event = events::Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Announce".to_owned(),
        secondary: None,
    };
    for service in &pending.services {
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = events.publish(&event, &reference).await {
            tracing::debug!(%error, "event not published");
        }
    }
}

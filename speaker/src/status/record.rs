//! Records ownership: VirtualIP.status of the addresses that this node owns,
//! and Events on the objects concerned.
//!
//! The record is never in the path of a takeover. It is written afterwards,
//! one at a time, only the newest state of each address, and in turns, so that
//! one that fails does not hold up the others.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellrock_api::{AnnouncementReason as Reason, VirtualIP};
use bellrock_arp::Event;
use bellrock_forward::ServiceKey;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{self, EventType, Reporter};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::FIELD_MANAGER;
use crate::cluster::Cluster;
use crate::watch::Kind;

/// Time between a failed write and the next try.
const RETRY: Duration = Duration::from_secs(2);
/// Warnings that wait to be published; more are dropped.
const MOST_TOLD: usize = 256;

/// Takes ownership events in without waiting.
#[derive(Debug, Clone)]
pub struct Recorder {
    node: Arc<str>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// Addresses in the order of their turns.
    turns: VecDeque<IpAddr>,
    pending: BTreeMap<IpAddr, Pending>,
    told: VecDeque<Told>,
    /// Whether the last turn was a warning's.
    tells: bool,
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
        from: Option<String>,
    },
    /// Nobody is known to hold it now.
    Given { cause: String },
}

/// A warning on an object.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    object: ObjectReference,
    reason: &'static str,
    note: String,
}

enum Work {
    Address(IpAddr, Pending),
    Tell(Told),
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
        Self {
            node: node.into(),
            shared,
        }
    }

    /// Notes what happened to an address on the segment.
    pub fn ownership(&self, cluster: &Cluster, event: Event) {
        match event {
            Event::Owned {
                address,
                epoch,
                cause,
                from,
                interface,
            } => {
                tracing::info!(%address, epoch, %cause, from, interface, "owns the address");
                let since = Timestamp::now();
                self.note(
                    cluster,
                    address,
                    What::Owned {
                        epoch,
                        since,
                        cause: cause.to_string(),
                        from,
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
                // Who holds it now writes that itself.
                match to {
                    Some(_) => self.shared.lock().forget(address),
                    None => self.note(
                        cluster,
                        address,
                        What::Given {
                            cause: cause.to_string(),
                        },
                    ),
                }
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
                self.warn(cluster, address, Reason::HeldByForeignHost, |node| {
                    format!("node {node}: {mac} answers for {address} and is no speaker of ours")
                });
            }
            Event::HelloFiltered {
                address,
                node,
                interface,
            } => {
                tracing::warn!(
                    %address, node, interface,
                    reason = Reason::HelloFiltered.as_str(),
                    "another node answers, but its HELLO does not come: frames to groups are filtered on the way"
                );
                self.warn(cluster, address, Reason::HelloFiltered, |me| {
                    format!(
                        "node {me}: {node} answers for {address}, but its HELLO does not come on \
                         {interface}: frames to groups are filtered on the way"
                    )
                });
            }
            Event::PeerHeard { node, interface } => {
                tracing::info!(node, interface, "a node is heard on the segment");
            }
            Event::PeerSilent { node, interface } => {
                tracing::warn!(node, interface, "a node fell silent on the segment");
            }
            Event::Unblocked { address, .. } => {
                tracing::info!(%address, "the foreign host is gone");
            }
        }
    }

    /// Tells on an object of ours that it cannot be used, and why. `name` is
    /// the object's namespace and name.
    pub fn invalid(&self, kind: Kind, name: &str, note: String) {
        let Some(kind) = kind.of_ours() else { return };
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let object = ObjectReference {
            api_version: Some("bellrock.dev/v1beta1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.tell(Told {
            object,
            reason: "ConfigurationRefused",
            note,
        });
    }

    /// Tells the Services of an address why it is not claimed, or in danger.
    fn warn(
        &self,
        cluster: &Cluster,
        address: IpAddr,
        reason: Reason,
        note: impl FnOnce(&str) -> String,
    ) {
        let note = note(&self.node);
        for service in services(cluster, address) {
            self.tell(Told {
                object: reference(&service),
                reason: reason.as_str(),
                note: note.clone(),
            });
        }
    }

    fn tell(&self, told: Told) {
        let mut queue = self.shared.lock();
        if queue.told.len() < MOST_TOLD {
            queue.told.push_back(told);
        }
        drop(queue);
        self.shared.changed.notify_one();
    }

    fn note(&self, cluster: &Cluster, address: IpAddr, what: What) {
        let services = services(cluster, address);
        self.shared.lock().push(address, Pending { services, what });
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Work> {
        self.lock().next()
    }

    /// Puts back what failed, unless something newer came.
    fn put_back(&self, address: IpAddr, pending: Pending) {
        let mut queue = self.lock();
        if !queue.pending.contains_key(&address) {
            queue.push(address, pending);
        }
    }
}

impl Queue {
    fn push(&mut self, address: IpAddr, pending: Pending) {
        if self.pending.insert(address, pending).is_none() {
            self.turns.push_back(address);
        }
    }

    fn forget(&mut self, address: IpAddr) {
        self.pending.remove(&address);
        self.turns.retain(|waiting| *waiting != address);
    }

    fn next(&mut self) -> Option<Work> {
        // In turns: an address that cannot be written holds up no warning.
        self.tells = !self.tells;
        if self.tells
            && let Some(told) = self.told.pop_front()
        {
            return Some(Work::Tell(told));
        }
        while let Some(address) = self.turns.pop_front() {
            if let Some(pending) = self.pending.remove(&address) {
                return Some(Work::Address(address, pending));
            }
        }
        self.told.pop_front().map(Work::Tell)
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
        let (address, pending) = match shared.next() {
            Some(Work::Address(address, pending)) => (address, pending),
            Some(Work::Tell(Told {
                object,
                reason,
                note,
            })) => {
                publish(&events, &object, EventType::Warning, reason, note).await;
                continue;
            }
            None => tokio::select! {
                () = stop.cancelled() => return,
                () = shared.changed.notified() => continue,
            },
        };
        match write(&api, &node, address, &pending.what).await {
            Ok(()) => tell(&events, &node, address, &pending).await,
            // The address has been released meanwhile.
            Err(kube::Error::Api(error)) if error.code == 404 => {}
            Err(error) => {
                tracing::warn!(%address, %error, "cannot record the owner; trying again");
                shared.put_back(address, pending);
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
    let name = bellrock_api::virtual_ip_name(address);
    match what {
        What::Owned {
            epoch,
            since,
            cause,
            ..
        } => {
            let epoch = i64::try_from(*epoch).unwrap_or(i64::MAX);
            let since = since.to_string();
            let patch = json!({
                "apiVersion": "bellrock.dev/v1beta1",
                "kind": "VirtualIP",
                "metadata": { "name": name },
                "status": { "owner": node, "epoch": epoch, "since": since, "cause": cause },
            });
            let params = PatchParams::apply(FIELD_MANAGER).force();
            api.patch_status(&name, &params, &Patch::Apply(patch))
                .await
                .map(drop)
        }
        What::Given { cause } => {
            let object = api.get(&name).await?;
            let owner = object
                .status
                .as_ref()
                .and_then(|status| status.owner.as_deref());
            if owner != Some(node) {
                return Ok(());
            }
            // Only if nobody wrote in between.
            let patch = json!({
                "metadata": { "resourceVersion": object.resource_version() },
                "status": { "owner": null, "since": null, "cause": cause },
            });
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            api.patch_status(&name, &params, &Patch::Merge(patch))
                .await
                .map(drop)
        }
    }
}

async fn tell(events: &events::Recorder, node: &str, address: IpAddr, pending: &Pending) {
    let (reason, note) = words(node, address, &pending.what);
    for service in &pending.services {
        let object = reference(service);
        publish(events, &object, EventType::Normal, reason, note.clone()).await;
    }
}

/// A change of ownership, as its Event tells it.
fn words(node: &str, address: IpAddr, what: &What) -> (&'static str, String) {
    match what {
        What::Owned { cause, from, .. } => {
            let after = from.as_ref().map(|from| format!(" after {from}"));
            let after = after.unwrap_or_default();
            (
                "AddressOwned",
                format!("node {node} answers for {address} on the segment{after}: {cause}"),
            )
        }
        What::Given { cause } => (
            "AddressReleased",
            format!("node {node} answers for {address} no longer: {cause}"),
        ),
    }
}

fn services(cluster: &Cluster, address: IpAddr) -> Vec<ServiceKey> {
    let vip = cluster.virtual_ips.get(&address);
    vip.map(|vip| vip.claims.iter().cloned().collect())
        .unwrap_or_default()
}

fn reference(service: &ServiceKey) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(service.namespace.clone()),
        name: Some(service.name.clone()),
        ..ObjectReference::default()
    }
}

async fn publish(
    events: &events::Recorder,
    object: &ObjectReference,
    type_: EventType,
    reason: &str,
    note: String,
) {
    let event = events::Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Announce".to_owned(),
        secondary: None,
    };
    if let Err(error) = events.publish(&event, object).await {
        tracing::debug!(%error, "event not published");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::VirtualIp;

    fn pending(epoch: u64) -> Pending {
        let what = What::Owned {
            epoch,
            since: Timestamp::UNIX_EPOCH,
            cause: String::new(),
            from: None,
        };
        Pending {
            services: Vec::new(),
            what,
        }
    }

    fn next(shared: &Shared) -> Option<(String, u64)> {
        match shared.next()? {
            Work::Address(
                address,
                Pending {
                    what: What::Owned { epoch, .. },
                    ..
                },
            ) => Some((address.to_string(), epoch)),
            _ => None,
        }
    }

    #[test]
    fn a_write_that_fails_waits_its_turn_and_newer_news_replace_it() {
        let shared = Shared::default();
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        shared.lock().push(a, pending(1));
        shared.lock().push(b, pending(1));
        assert_eq!(next(&shared), Some(("192.0.2.1".into(), 1)));
        shared.put_back(a, pending(1));
        assert_eq!(
            next(&shared),
            Some(("192.0.2.2".into(), 1)),
            "the other has its turn"
        );
        shared.lock().push(a, pending(2));
        assert_eq!(
            next(&shared),
            Some(("192.0.2.1".into(), 2)),
            "once, and the newest"
        );
        assert_eq!(next(&shared), None);
        shared.lock().push(a, pending(3));
        shared.put_back(a, pending(2));
        assert_eq!(next(&shared), Some(("192.0.2.1".into(), 3)));
        shared.lock().push(b, pending(4));
        shared.lock().forget(b);
        assert_eq!(next(&shared), None);
    }

    fn recorder() -> Recorder {
        Recorder {
            node: "n1".into(),
            shared: Arc::default(),
        }
    }

    /// An address that two Services share.
    fn cluster(address: IpAddr) -> Cluster {
        let mut cluster = Cluster::default();
        let claims = ["api", "web"].map(|name| ServiceKey::new("default", name));
        let vip = VirtualIp {
            pool: None,
            claims: claims.into(),
            desired: None,
            successors: Vec::new(),
            created: 0,
            recorded: None,
        };
        cluster.virtual_ips.insert(address, vip);
        cluster
    }

    #[test]
    fn a_warning_reaches_every_service_and_takes_no_record_away() {
        let (recorder, address) = (recorder(), "192.0.2.1".parse().unwrap());
        let cluster = cluster(address);
        let interface = "eth0".to_owned();
        recorder.ownership(
            &cluster,
            Event::Owned {
                address,
                epoch: 7,
                cause: bellrock_arp::Cause::OwnerSilent,
                from: Some("n2".to_owned()),
                interface: interface.clone(),
            },
        );
        recorder.ownership(
            &cluster,
            Event::HelloFiltered {
                address,
                node: "n3".to_owned(),
                interface: interface.clone(),
            },
        );
        recorder.ownership(
            &cluster,
            Event::ForeignClaim {
                address,
                mac: bellrock_arp::MacAddr(2, 0, 0, 0, 0, 9),
                interface,
            },
        );
        let (mut told, mut written) = (Vec::new(), Vec::new());
        while let Some(work) = recorder.shared.next() {
            match work {
                Work::Tell(Told {
                    object,
                    reason,
                    note,
                }) => {
                    let name = object.name.unwrap();
                    told.push(format!("{name} {reason}: {note}"));
                }
                Work::Address(address, Pending { services, what }) => {
                    let (reason, note) = words("n1", address, &what);
                    written.push(format!("{} {reason}: {note}", services.len()));
                }
            }
        }
        let filtered = "HelloFiltered: node n1: n3 answers for 192.0.2.1, but its HELLO does not \
                        come on eth0: frames to groups are filtered on the way";
        let foreign = "HeldByForeignHost: node n1: 02:00:00:00:00:09 answers for 192.0.2.1 and is \
                       no speaker of ours";
        assert_eq!(
            told,
            [
                format!("api {filtered}"),
                format!("web {filtered}"),
                format!("api {foreign}"),
                format!("web {foreign}"),
            ]
        );
        assert_eq!(
            written,
            ["2 AddressOwned: node n1 answers for 192.0.2.1 on the segment after n2: OwnerSilent"]
        );
    }

    #[test]
    fn an_address_that_cannot_be_written_holds_up_no_warning() {
        let recorder = recorder();
        let address = "192.0.2.1".parse().unwrap();
        recorder.shared.lock().push(address, pending(1));
        recorder.invalid(Kind::Pool, "bellrock-system/main", "why".to_owned());
        for _ in 0..2 {
            match recorder.shared.next().unwrap() {
                Work::Tell(told) => {
                    assert_eq!(told.reason, "ConfigurationRefused");
                    return;
                }
                Work::Address(address, pending) => recorder.shared.put_back(address, pending),
            }
        }
        unreachable!("the warning has no turn");
    }

    #[test]
    fn of_warnings_that_wait_some_are_dropped_and_no_record() {
        let (recorder, address) = (recorder(), "192.0.2.1".parse().unwrap());
        let cluster = cluster(address);
        for _ in 0..MOST_TOLD {
            recorder.warn(&cluster, address, Reason::HelloFiltered, str::to_owned);
        }
        recorder.shared.lock().push(address, pending(1));
        let queue = recorder.shared.lock();
        assert_eq!(queue.told.len(), MOST_TOLD);
        assert_eq!(queue.pending.len(), 1);
    }
}

//! What happened to Services and addresses, in the order in which the API server made it so.
//!
//! Every write that was made has a resourceVersion in its answer, and those of one etcd are one
//! sequence, whatever the kind. A deletion has none. It comes after all that was answered before
//! it was asked for, and after every version of what it deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bellrock_api::annotations::{ADDRESS_POOL, LOAD_BALANCER_IPS, RELEASED_AT, RELEASED_BY};
use bellrock_api::annotations::{CONDITION_LOAD_BALANCER, SHARING_KEY};
use bellrock_api::{Claim, parse_virtual_ip_name};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::audit::Entry;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// What a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// It is a LoadBalancer of a class that is served.
    pub(crate) ours: bool,
    /// It wants IPv4, and IPv6.
    pub(crate) families: [bool; 2],
    pub(crate) ports: BTreeSet<(String, u64)>,
    pub(crate) key: Option<String>,
    /// The selector, where `externalTrafficPolicy` is `Local`.
    pub(crate) local: Option<BTreeMap<String, String>>,
    pub(crate) pools: BTreeSet<String>,
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// A Service as it is after a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) uid: String,
    pub(crate) wish: Wish,
    /// The addresses in its status.
    pub(crate) shows: BTreeSet<IpAddr>,
    /// The reason in its condition.
    pub(crate) reason: Option<String>,
}

/// A VirtualIP as it is after a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) claims: BTreeMap<Key, Claim>,
    /// When it was released, and by which Service.
    pub(crate) released: Option<(Timestamp, Key)>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Service(Key, Told),
    /// A write of which the API server does not say whether it was made, and the addresses that
    /// it would leave in the status.
    ServicePerhaps(Key, BTreeSet<IpAddr>),
    ServiceGone(Key, String),
    Vip(IpAddr, Record),
    /// A write of which the API server does not say whether it was made.
    VipPerhaps(IpAddr, Record),
    VipGone(IpAddr),
    Leads(String),
}

/// Something that happened, and when it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) received: Timestamp,
    pub(crate) act: Act,
}

/// A write before its place among the others is known.
#[derive(Debug)]
struct Draft {
    received: Timestamp,
    answered: Timestamp,
    uid: String,
    /// `None` for a deletion, or a write that was perhaps made.
    version: Option<u64>,
    act: Act,
}

/// Gathers what the audit log tells.
#[derive(Debug, Default)]
pub(crate) struct History {
    drafts: Vec<Draft>,
}

impl History {
    pub(crate) fn add(&mut self, entry: &Entry) {
        let kind = entry.resource.split('/').next().unwrap_or_default();
        let act = match (kind, entry.verb.as_str()) {
            _ if !entry.succeeded() => perhaps(entry),
            ("services", "delete") => Some(Act::ServiceGone(key(entry), uid(entry))),
            ("services", _) => Some(Act::Service(key(entry), told(&entry.response))),
            ("virtualips", "delete") => address(entry).map(Act::VipGone),
            ("virtualips", _) => {
                address(entry).and_then(|ip| Some(Act::Vip(ip, record(&entry.response)?)))
            }
            ("leases", "create" | "patch" | "update") => {
                let holder = entry.response["spec"]["holderIdentity"].as_str();
                holder.map(|name| Act::Leads(name.to_owned()))
            }
            _ => None,
        };
        let Some(act) = act else { return };
        let placed = !matches!(
            act,
            Act::ServiceGone(..) | Act::VipGone(_) | Act::VipPerhaps(..) | Act::ServicePerhaps(..)
        );
        let version = entry.response["metadata"]["resourceVersion"].as_str();
        self.drafts.push(Draft {
            received: entry.received,
            answered: entry.answered,
            uid: uid(entry),
            version: version.and_then(|v| v.parse().ok()).filter(|_| placed),
            act,
        });
    }

    /// Adds the objects as they are listed in the end; how many of them are of a version that no
    /// write was told to have made.
    pub(crate) fn close(&mut self, services: &[Value], vips: &[Value]) -> usize {
        let heard: BTreeSet<u64> = self.drafts.iter().filter_map(|d| d.version).collect();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut unheard = 0;
        for (object, is_service) in services
            .iter()
            .map(|service| (service, true))
            .chain(vips.iter().map(|vip| (vip, false)))
        {
            let meta = &object["metadata"];
            let version = meta["resourceVersion"]
                .as_str()
                .and_then(|v| v.parse().ok());
            if version.is_none_or(|version| heard.contains(&version)) {
                continue;
            }
            let act = if is_service {
                let key = (text(&meta["namespace"]), text(&meta["name"]));
                Some(Act::Service(key, told(object)))
            } else {
                let ip = parse_virtual_ip_name(&text(&meta["name"])).ok();
                ip.zip(record(object))
                    .map(|(ip, record)| Act::Vip(ip, record))
            };
            let Some(act) = act else { continue };
            unheard += 1;
            self.drafts.push(Draft {
                received: Timestamp::MAX,
                answered: Timestamp::MAX,
                uid: text(&meta["uid"]),
                version,
                act,
            });
        }
        unheard
    }

    /// Everything, in order.
    pub(crate) fn ordered(self) -> Vec<Event> {
        let mut answered: Vec<(Timestamp, u64)> = Vec::new();
        let mut last_of: BTreeMap<&str, u64> = BTreeMap::new();
        for draft in &self.drafts {
            if let Some(version) = draft.version {
                answered.push((draft.answered, version));
                let last = last_of.entry(&draft.uid).or_default();
                *last = version.max(*last);
            }
        }
        answered.sort_unstable();
        let mut newest = 0;
        for (_, version) in &mut answered {
            newest = newest.max(*version);
            *version = newest;
        }
        let place = |draft: &Draft| match draft.version {
            Some(version) => (version, 0),
            None => {
                let before = answered.partition_point(|(at, _)| *at < draft.received);
                let known = before.checked_sub(1).and_then(|last| answered.get(last));
                let known = known.map_or(0, |(_, version)| *version);
                // A write that was perhaps made need not be the last one.
                let own = match draft.act {
                    Act::VipPerhaps(..) | Act::ServicePerhaps(..) => 0,
                    _ => last_of.get(draft.uid.as_str()).copied().unwrap_or(0),
                };
                (known.max(own), 1)
            }
        };
        let mut order: Vec<((u64, u8, Timestamp), usize)> = self
            .drafts
            .iter()
            .enumerate()
            .map(|(index, draft)| {
                let (version, late) = place(draft);
                ((version, late, draft.received), index)
            })
            .collect();
        order.sort();
        let mut drafts: Vec<Option<Draft>> = self.drafts.into_iter().map(Some).collect();
        let take = |(_, index): (_, usize)| drafts.get_mut(index).and_then(Option::take);
        order
            .into_iter()
            .filter_map(take)
            .map(|draft| Event {
                received: draft.received,
                act: draft.act,
            })
            .collect()
    }
}

/// A write that failed within the API server may be made all the same: its answer was lost
/// between etcd and there, or the one who asked was gone.
fn perhaps(entry: &Entry) -> Option<Act> {
    let unknown = entry.code >= 500 || entry.code == 499;
    let writes = matches!(entry.verb.as_str(), "create" | "patch");
    if !unknown || !writes {
        return None;
    }
    match entry.resource.split('/').next()? {
        "virtualips" => Some(Act::VipPerhaps(address(entry)?, record(&entry.request)?)),
        // Other writes leave the addresses as they are.
        "services" if entry.request["status"].get("loadBalancer").is_some() => {
            Some(Act::ServicePerhaps(key(entry), shows(&entry.request)))
        }
        _ => None,
    }
}

/// The addresses in a Service's status.
fn shows(service: &Value) -> BTreeSet<IpAddr> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    ingress
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["ip"].as_str()?.parse().ok())
        .collect()
}

fn key(entry: &Entry) -> Key {
    (entry.namespace.clone(), entry.name.clone())
}

/// The object's uid, whether the answer is the object or tells of its deletion.
fn uid(entry: &Entry) -> String {
    let response = &entry.response;
    let found = response["metadata"]["uid"]
        .as_str()
        .or_else(|| response["details"]["uid"].as_str());
    found.unwrap_or_default().to_owned()
}

fn address(entry: &Entry) -> Option<IpAddr> {
    parse_virtual_ip_name(&entry.name).ok()
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Read by itself, not by the controller's own eyes.
fn told(service: &Value) -> Told {
    let (meta, spec, status) = (&service["metadata"], &service["spec"], &service["status"]);
    let annotation = |name: &str| meta["annotations"][name].as_str().unwrap_or_default();
    let list = |name: &str| -> BTreeSet<String> {
        let parts = annotation(name).split(',').map(str::trim);
        parts
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let class = spec["loadBalancerClass"].as_str();
    let ports = spec["ports"].as_array().into_iter().flatten();
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut ours = conditions
        .filter(|c| c["type"] == CONDITION_LOAD_BALANCER)
        .filter_map(|c| c["reason"].as_str());
    Told {
        uid: meta["uid"].as_str().unwrap_or_default().to_owned(),
        wish: Wish {
            ours: spec["type"] == "LoadBalancer"
                && class.is_none_or(|class| class == "bellrock.dev/bellrock"),
            families: ["IPv4", "IPv6"]
                .map(|family| strings(&spec["ipFamilies"]).any(|f| f == family)),
            ports: ports
                .filter_map(|port| {
                    let protocol = port["protocol"].as_str().unwrap_or("TCP");
                    Some((protocol.to_owned(), port["port"].as_u64()?))
                })
                .collect(),
            key: list(SHARING_KEY).into_iter().next(),
            local: (spec["externalTrafficPolicy"] == "Local").then(|| {
                let selector = spec["selector"].as_object().into_iter().flatten();
                selector
                    .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                    .collect()
            }),
            pools: list(ADDRESS_POOL),
            addresses: list(LOAD_BALANCER_IPS)
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
        },
        shows: shows(service),
        reason: ours.next_back().map(str::to_owned),
    }
}

fn record(vip: &Value) -> Option<Record> {
    let claims: Vec<Claim> = match &vip["spec"]["claims"] {
        Value::Null => Vec::new(),
        claims => serde_json::from_value(claims.clone()).ok()?,
    };
    let annotation = |name: &str| vip["metadata"]["annotations"][name].as_str();
    let released = annotation(RELEASED_AT).and_then(|at| at.parse().ok());
    let by = annotation(RELEASED_BY).and_then(|by| by.split_once('/'));
    Some(Record {
        claims: claims
            .into_iter()
            .map(|claim| ((claim.namespace.clone(), claim.name.clone()), claim))
            .collect(),
        released: released.zip(by.map(|(ns, name)| (ns.to_owned(), name.to_owned()))),
    })
}

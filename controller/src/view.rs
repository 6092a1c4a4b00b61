//! What the controller keeps of the objects that it watches: a small part of each, parsed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::annotations::{
    ADDRESS_POOL, CONDITION_LOAD_BALANCER, DRAIN, FINALIZER_CLEANUP, LABEL_EXCLUDE_NODE,
    LOAD_BALANCER_IPS, NODE_NETWORK_UNAVAILABLE, SHARING_KEY, TAINT_OUT_OF_SERVICE,
    TAINT_TO_BE_DELETED, is_set,
};
use bellrock_api::{
    AddressRange, Claim as VipClaim, L2AdvertisementSpec, MAX_PORTS, MAX_SELECTOR, MAX_SHARING_KEY,
    PortClaim, Protocol, TrafficPolicy, VirtualIPSpec, address,
};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};

use crate::ipam::{Backend, Claim, Family, MAX_POOLS, Oversize, Refusal, ServiceKey};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A version of an object. Versions of one kind are ordered: Kubernetes promises it (KEP-5504),
/// and etcd has always made it so. A restore of etcd begins anew at an older one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// The object's uid: another uid is another object.
    pub uid: String,
    /// `metadata.resourceVersion`, as it goes back to the API server.
    pub resource: String,
}

impl Version {
    /// The version of an object with this metadata.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource: meta.resource_version.clone().unwrap_or_default(),
        }
    }

    /// True when this is an older version of the same object than `other`: a watch that lags
    /// behind our own writes delivers such.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.uid == other.uid && self.is_before(other)
    }

    /// True when this was so before `other`, which may be another object of the same kind.
    #[must_use]
    pub fn is_before(&self, other: &Self) -> bool {
        let number = |v: &Self| v.resource.parse::<u64>().ok();
        match (number(self), number(other)) {
            (Some(mine), Some(theirs)) => mine < theirs,
            (None, _) | (_, None) => false,
        }
    }
}

/// A Service, as far as allocation looks.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// Version.
    pub version: Version,
    /// Creation, in seconds since the epoch: who waits longer is served first.
    pub created: i64,
    /// `spec.type` is `LoadBalancer`.
    pub is_load_balancer: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// Families, primary first.
    pub families: Vec<Family>,
    /// `ipFamilyPolicy: RequireDualStack`.
    pub require_both: bool,
    /// Addresses asked for, or why the request cannot be read.
    pub addresses: Result<Vec<IpAddr>, Refusal>,
    /// Pools asked for.
    pub pools: Vec<String>,
    /// On what terms it holds an address.
    pub claim: Claim,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<LoadBalancerIngress>,
    /// `status.conditions`.
    pub conditions: Vec<Condition>,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// It is deleted, and held by its finalizers.
    pub leaving: bool,
}

impl ServiceView {
    /// The part of `service` that matters; `None` for an object without a name.
    #[must_use]
    pub fn of(service: &Service) -> Option<(ServiceKey, Self)> {
        let meta = &service.metadata;
        let key = ServiceKey::new(meta.namespace.clone()?, meta.name.clone()?);
        let spec = service.spec.clone().unwrap_or_default();
        let status = service.status.clone().unwrap_or_default();
        let annotation = |name: &str| {
            meta.annotations
                .as_ref()
                .and_then(|all| all.get(name))
                .map(|text| text.trim())
                .filter(|text| !text.is_empty())
        };
        let families = families(spec.ip_families.as_deref(), spec.cluster_ips.as_deref());
        let backend = match spec.external_traffic_policy.as_deref() {
            Some("Local") => Backend::Local(spec.selector.unwrap_or_default()),
            Some(_) | None => Backend::Cluster,
        };
        let ports = spec.ports.unwrap_or_default();
        let mut claim = Claim {
            ports: ports
                .iter()
                .filter_map(|p| {
                    let protocol = Protocol::from_kubernetes(p.protocol.as_deref())?;
                    Some((protocol, u16::try_from(p.port).ok()?))
                })
                .collect(),
            sharing_key: annotation(SHARING_KEY).map(str::to_owned),
            backend,
        };
        let (pools, too_many) = pools(annotation(ADDRESS_POOL));
        let oversize = cut_to_size(&mut claim).or(too_many);
        let view = Self {
            version: Version::of(meta),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            is_load_balancer: spec.type_.as_deref() == Some("LoadBalancer"),
            class: spec.load_balancer_class,
            labels: meta.labels.clone().unwrap_or_default(),
            families,
            require_both: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
            addresses: match oversize {
                Some(refusal) => Err(refusal),
                None => requested(
                    annotation(LOAD_BALANCER_IPS),
                    spec.load_balancer_ip.as_deref(),
                ),
            },
            pools,
            claim,
            ingress: kept(status.load_balancer.and_then(|lb| lb.ingress)),
            conditions: kept(status.conditions),
            finalizers: kept(meta.finalizers.clone()),
            leaving: meta.deletion_timestamp.is_some(),
        };
        Some((key, view))
    }

    /// The condition that we keep on it.
    #[must_use]
    pub fn condition(&self) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|c| c.type_ == CONDITION_LOAD_BALANCER)
    }

    /// The addresses in its status.
    #[must_use]
    pub fn status_addresses(&self) -> Vec<IpAddr> {
        self.ingress
            .iter()
            .filter_map(|i| i.ip.as_deref()?.parse().ok())
            .collect()
    }

    /// Whether it carries the cleanup finalizer.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.finalizers.iter().any(|f| f == FINALIZER_CLEANUP)
    }

    /// True when nothing but the version differs.
    #[must_use]
    pub fn same_but_version(&self, other: &Self) -> bool {
        let mut copy = self.clone();
        copy.version.clone_from(&other.version);
        copy == *other
    }
}

/// A list that is kept for long: one that was parsed has room for several members more than it has.
pub(crate) fn kept<T>(list: Option<Vec<T>>) -> Vec<T> {
    let mut list = list.unwrap_or_default();
    list.shrink_to_fit();
    list
}

/// `spec.ipFamilies`, or the families of the cluster addresses where that is missing.
fn families(ip_families: Option<&[String]>, cluster_ips: Option<&[String]>) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let headless = cluster_ips.is_some_and(|ips| ips.iter().any(|ip| ip == "None"));
    if headless {
        return families;
    }
    let named = ip_families
        .into_iter()
        .flatten()
        .filter_map(|name| match name.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        });
    let by_address = cluster_ips
        .into_iter()
        .flatten()
        .filter_map(|text| text.parse().ok())
        .map(Family::of);
    for family in named.chain(by_address) {
        if !families.contains(&family) {
            families.push(family);
        }
    }
    if let Some(named) = ip_families.filter(|named| !named.is_empty()) {
        families.truncate(named.len());
    }
    families
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// The pools that a Service asks for. Of too many none counts.
fn pools(annotation: Option<&str>) -> (Vec<String>, Option<Refusal>) {
    let mut pools: Vec<&str> = Vec::new();
    for name in annotation.into_iter().flat_map(split) {
        if pools.len() <= MAX_POOLS && !pools.contains(&name) {
            pools.push(name);
        }
    }
    let found = annotation.into_iter().flat_map(split).count();
    if pools.len() > MAX_POOLS {
        let what = Oversize::Pools;
        return (Vec::new(), Some(Refusal::TooLarge { what, found }));
    }
    (pools.into_iter().map(str::to_owned).collect(), None)
}

/// Makes of `claim` what a VirtualIP can record, and says what was too much. Then it cannot be
/// known who may share an address with it: nobody does.
fn cut_to_size(claim: &mut Claim) -> Option<Refusal> {
    let key = claim.sharing_key.as_ref().map_or(0, |k| k.chars().count());
    let labels = match (&claim.backend, &claim.sharing_key) {
        (Backend::Local(selector), Some(_)) => selector.len(),
        (Backend::Local(_) | Backend::Cluster | Backend::Unknown, _) => 0,
    };
    let found = [
        (Oversize::SharingKey, key, MAX_SHARING_KEY),
        (Oversize::Ports, claim.ports.len(), MAX_PORTS),
        (Oversize::Selector, labels, MAX_SELECTOR),
    ];
    let (what, found, _) = found.into_iter().find(|(_, found, max)| found > max)?;
    claim.sharing_key = None;
    while claim.ports.len() > MAX_PORTS {
        claim.ports.pop_last();
    }
    Some(Refusal::TooLarge { what, found })
}

/// The terms on which a Service holds an address, as its claim records them. What it does not record is
/// as the Service has it now.
#[must_use]
pub fn recorded_terms(claim: &VipClaim, now: &Backend) -> Claim {
    Claim {
        ports: claim.ports.iter().map(|p| (p.protocol, p.port)).collect(),
        sharing_key: claim.sharing_key.clone(),
        backend: match claim.external_traffic_policy {
            Some(TrafficPolicy::Cluster) => Backend::Cluster,
            Some(TrafficPolicy::Local) => Backend::Local(claim.selector.clone()),
            None => now.clone(),
        },
    }
}

/// A claim as the VirtualIP records it. Of who shares nothing, nobody needs to know the policy.
#[must_use]
pub fn vip_claim(key: &ServiceKey, uid: &str, terms: &Claim) -> VipClaim {
    let (policy, selector) = match &terms.backend {
        Backend::Cluster => (Some(TrafficPolicy::Cluster), BTreeMap::new()),
        Backend::Local(selector) => (Some(TrafficPolicy::Local), selector.clone()),
        Backend::Unknown => (None, BTreeMap::new()),
    };
    let (policy, selector) = match terms.sharing_key {
        Some(_) => (policy, selector),
        None => (None, BTreeMap::new()),
    };
    let ports = terms.ports.iter();
    VipClaim {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: (!uid.is_empty()).then(|| uid.to_owned()),
        ports: ports
            .map(|&(protocol, port)| PortClaim { protocol, port })
            .collect(),
        sharing_key: terms.sharing_key.clone(),
        external_traffic_policy: policy,
        selector,
    }
}

/// Whether what was sent of policies is there in what was kept: an API server whose definition of
/// a VirtualIP is older drops it without a word. `None`: nothing was sent of them.
#[must_use]
pub fn remembers(sent: &VirtualIPSpec, kept: &VirtualIPSpec) -> Option<bool> {
    let with_policy = sent
        .claims
        .iter()
        .find(|claim| claim.external_traffic_policy.is_some())?;
    let kept = kept.claim_of(&with_policy.namespace, &with_policy.name)?;
    Some(kept.external_traffic_policy.is_some())
}

/// The addresses that a Service asks for, by annotation or by the deprecated field.
fn requested(annotation: Option<&str>, field: Option<&str>) -> Result<Vec<IpAddr>, Refusal> {
    let parse = |name: &'static str, text: &str| -> Result<Vec<IpAddr>, Refusal> {
        // A third is one too many of its family, whatever follows.
        split(text)
            .take(3)
            .map(address::parse_address)
            .collect::<Result<_, _>>()
            .map_err(|error| Refusal::Malformed {
                field: name,
                error: error.to_string(),
            })
    };
    let by_field = match field.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => parse("spec.loadBalancerIP", text)?,
        None => Vec::new(),
    };
    let Some(text) = annotation else {
        return Ok(by_field);
    };
    let by_annotation = parse(LOAD_BALANCER_IPS, text)?;
    if by_field.iter().all(|ip| by_annotation.contains(ip)) {
        Ok(by_annotation)
    } else {
        Err(Refusal::TwoRequests)
    }
}

/// A VirtualIP that exists.
#[derive(Debug, Clone, PartialEq)]
pub struct VipView {
    /// Version.
    pub version: Version,
    /// Made by the controller, which deletes it when nobody holds it; one made by hand stays.
    pub managed: bool,
    /// What it says.
    pub spec: VirtualIPSpec,
    /// When its last claim went, and whose that was.
    pub released: Option<Release>,
}

impl VipView {
    /// The release after which it only keeps the address from being given out again too early.
    #[must_use]
    pub fn at_rest(&self) -> Option<&Release> {
        let unclaimed = self.managed && self.spec.claims.is_empty();
        self.released.as_ref().filter(|_| unclaimed)
    }
}

/// The end of an address's last claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// When, since the epoch, in whole milliseconds.
    pub at: Duration,
    /// Who held it last.
    pub by: Option<ServiceKey>,
}

/// A node, as far as allocation and placement look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeView {
    /// Labels.
    pub labels: Labels,
    /// It carries the exclude label, and the label does not say false.
    pub excluded: bool,
    /// It cannot carry addresses: no network, on its way out, or out of service.
    pub unusable: bool,
    /// Its addresses, internal and external.
    pub addresses: BTreeSet<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<AddressRange>,
}

impl NodeView {
    /// The part of `node` that matters. Being cordoned or not ready changes nothing here: pods go
    /// on running on a cordoned node, and who really answers is the speakers' business.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let excluded = is_set(&labels, LABEL_EXCLUDE_NODE);
        let annotations = node.metadata.annotations.as_ref();
        let drained = annotations.is_some_and(|all| is_set(all, DRAIN));
        let taints = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default();
        let leaving = taints
            .iter()
            .any(|taint| [TAINT_OUT_OF_SERVICE, TAINT_TO_BE_DELETED].contains(&taint.key.as_str()));
        let conditions = node
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        let no_network = conditions
            .iter()
            .any(|c| c.type_ == NODE_NETWORK_UNAVAILABLE && c.status == "True");
        let addresses = node
            .status
            .as_ref()
            .and_then(|s| s.addresses.as_deref())
            .unwrap_or_default()
            .iter()
            .filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|a| a.address.parse().ok())
            .collect();
        let pod_cidrs = node
            .spec
            .iter()
            .flat_map(|spec| spec.pod_cidrs.iter().flatten());
        Self {
            addresses,
            pod_cidrs: pod_cidrs.filter_map(|cidr| cidr.parse().ok()).collect(),
            excluded,
            unusable: leaving
                || drained
                || no_network
                || node.metadata.deletion_timestamp.is_some(),
            labels,
        }
    }
}

/// An L2Advertisement.
#[derive(Debug, Clone, PartialEq)]
pub struct AdvertisementView {
    /// What it says.
    pub spec: L2AdvertisementSpec,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[allow(
        clippy::needless_pass_by_value,
        reason = "json! reads better without a & before it"
    )]
    fn view(spec: Value, annotations: Value) -> ServiceView {
        let service = json!({
            "metadata": { "namespace": "default", "name": "web", "annotations": annotations },
            "spec": spec,
        });
        ServiceView::of(&serde_json::from_value(service).unwrap())
            .unwrap()
            .1
    }

    #[test]
    fn families_follow_the_service_and_fall_back_to_its_cluster_addresses() {
        use Family::{V4, V6};
        for (spec, expected) in [
            (
                json!({ "ipFamilies": ["IPv6", "IPv4"], "clusterIPs": ["fd96::1", "10.96.0.1"] }),
                vec![V6, V4],
            ),
            (
                json!({ "ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.1"] }),
                vec![V4],
            ),
            (
                json!({ "clusterIPs": ["10.96.0.1", "fd96::1"] }),
                vec![V4, V6],
            ),
            (
                json!({ "clusterIPs": ["None"], "ipFamilies": ["IPv4"] }),
                vec![],
            ),
            (json!({}), vec![]),
        ] {
            assert_eq!(view(spec.clone(), json!({})).families, expected, "{spec}");
        }
    }

    #[test]
    fn requests_are_read_from_the_annotation_and_the_old_field() {
        let ips =
            |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        for (field, annotation, expected) in [
            ("", "", Ok(ips(&[]))),
            ("192.0.2.1", "", Ok(ips(&["192.0.2.1"]))),
            (
                "",
                " 192.0.2.1 , 2001:db8::1,",
                Ok(ips(&["192.0.2.1", "2001:db8::1"])),
            ),
            (
                "192.0.2.1",
                "2001:db8::1,192.0.2.1",
                Ok(ips(&["2001:db8::1", "192.0.2.1"])),
            ),
            (
                "192.0.2.1",
                "192.0.2.2",
                Err(bellrock_api::AllocationReason::ConflictingRequest),
            ),
            (
                "192.0.2.01",
                "",
                Err(bellrock_api::AllocationReason::AddressInvalid),
            ),
            (
                "",
                "web",
                Err(bellrock_api::AllocationReason::AddressInvalid),
            ),
            (
                "",
                "::ffff:192.0.2.1",
                Err(bellrock_api::AllocationReason::AddressInvalid),
            ),
        ] {
            let got = view(
                json!({ "loadBalancerIP": field }),
                json!({ LOAD_BALANCER_IPS: annotation }),
            );
            let got = got.addresses.map_err(|refusal| refusal.reason());
            assert_eq!(got, expected, "{field:?} {annotation:?}");
        }
    }

    #[test]
    fn a_node_is_excluded_by_a_label_that_does_not_say_false() {
        for (labels, excluded) in [
            (json!({}), false),
            (json!({ LABEL_EXCLUDE_NODE: "" }), true),
            (json!({ LABEL_EXCLUDE_NODE: "true" }), true),
            (json!({ LABEL_EXCLUDE_NODE: "yes please" }), true),
            (json!({ LABEL_EXCLUDE_NODE: "false" }), false),
        ] {
            let node = serde_json::from_value(json!({ "metadata": { "labels": labels } })).unwrap();
            assert_eq!(NodeView::of(&node).excluded, excluded, "{labels}");
        }
    }

    #[test]
    fn a_node_is_unusable_when_it_leaves_but_not_when_it_is_cordoned() {
        for (node, unusable) in [
            (json!({ "spec": { "unschedulable": true } }), false),
            (
                json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }),
                false,
            ),
            (
                json!({ "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "True" }] } }),
                true,
            ),
            (
                json!({ "spec": { "taints": [{ "key": TAINT_OUT_OF_SERVICE, "effect": "NoExecute" }] } }),
                true,
            ),
            (
                json!({ "spec": { "taints": [{ "key": TAINT_TO_BE_DELETED, "effect": "NoSchedule" }] } }),
                true,
            ),
            (
                json!({ "metadata": { "annotations": { DRAIN: "" } } }),
                true,
            ),
            (
                json!({ "metadata": { "annotations": { DRAIN: "false" } } }),
                false,
            ),
            (
                json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
                true,
            ),
        ] {
            let parsed = serde_json::from_value(node.clone()).unwrap();
            assert_eq!(NodeView::of(&parsed).unusable, unusable, "{node}");
        }
    }

    #[test]
    fn a_node_has_its_internal_and_external_addresses() {
        let node = serde_json::from_value(json!({ "status": { "addresses": [
            { "type": "Hostname", "address": "192.0.2.9" },
            { "type": "InternalIP", "address": "192.0.2.1" },
            { "type": "InternalIP", "address": "2001:db8::1" },
            { "type": "ExternalIP", "address": "198.51.100.1" },
            { "type": "ExternalIP", "address": "node.example.com" },
        ]}}))
        .unwrap();
        let expected = ["192.0.2.1", "198.51.100.1", "2001:db8::1"];
        assert_eq!(
            NodeView::of(&node).addresses,
            expected.map(|a| a.parse().unwrap()).into()
        );
    }

    #[test]
    fn versions_of_one_object_are_ordered() {
        let version = |uid: &str, resource: &str| Version {
            uid: uid.into(),
            resource: resource.into(),
        };
        assert!(version("a", "9").is_older_than(&version("a", "10")));
        assert!(!version("a", "10").is_older_than(&version("a", "10")));
        assert!(!version("a", "9").is_older_than(&version("b", "10")));
        assert!(!version("a", "x").is_older_than(&version("a", "10")));
    }
}

//! The model of the API server, as far as the controller sees it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use bellrock_api::annotations::{
    ADDRESS_POOL, CONDITION_LOAD_BALANCER, LOAD_BALANCER_IPS, SHARING_KEY,
};
use bellrock_api::{VirtualIPSpec, parse_virtual_ip_name, virtual_ip_name};
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, Service, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use crate::core::{Change, Kind, OurCondition, Write};
use crate::ipam::ServiceKey;
use crate::pools::PoolView;
use crate::view::{AdvertisementView, Labels, NodeView, ServiceView, Version, VipView};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Refused {
    Conflict,
    Exists,
    Missing,
    Network,
}

#[derive(Default)]
pub(super) struct Cluster {
    pub(super) services: BTreeMap<ServiceKey, Service>,
    pub(super) namespaces: BTreeMap<String, Labels>,
    pub(super) nodes: BTreeMap<String, NodeView>,
    pub(super) pools: BTreeMap<String, PoolView>,
    pub(super) advertisements: BTreeMap<String, AdvertisementView>,
    pub(super) vips: BTreeMap<String, VipView>,
    versions: u64,
    /// Told to the watches, not yet received.
    pub(super) news: VecDeque<Change>,
    /// Every write that was accepted.
    pub(super) writes: Vec<Write>,
    /// Its definition of a VirtualIP knows no policies.
    pub(super) forgets: bool,
    /// Patches that changed nothing.
    pub(super) idle: usize,
    /// The operator wants the cleanup finalizer.
    pub(super) cleanup_finalizer: bool,
}

impl Cluster {
    fn version(&mut self, uid: Option<&str>) -> Version {
        self.versions += 1;
        Version {
            uid: uid.map_or_else(|| format!("uid-{}", self.versions), str::to_owned),
            resource: self.versions.to_string(),
        }
    }

    pub(super) fn tell_service(&mut self, key: &ServiceKey) {
        let (key, view) = ServiceView::of(&self.services[key]).unwrap();
        self.news.push_back(Change::Service(key, Box::new(view)));
    }

    /// Creates or changes a Service; its status stays.
    pub(super) fn put_service(
        &mut self,
        name: &str,
        spec: Value,
        annotations: Value,
    ) -> ServiceKey {
        let key = match name.split_once('/') {
            Some((namespace, name)) => ServiceKey::new(namespace, name),
            None => ServiceKey::new("default", name),
        };
        let old = self.services.get(&key).cloned();
        let uid = old.as_ref().and_then(|s| s.metadata.uid.clone());
        let version = self.version(uid.as_deref());
        let mut full = json!({
            "type": "LoadBalancer", "ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.1"],
            "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Cluster",
            "ports": [{ "port": 80 }],
        });
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let mut service: Service = serde_json::from_value(json!({
            "metadata": {
                "namespace": key.namespace, "name": key.name, "uid": version.uid,
                "resourceVersion": version.resource, "annotations": annotations,
            },
            "spec": full,
        }))
        .unwrap();
        service.metadata.finalizers = old.as_ref().and_then(|s| s.metadata.finalizers.clone());
        service.status = old.and_then(|s| s.status);
        self.services.insert(key.clone(), service);
        self.tell_service(&key);
        key
    }

    /// Deletes a Service; one with finalizers only begins to go.
    pub(super) fn delete_service(&mut self, key: &ServiceKey) {
        let version = self.version(None).resource;
        if let Some(meta) = self.services.get_mut(key).map(|s| &mut s.metadata)
            && meta.finalizers.as_ref().is_some_and(|f| !f.is_empty())
        {
            meta.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
            meta.resource_version = Some(version);
            self.tell_service(key);
            return;
        }
        if let Some(service) = self.services.remove(key) {
            self.news.push_back(Change::Gone(
                Kind::Service,
                key.namespace.clone(),
                key.name.clone(),
                service.metadata.uid.unwrap(),
            ));
        }
    }

    pub(super) fn put_pool(&mut self, name: &str, spec: Value) {
        let old = self.pools.get(name).cloned();
        let version = self.version(old.as_ref().map(|p| p.version.uid.as_str()));
        let view = PoolView {
            created: old
                .as_ref()
                .map_or(i64::try_from(self.versions).unwrap(), |p| p.created),
            generation: Some(i64::try_from(self.versions).unwrap()),
            version,
            labels: Labels::new(),
            spec: serde_json::from_value(spec).map_err(|e| e.to_string()),
            status: old.map(|p| p.status).unwrap_or_default(),
        };
        self.pools.insert(name.to_owned(), view.clone());
        self.news
            .push_back(Change::Pool(name.to_owned(), Box::new(view)));
    }

    pub(super) fn label_pool(&mut self, name: &str, labels: &[(&str, &str)]) {
        let mut view = self.pools[name].clone();
        view.version = self.version(Some(&view.version.uid));
        view.labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        self.pools.insert(name.to_owned(), view.clone());
        self.news
            .push_back(Change::Pool(name.to_owned(), Box::new(view)));
    }

    pub(super) fn delete_pool(&mut self, name: &str) {
        if let Some(pool) = self.pools.remove(name) {
            let gone = Change::Gone(Kind::Pool, String::new(), name.to_owned(), pool.version.uid);
            self.news.push_back(gone);
        }
    }

    pub(super) fn put_node(&mut self, name: &str, node: Value) {
        let node: Node = serde_json::from_value(node).unwrap();
        let view = NodeView::of(&node);
        self.nodes.insert(name.to_owned(), view.clone());
        self.news.push_back(Change::Node(name.to_owned(), view));
    }

    pub(super) fn delete_node(&mut self, name: &str) {
        self.nodes.remove(name);
        let gone = Change::Gone(Kind::Node, String::new(), name.to_owned(), String::new());
        self.news.push_back(gone);
    }

    pub(super) fn put_advertisement(&mut self, name: &str, spec: Value) {
        let view = AdvertisementView {
            spec: serde_json::from_value(spec).unwrap(),
        };
        self.advertisements.insert(name.to_owned(), view.clone());
        self.news
            .push_back(Change::L2Advertisement(name.to_owned(), Box::new(view)));
    }

    pub(super) fn put_namespace(&mut self, name: &str, labels: &[(&str, &str)]) {
        let labels: Labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        self.namespaces.insert(name.to_owned(), labels.clone());
        self.news
            .push_back(Change::Namespace(name.to_owned(), labels));
    }

    /// A VirtualIP made by hand.
    pub(super) fn put_vip_by_hand(&mut self, address: &str, claims: &[&str]) {
        let claims = claims.iter().map(|text| {
            let (namespace, name) = text.split_once('/').unwrap();
            json!({ "namespace": namespace, "name": name })
        });
        let spec = json!({ "address": address, "claims": claims.collect::<Vec<_>>() });
        let spec: VirtualIPSpec = serde_json::from_value(spec).unwrap();
        let name = virtual_ip_name(spec.ip().unwrap());
        let uid = self.vips.get(&name).map(|v| v.version.uid.clone());
        let version = self.version(uid.as_deref());
        let view = VipView {
            version,
            managed: false,
            spec,
            released: None,
        };
        self.vips.insert(name, view.clone());
        self.tell_vip(&view);
    }

    fn tell_vip(&mut self, view: &VipView) {
        let ip = view.spec.ip().unwrap();
        self.news
            .push_back(Change::VirtualIp(ip, Box::new(view.clone())));
    }

    pub(super) fn delete_vip(&mut self, address: &str) {
        let name = virtual_ip_name(address.parse().unwrap());
        if let Some(vip) = self.vips.remove(&name) {
            self.news.push_back(Change::Gone(
                Kind::VirtualIp,
                String::new(),
                name,
                vip.version.uid,
            ));
        }
    }

    /// Another party touches a VirtualIP, as its speaker does with the status.
    pub(super) fn touch_vip(&mut self, name: &str) {
        if let Some(mut vip) = self.vips.get(name).cloned() {
            vip.version = self.version(Some(&vip.version.uid));
            self.vips.insert(name.to_owned(), vip.clone());
            self.tell_vip(&vip);
        }
    }

    /// What a backup of the store keeps.
    pub(super) fn backup(&self) -> Self {
        Self {
            services: self.services.clone(),
            namespaces: self.namespaces.clone(),
            nodes: self.nodes.clone(),
            pools: self.pools.clone(),
            advertisements: self.advertisements.clone(),
            vips: self.vips.clone(),
            versions: self.versions,
            ..Self::default()
        }
    }

    /// The watches list again: nothing that was told before and not received arrives any more.
    pub(super) fn relist(&mut self) {
        self.news = self.listing().into();
    }

    /// Another party labels a Service.
    pub(super) fn label_service(&mut self, key: &ServiceKey, labels: &[(&str, &str)]) {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let labels = Some(labels.collect());
        if let Some(service) = self.services.get_mut(key) {
            service.metadata.labels = labels;
        }
        self.touch_service(key);
    }

    /// Another party touches a Service.
    pub(super) fn touch_service(&mut self, key: &ServiceKey) {
        if let Some(mut service) = self.services.get(key).cloned() {
            let version = self.version(service.metadata.uid.as_deref());
            service.metadata.resource_version = Some(version.resource);
            self.services.insert(key.clone(), service);
            self.tell_service(key);
        }
    }

    /// What is stored of a VirtualIP.
    fn kept(&self, spec: &VirtualIPSpec) -> VirtualIPSpec {
        let mut spec = spec.clone();
        for claim in spec.claims.iter_mut().filter(|_| self.forgets) {
            claim.external_traffic_policy = None;
            claim.selector = BTreeMap::new();
        }
        spec
    }

    pub(super) fn accept(&mut self, write: &Write) -> Result<Option<Change>, Refused> {
        let answer = match write {
            Write::CreateVip(spec) => {
                let name = virtual_ip_name(spec.ip().unwrap());
                if self.vips.contains_key(&name) {
                    return Err(Refused::Exists);
                }
                let view = VipView {
                    version: self.version(None),
                    managed: true,
                    spec: self.kept(spec),
                    released: None,
                };
                self.vips.insert(name, view.clone());
                self.tell_vip(&view);
                Some(Change::VirtualIp(spec.ip().unwrap(), Box::new(view)))
            }
            Write::PatchVip {
                ip,
                version,
                spec,
                released,
            } => {
                let name = virtual_ip_name(*ip);
                let present = self.vips.get(&name).ok_or(Refused::Missing)?;
                if present.version != *version {
                    return Err(Refused::Conflict);
                }
                let spec = self.kept(spec);
                if (&present.spec, &present.released) == (&spec, released) {
                    // Nothing happens, and no version is made.
                    self.idle += 1;
                    return Ok(Some(Change::VirtualIp(*ip, Box::new(present.clone()))));
                }
                let managed = present.managed;
                let version = self.version(Some(&version.uid));
                let view = VipView {
                    version,
                    managed,
                    spec,
                    released: released.clone(),
                };
                self.vips.insert(name, view.clone());
                self.tell_vip(&view);
                Some(Change::VirtualIp(*ip, Box::new(view)))
            }
            Write::DeleteVip { ip, version } => {
                let name = virtual_ip_name(*ip);
                let present = self.vips.get(&name).ok_or(Refused::Missing)?;
                if present.version != *version {
                    return Err(Refused::Conflict);
                }
                self.delete_vip(&ip.to_string());
                None
            }
            Write::PatchStatus(patch) => {
                let mut service = self
                    .services
                    .get(&patch.service)
                    .ok_or(Refused::Missing)?
                    .clone();
                if Version::of(&service.metadata) != patch.version {
                    return Err(Refused::Conflict);
                }
                let mut conditions = patch.others.clone();
                conditions.extend(patch.condition.as_ref().map(condition));
                let status = service.status.get_or_insert_with(ServiceStatus::default);
                status.conditions = Some(conditions);
                if let Some(ingress) = &patch.ingress {
                    let ingress = Some(ingress.clone());
                    status.load_balancer = Some(LoadBalancerStatus { ingress });
                }
                let version = self.version(Some(&patch.version.uid));
                service.metadata.resource_version = Some(version.resource);
                self.services.insert(patch.service.clone(), service);
                self.tell_service(&patch.service);
                let (key, view) = ServiceView::of(&self.services[&patch.service]).unwrap();
                Some(Change::Service(key, Box::new(view)))
            }
            Write::PatchFinalizers {
                service: key,
                version,
                finalizers,
            } => {
                let mut service = self.services.get(key).ok_or(Refused::Missing)?.clone();
                if Version::of(&service.metadata) != *version {
                    return Err(Refused::Conflict);
                }
                let version = self.version(Some(&version.uid));
                service.metadata.resource_version = Some(version.resource);
                service.metadata.finalizers = Some(finalizers.clone());
                let (_, view) = ServiceView::of(&service).unwrap();
                self.services.insert(key.clone(), service);
                if view.leaving && view.finalizers.is_empty() {
                    self.delete_service(key);
                } else {
                    self.tell_service(key);
                }
                Some(Change::Service(key.clone(), Box::new(view)))
            }
        };
        self.writes.push(write.clone());
        Ok(answer)
    }

    /// The addresses in a Service's status.
    pub(super) fn addresses(&self, key: &ServiceKey) -> Vec<String> {
        let view = self.services.get(key).and_then(ServiceView::of);
        view.map(|(_, v)| {
            v.status_addresses()
                .iter()
                .map(ToString::to_string)
                .collect()
        })
        .unwrap_or_default()
    }

    /// Status, reason and message of our condition.
    pub(super) fn condition(&self, key: &ServiceKey) -> Option<(bool, String, String)> {
        let view = ServiceView::of(self.services.get(key)?)?.1;
        let c = view
            .conditions
            .iter()
            .find(|c| c.type_ == CONDITION_LOAD_BALANCER)?;
        Some((c.status == "True", c.reason.clone(), c.message.clone()))
    }

    /// Claims of a VirtualIP, `namespace/name`.
    pub(super) fn claims(&self, address: &str) -> Option<Vec<String>> {
        let vip = self.vips.get(&virtual_ip_name(address.parse().unwrap()))?;
        Some(
            vip.spec
                .claims
                .iter()
                .map(|c| format!("{}/{}", c.namespace, c.name))
                .collect(),
        )
    }

    pub(super) fn listing(&self) -> Vec<Change> {
        let mut all: Vec<Change> = Vec::new();
        let complete = |kind, keys: Vec<(String, String)>| {
            Change::Complete(kind, keys.into_iter().collect::<BTreeSet<_>>())
        };
        let bare = |names: Vec<&String>| {
            names
                .into_iter()
                .map(|n| (String::new(), n.clone()))
                .collect()
        };
        all.extend(Kind::ALL.map(Change::Listing));
        for service in self.services.values() {
            let (key, view) = ServiceView::of(service).unwrap();
            all.push(Change::Service(key, Box::new(view)));
        }
        let keys = self
            .services
            .keys()
            .map(|k| (k.namespace.clone(), k.name.clone()))
            .collect();
        all.push(complete(Kind::Service, keys));
        all.extend(self.vips.iter().map(|(name, vip)| {
            Change::VirtualIp(parse_virtual_ip_name(name).unwrap(), Box::new(vip.clone()))
        }));
        all.push(complete(Kind::VirtualIp, bare(self.vips.keys().collect())));
        let pools = self.pools.iter();
        all.extend(pools.map(|(n, p)| Change::Pool(n.clone(), Box::new(p.clone()))));
        all.push(complete(Kind::Pool, bare(self.pools.keys().collect())));
        let ads = self.advertisements.iter();
        all.extend(ads.map(|(n, a)| Change::L2Advertisement(n.clone(), Box::new(a.clone()))));
        all.push(complete(
            Kind::L2Advertisement,
            bare(self.advertisements.keys().collect()),
        ));
        all.extend(
            self.nodes
                .iter()
                .map(|(n, v)| Change::Node(n.clone(), v.clone())),
        );
        all.push(complete(Kind::Node, bare(self.nodes.keys().collect())));
        let namespaces = self.namespaces.iter();
        all.extend(namespaces.map(|(n, l)| Change::Namespace(n.clone(), l.clone())));
        all.push(complete(
            Kind::Namespace,
            bare(self.namespaces.keys().collect()),
        ));
        all
    }
}

fn condition(ours: &OurCondition) -> Condition {
    let epoch = || serde_json::from_value::<Time>(json!("2026-01-01T00:00:00Z")).unwrap();
    Condition {
        type_: CONDITION_LOAD_BALANCER.to_owned(),
        status: if ours.met { "True" } else { "False" }.to_owned(),
        reason: ours.reason.as_str().to_owned(),
        message: ours.message.clone(),
        last_transition_time: ours.since.clone().unwrap_or_else(epoch),
        observed_generation: None,
    }
}

pub(super) fn ips(list: &str) -> Value {
    json!({ LOAD_BALANCER_IPS: list })
}

pub(super) fn in_pool(pool: &str) -> Value {
    json!({ ADDRESS_POOL: pool })
}

pub(super) fn sharing(key: &str) -> Value {
    json!({ SHARING_KEY: key })
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A cluster of three nodes with one pool of eight addresses.
pub(super) fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.put_namespace("default", &[]);
    for node in ["n1", "n2", "n3"] {
        cluster.put_node(node, json!({}));
    }
    cluster.put_advertisement("all", json!({}));
    let spec = json!({ "addresses": ["192.0.2.0/29"], "reuseDelay": "0s" });
    cluster.put_pool("main", spec);
    cluster
}

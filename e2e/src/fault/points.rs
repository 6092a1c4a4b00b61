//! Fail points: the leader is killed at the very moment at which it asks the API server for a
//! write. An admission webhook of the lab's own is asked before each write, kills, and then lets
//! the write through or not: made with nobody left to hear of it, or never made.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use bellrock_controller::webhook::{Identity, TlsListener};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::bellrock::Workload;
use crate::lab::Lab;
use crate::process::lock;
use crate::suite::NAMESPACE;
use crate::topology::Role;

/// A kind of write of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Of a VirtualIP: the first write for a new address.
    Create,
    /// Of a VirtualIP, another claim or placement.
    Change,
    /// Of a VirtualIP whose last claim goes: it rests.
    Release,
    /// Of a VirtualIP whose rest is over.
    Delete,
    /// Of a Service's status that gets an address.
    Give,
    /// Of a Service's status that gets none, or loses one.
    Take,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Create,
        Self::Change,
        Self::Release,
        Self::Delete,
        Self::Give,
        Self::Take,
    ];

    /// The kind of write that a request for admission is about.
    fn of(request: &Value) -> Option<Self> {
        let resource = request["resource"]["resource"].as_str()?;
        let object = &request["object"];
        match (resource, request["operation"].as_str()?) {
            ("virtualips", "CREATE") => Some(Self::Create),
            ("virtualips", "DELETE") => Some(Self::Delete),
            ("virtualips", "UPDATE") => {
                let claims = object["spec"]["claims"].as_array();
                let empty = claims.is_none_or(Vec::is_empty);
                Some(if empty { Self::Release } else { Self::Change })
            }
            ("services", "UPDATE") => {
                let count = |object: &Value| {
                    let ingress = object["status"]["loadBalancer"]["ingress"].as_array();
                    ingress.map_or(0, Vec::len)
                };
                let more = count(object) > count(&request["oldObject"]);
                Some(if more { Self::Give } else { Self::Take })
            }
            _ => None,
        }
    }
}

/// A kind of write, and whether it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) kind: Kind,
    pub(crate) made: bool,
}

impl Point {
    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let both = |kind| [true, false].map(|made| Self { kind, made });
        Kind::ALL.into_iter().flat_map(both)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = if self.made { "made" } else { "not made" };
        write!(f, "{:?}, {made}", self.kind)
    }
}

#[derive(Debug, Default)]
struct Armed {
    point: Option<(Point, Option<Workload>)>,
    hit: BTreeSet<Point>,
}

/// The webhook.
#[derive(Clone, Debug, Default)]
pub(crate) struct Points(Arc<Mutex<Armed>>);

impl Points {
    /// Starts the webhook beside the API server, and tells the API server of it.
    pub(crate) fn serve(lab: &Lab) -> Result<Self> {
        let points = Self::default();
        let host = lab.topology().with_role(Role::ControlPlane).next();
        let host = host.context("no control plane")?;
        let socket = lab
            .host(host)
            .run(|| std::net::TcpListener::bind("127.0.0.1:0"))??;
        socket.set_nonblocking(true)?;
        let url = format!("https://{}/", socket.local_addr()?);
        let identity = Identity::issue(&["127.0.0.1".to_owned()], Timestamp::now())?;
        let router = Router::new()
            .route("/", post(answer))
            .with_state(points.clone());
        let server = Some(identity.server()?);
        lab.spawn(async move {
            let (_kept, config) = watch::channel(server);
            let listener = tokio::net::TcpListener::from_std(socket);
            match listener.and_then(|socket| TlsListener::new(socket, config)) {
                Ok(listener) => drop(axum::serve(listener, router).await),
                Err(error) => eprintln!("the webhook of the fail points: {error}"),
            }
        });
        lab.apply(&configuration(&url, identity.certificate).to_string())?;
        Ok(points)
    }

    /// Has the next write of this kind kill `leader`.
    pub(crate) fn arm(&self, point: Point, leader: Workload) {
        lock(&self.0).point = Some((point, Some(leader)));
    }

    /// Nobody is killed any more.
    pub(crate) fn disarm(&self) {
        lock(&self.0).point = None;
    }

    /// Those that were met.
    pub(crate) fn hit(&self) -> BTreeSet<Point> {
        lock(&self.0).hit.clone()
    }
}

fn configuration(url: &str, ca: String) -> Value {
    let user = format!("system:serviceaccount:{NAMESPACE}:bellrock-controller");
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "fail-points" },
        "webhooks": [{
            "name": "fail-points.bellrock.dev", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "failurePolicy": "Ignore", "timeoutSeconds": 5,
            "clientConfig": {
                "url": url, "caBundle": k8s_openapi::ByteString(ca.into_bytes()),
            },
            "rules": [
                {
                    "apiGroups": ["bellrock.dev"], "apiVersions": ["*"],
                    "resources": ["virtualips"], "operations": ["CREATE", "UPDATE", "DELETE"],
                },
                {
                    "apiGroups": [""], "apiVersions": ["v1"],
                    "resources": ["services/status"], "operations": ["UPDATE"],
                },
            ],
            "matchConditions": [{
                "name": "controller", "expression": format!("request.userInfo.username == '{user}'"),
            }],
        }],
    })
}

async fn answer(State(points): State<Points>, Json(review): Json<Value>) -> Json<Value> {
    let request = &review["request"];
    let mut armed = lock(&points.0);
    let mut allowed = true;
    if let Some((point, leader)) = &mut armed.point
        && Kind::of(request) == Some(point.kind)
    {
        let point = *point;
        // What else was under way when it died is not made either, or is, like this one.
        allowed = point.made;
        if let Some(leader) = leader.take() {
            if let Err(error) = leader.kill9() {
                eprintln!("cannot kill {}: {error:#}", leader.name());
            }
            armed.hit.insert(point);
        }
    }
    Json(json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": { "uid": request["uid"], "allowed": allowed },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_write_is_told_from_the_others() {
        let of = |resource: &str, operation: &str, old: Value, new: Value| {
            Kind::of(&json!({
                "resource": { "resource": resource }, "operation": operation,
                "oldObject": old, "object": new,
            }))
        };
        let claims = |claims: Value| json!({ "spec": { "claims": claims } });
        let shows = |ips: Value| json!({ "status": { "loadBalancer": { "ingress": ips } } });
        let one = || json!([{}]);
        let none = || json!([]);
        for (resource, operation, old, new, kind) in [
            (
                "virtualips",
                "CREATE",
                json!(null),
                claims(one()),
                Kind::Create,
            ),
            (
                "virtualips",
                "UPDATE",
                claims(none()),
                claims(one()),
                Kind::Change,
            ),
            (
                "virtualips",
                "UPDATE",
                claims(one()),
                claims(none()),
                Kind::Release,
            ),
            (
                "virtualips",
                "UPDATE",
                claims(one()),
                json!({}),
                Kind::Release,
            ),
            (
                "virtualips",
                "DELETE",
                claims(none()),
                json!(null),
                Kind::Delete,
            ),
            (
                "services",
                "UPDATE",
                shows(none()),
                shows(one()),
                Kind::Give,
            ),
            (
                "services",
                "UPDATE",
                shows(one()),
                shows(none()),
                Kind::Take,
            ),
            ("services", "UPDATE", json!({}), json!({}), Kind::Take),
        ] {
            assert_eq!(of(resource, operation, old, new), Some(kind));
        }
        assert_eq!(of("pods", "CREATE", json!(null), json!(null)), None);
    }
}

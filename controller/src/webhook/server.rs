//! The edge of [`crate::core::Core::judge`]: AdmissionReviews in and out, over TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use bellrock_api::AddressRange;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::{Question, TlsListener};
use crate::core::{Judgement, Subject};
use crate::watch::in_full;

/// The API server's largest object, twice, and what is around it.
const MAX_BODY: usize = 8 << 20;

/// How long reading the ServiceCIDRs, and the answer of the loop, may take; less together than the
/// API server waits.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Served {
    client: Client,
    questions: mpsc::Sender<Question>,
}

/// Serves until `stop`. A port that is taken is tried again: nothing depends on the webhook.
pub(crate) async fn serve(
    listen: SocketAddr,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    client: Client,
    questions: mpsc::Sender<Question>,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/validate", post(validate))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Served { client, questions });
    let listener = loop {
        let bound = tokio::net::TcpListener::bind(listen).await;
        match bound.and_then(|socket| TlsListener::new(socket, config.clone())) {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%listen, %error, "cannot listen for the webhook; trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::warn!(%error, "the webhook has ended");
    }
}

/// Anything but an answer makes the API server go on without one.
async fn validate(
    State(served): State<Served>,
    Json(review): Json<Value>,
) -> Result<Json<Value>, StatusCode> {
    let request = &review["request"];
    let subject = match subject(request) {
        Ok(subject) => subject,
        // The schema lets nothing through that does not parse, but for what only we can tell.
        Err(error) => {
            let judgement = Judgement {
                refusals: vec![error],
                ..Judgement::default()
            };
            return Ok(Json(answer(request, &judgement)));
        }
    };
    let mut service_cidrs = Ok(Vec::new());
    if matches!(subject, Subject::Pool { new: Some(_), .. }) {
        service_cidrs = read_service_cidrs(&served.client).await;
    }
    let warning = service_cidrs.as_ref().err().map(|error| {
        format!("not compared with the cluster's ServiceCIDRs, which cannot be read: {error}")
    });
    let (answered, judgement) = oneshot::channel();
    let question = Question {
        subject,
        service_cidrs: service_cidrs.unwrap_or_default(),
        answer: answered,
    };
    let unavailable = || StatusCode::SERVICE_UNAVAILABLE;
    served
        .questions
        .try_send(question)
        .map_err(|_| unavailable())?;
    let judgement = tokio::time::timeout(PATIENCE, judgement).await;
    let Ok(Ok(Some(mut judgement))) = judgement else {
        return Err(unavailable());
    };
    judgement.warnings.extend(warning);
    if !judgement.refusals.is_empty() {
        let (kind, name) = (&request["kind"]["kind"], &request["name"]);
        let why = judgement.refusals.join("; ");
        tracing::info!(%kind, %name, why, "the webhook refuses a write");
    }
    Ok(Json(answer(request, &judgement)))
}

/// What a request is about.
fn subject(request: &Value) -> Result<Subject, String> {
    let kind = request["kind"]["kind"].as_str().unwrap_or_default();
    match kind {
        "IPAddressPool" => {
            // What is there may be of an earlier schema.
            let old = request["oldObject"].get("spec").cloned();
            let new = request["object"].get("spec").cloned();
            let new = new.map(serde_json::from_value).transpose();
            Ok(Subject::Pool {
                name: request["name"].as_str().unwrap_or_default().to_owned(),
                old: old.and_then(|spec| serde_json::from_value(spec).ok()),
                new: new.map_err(|error| format!("spec: {error}"))?,
            })
        }
        "L2Advertisement" | "BGPAdvertisement" => {
            let pools = request["object"]["spec"]["ipAddressPools"].as_array();
            let names = pools.into_iter().flatten().filter_map(Value::as_str);
            Ok(Subject::Advertisement {
                pools: names.map(str::to_owned).collect(),
            })
        }
        other => Err(format!("{other} is not judged here")),
    }
}

fn answer(request: &Value, judgement: &Judgement) -> Value {
    let mut response = json!({ "uid": request["uid"], "allowed": judgement.refusals.is_empty() });
    if !judgement.refusals.is_empty() {
        response["status"] = json!({
            "code": 422, "reason": "Invalid", "message": judgement.refusals.join("; "),
        });
    }
    if !judgement.warnings.is_empty() {
        response["warnings"] = json!(judgement.warnings);
    }
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
    })
}

/// The ServiceCIDRs; none where the API server does not have the kind (Kubernetes before 1.33).
async fn read_service_cidrs(client: &Client) -> Result<Vec<AddressRange>, String> {
    let api: Api<ServiceCIDR> = Api::all(client.clone());
    let params = ListParams::default();
    match tokio::time::timeout(PATIENCE, api.list(&params)).await {
        Ok(Ok(list)) => Ok(list
            .items
            .into_iter()
            .filter_map(|cidr| cidr.spec?.cidrs)
            .flatten()
            .filter_map(|cidr| cidr.parse().ok())
            .collect()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(Vec::new()),
        Ok(Err(error)) => Err(in_full(&error)),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_and_answered_as_the_api_server_writes_and_reads_them() {
        let spec = json!({ "addresses": ["192.0.2.0/24"] });
        let request = |kind: &str, old: Value, new: Value| {
            json!({
                "uid": "u", "kind": { "kind": kind }, "name": "main",
                "oldObject": old, "object": new,
            })
        };
        let object = json!({ "spec": spec });
        let created = subject(&request("IPAddressPool", json!(null), object.clone())).unwrap();
        let spec: Box<bellrock_api::IPAddressPoolSpec> = serde_json::from_value(spec).unwrap();
        let pool = |old: bool, new: bool| Subject::Pool {
            name: "main".to_owned(),
            old: old.then(|| spec.clone()),
            new: new.then(|| spec.clone()),
        };
        assert_eq!(created, pool(false, true));
        let deleted = subject(&request("IPAddressPool", object.clone(), json!(null))).unwrap();
        assert_eq!(deleted, pool(true, false));
        let advertisement = json!({ "spec": { "ipAddressPools": ["main"] } });
        assert_eq!(
            subject(&request("L2Advertisement", json!(null), advertisement)),
            Ok(Subject::Advertisement {
                pools: vec!["main".to_owned()]
            })
        );
        let bad = json!({ "spec": { "addresses": [], "reuseDelay": "soon" } });
        let error = subject(&request("IPAddressPool", object.clone(), bad)).unwrap_err();
        assert!(error.contains("soon"), "{error}");
        assert!(subject(&request("Service", json!(null), object.clone())).is_err());

        let request = request("IPAddressPool", json!(null), object);
        let mut judgement = Judgement::default();
        assert_eq!(
            answer(&request, &judgement)["response"],
            json!({ "uid": "u", "allowed": true })
        );
        judgement.refusals = vec!["one".into(), "two".into()];
        judgement.warnings = vec!["three".into()];
        assert_eq!(
            answer(&request, &judgement)["response"],
            json!({
                "uid": "u", "allowed": false, "warnings": ["three"],
                "status": { "code": 422, "reason": "Invalid", "message": "one; two" },
            })
        );
    }
}

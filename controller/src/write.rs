//! Writes: a [`Plan`]'s writes become API calls, and their answers become news.
//!
//! Every write is bound to the version that the decision was made on, by uid and resourceVersion;
//! creating a VirtualIP is bound to its name. So a write that comes too late is refused, never
//! wrong.

use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::annotations::{
    CONDITION_LOAD_BALANCER, CONTROLLER_NAME, RELEASED_AT, RELEASED_BY,
};
use bellrock_api::{AllocationReason, VirtualIP, VirtualIPSpec, virtual_ip_name};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::core::{OurCondition, Plan, StatusPatch, Work, Write};
use crate::election::Fence;
use crate::ipam::ServiceKey;
use crate::view::{Release, ServiceView, Version, VipView, remembers};
use crate::watch::{in_full, vip_view};
use crate::{MANAGED_BY_LABEL, MANAGED_BY_VALUE};

/// How long one call may take. A frozen API server must not hold a plan for ever.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A write that succeeded.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The VirtualIP of this address as it is now, and whether it says all that was sent
    /// ([`remembers`]).
    Vip(IpAddr, Box<VipView>, Option<bool>),
    /// The Service as it is now, and what is to be told about it.
    Service {
        key: ServiceKey,
        view: Box<ServiceView>,
        event: Option<(AllocationReason, String)>,
    },
    /// The VirtualIP of this address and uid is gone.
    Deleted(IpAddr, String),
}

/// What is there in place of the version that a refused write was bound to.
#[derive(Debug)]
pub(crate) enum Reread {
    /// This VirtualIP; a write that creates is bound to no version.
    Vip(IpAddr, Box<VipView>, Option<Version>),
    /// This Service.
    Service(ServiceKey, Box<ServiceView>, Version),
    /// Nothing: the VirtualIP of this address and uid is gone.
    Gone(IpAddr, String),
}

/// Why a plan stopped.
#[derive(Debug)]
pub(crate) struct Stop {
    /// Which call failed.
    pub(crate) call: Call,
    /// Why.
    pub(crate) error: String,
    /// The object was read anew: try again at once.
    pub(crate) reread: bool,
}

/// A kind of call, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
}

/// What became of a plan.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) work: Work,
    pub(crate) answers: Vec<(Call, Answer)>,
    /// What was read because of a refusal.
    pub(crate) reread: Option<Reread>,
    pub(crate) stop: Option<Stop>,
}

enum Failure {
    /// Another writer came first, or the object is gone: what is there is to be read.
    Stale(String),
    Other(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let text = in_full(&error);
        match error {
            // 409: the name is taken, or the version is another; 404: it is gone.
            kube::Error::Api(status) if matches!(status.code, 404 | 409) => Self::Stale(text),
            _ => Self::Other(text),
        }
    }
}

/// Makes API calls.
#[derive(Clone)]
pub(crate) struct Writer {
    client: Client,
    vips: Api<VirtualIP>,
    fence: Fence,
}

impl Writer {
    /// One that writes while `fence` is open.
    pub(crate) fn new(client: Client, fence: Fence) -> Self {
        Self {
            vips: Api::all(client.clone()),
            client,
            fence,
        }
    }

    /// Makes the writes of `plan`, in order, up to the first that fails.
    pub(crate) async fn run(self, plan: Plan) -> Outcome {
        let mut outcome = Outcome {
            work: plan.work,
            answers: Vec::new(),
            reread: None,
            stop: None,
        };
        for write in &plan.writes {
            let call = call_of(write);
            match self.make(write).await {
                Ok(answer) => outcome.answers.push((call, answer)),
                Err(failure) => {
                    let (error, stale) = match failure {
                        Failure::Stale(error) => (error, true),
                        Failure::Other(error) => (error, false),
                    };
                    if stale {
                        outcome.reread = self.read(write).await;
                    }
                    let reread = outcome.reread.is_some();
                    outcome.stop = Some(Stop {
                        call,
                        error,
                        reread,
                    });
                    break;
                }
            }
        }
        outcome
    }

    async fn make(&self, write: &Write) -> Result<Answer, Failure> {
        if !self.fence.is_open() {
            return Err(Failure::Other("the lease has run out".to_owned()));
        }
        let call = async {
            match write {
                Write::CreateVip(spec) => self.create(spec).await,
                Write::PatchVip {
                    ip,
                    version,
                    spec,
                    released,
                } => self.patch(*ip, version, spec, released.as_ref()).await,
                Write::DeleteVip { ip, version } => self.delete(*ip, version).await,
                Write::PatchStatus(patch) => self.patch_status(patch).await,
                Write::PatchFinalizers {
                    service,
                    version,
                    finalizers,
                } => self.patch_finalizers(service, version, finalizers).await,
            }
        };
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Other("the API server does not answer".to_owned())),
        }
    }

    async fn create(&self, spec: &VirtualIPSpec) -> Result<Answer, Failure> {
        let ip = spec
            .ip()
            .map_err(|error| Failure::Other(error.to_string()))?;
        let mut object = VirtualIP::new(&virtual_ip_name(ip), spec.clone());
        object.metadata.labels =
            Some([(MANAGED_BY_LABEL.to_owned(), MANAGED_BY_VALUE.to_owned())].into());
        let params = PostParams {
            field_manager: Some(CONTROLLER_NAME.to_owned()),
            ..PostParams::default()
        };
        let made = self.vips.create(&params, &object).await?;
        let kept = remembers(spec, &made.spec);
        Ok(Answer::Vip(ip, view_of(made), kept))
    }

    async fn patch(
        &self,
        ip: IpAddr,
        version: &Version,
        spec: &VirtualIPSpec,
        released: Option<&Release>,
    ) -> Result<Answer, Failure> {
        let mut metadata = bound_to(version);
        metadata["annotations"] = annotations(released);
        let body = json!({ "metadata": metadata, "spec": vip_patch(spec) });
        let made = self
            .vips
            .patch(&virtual_ip_name(ip), &params(), &Patch::Merge(&body))
            .await?;
        let kept = remembers(spec, &made.spec);
        Ok(Answer::Vip(ip, view_of(made), kept))
    }

    async fn delete(&self, ip: IpAddr, version: &Version) -> Result<Answer, Failure> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(version.uid.clone()),
                resource_version: Some(version.resource.clone()),
            }),
            ..DeleteParams::default()
        };
        self.vips.delete(&virtual_ip_name(ip), &params).await?;
        Ok(Answer::Deleted(ip, version.uid.clone()))
    }

    async fn patch_status(&self, patch: &StatusPatch) -> Result<Answer, Failure> {
        let api = Api::<Service>::namespaced(self.client.clone(), &patch.service.namespace);
        let body = status_patch(patch, Timestamp::now());
        let made = api
            .patch_status(&patch.service.name, &params(), &Patch::Merge(&body))
            .await?;
        answer_of(&made, patch.event.clone())
    }

    async fn patch_finalizers(
        &self,
        service: &ServiceKey,
        version: &Version,
        finalizers: &[String],
    ) -> Result<Answer, Failure> {
        let api = Api::<Service>::namespaced(self.client.clone(), &service.namespace);
        let mut metadata = bound_to(version);
        metadata["finalizers"] = json!(finalizers);
        let body = json!({ "metadata": metadata });
        let made = api
            .patch(&service.name, &params(), &Patch::Merge(&body))
            .await?;
        answer_of(&made, None)
    }

    /// Reads what a refused write was about.
    async fn read(&self, write: &Write) -> Option<Reread> {
        let reading = async {
            match write {
                Write::PatchStatus(patch) => {
                    self.read_service(&patch.service, &patch.version).await
                }
                Write::PatchFinalizers {
                    service, version, ..
                } => self.read_service(service, version).await,
                Write::CreateVip(_) | Write::PatchVip { .. } | Write::DeleteVip { .. } => {
                    let ip = write.vip()?;
                    let refused = match write {
                        Write::PatchVip { version, .. } | Write::DeleteVip { version, .. } => {
                            Some(version.clone())
                        }
                        Write::CreateVip(_)
                        | Write::PatchStatus(_)
                        | Write::PatchFinalizers { .. } => None,
                    };
                    match self.vips.get_opt(&virtual_ip_name(ip)).await.ok()? {
                        Some(vip) => Some(Reread::Vip(ip, view_of(vip), refused)),
                        None => refused.map(|version| Reread::Gone(ip, version.uid)),
                    }
                }
            }
        };
        tokio::time::timeout(CALL_TIMEOUT, reading)
            .await
            .ok()
            .flatten()
    }

    async fn read_service(&self, key: &ServiceKey, refused: &Version) -> Option<Reread> {
        let api = Api::<Service>::namespaced(self.client.clone(), &key.namespace);
        // Gone: the watch will say so.
        let service = api.get_opt(&key.name).await.ok()??;
        let (key, view) = ServiceView::of(&service)?;
        Some(Reread::Service(key, Box::new(view), refused.clone()))
    }
}

fn call_of(write: &Write) -> Call {
    let (verb, resource) = match write {
        Write::CreateVip(_) => ("create", "virtualips"),
        Write::PatchVip { .. } => ("patch", "virtualips"),
        Write::DeleteVip { .. } => ("delete", "virtualips"),
        Write::PatchStatus(_) => ("patch", "services/status"),
        Write::PatchFinalizers { .. } => ("patch", "services"),
    };
    Call { verb, resource }
}

fn answer_of(
    service: &Service,
    event: Option<(AllocationReason, String)>,
) -> Result<Answer, Failure> {
    match ServiceView::of(service) {
        Some((key, view)) => Ok(Answer::Service {
            key,
            view: Box::new(view),
            event,
        }),
        None => Err(Failure::Other("the answer has no name".to_owned())),
    }
}

fn view_of(vip: VirtualIP) -> Box<VipView> {
    Box::new(vip_view(&vip.metadata, vip.spec))
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(CONTROLLER_NAME.to_owned()),
        ..PatchParams::default()
    }
}

/// The metadata that makes the API server refuse a patch of any other version.
fn bound_to(version: &Version) -> Value {
    json!({ "uid": version.uid, "resourceVersion": version.resource })
}

/// The annotations of a VirtualIP that was released so, for a merge patch.
pub(crate) fn annotations(released: Option<&Release>) -> Value {
    let at = released.and_then(|release| {
        let millis = i64::try_from(release.at.as_millis()).ok()?;
        Some(Timestamp::from_millisecond(millis).ok()?.to_string())
    });
    let by = released.and_then(|release| release.by.as_ref());
    json!({ RELEASED_AT: at, RELEASED_BY: by.map(ToString::to_string) })
}

/// The merge patch that makes a VirtualIP's spec say what `spec` says: what is absent there is
/// written as null, or it would stay.
fn vip_patch(spec: &VirtualIPSpec) -> Value {
    let l2 = spec
        .l2
        .as_ref()
        .map(|l2| json!({ "node": l2.node, "successors": l2.successors }));
    json!({ "pool": spec.pool, "claims": spec.claims, "l2": l2 })
}

/// The merge patch of a Service's status. Conditions of others go along unchanged, because a
/// merge patch replaces the list.
fn status_patch(patch: &StatusPatch, now: Timestamp) -> Value {
    let mut conditions = patch.others.clone();
    conditions.extend(patch.condition.as_ref().map(|ours| condition(ours, now)));
    let mut status = json!({ "conditions": conditions });
    if let Some(ingress) = &patch.ingress {
        let ingress = (!ingress.is_empty()).then_some(ingress);
        status["loadBalancer"] = json!({ "ingress": ingress });
    }
    json!({ "metadata": bound_to(&patch.version), "status": status })
}

fn condition(ours: &OurCondition, now: Timestamp) -> Condition {
    Condition {
        type_: CONDITION_LOAD_BALANCER.to_owned(),
        status: if ours.met { "True" } else { "False" }.to_owned(),
        reason: ours.reason.as_str().to_owned(),
        message: ours.message.clone(),
        last_transition_time: ours.since.clone().unwrap_or(Time(now)),
        observed_generation: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bellrock_api::L2Placement;

    #[test]
    fn a_patch_of_a_virtual_ip_removes_what_is_no_longer_said() {
        let mut spec = VirtualIPSpec {
            address: "192.0.2.1".into(),
            ..VirtualIPSpec::default()
        };
        assert_eq!(
            vip_patch(&spec),
            json!({ "pool": null, "claims": [], "l2": null })
        );
        spec.l2 = Some(L2Placement {
            node: "n1".into(),
            successors: vec![],
        });
        assert_eq!(
            vip_patch(&spec)["l2"],
            json!({ "node": "n1", "successors": [] })
        );
    }

    #[test]
    fn a_status_patch_keeps_the_conditions_of_others_and_the_time_of_an_unchanged_status() {
        let other: Condition = serde_json::from_value(json!({
            "type": "example.com/Other", "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        let now: Timestamp = "2026-02-02T00:00:00Z".parse().unwrap();
        let mut patch = StatusPatch {
            service: ServiceKey::new("default", "web"),
            version: Version {
                uid: "u".into(),
                resource: "7".into(),
            },
            ingress: None,
            others: vec![other],
            condition: Some(OurCondition {
                met: false,
                reason: AllocationReason::PoolExhausted,
                message: "full".into(),
                since: None,
            }),
            event: None,
        };
        let body = status_patch(&patch, now);
        assert_eq!(
            body["metadata"],
            json!({ "uid": "u", "resourceVersion": "7" })
        );
        assert_eq!(body["status"].get("loadBalancer"), None);
        let conditions = body["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions[0]["type"], "example.com/Other");
        assert_eq!(conditions[1]["lastTransitionTime"], "2026-02-02T00:00:00Z");
        assert_eq!(conditions[1]["reason"], "PoolExhausted");
        patch.ingress = Some(vec![]);
        if let Some(ours) = &mut patch.condition {
            ours.since = Some(Time("2026-01-05T00:00:00Z".parse().unwrap()));
        }
        let body = status_patch(&patch, now);
        assert_eq!(body["status"]["loadBalancer"], json!({ "ingress": null }));
        assert_eq!(
            body["status"]["conditions"][1]["lastTransitionTime"],
            "2026-01-05T00:00:00Z"
        );
    }
}

//! `bellrock why`: who announces an address, and for every other node why it
//! does not.
//!
//! The reasons come from the speaker's own decision functions, run here for
//! each node; what only a speaker can know (who answers on the segment,
//! whether a session is up) comes from its SpeakerStatus.

mod segment;
mod unheld;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use bellrock_api::{
    AddressState, AnnouncementReason as Reason, NodeReason, Refusal, RefusalProtocol, SessionState,
    SpeakerStatusStatus,
};
use bellrock_forward::ServiceKey;
use bellrock_speaker::cluster::Cluster;
use bellrock_speaker::plan::{self, Settings, Verdict, Way};
use bellrock_speaker::status::only_here;
use kube::ResourceExt;
use serde::Serialize;

use self::segment::{Changed, Heard};
use crate::dump::{Dump, Source, renewed};
use crate::table::{Output, say, table, text, value};

/// Options of `bellrock why`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bellrock why svc/web                 the Service web of the namespace default
  bellrock why -n shop svc/web         the same in the namespace shop
  bellrock why 192.0.2.10              whoever holds this address
  bellrock why 192.0.2.10 -f dump.yaml from a saved dump, without a cluster")]
pub(crate) struct Args {
    /// svc/NAME, svc/NAMESPACE/NAME or an address
    #[arg(value_parser = parse)]
    target: Target,
    /// Namespace of the Service
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Format of the answer
    #[arg(short, long, default_value = "text")]
    output: Output,
    /// Explain as speakers with --ignore-exclude-label decide
    #[arg(long)]
    ignore_exclude_label: bool,
    #[command(flatten)]
    source: Source,
}

/// What the argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Address(IpAddr),
    Service {
        namespace: Option<String>,
        name: String,
    },
}

/// A speaker writes every minute; one that has not for so long, in seconds, is
/// silent.
const SILENT: i64 = 150;

/// The whole answer.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    services: Vec<ServiceExplanation>,
    /// The nodes on the segment, and who hears them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    segment: Vec<Heard>,
    /// What is wrong with the question or the cluster as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct ServiceExplanation {
    namespace: String,
    name: String,
    /// From the Service's condition, which the controller writes.
    allocation: Allocation,
    addresses: Vec<AddressExplanation>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Allocation {
    reason: String,
    message: String,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct AddressExplanation {
    address: IpAddr,
    pool: Option<String>,
    owner: Option<String>,
    since: Option<String>,
    cause: Option<String>,
    desired: Option<String>,
    nodes: Vec<NodeExplanation>,
    /// What happened to it on the segment, the latest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Changed>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct NodeExplanation {
    node: String,
    /// Its place among those that take over on the segment if the owner fails;
    /// while they do, among those that they hear.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u32>,
    l2: Outcome,
    bgp: Outcome,
}

#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    reason: &'static str,
    sentence: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

pub(crate) async fn run(args: &Args) -> Result<ExitCode> {
    let dump = args.source.load().await?;
    let settings = Settings {
        ignore_exclude_label: args.ignore_exclude_label,
        ..Settings::default()
    };
    let explanation = explain(&dump, &args.target, &args.namespace, &settings);
    match value(args.output, &explanation)? {
        Some(text) => say(&text)?,
        None => say(&render(&explanation))?,
    }
    let found = !explanation.services.is_empty();
    Ok(if found {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn parse(target: &str) -> Result<Target, String> {
    if let Ok(address) = target.parse() {
        return Ok(Target::Address(address));
    }
    let name = ["svc/", "service/", "services/"]
        .iter()
        .find_map(|prefix| target.strip_prefix(prefix))
        .unwrap_or(target);
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, name),
    };
    if name.is_empty() || name.contains('/') || namespace.as_deref() == Some("") {
        return Err("neither an address nor svc/NAME".to_owned());
    }
    Ok(Target::Service {
        namespace,
        name: name.to_owned(),
    })
}

fn explain(dump: &Dump, target: &Target, namespace: &str, settings: &Settings) -> Explanation {
    let (cluster, invalid) = dump.cluster();
    let mut notes: Vec<String> = invalid
        .into_iter()
        .map(|what| format!("refused by the speakers: {what}"))
        .collect();
    let keys: BTreeSet<ServiceKey> = match target {
        Target::Service {
            namespace: own,
            name,
        } => {
            let namespace = own.as_deref().unwrap_or(namespace);
            [ServiceKey::new(namespace, name)].into()
        }
        Target::Address(address) => match cluster.virtual_ips.get(address) {
            Some(vip) if !vip.claims.is_empty() => vip.claims.clone(),
            Some(_) | None => {
                notes.push(unheld::unclaimed(dump, *address));
                BTreeSet::new()
            }
        },
    };
    let mut services = Vec::new();
    for key in keys {
        match (explain_service(dump, &cluster, &key, settings), target) {
            (Some(service), _) => services.push(service),
            (None, Target::Address(address)) => {
                notes.push(unheld::claimed_ahead(dump, *address, &key));
            }
            (None, Target::Service { .. }) => notes.push(format!(
                "there is no Service {}/{}",
                key.namespace, key.name
            )),
        }
    }
    notes.extend(warnings(dump));
    let told = services.iter().flat_map(|service| &service.addresses);
    let mut outcomes = told.flat_map(|address| &address.nodes);
    let on_segment = outcomes.any(|node| node.l2.reason != Reason::NoAdvertisement.as_str());
    Explanation {
        segment: if on_segment {
            segment::heard(dump)
        } else {
            Vec::new()
        },
        services,
        notes,
    }
}

/// What speakers have found on their nodes that may keep traffic from arriving.
fn warnings(dump: &Dump) -> impl Iterator<Item = String> {
    dump.speakers.iter().flat_map(|speaker| {
        let node = speaker.name_any();
        let status = speaker.status.iter();
        let warnings = status
            .flat_map(|status| &status.forwarding)
            .flat_map(|f| &f.warnings);
        warnings.map(move |warning| {
            let known: Option<NodeReason> = warning.reason.parse().ok();
            let sentence = known.map(NodeReason::sentence).unwrap_or_default();
            let line = format!(
                "{node}: {} ({}): {sentence}",
                warning.reason, warning.message
            );
            line.trim_end_matches([' ', ':']).to_owned()
        })
    })
}

fn explain_service(
    dump: &Dump,
    cluster: &Cluster,
    key: &ServiceKey,
    settings: &Settings,
) -> Option<ServiceExplanation> {
    let object = dump
        .services
        .iter()
        .find(|s| s.namespace().as_deref() == Some(&key.namespace) && s.name_any() == key.name)?;
    let addresses = cluster
        .addresses(key)
        .map(|(address, vip)| {
            let record = dump
                .virtual_ips
                .iter()
                .find(|vip| vip.spec.ip() == Ok(address));
            let status = record
                .and_then(|vip| vip.status.clone())
                .unwrap_or_default();
            let owner = status.owner.clone();
            let mut nodes: Vec<NodeExplanation> = cluster
                .nodes
                .keys()
                .map(|node| {
                    let plan = plan::plan_service(cluster, node, key, settings, false);
                    let view = NodeView {
                        dump,
                        node,
                        key,
                        address,
                        owner: owner.as_deref(),
                    };
                    let outcome = |way| {
                        let verdict = plan
                            .verdicts
                            .iter()
                            .find(|verdict| verdict.way == way && verdict.address == Some(address));
                        verdict.map_or_else(
                            || Outcome::of(Reason::NoVirtualIP, String::new()),
                            |verdict| view.outcome(verdict),
                        )
                    };
                    NodeExplanation {
                        node: node.clone(),
                        rank: view.rank(),
                        l2: outcome(Way::L2),
                        bgp: outcome(Way::Bgp),
                    }
                })
                .collect();
            segment::line_up(&mut nodes, vip);
            AddressExplanation {
                address,
                pool: vip.pool.clone(),
                nodes,
                changes: segment::changes(dump, address),
                since: status.since.map(|time| time.0.to_string()),
                cause: status.cause,
                owner,
                desired: vip.desired.clone(),
            }
        })
        .collect();
    Some(ServiceExplanation {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        allocation: allocation(object),
        addresses,
    })
}

fn allocation(service: &k8s_openapi::api::core::v1::Service) -> Allocation {
    use bellrock_api::AllocationReason;
    let load_balancer =
        service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    if !load_balancer {
        let reason = AllocationReason::NotLoadBalancer;
        return Allocation {
            reason: reason.as_str().to_owned(),
            message: reason.sentence().to_owned(),
        };
    }
    let conditions = service
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let condition = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == bellrock_api::annotations::CONDITION_LOAD_BALANCER);
    match condition {
        Some(condition) => Allocation {
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        },
        None => Allocation {
            reason: "NotSeen".to_owned(),
            message: "The controller has not looked at this Service: is it running, and is the \
                      Service's loadBalancerClass one of its own?"
                .to_owned(),
        },
    }
}

/// One node, address and Service, as its speaker reports it.
struct NodeView<'a> {
    dump: &'a Dump,
    node: &'a str,
    key: &'a ServiceKey,
    address: IpAddr,
    owner: Option<&'a str>,
}

impl NodeView<'_> {
    fn status(&self) -> Option<&SpeakerStatusStatus> {
        let speaker = self
            .dump
            .speakers
            .iter()
            .find(|s| s.name_any() == self.node)?;
        speaker.status.as_ref()
    }

    fn outcome(&self, verdict: &Verdict) -> Outcome {
        if let Some(reason) = verdict.refused {
            return Outcome::of(reason, verdict.detail.clone().unwrap_or_default());
        }
        let Some(status) = self.status() else {
            let detail = "no speaker has reported from this node".to_owned();
            return Outcome::of(Reason::SpeakerSilent, detail);
        };
        if let Some(silent) = self.silent() {
            return Outcome::of(Reason::SpeakerSilent, format!("for {silent} s"));
        }
        if let Some((reason, refusal)) = self.reported(status, verdict.way) {
            return Outcome::of(reason, refusal.message.clone());
        }
        match verdict.way {
            Way::L2 if self.owner == Some(self.node) => {
                let holds = status.addresses.iter().any(|held| {
                    held.address.parse() == Ok(self.address) && held.state == AddressState::Own
                });
                let told = holds || status.addresses_omitted > 0;
                let detail = if told {
                    ""
                } else {
                    "on record; its speaker has not told yet"
                };
                Outcome::of(Reason::Announced, detail.to_owned())
            }
            Way::L2 => Outcome::of(Reason::Standby, String::new()),
            Way::Bgp => sessions(status, &verdict.peers),
        }
    }

    /// Its place in line, as its speaker says: while it is about to claim.
    fn rank(&self) -> Option<u32> {
        let addresses = &self.status()?.addresses;
        let held = addresses
            .iter()
            .find(|held| held.address.parse() == Ok(self.address))?;
        held.rank.filter(|_| self.silent().is_none())
    }

    /// For how long the speaker has not reported, in seconds, if that is longer
    /// than it should be.
    fn silent(&self) -> Option<i64> {
        let speaker = self
            .dump
            .speakers
            .iter()
            .find(|s| s.name_any() == self.node)?;
        let silent = self.dump.moment.saturating_sub(renewed(speaker)?);
        (silent > SILENT).then_some(silent)
    }

    /// What only the speaker can know. Anything else that it reported a
    /// moment ago is decided afresh here.
    fn reported<'s>(
        &self,
        status: &'s SpeakerStatusStatus,
        way: Way,
    ) -> Option<(Reason, &'s Refusal)> {
        let protocol = match way {
            Way::L2 => RefusalProtocol::L2,
            Way::Bgp => RefusalProtocol::Bgp,
        };
        status
            .refusals
            .iter()
            .filter(|refusal| {
                refusal.namespace == self.key.namespace
                    && refusal.name == self.key.name
                    && refusal.protocol == protocol
                    && refusal
                        .address
                        .as_deref()
                        .is_none_or(|a| a.parse() == Ok(self.address))
            })
            .filter_map(|refusal| Some((refusal.reason.parse().ok()?, refusal)))
            .find(|(reason, _)| only_here(*reason) && *reason != Reason::SessionDown)
    }
}

fn sessions(status: &SpeakerStatusStatus, peers: &BTreeSet<String>) -> Outcome {
    let of_service = || {
        status
            .sessions
            .iter()
            .filter(|session| peers.contains(&session.peer))
    };
    let up: Vec<&str> = of_service()
        .filter(|session| session.state == SessionState::Established)
        .map(|session| session.peer.as_str())
        .collect();
    if !up.is_empty() {
        return Outcome::of(Reason::Announced, format!("to {}", up.join(", ")));
    }
    let down: Vec<String> = of_service()
        .map(|session| {
            let error = session
                .last_error
                .as_deref()
                .unwrap_or("not established yet");
            format!("{}: {error}", session.peer)
        })
        .collect();
    Outcome::of(Reason::SessionDown, down.join("; "))
}

impl Outcome {
    fn of(reason: Reason, detail: String) -> Self {
        Self {
            reason: reason.as_str(),
            sentence: reason.sentence(),
            detail,
        }
    }

    fn short(&self) -> String {
        if self.detail.is_empty() {
            self.reason.to_owned()
        } else {
            format!("{} ({})", self.reason, self.detail)
        }
    }
}

fn render(explanation: &Explanation) -> String {
    let mut out = String::new();
    for service in &explanation.services {
        out += &format!("Service {}/{}\n", service.namespace, service.name);
        let Allocation { reason, message } = &service.allocation;
        out += &format!("  {reason}: {message}\n");
        let mut legend: BTreeSet<(&str, &str)> = BTreeSet::new();
        for address in &service.addresses {
            out += &format!("\n{}", address.address);
            if let Some(pool) = &address.pool {
                out += &format!(" from pool {pool}");
            }
            match (&address.owner, &address.since, &address.cause) {
                (Some(owner), Some(since), cause) => {
                    let cause = cause.as_deref().unwrap_or("unknown");
                    out += &format!(", answered on the segment by {owner} since {since} ({cause})");
                }
                (Some(owner), None, _) => {
                    out += &format!(", answered on the segment by {owner}");
                }
                (None, _, _) => {}
            }
            out += "\n";
            let mut rows = table(&["  NODE", "L2", "BGP"]);
            for node in &address.nodes {
                let l2 = node.l2.short();
                rows.add_row([
                    format!("  {}", node.node),
                    match node.rank {
                        Some(rank) => format!("{l2}, rank {rank}"),
                        None => l2,
                    },
                    node.bgp.short(),
                ]);
                for outcome in [&node.l2, &node.bgp] {
                    if outcome.reason != Reason::Announced.as_str() {
                        legend.insert((outcome.reason, outcome.sentence));
                    }
                }
            }
            out += &text(&rows);
            out += "\n";
            for change in &address.changes {
                out += &format!("  {change}\n");
            }
        }
        if !legend.is_empty() {
            out += "\n";
            for (reason, sentence) in legend {
                out += &format!("{reason}: {sentence}\n");
            }
        }
        out += "\n";
    }
    for heard in &explanation.segment {
        out += &format!("{heard}\n");
    }
    if !explanation.segment.is_empty() {
        out += "\n";
    }
    for note in &explanation.notes {
        out += &format!("{note}\n");
    }
    out
}

#[cfg(test)]
mod tests;

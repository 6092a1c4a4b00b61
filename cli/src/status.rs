//! `bellrock status`: nodes, BGP sessions, pools and the Services that wait.

use std::process::ExitCode;

use anyhow::Result;
use bellrock_api::{AddressState, BfdState, BfdStatus, SessionState};
use kube::ResourceExt;
use serde::Serialize;

use crate::dump::{Dump, Source, renewed};
use crate::table::{Output, say, table, text, value};

/// Options of `bellrock status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Format of the answer
    #[arg(short, long, default_value = "text")]
    output: Output,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Status {
    nodes: Vec<NodeStatus>,
    sessions: Vec<Session>,
    pools: Vec<Pool>,
    pending: Vec<Pending>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    node: String,
    /// Its version. Absent: no speaker has reported from this node.
    speaker: Option<String>,
    /// Seconds since it reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    reported: Option<i64>,
    forwarding: String,
    services: u32,
    addresses_owned: usize,
    configuration: String,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Session {
    node: String,
    peer: String,
    address: String,
    state: SessionState,
    since: String,
    prefixes: u32,
    /// Absent: BFD does not watch the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    bfd: Option<BfdStatus>,
    last_error: String,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Pool {
    pool: String,
    addresses: Vec<String>,
    assigned: i64,
    available: i64,
    /// Why it is not in force as written, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Pending {
    namespace: String,
    name: String,
    reason: String,
    message: String,
}

pub(crate) async fn run(args: &Args) -> Result<ExitCode> {
    let dump = args.source.load().await?;
    let status = summarize(&dump);
    match value(args.output, &status)? {
        Some(text) => say(&text)?,
        None => say(&render(&status))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn summarize(dump: &Dump) -> Status {
    Status {
        nodes: dump
            .nodes
            .iter()
            .map(|node| node_status(dump, node.name_any()))
            .collect(),
        sessions: sessions(dump),
        pools: dump.pools.iter().map(pool).collect(),
        pending: dump.services.iter().filter_map(pending).collect(),
    }
}

fn node_status(dump: &Dump, node: String) -> NodeStatus {
    let speaker = dump
        .speakers
        .iter()
        .find(|speaker| speaker.name_any() == node);
    let status = speaker.and_then(|speaker| speaker.status.clone());
    let reported = speaker
        .and_then(renewed)
        .map(|at| dump.moment.saturating_sub(at).max(0));
    let version = status.as_ref().map(|status| status.version.clone());
    let status = status.unwrap_or_default();
    let forwarding = status.forwarding.unwrap_or_default();
    let configuration = status.configuration.unwrap_or_default();
    NodeStatus {
        node,
        reported,
        forwarding: match (&version, forwarding.ready) {
            (None, _) => "unknown".to_owned(),
            (Some(_), true) => "ready".to_owned(),
            (Some(_), false) => forwarding.message.unwrap_or_else(|| "not ready".to_owned()),
        },
        services: forwarding.services,
        addresses_owned: status
            .addresses
            .iter()
            .filter(|address| address.state == AddressState::Own)
            .count(),
        configuration: match (&version, configuration.accepted) {
            (None, _) => "unknown".to_owned(),
            (Some(_), true) => "accepted".to_owned(),
            (Some(_), false) => configuration
                .message
                .unwrap_or_else(|| "refused".to_owned()),
        },
        speaker: version,
    }
}

/// Its state, and how soon it notices, or why it does not watch.
fn bfd(status: &BfdStatus) -> String {
    let state = format!("{:?}", status.state);
    let more = match (status.state, status.detection_time) {
        (BfdState::Up, Some(time)) => Some(format!("notices within {time} ms")),
        _ => status.error.clone().or_else(|| status.last_down.clone()),
    };
    more.map_or(state.clone(), |more| format!("{state}: {more}"))
}

fn sessions(dump: &Dump) -> Vec<Session> {
    let mut sessions: Vec<Session> = dump
        .speakers
        .iter()
        .flat_map(|speaker| {
            let node = speaker.name_any();
            let status = speaker.status.clone().unwrap_or_default();
            status.sessions.into_iter().map(move |session| Session {
                node: node.clone(),
                peer: session.peer,
                address: session.address.unwrap_or_default(),
                state: session.state,
                since: session
                    .since
                    .map(|time| time.0.to_string())
                    .unwrap_or_default(),
                prefixes: session.prefixes,
                bfd: session.bfd,
                last_error: session.last_error.unwrap_or_default(),
            })
        })
        .collect();
    sessions.sort_by(|a, b| (&a.node, &a.peer).cmp(&(&b.node, &b.peer)));
    sessions
}

fn pool(pool: &bellrock_api::IPAddressPool) -> Pool {
    let status = pool.status.clone().unwrap_or_default();
    let conditions = status.conditions.iter();
    let refused = conditions
        .filter(|c| c.type_ == bellrock_api::annotations::CONDITION_ACCEPTED && c.status != "True")
        .map(|c| format!("{}: {}", c.reason, c.message))
        .next();
    Pool {
        refused,
        pool: pool.name_any(),
        addresses: pool.spec.addresses.clone(),
        assigned: status.assigned_ipv4.saturating_add(status.assigned_ipv6),
        available: status.available_ipv4.saturating_add(status.available_ipv6),
    }
}

/// A Service that waits: of our concern, and its condition says False.
fn pending(service: &k8s_openapi::api::core::v1::Service) -> Option<Pending> {
    let condition = service
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| {
            condition.type_ == bellrock_api::annotations::CONDITION_LOAD_BALANCER
                && condition.status != "True"
        })?;
    Some(Pending {
        namespace: service.namespace().unwrap_or_default(),
        name: service.name_any(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    })
}

fn render(status: &Status) -> String {
    let mut nodes = table(&[
        "NODE",
        "SPEAKER",
        "REPORTED",
        "FORWARDING",
        "SERVICES",
        "OWNED",
        "CONFIGURATION",
    ]);
    for node in &status.nodes {
        nodes.add_row([
            node.node.clone(),
            node.speaker.clone().unwrap_or_else(|| "none".to_owned()),
            node.reported
                .map(|seconds| format!("{seconds} s ago"))
                .unwrap_or_default(),
            node.forwarding.clone(),
            node.services.to_string(),
            node.addresses_owned.to_string(),
            node.configuration.clone(),
        ]);
    }
    let mut sessions = table(&[
        "NODE",
        "PEER",
        "ADDRESS",
        "STATE",
        "SINCE",
        "PREFIXES",
        "BFD",
        "LAST ERROR",
    ]);
    for session in &status.sessions {
        sessions.add_row([
            session.node.clone(),
            session.peer.clone(),
            session.address.clone(),
            format!("{:?}", session.state),
            session.since.clone(),
            session.prefixes.to_string(),
            session.bfd.as_ref().map(bfd).unwrap_or_default(),
            session.last_error.clone(),
        ]);
    }
    let mut pools = table(&["POOL", "ADDRESSES", "ASSIGNED", "AVAILABLE", "REFUSED"]);
    for pool in &status.pools {
        pools.add_row([
            pool.pool.clone(),
            pool.addresses.join(","),
            pool.assigned.to_string(),
            pool.available.to_string(),
            pool.refused.clone().unwrap_or_default(),
        ]);
    }
    let mut pending = table(&["SERVICE WITHOUT ADDRESS", "REASON", "MESSAGE"]);
    for service in &status.pending {
        pending.add_row([
            format!("{}/{}", service.namespace, service.name),
            service.reason.clone(),
            service.message.clone(),
        ]);
    }
    let tables = [
        (nodes, status.nodes.len()),
        (sessions, status.sessions.len()),
        (pools, status.pools.len()),
        (pending, status.pending.len()),
    ];
    let parts: Vec<String> = tables
        .iter()
        .filter(|(_, rows)| *rows > 0)
        .map(|(table, _)| format!("{}\n", text(table)))
        .collect();
    parts.join("\n")
}

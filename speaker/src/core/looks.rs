//! What the loop looks at by itself, because no event tells of it: the table
//! in the kernel, routes, and what else is on the node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bellrock_api::NodeReason;
use bellrock_forward::Report;
use tokio::time::Instant;

use super::Core;
use crate::turn::Forward;
use crate::{routes, surroundings};

/// Ticks between two looks at what changes without an event: routes to peers,
/// gateways, the pictures of the segment and the sessions.
const LOOK: u32 = 5;
/// Ticks between two tries of what the kernel refused.
const RETRY: u32 = 30;
/// How long a speaker that is replaced takes to end once it has let go of its
/// addresses.
const ENDED: Duration = Duration::from_secs(5);
/// How long it is told that somebody else touched the table.
const TOUCHED: Duration = Duration::from_secs(600);

impl Core {
    pub(super) async fn tick(&mut self, ticks: u32) -> Result<()> {
        self.edges.forwarding.check_alive()?;
        if self.serves() {
            self.bgp.listen();
        }
        self.watch_peers().await;
        self.look_for_another();
        self.look_for_silence();
        self.give_chances().await?;
        self.ask_kernels();
        if self.turn.adopted() && (self.forwards() || ticks.is_multiple_of(LOOK)) {
            self.check_table().await;
        }
        if ticks.is_multiple_of(RETRY) {
            self.turn.retry();
        }
        if ticks % LOOK == 1 {
            self.look_at_routes().await;
            self.look_around().await;
            self.stale = true;
        }
        if std::mem::take(&mut self.stale) {
            self.show().await;
        }
        Ok(())
    }

    /// Until the other speaker of this node has ended, it keeps the table as its
    /// own settings have it. Not every kernel shows what it did.
    fn look_for_another(&mut self) {
        if !self.serves() {
            self.another = Some(Instant::now());
        } else if self.another.is_some_and(|last| last.elapsed() >= ENDED) {
            self.another = None;
            self.turn.doubt();
        }
    }

    /// Takes note of a table that was not as we left it, and is again.
    pub(super) fn note_touched(&mut self, report: &Report) {
        let Some(found) = report.replaced.as_ref().or(report.disturbed.as_ref()) else {
            return;
        };
        tracing::warn!(
            found,
            "the nftables table was changed by somebody else; put back"
        );
        if self.another.is_none() {
            self.touched.note();
        }
        self.stale = true;
    }

    async fn check_table(&mut self) {
        match self.edges.forwarding.check().await {
            Ok(report) => {
                if report.batches > 0 {
                    self.note_touched(&report);
                    let steps = self.turn.confirm(Forward::default(), Ok(&report.refused));
                    self.apply(steps);
                }
                // What a change failed with stays until that has gone through.
                if !self.turn.is_due() {
                    self.forwarding_error = None;
                }
            }
            Err(error) => self.forwarding_error = Some(format!("{error:#}")),
        }
        self.show_health();
    }

    async fn look_at_routes(&mut self) {
        match self.edges.routes.gateways().await {
            Ok(mut addresses) => {
                addresses.extend(self.settings.protected.iter().copied());
                self.turn.protect(addresses);
            }
            Err(error) => tracing::debug!(error = format!("{error:#}"), "gateways not known"),
        }
        self.hints.clear();
        for (name, (address, status)) in self.bgp.status() {
            let multihop = self.turn.cluster().peers.get(&name).is_some_and(|peer| {
                // Peers of our own AS may be any number of hops away.
                peer.multihop || peer.peer_asn.is_internal(peer.local_asn)
            });
            if status.state == bellrock_bgp::State::Established {
                continue;
            }
            match self.edges.routes.to(address).await {
                Ok(route) => {
                    if let Some(hint) = routes::hint(route, multihop) {
                        self.hints.insert(name, hint);
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = name, error = format!("{error:#}"), "no route known");
                }
            }
        }
    }

    pub(super) async fn look_around(&mut self) {
        let handle = Arc::clone(self.edges.l2.handle());
        let segment = tokio::task::spawn_blocking(move || handle.snapshot()).await;
        let interfaces = segment.unwrap_or_default().interfaces;
        let found = match surroundings::look(&self.edges.routes, interfaces).await {
            Ok(mut found) => {
                found.answered_before = std::mem::replace(&mut self.answers, found.health_port);
                found
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "the node's surroundings are not known");
                return;
            }
        };
        let addresses = &self.turn.cluster().virtual_ips;
        let (surroundings, mut warnings) = surroundings::judge(
            &found,
            self.edges.kube_proxy,
            self.turn.settings(),
            |address| addresses.contains_key(address),
        );
        warnings.extend(self.health_checks.taken());
        for (reason, words) in &warnings {
            if !self.warnings.iter().any(|(_, known)| known == words) {
                tracing::warn!(reason = reason.as_str(), words, "{}", reason.sentence());
            }
        }
        self.warnings = warnings;
        self.turn.surround(surroundings);
    }
}

/// How often somebody else touched the table since the start, and when last.
#[derive(Debug, Default)]
pub(super) struct Touched {
    times: u32,
    last: Option<Instant>,
}

impl Touched {
    fn note(&mut self) {
        self.times = self.times.saturating_add(1);
        self.last = Some(Instant::now());
    }

    pub(super) fn warning(&self) -> impl Iterator<Item = (NodeReason, String)> {
        let recent = self.last.is_some_and(|last| last.elapsed() < TOUCHED);
        let words = format!("times since the speaker started: {}", self.times);
        recent
            .then_some((NodeReason::TableChanged, words))
            .into_iter()
    }
}

//! The forwarder: Services in, the table in the kernel in step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use crate::content;
use crate::diff;
use crate::error::Error;
use crate::model::{Node, Service, ServiceKey};
use crate::netlink::encode::Prelude;
use crate::slots;
use crate::state::{Change, State};
use crate::table::{Done, Refusal, Table, There};

mod flows;
mod resync;
mod second;

use flows::Flows;
pub use second::SecondChance;

/// The most Services of one batch.
const BATCH_SERVICES: usize = 1_000;

/// What one call did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Services in force as they were asked for.
    pub programmed: usize,
    /// Services that are not, now or since an earlier call, with a sentence
    /// that says why. What was in force of them before stays in force.
    pub refused: BTreeMap<ServiceKey, String>,
    /// Batches that the kernel carried out.
    pub batches: usize,
    /// Elements added, those that replace others included.
    pub elements_added: usize,
    /// Elements deleted, those that are replaced included.
    pub elements_deleted: usize,
    /// Why the table was made anew, if it was: another version made the one that
    /// was there, or someone changed its chains or rules, or removed it.
    pub replaced: Option<String>,
    /// What the kernel said to a change that builds on what is not as it was
    /// left, if it did: the table was read again, and put right.
    pub disturbed: Option<String>,
    /// UDP flows that led to endpoints that are gone, which the kernel was told
    /// to forget: each goes to another endpoint with its next packet.
    pub flows_cleared: usize,
    /// Why some could not be cleared: they last until they are idle, or the
    /// next call succeeds.
    pub flows_kept: Option<String>,
}

/// Keeps the table `inet bellrock` of the network namespace in which it was
/// opened in step with the Services that it is told.
///
/// Calls block, for as long as the kernel takes; when something is deleted, for
/// some milliseconds more, until no packet is left that can miss it. Dropping it leaves the table as it is: forwarding goes on.
#[derive(Debug)]
pub struct Forwarder {
    table: Table,
    state: State,
    /// The kernel, or we ourselves, refused these as they were last asked for.
    refused: BTreeMap<Arc<ServiceKey>, String>,
    synced: Synced,
    /// What this call found wrong with the table that was there.
    replaced: Option<String>,
    /// What this call was told of a table that was not as it was left.
    disturbed: Option<String>,
    flows: Flows,
    /// A Service to which tests add what the kernel refuses.
    #[cfg(test)]
    spoiled: Option<tests::Spoiled>,
    /// What somebody else does before a commit; tests say who and when.
    #[cfg(test)]
    meddler: Option<tests::Meddler>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Synced {
    /// Nothing is known of what should be.
    Never,
    /// The kernel may not be as we think.
    Unsure,
    Yes,
}

impl Forwarder {
    /// Opens a socket in the network namespace of the calling thread. The
    /// table is neither read nor changed before [`Forwarder::sync`].
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EPERM` without `CAP_NET_ADMIN`, or where the
    /// kernel has no nftables; [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self::with(Table::open()?))
    }

    fn with(table: Table) -> Self {
        Self {
            table,
            state: State::default(),
            refused: BTreeMap::new(),
            synced: Synced::Never,
            replaced: None,
            disturbed: None,
            flows: Flows::default(),
            #[cfg(test)]
            spoiled: None,
            #[cfg(test)]
            meddler: None,
        }
    }

    /// Makes the table carry exactly these Services: reads what is there,
    /// keeps what fits, adds what is missing, and then removes what is left
    /// over. Call it once all Services are known: until then the table that
    /// an earlier process left carries on. A table of another version is
    /// replaced in one transaction.
    ///
    /// # Errors
    /// [`Error::Kernel`] and others if the table could not be read or changed
    /// for a reason that is not one Service's. Some of the content may be in
    /// force then; call again.
    pub fn sync(
        &mut self,
        node: &Node,
        services: &BTreeMap<ServiceKey, Service>,
    ) -> Result<Report, Error> {
        self.begin();
        let wanted = services
            .iter()
            .map(|(key, service)| (Arc::new(key.clone()), Arc::new(service.clone())))
            .collect();
        self.resync(node, &wanted)?;
        Ok(self.report())
    }

    /// Changes some Services; `None` takes one away. Work is in proportion to
    /// the change. If the table turns out not to be as it was left, this
    /// becomes a [`Forwarder::sync`].
    ///
    /// # Errors
    /// [`Error::NotSynced`] before the first [`Forwarder::sync`]; otherwise as
    /// there. Call again with the same changes.
    pub fn apply(
        &mut self,
        changes: BTreeMap<ServiceKey, Option<Service>>,
    ) -> Result<Report, Error> {
        self.begin();
        let changes: Vec<Change> = changes
            .into_iter()
            .map(|(key, service)| (Arc::new(key), service.map(Arc::new)))
            .collect();
        match self.synced {
            Synced::Never => return Err(Error::NotSynced),
            Synced::Unsure => self.resync_with(&changes)?,
            Synced::Yes => {
                if let Err(refusal) = self.change(&changes) {
                    self.doubt(refusal);
                    self.resync_with(&changes)?;
                    // What is refused now, too, had nobody else to blame.
                    if changes
                        .iter()
                        .any(|(key, _)| self.refused.contains_key(key))
                    {
                        self.disturbed = None;
                    }
                }
            }
        }
        Ok(self.report())
    }

    /// Changes what the node contributes. New pod networks cost one small
    /// batch; new addresses for node ports are in the content of every Service
    /// that has node ports.
    ///
    /// # Errors
    /// As [`Forwarder::apply`].
    pub fn set_node(&mut self, node: &Node) -> Result<Report, Error> {
        self.begin();
        match self.synced {
            Synced::Never => return Err(Error::NotSynced),
            Synced::Yes if *node == *self.state.node() => {}
            Synced::Yes if node.node_port_addresses == self.state.node().node_port_addresses => {
                let mut ops = Vec::new();
                self.state.change_networks(node.clone(), &mut ops);
                if let Err(refusal) = self.commit(Prelude::None, ops) {
                    self.doubt(refusal);
                    self.resync(node, &self.state.services().clone())?;
                }
            }
            Synced::Yes => {
                let there = There::Ours(self.state.whole());
                let services = self.state.services().clone();
                if let Err(refusal) = self.bring(there, node, &services, None) {
                    self.doubt(refusal);
                    self.resync(node, &services)?;
                }
            }
            Synced::Unsure => self.resync(node, &self.state.services().clone())?,
        }
        Ok(self.report())
    }

    /// Whether someone else has changed or removed the table since the last
    /// call, or may have; then [`Forwarder::sync`], or [`Forwarder::apply`]
    /// without a change, puts it right. Cheap enough for four times a second:
    /// two small messages while no one changes any ruleset in the namespace, a
    /// look at the table's chains and rules otherwise. Changes of elements are
    /// seen where the kernel counts them (Linux 6.17); where it does not, the
    /// table has to be read a minute after somebody has changed some ruleset,
    /// and for changes that leave the count alone after ten minutes. Also looks
    /// once more at the UDP flows of what changed a second ago.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the table could not be read.
    pub fn check(&mut self) -> Result<bool, Error> {
        match self.synced {
            Synced::Never => Ok(false),
            Synced::Unsure => Ok(true),
            Synced::Yes => {
                let now = now();
                self.clear_flows(now);
                let changed = self.table.changed_by_other(now)?;
                if changed {
                    self.synced = Synced::Unsure;
                }
                Ok(changed)
            }
        }
    }

    /// Removes all tables, and with them all forwarding: for uninstalling. Open
    /// connections go on where another nat chain, such as kube-proxy's, keeps
    /// the kernel translating; with the last one they end.
    ///
    /// # Errors
    /// As [`Forwarder::open`].
    pub fn remove_table() -> Result<(), Error> {
        Table::open()?.remove()
    }

    fn begin(&mut self) {
        self.table.done = Done::default();
        self.replaced = None;
        self.disturbed = None;
        self.flows.cleared = 0;
    }

    /// Ends a call: clears flows, and says what was done.
    fn report(&mut self) -> Report {
        self.clear_flows(now());
        let refused: BTreeMap<ServiceKey, String> = self
            .state
            .conflicts()
            .map(|(key, why)| (key.clone(), why))
            .chain(
                self.refused
                    .iter()
                    .map(|(key, why)| (key.as_ref().clone(), why.clone())),
            )
            .collect();
        let services = self.state.services();
        Report {
            programmed: services.len()
                - refused
                    .keys()
                    .filter(|key| services.contains_key(*key))
                    .count(),
            refused,
            batches: self.table.done.batches,
            elements_added: self.table.done.added,
            elements_deleted: self.table.done.deleted,
            replaced: self.replaced.clone(),
            disturbed: self.disturbed.clone(),
            flows_cleared: self.flows.cleared,
            flows_kept: self.flows.trouble.clone(),
        }
    }

    /// Carries out changes on a table that is as we left it.
    fn change(&mut self, changes: &[Change]) -> Result<(), Refusal> {
        let limit = self.table.batch_limit();
        let mut rest = changes;
        while !rest.is_empty() {
            let mut weight = 0;
            let count = rest
                .iter()
                .take(BATCH_SERVICES)
                .take_while(|(key, service)| {
                    weight += [service.as_ref(), self.state.services().get(key)]
                        .into_iter()
                        .flatten()
                        .map(|service| size(self.state.node(), service))
                        .sum::<usize>();
                    weight <= limit
                })
                .count()
                .max(1);
            let (chunk, after) = rest.split_at(count);
            rest = after;
            self.change_chunk(chunk.to_vec())?;
        }
        Ok(())
    }

    fn change_chunk(&mut self, mut chunk: Vec<Change>) -> Result<(), Refusal> {
        chunk.retain(|(key, service)| {
            let why = service
                .as_ref()
                .and_then(|s| content::refusal(self.state.node(), s));
            match why {
                Some(why) => {
                    self.refused.insert(key.clone(), sentence(&why));
                    false
                }
                None => true,
            }
        });
        loop {
            let mut ops = Vec::new();
            let undo = self.state.change(&chunk, &mut ops);
            match self.commit(Prelude::None, ops) {
                Ok(()) => {
                    for (key, _) in &chunk {
                        self.refused.remove(key);
                    }
                    return Ok(());
                }
                // A Service that did not change, or a table that did: only the
                // whole helps.
                Err(Refusal::Services {
                    sentences,
                    stale: false,
                    ..
                }) if chunk.iter().any(|(key, _)| sentences.contains_key(key)) => {
                    self.state.change(&undo, &mut Vec::new());
                    chunk.retain(|(key, _)| !sentences.contains_key(key));
                    for (key, why) in sentences {
                        warn!(service = %key, why, "Service refused");
                        self.refused.insert(key, why);
                    }
                }
                Err(refusal) => {
                    self.state.change(&undo, &mut Vec::new());
                    return Err(refusal);
                }
            }
        }
    }

    fn commit(&mut self, prelude: Prelude, ops: Vec<diff::Op>) -> Result<(), Refusal> {
        #[cfg(test)]
        let ops = tests::spoil(ops, self.spoiled.as_ref());
        #[cfg(test)]
        tests::meddle(&mut self.meddler);
        self.flows.note(&ops);
        let result = self.table.commit(prelude, ops);
        // A plain refusal leaves the table as it was.
        let unsure = !matches!(result, Ok(()) | Err(Refusal::Services { stale: false, .. }));
        if unsure && self.synced == Synced::Yes {
            self.synced = Synced::Unsure;
        }
        result
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the driver: here the clock comes in"
)]
fn now() -> Instant {
    Instant::now()
}

fn sentence(why: &str) -> String {
    let mut sentence = why.to_owned();
    if let Some(first) = sentence.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    sentence.push('.');
    sentence
}

/// About how many operations a Service is, at the most, but for chains.
fn size(node: &Node, service: &Service) -> usize {
    let ranges = service.source_ranges.len();
    content::fronts(node, service)
        .map(|(_, port, _)| {
            let slots: usize = [&port.endpoints, &port.local_endpoints]
                .map(|list| match list.len() {
                    count @ 2.. if service.affinity => slots::count(count),
                    count => count,
                })
                .iter()
                .sum();
            4 + slots + ranges
        })
        .sum()
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble;

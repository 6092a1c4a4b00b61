//! From whatever is in the kernel to exactly what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{info, warn};

use super::{BATCH_SERVICES, Forwarder, Synced, now, sentence, size};
use crate::content::{self, Entry, Value};
use crate::diff;
use crate::error::Error;
use crate::model::{Node, Service, ServiceKey};
use crate::netlink::encode::Prelude;
use crate::state::{self, Change, State};
use crate::table::{Refusal, There};

/// How often a table is read within one call, if somebody else changes it
/// while it is made right.
const READS: u32 = 4;

impl Forwarder {
    /// Reads the table and makes it carry what is in force and these changes.
    pub(super) fn resync_with(&mut self, changes: &[Change]) -> Result<(), Error> {
        let mut wanted = self.state.services().clone();
        for (key, service) in changes {
            match service {
                Some(service) => wanted.insert(key.clone(), service.clone()),
                None => wanted.remove(key),
            };
        }
        self.resync(&self.state.node().clone(), &wanted)
    }

    /// Takes note of why the table has to be read again.
    pub(super) fn doubt(&mut self, refusal: Refusal) {
        let error = refusal.into_error();
        warn!(%error, "the table may not be as it was left: reading it again");
        if error.may_be_others_doing() {
            self.disturbed = Some(error.to_string());
        }
        self.synced = Synced::Unsure;
    }

    /// Reads the table and makes it carry exactly these Services. Somebody may
    /// change it meanwhile: then it is read once more.
    pub(super) fn resync(
        &mut self,
        node: &Node,
        wanted: &BTreeMap<Arc<ServiceKey>, Arc<Service>>,
    ) -> Result<(), Error> {
        let first = self.synced == Synced::Never;
        if self.synced == Synced::Yes {
            self.synced = Synced::Unsure;
        }
        for reads in 1.. {
            let there = self.table.read()?;
            match self.bring(there, node, wanted, Some(reads)) {
                Ok(()) => break,
                Err(refusal) if refusal.is_stale() && reads < READS => {
                    let error = refusal.into_error();
                    warn!(%error, "the table changed meanwhile: reading it again");
                }
                Err(refusal) => return Err(refusal.into_error()),
            }
        }
        self.table.restore_chances(now());
        if first {
            self.flows.note_for_later(self.state.udp_fronts(), now());
        }
        Ok(())
    }

    /// From what is there to exactly these Services. `read`: how often it has
    /// been read; not at all, if it is only believed to be there.
    pub(super) fn bring(
        &mut self,
        there: There,
        node: &Node,
        wanted: &BTreeMap<Arc<ServiceKey>, Arc<Service>>,
        read: Option<u32>,
    ) -> Result<(), Refusal> {
        let (prelude, mut there) = match there {
            There::Nothing => {
                if self.synced != Synced::Never {
                    self.replaced = Some("someone removed it".to_owned());
                }
                (Prelude::Create, BTreeMap::new())
            }
            There::Ours(content) => (Prelude::None, content),
            There::Different(why) => {
                info!(why, "replacing the table");
                self.replaced = Some(why);
                (Prelude::Replace, BTreeMap::new())
            }
        };
        let mut refused = BTreeMap::new();
        for (key, service) in wanted {
            if let Some(why) = content::refusal(node, service) {
                refused.insert(key.clone(), sentence(&why));
            }
        }
        // In place of a Service that is refused, what was in force of it.
        let before = self.state.services().clone();
        let fall_back = |key: &Arc<ServiceKey>, tried: &Arc<Service>| {
            before
                .get(key)
                .filter(|old| **old != *tried && content::refusal(node, old).is_none())
                .cloned()
        };
        let unusable: BTreeSet<Arc<ServiceKey>> = refused.keys().cloned().collect();
        let wanted = wanted.iter().filter_map(|(key, service)| {
            let service = if unusable.contains(key) {
                fall_back(key, service)?
            } else {
                service.clone()
            };
            Some((key.clone(), service))
        });

        let mut state = State::new(node.clone());
        let mut ops = Vec::new();
        let networks = |entry: &Entry| matches!(entry, Entry::Network(..));
        let old: Vec<(Entry, Value)> = there.extract_if(.., |entry, _| networks(entry)).collect();
        diff::of_node(&old, &content::of_node(node), &mut ops);
        if prelude != Prelude::Replace {
            self.commit(prelude, std::mem::take(&mut ops))?;
        }

        // Batches of their own, unless the table is replaced: then all at once.
        let limit = self.table.batch_limit();
        let mut wanted = wanted.peekable();
        let mut first = true;
        while wanted.peek().is_some() || (first && prelude == Prelude::Replace) {
            first = false;
            let mut chunk: Vec<Change> = Vec::new();
            let mut weight = 0;
            while let Some((key, service)) = wanted.next_if(|(_, service)| {
                prelude == Prelude::Replace
                    || chunk.is_empty()
                    || (chunk.len() < BATCH_SERVICES && weight + size(node, service) <= limit)
            }) {
                weight += size(node, &service);
                chunk.push((key, Some(service)));
            }
            loop {
                let mut all = ops.clone();
                let undo = state.change(&chunk, &mut all);
                let (all, used) = state::adopt(all, &there);
                let prelude = if prelude == Prelude::Replace {
                    prelude
                } else {
                    Prelude::None
                };
                match self.commit(prelude, all) {
                    Ok(()) => {
                        for entry in used {
                            there.remove(&entry);
                        }
                        break;
                    }
                    Err(Refusal::Services {
                        sentences, stale, ..
                    }) if chunk.iter().any(|(k, _)| sentences.contains_key(k))
                        && (!stale || self.is_their_own(read)?) =>
                    {
                        state.change(&undo, &mut Vec::new());
                        for (key, why) in sentences {
                            warn!(service = %key, why, "Service refused");
                            let tried = chunk
                                .extract_if(.., |(k, _)| *k == key)
                                .find_map(|(_, service)| service);
                            let old = tried.and_then(|tried| fall_back(&key, &tried));
                            if let Some(old) = old
                                && !refused.contains_key(&key)
                            {
                                chunk.push((key.clone(), Some(old)));
                            }
                            refused.insert(key, why);
                        }
                    }
                    Err(other) => return Err(other),
                }
            }
        }
        self.commit(Prelude::None, state::leftovers(&there))?;
        self.state = state;
        self.refused = refused;
        self.synced = Synced::Yes;
        Ok(())
    }

    /// Whether what the kernel refuses is the Services' own, though it may come
    /// from a table that somebody else has changed: not if somebody has since it
    /// was read; in the end, if it still is there.
    fn is_their_own(&mut self, read: Option<u32>) -> Result<bool, Error> {
        let Some(reads) = read else {
            return Ok(false);
        };
        Ok(self.table.is_untouched()? || (reads == READS && self.table.is_there()?))
    }
}

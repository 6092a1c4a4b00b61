//! Second chances in force.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::warn;

use super::Table;
use crate::error::Error;
use crate::family::Family;
use crate::netlink::abi::{
    ATTR_CHAIN_TABLE, ATTR_LIST_SET, ATTR_LIST_TABLE, ATTR_RULE_TABLE, ATTR_TABLE_NAME, Kind,
};
use crate::netlink::decode::Reader;
use crate::netlink::encode::Batch;
use crate::netlink::layout::TABLE;
use crate::netlink::second::{self, Chance};

/// An element may end this much earlier or later than we think.
const LEEWAY: Duration = Duration::from_secs(1);

/// What is in force, and until when.
pub(crate) type Chances = BTreeMap<Chance, Instant>;

fn of(chances: &Chances, family: Family, now: Instant) -> Vec<(Chance, Duration)> {
    chances
        .iter()
        .filter(|(chance, _)| Family::of(chance.address) == family)
        .filter_map(|(chance, until)| {
            let left = until.checked_duration_since(now)?;
            (!left.is_zero()).then_some((*chance, left))
        })
        .collect()
}

impl Table {
    /// Puts these second chances in place of those in force. An element that
    /// stays keeps its end. Where the kernel refuses, a family has none.
    pub(crate) fn set_chances(&mut self, wanted: Chances, now: Instant) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.chances, wanted);
        let mut result = Ok(());
        for family in Family::ALL {
            let old = of(&before, family, now);
            let new = of(&self.chances, family, now);
            let there: BTreeSet<Chance> = old.iter().map(|(chance, _)| *chance).collect();
            let wanted: BTreeSet<Chance> = new.iter().map(|(chance, _)| *chance).collect();
            if there == wanted {
                continue;
            }
            let changed = if there.is_empty() || wanted.is_empty() {
                false
            } else {
                let gone: Vec<Chance> = there.difference(&wanted).copied().collect();
                let come: Vec<_> = new
                    .iter()
                    .filter(|(chance, _)| !there.contains(chance))
                    .copied()
                    .collect();
                // Refused where one has just ended, or someone changed them.
                self.send_other(&second::update(family, &gone, &come))
                    .is_ok()
            };
            if !changed && let Err(error) = self.replace_chances(family, &new) {
                self.give_up(family);
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Until when one is in force.
    pub(crate) fn chance_until(&self, chance: &Chance) -> Option<Instant> {
        self.chances.get(chance).copied()
    }

    /// Brings back what someone else changed of the second chances, and
    /// removes what an earlier process left. They are an extra: where that
    /// fails, forwarding does not.
    pub(crate) fn restore_chances(&mut self, now: Instant) {
        for family in Family::ALL {
            let wanted = of(&self.chances, family, now);
            let result = match self.chances_differ(family, now) {
                Ok(true) => self.replace_chances(family, &wanted),
                other => other.map(|_| ()),
            };
            if let Err(error) = result {
                warn!(%error, "second chances given up");
                self.give_up(family);
            }
        }
    }

    /// Leaves a family without second chances.
    fn give_up(&mut self, family: Family) {
        self.chances
            .retain(|chance, _| Family::of(chance.address) != family);
        if let Err(error) = self.replace_chances(family, &[]) {
            warn!(%error, "second chances that are there end by themselves");
        }
    }

    /// Removes all second chances.
    pub(crate) fn remove_chances(&mut self) -> Result<(), Error> {
        self.chances.clear();
        for family in Family::ALL {
            self.replace_chances(family, &[])?;
        }
        Ok(())
    }

    fn replace_chances(
        &mut self,
        family: Family,
        chances: &[(Chance, Duration)],
    ) -> Result<(), Error> {
        let there = self.has_chances(family)?;
        if !there && chances.is_empty() {
            return Ok(());
        }
        self.send_other(&second::replace(family, there, chances))
    }

    fn has_chances(&mut self, family: Family) -> Result<bool, Error> {
        let table = self.socket.ask_any(
            (Kind::GetTable.number(), family.nfproto()),
            false,
            |w| w.string(ATTR_TABLE_NAME, TABLE),
            || (),
            |(), _| (),
        )?;
        Ok(table.is_some())
    }

    /// Whether a family's second chances are not as we left them.
    pub(crate) fn chances_differ(&mut self, family: Family, now: Instant) -> Result<bool, Error> {
        let ours = self
            .chances
            .iter()
            .filter(|(chance, _)| Family::of(chance.address) == family);
        let may: BTreeSet<Chance> = ours.clone().map(|(chance, _)| *chance).collect();
        let must: Vec<Chance> = ours
            .filter(|(_, until)| **until > now + LEEWAY)
            .map(|(chance, _)| *chance)
            .collect();
        if !self.has_chances(family)? {
            return Ok(!must.is_empty());
        }
        if may.is_empty() {
            return Ok(true);
        }
        let number = family.nfproto();
        let head = self.socket.ask_any(
            (Kind::GetChain.number(), number),
            true,
            |w| w.string(ATTR_CHAIN_TABLE, TABLE),
            Reader::default,
            Reader::chain,
        )?;
        let rules = self.socket.ask_any(
            (Kind::GetRule.number(), number),
            true,
            |w| w.string(ATTR_RULE_TABLE, TABLE),
            Reader::default,
            Reader::rule,
        )?;
        let mut reader = Reader::default();
        for part in [head, rules].into_iter().flatten() {
            reader.merge(part);
        }
        let elements = self.socket.ask_any(
            (Kind::GetSetElem.number(), number),
            true,
            |w| {
                w.string(ATTR_LIST_TABLE, TABLE);
                w.string(ATTR_LIST_SET, second::PREVIOUS);
            },
            Vec::new,
            |all, message| all.extend(second::read(family, message)),
        )?;
        let elements = elements.unwrap_or_default();
        let there: Option<BTreeSet<Chance>> = elements.into_iter().collect();
        Ok(!reader.has_only(second::chain(family))
            || there.is_none_or(|there| {
                !there.is_subset(&may) || must.iter().any(|chance| !there.contains(chance))
            }))
    }

    /// Sends a batch that does not concern the table itself.
    fn send_other(&mut self, batch: &Batch) -> Result<(), Error> {
        let failures = self.socket.batch(batch)?;
        match failures.first() {
            Some(failure) => Err(Error::Kernel {
                doing: "change second chances",
                errno: failure.errno,
                text: failure.text.clone(),
            }),
            None => self.follow_generation(),
        }
    }
}

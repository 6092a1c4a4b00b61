//! The table in the kernel: read whole, checked cheaply, changed by batches.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::content::{Entry, Value};
use crate::diff::{Action, Op, When};
use crate::errno;
use crate::error::Error;
use crate::family::Family;
use crate::netlink::abi::{
    ATTR_CHAIN_TABLE, ATTR_LIST_SET, ATTR_LIST_TABLE, ATTR_RULE_TABLE, ATTR_SET_TABLE,
    ATTR_TABLE_NAME, Kind,
};
use crate::netlink::decode::{Reader, is_our_layout};
use crate::netlink::encode::{self, Prelude};
use crate::netlink::layout::TABLE;
use crate::netlink::sets::Set;
use crate::netlink::socket::Socket;

mod flows;
mod refusal;
mod second;

pub(crate) use flows::Ends;
pub(crate) use refusal::Refusal;
use refusal::{refusal, stale};
pub(crate) use second::Chances;

/// How long a packet can be between two lookups, amply, while its processor
/// runs: the measure where the kernel does not tell.
const PACKET_AGE: Duration = Duration::from_millis(20);

/// When to read all, after somebody has changed some ruleset: only values of
/// elements may be another's, as the kernel counts elements;
const COUNTED: Duration = Duration::from_secs(600);
/// or any element, where it does not.
const UNCOUNTED: Duration = Duration::from_secs(60);

/// What the kernel has under our name.
#[derive(Debug)]
pub(crate) enum There {
    /// No table.
    Nothing,
    /// A table that this version would not have written, and why.
    Different(String),
    /// Our table, with this content.
    Ours(BTreeMap<Entry, Value>),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) batches: usize,
    pub(crate) added: usize,
    pub(crate) deleted: usize,
}

/// The table, through a socket.
#[derive(Debug)]
pub(crate) struct Table {
    socket: Socket,
    /// The ruleset's generation after our last look or change.
    generation: u32,
    /// Entries in each set, as we left them.
    sizes: BTreeMap<Set, usize>,
    chances: Chances,
    /// Somebody has changed some ruleset since the table was read: when to read
    /// it again.
    read_due: Option<Instant>,
    pub(crate) done: Done,
}

impl Table {
    pub(crate) fn open() -> Result<Self, Error> {
        Self::with(Socket::open()?)
    }

    pub(crate) fn with(socket: Socket) -> Result<Self, Error> {
        let mut table = Self {
            socket,
            generation: 0,
            sizes: BTreeMap::new(),
            chances: Chances::new(),
            read_due: None,
            done: Done::default(),
        };
        // Says at once if we may not.
        table.read_generation()?;
        Ok(table)
    }

    #[cfg(test)]
    pub(crate) fn clog(&mut self) {
        self.socket.clog();
    }

    /// Operations that surely fit one batch.
    pub(crate) fn batch_limit(&self) -> usize {
        /// Bytes that an operation takes, a replacement of IPv6 amply.
        const OP: usize = 256;
        (self.socket.capacity() / OP).min(50_000)
    }

    fn read_generation(&mut self) -> Result<u32, Error> {
        let generation = self.socket.ask(
            Kind::GetGen,
            false,
            |_| {},
            || None,
            |all, message| *all = message.attributes().be32(1).or(*all),
        )?;
        generation.flatten().ok_or(Error::NoAnswer)
    }

    /// Takes note of the generation after a batch of our own, which is one
    /// more than the last: if it is not, someone else has changed something
    /// in between, and the next [`Table::changed_by_other`] looks.
    fn follow_generation(&mut self) -> Result<(), Error> {
        let generation = self.read_generation()?;
        if generation == next_generation(self.generation) {
            self.generation = generation;
        }
        Ok(())
    }

    /// Whether nobody has changed any ruleset since the table was read, or
    /// changed by us.
    pub(crate) fn is_untouched(&mut self) -> Result<bool, Error> {
        Ok(self.read_generation()? == self.generation)
    }

    /// Whether a table that this version made is there.
    pub(crate) fn is_there(&mut self) -> Result<bool, Error> {
        Ok(self.read_comment()? == Some(true))
    }

    /// Whether the table is one that this version made; none if there is none.
    fn read_comment(&mut self) -> Result<Option<bool>, Error> {
        self.socket.ask(
            Kind::GetTable,
            false,
            |w| w.string(ATTR_TABLE_NAME, TABLE),
            || false,
            |ours, message| *ours |= is_our_layout(message),
        )
    }

    /// Reads all of the table.
    pub(crate) fn read(&mut self) -> Result<There, Error> {
        self.read_due = None;
        self.generation = self.read_generation()?;
        let there = match self.read_structure()? {
            None => There::Nothing,
            Some(Err(why)) => There::Different(why),
            Some(Ok(mut reader)) => {
                let mut whole = true;
                for set in Set::all() {
                    whole &= self.read_elements(set, &mut reader)?;
                }
                match reader.finish() {
                    Ok(content) if whole => There::Ours(content),
                    Ok(_) => There::Different("it changed while it was read".to_owned()),
                    Err(why) => There::Different(why),
                }
            }
        };
        self.sizes.clear();
        if let There::Ours(content) = &there {
            for entry in content.keys() {
                *self.sizes.entry(Set::of(entry)).or_default() += 1;
            }
        }
        Ok(there)
    }

    fn read_structure(&mut self) -> Result<Option<Result<Reader, String>>, Error> {
        match self.read_comment()? {
            None => return Ok(None),
            Some(false) => {
                return Ok(Some(Err("another version made it".to_owned())));
            }
            Some(true) => {}
        }
        let mut reader = Reader::default();
        let sets = self.socket.ask(
            Kind::GetSet,
            true,
            |w| w.string(ATTR_SET_TABLE, TABLE),
            Reader::default,
            Reader::set,
        )?;
        let chains = self.socket.ask(
            Kind::GetChain,
            true,
            |w| w.string(ATTR_CHAIN_TABLE, TABLE),
            Reader::default,
            Reader::chain,
        )?;
        let rules = self.socket.ask(
            Kind::GetRule,
            true,
            |w| w.string(ATTR_RULE_TABLE, TABLE),
            Reader::default,
            Reader::rule,
        )?;
        for part in [sets, chains, rules].into_iter().flatten() {
            reader.merge(part);
        }
        Ok(Some(Ok(reader)))
    }

    /// Reads a set's elements; `false` if there is no such set.
    fn read_elements(&mut self, set: Set, reader: &mut Reader) -> Result<bool, Error> {
        let part = self.socket.ask(
            Kind::GetSetElem,
            true,
            |w| {
                w.string(ATTR_LIST_TABLE, TABLE);
                w.string(ATTR_LIST_SET, set.name());
            },
            Reader::default,
            |part, message| part.elements(set, message),
        )?;
        Ok(match part {
            Some(part) => {
                reader.merge(part);
                true
            }
            None => false,
        })
    }

    /// Whether someone else changed the table, or may have, so that it has to
    /// be read. Costs two messages while no one has changed any ruleset. A
    /// change of an element's value alone does not show, nor does any change of
    /// elements before Linux 6.17, which counts them: some time after somebody
    /// has changed some ruleset the table has to be read for that.
    pub(crate) fn changed_by_other(&mut self, now: Instant) -> Result<bool, Error> {
        let generation = self.read_generation()?;
        if generation == self.generation {
            return Ok(self.read_due.is_some_and(|due| now >= due));
        }
        for family in Family::ALL {
            if self.chances_differ(family, now)? {
                return Ok(true);
            }
        }
        let mut counted = true;
        let changed = match self.read_structure()? {
            None | Some(Err(_)) => true,
            Some(Ok(mut reader)) => {
                // Few and small; and of ranges the kernel's count is its own.
                for set in Set::all().filter(|set| set.is_interval() || *set == Set::ChainOf) {
                    self.read_elements(set, &mut reader)?;
                }
                let mut sizes = reader.sizes().clone();
                counted = !sizes.is_empty();
                match reader.finish() {
                    Ok(content) => {
                        sizes.retain(|set, _| !set.is_interval());
                        for entry in content.keys().filter(|e| matches!(e, Entry::Network(..))) {
                            *sizes.entry(Set::of(entry)).or_default() += 1;
                        }
                        sizes
                            .iter()
                            .any(|(set, size)| self.sizes.get(set).unwrap_or(&0) != size)
                            || self.sizes.iter().any(|(set, size)| {
                                set.is_interval() && sizes.get(set).unwrap_or(&0) != size
                            })
                    }
                    Err(_) => true,
                }
            }
        };
        if changed {
            return Ok(true);
        }
        self.generation = generation;
        let patience = if counted { COUNTED } else { UNCOUNTED };
        let due = *self.read_due.get_or_insert(now + patience);
        Ok(now >= due)
    }

    /// Removes the table and all second chances, if there are any. The kernel
    /// takes a table's hooks away one by one: a packet that still met the guard
    /// and no translation would be refused, though kube-proxy has a way for it.
    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        self.remove_chances()?;
        match self.read()? {
            There::Nothing => return Ok(()),
            There::Ours(_) => {
                // If somebody touches the table just now, it goes all the same.
                if self.send(Prelude::StepAside, &[]).is_ok() {
                    wait_for_packets();
                }
            }
            There::Different(_) => {}
        }
        match self.send(Prelude::Remove, &[]) {
            Ok(()) => Ok(()),
            Err(Refusal::Stale(Error::Kernel {
                errno: errno::ENOENT,
                ..
            })) => Ok(()),
            Err(refusal) => Err(refusal.into_error()),
        }
    }

    /// Carries out operations: new chains, what is for now, what is for later;
    /// each in a batch of its own, when no packet is left that began before
    /// the last. A new table is made in one batch, with its chains.
    pub(crate) fn commit(&mut self, prelude: Prelude, ops: Vec<Op>) -> Result<(), Refusal> {
        let (mut first, mut now, mut later) = (Vec::new(), Vec::new(), Vec::new());
        for op in ops {
            match op.when() {
                When::First if prelude == Prelude::None => first.push(op),
                When::First | When::Now => now.push(op),
                When::Later => later.push(op),
            }
        }
        if !first.is_empty() {
            self.send(Prelude::None, &first)?;
            wait_for_packets();
        }
        if !now.is_empty() || prelude != Prelude::None {
            self.send(prelude, &now).or_else(|refusal| {
                self.take_back(first)?;
                Err(refusal)
            })?;
        }
        if prelude == Prelude::Replace {
            wait_for_packets();
            self.send(Prelude::Reject, &[]).map_err(stale)?;
        }
        self.commit_later(&later)
    }

    /// Removes what a first batch has made, when the next was refused.
    fn take_back(&mut self, mut made: Vec<Op>) -> Result<(), Refusal> {
        if made.is_empty() {
            return Ok(());
        }
        for op in &mut made {
            op.action = Action::Delete(When::Later);
        }
        self.send(Prelude::None, &made).map_err(stale)
    }

    /// Carries out what must wait, in batches of a bounded size.
    fn commit_later(&mut self, later: &[Op]) -> Result<(), Refusal> {
        if later.is_empty() {
            return Ok(());
        }
        wait_for_packets();
        let mut later: Vec<Op> = later.to_vec();
        // What leads to others goes before them, also across batches.
        later.sort_by_key(|op| op.step());
        for part in later.chunks(self.batch_limit()) {
            self.send(Prelude::None, part).map_err(stale)?;
        }
        Ok(())
    }

    fn send(&mut self, prelude: Prelude, ops: &[Op]) -> Result<(), Refusal> {
        let batch = encode::batch(prelude, ops, false);
        let failures = self.socket.batch(&batch)?;
        if !failures.is_empty() {
            let marks = encode::batch(prelude, ops, true).marks;
            return Err(refusal(&failures, &marks));
        }
        self.done.batches += 1;
        self.done.added += batch.added;
        self.done.deleted += batch.deleted;
        if matches!(
            prelude,
            Prelude::Create | Prelude::Replace | Prelude::Remove
        ) {
            self.sizes.clear();
        }
        for op in ops {
            let size = self.sizes.entry(Set::of(&op.entry)).or_default();
            match op.action {
                Action::Add(_) => *size += 1,
                Action::Delete(_) => *size = size.saturating_sub(1),
                Action::Replace(_) => {}
            }
        }
        Ok(self.follow_generation()?)
    }
}

/// The kernel counts commits, and leaves out 0.
fn next_generation(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// Lets the packets pass that began before the last batch. Some are between
/// two lookups, and their processor may be a virtual one that does not run.
fn wait_for_packets() {
    if bellrock_sys::grace::wait_for_grace_period().is_err() {
        #[allow(
            clippy::disallowed_methods,
            reason = "the driver waits for packets to pass"
        )]
        std::thread::sleep(PACKET_AGE);
    }
}

//! From one content to the next: the operations, and the order that keeps
//! every packet whole. Pure.
//!
//! A packet reads several maps, and a commit can fall between two of its
//! lookups. So a change is up to three batches, with a pause between them in
//! which all packets pass that began before:
//!
//! - **First**: new chains. A packet that began before the commit sees no
//!   rules in them, but would see elements that lead to them.
//! - **Now**: everything new, classes, and fronts that are no longer served.
//!   Whichever lookup the commit falls before, a packet finds what the old
//!   class led to, or what the new one does.
//! - **Later**, when no packet is left that saw the old classes: what nothing
//!   leads to any more.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::content::{Content, Entry, Front, Value};
use crate::model::{Protocol, ServiceKey};

/// What to do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Add(Value),
    /// Delete and add in one batch: nftables does not change a value.
    Replace(Value),
    Delete(When),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum When {
    First,
    Now,
    Later,
}

/// One operation, with the Service that causes it; none for the node's own
/// and for leftovers.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) entry: Entry,
    pub(crate) action: Action,
    pub(crate) owner: Option<Arc<ServiceKey>>,
}

impl Op {
    pub(crate) fn when(&self) -> When {
        match self.action {
            Action::Add(_) if matches!(self.entry, Entry::Chain(_)) => When::First,
            Action::Add(_) | Action::Replace(_) => When::Now,
            Action::Delete(when) => when,
        }
    }

    /// The UDP front whose open flows may lead elsewhere after this: the
    /// kernel remembers for each where it went.
    pub(crate) fn redirects(&self) -> Option<Front> {
        let front = match (self.entry, self.action) {
            (Entry::Ours(front), _)
            | (Entry::Endpoint(front, ..), Action::Replace(_) | Action::Delete(_)) => front,
            _ => return None,
        };
        (front.protocol == Protocol::Udp).then_some(front)
    }

    /// The place in its batch.
    pub(crate) fn step(&self) -> u8 {
        if matches!(self.action, Action::Delete(_)) {
            match (self.when(), self.entry) {
                // Ranges must not overlap, not even for one message.
                (When::First | When::Now, Entry::Source(..) | Entry::Network(..)) => 0,
                (When::First | When::Now, _) => 9,
                (When::Later, Entry::Ours(_)) => 0,
                (When::Later, Entry::Class(_) | Entry::ClassInside(_)) => 1,
                (When::Later, Entry::Endpoint(..) | Entry::Source(..)) => 2,
                (
                    When::Later,
                    Entry::Address(_) | Entry::Local(_) | Entry::Hairpin(_) | Entry::Network(..),
                ) => 3,
                (When::Later, Entry::Chain(_)) => 4,
            }
        } else {
            match self.entry {
                Entry::Chain(_) => 1,
                Entry::Address(_) | Entry::Local(_) | Entry::Hairpin(_) | Entry::Network(..) => 2,
                Entry::Source(..) => 3,
                Entry::Endpoint(..) => 4,
                Entry::Class(_) | Entry::ClassInside(_) => 5,
                Entry::Ours(_) => 6,
            }
        }
    }
}

/// Content with the owner of each entry, in the order of entries.
pub(crate) type Owned = Vec<(Entry, Value, Arc<ServiceKey>)>;

/// The operations from one content to another, for entries with one owner.
pub(crate) fn owned(old: &Owned, new: &Owned, ops: &mut Vec<Op>) {
    let new_all = new;
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    // The last range that the front keeps or gets.
    let mut kept = None;
    let mut leaving: Vec<Op> = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((was, ..)), Some((is, ..))) => was.cmp(is),
        };
        let was = if order.is_le() { old.next() } else { None };
        let is = if order.is_ge() { new.next() } else { None };
        if let Some((Entry::Source(front, _), ..)) = is {
            kept = Some(*front);
            for op in &mut leaving {
                if matches!(op.entry, Entry::Source(f, _) if f == *front) {
                    op.action = Action::Delete(When::Now);
                }
            }
        }
        match (was, is) {
            (Some((entry, was, owner)), None) => {
                if let Entry::ClassInside(front) = entry
                    && let Some(class) = class_of(new_all, *front)
                    && class != *was
                {
                    ops.push(follow(*entry, class, owner.clone()));
                }
                let action = Action::Delete(match entry {
                    Entry::Ours(_) => When::Now,
                    // Ranges of a front that stays restricted change in one
                    // step, since old and new may overlap.
                    Entry::Source(front, _) if kept == Some(*front) => When::Now,
                    _ => When::Later,
                });
                let op = Op {
                    entry: *entry,
                    action,
                    owner: Some(owner.clone()),
                };
                if matches!(entry, Entry::Source(..)) {
                    &mut leaving
                } else {
                    &mut *ops
                }
                .push(op);
            }
            (None, Some((entry, value, owner))) => ops.push(Op {
                entry: *entry,
                action: Action::Add(*value),
                owner: Some(owner.clone()),
            }),
            (Some((entry, was, _)), Some((_, is, owner))) if was != is => ops.push(Op {
                entry: *entry,
                action: Action::Replace(*is),
                owner: Some(owner.clone()),
            }),
            _ => {}
        }
    }
    ops.append(&mut leaving);
}

/// A front that loses its class for callers inside keeps serving them: first
/// that class becomes the same as the other, then it goes. A packet between
/// the two lookups finds one or the other.
pub(crate) fn follow(entry: Entry, class: Value, owner: Arc<ServiceKey>) -> Op {
    Op {
        entry,
        action: Action::Replace(class),
        owner: Some(owner),
    }
}

fn class_of(content: &Owned, front: Front) -> Option<Value> {
    let at = content
        .binary_search_by_key(&Entry::Class(front), |(entry, ..)| *entry)
        .ok()?;
    content.get(at).map(|(_, value, _)| *value)
}

/// The operations from one content of the node to another. Its networks are
/// ranges that may overlap those before: all in one step.
pub(crate) fn of_node(old: &Content, new: &Content, ops: &mut Vec<Op>) {
    for (entry, _) in old.iter().filter(|e| new.binary_search(e).is_err()) {
        ops.push(Op {
            entry: *entry,
            action: Action::Delete(When::Now),
            owner: None,
        });
    }
    for (entry, value) in new.iter().filter(|e| old.binary_search(e).is_err()) {
        ops.push(Op {
            entry: *entry,
            action: Action::Add(*value),
            owner: None,
        });
    }
}

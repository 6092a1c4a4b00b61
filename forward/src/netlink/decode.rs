//! Messages from the kernel: acknowledgements and errors, and dumps of our
//! table, compared with what this version would write.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::content::{Class, Entry, Front, Range, Value};
use crate::family::{Family, predecessor};
use crate::model::Protocol;
use crate::netlink::abi::{
    ATTR_CHAIN_NAME, ATTR_CHAIN_TABLE, ATTR_ELEM_DATA, ATTR_ELEM_FLAGS, ATTR_ELEM_KEY,
    ATTR_ELEM_KEY_END, ATTR_LIST_ELEMENTS, ATTR_RULE_CHAIN, ATTR_RULE_EXPRESSIONS, ATTR_SET_COUNT,
    ATTR_SET_NAME, ATTR_SET_TABLE, ATTR_TABLE_USERDATA, DATA_VALUE, INTERVAL_END, LIST_ELEM,
};
use crate::netlink::encode::{
    layout_comment, with_class, write_chain, write_expressions, write_set,
};
use crate::netlink::layout::{CHAINS, Chain, TABLE};
use crate::netlink::sets::Set;
use crate::netlink::wire::{Attributes, Message, Writer, contained, string};

/// What the kernel says to one message of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) sequence: u32,
    /// 0 is an acknowledgement.
    pub(crate) errno: i32,
    /// The kernel's own words, where it has some.
    pub(crate) text: Option<String>,
    /// Where in our message the attribute that it minds starts.
    pub(crate) offset: Option<usize>,
}

/// Reads an `NLMSG_ERROR` message.
pub(crate) fn answer(message: &Message<'_>) -> Option<Answer> {
    const CAPPED: u16 = 0x100;
    const ACK_TLVS: u16 = 0x200;
    let errno = i32::from_ne_bytes(*message.payload.first_chunk()?);
    let original = message.payload.get(4..)?;
    let mut answer = Answer {
        sequence: message.sequence,
        errno: errno.checked_neg()?,
        text: None,
        offset: None,
    };
    if message.flags & ACK_TLVS != 0 {
        let skip = if message.flags & CAPPED != 0 || errno == 0 {
            16
        } else {
            let length = u32::from_ne_bytes(*original.first_chunk()?);
            usize::try_from(length).ok()?.next_multiple_of(4)
        };
        let details = Attributes(original.get(skip..).unwrap_or_default());
        answer.text = details.string(1).map(str::to_owned);
        answer.offset = details
            .get(2)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes)
            .and_then(|offset| usize::try_from(offset).ok());
    }
    Some(answer)
}

/// Whether the table's comment is the one that this version writes.
pub(crate) fn is_our_layout(table: &Message<'_>) -> bool {
    // Type, length, text with its zero.
    table
        .attributes()
        .get(ATTR_TABLE_USERDATA)
        .and_then(|bytes| bytes.get(2..))
        .and_then(string)
        .is_some_and(|comment| comment == layout_comment())
}

/// Collects dumps of the table and judges them.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    sets: BTreeSet<Set>,
    chains: BTreeSet<String>,
    /// Bytes of each chain's attributes.
    heads: BTreeMap<String, Vec<u8>>,
    /// Bytes of each chain's rules' expression lists, in order.
    rules: BTreeMap<String, Vec<Vec<u8>>>,
    content: BTreeMap<Entry, Value>,
    /// Starts and ends of ranges, per set.
    ends: BTreeMap<Set, Vec<(IpAddr, bool)>>,
    /// How many elements each set has, where the kernel says.
    sizes: BTreeMap<Set, usize>,
    differs: Option<String>,
}

impl Reader {
    fn differs(&mut self, what: impl FnOnce() -> String) {
        if self.differs.is_none() {
            self.differs = Some(what());
        }
    }

    /// Adds what another reader has read.
    pub(crate) fn merge(&mut self, mut other: Self) {
        self.sets.append(&mut other.sets);
        self.chains.append(&mut other.chains);
        self.heads.append(&mut other.heads);
        self.rules.append(&mut other.rules);
        self.content.append(&mut other.content);
        self.ends.append(&mut other.ends);
        self.sizes.append(&mut other.sizes);
        self.differs = self.differs.take().or(other.differs);
    }

    /// How many elements the kernel counts in each set; nothing before Linux
    /// 6.17.
    pub(crate) fn sizes(&self) -> &BTreeMap<Set, usize> {
        &self.sizes
    }

    /// Takes a message of a set dump.
    pub(crate) fn set(&mut self, message: &Message<'_>) {
        let attributes = message.attributes();
        if attributes.string(ATTR_SET_TABLE) != Some(TABLE) {
            return;
        }
        let name = attributes.string(ATTR_SET_NAME).unwrap_or_default();
        let Some(set) = Set::named(name) else {
            return self.differs(|| format!("it has a set {name:?} that is not ours"));
        };
        let mut ours = Writer::default();
        write_set(&mut ours, set);
        if !contained(ours.bytes(), attributes.0) {
            self.differs(|| format!("its set {name:?} has another type"));
        }
        self.sets.insert(set);
        if let Some(size) = attributes.be32(ATTR_SET_COUNT) {
            self.sizes
                .insert(set, usize::try_from(size).unwrap_or(usize::MAX));
        }
    }

    /// Takes a message of a chain dump.
    pub(crate) fn chain(&mut self, message: &Message<'_>) {
        let attributes = message.attributes();
        if attributes.string(ATTR_CHAIN_TABLE) != Some(TABLE) {
            return;
        }
        let name = attributes
            .string(ATTR_CHAIN_NAME)
            .unwrap_or_default()
            .to_owned();
        self.heads.insert(name.clone(), attributes.0.to_vec());
        self.chains.insert(name);
    }

    /// Takes a message of a rule dump.
    pub(crate) fn rule(&mut self, message: &Message<'_>) {
        let attributes = message.attributes();
        if attributes.string(ATTR_CHAIN_TABLE) != Some(TABLE) {
            return;
        }
        let chain = attributes.string(ATTR_RULE_CHAIN).unwrap_or_default();
        let expressions = attributes.get(ATTR_RULE_EXPRESSIONS).unwrap_or_default();
        self.rules
            .entry(chain.to_owned())
            .or_default()
            .push(expressions.to_vec());
    }

    /// Takes a message of a dump of a set's elements.
    pub(crate) fn elements(&mut self, set: Set, message: &Message<'_>) {
        let Some(list) = message.attributes().nested(ATTR_LIST_ELEMENTS) else {
            return;
        };
        for (_, element) in list.filter(|(kind, _)| *kind == LIST_ELEM) {
            if self.element(set, &Attributes(element)).is_none() {
                self.differs(|| {
                    format!("its set {:?} has an element that is not ours", set.name())
                });
            }
        }
    }

    fn element(&mut self, set: Set, element: &Attributes<'_>) -> Option<()> {
        let key = element.nested(ATTR_ELEM_KEY)?.get(DATA_VALUE)?;
        let data = || element.nested(ATTR_ELEM_DATA)?.get(DATA_VALUE);
        let (entry, value) = match set {
            Set::Ours(f) => (Entry::Ours(front(f, key)?.0), Value::Member),
            Set::Class(f) => (Entry::Class(front(f, key)?.0), class(data()?)?),
            Set::ClassInside(f) => (Entry::ClassInside(front(f, key)?.0), class(data()?)?),
            Set::Endpoints(f, scope) => {
                let (front, slot) = front(f, key)?;
                let slot = u32::from_ne_bytes(slot.try_into().ok()?);
                let (address, port) = data()?.split_at_checked(f.width().into())?;
                let port = u16::from_be_bytes(*port.first_chunk()?);
                (
                    Entry::Endpoint(front, scope, slot),
                    Value::Endpoint(f.address(address)?, port),
                )
            }
            Set::Sources(f) => {
                let (one, first) = front(f, key)?;
                let end = element.nested(ATTR_ELEM_KEY_END)?.get(DATA_VALUE)?;
                let (two, last) = front(f, end)?;
                let range = Range {
                    first: f.address(first)?,
                    last: f.address(last)?,
                };
                if one != two {
                    return None;
                }
                (Entry::Source(one, range), Value::Member)
            }
            Set::Addresses(f) => (Entry::Address(f.address(key)?), Value::Member),
            Set::Local(f) => (Entry::Local(f.address(key)?), Value::Member),
            Set::Hairpin(f) => {
                let (from, to) = key.split_at_checked(f.width().into())?;
                if from != to {
                    return None;
                }
                (Entry::Hairpin(f.address(from)?), Value::Member)
            }
            Set::Networks(f, _) => {
                let end = element
                    .be32(ATTR_ELEM_FLAGS)
                    .is_some_and(|f| f & INTERVAL_END != 0);
                self.ends
                    .entry(set)
                    .or_default()
                    .push((f.address(key)?, end));
                return Some(());
            }
            Set::ChainOf => {
                let class = Class::from_id(u32::from_ne_bytes(key.try_into().ok()?))?;
                let verdict = element.nested(ATTR_ELEM_DATA)?.nested(2)?;
                if verdict.string(2) != Some(class.chain().as_str()) {
                    return None;
                }
                (Entry::Chain(class), Value::Member)
            }
        };
        self.content.insert(entry, value);
        Some(())
    }

    /// The table's content, or what in the table is not as this version
    /// writes it.
    pub(crate) fn finish(mut self) -> Result<BTreeMap<Entry, Value>, String> {
        for (set, ends) in std::mem::take(&mut self.ends) {
            self.ranges(set, ends);
        }
        if let Some(set) = Set::all().find(|set| !self.sets.contains(set)) {
            self.differs(|| format!("it has no set {:?}", set.name()));
        }
        for chain in CHAINS.iter() {
            self.compare(chain);
        }
        let classes: Vec<Class> = self
            .content
            .keys()
            .filter_map(|entry| match entry {
                Entry::Chain(class) => Some(*class),
                _ => None,
            })
            .collect();
        for class in classes {
            with_class(class, |chain| self.compare(chain));
        }
        if let Some(name) = self.chains.pop_first() {
            self.differs(|| format!("it has a chain {name:?} that is not ours"));
        }
        match self.differs {
            Some(what) => Err(what),
            None => Ok(self.content),
        }
    }

    /// Whether this chain, and no other, was read, with its rules.
    pub(crate) fn has_only(mut self, chain: &Chain<'_>) -> bool {
        self.compare(chain);
        self.chains.is_empty() && self.differs.is_none()
    }

    fn compare(&mut self, chain: &Chain<'_>) {
        let name = chain.name;
        if !self.chains.remove(name) {
            return self.differs(|| format!("it has no chain {name:?}"));
        }
        let mut head = Writer::default();
        write_chain(&mut head, chain);
        let rules = self.rules.remove(name).unwrap_or_default();
        let same = self
            .heads
            .get(name)
            .is_some_and(|h| contained(head.bytes(), h))
            && rules.len() == chain.rules.len()
            && chain.rules.iter().zip(&rules).all(|(ours, theirs)| {
                let mut w = Writer::default();
                write_expressions(&mut w, ours);
                Attributes(w.bytes())
                    .get(ATTR_RULE_EXPRESSIONS)
                    .is_some_and(|list| {
                        Attributes(theirs).count() == ours.len() && contained(list, theirs)
                    })
            });
        if !same {
            self.differs(|| format!("its chain {name:?} has other rules"));
        }
    }

    fn ranges(&mut self, set: Set, mut ends: Vec<(IpAddr, bool)>) {
        let Set::Networks(family, network) = set else {
            return;
        };
        // An end that is also the next start comes first.
        ends.sort_unstable_by_key(|(address, end)| (*address, !end));
        let mut open: Option<IpAddr> = None;
        for (address, end) in ends {
            let last = if end { predecessor(address) } else { None };
            match (open.take(), last) {
                (Some(first), Some(last)) => {
                    let entry = Entry::Network(network, Range { first, last });
                    self.content.insert(entry, Value::Member);
                }
                (None, None) if !end => open = Some(address),
                // An end without a start, as `nft` writes before the first.
                (None, _) => {}
                (Some(_), None) => self.differs(|| format!("its set {:?} overlaps", set.name())),
            }
        }
        if let Some(first) = open {
            let entry = Entry::Network(
                network,
                Range {
                    first,
                    last: family.last(),
                },
            );
            self.content.insert(entry, Value::Member);
        }
    }
}

/// Reads a front from the start of a key; returns it with the key's rest.
fn front(family: Family, key: &[u8]) -> Option<(Front, &[u8])> {
    let (address, rest) = key.split_at_checked(family.width().into())?;
    let ([protocol, ..], rest) = rest.split_first_chunk::<4>()?;
    let ([high, low, ..], rest) = rest.split_first_chunk::<4>()?;
    let front = Front {
        address: family.address(address)?,
        protocol: Protocol::from_number(*protocol)?,
        port: u16::from_be_bytes([*high, *low]),
    };
    Some((front, rest))
}

fn class(data: &[u8]) -> Option<Value> {
    Class::from_id(u32::from_ne_bytes(data.try_into().ok()?)).map(Value::Class)
}

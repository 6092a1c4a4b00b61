//! Messages to the kernel: a batch from operations, and requests.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, LazyLock};

use crate::content::{Class, Entry, Value};
use crate::diff::{Action, Op};
use crate::family::{push_address, successor};
use crate::model::ServiceKey;
use crate::netlink::abi::{
    ATTR_CHAIN_HOOK, ATTR_CHAIN_NAME, ATTR_CHAIN_POLICY, ATTR_CHAIN_TABLE, ATTR_CHAIN_TYPE,
    ATTR_ELEM_DATA, ATTR_ELEM_FLAGS, ATTR_ELEM_KEY, ATTR_ELEM_KEY_END, ATTR_LIST_ELEMENTS,
    ATTR_LIST_SET, ATTR_LIST_TABLE, ATTR_RULE_CHAIN, ATTR_RULE_EXPRESSIONS, ATTR_RULE_TABLE,
    ATTR_SET_DATA_LEN, ATTR_SET_DATA_TYPE, ATTR_SET_DESC, ATTR_SET_FLAGS, ATTR_SET_ID,
    ATTR_SET_KEY_LEN, ATTR_SET_KEY_TYPE, ATTR_SET_NAME, ATTR_SET_TABLE, ATTR_TABLE_NAME,
    ATTR_TABLE_USERDATA, BATCH_BEGIN, BATCH_END, DATA_TYPE_VERDICT, DATA_VALUE, INTERVAL_END, Kind,
    LIST_ELEM, SUBSYSTEM,
};
use crate::netlink::expr::{Expr, Verdict, write_verdict};
use crate::netlink::layout::{self, CHAINS, Chain, INET, TABLE, UNSERVED};
use crate::netlink::sets::{Data, Set};
use crate::netlink::wire::{
    HEADER, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, Open, Writer,
};

/// The most bytes of one element list; the length of an attribute ends at
/// 64 KiB.
const LIST_BYTES: usize = 48 * 1024;

/// What comes before the operations of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prelude {
    /// Nothing: the table is there.
    None,
    /// The table is made.
    Create,
    /// The table that is there goes, and a new one is made, which drops what
    /// is unserved: a packet can pass both tables' chains just when neither
    /// translates it, and a client had better repeat it than give up.
    Replace,
    /// The table learns to reject.
    Reject,
    /// The table takes and refuses nothing any longer, and still masquerades
    /// what it took.
    StepAside,
    /// The table that is there goes, and nothing comes.
    Remove,
}

/// Where in a batch a Service's content is.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) sequence: u32,
    /// Offset in the message, whose header counts.
    pub(crate) offset: usize,
    pub(crate) owner: Option<Arc<ServiceKey>>,
    pub(crate) entry: Entry,
}

/// A batch ready to send.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// The sequence number of the one message that is acknowledged.
    pub(crate) acknowledged: u32,
    pub(crate) added: usize,
    pub(crate) deleted: usize,
    /// Filled on request only.
    pub(crate) marks: Vec<Mark>,
}

pub(super) struct Encoder {
    pub(super) w: Writer,
    /// The family of the table.
    family: u8,
    sequence: u32,
    /// Where the last message starts.
    last: usize,
    last_flags: u16,
    marks: Option<Vec<Mark>>,
    added: usize,
    deleted: usize,
}

/// Encodes one batch. `mark` asks for [`Batch::marks`]; the bytes are the same.
pub(crate) fn batch(prelude: Prelude, ops: &[Op], mark: bool) -> Batch {
    let mut e = Encoder::begin(INET, 4096 + ops.len() * 112);
    e.marks = mark.then(Vec::new);
    if matches!(prelude, Prelude::Replace | Prelude::Remove) {
        e.delete_table();
    }
    if matches!(prelude, Prelude::Create | Prelude::Replace) {
        e.table(&layout_comment());
        e.layout(prelude == Prelude::Create);
    }
    if prelude == Prelude::Reject {
        e.reject();
    }
    if prelude == Prelude::StepAside {
        e.step_aside();
    }
    e.ops(ops);
    e.finish()
}

impl Encoder {
    fn new(family: u8, capacity: usize) -> Self {
        Self {
            w: Writer::with_capacity(capacity),
            family,
            sequence: 1,
            last: 0,
            last_flags: 0,
            marks: None,
            added: 0,
            deleted: 0,
        }
    }

    /// Starts a batch for a table of this family.
    pub(super) fn begin(family: u8, capacity: usize) -> Self {
        let mut e = Self::new(family, capacity);
        let begin = e.w.message(BATCH_BEGIN, NLM_F_REQUEST, 0, 0, SUBSYSTEM);
        e.w.end_message(begin);
        e
    }

    pub(super) fn finish(mut self) -> Batch {
        let acknowledged = self.acknowledge();
        let end = self.w.message(BATCH_END, NLM_F_REQUEST, 0, 0, SUBSYSTEM);
        self.w.end_message(end);
        Batch {
            bytes: self.w.into_bytes(),
            acknowledged,
            added: self.added,
            deleted: self.deleted,
            marks: self.marks.unwrap_or_default(),
        }
    }

    pub(super) fn start(&mut self, kind: Kind, flags: u16) -> Open {
        self.sequence += 1;
        self.last = self.w.len();
        self.last_flags = NLM_F_REQUEST | flags;
        self.w.message(
            kind.number(),
            self.last_flags,
            self.sequence,
            self.family,
            0,
        )
    }

    /// Asks for an answer to the last message: one is enough to know that all
    /// was done, and without it nothing would say so.
    fn acknowledge(&mut self) -> u32 {
        self.w.set_flags(self.last, self.last_flags | NLM_F_ACK);
        self.sequence
    }

    pub(super) fn table(&mut self, comment: &str) {
        let m = self.start(Kind::NewTable, NLM_F_CREATE);
        self.w.string(ATTR_TABLE_NAME, TABLE);
        self.w.with(ATTR_TABLE_USERDATA, |bytes| {
            // nft's own format: type (comment), length, text with its zero.
            bytes.push(0);
            bytes.push(u8::try_from(comment.len() + 1).unwrap_or(u8::MAX));
            bytes.extend_from_slice(comment.as_bytes());
            bytes.push(0);
        });
        self.w.end_message(m);
    }

    pub(super) fn delete_table(&mut self) {
        let m = self.start(Kind::DelTable, 0);
        self.w.string(ATTR_TABLE_NAME, TABLE);
        self.w.end_message(m);
    }

    fn layout(&mut self, rejects: bool) {
        for (id, set) in (1..).zip(Set::all()) {
            self.set(set, id);
        }
        for chain in CHAINS.iter() {
            self.chain(chain);
        }
        for chain in CHAINS.iter() {
            if rejects || chain.name != UNSERVED {
                self.rules(chain);
            } else if let Some(last) = chain.rules.last() {
                self.rule(chain.name, last, NLM_F_APPEND);
            }
        }
    }

    /// Puts what [`Encoder::layout`] left out before what it did not.
    fn reject(&mut self) {
        for chain in CHAINS.iter().filter(|chain| chain.name == UNSERVED) {
            for rule in chain.rules.iter().rev().skip(1) {
                self.rule(chain.name, rule, 0);
            }
        }
    }

    /// Empties the chains that packets come to before they are routed.
    fn step_aside(&mut self) {
        for chain in CHAINS.iter().filter(|chain| chain.is_early()) {
            let m = self.start(Kind::DelRule, 0);
            self.w.string(ATTR_RULE_TABLE, TABLE);
            self.w.string(ATTR_RULE_CHAIN, chain.name);
            self.w.end_message(m);
        }
    }

    fn set(&mut self, set: Set, id: u32) {
        let m = self.start(Kind::NewSet, NLM_F_CREATE);
        write_set(&mut self.w, set);
        self.w.be32(ATTR_SET_ID, id);
        self.w.end_message(m);
    }

    pub(super) fn chain(&mut self, chain: &Chain<'_>) {
        let m = self.start(Kind::NewChain, NLM_F_CREATE);
        write_chain(&mut self.w, chain);
        self.w.end_message(m);
    }

    pub(super) fn rules(&mut self, chain: &Chain<'_>) {
        for rule in &chain.rules {
            self.rule(chain.name, rule, NLM_F_APPEND);
        }
    }

    /// A rule at the end of its chain, or at its head without
    /// [`NLM_F_APPEND`].
    fn rule(&mut self, chain: &str, rule: &[Expr<'_>], place: u16) {
        let m = self.start(Kind::NewRule, NLM_F_CREATE | place);
        self.w.string(ATTR_RULE_TABLE, TABLE);
        self.w.string(ATTR_RULE_CHAIN, chain);
        write_expressions(&mut self.w, rule);
        self.w.end_message(m);
    }

    fn ops(&mut self, ops: &[Op]) {
        let mut order: Vec<(u8, Set, Verb, &Op)> = Vec::with_capacity(ops.len());
        for op in ops {
            let (step, set) = (op.step(), Set::of(&op.entry));
            match op.action {
                Action::Add(_) => order.push((step, set, Verb::Add, op)),
                Action::Delete(_) => order.push((step, set, Verb::Delete, op)),
                Action::Replace(_) => {
                    order.push((step, set, Verb::Delete, op));
                    order.push((step, set, Verb::Add, op));
                }
            }
        }
        order.sort_by_key(|(step, set, verb, op)| (*step, *set, *verb, op.entry));
        for group in order.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2)) {
            let Some((_, set, verb, _)) = group.first() else {
                continue;
            };
            let ops = group.iter().map(|(_, _, _, op)| *op);
            if *set == Set::ChainOf {
                self.classes(*verb, &ops.collect::<Vec<_>>());
            } else {
                self.elements(*set, *verb, ops);
            }
        }
    }

    /// Chains of classes, with their rules and their elements of `chain_of`.
    fn classes(&mut self, verb: Verb, ops: &[&Op]) {
        let class = |op: &Op| match op.entry {
            Entry::Chain(class) => Some(class),
            _ => None,
        };
        if verb == Verb::Delete {
            self.elements(Set::ChainOf, verb, ops.iter().copied());
            // Those with source ranges go to those without.
            for op in ops.iter().rev() {
                let Some(class) = class(op) else { continue };
                let m = self.start(Kind::DelChain, 0);
                self.mark(op);
                self.w.string(ATTR_CHAIN_TABLE, TABLE);
                self.w.string(ATTR_CHAIN_NAME, &class.chain());
                self.w.end_message(m);
            }
            return;
        }
        for op in ops {
            let Some(class) = class(op) else { continue };
            with_class(class, |chain| {
                self.chain(chain);
                self.mark(op);
                for rule in &chain.rules {
                    self.rule(chain.name, rule, NLM_F_APPEND);
                    self.mark(op);
                }
            });
        }
        self.elements(Set::ChainOf, verb, ops.iter().copied());
    }

    fn elements<'a>(&mut self, set: Set, verb: Verb, ops: impl Iterator<Item = &'a Op>) {
        let mut ops = ops.peekable();
        while ops.peek().is_some() {
            let m = match verb {
                Verb::Add => self.start(Kind::NewSetElem, NLM_F_CREATE),
                Verb::Delete => self.start(Kind::DelSetElem, 0),
            };
            self.w.string(ATTR_LIST_TABLE, TABLE);
            self.w.string(ATTR_LIST_SET, set.name());
            let list = self.w.nest(ATTR_LIST_ELEMENTS);
            let from = self.w.len();
            while let Some(op) = ops.next_if(|_| self.w.len() - from < LIST_BYTES) {
                self.mark(op);
                match verb {
                    Verb::Add => self.added += 1,
                    Verb::Delete => self.deleted += 1,
                }
                let value = match op.action {
                    Action::Add(value) | Action::Replace(value) if verb == Verb::Add => Some(value),
                    _ => None,
                };
                write_element(&mut self.w, &op.entry, value);
            }
            self.w.end(list);
            self.w.end_message(m);
        }
    }

    fn mark(&mut self, op: &Op) {
        if let Some(marks) = &mut self.marks {
            marks.push(Mark {
                sequence: self.sequence,
                offset: self.w.len() - self.last,
                owner: op.owner.clone(),
                entry: op.entry,
            });
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Delete,
    Add,
}

/// Calls `work` with the chain of a class.
pub(crate) fn with_class<T>(class: Class, work: impl FnOnce(&Chain<'_>) -> T) -> T {
    let (name, base) = (class.chain(), class.unrestricted().chain());
    work(&Chain {
        name: &name,
        hook: None,
        rules: layout::class_rules(class, &base),
    })
}

/// A set's attributes without its transaction id.
pub(crate) fn write_set(w: &mut Writer, set: Set) {
    w.string(ATTR_SET_TABLE, TABLE);
    w.string(ATTR_SET_NAME, set.name());
    // The kernel shows no flags rather than none.
    if set.flags() != 0 {
        w.be32(ATTR_SET_FLAGS, set.flags());
    }
    w.be32(ATTR_SET_KEY_TYPE, set.key_type());
    w.be32(ATTR_SET_KEY_LEN, set.key_width());
    match set.data() {
        Data::None => {}
        Data::Verdict => w.be32(ATTR_SET_DATA_TYPE, DATA_TYPE_VERDICT),
        Data::Value { kind, width } => {
            w.be32(ATTR_SET_DATA_TYPE, kind);
            w.be32(ATTR_SET_DATA_LEN, width);
        }
    }
    if let Some(fields) = set.fields() {
        let description = w.nest(ATTR_SET_DESC);
        let concat = w.nest(2);
        for width in fields {
            let field = w.nest(LIST_ELEM);
            w.be32(1, width);
            w.end(field);
        }
        w.end(concat);
        w.end(description);
    }
}

/// A chain's attributes.
pub(crate) fn write_chain(w: &mut Writer, chain: &Chain<'_>) {
    const ACCEPT: u32 = 1;
    w.string(ATTR_CHAIN_TABLE, TABLE);
    w.string(ATTR_CHAIN_NAME, chain.name);
    if let Some(hook) = chain.hook {
        let nest = w.nest(ATTR_CHAIN_HOOK);
        w.be32(1, hook.number);
        w.raw(2, &hook.priority.to_be_bytes());
        w.end(nest);
        w.be32(ATTR_CHAIN_POLICY, ACCEPT);
        w.string(ATTR_CHAIN_TYPE, hook.kind);
    }
}

/// A rule's expressions.
pub(crate) fn write_expressions(w: &mut Writer, rule: &[Expr<'_>]) {
    let list = w.nest(ATTR_RULE_EXPRESSIONS);
    for expr in rule {
        expr.write(w);
    }
    w.end(list);
}

/// One element, or the two of a range in an interval set.
fn write_element(w: &mut Writer, entry: &Entry, value: Option<Value>) {
    let element = w.nest(LIST_ELEM);
    write_key(w, ATTR_ELEM_KEY, |bytes| key(entry, bytes));
    match entry {
        Entry::Source(..) => write_key(w, ATTR_ELEM_KEY_END, |bytes| key_end(entry, bytes)),
        Entry::Chain(class) if value.is_some() => {
            write_verdict(w, ATTR_ELEM_DATA, Verdict::Goto(&class.chain()));
        }
        _ => {}
    }
    match value {
        Some(Value::Class(class)) => {
            write_key(w, ATTR_ELEM_DATA, |b| {
                b.extend_from_slice(&class.id().to_ne_bytes());
            });
        }
        Some(Value::Endpoint(address, port)) => write_key(w, ATTR_ELEM_DATA, |b| {
            push_address(b, address);
            b.extend_from_slice(&port.to_be_bytes());
            b.extend_from_slice(&[0; 2]);
        }),
        Some(Value::Member) | None => {}
    }
    w.end(element);

    if let Entry::Network(_, range) = entry
        && let Some(end) = successor(range.last)
    {
        let element = w.nest(LIST_ELEM);
        write_key(w, ATTR_ELEM_KEY, |bytes| push_address(bytes, end));
        w.be32(ATTR_ELEM_FLAGS, INTERVAL_END);
        w.end(element);
    }
}

fn write_key(w: &mut Writer, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let nest = w.nest(kind);
    w.with(DATA_VALUE, write);
    w.end(nest);
}

fn key(entry: &Entry, bytes: &mut Vec<u8>) {
    match entry {
        Entry::Ours(front)
        | Entry::Class(front)
        | Entry::ClassInside(front)
        | Entry::Endpoint(front, ..)
        | Entry::Source(front, _) => {
            push_address(bytes, front.address);
            bytes.extend_from_slice(&[front.protocol.number(), 0, 0, 0]);
            bytes.extend_from_slice(&front.port.to_be_bytes());
            bytes.extend_from_slice(&[0; 2]);
        }
        Entry::Address(address) | Entry::Local(address) => push_address(bytes, *address),
        Entry::Hairpin(address) => {
            push_address(bytes, *address);
            push_address(bytes, *address);
        }
        Entry::Network(_, range) => push_address(bytes, range.first),
        Entry::Chain(class) => bytes.extend_from_slice(&class.id().to_ne_bytes()),
    }
    match entry {
        Entry::Endpoint(_, _, slot) => bytes.extend_from_slice(&slot.to_ne_bytes()),
        Entry::Source(_, range) => push_address(bytes, range.first),
        _ => {}
    }
}

fn key_end(entry: &Entry, bytes: &mut Vec<u8>) {
    if let Entry::Source(front, range) = entry {
        key(&Entry::Ours(*front), bytes);
        push_address(bytes, range.last);
    }
}

/// A request, whose attributes `write` adds.
pub(crate) fn request(
    kind: u16,
    family: u8,
    dump: bool,
    sequence: u32,
    write: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut w = Writer::with_capacity(HEADER * 4);
    let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { 0 };
    let m = w.message(kind, flags, sequence, family, 0);
    write(&mut w);
    w.end_message(m);
    w.into_bytes()
}

/// The table's comment, which tells a later process whether it would have
/// made the same sets, chains and rules.
pub(crate) fn layout_comment() -> String {
    static FINGERPRINT: LazyLock<u64> = LazyLock::new(|| {
        let mut e = Encoder::new(INET, 0);
        e.layout(true);
        // And the chains of classes, by one of each kind.
        for n in 0..16 {
            let id = 0xbe00_0000 | n << 20 | 2;
            if let Some(class) = Class::from_id(id) {
                with_class(class, |chain| e.rules(chain));
            }
        }
        fnv(e.w.bytes())
    });
    format!("bellrock forwarding, layout {:016x}", *FINGERPRINT)
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

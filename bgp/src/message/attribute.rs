//! Path attributes: RFC 4271 sections 4.3 and 5, and how errors in them are
//! survived, RFC 7606.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::open::AS_TRANS;
use super::reader::Reader;
use super::{Context, Notification, Update};

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const EXTENDED_LENGTH: u8 = 0x10;

pub(super) const ORIGIN: u8 = 1;
pub(super) const AS_PATH: u8 = 2;
pub(super) const NEXT_HOP: u8 = 3;
const MED: u8 = 4;
const LOCAL_PREF: u8 = 5;
const ATOMIC_AGGREGATE: u8 = 6;
const AGGREGATOR: u8 = 7;
const COMMUNITIES: u8 = 8;
const ORIGINATOR_ID: u8 = 9;
const CLUSTER_LIST: u8 = 10;
pub(super) const MP_REACH: u8 = 14;
pub(super) const MP_UNREACH: u8 = 15;
const EXTENDED_COMMUNITIES: u8 = 16;
const AS4_PATH: u8 = 17;
const AS4_AGGREGATOR: u8 = 18;
const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
const LARGE_COMMUNITIES: u8 = 32;
const ONLY_TO_CUSTOMER: u8 = 35;

const ATTRIBUTE_LIST: u8 = 1;
const UNRECOGNIZED: u8 = 2;
const FLAGS: u8 = 4;
const LENGTH: u8 = 5;
const BAD_ORIGIN: u8 = 6;
const OPTIONAL_ATTRIBUTE: u8 = 9;
const BAD_AS_PATH: u8 = 11;

/// The attributes that this speaker writes. Others that it receives are
/// checked and forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathAttributes {
    /// ORIGIN, type 1.
    pub origin: Option<Origin>,
    /// AS_PATH, type 2; present but empty toward the own AS.
    pub as_path: Option<Vec<Segment>>,
    /// NEXT_HOP, type 3, for IPv4 routes in the UPDATE's own field.
    pub next_hop: Option<Ipv4Addr>,
    /// LOCAL_PREF, type 5, inside one AS only.
    pub local_pref: Option<u32>,
    /// COMMUNITIES, type 8 (RFC 1997), ascending and without duplicates when
    /// sent.
    pub communities: Vec<u32>,
    /// Extended communities, type 16 (RFC 4360), likewise.
    pub extended_communities: Vec<[u8; 8]>,
    /// Large communities, type 32 (RFC 8092), likewise.
    pub large_communities: Vec<[u32; 3]>,
    /// Only to Customer, type 35 (RFC 9234): the AS that set it.
    pub only_to_customer: Option<u32>,
}

/// ORIGIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Interior to the originating AS.
    Igp,
    /// Learned by EGP.
    Egp,
    /// By some other means.
    Incomplete,
}

/// One segment of an AS_PATH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Ordered or not.
    pub kind: SegmentKind,
    /// 1 to 255 AS numbers.
    pub asns: Vec<u32>,
}

/// Kind of an AS_PATH segment. Confederation segments (RFC 5065) are an error
/// from a peer outside a confederation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SegmentKind {
    /// AS_SET.
    Set,
    /// AS_SEQUENCE.
    Sequence,
}

/// An error in a received UPDATE that the session survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Type code of the attribute.
    pub attribute: u8,
    /// What RFC 7606 makes of it.
    pub treatment: Treatment,
}

/// How RFC 7606 section 2 treats an error short of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Treatment {
    /// The attribute is as good as absent.
    AttributeDiscard,
    /// The routes in the UPDATE are as good as withdrawn.
    TreatAsWithdraw,
}

/// What is wrong with one attribute. The numbers are subcodes of code 3.
enum Problem {
    Reset(u8),
    Withdraw(u8),
    Discard,
}

/// What was met while reading the attributes of one UPDATE.
pub(super) struct Outcome {
    pub(super) seen: [bool; 256],
    /// The first error that means treat-as-withdraw, as the NOTIFICATION that
    /// it becomes if there is no route to withdraw (RFC 7606 section 5.2).
    pub(super) withdraw: Option<Notification>,
}

impl Outcome {
    pub(super) fn has(&self, kind: u8) -> bool {
        self.seen.get(usize::from(kind)).copied().unwrap_or(false)
    }

    pub(super) fn any_but_unreach(&self) -> bool {
        let unreach = usize::from(MP_UNREACH);
        self.seen
            .iter()
            .enumerate()
            .any(|(kind, seen)| *seen && kind != unreach)
    }
}

/// Reads all attributes into `update`.
pub(super) fn read_all(
    field: &[u8],
    context: Context,
    update: &mut Update,
) -> Result<Outcome, Notification> {
    let mut outcome = Outcome {
        seen: [false; 256],
        withdraw: None,
    };
    let mut reader = Reader::new(field);
    while !reader.is_empty() {
        let start = reader.clone();
        let (flags, kind, value) = match header(&mut reader) {
            Ok(parts) => parts,
            Err(kind) => {
                // The rest of the list cannot be told apart (section 4).
                mark(&mut outcome, kind);
                fault(update, kind, Treatment::TreatAsWithdraw);
                outcome
                    .withdraw
                    .get_or_insert(Notification::new(3, ATTRIBUTE_LIST));
                break;
            }
        };
        if outcome.has(kind) {
            if matches!(kind, MP_REACH | MP_UNREACH) {
                return Err(Notification::new(3, ATTRIBUTE_LIST));
            }
            fault(update, kind, Treatment::AttributeDiscard);
            continue;
        }
        mark(&mut outcome, kind);
        let whole = || {
            let mut start = start.clone();
            start
                .bytes(start.len().saturating_sub(reader.len()))
                .unwrap_or_default()
                .to_vec()
        };
        match read_one(flags, kind, value, context, update) {
            Ok(()) => {}
            Err(Problem::Reset(subcode)) => {
                return Err(Notification::with_data(3, subcode, whole()));
            }
            Err(Problem::Withdraw(subcode)) => {
                fault(update, kind, Treatment::TreatAsWithdraw);
                outcome
                    .withdraw
                    .get_or_insert_with(|| Notification::with_data(3, subcode, whole()));
            }
            Err(Problem::Discard) => fault(update, kind, Treatment::AttributeDiscard),
        }
    }
    Ok(outcome)
}

fn mark(outcome: &mut Outcome, kind: u8) {
    if let Some(seen) = outcome.seen.get_mut(usize::from(kind)) {
        *seen = true;
    }
}

fn fault(update: &mut Update, attribute: u8, treatment: Treatment) {
    update.faults.push(Fault {
        attribute,
        treatment,
    });
}

/// Flags, type and value of the next attribute; if it does not fit, its type
/// (0 if even that is missing).
fn header<'a>(reader: &mut Reader<'a>) -> Result<(u8, u8, &'a [u8]), u8> {
    let flags = reader.u8().ok_or(0)?;
    let kind = reader.u8().ok_or(0)?;
    let length = if flags & EXTENDED_LENGTH == 0 {
        reader.u8().map(u16::from)
    } else {
        reader.u16()
    };
    let value = length.and_then(|length| reader.bytes(usize::from(length)));
    value.map(|value| (flags, kind, value)).ok_or(kind)
}

/// The Optional and Transitive bits that a type must have.
fn required_flags(kind: u8) -> Option<u8> {
    match kind {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => Some(TRANSITIVE),
        MED | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH | MP_UNREACH => Some(OPTIONAL),
        AGGREGATOR
        | COMMUNITIES
        | EXTENDED_COMMUNITIES
        | AS4_PATH
        | AS4_AGGREGATOR
        | IPV6_EXTENDED_COMMUNITIES
        | LARGE_COMMUNITIES
        | ONLY_TO_CUSTOMER => Some(OPTIONAL | TRANSITIVE),
        _ => None,
    }
}

fn read_one(
    flags: u8,
    kind: u8,
    value: &[u8],
    context: Context,
    update: &mut Update,
) -> Result<(), Problem> {
    let attributes = &mut update.attributes;
    match required_flags(kind) {
        Some(required) if flags & (OPTIONAL | TRANSITIVE) != required => {
            return Err(Problem::Withdraw(FLAGS));
        }
        Some(_) => {}
        None if flags & OPTIONAL == 0 => return Err(Problem::Reset(UNRECOGNIZED)),
        None => return Ok(()),
    }
    match kind {
        ORIGIN => match value {
            [0] => attributes.origin = Some(Origin::Igp),
            [1] => attributes.origin = Some(Origin::Egp),
            [2] => attributes.origin = Some(Origin::Incomplete),
            [_] => return Err(Problem::Withdraw(BAD_ORIGIN)),
            _ => return Err(Problem::Withdraw(LENGTH)),
        },
        AS_PATH => {
            let path = read_path(value, context.four_octet_as);
            attributes.as_path = Some(path.ok_or(Problem::Withdraw(BAD_AS_PATH))?);
        }
        NEXT_HOP => attributes.next_hop = Some(Ipv4Addr::from(four(value)?)),
        MED => four(value).map(drop)?,
        // Those that only the own AS may send.
        LOCAL_PREF | ORIGINATOR_ID | CLUSTER_LIST if !context.internal => {
            return Err(Problem::Discard);
        }
        LOCAL_PREF => attributes.local_pref = Some(u32::from_be_bytes(four(value)?)),
        ORIGINATOR_ID => four(value).map(drop)?,
        CLUSTER_LIST => multiple_of(4, value)?,
        ATOMIC_AGGREGATE if !value.is_empty() => return Err(Problem::Discard),
        ATOMIC_AGGREGATE => {}
        AGGREGATOR => {
            let width = if context.four_octet_as { 4 } else { 2 };
            let asn = value.get(..width).unwrap_or_default();
            if value.len().checked_sub(width) != Some(4) || asn.iter().all(|octet| *octet == 0) {
                return Err(Problem::Discard);
            }
        }
        COMMUNITIES => {
            multiple_of(4, value)?;
            let (all, _) = value.as_chunks::<4>();
            attributes.communities = all.iter().copied().map(u32::from_be_bytes).collect();
        }
        EXTENDED_COMMUNITIES => {
            multiple_of(8, value)?;
            attributes.extended_communities = value.as_chunks::<8>().0.to_vec();
        }
        LARGE_COMMUNITIES => {
            multiple_of(12, value)?;
            let (words, _) = value.as_chunks::<4>();
            let (all, _) = words.as_chunks::<3>();
            attributes.large_communities = all
                .iter()
                .map(|community| community.map(u32::from_be_bytes))
                .collect();
        }
        IPV6_EXTENDED_COMMUNITIES => multiple_of(20, value)?,
        // A speaker with four-octet numbers must not send these; from one
        // without them they matter only to who uses the path (RFC 6793).
        AS4_PATH | AS4_AGGREGATOR if context.four_octet_as => return Err(Problem::Discard),
        AS4_PATH | AS4_AGGREGATOR => {}
        ONLY_TO_CUSTOMER => {
            attributes.only_to_customer = Some(u32::from_be_bytes(four(value)?));
        }
        MP_REACH => update
            .read_reach(value, context)
            .ok_or(Problem::Reset(OPTIONAL_ATTRIBUTE))?,
        MP_UNREACH => update
            .read_unreach(value)
            .ok_or(Problem::Reset(OPTIONAL_ATTRIBUTE))?,
        _ => {}
    }
    Ok(())
}

fn four(value: &[u8]) -> Result<[u8; 4], Problem> {
    value.try_into().map_err(|_| Problem::Withdraw(LENGTH))
}

fn multiple_of(size: usize, value: &[u8]) -> Result<(), Problem> {
    let whole = !value.is_empty() && value.len().is_multiple_of(size);
    whole.then_some(()).ok_or(Problem::Withdraw(LENGTH))
}

fn read_path(value: &[u8], four_octet: bool) -> Option<Vec<Segment>> {
    let mut reader = Reader::new(value);
    let mut path = Vec::new();
    while !reader.is_empty() {
        let kind = match reader.u8()? {
            1 => SegmentKind::Set,
            2 => SegmentKind::Sequence,
            _ => return None,
        };
        let count = reader.u8().filter(|count| *count > 0)?;
        let mut asns = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let asn = if four_octet {
                reader.u32()?
            } else {
                u32::from(reader.u16()?)
            };
            if asn == 0 {
                return None; // RFC 7607
            }
            asns.push(asn);
        }
        path.push(Segment { kind, asns });
    }
    Some(path)
}

/// Appends an attribute whose value `write` appends. `None` if the value is
/// longer than an attribute can be.
pub(super) fn put(
    flags: u8,
    kind: u8,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Option<()>,
) -> Option<()> {
    let mut value = Vec::new();
    write(&mut value)?;
    if let Ok(length) = u8::try_from(value.len()) {
        out.extend([flags, kind, length]);
    } else {
        out.extend([flags | EXTENDED_LENGTH, kind]);
        out.extend(u16::try_from(value.len()).ok()?.to_be_bytes());
    }
    out.extend(value);
    Some(())
}

/// As [`put`], with the flags of an optional non-transitive attribute.
pub(super) fn put_optional(
    kind: u8,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Option<()>,
) -> Option<()> {
    put(OPTIONAL, kind, out, write)
}

impl PathAttributes {
    /// Appends what is there, by ascending type.
    pub(super) fn put(&self, context: Context, out: &mut Vec<u8>) -> Option<()> {
        if let Some(origin) = self.origin {
            let code = match origin {
                Origin::Igp => 0,
                Origin::Egp => 1,
                Origin::Incomplete => 2,
            };
            out.extend([TRANSITIVE, ORIGIN, 1, code]);
        }
        if let Some(path) = &self.as_path {
            put(TRANSITIVE, AS_PATH, out, |out| {
                put_path(path, context.four_octet_as, out)
            })?;
        }
        if let Some(next_hop) = self.next_hop {
            out.extend([TRANSITIVE, NEXT_HOP, 4]);
            out.extend(next_hop.octets());
        }
        if let Some(local_pref) = self.local_pref {
            out.extend([TRANSITIVE, LOCAL_PREF, 4]);
            out.extend(local_pref.to_be_bytes());
        }
        if !self.communities.is_empty() {
            put(OPTIONAL | TRANSITIVE, COMMUNITIES, out, |out| {
                out.extend(
                    self.communities
                        .iter()
                        .flat_map(|community| community.to_be_bytes()),
                );
                Some(())
            })?;
        }
        if !self.extended_communities.is_empty() {
            put(OPTIONAL | TRANSITIVE, EXTENDED_COMMUNITIES, out, |out| {
                out.extend(self.extended_communities.iter().flatten());
                Some(())
            })?;
        }
        // To a speaker without four-octet numbers the true path goes beside
        // the one with AS_TRANS, where they differ (RFC 6793 section 4.2.2).
        let wide = |segment: &Segment| segment.asns.iter().any(|asn| u16::try_from(*asn).is_err());
        if let Some(path) = &self.as_path
            && !context.four_octet_as
            && path.iter().any(wide)
        {
            put(OPTIONAL | TRANSITIVE, AS4_PATH, out, |out| {
                put_path(path, true, out)
            })?;
        }
        if !self.large_communities.is_empty() {
            put(OPTIONAL | TRANSITIVE, LARGE_COMMUNITIES, out, |out| {
                let words = self.large_communities.iter().flatten();
                out.extend(words.flat_map(|word| word.to_be_bytes()));
                Some(())
            })?;
        }
        if let Some(asn) = self.only_to_customer {
            out.extend([OPTIONAL | TRANSITIVE, ONLY_TO_CUSTOMER, 4]);
            out.extend(asn.to_be_bytes());
        }
        Some(())
    }
}

fn put_path(path: &[Segment], four_octet: bool, out: &mut Vec<u8>) -> Option<()> {
    for segment in path {
        out.push(match segment.kind {
            SegmentKind::Set => 1,
            SegmentKind::Sequence => 2,
        });
        out.push(u8::try_from(segment.asns.len()).ok()?);
        for asn in &segment.asns {
            if four_octet {
                out.extend(asn.to_be_bytes());
            } else {
                out.extend(u16::try_from(*asn).unwrap_or(AS_TRANS).to_be_bytes());
            }
        }
    }
    Some(())
}

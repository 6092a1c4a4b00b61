//! Adj-RIB-Out: the routes that a peer should have, and the UPDATEs that take
//! it there. Pure.
//!
//! Every prefix is in one of three conditions: the peer has what it should
//! have, or its change is *pending*, or it is *refused*, with a [`Refusal`].
//! Pending changes are grouped by what their UPDATE says, so that one message
//! carries as many prefixes as fit, and [`AdjRibOut::next_update`] builds one
//! message at a time: what a slow peer has not taken is not built.
//!
//! Withdrawals go first. The order is that of the maps: the same history gives
//! the same octets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Attributes;
use crate::message::prefix::wire_len;
use crate::message::{
    Context, Family, MAX_LEN, Message, Origin, PathAttributes, Reach, Segment, SegmentKind,
    Unreach, Update,
};

#[cfg(test)]
mod tests;

const DEFAULT_LOCAL_PREF: u32 = 100;

/// Why a route is not sent to this peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Refusal {
    /// The peer did not negotiate the route's family.
    FamilyNotNegotiated,
    /// The session's own address, which would be the next hop, or the
    /// configured next hop, is not of the route's family.
    NoNextHop,
    /// The next hop is the peer itself (RFC 4271 section 5.1.3).
    NextHopIsPeer,
    /// The attributes alone fill a message.
    AttributesTooLong,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FamilyNotNegotiated => "the peer takes no routes of this family",
            Self::NoNextHop => "there is no next hop of the route's family",
            Self::NextHopIsPeer => "the next hop is the peer itself",
            Self::AttributesTooLong => "the attributes alone fill a message",
        })
    }
}

/// What about a session changes its UPDATEs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RibSession {
    /// Our address on the session.
    pub local: IpAddr,
    /// The peer's.
    pub peer: IpAddr,
    /// Our AS.
    pub local_asn: u32,
    /// Families that both sides take.
    pub families: Vec<Family>,
    /// How messages are written.
    pub context: Context,
}

/// A pending change, and the key that groups it: all prefixes under one key
/// can share an UPDATE.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Withdraw(Family),
    Announce(Family, Arc<Attributes>),
}

/// The routes of one peer. It outlives sessions: [`AdjRibOut::open`] starts
/// one, [`AdjRibOut::close`] ends it.
#[derive(Debug, Default)]
pub struct AdjRibOut {
    wanted: BTreeMap<IpNet, Arc<Attributes>>,
    /// One copy of each set of attributes.
    interned: BTreeSet<Arc<Attributes>>,
    session: Option<RibSession>,
    /// What the peer has, as far as UPDATEs were built.
    sent: BTreeMap<IpNet, Arc<Attributes>>,
    /// What the peer has and asked for once more.
    again: BTreeSet<IpNet>,
    pending: BTreeMap<Change, BTreeSet<IpNet>>,
    pending_count: usize,
    refused: BTreeMap<IpNet, Refusal>,
    refusals: BTreeMap<Refusal, usize>,
    end_of_rib: BTreeSet<Family>,
}

fn family(prefix: &IpNet) -> Family {
    Family::of(prefix.network())
}

impl AdjRibOut {
    /// The peer should have this route. Host bits of the prefix are dropped.
    pub fn announce(&mut self, prefix: IpNet, attributes: Attributes) {
        self.set(prefix.trunc(), Some(attributes));
    }

    /// The peer should not have this route.
    pub fn withdraw(&mut self, prefix: IpNet) {
        self.set(prefix.trunc(), None);
    }

    fn set(&mut self, prefix: IpNet, attributes: Option<Attributes>) {
        self.unqueue(&prefix);
        let old = match attributes {
            Some(attributes) => {
                let attributes = self.intern(attributes);
                self.wanted.insert(prefix, attributes)
            }
            None => self.wanted.remove(&prefix),
        };
        self.forget(old);
        self.queue(prefix);
    }

    fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        let attributes = Arc::new(attributes);
        if let Some(known) = self.interned.get(&attributes) {
            return Arc::clone(known);
        }
        self.interned.insert(Arc::clone(&attributes));
        attributes
    }

    /// Drops an interned copy that nothing else holds.
    fn forget(&mut self, attributes: Option<Arc<Attributes>>) {
        if let Some(attributes) = attributes
            && Arc::strong_count(&attributes) == 2
        {
            self.interned.remove(&attributes);
        }
    }

    /// The change that `prefix` needs.
    fn change(&self, prefix: &IpNet) -> Option<Change> {
        match (self.wanted.get(prefix), self.sent.get(prefix)) {
            (Some(wanted), Some(sent)) if wanted == sent && !self.again.contains(prefix) => None,
            (Some(wanted), _) => Some(Change::Announce(family(prefix), Arc::clone(wanted))),
            (None, Some(_)) => Some(Change::Withdraw(family(prefix))),
            (None, None) => None,
        }
    }

    fn unqueue(&mut self, prefix: &IpNet) {
        if let Some(count) = self
            .refused
            .remove(prefix)
            .and_then(|r| self.refusals.get_mut(&r))
        {
            *count -= 1;
        }
        // A route that was refused after one that was sent has a withdrawal
        // pending although it is wanted.
        for change in self
            .change(prefix)
            .into_iter()
            .chain([Change::Withdraw(family(prefix))])
        {
            if let Some(prefixes) = self.pending.get_mut(&change) {
                self.pending_count -= usize::from(prefixes.remove(prefix));
                if prefixes.is_empty() {
                    self.pending.remove(&change);
                }
            }
        }
    }

    fn queue(&mut self, prefix: IpNet) {
        if self.session.is_some()
            && let Some(change) = self.change(&prefix)
        {
            self.push(change, prefix);
        }
    }

    fn push(&mut self, change: Change, prefix: IpNet) {
        let new = self.pending.entry(change).or_default().insert(prefix);
        self.pending_count += usize::from(new);
    }

    /// A session is up: everything is to be sent, then End-of-RIB for each
    /// family (RFC 4724 section 2), even without any route.
    pub fn open(&mut self, session: RibSession) {
        self.close();
        self.end_of_rib = session.families.iter().copied().collect();
        self.session = Some(session);
        let prefixes: Vec<_> = self.wanted.keys().copied().collect();
        prefixes.into_iter().for_each(|prefix| self.queue(prefix));
    }

    /// The session is gone, and with it all that the peer had.
    pub fn close(&mut self) {
        self.session = None;
        self.pending.clear();
        self.pending_count = 0;
        self.refused.clear();
        self.refusals.clear();
        self.again.clear();
        self.end_of_rib.clear();
        for (_, attributes) in std::mem::take(&mut self.sent) {
            self.forget(Some(attributes));
        }
    }

    /// The peer wants all routes of a family again (RFC 2918).
    pub fn refresh(&mut self, wanted: Family) {
        let prefixes: Vec<_> = self
            .sent
            .iter()
            // What has a change pending is sent again anyway, or must go.
            .filter(|(prefix, sent)| {
                family(prefix) == wanted && self.wanted.get(*prefix) == Some(*sent)
            })
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in prefixes {
            self.again.insert(prefix);
            self.queue(prefix);
        }
    }

    /// The next UPDATE, as full as 4096 octets allow; `None` when the peer has
    /// everything.
    pub fn next_update(&mut self) -> Option<Update> {
        while let Some((change, mut prefixes)) = self.pending.pop_first() {
            self.pending_count -= prefixes.len();
            let update = match &change {
                Change::Withdraw(family) => Some(take(MAX_LEN - frame_len(*family), &mut prefixes))
                    .map(|gone| {
                        for prefix in &gone {
                            self.again.remove(prefix);
                            let old = self.sent.remove(prefix);
                            self.forget(old);
                        }
                        withdrawal(*family, &gone)
                    }),
                Change::Announce(family, attributes) => match self.build(*family, attributes) {
                    Ok((update, room)) => Some(take(room, &mut prefixes)).map(|new| {
                        for prefix in &new {
                            self.again.remove(prefix);
                            let old = self.sent.insert(*prefix, Arc::clone(attributes));
                            self.forget(old);
                        }
                        announcement(update, &new)
                    }),
                    Err(refusal) => {
                        self.refuse(std::mem::take(&mut prefixes), refusal);
                        None
                    }
                },
            };
            if !prefixes.is_empty() {
                self.pending_count += prefixes.len();
                self.pending.insert(change, prefixes);
            }
            if update.is_some() {
                return update;
            }
        }
        self.end_of_rib.pop_first().map(Update::end_of_rib)
    }

    /// What cannot be announced is not announced; what the peer had under
    /// other attributes is then stale, and goes.
    fn refuse(&mut self, prefixes: BTreeSet<IpNet>, refusal: Refusal) {
        for prefix in prefixes {
            if self.sent.contains_key(&prefix) {
                self.push(Change::Withdraw(family(&prefix)), prefix);
            }
            self.refused.insert(prefix, refusal);
            *self.refusals.entry(refusal).or_default() += 1;
        }
    }

    /// An UPDATE with these attributes and no prefix yet, and the octets that
    /// are left for prefixes.
    fn build(&self, family: Family, attributes: &Attributes) -> Result<(Update, usize), Refusal> {
        let session = self
            .session
            .as_ref()
            .filter(|session| session.families.contains(&family));
        let session = session.ok_or(Refusal::FamilyNotNegotiated)?;
        let next_hop = attributes.next_hop.unwrap_or(session.local);
        if Family::of(next_hop) != family {
            return Err(Refusal::NoNextHop);
        }
        if next_hop == session.peer {
            return Err(Refusal::NextHopIsPeer);
        }
        let internal = session.context.internal;
        let own = || Segment {
            kind: SegmentKind::Sequence,
            asns: vec![session.local_asn],
        };
        let mut update = Update {
            attributes: PathAttributes {
                origin: Some(Origin::Igp),
                as_path: Some(if internal { Vec::new() } else { vec![own()] }),
                next_hop: None,
                local_pref: internal.then_some(attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)),
                communities: attributes.communities.iter().copied().collect(),
            },
            ..Update::default()
        };
        match next_hop {
            IpAddr::V4(next_hop) => update.attributes.next_hop = Some(next_hop),
            IpAddr::V6(next_hop) => {
                update.reach = Some(Reach {
                    next_hop,
                    link_local: None,
                    prefixes: Vec::new(),
                });
            }
        }
        let mut octets = Vec::new();
        let encoded = Message::Update(update.clone()).encode(session.context, &mut octets);
        encoded.map_err(|_| Refusal::AttributesTooLong)?;
        // With prefixes in it MP_REACH_NLRI may need a length of two octets.
        let growth = usize::from(update.reach.is_some());
        let room = MAX_LEN.saturating_sub(octets.len() + growth);
        let longest = match family {
            Family::Ipv4Unicast => wire_len(32),
            Family::Ipv6Unicast => wire_len(128),
        };
        if room < longest {
            return Err(Refusal::AttributesTooLong);
        }
        Ok((update, room))
    }

    /// Prefixes that the peer should have.
    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// Prefixes that the peer has.
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Changes that wait for [`AdjRibOut::next_update`].
    pub fn pending(&self) -> usize {
        self.pending_count
    }

    /// Routes that cannot be sent, by reason.
    pub fn refused(&self) -> BTreeMap<Refusal, usize> {
        let named = self.refusals.iter().filter(|(_, count)| **count > 0);
        named.map(|(refusal, count)| (*refusal, *count)).collect()
    }
}

/// Octets of a message that only withdraws, before the first prefix.
fn frame_len(family: Family) -> usize {
    match family {
        Family::Ipv4Unicast => 23,
        // MP_UNREACH_NLRI: flags, type, two octets of length, AFI, SAFI.
        Family::Ipv6Unicast => 23 + 4 + 3,
    }
}

/// Takes as many prefixes as fit into `room` octets, in order.
fn take(mut room: usize, prefixes: &mut BTreeSet<IpNet>) -> Vec<IpNet> {
    let mut taken = Vec::new();
    while let Some(prefix) = prefixes.first() {
        let Some(left) = room.checked_sub(wire_len(prefix.prefix_len())) else {
            break;
        };
        room = left;
        taken.extend(prefixes.pop_first());
    }
    taken
}

fn split(prefixes: &[IpNet]) -> (Vec<ipnet::Ipv4Net>, Vec<ipnet::Ipv6Net>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        match prefix {
            IpNet::V4(prefix) => v4.push(*prefix),
            IpNet::V6(prefix) => v6.push(*prefix),
        }
    }
    (v4, v6)
}

fn withdrawal(family: Family, prefixes: &[IpNet]) -> Update {
    let (withdrawn, prefixes) = split(prefixes);
    match family {
        Family::Ipv4Unicast => Update {
            withdrawn,
            ..Update::default()
        },
        Family::Ipv6Unicast => Update {
            unreach: Some(Unreach { prefixes }),
            ..Update::default()
        },
    }
}

fn announcement(mut update: Update, prefixes: &[IpNet]) -> Update {
    let (v4, v6) = split(prefixes);
    update.nlri = v4;
    if let Some(reach) = &mut update.reach {
        reach.prefixes = v6;
    }
    update
}

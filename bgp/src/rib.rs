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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Attributes;
use crate::message::prefix::wire_len;
use crate::message::{
    AS_TRANS, Context, Family, Message, Origin, PathAttributes, Reach, ReachIpv4, Role,
    RouteRefresh, Segment, SegmentKind, Unreach, Update,
};

#[cfg(test)]
mod tests;

const DEFAULT_LOCAL_PREF: u32 = 100;
/// GRACEFUL_SHUTDOWN (RFC 8326).
const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;
/// One unit of [`Attributes::weight`], in octets a second: 1 Mbit/s.
const WEIGHT_UNIT: f32 = 125_000.0;

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

impl Refusal {
    /// Its name, as in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FamilyNotNegotiated => "FamilyNotNegotiated",
            Self::NoNextHop => "NoNextHop",
            Self::NextHopIsPeer => "NextHopIsPeer",
            Self::AttributesTooLong => "AttributesTooLong",
        }
    }
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
    /// A refresh begins and ends with messages of its own (RFC 7313).
    pub enhanced_refresh: bool,
    /// Next hop for IPv4 routes where `local` is IPv6.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// Next hop for IPv6 routes where `local` is IPv4.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// Our role toward the peer (RFC 9234).
    pub role: Option<Role>,
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
    /// Refreshes that are to begin, and those that are to end.
    begin: BTreeSet<Family>,
    end: BTreeSet<Family>,
    /// Routes carry GRACEFUL_SHUTDOWN.
    graceful_shutdown: bool,
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
        self.begin.clear();
        self.end.clear();
        for (_, attributes) in std::mem::take(&mut self.sent) {
            self.forget(Some(attributes));
        }
    }

    /// The peer wants all routes of a family again (RFC 2918).
    pub fn refresh(&mut self, wanted: Family) {
        if self.session.as_ref().is_some_and(|s| s.enhanced_refresh) {
            self.begin.insert(wanted);
        } else {
            self.send_again(wanted);
        }
    }

    /// Routes carry GRACEFUL_SHUTDOWN from now on, with the least preference
    /// inside an AS (RFC 8326), or no longer. What the peer has is sent again.
    pub fn set_graceful_shutdown(&mut self, on: bool) {
        if std::mem::replace(&mut self.graceful_shutdown, on) != on {
            for family in Family::ALL {
                self.send_again(family);
            }
        }
    }

    fn send_again(&mut self, wanted: Family) {
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

    /// The next message; `None` when the peer has everything.
    pub fn next_message(&mut self) -> Option<Message> {
        // Not before the End-of-RIB (RFC 7313 section 4).
        let begin = self.begin.iter().find(|f| !self.end_of_rib.contains(f));
        if let Some(family) = begin.copied() {
            self.begin.remove(&family);
            self.end.insert(family);
            self.send_again(family);
            let refresh = RouteRefresh::of(family, RouteRefresh::BEGIN);
            return Some(Message::RouteRefresh(refresh));
        }
        if let Some(update) = self.next_update() {
            return Some(Message::Update(update));
        }
        let family = self.end.pop_first()?;
        let refresh = RouteRefresh::of(family, RouteRefresh::END);
        Some(Message::RouteRefresh(refresh))
    }

    /// The next UPDATE, as full as the negotiated length allows; `None` when
    /// the peer has all routes.
    pub fn next_update(&mut self) -> Option<Update> {
        let max_len = self
            .session
            .as_ref()
            .map_or(0, |session| session.context.max_len());
        while let Some((change, mut prefixes)) = self.pending.pop_first() {
            self.pending_count -= prefixes.len();
            let update = match &change {
                Change::Withdraw(family) => Some(take(
                    max_len.saturating_sub(frame_len(*family)),
                    &mut prefixes,
                ))
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
        let next_hop = next_hop(session, family, attributes).ok_or(Refusal::NoNextHop)?;
        if next_hop == session.peer {
            return Err(Refusal::NextHopIsPeer);
        }
        let internal = session.context.internal;
        let own = || Segment {
            kind: SegmentKind::Sequence,
            asns: vec![session.local_asn; 1 + usize::from(attributes.prepend)],
        };
        let local_pref = if self.graceful_shutdown {
            0
        } else {
            attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
        };
        let mut communities = attributes.communities.clone();
        if self.graceful_shutdown {
            communities.insert(GRACEFUL_SHUTDOWN);
        }
        let mut extended_communities = attributes.extended_communities.clone();
        let weight = attributes.weight;
        extended_communities.extend(weight.map(|w| link_bandwidth(session, w)));
        let mut update = Update {
            attributes: PathAttributes {
                origin: Some(Origin::Igp),
                as_path: Some(if internal { Vec::new() } else { vec![own()] }),
                next_hop: None,
                local_pref: internal.then_some(local_pref),
                communities: communities.into_iter().collect(),
                extended_communities: extended_communities.into_iter().collect(),
                large_communities: attributes.large_communities.iter().copied().collect(),
                only_to_customer: session
                    .role
                    .filter(|role| !internal && role.marks())
                    .map(|_| session.local_asn),
            },
            ..Update::default()
        };
        match (next_hop, family) {
            (IpAddr::V4(next_hop), _) => update.attributes.next_hop = Some(next_hop),
            (IpAddr::V6(next_hop), Family::Ipv4Unicast) => {
                update.reach_ipv4 = Some(ReachIpv4 {
                    next_hop,
                    link_local: None,
                    prefixes: Vec::new(),
                });
            }
            (IpAddr::V6(next_hop), Family::Ipv6Unicast) => {
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
        let multiprotocol = update.reach.is_some() || update.reach_ipv4.is_some();
        let growth = usize::from(multiprotocol);
        let max_len = session.context.max_len();
        let room = max_len.saturating_sub(octets.len() + growth);
        let longest = match family {
            Family::Ipv4Unicast => wire_len(32),
            Family::Ipv6Unicast => wire_len(128),
        };
        if room < longest {
            return Err(Refusal::AttributesTooLong);
        }
        Ok((update, room))
    }

    /// Families whose routes the session can carry: negotiated, and with a
    /// next hop for routes that name none.
    pub fn families(&self) -> Vec<Family> {
        let session = self.session.iter();
        session
            .flat_map(|session| {
                let plain = Attributes::default();
                let carried = move |family: &&Family| next_hop(session, **family, &plain).is_some();
                session.families.iter().filter(carried).copied()
            })
            .collect()
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

/// Where packets for the route are to go: an address of the route's family, or
/// an IPv6 one where the peer takes that for IPv4 routes.
fn next_hop(session: &RibSession, family: Family, attributes: &Attributes) -> Option<IpAddr> {
    let fits = |address: &IpAddr| {
        Family::of(*address) == family || (address.is_ipv6() && session.context.ipv6_next_hop)
    };
    if attributes.next_hop.is_some() {
        return attributes.next_hop.filter(fits);
    }
    if Family::of(session.local) == family {
        return Some(session.local);
    }
    let configured = match family {
        Family::Ipv4Unicast => session.next_hop_v4.map(IpAddr::V4),
        Family::Ipv6Unicast => session.next_hop_v6.map(IpAddr::V6),
    };
    configured.or(Some(session.local).filter(fits))
}

/// The link-bandwidth extended community (draft-ietf-idr-link-bandwidth): AS
/// and octets a second as an IEEE 754 number. Toward another AS it is the
/// transitive one, which receivers there do not strip.
fn link_bandwidth(session: &RibSession, weight: u32) -> [u8; 8] {
    let kind = if session.context.internal { 0x40 } else { 0x00 };
    let [a, b] = u16::try_from(session.local_asn)
        .unwrap_or(AS_TRANS)
        .to_be_bytes();
    #[allow(
        clippy::cast_precision_loss,
        reason = "exact up to 2^24 units, and a ratio of weights beyond"
    )]
    let octets = (weight as f32 * WEIGHT_UNIT).to_be_bytes();
    let [c, d, e, f] = octets;
    [kind, 0x04, a, b, c, d, e, f]
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
    match &mut update.reach_ipv4 {
        Some(reach) => reach.prefixes = v4,
        None => update.nlri = v4,
    }
    if let Some(reach) = &mut update.reach {
        reach.prefixes = v6;
    }
    update
}

//! The other nodes on the segment, and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::MacAddr;
use crate::frame::{Entry, entry_digest};
use crate::time::{Instant, Timers};

/// A list of held addresses and its digest.
#[derive(Clone, Debug, Default)]
pub(super) struct Holdings {
    entries: BTreeMap<IpAddr, u64>,
    digest: u64,
}

impl Holdings {
    pub(super) fn insert(&mut self, address: IpAddr, epoch: u64) {
        if let Some(old) = self.entries.insert(address, epoch) {
            self.digest ^= entry_digest((address, old));
        }
        self.digest ^= entry_digest((address, epoch));
    }

    pub(super) fn remove(&mut self, address: IpAddr) -> bool {
        let Some(epoch) = self.entries.remove(&address) else {
            return false;
        };
        self.digest ^= entry_digest((address, epoch));
        true
    }

    pub(super) fn entries(&self) -> &BTreeMap<IpAddr, u64> {
        &self.entries
    }

    /// Count and digest, as a HELLO carries them.
    pub(super) fn summary(&self) -> (u32, u64) {
        (
            u32::try_from(self.entries.len()).unwrap_or(u32::MAX),
            self.digest,
        )
    }
}

/// A station of another node. One that fell silent is remembered, so that its
/// hardware address is known for a node's.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) node: Arc<str>,
    pub(super) incarnation: u64,
    pub(super) seq: u64,
    pub(super) heard: Instant,
    /// Own rounds executed since it was heard.
    pub(super) rounds: u32,
    pub(super) live: bool,
    pub(super) deaf: bool,
    pub(super) holdings: Holdings,
    /// When it was last asked: for its list, or whether it lives.
    pub(super) asked: Option<Instant>,
    /// It speaks, but no HELLO of it came since it was silent.
    pub(super) mute: bool,
    /// It spoke when asked, though its HELLOs do not come.
    pub(super) filtered: bool,
    /// It said that it leaves, and was not heard since.
    pub(super) left: bool,
}

/// What a frame says about its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A station that was live already, in the same incarnation.
    Known,
    /// A station that was not heard for a while, or never.
    New,
    /// A node that was started anew: what it held before is void.
    Restarted,
}

/// Why a sender is not believed although its frame is authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not newer than its last frame.
    Replay,
    /// Of an earlier life of the node than the one known. A frame that was
    /// recorded then, or a node whose clock went back: it is told, and only
    /// the real one can say something new.
    Earlier {
        /// The incarnation of the latest life known.
        known: u64,
    },
    /// More stations than the table holds.
    Full,
}

/// More nodes than any segment has.
const MOST: usize = 4096;

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    stations: BTreeMap<MacAddr, Peer>,
    /// For each address that a live peer holds: who, and with which epoch.
    holders: BTreeMap<IpAddr, BTreeMap<MacAddr, u64>>,
    /// The nodes that are heard now and could claim.
    candidates: BTreeSet<Arc<str>>,
    /// For each node: whether it was last told to be heard, or silent.
    told: BTreeMap<Arc<str>, bool>,
}

impl Peers {
    pub(super) fn get(&self, mac: MacAddr) -> Option<&Peer> {
        self.stations.get(&mac)
    }

    pub(super) fn live(&self) -> impl Iterator<Item = (MacAddr, &Peer)> {
        self.stations
            .iter()
            .filter(|(_, peer)| peer.live)
            .map(|(mac, peer)| (*mac, peer))
    }

    /// Whether anybody is heard.
    pub(super) fn any_live(&self) -> bool {
        self.live().next().is_some()
    }

    /// The station of a node that is heard now and could claim.
    pub(super) fn station(&self, node: &str) -> Option<MacAddr> {
        self.live()
            .find(|(_, peer)| *peer.node == *node && !peer.deaf)
            .map(|(mac, _)| mac)
    }

    /// Notes that a peer spoke when asked, or that its HELLO came; whether that
    /// is news.
    pub(super) fn filtered(&mut self, mac: MacAddr, filtered: bool) -> bool {
        let Some(peer) = self.stations.get_mut(&mac) else {
            return false;
        };
        std::mem::replace(&mut peer.filtered, filtered) != filtered
    }

    /// Whether the HELLOs of any are filtered.
    pub(super) fn any_filtered(&self) -> bool {
        self.stations.values().any(|peer| peer.filtered)
    }

    pub(super) fn candidates(&self) -> &BTreeSet<Arc<str>> {
        &self.candidates
    }

    /// The highest claim to `address` above `base` of a live peer that hears
    /// others.
    pub(super) fn holder(&self, address: IpAddr, base: u64) -> Option<(u64, &Arc<str>)> {
        self.holders
            .get(&address)?
            .iter()
            .filter(|(_, epoch)| **epoch > base)
            .filter_map(|(mac, epoch)| Some((*epoch, self.stations.get(mac)?)))
            .filter(|(_, peer)| !peer.deaf)
            .map(|(epoch, peer)| (epoch, &peer.node))
            .max()
    }

    /// Checks and notes an authentic frame's sender. It is live afterwards,
    /// unless it `leaves`.
    pub(super) fn hear(
        &mut self,
        mac: MacAddr,
        node: &str,
        (incarnation, seq): (u64, u64),
        now: Instant,
    ) -> Result<Heard, Refused> {
        let full = self.stations.len() >= MOST && !self.stations.contains_key(&mac);
        if full && !self.forget_one() {
            return Err(Refused::Full);
        }
        let heard = match self.stations.get(&mac) {
            Some(peer) if incarnation < peer.incarnation => {
                return Err(Refused::Earlier {
                    known: peer.incarnation,
                });
            }
            Some(peer) if incarnation == peer.incarnation && seq <= peer.seq => {
                return Err(Refused::Replay);
            }
            Some(peer) => match (*peer.node == *node, peer.incarnation == incarnation) {
                (true, true) if peer.live => Heard::Known,
                (true, true) => Heard::New,
                // Started anew, or the same hardware address under another name.
                (true | false, _) => Heard::Restarted,
            },
            None => Heard::New,
        };
        let peer = self.stations.entry(mac).or_insert_with(|| Peer {
            node: node.into(),
            incarnation,
            seq,
            heard: now,
            rounds: 0,
            live: false,
            deaf: false,
            holdings: Holdings::default(),
            asked: None,
            mute: false,
            filtered: false,
            left: false,
        });
        if *peer.node != *node {
            peer.node = node.into();
            peer.live = false;
        }
        peer.left = false;
        peer.incarnation = incarnation;
        peer.seq = seq;
        peer.heard = now;
        peer.rounds = 0;
        Ok(heard)
    }

    /// Marks a station live; what it held when it fell silent, or deaf, counts
    /// again, and is returned.
    pub(super) fn revive(&mut self, mac: MacAddr, deaf: bool) -> Vec<Entry> {
        let Some(peer) = self.stations.get_mut(&mac) else {
            return Vec::new();
        };
        let change = !peer.live || peer.deaf != deaf;
        let revived = !peer.live || (peer.deaf && !deaf);
        peer.live = true;
        peer.deaf = deaf;
        let held: Vec<Entry> = if revived {
            peer.holdings
                .entries
                .iter()
                .map(|(address, epoch)| (*address, *epoch))
                .collect()
        } else {
            Vec::new()
        };
        for (address, epoch) in &held {
            self.holders
                .entry(*address)
                .or_default()
                .insert(mac, *epoch);
        }
        if change {
            self.count_candidates();
        }
        held
    }

    /// Notes whether what came of a silent peer was its HELLO.
    pub(super) fn mute(&mut self, mac: MacAddr, mute: bool) {
        if let Some(peer) = self.stations.get_mut(&mac) {
            peer.mute = mute;
        }
    }

    /// Marks a station silent; the addresses that it held. If it spoke for the
    /// dead time without a HELLO, its HELLOs are filtered.
    pub(super) fn bury(&mut self, mac: MacAddr) -> Vec<IpAddr> {
        let Some(peer) = self.stations.get_mut(&mac) else {
            return Vec::new();
        };
        if !peer.live {
            return Vec::new();
        }
        peer.live = false;
        peer.filtered |= std::mem::take(&mut peer.mute);
        let held: Vec<IpAddr> = peer.holdings.entries.keys().copied().collect();
        for address in &held {
            Self::forget(&mut self.holders, *address, mac);
        }
        self.count_candidates();
        held
    }

    /// Marks a station as one that says goodbye; the addresses that it held.
    pub(super) fn leave(&mut self, mac: MacAddr) -> Vec<IpAddr> {
        let held = self.bury(mac);
        if let Some(peer) = self.stations.get_mut(&mac) {
            peer.left = true;
        }
        held
    }

    /// Nodes that are heard now and were not told to be, and, if this node
    /// `hears`, those that fell silent. A node is heard if any of its stations
    /// is. Of `filtered` ones only the HELLO is missing: they are not silent.
    pub(super) fn news(
        &mut self,
        hears: bool,
        filtered: &BTreeSet<MacAddr>,
    ) -> Vec<(Arc<str>, bool)> {
        let mut now: BTreeMap<&Arc<str>, Option<bool>> = BTreeMap::new();
        for (mac, peer) in &self.stations {
            let heard = peer.live && !peer.deaf;
            let is = now.entry(&peer.node).or_default();
            if heard {
                *is = Some(true);
            } else if hears && !peer.left && !filtered.contains(mac) {
                is.get_or_insert(false);
            }
        }
        let news: Vec<(Arc<str>, bool)> = now
            .iter()
            .filter_map(|(node, is)| Some(((*node).clone(), (*is)?)))
            .filter(|(node, is)| self.told.get(node) != Some(is))
            .collect();
        let known: BTreeSet<Arc<str>> = now.into_keys().cloned().collect();
        self.told.retain(|node, _| known.contains(node));
        self.told.extend(news.iter().cloned());
        news
    }

    /// Forgets what a station held; the addresses.
    pub(super) fn clear(&mut self, mac: MacAddr) -> Vec<IpAddr> {
        let Some(peer) = self.stations.get_mut(&mac) else {
            return Vec::new();
        };
        let held = std::mem::take(&mut peer.holdings);
        for address in held.entries.keys() {
            Self::forget(&mut self.holders, *address, mac);
        }
        held.entries.into_keys().collect()
    }

    /// Notes that a live station holds `address`; whether that is news.
    pub(super) fn holds(&mut self, mac: MacAddr, (address, epoch): Entry) -> bool {
        let Some(peer) = self.stations.get_mut(&mac) else {
            return false;
        };
        if peer.holdings.entries.get(&address) == Some(&epoch) {
            return false;
        }
        peer.holdings.insert(address, epoch);
        self.holders.entry(address).or_default().insert(mac, epoch);
        true
    }

    /// Notes that a station does not hold `address`; whether that is news.
    pub(super) fn drops(&mut self, mac: MacAddr, address: IpAddr) -> bool {
        let Some(peer) = self.stations.get_mut(&mac) else {
            return false;
        };
        Self::forget(&mut self.holders, address, mac);
        peer.holdings.remove(address)
    }

    /// Whether the station may be asked: once in `every`. Notes it if so.
    pub(super) fn may_ask(&mut self, mac: MacAddr, every: Duration, now: Instant) -> bool {
        let Some(peer) = self.stations.get_mut(&mac) else {
            return false;
        };
        let may = peer.asked.is_none_or(|at| now.since(at) >= every);
        if may {
            peer.asked = Some(now);
        }
        may
    }

    /// An own round was executed.
    pub(super) fn round(&mut self) {
        for peer in self.stations.values_mut() {
            peer.rounds = peer.rounds.saturating_add(1);
        }
    }

    /// Forgets the station that is silent for longest, if one is. Nobody else:
    /// who is forgotten can be impersonated by what it once said.
    fn forget_one(&mut self) -> bool {
        let silent = self.stations.iter().filter(|(_, peer)| !peer.live);
        let oldest = silent
            .min_by_key(|(_, peer)| peer.heard)
            .map(|(mac, _)| *mac);
        oldest.is_some_and(|mac| self.stations.remove(&mac).is_some())
    }

    /// Takes back all misses: this node cannot tell who was silent.
    pub(super) fn pardon(&mut self, now: Instant) {
        for peer in self.stations.values_mut().filter(|peer| peer.live) {
            peer.heard = now;
            peer.rounds = 0;
        }
    }

    /// The live stations that are silent now: not heard for the dead time, in
    /// which this node executed its rounds.
    pub(super) fn silent(&self, timers: &Timers, now: Instant) -> Vec<MacAddr> {
        let dead_after = timers.dead_after();
        self.live()
            .filter(|(_, peer)| peer.rounds >= timers.misses && now >= peer.heard + dead_after)
            .map(|(mac, _)| mac)
            .collect()
    }

    /// When [`Self::silent`] may have something, if no round comes before.
    pub(super) fn next_silent(&self, timers: &Timers) -> Option<Instant> {
        self.live()
            .filter(|(_, peer)| peer.rounds >= timers.misses)
            .map(|(_, peer)| peer.heard + timers.dead_after())
            .min()
    }

    fn forget(
        holders: &mut BTreeMap<IpAddr, BTreeMap<MacAddr, u64>>,
        address: IpAddr,
        mac: MacAddr,
    ) {
        if let Some(of) = holders.get_mut(&address) {
            of.remove(&mac);
            if of.is_empty() {
                holders.remove(&address);
            }
        }
    }

    fn count_candidates(&mut self) {
        self.candidates = self
            .stations
            .values()
            .filter(|peer| peer.live && !peer.deaf)
            .map(|peer| peer.node.clone())
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);

    fn at(ms: u64) -> Instant {
        Instant::from_start(Duration::from_millis(ms))
    }

    fn heard(peers: &mut Peers, stamp: (u64, u64), now: Instant) -> Result<Heard, Refused> {
        let heard = peers.hear(A, "a", stamp, now);
        if heard.is_ok() {
            peers.revive(A, false);
        }
        heard
    }

    #[test]
    fn silence_needs_both_the_dead_time_and_the_executed_rounds() {
        let timers = Timers::default();
        let mut peers = Peers::default();
        heard(&mut peers, (1, 1), at(0)).unwrap();
        // Two rounds in a second: this node was slow, not the peer silent.
        for ms in [500, 1_000] {
            peers.round();
            assert!(peers.silent(&timers, at(ms)).is_empty());
            assert_eq!(peers.next_silent(&timers), None);
        }
        peers.round();
        assert_eq!(peers.silent(&timers, at(1_000)), [A]);

        // Three rounds, but the margin is not over.
        heard(&mut peers, (1, 2), at(2_000)).unwrap();
        for _ in 0..3 {
            peers.round();
        }
        assert!(peers.silent(&timers, at(2_319)).is_empty());
        assert_eq!(peers.next_silent(&timers), Some(at(2_320)));
        assert_eq!(peers.silent(&timers, at(2_320)), [A]);
        peers.pardon(at(2_320));
        assert!(peers.silent(&timers, at(9_000)).is_empty());
    }

    #[test]
    fn only_newer_frames_are_believed_also_of_a_silent_peer() {
        let mut peers = Peers::default();
        let earlier = Err(Refused::Earlier { known: 6 });
        let cases = [
            ((5, 1), Ok(Heard::New)),
            ((5, 2), Ok(Heard::Known)),
            ((5, 2), Err(Refused::Replay)),
            ((5, 1), Err(Refused::Replay)),
            ((4, 9), Err(Refused::Earlier { known: 5 })),
            ((6, 1), Ok(Heard::Restarted)),
            ((5, 3), earlier),
        ];
        for (stamp, expected) in cases {
            assert_eq!(heard(&mut peers, stamp, at(1)), expected, "{stamp:?}");
        }
        peers.bury(A);
        assert_eq!(heard(&mut peers, (6, 1), at(2)), Err(Refused::Replay));
        assert_eq!(heard(&mut peers, (3, 1), at(1_000_000)), earlier);
        assert_eq!(
            peers.hear(A, "renamed", (3, 1), at(1_000_000)),
            Err(Refused::Earlier { known: 6 })
        );
        assert_eq!(peers.live().count(), 0);
        assert_eq!(heard(&mut peers, (6, 2), at(1_000_000)), Ok(Heard::New));
    }

    #[test]
    fn a_full_table_forgets_who_is_silent_for_longest_and_nobody_live() {
        let mut peers = Peers::default();
        let station = |n: usize| {
            let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
            MacAddr(2, 0, 0, 1, high, low)
        };
        for n in 0..MOST {
            peers.hear(station(n), "n", (1, 1), at(n as u64)).unwrap();
            peers.revive(station(n), false);
        }
        assert_eq!(peers.hear(A, "a", (1, 1), at(1)), Err(Refused::Full));
        peers.bury(station(7));
        peers.bury(station(3));
        assert_eq!(peers.hear(A, "a", (1, 1), at(1)), Ok(Heard::New));
        assert!(peers.get(station(3)).is_none() && peers.get(station(7)).is_some());
    }

    #[test]
    fn a_lists_digest_depends_on_what_is_in_it_alone() {
        let (x, y): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut one = Holdings::default();
        assert_eq!(one.summary(), (0, 0));
        one.insert(x, 1);
        one.insert(y, 2);
        let mut other = Holdings::default();
        other.insert(y, 9);
        other.insert(y, 2);
        other.insert(x, 1);
        assert_eq!(one.summary(), other.summary());
        other.insert(x, 3);
        assert_ne!(one.summary(), other.summary());
        assert!(other.remove(x) && other.remove(y) && !other.remove(y));
        assert_eq!(other.summary(), (0, 0));
    }
}

//! What comes in: frames of ARP, of Neighbour Discovery and of peers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::super::machine::Trigger;
use super::super::peers::{Heard, Refused};
use super::super::rank;
use super::{Output, Segment};
use crate::MacAddr;
use crate::frame::{self, Arp, Body, Entry, Ethernet, Message, Ndp};
use crate::time::Instant;
use crate::types::Cause;

/// How much later others look at an address whose owner said that it is gone.
const AFTER_REMOVAL: Duration = Duration::from_secs(2);
/// How often a node is told that it speaks as an earlier life of itself.
const TELL_STALE: Duration = Duration::from_secs(1);

impl Segment {
    pub(super) fn frame(&mut self, bytes: &[u8], now: Instant) {
        if !self.up || self.leaving {
            return;
        }
        let result = Ethernet::decode(bytes).and_then(|ethernet| {
            if self.local.contains(&ethernet.source) {
                self.count("looped");
                return Ok(());
            }
            self.note_heard(now);
            if ethernet.ethertype == frame::ARP {
                self.count("arp");
                self.arp(Arp::decode(ethernet.payload)?, now);
            } else if ethernet.ethertype == frame::IPV6 {
                self.count("ndp");
                self.ndp(Ndp::decode(&ethernet)?, now);
            } else if ethernet.ethertype == self.config.ethertype {
                let credentials = &self.config.credentials;
                let message = Message::decode(credentials, ethernet.source, ethernet.payload)?;
                self.message(ethernet.source, message, now);
            } else {
                return Err(frame::FrameError::EtherType);
            }
            Ok(())
        });
        if let Err(error) = result {
            self.count(error.kind());
        }
    }

    fn arp(&mut self, arp: Arp, now: Instant) {
        let mac = arp.sender_mac;
        if self.local.contains(&mac) {
            self.count("looped");
            return;
        }
        if !arp.sender.is_unspecified() {
            let sender = IpAddr::V4(arp.sender);
            self.heard_with(mac, sender, now);
            if self.peers.get(mac).is_none() && !self.records.contains_key(&sender) {
                self.note_host(arp.sender);
            }
        }
        if arp.operation == frame::Operation::Request && arp.sender != arp.target {
            let answer = |own| arp.answer(own).frame();
            self.asked(mac, IpAddr::V4(arp.target), arp.is_probe(), answer, now);
        }
    }

    fn ndp(&mut self, ndp: Ndp, now: Instant) {
        match ndp {
            Ndp::Advertisement(told) if self.local.contains(&told.mac) => self.count("looped"),
            Ndp::Advertisement(told) => self.heard_with(told.mac, IpAddr::V6(told.target), now),
            Ndp::Solicitation(asks) => {
                // A loop may have a bridge in it that changes hardware
                // addresses: hence the nonce (RFC 7527).
                let own = |nonce| nonce == self.nonce(asks.target);
                if asks.nonce.is_some_and(own) || self.local.contains(&asks.mac) {
                    self.count("looped");
                    return;
                }
                if !asks.is_probe() {
                    self.heard_with(asks.mac, IpAddr::V6(asks.source), now);
                }
                if asks.source != asks.target {
                    let answer = |own| asks.answer(own).frame();
                    let target = IpAddr::V6(asks.target);
                    self.asked(asks.mac, target, asks.is_probe(), answer, now);
                }
            }
        }
    }

    /// A station asks who has an address; a probe means to take it.
    fn asked(
        &mut self,
        mac: MacAddr,
        address: IpAddr,
        probe: bool,
        answer: impl FnOnce(MacAddr) -> Vec<u8>,
        now: Instant,
    ) {
        let Some(record) = self.records.get(&address) else {
            return;
        };
        let owned = record.machine.owned().is_some();
        if probe {
            match self.peers.get(mac) {
                Some(peer) => {
                    let me = &self.config.node;
                    let before = rank::before(&record.assignment, address, &peer.node, me);
                    let outranks = before && !peer.deaf;
                    self.step(address, Trigger::PeerProbe { outranks, mac }, now);
                }
                // Somebody else is about to take it (RFC 5227 2.1.1). A held
                // address is simply defended by the answer.
                None if !owned => self.step(address, Trigger::Foreign { mac }, now),
                None => {}
            }
        }
        if owned {
            self.count("answers");
            self.outputs
                .push_back(Output::Frame(answer(self.config.mac)));
        }
    }

    /// A station says that it has an address.
    fn heard_with(&mut self, mac: MacAddr, address: IpAddr, now: Instant) {
        let record = self.records.get(&address);
        let owned = record.is_some_and(|record| record.machine.owned().is_some());
        let trigger = match self.peers.get(mac) {
            Some(peer) if peer.filtered && !owned => return self.filtered(mac, address, now),
            // Who hears nobody has not heard the question either.
            Some(peer) if peer.live && peer.deaf && !owned => Trigger::SilentAnswer { mac },
            Some(peer) if peer.live => match peer.holdings.entries().get(&address) {
                // Its list tells more: the claim may be of an older object.
                Some(epoch) => return self.claimed(mac, (address, *epoch), now),
                None => Trigger::PeerAnswer { mac },
            },
            Some(_) => Trigger::SilentAnswer { mac },
            None => Trigger::Foreign { mac },
        };
        self.step(address, trigger, now);
    }

    fn message(&mut self, mac: MacAddr, message: Message, now: Instant) {
        if message.node == self.config.node {
            // Another interface of this node on the same segment, or another
            // node that was given this one's name.
            self.count("own_name");
            return;
        }
        let stamp = (message.incarnation, message.seq);
        let heard = match self.peers.hear(mac, &message.node, stamp, now) {
            Ok(heard) => heard,
            Err(Refused::Replay) => return self.count("replay"),
            Err(Refused::Earlier { known }) => {
                self.count("replay");
                if self.peers.may_ask(mac, TELL_STALE, now) {
                    self.send(Body::Stale { known }, mac);
                }
                return;
            }
            Err(Refused::Full) => return self.count("too_many_peers"),
        };
        if let Body::Hello { leaving: true, .. } = message.body {
            let orphans = self.peers.leave(mac);
            self.reconsider_all(orphans, Duration::ZERO, Cause::OwnerLeft, now);
            self.peers.clear(mac);
            return;
        }
        let was = self.peers.get(mac).map(|peer| (peer.live, peer.deaf));
        let silent = was.is_none_or(|(live, deaf)| !live || deaf);
        if was.is_some_and(|(live, _)| !live) && heard == Heard::New {
            self.peers.mute(mac, true);
        }
        match message.body {
            Body::Hello { deaf, .. } => {
                self.peers.mute(mac, false);
                if !deaf && self.peers.filtered(mac, false) {
                    self.hello_comes(mac);
                }
                self.hears_again(now);
            }
            // It asks whether this node lives; that it lives itself, its HELLO
            // would say.
            Body::Sync if silent => return self.tell_all(mac),
            Body::SyncAnswer { .. } if silent => {
                self.peers.filtered(mac, true);
            }
            Body::Claim(_)
            | Body::Handover(_)
            | Body::Release { .. }
            | Body::Sync
            | Body::SyncAnswer { .. }
            | Body::Stale { .. } => {}
        }
        // What a station held before it was silent may have changed.
        let unchanged = match (&message.body, self.peers.get(mac)) {
            (Body::Hello { count, digest, .. }, Some(peer)) => {
                peer.holdings.summary() == (*count, *digest)
            }
            _ => false,
        };
        let void = match heard {
            Heard::Known => Vec::new(),
            Heard::New if unchanged => Vec::new(),
            Heard::New | Heard::Restarted => self.peers.clear(mac),
        };
        let deaf = match message.body {
            Body::Hello { deaf, .. } => deaf,
            // It has heard this node's question.
            Body::SyncAnswer { .. } => false,
            _ => self.peers.get(mac).is_some_and(|peer| peer.deaf),
        };
        for entry in self.peers.revive(mac, deaf) {
            self.claimed(mac, entry, now);
        }
        if heard == Heard::New && was.is_some_and(|(live, _)| !live) {
            self.healed(now);
        }
        if deaf && was == Some((true, false)) {
            let held = self.peers.get(mac).map(|peer| peer.holdings.entries());
            let held = held.map_or_else(Vec::new, |held| held.keys().copied().collect());
            self.reconsider_all(held, Duration::ZERO, Cause::OwnerDeaf, now);
        }
        match message.body {
            Body::Hello { count, digest, .. } => {
                let known = self.peers.get(mac).map(|peer| peer.holdings.summary());
                if known != Some((count, digest))
                    && self.peers.may_ask(mac, self.config.timers.hello, now)
                {
                    self.count("sync");
                    self.send(Body::Sync, mac);
                }
            }
            Body::Claim(entries) => {
                for entry in entries {
                    self.peers.holds(mac, entry);
                    self.claimed(mac, entry, now);
                }
            }
            Body::Release { removed, entries } => {
                let delay = if removed {
                    AFTER_REMOVAL
                } else {
                    Duration::ZERO
                };
                let named = entries.into_iter().map(|(address, _)| address);
                let named: Vec<IpAddr> = named.collect();
                for address in &named {
                    self.step(*address, Trigger::PeerReleased, now);
                }
                let free: Vec<IpAddr> = named
                    .into_iter()
                    .filter(|address| self.peers.drops(mac, *address))
                    .collect();
                self.reconsider_all(free, delay, Cause::OwnerReleased, now);
            }
            Body::Sync => self.tell_all(mac),
            Body::Handover(entries) => {
                for entry in entries {
                    self.handed(mac, entry, now);
                }
            }
            Body::Stale { known } => self.grow_beyond(known),
            Body::SyncAnswer { from, to, entries } => self.synced(mac, (from, to), entries, now),
        }
        self.reconsider_all(void, Duration::ZERO, Cause::OwnerReleased, now);
        if silent || deaf {
            self.tell_peers(now);
        }
    }

    /// A peer knows a later life of this node: the clock was set back between
    /// the two. All that it says from now on is of a later one.
    fn grow_beyond(&mut self, known: u64) {
        if known >= self.config.incarnation {
            self.count("reincarnated");
            self.config.incarnation = known.saturating_add(1);
            self.hello(false);
        }
    }

    /// A peer told all that it holds in a range.
    fn synced(
        &mut self,
        mac: MacAddr,
        (from, to): (IpAddr, IpAddr),
        entries: Vec<Entry>,
        now: Instant,
    ) {
        let told: BTreeSet<IpAddr> = entries.iter().map(|(address, _)| *address).collect();
        let gone: Vec<IpAddr> = match self.peers.get(mac) {
            Some(peer) if from <= to => peer
                .holdings
                .entries()
                .range(from..=to)
                .map(|(address, _)| *address)
                .filter(|address| !told.contains(address))
                .collect(),
            _ => Vec::new(),
        };
        for address in &gone {
            self.peers.drops(mac, *address);
        }
        for entry in entries {
            if self.peers.holds(mac, entry) {
                self.claimed(mac, entry, now);
            }
        }
        self.reconsider_all(gone, Duration::ZERO, Cause::OwnerReleased, now);
    }

    /// A live peer holds an address.
    fn claimed(&mut self, mac: MacAddr, (address, epoch): Entry, now: Instant) {
        let Some(record) = self.records.get_mut(&address) else {
            return;
        };
        let Some(peer) = self.peers.get(mac) else {
            return;
        };
        let node = peer.node.to_string();
        let machine = &mut record.machine;
        if peer.deaf {
            return self.deaf_claim(mac, (address, epoch), &node, now);
        }
        let higher = match machine.claim() {
            Some(mine) => (epoch, node.as_str()) > (mine, self.config.node.as_str()),
            None => epoch > machine.base() && machine.is_current(epoch, &node),
        };
        machine.learn(epoch, &node);
        if higher && record.filtered.by() != Some(mac) {
            self.not_filtered(address, now);
        }
        self.step(address, Trigger::Claim { higher, node, mac }, now);
    }

    /// A peer that hears nobody says that it holds an address. It cannot know
    /// better: whoever holds it stays above that claim, and brings clients back.
    fn deaf_claim(&mut self, mac: MacAddr, (address, epoch): Entry, node: &str, now: Instant) {
        let Some(record) = self.records.get_mut(&address) else {
            return;
        };
        record.machine.learn(epoch, node);
        let actions = record.machine.raise(now);
        if actions.is_empty() && record.machine.owned().is_some() {
            let (higher, node) = (false, node.to_owned());
            self.step(address, Trigger::Claim { higher, node, mac }, now);
        }
        self.note_claim(address);
        for action in actions {
            self.perform(address, action, now);
        }
    }
}

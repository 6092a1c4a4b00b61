//! Whether this node hears: a cable that fails in one direction makes all
//! others look dead.
//!
//! Nobody is declared dead by who hears nothing at all. A node whose peers all
//! fell silent is deaf, and says so in its HELLO: peers that hear it take its
//! addresses. It answers for them on, for they may be the ones that died, but
//! announces none. Before it takes an address of theirs, something must have
//! come in: any frame will do, and hosts that were heard before are asked for
//! one. Only where no host was ever heard there is nothing to go by.

use std::net::Ipv4Addr;

use super::super::machine::Trigger;
use super::{Output, Segment};
use crate::frame::Arp;
use crate::time::Instant;

/// Hosts that are remembered.
const HOSTS: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// When any frame of another station came.
    heard: Instant,
    /// All peers fell silent; none was heard since.
    pub(super) deaf: bool,
    /// While deaf: something came in since.
    proven: bool,
    /// Rounds since anything came.
    rounds: u32,
    /// Hosts that are none of ours, the last heard last.
    hosts: Vec<Ipv4Addr>,
}

impl Segment {
    /// A frame of another station came in.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.hearing.heard = now;
        self.hearing.proven = true;
    }

    /// A host that can be asked for a sign.
    pub(super) fn note_host(&mut self, host: Ipv4Addr) {
        let hosts = &mut self.hearing.hosts;
        if !hosts.contains(&host) {
            if hosts.len() >= HOSTS {
                hosts.remove(0);
            }
            hosts.push(host);
        }
    }

    /// Whether this node would hear an answer.
    pub(super) fn hears(&self, now: Instant) -> bool {
        let hearing = &self.hearing;
        if hearing.deaf {
            return hearing.proven || hearing.hosts.is_empty();
        }
        !self.peers.any_live() || self.heard_lately(now)
    }

    fn heard_lately(&self, now: Instant) -> bool {
        now.since(self.hearing.heard) <= self.config.timers.hello.saturating_mul(2)
    }

    /// The last peer fell silent.
    pub(super) fn went_deaf(&mut self, now: Instant) {
        self.count("deaf");
        self.hearing.deaf = true;
        self.hearing.proven = self.heard_lately(now);
        self.for_all(now, |_| Trigger::Deaf);
        // At once: peers that hear it need not wait for the next.
        self.hello(false);
    }

    /// Asks hosts for a sign, if nothing came in for a round: a few times at
    /// once, then every ten rounds.
    pub(super) fn listen_for_hosts(&mut self, now: Instant) {
        let alone = !self.hearing.deaf && !self.peers.any_live();
        // Peers' rounds are not this node's: one interval is nothing unusual.
        let usual = self.config.timers.hello.saturating_mul(3) / 2;
        let quiet = now.since(self.hearing.heard) >= usual;
        if alone || !quiet || (self.hearing.deaf && self.hearing.proven) {
            self.hearing.rounds = 0;
            return;
        }
        let round = self.hearing.rounds;
        self.hearing.rounds = round.saturating_add(1);
        if round > 5 && !round.is_multiple_of(10) {
            return;
        }
        let mac = self.config.mac;
        for host in &self.hearing.hosts {
            let probe = Arp::probe(mac, *host).frame();
            self.outputs.push_back(Output::Frame(probe));
        }
    }

    /// A peer's HELLO came.
    pub(super) fn hears_again(&mut self, now: Instant) {
        if std::mem::take(&mut self.hearing.deaf) {
            self.for_all(now, |_| Trigger::Hearing);
        }
    }
}

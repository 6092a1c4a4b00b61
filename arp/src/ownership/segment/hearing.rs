//! Whether this node hears: a cable that fails in one direction makes all
//! others look dead.
//!
//! Nobody is declared dead by who hears nothing at all. A node whose peers all
//! fell silent is deaf, and says so in its HELLO: peers that hear it take its
//! addresses. It answers for them on, for they may be the ones that died, but
//! announces none. It takes an address of theirs, and announces what it took,
//! only while something comes in: any frame will do, and hosts that were heard
//! before are asked for one. What came in proves nothing for long, for the
//! cable may fail at any time. Only where no host was ever heard there is
//! nothing to go by.

use std::net::{IpAddr, Ipv4Addr};

use super::super::machine::Trigger;
use super::{Output, Segment};
use crate::frame::Arp;
use crate::time::Instant;
use crate::types::Event;

/// Hosts that are remembered. Some switches shut a port on which more than 15
/// ARP frames a second come in (Dynamic ARP Inspection).
const HOSTS: usize = 4;
/// Rounds in which they are asked at once; then it is every tenth.
const EAGER: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// When any frame of another station came.
    heard: Instant,
    /// All peers fell silent; none was heard since.
    pub(super) deaf: bool,
    /// Rounds in which hosts were to be asked, since anything came.
    rounds: u32,
    /// Hosts that are none of ours, the last heard last.
    hosts: Vec<Ipv4Addr>,
    /// When silent peers were last heard again, and whether some were since.
    healed: Option<Instant>,
    heals: bool,
}

impl Segment {
    /// A frame of another station came in.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.hearing.heard = now;
        self.hearing.rounds = 0;
    }

    /// A host that can be asked for a sign.
    pub(super) fn note_host(&mut self, host: Ipv4Addr) {
        let hosts = &mut self.hearing.hosts;
        hosts.retain(|known| *known != host);
        if hosts.len() >= HOSTS {
            hosts.remove(0);
        }
        hosts.push(host);
    }

    /// An address of ours is no host to ask: whoever answered for it before
    /// this node was told of it may be the one that fell silent.
    pub(super) fn no_host(&mut self, address: IpAddr) {
        self.hearing.hosts.retain(|host| *host != address);
    }

    /// Whether this node would hear an answer.
    pub(super) fn hears(&self, now: Instant) -> bool {
        let nothing_to_go_by = if self.hearing.deaf {
            self.hearing.hosts.is_empty()
        } else {
            !self.peers.any_live()
        };
        let lately = self.config.timers.hello.saturating_mul(2);
        nothing_to_go_by || now.since(self.hearing.heard) <= lately
    }

    /// The last peer fell silent.
    pub(super) fn went_deaf(&mut self, now: Instant) {
        self.count("deaf");
        self.hearing.deaf = true;
        self.for_all(now, |_| Trigger::Deaf);
        // At once: peers that hear it need not wait for the next, and what they
        // held may be probed for soon.
        self.hello(false);
        self.ask_hosts();
    }

    /// Asks hosts for a sign, if one is needed and nothing came in for a round.
    /// All of them, for the last one heard may be beyond the wire that failed.
    pub(super) fn listen_for_hosts(&mut self, now: Instant) {
        let hello = self.config.timers.hello;
        let (needed, quiet) = if self.hearing.deaf {
            let soon = now + hello;
            let due = self.deadlines.first().is_some_and(|(at, _)| *at <= soon);
            (due || !self.queue.is_empty(), hello / 2)
        } else {
            // Peers' rounds are not this node's: one interval is nothing unusual.
            (self.peers.any_live(), hello.saturating_mul(3) / 2)
        };
        if !needed || now.since(self.hearing.heard) < quiet {
            self.hearing.rounds = 0;
            return;
        }
        let round = self.hearing.rounds;
        self.hearing.rounds = round.saturating_add(1);
        if round >= EAGER && !round.is_multiple_of(10) {
            return;
        }
        self.ask_hosts();
    }

    fn ask_hosts(&mut self) {
        let mac = self.config.mac;
        for host in self.hearing.hosts.iter().rev() {
            let probe = Arp::probe(mac, *host).frame();
            self.outputs.push_back(Output::Frame(probe));
        }
    }

    /// Tells who is heard and who is not, as far as that is news.
    pub(super) fn tell_peers(&mut self, now: Instant) {
        let hears = self.hears(now);
        let filtered = self.filtered_peers();
        for (node, heard) in self.peers.news(hears, &filtered) {
            let node = node.to_string();
            self.tell(|interface| match heard {
                true => Event::PeerHeard { node, interface },
                false => Event::PeerSilent { node, interface },
            });
        }
    }

    /// A peer's HELLO came.
    pub(super) fn hears_again(&mut self, now: Instant) {
        if std::mem::take(&mut self.hearing.deaf) {
            self.for_all(now, |_| Trigger::Hearing);
        }
    }

    /// A peer that was silent is heard again, in the same life: perhaps as all
    /// else beyond a wire that failed. Hosts there may have missed that
    /// addresses moved, and nobody else may be left there to tell them.
    pub(super) fn healed(&mut self, now: Instant) {
        let every = self.config.timers.dead_after();
        if self.hearing.healed.is_some_and(|at| now.since(at) < every) {
            self.hearing.heals = true;
            return;
        }
        self.hearing.heals = false;
        self.hearing.healed = Some(now);
        self.for_all(now, |_| Trigger::Healed);
    }

    /// The same for those that came too soon after others.
    pub(super) fn heal_later(&mut self, now: Instant) {
        if self.hearing.heals {
            self.healed(now);
        }
    }
}

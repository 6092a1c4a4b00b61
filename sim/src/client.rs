//! A client on the segment: a neighbour cache that behaves as Linux's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bellrock_arp::frame::{Arp, Operation};
use bellrock_arp::{Instant, MacAddr};

use crate::cluster::v4;
use crate::wire::Station;

/// An entry that changed does not change again for so long
/// (net.ipv4.neigh.*.locktime); announcements are let through by kernels of
/// today.
const LOCKTIME: Duration = Duration::from_secs(1);
/// An entry is asked again after so long without a word (base_reachable_time),
/// so often (ucast_solicit), before it is given up.
const REACHABLE: Duration = Duration::from_secs(20);
const SOLICIT: Duration = Duration::from_secs(1);
const SOLICITS: u8 = 3;
/// How long an entry stands at the most that nobody corrects and nobody
/// confirms.
pub(crate) const FORGETS: Duration = Duration::from_secs(20 + 4);
/// How often an unanswered request is repeated: more eager than Linux (1 s),
/// so that its own timer does not hide what is tested.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
struct Entry {
    mac: MacAddr,
    changed: Instant,
    confirmed: Instant,
    solicited: u8,
}

pub(crate) struct Client {
    pub(crate) station: Station,
    pub(crate) mac: MacAddr,
    address: Ipv4Addr,
    /// An older kernel, which holds announcements to the locktime too.
    pub(crate) old: bool,
    cache: BTreeMap<usize, Entry>,
    asked: BTreeMap<usize, Instant>,
    /// Since when it asks for what it has no entry of.
    resolving: BTreeMap<usize, Instant>,
}

impl Client {
    pub(crate) fn new(station: Station, mac: MacAddr, number: u8, old: bool) -> Self {
        Self {
            station,
            mac,
            address: Ipv4Addr::new(192, 0, 2, 200 + number),
            old,
            cache: BTreeMap::new(),
            asked: BTreeMap::new(),
            resolving: BTreeMap::new(),
        }
    }

    /// Whom it sends packets for the address to.
    pub(crate) fn cached(&self, vip: usize) -> Option<MacAddr> {
        self.cache.get(&vip).map(|entry| entry.mac)
    }

    /// Whether it keeps packets for the address until an answer comes, which
    /// may still come in time: as Linux (unres_qlen).
    pub(crate) fn waits(&self, vip: usize, now: Instant) -> bool {
        let since = self.resolving.get(&vip);
        since.is_some_and(|since| now.since(*since) < ASK_EVERY)
    }

    /// What it asks now before it can send, or to go on sending.
    pub(crate) fn asks(&mut self, vip: usize, now: Instant) -> Option<Vec<u8>> {
        let asked = self.asked.get(&vip).copied();
        let since = |every| asked.is_none_or(|at| now.since(at) >= every);
        let mut question = Arp {
            sender: self.address,
            ..Arp::probe(self.mac, v4(vip))
        }
        .frame();
        match self.cache.get_mut(&vip) {
            None => {
                if !since(ASK_EVERY) {
                    return None;
                }
            }
            Some(entry) => {
                if now.since(entry.confirmed) < REACHABLE || !since(SOLICIT) {
                    return None;
                }
                if entry.solicited >= SOLICITS {
                    self.cache.remove(&vip);
                } else {
                    entry.solicited += 1;
                    let to: [u8; 6] = entry.mac.into();
                    question.splice(..6, to);
                }
            }
        }
        if !self.cache.contains_key(&vip) {
            self.resolving.entry(vip).or_insert(now);
        }
        self.asked.insert(vip, now);
        Some(question)
    }

    /// Its answer to a question for its own address.
    pub(crate) fn answers(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let arp = Arp::decode(frame.get(14..)?).ok()?;
        let asked = arp.operation == Operation::Request && arp.target == self.address;
        (asked && arp.sender != self.address).then(|| arp.answer(self.mac).frame())
    }

    /// Takes in what an ARP frame says about an address.
    pub(crate) fn hear(&mut self, vip: usize, arp: &Arp, now: Instant) {
        let announcement = arp.sender == arp.target;
        let fresh = Entry {
            mac: arp.sender_mac,
            changed: now,
            confirmed: now,
            solicited: 0,
        };
        let answer = arp.operation == Operation::Reply && arp.target == self.address;
        match self.cache.get_mut(&vip) {
            Some(entry) if entry.mac == arp.sender_mac && answer => {
                entry.confirmed = now;
                entry.solicited = 0;
            }
            Some(entry) if entry.mac == arp.sender_mac => {}
            Some(entry) => {
                let locked = now.since(entry.changed) < LOCKTIME;
                if !locked || (announcement && !self.old) {
                    *entry = fresh;
                }
            }
            None if answer => {
                self.resolving.remove(&vip);
                self.cache.insert(vip, fresh);
            }
            None => {}
        }
    }
}

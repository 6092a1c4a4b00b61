//! What goes out: HELLOs, claims, probes, announcements, events.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::super::machine::{Action, Trigger};
use super::{Output, Segment, SegmentConfig};
use crate::MacAddr;
use crate::frame::{Advertisement, Arp, Body, ENTRIES, Entry, GROUP, Message, Nonce, Solicitation};
use crate::time::Instant;
use crate::types::{Cause, Event, State};

/// Probes and announcements go out at most so fast, after a burst.
const PACE: Duration = Duration::from_micros(500);
const BURST: Duration = Duration::from_millis(32);
/// A node asks a silent owner whether it lives at most so often.
const ASK_SILENT: Duration = Duration::from_secs(1);

impl Segment {
    /// Does what a state machine wants. Frames are gathered and sent by
    /// [`Self::flush`].
    pub(super) fn perform(&mut self, address: IpAddr, action: Action, now: Instant) {
        match action {
            Action::Transmit => {
                if let Some(record) = self.records.get_mut(&address)
                    && !record.queued
                {
                    record.queued = true;
                    self.queue.push_back(address);
                }
            }
            Action::Claim => {
                if let Some(epoch) = self.claim_of(address) {
                    self.claims.insert(address, epoch);
                }
            }
            Action::ClaimTo(mac) => {
                if let Some(epoch) = self.claim_of(address) {
                    self.claims_to
                        .entry(mac)
                        .or_default()
                        .insert(address, epoch);
                }
            }
            Action::HandOver(mac) => {
                if let Some(epoch) = self.claim_of(address) {
                    let to = self.handovers.entry(mac).or_default();
                    to.insert(address, epoch);
                }
            }
            Action::GiveOn => self.give_on(address, now),
            Action::Release { epoch, removed } => {
                self.releases
                    .entry(removed)
                    .or_default()
                    .push((address, epoch));
            }
            Action::Ask(mac) => {
                if self.peers.may_ask(mac, ASK_SILENT, now) {
                    self.send(Body::Sync, mac);
                }
            }
            Action::Reconsider => {
                let why = self
                    .records
                    .get(&address)
                    .and_then(|record| record.machine.cause());
                let cause = match why {
                    Some(cause @ (Cause::OwnerLeft | Cause::OwnerReleased)) => cause,
                    _ => Cause::OwnerSilent,
                };
                self.reconsider(address, Duration::ZERO, cause, now);
            }
            Action::Owned { cause, from } => {
                let epoch = self.claim_of(address).unwrap_or_default();
                self.count("claims");
                self.not_filtered(address, now);
                self.moved_here(address, cause, now);
                let other = !from.is_empty() && from != self.config.node;
                let from = other.then_some(from);
                self.tell(|interface| Event::Owned {
                    address,
                    epoch,
                    cause,
                    from,
                    interface,
                });
            }
            Action::Lost(cause, to) => {
                self.tell(|interface| Event::Lost {
                    address,
                    cause,
                    to,
                    interface,
                });
            }
            Action::Blocked(mac) => {
                self.tell(|interface| Event::Blocked {
                    address,
                    mac,
                    interface,
                });
            }
            Action::Unblocked => self.tell(|interface| Event::Unblocked { address, interface }),
            Action::ForeignClaim(mac) => {
                self.count("foreign_claims");
                self.tell(|interface| Event::ForeignClaim {
                    address,
                    mac,
                    interface,
                });
            }
        }
    }

    /// Sends what was gathered, and as many probes and announcements as the
    /// pace allows.
    pub(super) fn flush(&mut self, now: Instant) {
        let releases = std::mem::take(&mut self.releases);
        let claims = std::mem::take(&mut self.claims);
        let claims_to = std::mem::take(&mut self.claims_to);
        let handovers = std::mem::take(&mut self.handovers);
        if !self.up {
            return;
        }
        for (removed, entries) in releases {
            for part in entries.chunks(ENTRIES) {
                self.send(
                    Body::Release {
                        removed,
                        entries: part.to_vec(),
                    },
                    GROUP,
                );
            }
        }
        self.send_claims(&claims, GROUP);
        for (mac, claims) in claims_to {
            self.send_claims(&claims, mac);
        }
        for (mac, entries) in handovers {
            self.send_entries(&entries, mac, Body::Handover);
        }
        while now >= self.may_transmit_at() {
            let Some(address) = self.queue.pop_front() else {
                break;
            };
            let Some(record) = self.records.get_mut(&address) else {
                continue;
            };
            record.queued = false;
            let (kind, frame) = match record.machine.state() {
                State::Probe => ("probes", self.probe(address)),
                State::Own => ("announcements", self.announcement(address)),
                State::Idle | State::Wait | State::Deaf | State::Give | State::Blocked => continue,
            };
            self.count(kind);
            self.outputs.push_back(Output::Frame(frame));
            self.paced = self.paced.max(now) + PACE;
            self.step(address, Trigger::Transmitted, now);
        }
    }

    fn probe(&self, address: IpAddr) -> Vec<u8> {
        let mac = self.config.mac;
        match address {
            IpAddr::V4(target) => Arp::probe(mac, target).frame(),
            IpAddr::V6(target) => Solicitation::probe(mac, target, self.nonce(target)).frame(),
        }
    }

    fn announcement(&self, address: IpAddr) -> Vec<u8> {
        let mac = self.config.mac;
        match address {
            IpAddr::V4(address) => Arp::announcement(mac, address).frame(),
            IpAddr::V6(address) => Advertisement::announcement(mac, address).frame(),
        }
    }

    /// What this node's probes for `target` carry here.
    pub(super) fn nonce(&self, target: Ipv6Addr) -> Nonce {
        let SegmentConfig {
            credentials,
            mac,
            incarnation,
            ..
        } = &self.config;
        credentials.nonce(*mac, *incarnation, target)
    }

    /// The earliest moment for the next paced frame.
    pub(super) fn may_transmit_at(&self) -> Instant {
        Instant(self.paced.0.saturating_sub(Instant::from_start(BURST).0))
    }

    pub(super) fn hello(&mut self, leaving: bool) {
        let (count, digest) = self.holdings.summary();
        self.send(
            Body::Hello {
                deaf: self.hearing.deaf,
                leaving,
                count,
                digest,
            },
            GROUP,
        );
    }

    /// Answers a SYNC: the whole list, in parts that are each true alone.
    pub(super) fn tell_all(&mut self, to: MacAddr) {
        let entries: Vec<Entry> = self
            .holdings
            .entries()
            .iter()
            .map(|(address, epoch)| (*address, *epoch))
            .collect();
        let mut from = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut parts = entries.chunks(ENTRIES).peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let end = match parts.peek() {
                Some(_) => part.last().map_or(from, |(address, _)| *address),
                None => IpAddr::V6(Ipv6Addr::from([0xff; 16])),
            };
            self.send(
                Body::SyncAnswer {
                    from,
                    to: end,
                    entries: part.to_vec(),
                },
                to,
            );
            if parts.peek().is_none() {
                return;
            }
            from = end;
        }
    }

    pub(super) fn send(&mut self, body: Body, to: MacAddr) {
        if !self.up {
            return;
        }
        self.seq = self.seq.saturating_add(1);
        let message = Message {
            node: self.config.node.clone(),
            incarnation: self.config.incarnation,
            seq: self.seq,
            body,
        };
        let (ethertype, mac) = (self.config.ethertype, self.config.mac);
        let frame = message.frame(&self.config.credentials, ethertype, mac, to);
        self.outputs.push_back(Output::Frame(frame));
    }

    fn send_claims(&mut self, claims: &BTreeMap<IpAddr, u64>, to: MacAddr) {
        self.send_entries(claims, to, Body::Claim);
    }

    fn send_entries(
        &mut self,
        entries: &BTreeMap<IpAddr, u64>,
        to: MacAddr,
        body: fn(Vec<Entry>) -> Body,
    ) {
        let entries: Vec<Entry> = entries
            .iter()
            .map(|(address, epoch)| (*address, *epoch))
            .collect();
        for part in entries.chunks(ENTRIES) {
            self.send(body(part.to_vec()), to);
        }
    }

    fn claim_of(&self, address: IpAddr) -> Option<u64> {
        self.records.get(&address)?.machine.claim()
    }

    pub(super) fn tell(&mut self, event: impl FnOnce(String) -> Event) {
        let event = event(self.config.interface.clone());
        self.outputs.push_back(Output::Event(event));
    }
}

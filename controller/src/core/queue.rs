//! What is to be looked at, each thing once, and what is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use super::Work;

/// First in, first out, without duplicates; Services before VirtualIPs. Work that is under way,
/// or that would write a VirtualIP that is being written, waits until that has ended.
#[derive(Debug, Default)]
pub(super) struct Queue {
    services: VecDeque<Work>,
    vips: VecDeque<Work>,
    queued: BTreeSet<Work>,
    /// Under way, and the VirtualIPs that each writes.
    busy: BTreeMap<Work, Vec<IpAddr>>,
    busy_vips: BTreeSet<IpAddr>,
    /// Put off until something ends.
    put_off: BTreeSet<Work>,
}

impl Queue {
    pub(super) fn push(&mut self, work: Work) {
        if self.busy.contains_key(&work) {
            self.put_off.insert(work);
            return;
        }
        if self.queued.insert(work.clone()) {
            match work {
                Work::Service(_) => self.services.push_back(work),
                Work::Vip(_) => self.vips.push_back(work),
            }
        }
    }

    /// The next work that is not under way.
    pub(super) fn pop(&mut self) -> Option<Work> {
        let work = self
            .services
            .pop_front()
            .or_else(|| self.vips.pop_front())?;
        self.queued.remove(&work);
        Some(work)
    }

    /// Begins `work`, which writes `vips`; false when it must wait, and is put off.
    pub(super) fn begin(&mut self, work: &Work, vips: &[IpAddr]) -> bool {
        if vips.iter().any(|ip| self.busy_vips.contains(ip)) {
            self.put_off.insert(work.clone());
            return false;
        }
        self.busy_vips.extend(vips);
        self.busy.insert(work.clone(), vips.to_vec());
        true
    }

    pub(super) fn end(&mut self, work: &Work) {
        for ip in self.busy.remove(work).unwrap_or_default() {
            self.busy_vips.remove(&ip);
        }
        for work in std::mem::take(&mut self.put_off) {
            self.push(work);
        }
    }

    /// Forgets the Services that are queued.
    pub(super) fn clear_services(&mut self) {
        for work in self.services.drain(..) {
            self.queued.remove(&work);
        }
    }

    pub(super) fn busy(&self) -> usize {
        self.busy.len()
    }
}

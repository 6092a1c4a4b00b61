//! The API server and the controller, as the speakers see them: VirtualIPs,
//! where they should live, where endpoints are, which nodes drain.
//!
//! Where an address should live is decided by the controller's own placement.

use std::net::{IpAddr, Ipv4Addr};

use bellrock_arp::{Assignment, Eligibility, Recorded};
use bellrock_controller::placement::{Candidate, Choice, Placement};

/// Seconds since 1970 at the start of each run.
pub(crate) const EPOCH: u64 = 1_700_000_000;

/// The address of a VirtualIP by its number.
pub(crate) fn address(vip: usize) -> IpAddr {
    IpAddr::V4(v4(vip))
}

pub(crate) fn v4(vip: usize) -> Ipv4Addr {
    let last = u8::try_from(vip + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(192, 0, 2, last)
}

/// The number of the VirtualIP that has an address.
pub(crate) fn number(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V4(v4) if v4.octets().starts_with(&[192, 0, 2]) => {
            usize::from(v4.octets()[3]).checked_sub(1)
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

pub(crate) fn name(node: usize) -> String {
    format!("n{node:02}")
}

#[derive(Clone, Debug)]
pub(crate) struct VirtualIp {
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) placed: Choice,
    pub(crate) recorded: Option<Recorded>,
    /// Nodes with a local endpoint, where the Service has policy Local.
    pub(crate) local: Option<Vec<bool>>,
}

pub(crate) struct Cluster {
    /// Whether the API server answers.
    pub(crate) up: bool,
    pub(crate) vips: Vec<Option<VirtualIp>>,
    pub(crate) draining: Vec<bool>,
    placement: Placement,
}

impl Cluster {
    pub(crate) fn new(nodes: usize, vips: usize) -> Self {
        Self {
            up: true,
            vips: vec![None; vips],
            draining: vec![false; nodes],
            placement: Placement::new(),
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let stays = self
            .draining
            .iter()
            .enumerate()
            .filter(|(_, drains)| !**drains);
        stays
            .map(|(node, _)| Candidate {
                node: name(node),
                weight: 0,
            })
            .collect()
    }

    /// A new object for the address, at `now` seconds.
    pub(crate) fn create(&mut self, vip: usize, now: u64, local: Option<Vec<bool>>) {
        self.placement.remove(address(vip));
        let placed = self.placement.place(address(vip), &self.candidates());
        let placed = placed.cloned().unwrap_or_default();
        if let Some(slot) = self.vips.get_mut(vip) {
            *slot = Some(VirtualIp {
                created: now,
                placed,
                recorded: None,
                local,
            });
        }
    }

    /// What the controller does after a change; the addresses that move.
    pub(crate) fn reconcile(&mut self) -> Vec<usize> {
        let candidates = self.candidates();
        let mut changed = Vec::new();
        for (number, vip) in self.vips.iter_mut().enumerate() {
            let Some(vip) = vip else { continue };
            if let Some(choice) = self.placement.place(address(number), &candidates)
                && *choice != vip.placed
            {
                vip.placed = choice.clone();
                changed.push(number);
            }
        }
        changed
    }

    /// Somebody wants the address on its first successor.
    pub(crate) fn swap(&mut self, vip: usize) {
        let Some(Some(object)) = self.vips.get_mut(vip) else {
            return;
        };
        if !object.placed.successors.is_empty() {
            let first = object.placed.successors.remove(0);
            let old = std::mem::replace(&mut object.placed.node, first);
            object.placed.successors.push(old);
            self.placement.set(address(vip), object.placed.clone());
        }
    }

    pub(crate) fn eligibility(&self, vip: usize, node: usize) -> Eligibility {
        let here = |local: &Vec<bool>| local.get(node).copied().unwrap_or(false);
        let object = self.vips.get(vip).and_then(Option::as_ref);
        match object {
            Some(object) if object.local.as_ref().is_none_or(here) => {
                if self.draining.get(node) == Some(&true) {
                    Eligibility::Yielding
                } else {
                    Eligibility::Eligible
                }
            }
            Some(_) | None => Eligibility::Ineligible,
        }
    }

    /// What `node`'s speaker makes of the VirtualIP.
    pub(crate) fn assignment(&self, vip: usize, node: usize) -> Option<Assignment> {
        let object = self.vips.get(vip)?.as_ref()?;
        Some(Assignment {
            desired: Some(object.placed.node.clone()),
            successors: object.placed.successors.clone(),
            created: object.created,
            recorded: object.recorded.clone(),
            eligibility: self.eligibility(vip, node),
            interfaces: None,
        })
    }
}

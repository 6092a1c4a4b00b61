//! The segment: hands addresses to the ownership protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bellrock_arp::{Assignment, Eligibility, Handle, Recorded};
use bellrock_forward::ServiceKey;

use crate::cluster::{Cluster, VirtualIp};
use crate::plan::L2Intent;

/// What this node wants on the segment, by address and Service. Several
/// Services may share an address; it is answered while any of them wants it.
#[derive(Debug)]
pub struct L2 {
    handle: Arc<Handle>,
    wanted: BTreeMap<IpAddr, BTreeMap<ServiceKey, L2Intent>>,
    applied: BTreeMap<IpAddr, Assignment>,
}

impl L2 {
    /// Wraps a running ownership driver.
    pub fn new(handle: Handle) -> Self {
        Self {
            handle: Arc::new(handle),
            wanted: BTreeMap::new(),
            applied: BTreeMap::new(),
        }
    }

    /// The driver.
    pub fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Leaves the segment: the successors take over.
    pub fn shutdown(self, within: Duration) {
        if let Err(error) = self.handle.shutdown(within) {
            tracing::warn!(%error, "the ownership driver did not stop in order");
        }
    }

    /// Replaces what one Service wants.
    pub fn set(
        &mut self,
        cluster: &Cluster,
        key: &ServiceKey,
        before: &BTreeMap<IpAddr, L2Intent>,
        now: &BTreeMap<IpAddr, L2Intent>,
    ) {
        for address in before.keys().filter(|address| !now.contains_key(address)) {
            if let Some(services) = self.wanted.get_mut(address) {
                services.remove(key);
                if services.is_empty() {
                    self.wanted.remove(address);
                }
            }
            self.apply(cluster, *address);
        }
        for (address, intent) in now {
            self.wanted
                .entry(*address)
                .or_default()
                .insert(key.clone(), intent.clone());
            self.apply(cluster, *address);
        }
    }

    fn apply(&mut self, cluster: &Cluster, address: IpAddr) {
        let wanted = self
            .wanted
            .get(&address)
            .zip(cluster.virtual_ips.get(&address));
        let Some((services, vip)) = wanted else {
            if self.applied.remove(&address).is_some() {
                self.handle.remove(address);
            }
            return;
        };
        let assignment = assignment(vip, services.values());
        // An address that this node never might hold is not the driver's
        // business; and the first assignment it sees of one may say that this
        // node held it before.
        if assignment.eligibility != Eligibility::Eligible && !self.applied.contains_key(&address) {
            return;
        }
        if self.applied.get(&address) != Some(&assignment) {
            self.handle.assign(address, assignment.clone());
            self.applied.insert(address, assignment);
        }
    }
}

/// One address's assignment from what its Services want.
fn assignment<'a>(vip: &VirtualIp, intents: impl Iterator<Item = &'a L2Intent>) -> Assignment {
    let mut eligible = false;
    let mut yields = false;
    let mut everywhere = false;
    let mut interfaces = BTreeSet::new();
    for intent in intents.filter(|intent| intent.eligible || intent.yields) {
        eligible |= intent.eligible;
        yields |= intent.yields;
        match &intent.interfaces {
            Some(names) => interfaces.extend(names.iter().cloned()),
            None => everywhere = true,
        }
    }
    Assignment {
        desired: vip.desired.clone(),
        successors: vip.successors.clone(),
        created: vip.created,
        recorded: vip
            .recorded
            .clone()
            .map(|(owner, epoch)| Recorded { owner, epoch }),
        eligibility: if eligible {
            Eligibility::Eligible
        } else if yields {
            Eligibility::Yielding
        } else {
            Eligibility::Ineligible
        },
        interfaces: ((eligible || yields) && !everywhere).then_some(interfaces),
    }
}

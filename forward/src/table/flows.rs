//! UDP flows that lead where nothing is any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Table;
use crate::content::Front;
use crate::errno;
use crate::error::Error;
use crate::family::Family;
use crate::netlink::abi::FLOW_GET;
use crate::netlink::flows::{self, Flow, Id};

/// Fronts, and the endpoints to which their flows may lead.
pub(crate) type Ends = BTreeMap<Front, BTreeSet<(IpAddr, u16)>>;

/// Up to so many fronts are dumped one by one, filtered by the kernel.
const ONE_BY_ONE: usize = 4;
/// The most flows that are remembered between a dump and their deletion.
const FLOWS: usize = 50_000;
/// Deletions in one message: their refusals fit the receive buffer.
const DELETIONS: usize = 256;

/// Whether a flow leads to what its front does not.
fn is_stale(ends: &Ends, flow: &Flow) -> bool {
    ends.get(&flow.front)
        .is_some_and(|ends| !ends.contains(&flow.end))
}

impl Table {
    /// Deletes the UDP flows of these fronts that lead elsewhere than to the
    /// endpoints given; each starts anew with its next packet. Returns how
    /// many it were.
    pub(crate) fn clear_flows(&mut self, ends: &Ends) -> Result<usize, Error> {
        let mut requests: Vec<(Family, Option<&Front>)> = Vec::new();
        if ends.len() <= ONE_BY_ONE {
            requests.extend(ends.keys().map(|f| (Family::of(f.address), Some(f))));
        } else {
            let families: BTreeSet<Family> = ends.keys().map(|f| Family::of(f.address)).collect();
            requests.extend(families.into_iter().map(|family| (family, None)));
        }
        let mut cleared = 0;
        for (family, front) in requests {
            loop {
                let stale = self.stale_flows(family, front, ends)?;
                for part in stale.chunks(DELETIONS) {
                    cleared += self.delete_flows(part)?;
                }
                if stale.len() < FLOWS {
                    break;
                }
            }
        }
        Ok(cleared)
    }

    fn stale_flows(
        &mut self,
        family: Family,
        front: Option<&Front>,
        ends: &Ends,
    ) -> Result<Vec<Id>, Error> {
        let stale = self.socket.ask_any(
            (FLOW_GET, family.nfproto()),
            true,
            |w| flows::filter(w, front),
            Vec::new,
            |stale, message| {
                if stale.len() < FLOWS
                    && let Some(flow) = flows::read(message)
                    && is_stale(ends, &flow)
                {
                    stale.push(flow.id);
                }
            },
        )?;
        Ok(stale.unwrap_or_default())
    }

    fn delete_flows(&mut self, flows: &[Id]) -> Result<usize, Error> {
        let failures = self.socket.batch(&flows::delete(flows))?;
        // One that ended by itself is gone, too.
        match failures.iter().find(|f| f.errno != errno::ENOENT) {
            Some(failure) => Err(Error::Kernel {
                doing: "clear UDP flows",
                errno: failure.errno,
                text: failure.text.clone(),
            }),
            None => Ok(flows.len() - failures.len().min(flows.len())),
        }
    }
}

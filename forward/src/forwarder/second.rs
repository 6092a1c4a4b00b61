//! Second chances: connections that were open when an address moved here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Forwarder, Synced};
use crate::error::Error;
use crate::netlink::second::Chance;
use crate::table::Chances;

/// The second chance of the TCP connections to one address that were open
/// when it moved to this node: this node's kernel does not know them, that of
/// the previous owner does, as long as it runs. Packets of connections that
/// are unknown here, unless they open or reset one, go to the previous owner.
///
/// Where that kernel does not run any more, give none: its connections would
/// hang until the chance ends, instead of ending at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondChance {
    /// The index of the interface on which the clients' packets come in, and
    /// on which the previous owner is a neighbour.
    pub interface: u32,
    /// The previous owner's address on that link; for IPv6, link-local or not.
    pub previous: IpAddr,
    /// After this time the kernel ends it, whatever has become of us. To end
    /// it earlier, leave it out of the next call.
    pub lasts: Duration,
}

fn refusal(address: IpAddr, chance: &SecondChance) -> Option<&'static str> {
    let previous = chance.previous;
    if previous.is_ipv4() != address.is_ipv4() {
        Some("The previous owner has no address of this family.")
    } else if previous == address {
        Some("The previous owner's own address is needed, not the one that moved.")
    } else if previous.is_unspecified() || previous.is_multicast() || previous.is_loopback() {
        Some("The previous owner's address is that of no neighbour.")
    } else if chance.interface == 0 {
        Some("No interface has the index 0.")
    } else if chance.lasts.is_zero() {
        Some("A second chance must last for some time.")
    } else {
        None
    }
}

impl Forwarder {
    /// Gives these addresses, and no others, a second chance. One that is in
    /// force already goes on until its end. Returns those that cannot be, with
    /// a sentence; the others are in force.
    ///
    /// They live in tables of their own, `ip bellrock` and `ip6 bellrock`,
    /// which are there as long as there is one. [`Forwarder::sync`] removes
    /// those of an earlier process.
    ///
    /// # Errors
    /// [`Error::NotSynced`] before the first [`Forwarder::sync`];
    /// [`Error::Kernel`] where the kernel refuses, as one without the module
    /// `nft_dup_ipv4` or `nft_dup_ipv6` does. Forwarding is not affected.
    pub fn set_second_chances(
        &mut self,
        chances: &BTreeMap<IpAddr, SecondChance>,
    ) -> Result<BTreeMap<IpAddr, String>, Error> {
        if self.synced == Synced::Never {
            return Err(Error::NotSynced);
        }
        let now = super::now();
        let mut refused = BTreeMap::new();
        let mut wanted = Chances::new();
        for (&address, chance) in chances {
            if let Some(why) = refusal(address, chance) {
                refused.insert(address, why.to_owned());
                continue;
            }
            let key = Chance {
                address,
                interface: chance.interface,
                previous: chance.previous,
            };
            let until = self.table.chance_until(&key).filter(|until| *until > now);
            wanted.insert(key, until.unwrap_or_else(|| end(now, chance.lasts)));
        }
        self.table.set_chances(wanted, now)?;
        Ok(refused)
    }
}

/// Within what a clock can say.
fn end(now: Instant, lasts: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    now + lasts.min(LONGEST)
}

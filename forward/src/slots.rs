//! Slots for session affinity: which endpoint serves which share of the
//! clients. Pure, the same on every node, and stable: by rendezvous hashing
//! an endpoint that comes or goes moves only the clients it gains or loses.

use std::net::IpAddr;

/// The most endpoints that one port can have.
pub(crate) const MAX_ENDPOINTS: usize = 65_535;

/// Slots per endpoint at the least. With 8, one endpoint in 3,000 gets none.
const SHARE: usize = 8;

/// The most slots: beyond 4,096 endpoints, shares shrink.
const MAX_SLOTS: usize = 32_768;

/// How many slots so many endpoints get, if clients are to keep theirs: few
/// numbers, so that a scaling Service seldom passes from one to the next, which moves all clients.
pub(crate) fn count(endpoints: usize) -> usize {
    let mut slots = 64;
    while slots < endpoints.saturating_mul(SHARE) && slots < MAX_SLOTS {
        slots *= 8;
    }
    slots
}

/// The endpoint of each slot. `endpoints` has at least one.
pub(crate) fn sticky(endpoints: &[(IpAddr, u16)]) -> Vec<(IpAddr, u16)> {
    let mut endpoints = endpoints.to_vec();
    endpoints.sort_unstable();
    let seeds: Vec<u64> = endpoints.iter().map(seed).collect();
    (0..count(endpoints.len()))
        .filter_map(|slot| {
            let slot = mix(slot as u64);
            let mut winner = (0, 0);
            for (at, seed) in seeds.iter().enumerate() {
                let score = mix(seed ^ slot);
                // Of two with the same, the last.
                if score >= winner.0 {
                    winner = (score, at);
                }
            }
            endpoints.get(winner.1).copied()
        })
        .collect()
}

fn seed((address, port): &(IpAddr, u16)) -> u64 {
    let bits = match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    // The two halves of the address, each whole.
    let high = u64::try_from(bits >> 64).unwrap_or_default();
    let low = u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
    mix(mix(mix(high) ^ low) ^ u64::from(*port))
}

/// The finaliser of SplitMix64: every bit of the input moves every bit of the
/// output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    fn endpoints(n: u32) -> Vec<(IpAddr, u16)> {
        (0..n)
            .map(|i| (Ipv4Addr::from_bits(0x0a00_0001 + i).into(), 8080))
            .collect()
    }

    #[test]
    fn an_endpoint_that_goes_moves_only_its_own_clients() {
        for n in 2..=8 {
            let all = endpoints(n);
            let before = sticky(&all);
            for gone in 0..all.len() {
                let mut left = all.clone();
                let gone = left.remove(gone);
                for (was, is) in before.iter().zip(sticky(&left)) {
                    assert!(*was == is || *was == gone, "{was:?} moved to {is:?}");
                }
            }
        }
    }

    #[test]
    fn every_endpoint_gets_a_share() {
        for n in [2, 3, 8, 9, 64, 65, 500] {
            let mut share: BTreeMap<_, usize> = BTreeMap::new();
            let slots = sticky(&endpoints(n));
            for slot in &slots {
                *share.entry(*slot).or_default() += 1;
            }
            assert_eq!(share.len(), n as usize, "of {} slots", slots.len());
        }
    }

    #[test]
    fn the_order_of_endpoints_does_not_matter() {
        let mut reversed = endpoints(7);
        reversed.reverse();
        assert_eq!(sticky(&endpoints(7)), sticky(&reversed));
    }
}

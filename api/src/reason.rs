//! Every "no" has a name.
//!
//! The same name reaches a Service's condition, the Event, the metric label, the log field and
//! `bellrock why`. Names are stable: they are part of the API.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not the name of a reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason {name:?}")]
pub struct UnknownReason {
    /// The text as given.
    pub name: String,
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident: $sentence:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $(#[doc = $sentence] $variant,)+
        }

        impl $name {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable name, in camel case.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }

            /// What it means and what to do, in one sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownReason;

            fn from_str(name: &str) -> Result<Self, UnknownReason> {
                Self::ALL
                    .iter()
                    .find(|reason| reason.as_str() == name)
                    .copied()
                    .ok_or_else(|| UnknownReason { name: name.to_owned() })
            }
        }
    };
}

reasons! {
    /// What became of a Service's request for addresses.
    AllocationReason {
        Allocated: "The Service has its addresses.",
        NoPool: "There is no IPAddressPool that assigns addresses by itself; create one, or name a pool in the annotation bellrock.dev/address-pool.",
        PoolNotFound: "The annotation bellrock.dev/address-pool names a pool that does not exist or is not accepted; correct the name or create the pool.",
        PoolExhausted: "Every pool that may serve this Service is used up; add addresses to a pool or delete Services that need none.",
        PoolNotForService: "The pool's serviceAllocation does not allow this Service or its namespace; change the selectors or ask for another pool.",
        AddressNotInPool: "The requested address is in no pool that may serve this Service; ask for another address or extend a pool.",
        AddressInUse: "The requested address belongs to another Service; ask for another address, or share it by giving both Services the same bellrock.dev/sharing-key.",
        AddressReserved: "The requested address is reserved by a VirtualIP that names other Services; add this Service to its claims or ask for another address.",
        AddressResting: "The requested address was freed a moment ago and rests for the pool's reuseDelay; it is assigned when that has passed.",
        AddressInvalid: "The requested address does not parse, or two of one family are requested; write at most one IPv4 and one IPv6 address.",
        AddressOfNode: "The address belongs to a node of this cluster, and announcing it would cut that node off; ask for another address, and take this one out of the pool.",
        AddressBuggy: "The requested address ends in .0 or .255 and the pool avoids those; ask for another address or set avoidBuggyIPs to false.",
        ConflictingRequest: "The Service asks for addresses in spec.loadBalancerIP and in the annotation bellrock.dev/load-balancer-ips; keep one of them.",
        SharingConflict: "The address is shared under another key, on the same port, or with another externalTrafficPolicy; use another key, port or address.",
        FamilyUnavailable: "No pool has a free address of an IP family that the Service requires; add addresses of that family or relax ipFamilyPolicy.",
        FamilyMismatch: "The requested address is of an IP family that the Service does not have; correct the request or the Service's ipFamilies.",
        RequestTooLarge: "The Service's sharing key, ports or selector are more than a VirtualIP can record; the message says which, and how many there may be.",
        NoClusterIP: "The Service has no cluster IP, so its IP families are not known yet; headless Services cannot have an external address.",
        NotLoadBalancer: "The Service is not of type LoadBalancer; it needs no external address.",
    }
}

reasons! {
    /// Why a node announces an address, or does not.
    AnnouncementReason {
        Announced: "This node announces the address.",
        Standby: "Another node owns the address; this one carries no data for it and takes over if the owner fails.",
        NoVirtualIP: "No VirtualIP records the address, so nobody may announce it; look at the Service's condition bellrock.dev/LoadBalancer.",
        NoAdvertisement: "No L2Advertisement or BGPAdvertisement selects the address and the Service; create one or widen its selectors.",
        NodeNotSelected: "The advertisements that select the address do not select this node; widen their nodeSelectors if it should announce.",
        NodeExcluded: "The node carries the label node.kubernetes.io/exclude-from-external-load-balancers; remove it if the node should announce.",
        NodeNetworkUnavailable: "The node's condition NetworkUnavailable is true; check the node's network plugin.",
        NodeOutOfService: "The node carries the taint node.kubernetes.io/out-of-service; remove the taint when the node is back.",
        NodeBeingDeleted: "The node is being deleted or removed by the cluster autoscaler; its addresses move to other nodes.",
        NodeDrained: "The node carries the annotation bellrock.dev/drain; its addresses move to other nodes, and it announces again when the annotation is removed.",
        NodeUnknown: "The node's own Node object has not been seen yet; check that --node-name is the name of a Node.",
        NoLocalEndpoint: "externalTrafficPolicy is Local and no endpoint on this node is ready; schedule a pod here or use the policy Cluster.",
        NoEndpoint: "The Service has no ready endpoint anywhere; check its selector and its pods.",
        ForwardingNotReady: "The node's forwarding does not carry the Service yet; the node announces when the kernel has it.",
        ForwardingRefused: "The node's forwarding cannot carry the Service; the message names the part that it refuses.",
        NoInterface: "The node has no interface that the address can be announced on; check the advertisement's interfaces and the node's links.",
        HeldByForeignHost: "A host that is none of ours answers for the address; free it there or take it out of the pool.",
        HelloFiltered: "Another node answers for the address, but HELLOs between it and this one are lost; let frames to groups and of the speakers' EtherType pass between the nodes.",
        Verifying: "The node checks that nobody else holds the address before it answers.",
        AddressTaken: "The address belongs to a node, a BGP peer, a gateway or the API server; announcing it would cut that off: take it out of the pool.",
        AnsweredByKernel: "An interface of this node has the address, and its kernel answers ARP for it; set ipvs.strictARP in kube-proxy's configuration, or take the address off the interface.",
        SourceRangesInvalid: "An entry of loadBalancerSourceRanges is not a CIDR, so it is unknown whom to let in; correct it.",
        SpeakerSilent: "The node's speaker has not reported for minutes; check its pod and the node.",
        NoPeer: "No BGPPeer is selected for this node; create one or widen the nodeSelectors of the peers.",
        PeerInvalid: "The BGPPeer's settings cannot be used on this node; the message names the one that is wrong.",
        SessionDown: "No BGP session to the selected peers is established; look at the sessions in this node's SpeakerStatus.",
        FamilyUnsupported: "The address's IP family cannot be announced this way by this node or to this peer; use another protocol or family.",
        ConflictingAdvertisements: "Advertisements give the same route different local preferences; make them agree or select fewer.",
        CommunityUnknown: "A BGPAdvertisement names a community alias that no Community defines; define it or write the numbers.",
    }
}

reasons! {
    /// What a node's speaker found there that can keep traffic from arriving. It is told, and
    /// announcing goes on: whether something else lets the traffic pass is not known.
    NodeReason {
        ForwardPolicyDrop: "A chain of another table drops forwarded packets that none of its rules accepts; see that a rule there accepts traffic to pods, as many network plugins do.",
        DockerRules: "Docker's rules filter what this node forwards, traffic to pods too; let it pass in the chain DOCKER-USER, or run no Docker there.",
        KubeProxyMissing: "Forwarding is left to kube-proxy, and none was found on this node; start it, or set forwarding to nftables.",
        TableChanged: "Something else changed or removed the table inet bellrock, and the speaker put it back; find what does so, such as a firewall that flushes all rules, and stop it.",
        HealthCheckPortTaken: "Another process holds the healthCheckNodePort of a Service, so balancers do not hear how many endpoints the node has; the message names it.",
    }
}

reasons! {
    /// Whether a pool is in force.
    PoolReason {
        Accepted: "The pool is in force.",
        AddressInvalid: "An entry of the pool does not parse; the message names it.",
        Overlap: "An entry of the pool overlaps with another entry or with another pool; addresses may belong to one pool only.",
        AddressesInUseOutside: "Services use addresses that the pool no longer holds; they keep them, and the message lists them.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn check<R>(all: &[R], name: fn(R) -> &'static str, sentence: fn(R) -> &'static str)
    where
        R: Copy
            + PartialEq
            + fmt::Debug
            + FromStr<Err = UnknownReason>
            + Serialize
            + for<'de> Deserialize<'de>,
    {
        let names: BTreeSet<&str> = all.iter().map(|r| name(*r)).collect();
        assert_eq!(names.len(), all.len(), "names are unique");
        for reason in all {
            let (name, sentence) = (name(*reason), sentence(*reason));
            // metav1.Condition.reason and Event.reason
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            assert!(name.len() <= 64, "{name}");
            assert!(sentence.ends_with('.'), "{name}: {sentence}");
            assert!(
                !sentence.trim_end_matches('.').contains(". "),
                "{name}: one sentence"
            );
            assert!(sentence.len() <= 200, "{name}: {}", sentence.len());
            assert_eq!(name.parse::<R>().as_ref(), Ok(reason));
            let json = serde_json::to_value(reason).unwrap();
            assert_eq!(json, serde_json::Value::from(name));
            assert_eq!(&serde_json::from_value::<R>(json).unwrap(), reason);
        }
        assert!("Because".parse::<R>().is_err());
    }

    #[test]
    fn every_reason_has_a_stable_name_and_one_sentence() {
        check(
            AllocationReason::ALL,
            AllocationReason::as_str,
            AllocationReason::sentence,
        );
        check(
            AnnouncementReason::ALL,
            AnnouncementReason::as_str,
            AnnouncementReason::sentence,
        );
        check(NodeReason::ALL, NodeReason::as_str, NodeReason::sentence);
        check(PoolReason::ALL, PoolReason::as_str, PoolReason::sentence);
    }
}

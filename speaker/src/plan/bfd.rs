//! Which BGP peers are watched by BFD, and how.

use bellrock_bfd::{Hops, Path, Settings};

use crate::cluster::{Cluster, Peer};

/// How a peer is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Between which addresses.
    pub path: Path,
    /// Timers, and who begins.
    pub settings: Settings,
}

/// How `peer` is watched, and what is not as its profile has it, in words.
/// `distant`: the way to it leads through a router.
///
/// A session that cannot be watched is held all the same: a profile that is
/// missing must not cost the routes.
pub fn watch(cluster: &Cluster, peer: &Peer, distant: bool) -> (Option<Watch>, Option<String>) {
    let Some(name) = &peer.bfd_profile else {
        return (None, None);
    };
    let Some(profile) = cluster.bfd_profiles.get(name) else {
        let problem = format!("BFDProfile {name} does not exist: BFD does not watch the peer");
        return (None, Some(problem));
    };
    let path = Path {
        peer: peer.address,
        local: peer.source,
        interface: None,
        // As the BGP session: routers set theirs up by the same rule.
        hops: if peer.multihop || (distant && peer.peer_asn.is_internal(peer.local_asn)) {
            Hops::Multi {
                minimum_ttl: profile.minimum_ttl,
            }
        } else {
            Hops::Single
        },
    };
    if let Err(error) = path.validate() {
        return (None, Some(format!("BFD does not watch the peer: {error}")));
    }
    let problem = profile.echo.then(|| {
        format!("BFDProfile {name}: echoMode is not supported by this release; BFD watches without")
    });
    let settings = profile.settings;
    (Some(Watch { path, settings }), problem)
}

#[cfg(test)]
mod tests {
    use bellrock_bgp::PeerAsn;

    use super::*;
    use crate::cluster::{BfdProfile, Change, Dirty};

    fn cluster(echo: bool) -> Cluster {
        let mut cluster = Cluster::default();
        let profile = BfdProfile {
            settings: Settings::default(),
            minimum_ttl: 200,
            echo,
        };
        let mut dirty = Dirty::default();
        let change = Change::BfdProfile("fast".to_owned(), Some(profile));
        cluster.apply(change.clone(), "n1", &mut dirty);
        assert!(dirty.peers && !dirty.all);
        let mut dirty = Dirty::default();
        cluster.apply(change, "n1", &mut dirty);
        assert!(dirty.is_empty(), "nothing new");
        cluster
    }

    fn peer(asn: u32) -> Peer {
        Peer {
            bfd_profile: Some("fast".to_owned()),
            ..Peer::new([192, 0, 2, 1].into(), 64512, PeerAsn::Exact(asn))
        }
    }

    #[test]
    fn hops_are_those_of_the_bgp_session() {
        let cluster = cluster(false);
        let hops = |peer: &Peer, distant| watch(&cluster, peer, distant).0.unwrap().path.hops;
        let multi = Hops::Multi { minimum_ttl: 200 };
        let (internal, external) = (peer(64512), peer(64513));
        let multihop = Peer {
            multihop: true,
            ..external.clone()
        };
        for (peer, distant, expected) in [
            (&internal, false, Hops::Single),
            (&internal, true, multi),
            (&external, false, Hops::Single),
            // Its packets do not get further than a router.
            (&external, true, Hops::Single),
            (&multihop, false, multi),
            (&multihop, true, multi),
        ] {
            assert_eq!(hops(peer, distant), expected, "{peer:?}");
        }
    }

    #[test]
    fn what_cannot_be_watched_says_why() {
        let none = Peer {
            bfd_profile: None,
            ..peer(64513)
        };
        assert_eq!(watch(&cluster(true), &none, false), (None, None));
        let other = Peer {
            bfd_profile: Some("slow".to_owned()),
            ..peer(64513)
        };
        let (watched, problem) = watch(&cluster(false), &other, false);
        assert_eq!(watched, None);
        assert!(problem.unwrap().contains("BFDProfile slow does not exist"));
        let link_local = Peer {
            address: "fe80::1".parse().unwrap(),
            ..peer(64513)
        };
        let (watched, problem) = watch(&cluster(false), &link_local, false);
        assert_eq!(watched, None);
        assert!(problem.unwrap().contains("needs an interface"));
        let (watched, problem) = watch(&cluster(true), &peer(64513), false);
        assert!(watched.is_some());
        assert!(problem.unwrap().contains("echoMode is not supported"));
    }
}

//! What the kernel has of routes and addresses: among them the route to a BGP
//! peer, to tell why a session does not come up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, RouteMessageBuilder};

/// Asks the kernel for routes.
#[derive(Debug)]
pub struct Routes {
    handle: Handle,
}

/// How packets leave for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The address is on a segment of this node.
    Connected,
    /// Through a router.
    Gateway,
    /// Not at all.
    None,
}

impl Routes {
    /// Opens a socket; its answers are read on the current runtime.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("open netlink for routes")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Every address that a route of this node leads through.
    pub async fn gateways(&self) -> Result<BTreeSet<IpAddr>> {
        let mut gateways = BTreeSet::new();
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut routes = std::pin::pin!(self.handle.route().get(message).execute());
            while let Some(route) = routes.try_next().await.context("list routes")? {
                let through = route
                    .attributes
                    .iter()
                    .filter_map(|attribute| match attribute {
                        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                        _ => None,
                    });
                gateways.extend(through);
            }
        }
        Ok(gateways)
    }

    /// Every address of this node, by interface.
    pub async fn addresses(&self) -> Result<BTreeMap<String, BTreeSet<IpAddr>>> {
        let mut names = BTreeMap::new();
        let mut links = std::pin::pin!(self.handle.link().get().execute());
        while let Some(link) = links.try_next().await.context("list interfaces")? {
            let name = link
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                });
            names.extend(name.map(|name| (link.header.index, name)));
        }
        let mut all = BTreeMap::<String, BTreeSet<IpAddr>>::new();
        let mut addresses = std::pin::pin!(self.handle.address().get().execute());
        while let Some(address) = addresses.try_next().await.context("list addresses")? {
            let Some(name) = names.get(&address.header.index) else {
                continue;
            };
            // On a point-to-point link the other attribute is the peer's.
            let own = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(own) => Some(*own),
                _ => None,
            };
            let only = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Address(only) => Some(*only),
                _ => None,
            };
            let found = address.attributes.iter().find_map(own);
            let found = found.or_else(|| address.attributes.iter().find_map(only));
            all.entry(name.clone()).or_default().extend(found);
        }
        Ok(all)
    }

    /// The route to `address`.
    pub async fn to(&self, address: IpAddr) -> Result<Route> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, length)
            .context("describe the destination")?
            .build();
        match self.handle.route().get(message).execute().try_next().await {
            Ok(Some(route)) => {
                let gateway = route.attributes.iter().any(|attribute| {
                    matches!(
                        attribute,
                        RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
                    )
                });
                Ok(if gateway {
                    Route::Gateway
                } else {
                    Route::Connected
                })
            }
            Ok(None) => Ok(Route::None),
            // ENETUNREACH and EHOSTUNREACH are the kernel's words for "none".
            Err(rtnetlink::Error::NetlinkError(error))
                if matches!(-error.raw_code(), 101 | 113) =>
            {
                Ok(Route::None)
            }
            Err(error) => Err(error).context("ask for the route"),
        }
    }
}

/// What the route says about a session that is not up.
pub fn hint(route: Route, multihop: bool) -> Option<&'static str> {
    match route {
        Route::None => Some("this node has no route to the peer"),
        Route::Gateway if !multihop => {
            Some("the peer is behind a router: set ebgpMultiHop or peer with the next hop")
        }
        Route::Gateway | Route::Connected => None,
    }
}

#[cfg(test)]
mod tests {
    use bellrock_e2e::netns::{Netns, as_root, veth};

    use super::*;

    #[test]
    fn a_peer_behind_a_router_needs_multihop() {
        assert!(hint(Route::None, true).is_some());
        assert!(hint(Route::Gateway, false).is_some());
        assert_eq!(hint(Route::Gateway, true), None);
        assert_eq!(hint(Route::Connected, false), None);
    }

    #[test]
    fn addresses_are_listed_by_interface_and_a_tunnels_peer_is_not_ours() {
        if !as_root() {
            return;
        }
        let node = Netns::new("addresses").unwrap();
        node.sh(
            "ip link add kube-ipvs0 type bridge && ip addr add 192.0.2.10/32 dev kube-ipvs0 && \
             ip link add ptp0 type bridge && ip addr add 10.1.0.1 peer 10.1.0.2/32 dev ptp0 && \
             ip addr add 2001:db8::1/64 dev ptp0",
        )
        .unwrap();
        let found = node
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async { Routes::open().unwrap().addresses().await.unwrap() })
            })
            .unwrap();
        let of =
            |name: &str| -> Vec<String> { found[name].iter().map(IpAddr::to_string).collect() };
        assert_eq!(of("kube-ipvs0"), ["192.0.2.10"]);
        assert_eq!(of("ptp0"), ["10.1.0.1", "2001:db8::1"]);
    }

    #[test]
    fn the_kernel_tells_connected_routed_and_unreachable_apart() {
        if !as_root() {
            return;
        }
        let (node, router) = (Netns::new("node").unwrap(), Netns::new("router").unwrap());
        veth(&node, "eth1", &router, "eth1").unwrap();
        let ask = |address: &str| {
            let address = address.parse().unwrap();
            node.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async { Routes::open().unwrap().to(address).await.unwrap() })
            })
            .unwrap()
        };
        assert_eq!(ask("192.0.2.1"), Route::None);
        node.sh("ip addr add 192.0.2.2/24 dev eth1").unwrap();
        assert_eq!(ask("192.0.2.1"), Route::Connected);
        assert_eq!(ask("198.51.100.1"), Route::None);
        node.sh("ip route add default via 192.0.2.1").unwrap();
        assert_eq!(ask("198.51.100.1"), Route::Gateway);
        let gateways = node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { Routes::open().unwrap().gateways().await.unwrap() })
        });
        assert_eq!(gateways.unwrap(), ["192.0.2.1".parse().unwrap()].into());
    }
}

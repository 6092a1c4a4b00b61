//! The kernel's route to a BGP peer, to tell why a session does not come up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
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

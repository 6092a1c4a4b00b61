//! The routers: how each is configured, and what it says.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use bellrock_e2e::bird::Bird;
use bellrock_e2e::exabgp::Exabgp;
use bellrock_e2e::frr::Frr;
use bellrock_e2e::gobgp::Gobgp;
use bellrock_e2e::netns::Netns;
use bellrock_e2e::openbgpd::OpenBgpd;
use serde_json::Value;

use crate::configs;
use crate::setup::{NODE, NODE_V6, ROUTER, ROUTER_V6};

/// What a router is told about the one session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    pub(crate) over_v6: bool,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    pub(crate) ipv6_next_hop: bool,
    pub(crate) password: Option<&'static str>,
    pub(crate) ttl_security: bool,
    pub(crate) extended: bool,
    pub(crate) hold: u16,
    /// The router opens the connection too.
    pub(crate) connects: bool,
}

impl Session {
    /// IPv4 over IPv4.
    pub(crate) const PLAIN: Self = Self {
        over_v6: false,
        ipv4: true,
        ipv6: false,
        ipv6_next_hop: false,
        password: None,
        ttl_security: false,
        extended: false,
        hold: 90,
        connects: false,
    };

    /// Our address on it.
    pub(crate) fn node(&self) -> &'static str {
        if self.over_v6 { NODE_V6 } else { NODE }
    }

    /// The router's.
    pub(crate) fn router(&self) -> &'static str {
        if self.over_v6 { ROUTER_V6 } else { ROUTER }
    }
}

/// Which router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Frr,
    Bird,
    Gobgp,
    OpenBgpd,
    Exabgp,
}

/// A running one.
pub(crate) enum Router {
    Frr(Frr),
    Bird(Bird),
    Gobgp(Gobgp),
    OpenBgpd(OpenBgpd),
    Exabgp(Exabgp),
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Frr,
        Self::Bird,
        Self::Gobgp,
        Self::OpenBgpd,
        Self::Exabgp,
    ];

    /// Its name and version.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Frr => "FRR 8.4",
            Self::Bird => "BIRD 2.0",
            Self::Gobgp => "GoBGP 4.8",
            Self::OpenBgpd => "OpenBGPD 7.7",
            Self::Exabgp => "ExaBGP 4.2",
        }
    }

    pub(crate) fn start(self, ns: &Netns, session: &Session) -> Router {
        match self {
            Self::Frr => Router::Frr(Frr::start(ns, &configs::frr(session)).unwrap()),
            Self::Bird => Router::Bird(Bird::start(ns, &configs::bird(session)).unwrap()),
            Self::Gobgp => Router::Gobgp(Gobgp::start(ns, &configs::gobgp(session)).unwrap()),
            Self::OpenBgpd => {
                Router::OpenBgpd(OpenBgpd::start(ns, &configs::openbgpd(session)).unwrap())
            }
            Self::Exabgp => {
                let text = configs::exabgp(session);
                Router::Exabgp(Exabgp::start(ns, session.router(), &text).unwrap())
            }
        }
    }

    /// Whether it puts its routes into the kernel.
    pub(crate) fn has_kernel(self) -> bool {
        matches!(self, Self::Frr | Self::Bird)
    }
}

impl Router {
    /// All that it says about a route.
    pub(crate) fn route(&self, prefix: &str) -> Result<String> {
        let v6 = prefix.contains(':');
        match self {
            Self::Frr(frr) => {
                let family = if v6 { "ipv6" } else { "ipv4" };
                frr.vtysh(&format!("show bgp {family} unicast {prefix}"))
            }
            Self::Bird(bird) => bird.birdc(&format!("show route {prefix} all")),
            Self::Gobgp(gobgp) => gobgp.gobgp(&format!("global rib {}", family_of(v6))),
            Self::OpenBgpd(openbgpd) => openbgpd.bgpctl(&format!("show rib detail {prefix}")),
            Self::Exabgp(exabgp) => {
                let heard = exabgp.heard()?.into_iter().map(|event| event.to_string());
                let of = |event: &String| event.contains(prefix);
                Ok(heard.filter(of).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// The routes that it has accepted, where they are not in the kernel.
    pub(crate) fn table(&self) -> Result<BTreeSet<String>> {
        match self {
            Self::Frr(_) | Self::Bird(_) => unreachable!("look into the kernel"),
            Self::Gobgp(gobgp) => {
                let mut all = BTreeSet::new();
                for v6 in [false, true] {
                    // It says null where there is none.
                    let table = gobgp.json(&format!("global rib {}", family_of(v6)))?;
                    all.extend(
                        table
                            .as_object()
                            .into_iter()
                            .flat_map(|t| t.keys().cloned()),
                    );
                }
                Ok(all)
            }
            Self::OpenBgpd(openbgpd) => {
                let table = openbgpd.json("show rib selected")?;
                let routes = table["rib"].as_array().into_iter().flatten();
                Ok(routes.filter_map(|route| text(&route["prefix"])).collect())
            }
            Self::Exabgp(exabgp) => exabgp.routes(),
        }
    }

    /// All that it says about the session, its log included.
    pub(crate) fn session(&self) -> Result<String> {
        Ok(match self {
            Self::Frr(frr) => {
                frr.vtysh("show bgp neighbors json")? + &std::fs::read_to_string(frr.log("bgpd"))?
            }
            Self::Bird(bird) => {
                bird.birdc("show protocols all node")? + &std::fs::read_to_string(bird.log())?
            }
            Self::Gobgp(gobgp) => gobgp.log(),
            Self::OpenBgpd(openbgpd) => openbgpd.bgpctl("show neighbor")? + &openbgpd.log(),
            Self::Exabgp(exabgp) => {
                let heard = exabgp.heard()?.into_iter().map(|event| event.to_string());
                heard.collect::<Vec<_>>().join("\n")
            }
        })
    }

    /// Asks us for everything again.
    pub(crate) fn refresh(&self) {
        match self {
            Self::Frr(frr) => frr.vtysh("clear bgp ipv4 unicast * in").map(drop),
            Self::Bird(bird) => bird.birdc("reload in node").map(drop),
            Self::Gobgp(_) => unreachable!("it cannot"),
            Self::OpenBgpd(openbgpd) => openbgpd
                .bgpctl(&format!("neighbor {NODE} refresh"))
                .map(drop),
            Self::Exabgp(exabgp) => exabgp.command(&format!(
                "neighbor {NODE} announce route-refresh ipv4 unicast"
            )),
        }
        .unwrap();
    }

    /// Ends the pause that it makes after the end of a session. That of
    /// OpenBGPD is 30 s, and twice as long each time.
    pub(crate) fn end_pause(&self) {
        if let Self::OpenBgpd(openbgpd) = self {
            openbgpd.bgpctl(&format!("neighbor {NODE} up")).unwrap();
        }
    }
}

fn family_of(v6: bool) -> &'static str {
    if v6 { "-a ipv6" } else { "-a ipv4" }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Deadline of what takes long on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

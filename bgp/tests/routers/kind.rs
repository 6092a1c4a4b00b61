//! The routers: how each is configured, and what it says.

use std::time::Duration;

use anyhow::Result;
use bellrock_e2e::bird::Bird;
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::Netns;

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
}

/// A running one.
pub(crate) enum Router {
    Frr(Frr),
    Bird(Bird),
}

impl Kind {
    pub(crate) fn start(self, ns: &Netns, session: &Session) -> Router {
        match self {
            Self::Frr => Router::Frr(Frr::start(ns, &frr_config(session)).unwrap()),
            Self::Bird => Router::Bird(Bird::start(ns, &bird_config(session)).unwrap()),
        }
    }

    /// Whether it speaks RFC 8538: FRR does since 8.3, BIRD 2.0 does not.
    pub(crate) fn takes_hard_resets(self) -> bool {
        self == Self::Frr
    }
}

impl Router {
    /// All that it says about a route.
    pub(crate) fn route(&self, prefix: &str) -> Result<String> {
        match self {
            Self::Frr(frr) => {
                let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
                frr.vtysh(&format!("show bgp {family} unicast {prefix}"))
            }
            Self::Bird(bird) => bird.birdc(&format!("show route {prefix} all")),
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
        })
    }

    /// Asks us for everything again.
    pub(crate) fn refresh(&self) {
        match self {
            Self::Frr(frr) => frr.vtysh("clear bgp ipv4 unicast * in"),
            Self::Bird(bird) => bird.birdc("reload in node"),
        }
        .unwrap();
    }
}

pub(crate) fn frr_config(session: &Session) -> String {
    let node = session.node();
    let mut text = format!(
        "router bgp 64513\n bgp router-id {ROUTER}\n no bgp ebgp-requires-policy\n \
         neighbor {node} remote-as 64512\n neighbor {node} {}\n \
         neighbor {node} timers {} {}\n",
        if session.connects {
            "timers connect 1"
        } else {
            "passive"
        },
        session.hold / 3,
        session.hold
    );
    if let Some(password) = session.password {
        text += &format!(" neighbor {node} password {password}\n");
    }
    if session.ttl_security {
        text += &format!(" neighbor {node} ttl-security hops 1\n");
    }
    if session.ipv6_next_hop {
        text += &format!(" neighbor {node} capability extended-nexthop\n");
    }
    for (family, on) in [("ipv4", session.ipv4), ("ipv6", session.ipv6)] {
        let no = if on { "" } else { "no " };
        text += &format!(
            " address-family {family} unicast\n  {no}neighbor {node} activate\n \
             exit-address-family\n"
        );
    }
    text + "exit\n"
}

pub(crate) fn bird_config(session: &Session) -> String {
    let (node, router) = (session.node(), session.router());
    let mut text = format!(
        "router id {ROUTER};\nprotocol device {{}}\n\
         protocol kernel {{ ipv4 {{ import none; export all; }}; }}\n\
         protocol kernel {{ ipv6 {{ import none; export all; }}; }}\n\
         protocol bgp node {{\n local {router} as 64513;\n neighbor {node} as 64512;\n \
         {} hold time {};\n",
        if session.connects {
            "connect delay time 1; connect retry time 1; error wait time 1, 1;"
        } else {
            "passive;"
        },
        session.hold
    );
    if let Some(password) = session.password {
        text += &format!(" password \"{password}\";\n");
    }
    if session.ttl_security {
        text += " ttl security on;\n";
    }
    if session.extended {
        text += " enable extended messages on;\n";
    }
    let next_hop = if session.ipv6_next_hop {
        " extended next hop on;"
    } else {
        ""
    };
    if session.ipv4 {
        text += &format!(" ipv4 {{ import all; export none;{next_hop} }};\n");
    }
    if session.ipv6 {
        text += " ipv6 { import all; export none; };\n";
    }
    text + "}\n"
}

/// Deadline of what takes long on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

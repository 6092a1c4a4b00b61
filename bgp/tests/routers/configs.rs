//! How each router is configured for a session.

use crate::kind::Session;
use crate::setup::ROUTER;

pub(crate) fn frr(session: &Session) -> String {
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

pub(crate) fn bird(session: &Session) -> String {
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

pub(crate) fn gobgp(session: &Session) -> String {
    let (node, router) = (session.node(), session.router());
    let mut text = format!(
        "[global.config]\nas = 64513\nrouter-id = \"{ROUTER}\"\n\
         local-address-list = [\"{router}\"]\n\
         [[neighbors]]\n[neighbors.config]\nneighbor-address = \"{node}\"\npeer-as = 64512\n"
    );
    if let Some(password) = session.password {
        text += &format!("auth-password = \"{password}\"\n");
    }
    text += &format!(
        "[neighbors.transport.config]\npassive-mode = {}\n\
         [neighbors.timers.config]\nhold-time = {}\nconnect-retry = 1\n\
         [neighbors.graceful-restart.config]\nenabled = true\nnotification-enabled = true\n",
        !session.connects, session.hold
    );
    if session.ttl_security {
        text += "[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n";
    }
    for (family, on) in [("ipv4", session.ipv4), ("ipv6", session.ipv6)] {
        if on {
            text += &format!(
                "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\n\
                 afi-safi-name = \"{family}-unicast\"\n\
                 [neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n"
            );
        }
    }
    text
}

pub(crate) fn openbgpd(session: &Session) -> String {
    let announce = |on| if on { "unicast" } else { "none" };
    let mut text = format!(
        "AS 64513\nrouter-id {ROUTER}\nallow from any\nneighbor {} {{\n remote-as 64512\n \
         holdtime {}\n announce IPv4 {}\n announce IPv6 {}\n announce enhanced refresh yes\n",
        session.node(),
        session.hold,
        announce(session.ipv4),
        announce(session.ipv6)
    );
    if !session.connects {
        text += " passive\n";
    }
    if let Some(password) = session.password {
        text += &format!(" tcp md5sig password {password}\n");
    }
    if session.ttl_security {
        text += " ttl-security yes\n";
    }
    text + "}\n"
}

pub(crate) fn exabgp(session: &Session) -> String {
    let mut text = format!(
        "neighbor {} {{\n router-id {ROUTER};\n local-address {};\n local-as 64513;\n \
         peer-as 64512;\n hold-time {};\n passive {};\n",
        session.node(),
        session.router(),
        session.hold,
        !session.connects
    );
    if let Some(password) = session.password {
        text += &format!(" md5-password {password};\n");
    }
    let families = [("ipv4", session.ipv4), ("ipv6", session.ipv6)];
    let families = families.iter().filter(|(_, on)| *on);
    let families: String = families
        .map(|(family, _)| format!(" {family} unicast;"))
        .collect();
    let switch = |on| if on { "enable" } else { "disable" };
    text += &format!(
        " capability {{\n  graceful-restart 120;\n  route-refresh enable;\n  extended-message {};\n  nexthop {};\n }}\n \
         family {{{families} }}\n",
        switch(session.extended),
        switch(session.ipv6_next_hop)
    );
    if session.ipv6_next_hop {
        text += " nexthop { ipv4 unicast ipv6; }\n";
    }
    text + " api {\n  processes [ helper ];\n  neighbor-changes;\n  \
            receive { parsed; open; update; notification; }\n }\n}\n"
}

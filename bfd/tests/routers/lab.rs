//! A node and a router on one cable, or with another router between them.

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_bfd::{
    Change, DownReason, Event, EventReceiver, Handle, Path, SessionId, SessionStatus, Settings,
    State, Timers,
};
use bellrock_e2e::netns::{Netns, veth, wait_for};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const NODE: &str = "192.0.2.10";
pub(crate) const ROUTER: &str = "192.0.2.1";
pub(crate) const NODE_V6: &str = "2001:db8::10";
pub(crate) const ROUTER_V6: &str = "2001:db8::1";
pub(crate) const NODE_LINK: &str = "fe80::10";
pub(crate) const ROUTER_LINK: &str = "fe80::1";
/// On the loopbacks, for multihop.
pub(crate) const NODE_FAR: &str = "198.51.100.10";
pub(crate) const ROUTER_FAR: &str = "198.51.100.1";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The same interval both ways, in milliseconds.
pub(crate) fn settings(interval: u64, multiplier: u8) -> Settings {
    both(interval, interval, multiplier)
}

pub(crate) fn both(transmit: u64, receive: u64, multiplier: u8) -> Settings {
    Settings {
        timers: Timers {
            transmit: Duration::from_millis(transmit),
            receive: Duration::from_millis(receive),
            multiplier: NonZeroU8::new(multiplier).unwrap(),
        },
        ..Settings::default()
    }
}

/// Our driver in a namespace.
pub(crate) struct Speaker {
    pub(crate) handle: Handle,
    pub(crate) events: EventReceiver,
}

impl Speaker {
    pub(crate) fn start(ns: &Netns) -> Self {
        let (handle, events) = ns.run(Handle::start).unwrap().unwrap();
        Self { handle, events }
    }

    pub(crate) fn status(&self, id: SessionId) -> Result<SessionStatus> {
        let mut sessions = self.handle.snapshot().sessions;
        sessions.remove(&id).context("no such session")
    }

    pub(crate) fn wait(
        &self,
        id: SessionId,
        what: &str,
        condition: impl Fn(&SessionStatus) -> bool,
    ) -> SessionStatus {
        wait_for(what, PATIENCE, || {
            let status = self.status(id)?;
            ensure!(condition(&status), "{status:?}");
            Ok(status)
        })
    }

    pub(crate) fn wait_up(&self, id: SessionId) -> SessionStatus {
        self.wait(id, "the session to be up and its poll answered", |status| {
            status.state == State::Up && !status.polling
        })
    }

    /// The next event but changes of intervals.
    pub(crate) fn event(&mut self) -> Event {
        let events = &mut self.events;
        wait_for("an event", PATIENCE, || {
            loop {
                let event = events.try_recv()?;
                if !matches!(event.change, Change::Intervals(_)) {
                    return Ok(event);
                }
            }
        })
    }

    pub(crate) fn expect(&mut self, id: SessionId, change: Change) {
        let expected = Event {
            session: id,
            change,
        };
        assert_eq!(self.event(), expected);
    }

    pub(crate) fn expect_down(&mut self, id: SessionId) -> DownReason {
        let event = self.event();
        assert_eq!(event.session, id);
        match event.change {
            Change::Down(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// A node, a router, and the cable between them.
pub(crate) struct Lab {
    pub(crate) node: Netns,
    pub(crate) router: Netns,
    _between: Option<Netns>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (node, router) = (Netns::new("node").unwrap(), Netns::new("router").unwrap());
        veth(&node, "eth0", &router, "eth0").unwrap();
        for (ns, v4, v6, link) in [
            (&node, NODE, NODE_V6, NODE_LINK),
            (&router, ROUTER, ROUTER_V6, ROUTER_LINK),
        ] {
            ns.sh(&format!(
                "ip addr add {v4}/24 dev eth0; ip addr add {v6}/64 dev eth0 nodad
                 ip -6 addr flush dev eth0 scope link
                 ip addr add {link}/64 dev eth0 nodad"
            ))
            .unwrap();
        }
        Self {
            node,
            router,
            _between: None,
        }
    }

    /// With a router between them, which takes one from each TTL.
    pub(crate) fn far() -> Self {
        let names = ["node", "router", "between"];
        let [node, router, between] = names.map(|name| Netns::new(name).unwrap());
        veth(&node, "eth0", &between, "eth0").unwrap();
        veth(&router, "eth0", &between, "eth1").unwrap();
        between
            .sh("sysctl -qw net.ipv4.ip_forward=1
                 ip addr add 192.0.2.254/24 dev eth0; ip addr add 203.0.113.254/24 dev eth1
                 ip route add 198.51.100.10 via 192.0.2.10
                 ip route add 198.51.100.1 via 203.0.113.1")
            .unwrap();
        for (ns, address, gateway, far) in [
            (&node, "192.0.2.10", "192.0.2.254", NODE_FAR),
            (&router, "203.0.113.1", "203.0.113.254", ROUTER_FAR),
        ] {
            ns.sh(&format!(
                "ip addr add {address}/24 dev eth0; ip addr add {far}/32 dev lo
                 ip route add default via {gateway}"
            ))
            .unwrap();
        }
        Self {
            node,
            router,
            _between: Some(between),
        }
    }

    /// Neither hears anything any more; their links stay up.
    pub(crate) fn silence(&self) {
        for ns in [&self.node, &self.router] {
            deafen(ns);
        }
    }

    /// Both hear again.
    pub(crate) fn heal(&self) {
        for ns in [&self.node, &self.router] {
            ns.sh("nft delete table netdev silence").unwrap();
        }
    }
}

/// What comes to `eth0` is dropped before anybody sees it.
pub(crate) fn deafen(ns: &Netns) {
    ns.sh("nft add table netdev silence
         nft add chain netdev silence in \
             '{ type filter hook ingress device eth0 priority 0; policy drop; }'")
        .unwrap();
}

pub(crate) fn on_link(peer: &str) -> Path {
    Path {
        interface: Some("eth0".to_owned()),
        ..Path::single(ip(peer))
    }
}

//! The routers, and what each is told and asked. Their configurations are in
//! `docs/bfd.md`.

use anyhow::{Context, Result, ensure};
use bellrock_e2e::bird::Bird;
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::{Netns, wait_for};

use crate::lab::{NODE_FAR, NODE_LINK, PATIENCE, ROUTER_FAR};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Frr,
    Bird,
}

/// A router's timers: the same for all of its peers, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timers {
    pub(crate) transmit: u64,
    pub(crate) receive: u64,
    pub(crate) multiplier: u8,
}

impl Timers {
    pub(crate) const fn of(interval: u64, multiplier: u8) -> Self {
        Self {
            transmit: interval,
            receive: interval,
            multiplier,
        }
    }
}

pub(crate) enum Router {
    Frr(Frr),
    Bird(Bird),
}

/// A peer as FRR names it.
fn frr_peer(peer: &str) -> String {
    match peer {
        NODE_LINK => format!("peer {peer} interface eth0"),
        NODE_FAR => format!("peer {peer} multihop local-address {ROUTER_FAR}"),
        _ => format!("peer {peer}"),
    }
}

fn frr_config(peers: &[&str], timers: Timers) -> String {
    let Timers {
        transmit,
        receive,
        multiplier,
    } = timers;
    let mut text = "bfd\n".to_owned();
    for peer in peers {
        text += &format!(
            " {}\n  transmit-interval {transmit}\n  receive-interval {receive}\n  \
             detect-multiplier {multiplier}\n",
            frr_peer(peer)
        );
        if *peer == NODE_FAR {
            text += "  minimum-ttl 254\n";
        }
        text += " exit\n";
    }
    text + "exit\n"
}

fn bird_config(peers: &[&str], timers: Timers) -> String {
    let Timers {
        transmit,
        receive,
        multiplier,
    } = timers;
    let timers = format!(
        "min tx interval {transmit} ms; min rx interval {receive} ms; multiplier {multiplier};"
    );
    let mut text = format!(
        "router id 192.0.2.1;\nprotocol device {{}}\nprotocol bfd node {{\n  \
         interface \"eth0\" {{ {timers} }};\n  multihop {{ {timers} }};\n"
    );
    for peer in peers {
        text += &match *peer {
            NODE_LINK => format!("  neighbor {peer} dev \"eth0\";\n"),
            NODE_FAR => format!("  neighbor {peer} local {ROUTER_FAR} multihop on;\n"),
            _ => format!("  neighbor {peer};\n"),
        };
    }
    text + "}\n"
}

impl Router {
    pub(crate) fn start(kind: Kind, ns: &Netns, peers: &[&str], timers: Timers) -> Self {
        match kind {
            Kind::Frr => Self::Frr(Frr::start(ns, &frr_config(peers, timers)).unwrap()),
            Kind::Bird => Self::Bird(Bird::start(ns, &bird_config(peers, timers)).unwrap()),
        }
    }

    /// Gives the running router other timers.
    pub(crate) fn configure(&self, peers: &[&str], timers: Timers) {
        match self {
            Self::Frr(frr) => frr.apply(&frr_config(peers, timers)).unwrap(),
            Self::Bird(bird) => bird.configure(&bird_config(peers, timers)).unwrap(),
        }
    }

    /// What it says of its session: `up` or another word.
    pub(crate) fn state(&self, peer: &str) -> Result<String> {
        match self {
            Self::Frr(frr) => {
                let all = frr.json("show bfd peers json")?;
                let all = all.as_array().context("a list")?;
                let ours = all.iter().find(|session| session["peer"] == peer);
                let status = ours.and_then(|session| session["status"].as_str());
                Ok(status.context("no such peer")?.to_owned())
            }
            Self::Bird(bird) => {
                let text = bird.birdc("show bfd sessions")?;
                let line = text
                    .lines()
                    .find(|line| line.split_whitespace().next() == Some(peer))
                    .context("no such peer")?;
                let state = line.split_whitespace().nth(2).context("no state")?;
                Ok(state.to_lowercase())
            }
        }
    }

    pub(crate) fn wait_state(&self, peer: &str, state: &str) {
        wait_for("what the router says", PATIENCE, || {
            let found = self.state(peer)?;
            ensure!(found == state, "{peer}: {found}");
            Ok(())
        });
    }
}

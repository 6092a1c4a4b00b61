//! What passed a cable, from a capture: ARP for the address, and the speakers'
//! own frames.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use bellrock_e2e::capture::Capture;

/// What a frame does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Answers for the address.
    Answer,
    /// Announces it.
    Announcement,
    /// Asks whether it is free.
    Probe,
    /// A HELLO, and whether its sender says that it is deaf.
    Hello { deaf: bool },
    /// A CLAIM.
    Claim,
}

impl Kind {
    /// Whether it draws clients to its sender.
    pub(crate) const fn is_speech(self) -> bool {
        matches!(self, Self::Answer | Self::Announcement)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Seconds since 1970.
    pub(crate) at: f64,
    /// The node that sent it, or the hardware address of another host.
    pub(crate) from: String,
    pub(crate) kind: Kind,
}

/// The frames of a capture in their order.
#[derive(Debug)]
pub(crate) struct Seen {
    frames: Vec<Frame>,
}

const FIELDS: [&str; 7] = [
    "frame.time_epoch",
    "eth.src",
    "arp.opcode",
    "arp.src.hw_mac",
    "arp.src.proto_ipv4",
    "arp.dst.proto_ipv4",
    "data.data",
];

impl Seen {
    /// Ends a capture and reads it. `nodes`: by hardware address.
    pub(crate) fn read(
        mut capture: Capture,
        nodes: &BTreeMap<String, String>,
        address: &str,
    ) -> Result<Self> {
        capture.stop()?;
        let rows = capture.decode("arp || eth.type == 0x88b5", &FIELDS)?;
        let mut frames = Vec::new();
        for row in rows {
            let [at, source, operation, hardware, sender, target, data] = row.as_slice() else {
                bail!("tshark printed {row:?}");
            };
            let kind = if operation.is_empty() {
                ours(data)
            } else {
                arp(operation, sender, target, address)
            };
            let Some(kind) = kind else { continue };
            ensure!(
                operation.is_empty() || source == hardware,
                "{source} speaks as {hardware}: {row:?}"
            );
            frames.push(Frame {
                at: at.parse().with_context(|| format!("time {at:?}"))?,
                from: nodes.get(source).unwrap_or(source).clone(),
                kind,
            });
        }
        Ok(Self { frames })
    }

    /// The frames since a time.
    pub(crate) fn since(&self, since: f64) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(move |frame| frame.at >= since)
    }

    /// Those of one sender.
    pub(crate) fn of<'a>(&'a self, from: &'a str, since: f64) -> impl Iterator<Item = &'a Frame> {
        self.since(since).filter(move |frame| frame.from == from)
    }

    /// Its answers and announcements.
    pub(crate) fn speech<'a>(
        &'a self,
        from: &'a str,
        since: f64,
    ) -> impl Iterator<Item = &'a Frame> {
        self.of(from, since).filter(|frame| frame.kind.is_speech())
    }

    /// When it first did so.
    pub(crate) fn first(&self, from: &str, kind: Kind, since: f64) -> Result<f64> {
        let mut frames = self.of(from, since);
        let first = frames.find(|frame| frame.kind == kind);
        let first = first.with_context(|| format!("{from} has sent no {kind:?}"))?;
        Ok(first.at)
    }

    /// How long after `since` it last answered or announced; 0 if never.
    pub(crate) fn last_speech(&self, from: &str, since: f64) -> f64 {
        self.speech(from, since)
            .last()
            .map_or(0.0, |frame| frame.at - since)
    }

    /// Nobody but these answers or announces.
    pub(crate) fn only(&self, nodes: &[&str], since: f64) -> Result<()> {
        let mut others = self
            .since(since)
            .filter(|frame| frame.kind.is_speech() && !nodes.contains(&frame.from.as_str()));
        match others.next() {
            Some(frame) => bail!(
                "{} s after it, only {nodes:?} should speak: {frame:?}",
                frame.at - since
            ),
            None => Ok(()),
        }
    }

    /// It asked twice before it took the address: how long after `since` it
    /// first answered or announced.
    pub(crate) fn taken(&self, by: &str, since: f64) -> Result<f64> {
        let first = self.speech(by, since).next();
        let first = first.with_context(|| format!("{by} never spoke"))?.at;
        let probes = self
            .of(by, since)
            .filter(|frame| frame.kind == Kind::Probe && frame.at <= first);
        let probes = probes.count();
        ensure!(probes >= 2, "{by} asked {probes} times before it took it");
        let announced = self.first(by, Kind::Announcement, since)?;
        ensure!(
            announced - first < 1.0,
            "{by} answers since {first}, and announces since {announced}"
        );
        Ok(first - since)
    }
}

fn arp(operation: &str, sender: &str, target: &str, address: &str) -> Option<Kind> {
    match (operation, sender, target) {
        ("2", sender, _) if sender == address => Some(Kind::Answer),
        ("1", sender, _) if sender == address => Some(Kind::Announcement),
        ("1", "0.0.0.0", target) if target == address => Some(Kind::Probe),
        _ => None,
    }
}

/// A frame of a speaker, as `docs/l2.md` has it: version, kind, flags.
fn ours(data: &str) -> Option<Kind> {
    match (data.get(2..4)?, data.get(4..6)?) {
        ("01", flags) => Some(Kind::Hello {
            deaf: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        }),
        ("02", _) => Some(Kind::Claim),
        _ => None,
    }
}

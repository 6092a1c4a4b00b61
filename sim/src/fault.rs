//! What goes wrong, and when.

use std::collections::BTreeSet;
use std::time::Duration;

use bellrock_arp::Instant;

use crate::rng::Rng;

/// Which way a broken cable fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nothing passes.
    Both,
    /// What the station (or the left switch) sends is lost.
    Out,
    /// What is sent to it is lost.
    Back,
}

/// Something that lasts for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Frames are lost, of a hundred.
    Loss(u64),
    /// Frames come twice, of a hundred.
    Duplicates(u64),
    /// Frames take up to so many milliseconds.
    Delay(u64),
    /// Frames overtake each other.
    Reorder,
    /// The wire between two switches.
    Trunk(usize, Way),
    /// A node's cable, the carrier stays.
    Cable(usize, Way),
    /// A node's cable is pulled.
    Pull(usize),
    /// A node's carrier comes and goes.
    Flap(usize),
    /// A node's speaker stands still.
    Stop(usize),
    /// A node's machine stands still.
    Pause(usize),
    /// A node's speaker is killed; it starts at the end.
    Kill(usize),
    /// A node's machine dies; it starts at the end.
    Crash(usize),
    /// A node's speaker is stopped in order; it starts at the end.
    Leave(usize),
    /// A node's speaker is replaced by another, which goes on with what it held.
    Rollout(usize),
    /// As `Kill`, and the clock goes back by a day.
    Clock(usize),
    /// A node's interface gets another hardware address.
    Mac(usize),
    /// The API server is away.
    Api,
    /// A node's watch is told nothing.
    Watch(usize),
    /// A Service's endpoints move; policy Local.
    Endpoints(usize, Vec<bool>),
    /// A host that is none of ours has the address of a Service that comes.
    Foreign(usize),
    /// A host that is none of ours answers every client's question.
    Proxy,
    /// A node is drained.
    Drain(usize),
    /// An address is wanted elsewhere.
    Move(usize),
    /// An address's object is deleted and made again.
    Recreate(usize),
    /// The same, and its owner's watch is stale meanwhile: it does not learn of it.
    Unseen(usize),
    /// Switches pass no frame of the nodes' group.
    Filter,
}

impl Fault {
    /// For the histogram.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Loss(_) => "loss",
            Self::Duplicates(_) => "duplicates",
            Self::Delay(_) => "delay",
            Self::Reorder => "reorder",
            Self::Trunk(_, Way::Both) => "partition",
            Self::Trunk(_, Way::Out | Way::Back) => "partition one-way",
            Self::Cable(_, Way::Both) => "cable cut",
            Self::Cable(_, Way::Out | Way::Back) => "cable one-way",
            Self::Pull(_) => "cable pulled",
            Self::Flap(_) => "link flap",
            Self::Stop(_) => "speaker frozen",
            Self::Pause(_) => "machine frozen",
            Self::Kill(_) => "speaker killed",
            Self::Crash(_) => "machine crashed",
            Self::Leave(_) => "speaker stopped",
            Self::Rollout(_) => "speaker replaced",
            Self::Clock(_) => "clock set back",
            Self::Mac(_) => "hardware address changed",
            Self::Api => "API server away",
            Self::Watch(_) => "stale watch",
            Self::Endpoints(..) => "endpoints moved",
            Self::Foreign(_) => "foreign host",
            Self::Proxy => "proxy",
            Self::Drain(_) => "drain",
            Self::Move(_) => "planned move",
            Self::Recreate(_) => "address made again",
            Self::Unseen(_) => "made again, owner unaware",
            Self::Filter => "group filtered",
        }
    }
}

/// A fault and its time.
#[derive(Clone, Debug)]
pub(crate) struct Scheduled {
    pub(crate) fault: Fault,
    pub(crate) at: Instant,
    pub(crate) until: Instant,
}

/// What there is to break.
pub(crate) struct Ground {
    pub(crate) nodes: usize,
    pub(crate) vips: usize,
    pub(crate) trunks: usize,
}

/// Faults for a run: at least `least`, of at least three kinds, from `from` to
/// `to`.
pub(crate) fn schedule(
    rng: &mut Rng,
    ground: &Ground,
    least: u64,
    (from, to): (Duration, Duration),
) -> Vec<Scheduled> {
    let count = rng.range(least, least + 7);
    let mut all: Vec<Scheduled> = Vec::new();
    let kinds = |all: &[Scheduled]| -> BTreeSet<_> { all.iter().map(|s| s.fault.kind()).collect() };
    while (all.len() as u64) < count || kinds(&all).len() < 3 {
        let Some(fault) = draw(rng, ground) else {
            continue;
        };
        // One of a thing at a time: a machine cannot die twice.
        let again =
            |other: &Scheduled| target(&other.fault).is_some_and(|it| target(&fault) == Some(it));
        if all.iter().any(again) {
            continue;
        }
        let ms = |rng: &mut Rng, least: Duration, most: Duration| {
            let [least, most] = [least, most].map(|d| u64::try_from(d.as_millis()).unwrap_or(0));
            Duration::from_millis(rng.range(least, most))
        };
        let at = Instant::from_start(ms(rng, from, to));
        let lasts = ms(rng, Duration::from_millis(100), Duration::from_secs(9));
        all.push(Scheduled {
            fault,
            at,
            until: at + lasts,
        });
    }
    all.sort_by_key(|scheduled| scheduled.at);
    all
}

/// What two faults must not share.
fn target(fault: &Fault) -> Option<(&'static str, usize)> {
    match fault {
        Fault::Pull(node)
        | Fault::Flap(node)
        | Fault::Stop(node)
        | Fault::Pause(node)
        | Fault::Kill(node)
        | Fault::Crash(node)
        | Fault::Leave(node)
        | Fault::Rollout(node)
        | Fault::Clock(node)
        | Fault::Mac(node)
        | Fault::Drain(node)
        | Fault::Watch(node)
        | Fault::Cable(node, _) => Some(("node", *node)),
        Fault::Foreign(vip) | Fault::Recreate(vip) | Fault::Unseen(vip) => Some(("object", *vip)),
        Fault::Loss(_)
        | Fault::Duplicates(_)
        | Fault::Delay(_)
        | Fault::Reorder
        | Fault::Trunk(..)
        | Fault::Api
        | Fault::Endpoints(..)
        | Fault::Proxy
        | Fault::Move(_)
        | Fault::Filter => None,
    }
}

fn draw(rng: &mut Rng, ground: &Ground) -> Option<Fault> {
    let node = rng.index(ground.nodes);
    let vip = rng.index(ground.vips);
    let way = *rng.pick(&[Way::Both, Way::Out, Way::Back])?;
    let trunk = (ground.trunks > 0).then(|| rng.index(ground.trunks));
    Some(match rng.below(29) {
        0 => Fault::Loss(*rng.pick(&[2, 10, 30, 70])?),
        1 => Fault::Duplicates(rng.range(5, 50)),
        2 => Fault::Delay(rng.range(2, 60)),
        3 => Fault::Reorder,
        4..=5 => Fault::Trunk(trunk?, way),
        6..=7 => Fault::Cable(node, way),
        8 => Fault::Pull(node),
        9 => Fault::Flap(node),
        10 => Fault::Stop(node),
        11 => Fault::Pause(node),
        12 => Fault::Kill(node),
        13..=14 => Fault::Crash(node),
        15 => Fault::Leave(node),
        16 => Fault::Clock(node),
        17 => Fault::Mac(node),
        18 => Fault::Api,
        19 => Fault::Watch(node),
        20 => Fault::Endpoints(vip, (0..ground.nodes).map(|_| rng.chance(60)).collect()),
        21 => Fault::Foreign(vip),
        22 => Fault::Proxy,
        23 => Fault::Drain(node),
        24 => Fault::Move(vip),
        25 => Fault::Filter,
        26 => Fault::Unseen(vip),
        27 => Fault::Rollout(node),
        _ => Fault::Recreate(vip),
    })
}

//! `bellrock-lab bench-l2`: how long an address is silent when its node fails,
//! and what moves, drains, rollouts and crashes cost. In a lab of its own:
//! three nodes answer for addresses, a fourth one has the pods, so that a
//! pulled cable takes no endpoint along.

mod many;
mod moves;
mod peer;
mod pulls;
mod wire;
mod world;

use std::path::Path;

use anyhow::{Context, Result};

use crate::cluster::{ApiOptions, KubeProxy};
use crate::figures::{Figures, Target, Wanted};
use crate::lab::{Lab, Options};
use world::World;

/// Options of `bellrock-lab bench-l2`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measure only this (repeatable); the run fails then, for the missing
    /// figures
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Cables to pull, for each family
    #[arg(long, default_value_t = 30)]
    pulls: usize,
    /// Cables to pull with the fast timers, and of MetalLB's nodes
    #[arg(long, default_value_t = 10)]
    more_pulls: usize,
    /// Times to move, drain, roll out and kill
    #[arg(long, default_value_t = 5)]
    times: usize,
    /// Minutes of busy cores, in which nobody may claim
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Pulled cables, and their return
    Pulls,
    /// Planned moves, drains, rollouts, crashes
    Moves,
    /// Busy cores
    Busy,
    /// Pulled cables under a flood of ARP requests
    Flood,
    /// Pulled cables with the fast timers
    Tuned,
    /// 1,000 addresses on one node
    Many,
    /// MetalLB
    Peer,
    /// Frames of 100 nodes, simulated
    Frames,
}

/// Every figure.
const WANTED: [Wanted; 20] = [
    ("l2.pull_v4_p50_ms", "ms", Target::AtMost(350.0)),
    ("l2.pull_v4_max_ms", "ms", Target::AtMost(500.0)),
    ("l2.pull_v6_p50_ms", "ms", Target::AtMost(350.0)),
    ("l2.pull_v6_max_ms", "ms", Target::AtMost(500.0)),
    ("l2.tuned_max_ms", "ms", Target::AtMost(120.0)),
    ("l2.heal_lost", "probes", Target::AtMost(0.0)),
    ("l2.move_lost", "probes", Target::AtMost(0.0)),
    ("l2.drain_lost", "probes", Target::AtMost(0.0)),
    ("l2.rollout_lost", "probes", Target::AtMost(0.0)),
    ("l2.kill_lost", "probes", Target::AtMost(0.0)),
    ("l2.move_tcp_reset", "connections", Target::AtMost(0.0)),
    ("l2.rollout_tcp_reset", "connections", Target::AtMost(0.0)),
    ("l2.kill_tcp_reset", "connections", Target::AtMost(0.0)),
    (
        "l2.pull_endpoint_on_cut_node_ms",
        "ms",
        Target::AtMost(1_500.0),
    ),
    ("l2.pull_1000_ms", "ms", Target::AtMost(1_500.0)),
    ("l2.pull_1000_over_share", "addresses", Target::AtMost(0.0)),
    ("l2.false_claims", "claims", Target::AtMost(0.0)),
    ("l2.flood_pull_max_ms", "ms", Target::AtMost(1_000.0)),
    ("l2.metallb_pull_p50_ms", "ms", Target::None),
    (
        "l2.frames_per_s_100_nodes",
        "frames/s",
        Target::AtMost(60.0),
    ),
];

/// Timers of the tuned runs, as values of the chart.
const TUNED: &str = "l2: {timers: {helloInterval: 20ms, margin: 5ms, probeInterval: 10ms, \
                     stagger: 30ms}}";

/// Measures and prints, a line `bench: NAME VALUE UNIT` for each figure. Fails
/// if one is missing or misses its target.
pub fn run(args: &Args) -> Result<()> {
    let mut figures = Figures::new(&WANTED);
    if args.wants(Part::Frames) {
        figures.note(
            "l2.frames_per_s_100_nodes",
            bellrock_sim::frames_per_second(100),
        );
    }
    let lab = Lab::up(&Options {
        topology: Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/l2.clab.yml"),
        kube_proxy: KubeProxy::Nftables,
        api: ApiOptions {
            dual_stack: true,
            ..ApiOptions::default()
        },
        ..Options::default()
    })?;
    let measured = measure(&lab, args, &mut figures);
    if measured.is_err() {
        lab.keep_logs();
    }
    measured.with_context(|| format!("logs in {}", lab.dir().join("logs").display()))?;
    figures.verdict()
}

fn measure(lab: &Lab, args: &Args, figures: &mut Figures) -> Result<()> {
    let mut world = World::start(lab)?;
    if args.wants(Part::Pulls) {
        pulls::measure(&world, args.pulls, figures)?;
    }
    if args.wants(Part::Moves) {
        moves::measure(&mut world, args.times, figures)?;
    }
    if args.wants(Part::Busy) {
        pulls::busy(&world, args.minutes, figures)?;
    }
    if args.wants(Part::Flood) {
        pulls::flooded(&world, args.times, figures)?;
    }
    if args.wants(Part::Many) {
        many::measure(&world, figures)?;
    }
    if args.wants(Part::Tuned) {
        world.restart(TUNED)?;
        pulls::tuned(&world, args.more_pulls, figures)?;
    }
    if args.wants(Part::Peer) {
        world.end()?;
        peer::measure(lab, args.more_pulls, figures)?;
    }
    Ok(())
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

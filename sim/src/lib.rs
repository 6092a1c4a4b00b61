//! A whole cluster in virtual time: speakers, switches, clients, the API
//! server and the controller, driven by one seed.
//!
//! The speakers' side of the segment is the real one
//! ([`bellrock_arp::ownership::Segment`]), and so is the placement
//! ([`bellrock_controller::placement`]). Around them are small models: switches
//! that learn where a hardware address is, clients whose neighbour caches
//! behave as Linux's, an API server that can be away and watches that can be
//! stale. A run breaks some of it, and checks the invariants that `check`
//! lists; what happens depends on the seed alone.
//!
//! ```text
//! cargo run -p bellrock-sim -- --seed 4711 --trace
//! ```

mod check;
mod client;
mod cluster;
mod fault;
mod node;
mod picture;
mod rng;
mod trouble;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use bellrock_arp::{Instant, Timers};

pub use check::Violation;
use fault::Ground;
use rng::Rng;
use world::World;

/// What a run was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was made from.
    pub seed: u64,
    /// How many nodes there were.
    pub nodes: usize,
    /// How long it was, in virtual time.
    pub lasted: Duration,
    /// How often each kind of fault came.
    pub faults: BTreeMap<&'static str, u64>,
    /// Frames that the nodes sent.
    pub frames: u64,
    /// The invariant that broke, if one did.
    pub violation: Option<Violation>,
}

/// Runs a seed. `trace`: prints what happens.
pub fn run(seed: u64, trace: bool) -> Report {
    let mut rng = Rng::new(seed);
    // Small clusters more often than large ones, as in life.
    let nodes = [(); 3].map(|()| rng.range(3, 30)).into_iter().min();
    let nodes = usize::try_from(nodes.unwrap_or(3)).unwrap_or(3);
    let vips = rng.index(4) + 1;
    let switches = rng.index(3) + 1;
    let length = Duration::from_secs(rng.range(62, 75));
    let ground = Ground {
        nodes,
        vips,
        trunks: switches - 1,
    };
    let window = (
        Duration::from_secs(6),
        length.saturating_sub(Duration::from_secs(15)),
    );
    let faults = fault::schedule(&mut rng, &ground, 5, window);
    let mut kinds = BTreeMap::new();
    for scheduled in &faults {
        *kinds.entry(scheduled.fault.kind()).or_default() += 1;
    }
    let timers = Timers {
        announce_every: Duration::from_secs(7),
        ..Timers::default()
    };
    let mut world = World::assemble(timers, rng, (nodes, vips, switches), faults, trace);
    let end = Instant::from_start(length);
    world.run(end);
    Report {
        seed,
        nodes,
        lasted: world.now.since(Instant(0)),
        faults: kinds,
        frames: world.frames,
        violation: world.check.violation,
    }
}

/// Frames that a node sends a second in a cluster of so many, with a hundred
/// addresses and faults as in any other run.
pub fn frames_per_second(nodes: usize) -> f64 {
    let mut rng = Rng::new(100);
    let length = Duration::from_secs(70);
    let (vips, switches) = (100, 3);
    let ground = Ground {
        nodes,
        vips,
        trunks: switches - 1,
    };
    let window = (Duration::from_secs(6), Duration::from_secs(55));
    let faults = fault::schedule(&mut rng, &ground, 5, window);
    let sizes = (nodes, vips, switches);
    let mut world = World::assemble(Timers::default(), rng, sizes, faults, false);
    world.run(Instant::from_start(length));
    let count = |n: u64| u32::try_from(n).map_or(f64::INFINITY, f64::from);
    let nodes = u64::try_from(nodes).unwrap_or(u64::MAX);
    count(world.frames) / count(nodes) / length.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_exactly() {
        for seed in [1, 2] {
            assert_eq!(run(seed, false), run(seed, false));
        }
        assert_ne!(run(1, false).frames, run(2, false).frames);
    }

    #[test]
    fn each_seed_breaks_enough_for_long_enough() {
        for seed in 1..200 {
            let mut rng = Rng::new(seed);
            let ground = Ground {
                nodes: 3,
                vips: 1,
                trunks: 0,
            };
            let window = (Duration::from_secs(6), Duration::from_secs(47));
            let faults = fault::schedule(&mut rng, &ground, 5, window);
            let kinds: std::collections::BTreeSet<_> =
                faults.iter().map(|fault| fault.fault.kind()).collect();
            assert!(faults.len() >= 5 && kinds.len() >= 3, "seed {seed}");
        }
        let report = run(3, false);
        assert!(report.lasted >= Duration::from_secs(60), "{report:?}");
    }
}

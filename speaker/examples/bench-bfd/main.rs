//! Figures of BFD, beside FRR and BIRD, as lines `bench: NAME VALUE UNIT`. Needs
//! root, FRR and BIRD.
//!
//! ```text
//! make bench-bfd
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement reads the clock, prints, and fails loudly"
)]

mod busy;
mod ground;
mod node;

use std::time::{Duration, Instant};

use clap::Parser;
use ground::{Ground, Router};
use node::Node;

/// Measure BFD; fails where a figure is missing or misses its target.
#[derive(Debug, Parser)]
struct Args {
    /// Link failures, for each router and timers
    #[arg(long, default_value_t = 30)]
    trials: usize,
    /// Minutes with busy cores
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

fn main() {
    let args = Args::parse();
    let mut missed = Vec::new();
    let mut line = |name: &str, value: f64, unit: &str, most: Option<f64>| {
        println!("bench: bfd.{name} {value:.1} {unit}");
        if let Some(most) = most.filter(|most| value > *most) {
            missed.push(format!(
                "bfd.{name} is {value:.1}, at most {most} was wanted"
            ));
        }
    };
    for (name, interval, most) in [
        ("down_50x3_max_ms", 50, 160.0),
        ("down_10x3_max_ms", 10, 45.0),
    ] {
        for router in Router::ALL {
            let mut took = failures(router, interval, args.trials);
            took.sort_by(f64::total_cmp);
            println!(
                "{router:?}, {interval} ms x 3: {:.1} to {:.1} ms, median {:.1}, {} trials",
                took[0],
                took[took.len() - 1],
                took[took.len() / 2],
                took.len()
            );
            // FRR takes a while from its own detection to its kernel's routes.
            match router {
                Router::Bird => line(name, took[took.len() - 1], "ms", Some(most)),
                Router::Frr => {}
            }
        }
    }
    line("restart_lost", restart(), "packets", Some(0.0));
    let sessions = busy::Sessions::new(100, Duration::from_millis(50));
    line(
        "cpu_100_sessions_pct",
        sessions.cpu(Duration::from_secs(20)),
        "%",
        None,
    );
    let busy = Duration::from_secs(args.minutes * 60);
    line(
        "false_downs",
        sessions.downs_while_busy(busy),
        "downs",
        Some(0.0),
    );
    assert!(
        args.trials >= 30 && args.minutes >= 10,
        "fewer trials, or less time, than asked for"
    );
    assert!(missed.is_empty(), "missed: {missed:#?}");
}

/// From the failure of a link that nobody is told of to the route's end in the
/// router's kernel, in milliseconds.
fn failures(router: Router, interval: u32, trials: usize) -> Vec<f64> {
    let ground = Ground::new();
    let running = router.start(&ground, interval, false);
    let mut node = Node::new(&ground, interval);
    let routes = ground.watch_routes();
    let trial = |_| {
        node.wait_up();
        running.wait_up();
        ground.wait_route();
        while routes.try_recv().is_ok() {}
        let start = Instant::now();
        ground.cut();
        let gone = loop {
            node.follow();
            match routes.recv_timeout(Duration::from_millis(1)) {
                Ok((at, line)) if line.starts_with("Deleted 198.51.100.1 ") => break at,
                _ => assert!(start.elapsed() < Duration::from_secs(30), "the route stays"),
            }
        };
        ground.mend();
        (gone - start).as_secs_f64() * 1000.0
    };
    (0..trials).map(trial).collect()
}

/// Packets to the address that are lost while the speaker is replaced.
fn restart() -> f64 {
    let ground = Ground::new();
    let running = Router::Frr.start(&ground, 50, true);
    let mut node = Node::new(&ground, 50);
    node.wait_up();
    running.wait_up();
    ground.wait_route();
    let ping = ground.ping();
    std::thread::sleep(Duration::from_secs(1));
    node.stop();
    running.wait_down();
    let mut next = Node::resumed(&ground, 50);
    next.wait_up();
    running.wait_up();
    ground.wait_route();
    std::thread::sleep(Duration::from_secs(1));
    let (sent, received) = ping.end();
    println!("restart: {received} of {sent} echo requests answered");
    assert!(sent > 100, "too few to tell");
    f64::from(sent - received)
}

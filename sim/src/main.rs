//! Runs seeds, and prints what was broken and whether it held.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

/// Simulates clusters in virtual time and checks that each address is answered
/// by one node, fast, whatever fails.
#[derive(Debug, Parser)]
struct Args {
    /// Run this seed alone
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print what happens
    #[arg(long)]
    trace: bool,
    /// The first of the seeds
    #[arg(long, value_name = "N", default_value_t = 1)]
    from: u64,
    /// How many seeds at least
    #[arg(long, value_name = "N", default_value_t = 200)]
    seeds: u64,
    /// Stop at the first seed that breaks an invariant
    #[arg(long)]
    until_broken: bool,
    /// Go on for so many seconds at least
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    seconds: u64,
}

/// After how many seeds a line says how far it is.
const PROGRESS: u64 = 500;

#[derive(Debug, Default)]
struct Sum {
    runs: u64,
    frames: u64,
    lasted: Duration,
    nodes: BTreeMap<usize, u64>,
    faults: BTreeMap<&'static str, u64>,
    broken: u64,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if let Some(seed) = args.seed {
        (args.from, args.seeds, args.seconds) = (seed, 1, 0);
    }
    let sum = run(&args);
    println!(
        "{} seeds, {:.0} s of virtual time, {} frames; nodes {}",
        sum.runs,
        sum.lasted.as_secs_f64(),
        sum.frames,
        spread(&sum.nodes)
    );
    println!("faults:");
    let most = sum.faults.values().max().copied().unwrap_or(1);
    for (kind, count) in &sum.faults {
        let bar = usize::try_from(count * 40 / most).unwrap_or(0);
        println!("  {kind:<26} {count:>6} {}", "#".repeat(bar));
    }
    if sum.broken == 0 {
        println!("all invariants held");
        ExitCode::SUCCESS
    } else {
        println!("{} of {} seeds broke an invariant", sum.broken, sum.runs);
        ExitCode::FAILURE
    }
}

/// Runs the seeds on all cores. Only how many there are depends on the clock.
#[allow(clippy::disallowed_methods, reason = "a run's length in real time")]
fn run(args: &Args) -> Sum {
    let next = AtomicU64::new(args.from);
    let sum = Mutex::new(Sum::default());
    let start = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let enough = seed - args.from >= args.seeds;
            if enough && start.elapsed() >= Duration::from_secs(args.seconds) {
                return;
            }
            let stop = |sum: &Sum| args.until_broken && sum.broken > 0;
            if sum.lock().is_ok_and(|sum| stop(&sum)) {
                return;
            }
            let report = bellrock_sim::run(seed, args.trace);
            let Ok(mut sum) = sum.lock() else { return };
            sum.runs += 1;
            sum.frames += report.frames;
            sum.lasted += report.lasted;
            *sum.nodes.entry(report.nodes).or_default() += 1;
            for (kind, count) in &report.faults {
                *sum.faults.entry(kind).or_default() += count;
            }
            if let Some(broken) = &report.violation {
                println!(
                    "seed {seed} ({} nodes): invariant ({}) broken at {:?}: {}",
                    report.nodes, broken.invariant, broken.at, broken.what
                );
                println!("  replay: cargo run -p bellrock-sim -- --seed {seed} --trace");
                sum.broken += 1;
            }
            if sum.runs.is_multiple_of(PROGRESS) {
                println!("{} seeds, {} broken", sum.runs, sum.broken);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    sum.into_inner().unwrap_or_default()
}

/// Least, middle and most.
fn spread(counts: &BTreeMap<usize, u64>) -> String {
    let all: Vec<usize> = counts
        .iter()
        .flat_map(|(value, count)| {
            std::iter::repeat_n(*value, usize::try_from(*count).unwrap_or(0))
        })
        .collect();
    match (all.first(), all.get(all.len() / 2), all.last()) {
        (Some(least), Some(middle), Some(most)) => {
            format!("{least} to {most}, half of them {middle} or more")
        }
        _ => "none".to_owned(),
    }
}

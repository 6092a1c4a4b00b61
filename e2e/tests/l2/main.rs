//! The segment when parts of it fail: who answers for an address, who announces
//! it, and when they stop, as `docs/l2.md` says. Judged by captures, and by what
//! clients get.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]
#![allow(clippy::print_stdout, reason = "what was measured is told")]

mod asker;
mod cases;
mod seen;
mod single;
mod world;

use std::time::Instant;

use world::World;

/// A case leaves all cables plugged in, all speakers running, and an owner.
type Case = fn(&mut World) -> anyhow::Result<()>;

const CASES: [(&str, Case); 8] = [
    (
        "two segments, one pool: an owner on one of them",
        cases::two_segments,
    ),
    (
        "halves have an owner each, and one when they are joined",
        cases::halves,
    ),
    (
        "an owner whose frames are lost is relieved, and hears of it",
        cases::mute_owner,
    ),
    (
        "an owner that hears nobody says so, and announces nothing",
        cases::deaf_owner,
    ),
    (
        "an owner that stood still answers nothing unverified",
        cases::frozen_owner,
    ),
    ("of two nodes the one that lives answers", cases::two_nodes),
    (
        "a failover needs no API server, nor does its record get lost",
        cases::failover_without_api,
    ),
    (
        "a speaker that starts without API server announces nothing",
        cases::start_without_api,
    ),
];

/// In one lab: what a case leaves is whole, or the next cannot be.
#[test]
fn every_failure_of_the_segment_ends_as_the_book_says() {
    let mut world = World::up("segments").unwrap();
    for (name, case) in CASES {
        let start = Instant::now();
        let result = case(&mut world);
        let took = start.elapsed().as_secs_f32();
        let verdict = if result.is_ok() { "holds" } else { "FAILS" };
        eprintln!("{verdict} {took:5.1} s  {name}");
        if let Err(error) = result {
            panic!("{name}: {error:#}");
        }
    }
}

#[test]
fn a_single_node_on_a_silent_segment_answers_and_announces_on() {
    let prepared = World::prepare("single").unwrap();
    prepared.lab.deploy("web", 1, &[]).unwrap();
    prepared.lab.cut("c1").unwrap();
    let capture = prepared.lab.capture("n1", "eth1", "").unwrap();
    let world = prepared.start().unwrap();
    single::run(&world, capture).unwrap();
}

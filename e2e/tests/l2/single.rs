//! One node on a segment on which nobody else speaks.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bellrock_e2e::capture::Capture;
use bellrock_e2e::probe::request;

use crate::seen::Kind;
use crate::world::{SOON, World, now};

/// For how many seconds the segment is silent: longer than from one announcement
/// to the next.
const SILENT: &str = "BELLROCK_SILENT_SECONDS";
const AT_LEAST: u64 = 65;
/// Announcements after a claim, in seconds from it, and then one in so many.
const ANNOUNCED: [f64; 5] = [0.0, 0.05, 0.25, 1.1, 2.2];
const EVERY: f64 = 60.0;
/// How late a busy machine is.
const LATE: f64 = 1.0;

/// `eth1` of n1 is captured since before its speaker started; the client's cable
/// is out.
pub(crate) fn run(world: &World, capture: Capture) -> Result<()> {
    let lab = &world.lab;
    world.recorded("n1")?;
    let claim = world.record()?;
    // The client asks, and so the node knows of a host; then that is gone.
    lab.heal("c1")?;
    world.answers("c1")?;
    lab.cut("c1")?;
    let silent = now();
    let span = std::env::var(SILENT).ok();
    let span = span.map(|text| text.parse()).transpose().context(SILENT)?;
    let span = Duration::from_secs(span.unwrap_or(AT_LEAST).max(AT_LEAST));
    let start = Instant::now();
    lab.until("the silence is over", span + SOON, || {
        ensure!(start.elapsed() >= span, "not yet");
        Ok(())
    })?;
    let over = now();

    // A client that knows nothing any more.
    lab.host("c1").sh("ip neigh flush dev eth1")?;
    lab.heal("c1")?;
    world.answers("c1")?;
    ensure!(lab.neighbour("c1", world.address)? == "n1");
    let record = world.record()?;
    let same = |field: &str| record[field] == claim[field];
    ensure!(same("owner") && same("epoch"), "{record} was {claim}");

    let others = capture.decode(
        &format!("eth.src != {}", lab.mac("n1")?),
        &["frame.time_epoch", "eth.src"],
    )?;
    for frame in others {
        let at: f64 = frame.first().context("a time")?.parse()?;
        ensure!(
            at < silent || at > over,
            "the segment was not silent: {frame:?}"
        );
    }
    let seen = world.seen(capture)?;
    seen.only(&["n1"], 0.0)?;
    // One claim, and nobody to miss. A node that stood still asks again.
    let late = late(world)?;
    let count = |kind: Kind| seen.since(0.0).filter(|frame| frame.kind == kind).count();
    let (claims, probes) = (count(Kind::Claim), count(Kind::Probe));
    ensure!(
        claims <= 1 + late && probes <= 2 * (1 + late),
        "{claims} claims, {probes} probes, {late} times late"
    );
    ensure!(count(Kind::Hello { deaf: true }) == 0, "it is deaf");
    let announced: Vec<f64> = seen
        .of("n1", 0.0)
        .filter(|frame| frame.kind == Kind::Announcement)
        .map(|frame| frame.at)
        .collect();
    is_on_time(&announced, over, late)?;
    println!("silent for {span:?}: {} announcements", announced.len());
    Ok(())
}

/// How often the speaker's own rounds were so late that it asks anew.
fn late(world: &World) -> Result<usize> {
    let server = SocketAddr::new(world.lab.address("n1").into(), 9618);
    let host = world.lab.host("n1");
    let (_, text) = host.run(|| request("GET", server, "/metrics"))??;
    let sample = "bellrock_speaker_l2_frames_total{kind=\"late\"} ";
    let count = text.lines().find_map(|line| line.strip_prefix(sample));
    Ok(count.map_or(Ok(0), str::parse)?)
}

fn is_on_time(announced: &[f64], over: f64, late: usize) -> Result<()> {
    let first = *announced.first().context("no announcement")?;
    let last = *announced.last().context("no announcement")?;
    ensure!(
        announced.len() > ANNOUNCED.len() && over - last <= EVERY + LATE,
        "until {over}: {announced:?}"
    );
    for (index, pair) in announced.windows(2).enumerate() {
        let due = match ANNOUNCED.get(index + 1) {
            Some(after) => first + after,
            None => pair[0] + EVERY,
        };
        let behind = pair[1] - due;
        // Whoever asked anew announces anew.
        ensure!(
            behind <= LATE && (behind >= -0.01 || late > 0),
            "announcement {} is {behind} s late: {announced:?}",
            index + 1
        );
    }
    Ok(())
}

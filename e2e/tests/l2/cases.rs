//! What fails, and what must become of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_e2e::probe::{Report, request};
use nix::sys::signal::Signal;

use crate::seen::{Kind, Seen};
use crate::world::{FAR, LATER, NEAR, World, lost, now};

/// The longest outage of a client when a node fails, in milliseconds. It is 360
/// and a few, 120 more for the last of three, and 320 more each time that a
/// busy machine keeps a speaker from its rounds.
const OUTAGE: f64 = 2_000.0;
/// How long two may answer after cables are whole again, in seconds. It is an
/// interval and an exchange, 0.13, and 0.1 more for each HELLO that a busy
/// machine is late with.
const OVERLAP: f64 = 1.0;
/// The nodes of each half.
const LEFT: [&str; 2] = ["n1", "n2"];
const RIGHT: [&str; 1] = ["n3"];

/// The longest outage is one that was noticed, and no longer than it may be.
fn outage(report: &Report) -> Result<f64> {
    let longest = report.longest_ms();
    ensure!(longest > 0.0, "nothing failed: {report:?}");
    ensure!(longest <= OUTAGE, "{report:?}");
    Ok(longest)
}

fn nothing_lost(report: &Report) -> Result<()> {
    ensure!(lost(report) == 0, "{report:?}");
    Ok(())
}

/// `node` announces nothing from the moment on that it says that it is deaf;
/// when that was.
fn deaf_and_silent(seen: &Seen, node: &str, since: f64) -> Result<f64> {
    let deaf = seen.first(node, Kind::Hello { deaf: true }, since)?;
    let mut announced = seen.of(node, deaf);
    let announced = announced.find(|frame| frame.kind == Kind::Announcement);
    ensure!(
        announced.is_none(),
        "deaf since {deaf}, it announces: {announced:?}"
    );
    Ok(deaf)
}

/// A router between two segments, and a pool of the first one's addresses.
pub(crate) fn two_segments(world: &mut World) -> Result<()> {
    let [near, far] = [world.asker("w1")?, world.asker(FAR[1])?];
    let owner = world.alone(&near)?;
    ensure!(NEAR.contains(&owner.as_str()), "{owner} owns it");

    world.lab.cut(&owner)?;
    let next = world.relieved(&near, &owner)?;
    ensure!(NEAR.contains(&next.as_str()), "{next} owns it");
    // From the other segment it is reached by the router.
    world.answers(FAR[1])?;

    // Nobody is left on the segment of the address.
    for node in NEAR.iter().filter(|node| **node != owner) {
        world.lab.cut(node)?;
    }
    near.forget();
    world.asked(&near, LATER)?;
    let heard = near.heard();
    // A node may have answered before its cable was out.
    let answers = heard.answers.len();
    ensure!(answers <= 1, "{answers} answers on a segment without nodes");
    let answers = far.heard().answers.len();
    ensure!(answers == 0, "{answers} answers on the other segment");
    drop((near, far));
    let seen = world.seen_far()?;
    let claimed = seen.of(FAR[0], 0.0).next();
    ensure!(
        claimed.is_none(),
        "{} has to do with it: {claimed:?}",
        FAR[0]
    );
    seen.only(&[], 0.0)?;

    for node in NEAR {
        world.lab.heal(node)?;
    }
    world.alone(&world.asker("w1")?)?;
    for client in ["c1", "c2", FAR[1]] {
        world.answers(client)?;
    }
    Ok(())
}

/// The cable between two bridges, clients on either side.
pub(crate) fn halves(world: &mut World) -> Result<()> {
    let (left, right) = (world.asker("w1")?, world.asker("w2")?);
    let before = world.alone(&left)?;
    let watch = world.watch(["w1", "w2"])?;
    let probers = [world.prober("c1")?, world.prober("c2")?];
    let parted = now();
    world.lab.part("left", "right")?;
    // Each half has an owner of its own.
    let owners = world.until("each half has an owner", || {
        let owners = [world.answering(&left)?, world.answering(&right)?];
        let [l, r] = owners.each_ref().map(String::as_str);
        ensure!(LEFT.contains(&l) && RIGHT.contains(&r), "{owners:?}");
        Ok(owners)
    })?;
    ensure!(
        owners.contains(&before),
        "{before} lost it, with half of the segment: {owners:?}"
    );
    for prober in &probers {
        world.answered(prober)?;
    }

    let healed = now();
    world.lab.join("left", "right")?;
    let owner = world.until("both halves have the same owner", || {
        let (l, r) = (world.answering(&left)?, world.answering(&right)?);
        ensure!(l == r, "{l} and {r}");
        Ok(l)
    })?;
    world.asked(&left, LATER)?;
    for prober in &probers {
        world.answered(prober)?;
    }
    drop((left, right));
    for client in ["c1", "c2"] {
        world.answers(client)?;
        let known = world.lab.neighbour(client, world.address)?;
        ensure!(known == owner, "{client} sends to {known}, not to {owner}");
    }
    for prober in probers {
        let report = prober.stop()?;
        ensure!(report.longest_ms() <= OUTAGE, "{report:?}");
    }

    let [l, r] = owners.each_ref().map(String::as_str);
    let (other, loser) = if owner == l { (l, r) } else { (r, l) };
    let far_half = usize::from(before == l);
    for (index, capture) in watch.into_iter().enumerate() {
        let seen = world.seen(capture)?;
        seen.only(&[l, r], parted)?;
        if index == far_half {
            let new = [l, r][far_half];
            let taken = seen.taken(new, parted)?;
            ensure!(taken * 1000.0 <= OUTAGE, "{new} took it after {taken} s");
        }
        let overlap = seen.last_speech(loser, healed);
        ensure!(
            overlap <= OVERLAP,
            "{loser} speaks {overlap} s after the heal, beside {other}"
        );
        // Hosts beyond the wire learn where it is.
        seen.first(&owner, Kind::Announcement, healed)?;
        println!("halves, side {index}: two answer for {overlap:.3} s");
    }
    Ok(())
}

/// The owner hears all, and nobody hears it.
pub(crate) fn mute_owner(world: &mut World) -> Result<()> {
    let asker = world.asker("w1")?;
    let owner = world.alone(&asker)?;
    let [outside, at_owner] = world.watch(["w1", &owner])?;
    let prober = world.prober("c1")?;
    let muted = now();
    world.lab.mute(&owner)?;
    let next = world.relieved(&asker, &owner)?;
    world.answered(&prober)?;
    let longest = outage(&prober.stop()?)?;

    let prober = world.prober("c1")?;
    let heard = now();
    world.lab.both_ways(&owner)?;
    world.asked(&asker, LATER)?;
    world.answered(&prober)?;
    nothing_lost(&prober.stop()?)?;
    drop(asker);

    let seen = world.seen(at_owner)?;
    let claimed = seen.first(&next, Kind::Claim, muted)?;
    let answered = seen.speech(&owner, muted).any(|frame| frame.at < claimed);
    ensure!(answered, "it heard questions, and answered none");
    let overlap = seen.last_speech(&owner, claimed);
    ensure!(
        overlap <= OVERLAP,
        "{owner} speaks {overlap} s after it heard the claim"
    );
    let seen = world.seen(outside)?;
    let taken = seen.taken(&next, muted)?;
    // It has stopped long ago.
    seen.only(&[&next], heard)?;
    println!("mute owner: taken after {taken:.3} s, outage {longest:.0} ms, both {overlap:.3} s");
    Ok(())
}

/// The owner hears nobody, and all hear it.
pub(crate) fn deaf_owner(world: &mut World) -> Result<()> {
    let asker = world.asker("w1")?;
    let owner = world.alone(&asker)?;
    let [outside] = world.watch(["w1"])?;
    let prober = world.prober("c1")?;
    let deafened = now();
    world.lab.deafen(&owner)?;
    let next = world.relieved(&asker, &owner)?;
    world.answered(&prober)?;
    let longest = outage(&prober.stop()?)?;

    let prober = world.prober("c1")?;
    let hears = now();
    world.lab.both_ways(&owner)?;
    world.asked(&asker, LATER)?;
    world.answered(&prober)?;
    nothing_lost(&prober.stop()?)?;
    drop(asker);

    let seen = world.seen(outside)?;
    let said = deaf_and_silent(&seen, &owner, deafened)? - deafened;
    let taken = seen.taken(&next, deafened)?;
    // It answers on for an interval, until it hears a HELLO and then of the claim.
    let overlap = seen.last_speech(&owner, hears);
    ensure!(
        overlap <= OVERLAP,
        "{owner} speaks {overlap} s after it hears again"
    );
    seen.only(&[&next], hears + OVERLAP)?;
    seen.first(&owner, Kind::Hello { deaf: false }, hears)?;
    println!(
        "deaf owner: says so after {said:.3} s, taken after {taken:.3} s, outage {longest:.0} ms, \
         both {overlap:.3} s"
    );
    Ok(())
}

/// SIGSTOP, until another owns it, and SIGCONT.
pub(crate) fn frozen_owner(world: &mut World) -> Result<()> {
    let asker = world.asker("w1")?;
    let owner = world.alone(&asker)?;
    let [outside] = world.watch(["w1"])?;
    let prober = world.prober("c1")?;
    let frozen = now();
    let speaker = world.speakers.get(&owner).context("its speaker")?;
    speaker.signal(Signal::SIGSTOP)?;
    let next = world.relieved(&asker, &owner)?;
    world.answered(&prober)?;
    let longest = prober.stop()?.longest_ms();
    ensure!(longest <= OUTAGE, "an outage of {longest} ms");

    // A second of questions waits in its sockets.
    let prober = world.prober("c1")?;
    let thawed = now();
    speaker.signal(Signal::SIGCONT)?;
    world.asked(&asker, LATER)?;
    world.answered(&prober)?;
    nothing_lost(&prober.stop()?)?;
    drop(asker);

    let seen = world.seen(outside)?;
    let taken = seen.taken(&next, frozen)?;
    seen.first(&owner, Kind::Hello { deaf: false }, thawed)?;
    seen.only(&[&next], thawed)?;
    println!("frozen owner: taken after {taken:.3} s, outage {longest:.0} ms");
    Ok(())
}

/// Two nodes, of which first the other dies and then the owner.
pub(crate) fn two_nodes(world: &mut World) -> Result<()> {
    let third = world.speakers.get(RIGHT[0]).context("its speaker")?.clone();
    third.terminate(Duration::from_secs(10))?;
    let asker = world.asker("w1")?;
    let owner = world.alone(&asker)?;
    let other = LEFT.iter().find(|node| **node != owner);
    let other = *other.context("another node")?;

    // The other one dies: the owner cannot know that it is not the one that is
    // cut off. It answers on.
    let [outside, at_other] = world.watch(["w1", other])?;
    let alone = now();
    world.lab.cut(other)?;
    world.asked(&asker, LATER)?;
    let prober = world.prober("c1")?;
    let back = now();
    world.lab.heal(other)?;
    world.asked(&asker, LATER)?;
    world.answered(&prober)?;
    nothing_lost(&prober.stop()?)?;
    drop(asker);
    let seen = world.seen(outside)?;
    seen.only(&[&owner], alone)?;
    let deaf = deaf_and_silent_until(&seen, &owner, alone, back)?;
    let mut times: Vec<f64> = seen.speech(&owner, alone).map(|frame| frame.at).collect();
    times.insert(0, alone);
    let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
    let pause = pauses.fold(0.0, f64::max);
    ensure!(pause <= OVERLAP, "{owner} did not answer for {pause} s");
    // The other one hears nothing at all: it claims nothing. When it hears
    // again, the first frame may not be of the owner, and it asks.
    let seen = world.seen(at_other)?;
    seen.only(&[&owner], alone)?;
    let claimed = seen.of(other, alone).find(|frame| match frame.kind {
        Kind::Probe => frame.at < back,
        Kind::Claim => true,
        Kind::Answer | Kind::Announcement | Kind::Hello { .. } => false,
    });
    ensure!(claimed.is_none(), "cut off, it claims: {claimed:?}");
    println!(
        "two nodes: deaf after {:.3} s, longest pause {pause:.3} s",
        deaf - alone
    );

    // The owner dies: the other one hears hosts, if it asks them.
    let [outside, at_owner] = world.watch(["w1", &owner])?;
    let prober = world.prober("c1")?;
    let dead = now();
    world.lab.cut(&owner)?;
    world.until("the client has the other node", || {
        let known = world.lab.neighbour("c1", world.address)?;
        ensure!(known == other, "{known}");
        Ok(())
    })?;
    world.answered(&prober)?;
    let longest = outage(&prober.stop()?)?;
    world.recorded(other)?;
    let asker = world.asker("w1")?;
    let prober = world.prober("c1")?;
    let back = now();
    world.lab.heal(&owner)?;
    world.asked(&asker, LATER)?;
    world.answered(&prober)?;
    nothing_lost(&prober.stop()?)?;
    let last = world.alone(&asker)?;
    ensure!(last == other, "{last} took it back");
    drop(asker);
    let seen = world.seen(outside)?;
    let taken = seen.taken(other, dead)?;
    let overlap = seen.last_speech(&owner, back);
    ensure!(
        overlap <= OVERLAP,
        "{owner} speaks {overlap} s after it is back"
    );
    deaf_and_silent(&world.seen(at_owner)?, &owner, dead)?;
    println!("two nodes: taken after {taken:.3} s, outage {longest:.0} ms, both {overlap:.3} s");
    third.restart()
}

/// The same as [`deaf_and_silent`] of one that hears again at `until`.
fn deaf_and_silent_until(seen: &Seen, node: &str, since: f64, until: f64) -> Result<f64> {
    let deaf = seen.first(node, Kind::Hello { deaf: true }, since)?;
    let mut announced = seen.of(node, deaf);
    let announced = announced.find(|frame| frame.kind == Kind::Announcement && frame.at < until);
    ensure!(
        announced.is_none(),
        "deaf since {deaf}, it announces: {announced:?}"
    );
    let answered = seen.speech(node, deaf).any(|frame| frame.at < until);
    ensure!(answered, "deaf since {deaf}, it answers nobody");
    Ok(deaf)
}

/// No node reaches the API server while the owner's cable is out.
pub(crate) fn failover_without_api(world: &mut World) -> Result<()> {
    let asker = world.asker("w1")?;
    let owner = world.alone(&asker)?;
    world.recorded(&owner)?;
    let [outside] = world.watch(["w1"])?;
    let prober = world.prober("c1")?;
    world.lab.cut("cp")?;
    let dead = now();
    world.lab.cut(&owner)?;
    let next = world.relieved(&asker, &owner)?;
    world.answered(&prober)?;
    let longest = outage(&prober.stop()?)?;
    let record = world.record()?;
    ensure!(record["owner"] == owner.as_str(), "{record}: is it away?");

    // The old owner returns to a segment without API server.
    let prober = world.prober("c1")?;
    let back = now();
    world.lab.heal(&owner)?;
    world.asked(&asker, LATER)?;
    // The record follows.
    world.lab.heal("cp")?;
    world.recorded(&next)?;
    world.answered(&prober)?;
    nothing_lost(&prober.stop()?)?;
    drop(asker);
    let seen = world.seen(outside)?;
    let taken = seen.taken(&next, dead)?;
    let overlap = seen.last_speech(&owner, back);
    ensure!(
        overlap <= OVERLAP,
        "{owner} speaks {overlap} s after it is back"
    );
    seen.only(&[&next], back + OVERLAP)?;
    println!(
        "no API server: taken after {taken:.3} s, outage {longest:.0} ms, both {overlap:.3} s"
    );
    Ok(())
}

/// The owner's speaker crashes, and starts while the API server is away.
pub(crate) fn start_without_api(world: &mut World) -> Result<()> {
    let asker = world.asker("w1")?;
    let owner = world.alone(&asker)?;
    world.recorded(&owner)?;
    let [outside] = world.watch(["w1"])?;
    let prober = world.prober("c1")?;
    world.lab.cut("cp")?;
    let speaker = world.speakers.get(&owner).context("its speaker")?.clone();
    let dead = now();
    speaker.kill9()?;
    let next = world.relieved(&asker, &owner)?;

    let started = now();
    speaker.respawn()?;
    let target = SocketAddr::new(world.lab.address(&owner).into(), 9618);
    world.until("it says what it waits for", || {
        let host = world.lab.host(&owner);
        let (status, body) = host.run(|| request("GET", target, "/readyz"))??;
        ensure!(
            status == 503 && body.contains("API server"),
            "{status} {body}"
        );
        Ok(())
    })?;
    world.asked(&asker, LATER)?;
    world.lab.heal("cp")?;
    speaker.wait_ready()?;
    world.recorded(&next)?;
    world.asked(&asker, LATER)?;
    world.answered(&prober)?;
    // The kernel forwards on when its speaker is dead.
    let report = prober.stop()?;
    let longest = report.longest_ms();
    ensure!(longest <= OUTAGE, "{report:?}");
    drop(asker);
    let seen = world.seen(outside)?;
    let taken = seen.taken(&next, dead)?;
    seen.first(&owner, Kind::Hello { deaf: false }, started)?;
    // Neither then nor when it is told: another has it.
    seen.only(&[&next], started)?;
    println!("start without API server: taken after {taken:.3} s, outage {longest:.0} ms");
    Ok(())
}

//! The invariants.
//!
//! - (a) Where an eligible node is reachable, a client's packets arrive within
//!   the formula's bound after the last change.
//! - (b) One node answers in each connected part; two that meet sort it out
//!   within the bound of a heal, and nobody answers that was outdone meanwhile.
//! - (c) No address is taken from a live owner, and the first in line gets it.
//! - (d) A planned move leaves no gap: somebody answers all the time, and (a)
//!   grants it nothing.
//! - (e) A node sends few frames in peace, and never more than the pace.
//! - (f) An address that was made again is not answered by an owner of the old
//!   object where one of the new object can be.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use bellrock_arp::{Cause, Instant, Timers};

use crate::picture::{Fitness, Part, Picture};
use crate::wire::Station;

/// The client's, the wire's and the machine's own time.
const REST: Duration = Duration::from_millis(25);
/// Two that hear each other again: a HELLO, a question, an answer.
const HEAL: Duration = Duration::from_millis(130);
/// Two that claim at once because they were told different orders.
const RACE: Duration = Duration::from_millis(10);
/// Both answer while one hands over.
const GIVE: Duration = Duration::from_millis(1_100);
/// How long nothing must have changed for a rule that needs peace.
const PEACE: Duration = Duration::from_secs(2);
/// Frames that a node may send in any second: probes and announcements at
/// their pace, and as much again.
const FRAMES: u64 = 4_000;

/// What a run broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub at: Duration,
    /// The invariant's letter.
    pub invariant: char,
    /// What was seen.
    pub what: String,
}

#[derive(Clone, Debug)]
struct Standing {
    part: Option<Part>,
    since: Instant,
    bound: Duration,
}

pub(crate) struct Check {
    timers: Timers,
    /// For each address: who answers, since when.
    answers: Vec<BTreeMap<usize, Instant>>,
    picture: Picture,
    /// When anything in the picture changed, and when somebody came (a link, a
    /// node, a permission), who may not be known to all yet.
    changed: Instant,
    /// The same, but for a filter that came or went: that takes no address from
    /// its owner.
    settled: Instant,
    joined: Instant,
    calm: Instant,
    /// For each pair of nodes: connected since.
    links: BTreeMap<(usize, usize), Instant>,
    standings: BTreeMap<(Station, usize), Standing>,
    /// Two answer: since when.
    overlaps: BTreeMap<(usize, usize, usize), Instant>,
    pub(crate) violation: Option<Violation>,
}

impl Check {
    pub(crate) fn new(timers: Timers, vips: usize) -> Self {
        Self {
            timers,
            answers: vec![BTreeMap::new(); vips],
            picture: Picture::default(),
            changed: Instant(0),
            settled: Instant(0),
            joined: Instant(0),
            calm: Instant(0),
            links: BTreeMap::new(),
            standings: BTreeMap::new(),
            overlaps: BTreeMap::new(),
            violation: None,
        }
    }

    fn break_(&mut self, invariant: char, what: String, now: Instant) {
        if self.violation.is_none() {
            let at = now.since(Instant(0));
            self.violation = Some(Violation {
                at,
                invariant,
                what,
            });
        }
    }

    pub(crate) fn owners(&self, vip: usize) -> Vec<usize> {
        let answers = self.answers.get(vip);
        answers.map_or_else(Vec::new, |nodes| nodes.keys().copied().collect())
    }

    /// T of the protocol, for the last of those that could be in line.
    fn bound(&self, part: &Part) -> Duration {
        let before = part.speakers.len() - part.eligible;
        let stagger = self.timers.stagger * u32::try_from(before).unwrap_or(u32::MAX);
        // A node that starts listens as long as one that misses another.
        self.timers.dead_after() + stagger + self.timers.probe_window() + REST
    }

    /// The picture changed. `planned`: by something that must cost nothing.
    pub(crate) fn look(&mut self, picture: Picture, planned: bool, now: Instant) {
        if picture == self.picture {
            return;
        }
        let old = std::mem::replace(&mut self.picture, picture);
        self.changed = now;
        if !only_filtered(&old, &self.picture) {
            self.settled = now;
        }
        if came(&old, &self.picture) {
            self.joined = now;
        }
        if !self.picture.calm || !old.calm {
            self.calm = now;
        }
        let nodes = self.picture.runs.len();
        for a in 0..nodes {
            for b in a + 1..nodes {
                if !self.picture.connected(a, b) {
                    self.links.remove(&(a, b));
                } else {
                    self.links.entry((a, b)).or_insert(now);
                }
            }
        }
        let keys: Vec<_> = self.standings.keys().copied().collect();
        for (client, vip) in keys {
            self.stand(client, vip, planned, now);
        }
        self.compare(now);
    }

    /// Follows what a client may expect of an address.
    fn stand(&mut self, client: Station, vip: usize, planned: bool, now: Instant) {
        let part = self.picture.part(client, vip);
        let bound = part
            .as_ref()
            .map_or(Duration::ZERO, |part| self.bound(part));
        let Some(known) = self.standings.get_mut(&(client, vip)) else {
            return;
        };
        if known.part == part {
            return;
        }
        let goes_on = planned && known.part.is_some() && part.is_some();
        if !goes_on {
            known.since = now;
        }
        known.bound = bound;
        known.part = part;
    }

    /// How a client's packet fared. `extra`: what this client takes longer.
    pub(crate) fn pinged(
        &mut self,
        (client, vip): (Station, usize),
        arrived: bool,
        (extra, first): (Duration, bool),
        what: impl FnOnce() -> String,
        now: Instant,
    ) {
        let standing = self.standings.entry((client, vip));
        if let Entry::Vacant(vacant) = standing {
            vacant.insert(Standing {
                part: None,
                since: now,
                bound: Duration::ZERO,
            });
            self.stand(client, vip, false, now);
        }
        let Some(standing) = self.standings.get_mut(&(client, vip)) else {
            return;
        };
        // What nobody ever had may wait for the node that it is meant for.
        if first {
            standing.since = now;
            return;
        }
        let (since, bound) = (standing.since, standing.bound + extra);
        if !arrived && standing.part.is_some() && now.since(since) > bound {
            let took = now.since(since);
            let text = format!(
                "{}, {took:?} after the last change, bound {bound:?}",
                what()
            );
            self.break_('a', text, now);
        }
    }

    /// A node answers from now on.
    pub(crate) fn owned(&mut self, node: usize, vip: usize, cause: Cause, now: Instant) {
        let others = self.answers.get(vip).cloned().unwrap_or_default();
        for (other, since) in others {
            let changed = if self.picture.filtered {
                self.settled
            } else {
                self.changed
            };
            let age = now.since(since.max(self.link(node, other)).max(changed));
            let steady = (self.picture.calm || self.picture.filtered)
                && self.picture.is_running(other)
                && self.picture.fitness(vip, other) == Fitness::Eligible
                && self.told_alike(vip, node, other);
            if cause != Cause::HandedOver && steady && age > PEACE {
                self.break_(
                    'c',
                    format!("n{node:02} took {vip} from n{other:02}, which lives: {cause}"),
                    now,
                );
            }
        }
        if matches!(
            cause,
            Cause::OwnerSilent | Cause::OwnerLeft | Cause::OwnerDeaf
        ) && let Some(heir) = self.heir(vip, now)
            && heir != node
        {
            self.break_(
                'c',
                format!("n{node:02} took {vip}, n{heir:02} comes first"),
                now,
            );
        }
        if let Some(nodes) = self.answers.get_mut(vip) {
            nodes.insert(node, now);
        }
        self.compare(now);
    }

    /// A node answers no more.
    pub(crate) fn lost(&mut self, node: usize, vip: usize, cause: Option<Cause>, now: Instant) {
        if let Some(nodes) = self.answers.get_mut(vip) {
            nodes.remove(&node);
        }
        if cause == Some(Cause::HandedOver) {
            let answers = self.answers.get(vip);
            let held = answers.is_some_and(|nodes| !nodes.is_empty());
            if !held {
                let what = format!("n{node:02} gave {vip} away and nobody has it");
                self.break_('d', what, now);
            }
        }
        self.compare(now);
    }

    fn told_alike(&self, vip: usize, one: usize, other: usize) -> bool {
        self.picture.object(vip).is_some_and(|object| {
            [one, other]
                .iter()
                .all(|node| object.told.get(*node) == Some(&Some(object.created)))
        })
    }

    fn link(&self, one: usize, other: usize) -> Instant {
        let key = (one.min(other), one.max(other));
        self.links.get(&key).copied().unwrap_or(Instant(u64::MAX))
    }

    /// Who must get the address of an owner that is gone; nobody in particular
    /// where not all know the same.
    fn heir(&self, vip: usize, now: Instant) -> Option<usize> {
        let object = self.picture.object(vip)?;
        let running: Vec<usize> = self.picture.running().collect();
        let whole = running
            .iter()
            .all(|a| running.iter().all(|b| self.picture.connected(*a, *b)));
        let informed = running
            .iter()
            .all(|node| object.informed.get(*node) == Some(&true));
        if !whole || !informed || !self.picture.calm || now.since(self.joined) < PEACE {
            return None;
        }
        let able = |node: &&usize| {
            running.contains(node) && self.picture.fitness(vip, **node) == Fitness::Eligible
        };
        object.order.iter().find(able).copied()
    }

    /// How long two that meet may take. After a loss a question may be gone,
    /// and is not asked twice in an interval.
    fn heal(&self, now: Instant) -> Duration {
        let lossy = now.since(self.calm) < PEACE;
        HEAL + if lossy {
            self.timers.hello
        } else {
            Duration::ZERO
        }
    }

    /// A node said on the wire that the address is its own.
    pub(crate) fn said(&mut self, node: usize, vip: usize, now: Instant) {
        let others = self.answers.get(vip).cloned().unwrap_or_default();
        for (other, since) in others {
            if other == node
                || !self.picture.is_running(other)
                || !self.told_alike(vip, node, other)
            {
                continue;
            }
            let known = since.max(self.link(node, other)).max(self.calm);
            let mine = self.answers.get(vip).and_then(|nodes| nodes.get(&node));
            let older = mine.is_none_or(|mine| *mine < since);
            if self.picture.calm
                && older
                && now.since(known) > self.heal(now)
                && self.picture.connected(node, other)
            {
                self.break_(
                    'b',
                    format!(
                        "n{node:02} says that {vip} is its own, {:?} after n{other:02} claimed it",
                        now.since(since)
                    ),
                    now,
                );
            }
        }
    }

    /// Notes which nodes answer for one address and hear each other.
    fn compare(&mut self, now: Instant) {
        let mut found = BTreeMap::new();
        for (vip, nodes) in self.answers.iter().enumerate() {
            for a in nodes.keys() {
                for b in nodes.keys().filter(|b| a < *b) {
                    let both = [*a, *b].iter().all(|node| self.picture.is_running(*node));
                    if both && self.picture.connected(*a, *b) {
                        let since = self.overlaps.get(&(vip, *a, *b));
                        found.insert((vip, *a, *b), since.copied().unwrap_or(now));
                    }
                }
            }
        }
        self.overlaps = found;
    }

    /// Looks at what lasts too long.
    pub(crate) fn tick(&mut self, gives: impl Fn(usize, usize) -> bool, now: Instant) {
        let overlaps = self.overlaps.clone();
        for ((vip, a, b), since) in overlaps {
            let met = self.link(a, b);
            let allowed = if gives(a, vip) || gives(b, vip) {
                GIVE
            } else if since.since(met) < PEACE || since.since(self.changed) < PEACE {
                self.heal(now)
            } else {
                RACE
            };
            let started = since.max(self.calm);
            if self.picture.calm && now.since(started) > allowed {
                let letter = if self.told_alike(vip, a, b) { 'b' } else { 'f' };
                // A speaker that was told of no new object cannot know better
                // than what it hears.
                self.break_(
                    letter,
                    format!(
                        "n{a:02} and n{b:02} answer for {vip} since {:?}",
                        now.since(started)
                    ),
                    now,
                );
            }
        }
        self.stale(now);
    }

    /// (f) for owners that are alone.
    fn stale(&mut self, now: Instant) {
        let quiet = now.since(self.changed);
        if !self.picture.calm || quiet < PEACE + self.timers.first_claim_grace {
            return;
        }
        let mut found = None;
        for (vip, nodes) in self.answers.iter().enumerate() {
            let Some(object) = self.picture.object(vip).filter(|object| !object.disturbed) else {
                continue;
            };
            for node in nodes.keys().filter(|node| self.picture.is_running(**node)) {
                let old = object
                    .told
                    .get(*node)
                    .is_some_and(|told| *told < Some(object.created));
                let better = self.picture.running().find(|other| {
                    self.picture.connected(*node, *other)
                        && self.picture.fitness(vip, *other) == Fitness::Eligible
                });
                if let (true, Some(better)) = (old, better) {
                    found = Some(format!(
                        "n{node:02} answers for {vip} of an older object, n{better:02} knows the new one"
                    ));
                }
            }
        }
        if let Some(what) = found {
            self.break_('f', what, now);
        }
    }

    /// How many frames a node sent in the second that began at `start`.
    pub(crate) fn sent(&mut self, node: usize, (start, frames): (Instant, u64), now: Instant) {
        let hellos = 1_000
            / u64::try_from(self.timers.hello.as_millis())
                .unwrap_or(1)
                .max(1);
        let vips = self.answers.len() as u64;
        let peace =
            start.since(self.changed.max(self.calm)) > Duration::from_secs(6) && self.picture.calm;
        // HELLOs, and each address once a minute announced or tried again.
        let most = if peace { hellos + 2 + 4 * vips } else { FRAMES };
        if frames > most {
            self.break_(
                'e',
                format!("n{node:02} sent {frames} frames in a second, at most {most} are due"),
                now,
            );
        }
    }
}

/// Whether the two differ at the most in that frames to the group are lost.
fn only_filtered(old: &Picture, new: &Picture) -> bool {
    let quiet = |picture: &Picture| picture.calm || picture.filtered;
    let same = Picture {
        calm: old.calm,
        filtered: old.filtered,
        ..new.clone()
    };
    quiet(old) && quiet(new) && same == *old
}

/// Whether something is there that was not.
fn came(old: &Picture, new: &Picture) -> bool {
    let more = |old: &[bool], new: &[bool]| old.iter().zip(new).any(|(old, new)| !old && *new);
    more(&old.runs, &new.runs)
        || old
            .reach
            .iter()
            .zip(&new.reach)
            .any(|(old, new)| more(old, new))
        || old.objects != new.objects
        || old.calm != new.calm
}

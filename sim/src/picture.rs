//! What is true at one moment, as no node can know it: who runs, who reaches
//! whom, who may hold what. The checks judge by it.

use std::collections::BTreeSet;

use bellrock_arp::MacAddr;

use crate::wire::Station;

/// How a node stands to an address, in truth and in its own view alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// May claim it.
    Eligible,
    /// Holds it until somebody else does.
    Yields,
    /// Must not hold it.
    No,
    /// What the node was told is not what is true now.
    Unsure,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The desired node, then the successors.
    pub(crate) order: Vec<usize>,
    /// By node.
    pub(crate) fitness: Vec<Fitness>,
    /// By node: the creation time that it was told.
    pub(crate) told: Vec<Option<u64>>,
    /// By node: it was told the order that stands now.
    pub(crate) informed: Vec<bool>,
    /// A foreign host answers for it, or kept it from being claimed.
    pub(crate) disturbed: bool,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    /// The speaker runs, and so does the machine.
    pub(crate) runs: Vec<bool>,
    /// The nodes' hardware addresses.
    pub(crate) macs: Vec<MacAddr>,
    /// `reach[a][b]`: frames of station a come to station b.
    pub(crate) reach: Vec<Vec<bool>>,
    /// Nothing happens to frames on the way.
    pub(crate) calm: bool,
    /// Nothing happens to them, but that none to the nodes' group arrives.
    pub(crate) filtered: bool,
    /// By number; none where the object does not exist.
    pub(crate) objects: Vec<Option<Object>>,
}

/// Where a client stands: who could answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Speakers that it reaches, and that reach it.
    pub(crate) speakers: BTreeSet<usize>,
    /// Those of them that may hold the address.
    pub(crate) able: BTreeSet<usize>,
    /// How many of them may claim it.
    pub(crate) eligible: usize,
    /// The speakers' hardware addresses.
    macs: Vec<MacAddr>,
    pub(crate) created: u64,
}

impl Picture {
    pub(crate) fn reaches(&self, from: Station, to: Station) -> bool {
        from == to || self.reach.get(from).and_then(|row| row.get(to)) == Some(&true)
    }

    pub(crate) fn connected(&self, one: Station, other: Station) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = usize> + '_ {
        let all = self.runs.iter().enumerate();
        all.filter(|(_, runs)| **runs).map(|(node, _)| node)
    }

    pub(crate) fn is_running(&self, node: usize) -> bool {
        self.runs.get(node) == Some(&true)
    }

    pub(crate) fn object(&self, vip: usize) -> Option<&Object> {
        self.objects.get(vip)?.as_ref()
    }

    pub(crate) fn fitness(&self, vip: usize, node: usize) -> Fitness {
        let fitness = self.object(vip).and_then(|object| object.fitness.get(node));
        fitness.copied().unwrap_or(Fitness::No)
    }

    /// The part of the segment around `client`, if the protocol promises it an
    /// answer: all that hear each other there do so both ways, and whoever is
    /// only heard hears nothing (and so knows it).
    pub(crate) fn part(&self, client: Station, vip: usize) -> Option<Part> {
        let object = self.object(vip).filter(|object| !object.disturbed)?;
        if !self.calm {
            return None;
        }
        let (inside, outside): (Vec<usize>, Vec<usize>) = self
            .running()
            .partition(|node| self.connected(*node, client));
        let whole = inside
            .iter()
            .all(|a| inside.iter().all(|b| self.connected(*a, *b)));
        let heard = |node: &usize| {
            self.reaches(*node, client) || inside.iter().any(|member| self.reaches(*node, *member))
        };
        let deaf = |node: &usize| {
            let others = 0..self.reach.len();
            !others
                .into_iter()
                .any(|other| other != *node && self.reaches(other, *node))
        };
        if !whole || !outside.iter().all(|node| !heard(node) || deaf(node)) {
            return None;
        }
        let fitness = |node: &usize| self.fitness(vip, *node);
        if inside.iter().any(|node| fitness(node) == Fitness::Unsure)
            || !inside.iter().any(|node| fitness(node) == Fitness::Eligible)
        {
            return None;
        }
        let able = |node: &usize| matches!(fitness(node), Fitness::Eligible | Fitness::Yields);
        Some(Part {
            able: inside.iter().copied().filter(able).collect(),
            eligible: inside
                .iter()
                .filter(|node| fitness(node) == Fitness::Eligible)
                .count(),
            macs: inside
                .iter()
                .filter_map(|node| self.macs.get(*node).copied())
                .collect(),
            speakers: inside.into_iter().collect(),
            created: object.created,
        })
    }
}

//! Faults at work: what begins, what ends, and the picture of the moment.

use std::time::Duration;

use bellrock_arp::ownership::Input;
use bellrock_arp::{Eligibility, MacAddr};

use crate::cluster::name;
use crate::fault::{Fault, Way};
use crate::picture::{Fitness, Object, Picture};
use crate::wire::{Cable, Weather};
use crate::world::{Due, World};

fn cable(way: Way) -> Cable {
    match way {
        Way::Both => Cable::CUT,
        Way::Out => Cable {
            out: false,
            back: true,
        },
        Way::Back => Cable {
            out: true,
            back: false,
        },
    }
}

impl World {
    pub(crate) fn begin(&mut self, index: usize) {
        let Some(fault) = self
            .faults
            .get(index)
            .map(|scheduled| scheduled.fault.clone())
        else {
            return;
        };
        self.tell(|| format!("begins: {fault:?}"));
        self.active.insert(index);
        self.changed = Some(false);
        match fault {
            Fault::Loss(_)
            | Fault::Duplicates(_)
            | Fault::Delay(_)
            | Fault::Reorder
            | Fault::Filter
            | Fault::Trunk(..)
            | Fault::Cable(..)
            | Fault::Pull(_) => self.lay(),
            Fault::Flap(_) => self.flap(index, true),
            Fault::Stop(node) | Fault::Pause(node) => {
                if let Some(it) = self.nodes.get_mut(node) {
                    it.frozen = true;
                }
            }
            Fault::Kill(node) | Fault::Clock(node) => self.kill(node),
            Fault::Crash(node) => {
                self.crashed.insert(node);
                self.kill(node);
            }
            Fault::Leave(node) => {
                self.feed(node, Input::Drain);
                self.later(Duration::from_millis(20), Due::Leave(node, 50));
            }
            Fault::Rollout(node) => self.replace(node),
            Fault::Mac(node) => {
                if let Some(it) = self.nodes.get_mut(node) {
                    let MacAddr(a, b, c, _, e, f) = it.mac;
                    it.mac = MacAddr(a, b, c, 7, e, f);
                }
                self.link(node);
            }
            Fault::Api => self.cluster.up = false,
            Fault::Watch(_) | Fault::Proxy => {}
            Fault::Endpoints(vip, local) => {
                if let Some(Some(object)) = self.cluster.vips.get_mut(vip) {
                    object.local = Some(local);
                    self.publish(vip);
                }
            }
            Fault::Unseen(vip) => {
                if let Some(owner) = self.check.owners(vip).first() {
                    self.unseen.insert(vip, *owner);
                }
                if let Some(object) = self.cluster.vips.get_mut(vip) {
                    *object = None;
                }
                self.publish(vip);
                self.later(Duration::from_millis(900), Due::Create(vip));
            }
            Fault::Foreign(vip) | Fault::Recreate(vip) => {
                if let Some(object) = self.cluster.vips.get_mut(vip) {
                    *object = None;
                }
                self.publish(vip);
                if matches!(fault, Fault::Foreign(_)) {
                    self.blocked.insert(vip);
                    self.later(Duration::from_secs(3), Due::Create(vip));
                }
            }
            Fault::Drain(node) => self.drain(node, true),
            Fault::Move(vip) => {
                self.cluster.swap(vip);
                self.publish(vip);
            }
        }
    }

    pub(crate) fn end(&mut self, index: usize) {
        let Some(fault) = self
            .faults
            .get(index)
            .map(|scheduled| scheduled.fault.clone())
        else {
            return;
        };
        self.tell(|| format!("ends: {fault:?}"));
        self.active.remove(&index);
        self.changed = Some(false);
        match fault {
            Fault::Loss(_)
            | Fault::Duplicates(_)
            | Fault::Delay(_)
            | Fault::Reorder
            | Fault::Filter
            | Fault::Trunk(..)
            | Fault::Cable(..)
            | Fault::Pull(_) => self.lay(),
            Fault::Flap(node) => {
                self.flapped.remove(&node);
                self.lay();
            }
            Fault::Stop(node) | Fault::Pause(node) => self.thaw(node),
            Fault::Kill(node) => self.start(node),
            // It may still be about to leave.
            Fault::Leave(node) => self.later(Duration::from_millis(1_200), Due::Start(node)),
            Fault::Clock(node) => {
                if let Some(it) = self.nodes.get_mut(node) {
                    it.incarnation = it.incarnation.saturating_sub(500_000);
                }
                self.start(node);
            }
            Fault::Crash(node) => {
                self.crashed.remove(&node);
                self.start(node);
            }
            Fault::Rollout(_)
            | Fault::Mac(_)
            | Fault::Proxy
            | Fault::Foreign(_)
            | Fault::Move(_) => {}
            Fault::Api => {
                self.cluster.up = true;
                self.later(Duration::from_millis(100), Due::Reconcile);
                for vip in 0..self.cluster.vips.len() {
                    self.publish(vip);
                }
            }
            Fault::Watch(node) => self.soon((1, 50), Due::Listed(node)),
            Fault::Endpoints(vip, _) => {
                if let Some(Some(object)) = self.cluster.vips.get_mut(vip) {
                    object.local = None;
                    self.publish(vip);
                }
            }
            Fault::Unseen(vip) => {
                if let Some(owner) = self.unseen.remove(&vip) {
                    self.soon((1, 50), Due::Listed(owner));
                }
            }
            Fault::Recreate(vip) => self.later(Duration::from_millis(900), Due::Create(vip)),
            Fault::Drain(node) => self.drain(node, false),
        }
    }

    fn drain(&mut self, node: usize, drains: bool) {
        if let Some(it) = self.cluster.draining.get_mut(node) {
            *it = drains;
        }
        for vip in 0..self.cluster.vips.len() {
            self.publish(vip);
        }
        self.changed = Some(true);
        self.soon((50, 400), Due::Reconcile);
    }

    /// As the driver does it: the frames that waited come first.
    fn thaw(&mut self, node: usize) {
        let Some(it) = self.nodes.get_mut(node) else {
            return;
        };
        it.frozen = false;
        it.timer = None;
        let backlog = std::mem::take(&mut it.backlog);
        for frame in backlog {
            self.feed(node, Input::Frame(frame.to_vec()));
        }
        self.feed(node, Input::Timeout);
        self.soon((1, 50), Due::Listed(node));
    }

    pub(crate) fn flap(&mut self, index: usize, down: bool) {
        let Some(Fault::Flap(node)) = self.faults.get(index).map(|s| s.fault.clone()) else {
            return;
        };
        if !self.active.contains(&index) {
            return;
        }
        if down {
            self.flapped.insert(node);
        } else {
            self.flapped.remove(&node);
        }
        self.lay();
        self.changed = Some(false);
        self.soon((20, 600), Due::Flap(index, !down));
    }

    /// Brings the wire in line with the faults at work.
    fn lay(&mut self) {
        let faults: Vec<Fault> = self.active_faults().cloned().collect();
        let mut weather = Weather::CALM;
        let mut trunks = vec![Cable::WHOLE; self.wire.trunks()];
        let mut cables = vec![(Cable::WHOLE, true); self.nodes.len()];
        for fault in &faults {
            match fault {
                Fault::Loss(percent) => weather.loss = *percent,
                Fault::Duplicates(percent) => weather.duplicates = *percent,
                Fault::Delay(ms) => weather.delay = Duration::from_millis(*ms),
                Fault::Reorder => {
                    weather.reorder = true;
                    weather.delay = weather.delay.max(Duration::from_millis(2));
                }
                Fault::Filter => weather.filtered = true,
                Fault::Trunk(trunk, way) => {
                    if let Some(it) = trunks.get_mut(*trunk) {
                        let fails = cable(*way);
                        it.out &= fails.out;
                        it.back &= fails.back;
                    }
                }
                Fault::Cable(node, way) => {
                    if let Some(it) = cables.get_mut(*node) {
                        it.0 = cable(*way);
                    }
                }
                Fault::Pull(node) => {
                    if let Some(it) = cables.get_mut(*node) {
                        *it = (Cable::CUT, false);
                    }
                }
                _ => {}
            }
        }
        for node in &self.flapped {
            if let Some(it) = cables.get_mut(*node) {
                *it = (Cable::CUT, false);
            }
        }
        self.wire.weather = weather;
        for (trunk, cable) in trunks.into_iter().enumerate() {
            self.wire.set_trunk(trunk, cable);
        }
        for (node, (cable, carrier)) in cables.into_iter().enumerate() {
            let Some(it) = self.nodes.get_mut(node) else {
                continue;
            };
            let moved = it.carrier != carrier;
            it.carrier = carrier;
            self.wire.set_cable(node, cable, !carrier);
            if moved {
                self.tell(|| {
                    format!(
                        "{} has {} carrier",
                        name(node),
                        if carrier { "a" } else { "no" }
                    )
                });
                self.link(node);
            }
        }
    }

    /// Shows the checks what is true now.
    pub(crate) fn look(&mut self) {
        let Some(planned) = self.changed.take() else {
            return;
        };
        let picture = self.picture();
        self.check.look(picture, planned, self.now);
    }

    fn picture(&self) -> Picture {
        let nodes = self.nodes.len();
        let stations = nodes + self.clients.len();
        let reach = |from| {
            (0..stations)
                .map(|to| self.wire.reaches(from, to))
                .collect()
        };
        Picture {
            runs: self
                .nodes
                .iter()
                .map(|node| node.runs() && node.carrier)
                .collect(),
            macs: self.nodes.iter().map(|node| node.mac).collect(),
            reach: (0..stations).map(reach).collect(),
            calm: self.wire.weather == Weather::CALM,
            filtered: self.wire.weather
                == Weather {
                    filtered: true,
                    ..Weather::CALM
                },
            objects: (0..self.cluster.vips.len())
                .map(|vip| self.object(vip))
                .collect(),
        }
    }

    fn object(&self, vip: usize) -> Option<Object> {
        let object = self.cluster.vips.get(vip)?.as_ref()?;
        let truth = |node| self.cluster.assignment(vip, node);
        let told = |node: usize| self.nodes.get(node).and_then(|it| it.told.get(&vip));
        let fitness = |node| {
            let know = told(node).map(|told| (told.created, told.eligibility));
            match (know, truth(node).map(|truth| truth.eligibility)) {
                // As the speaker: what it never might hold is not its business.
                (None, Some(Eligibility::Yielding | Eligibility::Ineligible)) => Fitness::No,
                (Some((created, knows)), Some(truth))
                    if created == object.created && knows == truth =>
                {
                    match truth {
                        Eligibility::Eligible => Fitness::Eligible,
                        Eligibility::Yielding => Fitness::Yields,
                        Eligibility::Ineligible => Fitness::No,
                    }
                }
                _ => Fitness::Unsure,
            }
        };
        let order = std::iter::once(&object.placed.node).chain(&object.placed.successors);
        let index = |name: &String| {
            name.strip_prefix('n')
                .and_then(|digits| digits.parse().ok())
        };
        let informed = |node| {
            let (told, truth) = (told(node), truth(node));
            told.zip(truth.as_ref()).is_some_and(|(told, truth)| {
                (&told.desired, &told.successors, told.created)
                    == (&truth.desired, &truth.successors, truth.created)
            })
        };
        let nodes = 0..self.nodes.len();
        Some(Object {
            created: object.created,
            order: order.filter_map(index).collect(),
            fitness: nodes.clone().map(fitness).collect(),
            told: nodes
                .clone()
                .map(|node| told(node).map(|told| told.created))
                .collect(),
            informed: nodes.map(informed).collect(),
            disturbed: self.blocked.contains(&vip)
                || self.active_faults().any(|fault| *fault == Fault::Proxy),
        })
    }
}

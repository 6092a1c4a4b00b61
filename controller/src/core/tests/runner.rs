//! A controller that runs on the model, one step at a time.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::{parse_virtual_ip_name, virtual_ip_name};

use super::cluster::{Cluster, Refused};
use crate::core::{Change, Core, Plan, Settings, Work, Write};
use crate::ipam::ServiceKey;
use crate::view::{ServiceView, Version, remembers};

/// The time at which tests begin.
pub(super) const T0: Duration = Duration::from_secs(1_000_000);

/// How a write ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is made, and the answer arrives.
    Made,
    /// It does not reach the API server.
    Lost,
    /// It is made, and the answer is lost.
    Unanswered,
}

/// A controller on the model.
pub(super) struct Controller {
    pub(super) core: Core,
    pub(super) now: Duration,
    /// Plans under way, with what is left of them.
    plans: Vec<(Work, VecDeque<Write>)>,
}

impl Controller {
    /// Starts: lists everything.
    pub(super) fn start(cluster: &mut Cluster, now: Duration) -> Self {
        let mut core = Core::new(Settings {
            classes: ["bellrock.dev/bellrock".to_owned()].into(),
            serve_classless: true,
            ignore_exclude_label: false,
            cleanup_finalizer: cluster.cleanup_finalizer,
        });
        cluster.news.clear();
        for change in cluster.listing() {
            assert!(
                core.next(now).is_none(),
                "nothing is decided before everything is known"
            );
            core.apply(change, now);
        }
        Self {
            core,
            now,
            plans: Vec::new(),
        }
    }

    /// Loses the lease, with what is under way, and takes up again.
    pub(super) fn lose(&mut self, cluster: &mut Cluster) {
        self.plans.clear();
        self.core.stand_down();
        self.take_up(cluster);
    }

    /// Comes to lead.
    pub(super) fn take_up(&mut self, cluster: &mut Cluster) {
        self.core.take_up();
        cluster.relist();
        assert!(
            self.core.next(self.now).is_none(),
            "nothing is decided before everything is listed"
        );
    }

    /// Receives the oldest piece of news; false when there is none.
    pub(super) fn hear(&mut self, cluster: &mut Cluster) -> bool {
        match cluster.news.pop_front() {
            Some(change) => {
                self.core.apply(change, self.now);
                true
            }
            None => false,
        }
    }

    /// Starts the next plan; false when there is none.
    pub(super) fn think(&mut self) -> bool {
        match self.core.next(self.now) {
            Some(Plan { work, writes }) => {
                assert!(!writes.is_empty());
                self.plans.push((work, writes.into()));
                true
            }
            None => false,
        }
    }

    pub(super) fn plans(&self) -> usize {
        self.plans.len()
    }

    /// Makes the next write of a plan, as the driver does.
    pub(super) fn act(&mut self, cluster: &mut Cluster, plan: usize, fate: Fate) {
        let (work, mut rest) = self.plans.remove(plan);
        let write = rest.pop_front().unwrap();
        let result = match fate {
            Fate::Lost => Err(Refused::Network),
            Fate::Made => cluster.accept(&write),
            Fate::Unanswered => cluster.accept(&write).and(Err(Refused::Network)),
        };
        match result {
            Ok(answer) => {
                match (&write, answer) {
                    (Write::DeleteVip { ip, version }, _) => {
                        self.core.vip_deleted(*ip, &version.uid, self.now);
                    }
                    (_, Some(Change::Service(key, view))) => self.core.service_written(&key, *view),
                    (_, Some(Change::VirtualIp(ip, view))) => {
                        let remembers = match &write {
                            Write::CreateVip(spec) | Write::PatchVip { spec, .. } => {
                                remembers(spec, &view.spec)
                            }
                            _ => None,
                        };
                        self.core.vip_written(ip, *view, remembers, self.now);
                    }
                    (write, answer) => unreachable!("{write:?}: {answer:?}"),
                }
                if rest.is_empty() {
                    self.core.done(&work, false);
                } else {
                    self.plans.push((work, rest));
                }
            }
            Err(refused) => {
                // What is there now is read again, unless the network is down.
                if refused != Refused::Network {
                    self.reread(cluster, &write);
                }
                self.core.done(&work, true);
            }
        }
    }

    fn reread(&mut self, cluster: &Cluster, write: &Write) {
        let (ip, refused) = match write {
            Write::CreateVip(spec) => (spec.ip().unwrap(), None),
            Write::PatchVip { ip, version, .. } | Write::DeleteVip { ip, version } => {
                (*ip, Some(version))
            }
            Write::PatchStatus(patch) => {
                return self.reread_service(cluster, &patch.service, &patch.version);
            }
            Write::PatchFinalizers {
                service, version, ..
            } => return self.reread_service(cluster, service, version),
        };
        match (cluster.vips.get(&virtual_ip_name(ip)), refused) {
            (Some(vip), refused) => {
                self.core.vip_reread(ip, vip.clone(), refused, self.now);
            }
            (None, Some(version)) => self.core.vip_deleted(ip, &version.uid, self.now),
            (None, None) => {}
        }
    }

    fn reread_service(&mut self, cluster: &Cluster, key: &ServiceKey, refused: &Version) {
        if let Some(service) = cluster.services.get(key) {
            let (key, view) = ServiceView::of(service).unwrap();
            self.core.service_reread(&key, view, refused);
        }
    }

    /// Runs until nothing is left to do.
    pub(super) fn settle(&mut self, cluster: &mut Cluster) {
        for _ in 0..20_000 {
            if self.hear(cluster) || self.think() {
                continue;
            }
            if self.plans.is_empty() {
                return;
            }
            self.act(cluster, 0, Fate::Made);
        }
        panic!(
            "does not converge; last writes: {:#?}",
            cluster.writes.iter().rev().take(6).collect::<Vec<_>>()
        );
    }

    /// Settles, and checks that neither a second look at everything nor a restart writes anything.
    pub(super) fn settle_for_good(&mut self, cluster: &mut Cluster) {
        self.settle(cluster);
        let before = cluster.writes.len();
        for key in cluster.services.keys() {
            self.core.requeue(Work::Service(key.clone()));
        }
        for name in cluster.vips.keys() {
            self.core
                .requeue(Work::Vip(parse_virtual_ip_name(name).unwrap()));
        }
        self.settle(cluster);
        assert_eq!(cluster.writes[before..], [], "a second pass");
        let unrecorded = |n: u8| {
            let ip = IpAddr::from([192, 0, 2, n]);
            let rests = self.core.allocator().rest(ip).is_some();
            rests && !cluster.vips.contains_key(&virtual_ip_name(ip))
        };
        if (0..8).any(unrecorded) {
            // Somebody deleted a VirtualIP by hand, and the rest that began is in no record.
            return;
        }
        let mut other = Controller::start(cluster, self.now);
        other.settle(cluster);
        assert_eq!(cluster.writes[before..], [], "a restart");
    }
}

/// A controller that has looked at everything.
pub(super) fn run(cluster: &mut Cluster) -> Controller {
    let mut controller = Controller::start(cluster, T0);
    controller.settle(cluster);
    controller
}

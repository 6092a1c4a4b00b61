//! The state machines on real interfaces.
//!
//! Everything that is timed runs on one OS thread: it waits (ppoll) for
//! frames, commands and the next deadline; then reads frames, takes commands,
//! runs timers, and sends, in this order. A second thread follows the
//! interfaces by netlink. Commands do not queue: for each address the last one
//! counts, so they need no more room than the addresses themselves.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is the part that has a clock and sockets"
)]

mod groups;
mod port;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bellrock_sys::{clock, wait};
use tokio::sync::mpsc;

use self::port::{Errors, Port};

use crate::MacAddr;
use crate::config::Config;
use crate::frame::Credentials;
use crate::handle::{Pending, Shared};
use crate::links::{Interface, serving};
use crate::ownership::{Input, Segment, SegmentConfig};
use crate::time::Instant;
use crate::types::{Assignment, Estate, Event};

/// More than any frame that we take.
const FRAME_SIZE: usize = 2048;
/// When an interface is tried again that could not be opened.
const REOPEN: Duration = Duration::from_secs(1);
/// How long successors have to take over what this node holds as it leaves.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Between the two goodbyes, one of which may be lost.
const GOODBYE: Duration = Duration::from_millis(10);

pub(crate) struct Driver {
    config: Config,
    credentials: Credentials,
    incarnation: u64,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    assignments: BTreeMap<IpAddr, Assignment>,
    /// Where each address is served.
    served: BTreeMap<IpAddr, BTreeSet<u32>>,
    interfaces: Vec<Interface>,
    local: BTreeSet<MacAddr>,
    ports: BTreeMap<u32, Port>,
    reopen: Option<Instant>,
    /// Another process of this node is on the segment.
    standby: bool,
    /// What it left, while this one begins.
    estate: Estate,
    /// The driver's own, and those of interfaces that are gone.
    counters: BTreeMap<&'static str, u64>,
}

fn now() -> Instant {
    Instant::from_start(clock::boottime())
}

impl Driver {
    pub(crate) fn new(
        config: Config,
        incarnation: u64,
        shared: Arc<Shared>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            credentials: Credentials::new(&config.cluster, &config.key),
            standby: config.standby,
            estate: Estate::new(),
            config,
            incarnation,
            shared,
            events,
            assignments: BTreeMap::new(),
            served: BTreeMap::new(),
            interfaces: Vec::new(),
            local: BTreeSet::new(),
            ports: BTreeMap::new(),
            reopen: None,
            counters: BTreeMap::new(),
        }
    }

    /// Runs until told to stop, or until waiting itself fails.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut buffer = vec![0; FRAME_SIZE];
        loop {
            self.wait(&mut ready)?;
            self.read(&ready, &mut buffer);
            let mut pending = self.shared.take();
            let stop = pending.stop;
            let bequeath = pending.bequeath.take();
            self.obey(pending);
            if let Some(heir) = bequeath.filter(|_| !self.standby) {
                // Whoever does not wait for it leaves it to the successors.
                if heir.try_send(self.estate()).is_ok() {
                    return Ok(());
                }
            }
            self.tick();
            self.flush();
            if stop {
                return self.leave(&mut ready, &mut buffer);
            }
        }
    }

    fn wait(&self, ready: &mut Vec<bool>) -> io::Result<()> {
        let deadline = self
            .ports
            .values()
            .filter_map(|port| port.segment.next_deadline())
            .chain(self.reopen)
            .min();
        let timeout = deadline.map(|at| at.since(now()));
        let fds: Vec<_> = std::iter::once(self.shared.wake.as_fd())
            .chain(self.ports.values().flat_map(Port::fds))
            .collect();
        wait::readable(&fds, timeout, ready)
    }

    fn read(&mut self, ready: &[bool], buffer: &mut [u8]) {
        let now = now();
        let mut errors = Errors::default();
        let ready = ready.get(1..).unwrap_or_default();
        for (port, ready) in self.ports.values_mut().zip(ready.chunks(Port::SOCKETS)) {
            port.read(ready.iter().copied(), buffer, now, &mut errors);
        }
        self.count("ingress_errors", errors.ingress);
    }

    /// What this process leaves to the next.
    fn estate(&self) -> Estate {
        let held = |port: &Port| (port.interface.name.clone(), port.segment.held());
        self.ports.values().map(held).collect()
    }

    fn obey(&mut self, pending: Pending) {
        let now = now();
        let begins = pending.begin.filter(|_| self.standby);
        if let Some(estate) = begins {
            self.standby = false;
            self.estate = estate;
            self.reopen = Some(now);
        }
        if let Some((interfaces, local)) = pending.links {
            self.interfaces = interfaces;
            self.local = local;
            self.follow_links(now);
        } else if self.reopen.is_some_and(|at| now >= at) {
            self.follow_links(now);
        }
        for (address, assignment) in pending.assignments {
            match assignment {
                Some(assignment) => self.assignments.insert(address, assignment),
                None => self.assignments.remove(&address),
            };
            self.place(address, true, now);
        }
        // An interface that is opened later was not held.
        self.estate = Estate::new();
        for reply in pending.snapshots {
            // A caller that gave up waiting is no concern.
            let _ = reply.try_send(self.snapshot(now));
        }
    }

    fn tick(&mut self) {
        let now = now();
        for port in self.ports.values_mut() {
            if port.segment.next_deadline().is_some_and(|at| now >= at) {
                port.feed(Input::Timeout, now);
            }
        }
    }

    fn flush(&mut self) {
        let mut errors = Errors::default();
        let mut dropped = 0;
        let mut tell = |event| {
            tracing::info!(?event, "ownership");
            if self.events.try_send(event).is_err() {
                dropped += 1;
            }
        };
        for port in self.ports.values_mut() {
            port.flush(&mut tell, &mut errors);
        }
        self.count("egress_errors", errors.egress);
        self.count("events_dropped", dropped);
    }

    /// Hands over what it holds, then says goodbye, so that others take the
    /// rest at once.
    fn leave(&mut self, ready: &mut Vec<bool>, buffer: &mut [u8]) -> io::Result<()> {
        let end = now() + HAND_OVER;
        for port in self.ports.values_mut() {
            port.feed(Input::Drain, now());
        }
        self.flush();
        while self.ports.values().any(|port| port.segment.holds()) && now() < end {
            self.wait(ready)?;
            self.shared.wake.clear();
            self.read(ready, buffer);
            self.tick();
            self.flush();
        }
        for again in [true, false] {
            for port in self.ports.values_mut() {
                port.feed(Input::Shutdown, now());
            }
            self.flush();
            if again {
                std::thread::sleep(GOODBYE);
            }
        }
        Ok(())
    }

    fn count(&mut self, name: &'static str, by: u64) {
        if by > 0 {
            let counter = self.counters.entry(name).or_default();
            *counter = counter.saturating_add(by);
        }
    }

    /// Brings the ports in line with the interfaces.
    fn follow_links(&mut self, now: Instant) {
        if self.standby {
            return;
        }
        let wanted: BTreeMap<u32, Interface> = self
            .interfaces
            .iter()
            .map(|i| (i.index, i.clone()))
            .collect();
        // Most events are of links that are not served: pods come and go.
        let known = self
            .ports
            .iter()
            .map(|(index, port)| (index, &port.interface));
        if self.reopen.is_none() && wanted.iter().eq(known) {
            return;
        }
        self.reopen = None;
        let gone: Vec<u32> = self
            .ports
            .iter()
            .filter(|(index, port)| {
                wanted
                    .get(index)
                    .is_none_or(|i| i.name != port.interface.name)
            })
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            self.close(index, now);
        }
        for (index, interface) in wanted {
            if let Some(port) = self.ports.get_mut(&index) {
                let joined = port.update(&interface);
                self.retry_groups(joined, now);
            } else if let Err(error) = self.open(interface.clone(), now) {
                tracing::warn!(interface = interface.name, %error, "cannot serve an interface");
                self.count("open_errors", 1);
                self.reopen = Some(now + REOPEN);
                continue;
            }
            if let Some(port) = self.ports.get_mut(&index) {
                let (up, mac) = (port.interface.carrier, port.interface.mac);
                let local = self.local.clone();
                port.feed(Input::Link { up, mac, local }, now);
            }
        }
        let all: Vec<IpAddr> = self.assignments.keys().copied().collect();
        for address in all {
            self.place(address, false, now);
        }
    }

    fn open(&mut self, interface: Interface, now: Instant) -> io::Result<()> {
        let segment = Segment::new(
            SegmentConfig {
                node: self.config.node.clone(),
                interface: interface.name.clone(),
                credentials: self.credentials.clone(),
                ethertype: self.config.ethertype,
                timers: self.config.timers.clone(),
                incarnation: self.incarnation,
                mac: interface.mac,
                held: self.estate.remove(&interface.name),
            },
            now,
        );
        tracing::info!(interface = interface.name, mac = %interface.mac, "serving an interface");
        let index = interface.index;
        let port = Port::open(interface, segment, self.config.ethertype)?;
        self.ports.insert(index, port);
        Ok(())
    }

    /// Groups that could not be joined are tried again like an interface.
    fn retry_groups(&mut self, joined: io::Result<()>, now: Instant) {
        if let Err(error) = joined {
            tracing::warn!(%error, "cannot join a solicited-node group");
            self.count("group_errors", 1);
            self.reopen = Some(now + REOPEN);
        }
    }

    fn close(&mut self, index: u32, now: Instant) {
        let Some(port) = self.ports.get_mut(&index) else {
            return;
        };
        tracing::info!(interface = port.interface.name, "an interface is gone");
        let (mac, local) = (port.interface.mac, self.local.clone());
        let up = false;
        port.feed(Input::Link { up, mac, local }, now);
        self.flush();
        if let Some(port) = self.ports.remove(&index) {
            for (name, count) in port.segment.counters() {
                self.count(name, *count);
            }
        }
        for served in self.served.values_mut() {
            served.remove(&index);
        }
    }

    /// Brings an address to the interfaces that should serve it. `changed`:
    /// those that do already must be told.
    fn place(&mut self, address: IpAddr, changed: bool, now: Instant) {
        let assignment = self.assignments.get(&address);
        let open: Vec<Interface> = self
            .interfaces
            .iter()
            .filter(|interface| self.ports.contains_key(&interface.index))
            .cloned()
            .collect();
        let wanted = assignment.map_or_else(BTreeSet::new, |a| serving(address, a, &open));
        let before = self.served.remove(&address).unwrap_or_default();
        for index in before.difference(&wanted) {
            if let Some(port) = self.ports.get_mut(index) {
                port.remove(address, now);
            }
        }
        let mut joined = Ok(());
        if let Some(assignment) = assignment {
            for index in &wanted {
                if let Some(port) = self.ports.get_mut(index)
                    && (changed || !before.contains(index))
                {
                    joined = port.assign(address, assignment.clone(), now).and(joined);
                }
            }
            self.served.insert(address, wanted);
        }
        self.retry_groups(joined, now);
    }
}

//! One interface that is served: its state machines and its sockets.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use bellrock_sys::packet::PacketSocket;

use super::groups::Groups;
use crate::frame::{self, ALL_NODES, group_mac};
use crate::links::Interface;
use crate::ownership::{Input, Output, Segment};
use crate::time::Instant;
use crate::types::{Assignment, Event};

/// The most frames read from one socket in one turn.
const FRAMES_PER_TURN: usize = 256;

/// Room for clients' frames: some thousands, so that a flood of requests that
/// meets a thread which has to wait for its turn drops few of them.
const BACKLOG: usize = 4 << 20;

pub(super) struct Port {
    pub(super) interface: Interface,
    pub(super) segment: Segment,
    own: PacketSocket,
    arp: PacketSocket,
    ndp: PacketSocket,
    groups: Groups,
}

/// What went wrong in a turn: how often.
#[derive(Debug, Default)]
pub(super) struct Errors {
    pub(super) ingress: u64,
    pub(super) egress: u64,
}

impl Port {
    /// How many sockets a port has.
    pub(super) const SOCKETS: usize = 3;

    pub(super) fn open(interface: Interface, segment: Segment, ethertype: u16) -> io::Result<Self> {
        let index = interface.index;
        let arp = PacketSocket::open(index, frame::ARP, &[])?;
        let all_nodes = group_mac(ALL_NODES).octets();
        let ndp = PacketSocket::open_neighbour_discovery(index, &[all_nodes])?;
        for socket in [&arp, &ndp] {
            socket.grow_receive_buffer(BACKLOG)?;
        }
        Ok(Self {
            own: PacketSocket::open(index, ethertype, &[frame::GROUP.octets()])?,
            arp,
            ndp,
            groups: Groups::new(index),
            interface,
            segment,
        })
    }

    /// In the order in which they are read. Peers come before clients: a flood
    /// of requests must not make a peer look silent.
    fn sockets(&self) -> [&PacketSocket; Self::SOCKETS] {
        [&self.own, &self.arp, &self.ndp]
    }

    pub(super) fn fds(&self) -> [BorrowedFd<'_>; Self::SOCKETS] {
        self.sockets().map(AsFd::as_fd)
    }

    /// Reads what is there on the sockets that are `ready`.
    pub(super) fn read(
        &mut self,
        ready: impl Iterator<Item = bool>,
        buffer: &mut [u8],
        now: Instant,
        errors: &mut Errors,
    ) {
        for (socket, _) in (0..).zip(ready).filter(|(_, ready)| *ready) {
            for _ in 0..FRAMES_PER_TURN {
                let Some(socket) = self.sockets().get(socket).copied() else {
                    break;
                };
                match socket.receive(buffer) {
                    Ok(Some(length)) => {
                        let frame = buffer.get(..length).unwrap_or_default().to_vec();
                        self.feed(Input::Frame(frame), now);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        // The interface went down, or away; netlink tells
                        // which.
                        tracing::debug!(interface = self.interface.name, %error, "receive");
                        errors.ingress += 1;
                        break;
                    }
                }
            }
        }
    }

    /// Sends what there is to send, and hands over the events.
    pub(super) fn flush(&mut self, mut tell: impl FnMut(Event), errors: &mut Errors) {
        while let Some(output) = self.segment.poll_output() {
            match output {
                Output::Frame(frame) => {
                    if let Err(error) = self.send(&frame) {
                        tracing::debug!(interface = self.interface.name, %error, "send");
                        errors.egress += 1;
                    }
                }
                Output::Event(event) => tell(event),
            }
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let ethertype = frame
            .get(12..14)
            .and_then(|bytes| bytes.first_chunk())
            .map(|bytes| u16::from_be_bytes(*bytes));
        let socket = match ethertype {
            Some(frame::ARP) => &self.arp,
            Some(frame::IPV6) => &self.ndp,
            _ => &self.own,
        };
        socket.send(frame)
    }

    /// Serves an address here. Its group is joined before anything is asked or
    /// claimed: that peers' probes are heard depends on it.
    pub(super) fn assign(
        &mut self,
        address: IpAddr,
        assignment: Assignment,
        now: Instant,
    ) -> io::Result<()> {
        let joined = match address {
            IpAddr::V6(address) => self.groups.add(address),
            IpAddr::V4(_) => Ok(()),
        };
        self.feed(
            Input::Assign {
                address,
                assignment,
            },
            now,
        );
        joined
    }

    /// Serves an address here no more.
    pub(super) fn remove(&mut self, address: IpAddr, now: Instant) {
        self.feed(Input::Remove { address }, now);
        if let IpAddr::V6(address) = address {
            self.groups.remove(address);
        }
    }

    /// The interface changed, or its groups could not all be joined.
    pub(super) fn update(&mut self, interface: &Interface) -> io::Result<()> {
        if self.interface == *interface {
            return self.groups.join();
        }
        self.interface.clone_from(interface);
        self.groups.rejoin()
    }

    pub(super) fn feed(&mut self, input: Input, now: Instant) {
        if tracing::enabled!(target: "bellrock_arp::inputs", tracing::Level::TRACE)
            && let Ok(input) = serde_json::to_string(&input)
        {
            let interface = &self.interface.name;
            tracing::trace!(target: "bellrock_arp::inputs", interface, at = now.0, input);
        }
        self.segment.handle(input, now);
    }
}

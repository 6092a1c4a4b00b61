//! The solicited-node groups of one interface.
//!
//! Joined through IPv6 sockets, not on the packet socket alone: so the kernel
//! reports them (MLD, RFC 3810), and switches that snoop on these reports
//! forward solicitations to this port.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;

use socket2::{Domain, Socket, Type};

use crate::frame::solicited_node;

/// The groups of one socket: some hundred fill the kernel's
/// `net.core.optmem_max` of 20 KiB.
const PER_SOCKET: usize = 128;

#[derive(Debug)]
pub(super) struct Groups {
    index: u32,
    /// Which addresses need a group: those that end alike share one.
    needed: BTreeMap<Ipv6Addr, BTreeSet<Ipv6Addr>>,
    /// By socket, what it has joined.
    sockets: Vec<(Socket, BTreeSet<Ipv6Addr>)>,
}

impl Groups {
    pub(super) fn new(index: u32) -> Self {
        Self {
            index,
            needed: BTreeMap::new(),
            sockets: Vec::new(),
        }
    }

    /// Joins the group of `address`. After an error [`Self::join`] tries
    /// again.
    pub(super) fn add(&mut self, address: Ipv6Addr) -> io::Result<()> {
        let group = solicited_node(address);
        self.needed.entry(group).or_default().insert(address);
        self.join_one(group)
    }

    /// Leaves the group of `address`, unless another needs it.
    pub(super) fn remove(&mut self, address: Ipv6Addr) {
        let group = solicited_node(address);
        let Some(needed_by) = self.needed.get_mut(&group) else {
            return;
        };
        needed_by.remove(&address);
        if needed_by.is_empty() {
            self.needed.remove(&group);
            self.leave(group);
        }
    }

    /// Joins what is not joined yet; the last error.
    pub(super) fn join(&mut self) -> io::Result<()> {
        let all: Vec<Ipv6Addr> = self.needed.keys().copied().collect();
        let mut result = Ok(());
        for group in all {
            result = self.join_one(group).and(result);
        }
        result
    }

    /// Joins everything again. A membership outlives the interface's IPv6 (an
    /// MTU below 1280 ends that) as an entry that does nothing, and a switch
    /// at the other end of a new cable has not heard of any.
    pub(super) fn rejoin(&mut self) -> io::Result<()> {
        self.sockets.clear();
        self.join()
    }

    fn join_one(&mut self, group: Ipv6Addr) -> io::Result<()> {
        if self
            .sockets
            .iter()
            .any(|(_, joined)| joined.contains(&group))
        {
            return Ok(());
        }
        let room = |(_, joined): &(Socket, BTreeSet<Ipv6Addr>)| joined.len() < PER_SOCKET;
        let found = match self.sockets.iter().position(room) {
            Some(found) => found,
            None => {
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
                self.sockets.push((socket, BTreeSet::new()));
                self.sockets.len().saturating_sub(1)
            }
        };
        if let Some((socket, joined)) = self.sockets.get_mut(found) {
            socket.join_multicast_v6(&group, self.index)?;
            joined.insert(group);
        }
        Ok(())
    }

    fn leave(&mut self, group: Ipv6Addr) {
        for (socket, joined) in &mut self.sockets {
            if joined.remove(&group)
                && let Err(error) = socket.leave_multicast_v6(&group, self.index)
            {
                // The interface is gone, and its memberships with it.
                tracing::debug!(%group, %error, "leave");
            }
        }
        self.sockets.retain(|(_, joined)| !joined.is_empty());
    }
}

//! The netlink socket: one `sendmsg` per batch, and dumps.

use std::io;
use std::os::fd::AsFd;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as Netlink, SocketAddr};

use crate::errno;
use crate::error::Error;
use crate::netlink::abi::{FLOW_GET, Kind};
use crate::netlink::decode::{Answer, answer};
use crate::netlink::encode::{Batch, request};
use crate::netlink::layout::INET;
use crate::netlink::wire::{Message, Messages, NLM_F_DUMP_INTR, Writer};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const MSG_DONTWAIT: i32 = 0x40;

/// Receives any datagram that the kernel sends: dumps come in up to 32 KiB,
/// errors one each.
const DATAGRAM: usize = 256 * 1024;
/// Room for the errors of a batch of which each message fails.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Holds the usual batch; grows with a larger one.
const SEND_BUFFER: usize = 16 << 20;
/// How often a dump that a change interrupted is started again.
const DUMPS: usize = 50;

/// A socket to the kernel's nftables.
pub(crate) struct Socket {
    netlink: Netlink,
    sequence: u32,
    /// Bytes that one batch may have for now.
    send_buffer: usize,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("send_buffer", &self.send_buffer)
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut netlink = Netlink::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        netlink.bind_auto().map_err(Error::Socket)?;
        // Errors with the kernel's words and the place, without our message.
        netlink.set_ext_ack(true).map_err(Error::Socket)?;
        netlink.set_cap_ack(true).map_err(Error::Socket)?;
        let fd = netlink.as_fd();
        bellrock_sys::netlink_buffers::grow_receive_buffer(fd, RECEIVE_BUFFER)
            .map_err(Error::Socket)?;
        let send_buffer = bellrock_sys::netlink_buffers::grow_send_buffer(fd, SEND_BUFFER)
            .map_err(Error::Socket)?;
        Ok(Self {
            netlink,
            sequence: 0,
            send_buffer,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Bytes that one batch may have for sure.
    pub(crate) fn capacity(&self) -> usize {
        self.send_buffer
    }

    /// Sends a batch. The kernel carries it out, or none of it, before the
    /// call returns; the failures say which messages it did not like.
    pub(crate) fn batch(&mut self, batch: &Batch) -> Result<Vec<Answer>, Error> {
        // The kernel wants a little room beside the message.
        let needed = batch.bytes.len() + 4096;
        if needed > self.send_buffer {
            let fd = self.netlink.as_fd();
            self.send_buffer = bellrock_sys::netlink_buffers::grow_send_buffer(fd, needed)
                .map_err(Error::Socket)?;
        }
        self.send(&batch.bytes)
            .map_err(|error| Error::kernel("send a batch", &error))?;

        let mut failures = Vec::new();
        let mut acknowledged = false;
        loop {
            match self.receive(MSG_DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::kernel("read the answers to a batch", &error)),
            }
            for message in Messages(&self.buffer).filter(|m| m.kind == NLMSG_ERROR) {
                match answer(&message) {
                    Some(answer) if answer.errno != 0 => failures.push(answer),
                    Some(answer) => acknowledged |= answer.sequence == batch.acknowledged,
                    None => {}
                }
            }
        }
        if failures.is_empty() && !acknowledged {
            return Err(Error::NoAnswer);
        }
        Ok(failures)
    }

    /// Asks nftables for one thing of the family `inet`, or for all of a kind;
    /// see [`Socket::ask_any`].
    pub(crate) fn ask<T>(
        &mut self,
        kind: Kind,
        dump: bool,
        write: impl Fn(&mut Writer),
        begin: impl Fn() -> T,
        each: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<Option<T>, Error> {
        self.ask_any((kind.number(), INET), dump, write, begin, each)
    }

    /// Asks for one thing, or for all of a kind, by message type and family,
    /// and calls `each` with what comes. `None`: there is no such thing.
    /// `begin` is called before the first, again when a change interrupted the
    /// dump.
    pub(crate) fn ask_any<T>(
        &mut self,
        (kind, family): (u16, u8),
        dump: bool,
        write: impl Fn(&mut Writer),
        begin: impl Fn() -> T,
        mut each: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<Option<T>, Error> {
        let doing = if kind == FLOW_GET {
            "read the connection table"
        } else {
            "read the table"
        };
        for _ in 0..DUMPS {
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            let bytes = request(kind, family, dump, sequence, &write);
            self.send(&bytes)
                .map_err(|error| Error::kernel(doing, &error))?;
            let mut all = begin();
            let mut interrupted = false;
            let mut done = false;
            while !done {
                match self.receive(0) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Error::kernel(doing, &error)),
                }
                for message in Messages(&self.buffer).filter(|m| m.sequence == sequence) {
                    interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_DONE => done = true,
                        NLMSG_ERROR => match answer(&message).map(|a| a.errno) {
                            Some(errno::ENOENT) => return Ok(None),
                            Some(errno::EINTR | errno::EAGAIN) => {
                                interrupted = true;
                                done = true;
                            }
                            errno => {
                                let error = io::Error::from_raw_os_error(errno.unwrap_or(0));
                                return Err(Error::kernel(doing, &error));
                            }
                        },
                        _ => {
                            each(&mut all, &message);
                            done |= !dump;
                        }
                    }
                }
            }
            if !interrupted {
                return Ok(Some(all));
            }
        }
        Err(Error::Restless)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.netlink
            .send_to(bytes, &SocketAddr::new(0, 0), 0)
            .map(|_| ())
    }

    fn receive(&mut self, flags: i32) -> io::Result<()> {
        self.buffer.clear();
        self.netlink.recv(&mut self.buffer, flags).map(|_| ())
    }
}

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
        Self::open_with(RECEIVE_BUFFER, SEND_BUFFER)
    }

    /// The same with buffers of so many bytes to begin with.
    pub(crate) fn open_with(receive_buffer: usize, send_buffer: usize) -> Result<Self, Error> {
        let mut netlink = Netlink::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        netlink.bind_auto().map_err(Error::Socket)?;
        // Errors with the kernel's words and the place, without our message.
        netlink.set_ext_ack(true).map_err(Error::Socket)?;
        netlink.set_cap_ack(true).map_err(Error::Socket)?;
        let fd = netlink.as_fd();
        bellrock_sys::netlink_buffers::grow_receive_buffer(fd, receive_buffer)
            .map_err(Error::Socket)?;
        let send_buffer = bellrock_sys::netlink_buffers::grow_send_buffer(fd, send_buffer)
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
    /// call returns; the failures say which messages it did not like. Where
    /// they do not fit the receive buffer, some of them.
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
        // The last error of the socket. All answers are read all the same: the
        // next batch must not take them for its own.
        let mut trouble = None;
        while let Some(received) = self.receive_if_any() {
            if let Err(error) = received {
                trouble = Some(error);
                continue;
            }
            for message in Messages(&self.buffer).filter(|m| m.kind == NLMSG_ERROR) {
                match answer(&message) {
                    Some(answer) if answer.errno != 0 => failures.push(answer),
                    Some(answer) => acknowledged |= answer.sequence == batch.acknowledged,
                    None => {}
                }
            }
        }
        match trouble {
            _ if acknowledged || !failures.is_empty() => Ok(failures),
            Some(error) => Err(Error::kernel("read the answers to a batch", &error)),
            None => Err(Error::NoAnswer),
        }
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
        let mut lost = None;
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
                // The kernel answers before the request's call returns, and has
                // the next part of a dump ready when one is read.
                match self.receive_if_any() {
                    Some(Ok(())) => {}
                    Some(Err(error)) if error.raw_os_error() == Some(errno::ENOBUFS) => {
                        lost = Some(Error::kernel(doing, &error));
                        break;
                    }
                    Some(Err(error)) => return Err(Error::kernel(doing, &error)),
                    None => {
                        lost = Some(Error::NoAnswer);
                        break;
                    }
                }
                for message in Messages(&self.buffer).filter(|m| m.sequence == sequence) {
                    interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_DONE => done = true,
                        NLMSG_ERROR => match answer(&message).map(|a| a.errno) {
                            Some(errno::ENOENT) => return Ok(None),
                            // EBUSY: a dump of which a part was lost still runs.
                            Some(errno::EINTR | errno::EAGAIN | errno::EBUSY) => {
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
            if done && !interrupted {
                return Ok(Some(all));
            }
            // Before the next attempt: what is left of this one.
            while self.receive_if_any().is_some() {}
        }
        Err(lost.unwrap_or(Error::Restless))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.netlink
            .send_to(bytes, &SocketAddr::new(0, 0), 0)
            .map(|_| ())
    }

    /// Receives the next datagram, if there is one. `ENOBUFS` says that others
    /// were lost before it.
    fn receive_if_any(&mut self) -> Option<io::Result<()>> {
        loop {
            self.buffer.clear();
            match self.netlink.recv(&mut self.buffer, MSG_DONTWAIT) {
                Ok(_) => return Some(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Fills the receive buffer with answers that nobody has read.
    #[cfg(test)]
    pub(crate) fn clog(&mut self) {
        for _ in 0..64 {
            let bytes = request(Kind::GetGen.number(), INET, false, 0, |_| {});
            self.send(&bytes).unwrap();
        }
    }
}

#[cfg(test)]
mod tests;

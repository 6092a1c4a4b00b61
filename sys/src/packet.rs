//! `AF_PACKET` sockets (packet(7)): whole Ethernet frames of one interface and
//! one EtherType.
//!
//! A socket bound to an EtherType is not asked about other frames at all, so
//! forwarded traffic pays nothing for it; one bound to `ETH_P_ALL` would see,
//! and make the kernel clone, every frame in both directions. Only a socket
//! for Neighbour Discovery is asked about each IPv6 packet that comes in: for
//! what is not ICMPv6 one load and one comparison, before the packet is cloned. The kernel takes
//! the VLAN tag out of a frame before it looks for sockets, so a tagged frame
//! reaches the VLAN's own interface, or nobody.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use crate::netlink_buffers::grow_receive_buffer;

/// A frame socket. Non-blocking. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
}

// Offsets of the ancillary data that a filter can load (linux/filter.h:
// `SKF_AD_OFF` is -0x1000).
const AD_PROTOCOL: u32 = 0xffff_f000;
const AD_PKTTYPE: u32 = 0xffff_f000 + 4;
const AD_VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;

// Offsets in a frame of Ethernet, IPv6 and ICMPv6 without extension headers.
const NEXT_HEADER: u32 = 14 + 6;
const ICMPV6_TYPE: u32 = 14 + 40;

const IPV6: u16 = 0x86dd;
const ICMPV6: u32 = 58;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;

// Instructions of classic BPF (linux/bpf_common.h).
const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// A filter that drops what fails one of its conditions. A load beyond the
/// frame's end drops it too.
struct Filter(Vec<SockFilter>);

impl Filter {
    /// Accepts frames of `ethertype` that are sent to this host, to a group or
    /// to all (`PACKET_HOST`, `_BROADCAST`, `_MULTICAST`: 0 to 2), and carry no
    /// VLAN tag. Drops what is for another host (a flooded or mirrored frame)
    /// and what this host sends.
    fn ethertype(ethertype: u16) -> Self {
        Self(Vec::new())
            .equal(LOAD_HALF, AD_PROTOCOL, ethertype.into())
            .at_most(AD_PKTTYPE, libc::PACKET_MULTICAST.into())
            .equal(LOAD_BYTE, AD_VLAN_TAG_PRESENT, 0)
    }

    /// Of the frames of IPv6 accepts Neighbour Solicitations and
    /// Advertisements.
    fn neighbour_discovery() -> Self {
        Self(Vec::new())
            .equal(LOAD_BYTE, NEXT_HEADER, ICMPV6)
            .at_least(ICMPV6_TYPE, NEIGHBOUR_SOLICITATION)
            .at_most(ICMPV6_TYPE, NEIGHBOUR_ADVERTISEMENT)
            .and(Self::ethertype(IPV6))
    }

    fn equal(self, load: u16, offset: u32, value: u32) -> Self {
        self.condition(load, offset, SockFilter::new(JUMP_EQUAL, 1, 0, value))
    }

    fn at_most(self, offset: u32, value: u32) -> Self {
        let jump = SockFilter::new(JUMP_GREATER, 0, 1, value);
        self.condition(LOAD_BYTE, offset, jump)
    }

    fn at_least(self, offset: u32, value: u32) -> Self {
        let jump = SockFilter::new(JUMP_GREATER, 1, 0, value.saturating_sub(1));
        self.condition(LOAD_BYTE, offset, jump)
    }

    /// `jump` skips the return where the condition holds.
    fn condition(mut self, load: u16, offset: u32, jump: SockFilter) -> Self {
        let drop = SockFilter::new(RETURN, 0, 0, 0);
        self.0
            .extend([SockFilter::new(load, 0, 0, offset), jump, drop]);
        self
    }

    fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    fn attach(mut self, socket: &Socket) -> io::Result<()> {
        self.0.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
        socket.attach_filter(&self.0)
    }
}

impl PacketSocket {
    /// Opens a socket for `ethertype` on the interface `index`, and makes the
    /// interface accept frames to `groups`.
    ///
    /// The filter is attached before the socket is bound, so nothing else is
    /// ever queued.
    pub fn open(index: u32, ethertype: u16, groups: &[[u8; 6]]) -> io::Result<Self> {
        Self::filtered(index, ethertype, Filter::ethertype(ethertype), groups)
    }

    /// Opens a socket for Neighbour Solicitations and Advertisements (RFC 4861)
    /// on the interface `index`, as [`open`](Self::open) does.
    pub fn open_neighbour_discovery(index: u32, groups: &[[u8; 6]]) -> io::Result<Self> {
        Self::filtered(index, IPV6, Filter::neighbour_discovery(), groups)
    }

    fn filtered(
        index: u32,
        ethertype: u16,
        filter: Filter,
        groups: &[[u8; 6]],
    ) -> io::Result<Self> {
        // Protocol 0: receives nothing until bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        filter.attach(&socket)?;
        let index = libc::c_int::try_from(index).map_err(io::Error::other)?;
        socket.bind(&address(index, ethertype)?)?;
        for group in groups {
            join(&socket, index, *group)?;
        }
        Ok(Self { socket })
    }

    /// Makes room for `bytes` of waiting frames, the kernel's own part of each
    /// included (some 700 bytes of a small one), or as near as the system's
    /// limit lets it.
    pub fn grow_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        grow_receive_buffer(self.socket.as_fd(), bytes).map(drop)
    }

    /// Whether this process may open packet sockets at all.
    pub fn permitted() -> io::Result<()> {
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))).map(drop)
    }

    /// Reads one frame, from its destination address on, into `buffer`: its
    /// length, or `None` when none waits. A longer frame is cut off.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.socket).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one whole frame. `WouldBlock` when the interface's queue is full:
    /// the frame is gone then.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.socket).write(frame).map(drop)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn address(index: libc::c_int, ethertype: u16) -> io::Result<SockAddr> {
    // SAFETY: the storage is large and aligned enough for every socket
    // address; the closure writes one whole sockaddr_ll and its true length.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage
                .cast::<libc::sockaddr_ll>()
                .write(libc::sockaddr_ll {
                    sll_family: libc::AF_PACKET.try_into().map_err(io::Error::other)?,
                    sll_protocol: ethertype.to_be(),
                    sll_ifindex: index,
                    sll_hatype: 0,
                    sll_pkttype: 0,
                    sll_halen: 0,
                    sll_addr: [0; 8],
                });
            *length = size_of_socklen::<libc::sockaddr_ll>();
            Ok(())
        })?
    };
    Ok(address)
}

fn join(socket: &Socket, index: libc::c_int, group: [u8; 6]) -> io::Result<()> {
    let mut request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_MULTICAST
            .try_into()
            .map_err(io::Error::other)?,
        mr_alen: 6,
        mr_address: [0; 8],
    };
    for (to, from) in request.mr_address.iter_mut().zip(group) {
        *to = from;
    }
    // SAFETY: the pointer and length describe `request`, which outlives the
    // call; the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of_socklen::<libc::packet_mreq>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The size of a kernel structure; all of ours are some tens of bytes.
#[allow(clippy::cast_possible_truncation, reason = "checked at compile time")]
const fn size_of_socklen<T>() -> libc::socklen_t {
    const { assert!(size_of::<T>() < 4096) }
    size_of::<T>() as libc::socklen_t
}

//! UDP datagrams with what the kernel says of each: its TTL or hop limit, the
//! address that it was sent to and the interface that it came by.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

use crate::option::set;

/// A datagram that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// How much of the buffer it fills. A longer one is cut off.
    pub length: usize,
    /// Who sent it.
    pub source: SocketAddr,
    /// The address that it was sent to.
    pub destination: IpAddr,
    /// Index of the interface that it came by.
    pub interface: u32,
    /// Its TTL or hop limit.
    pub ttl: u8,
}

/// Room for the ancillary data of one datagram, aligned as `cmsghdr` is.
#[repr(C, align(8))]
struct Ancillary([u8; 128]);

/// Asks the kernel to say, with each datagram, what [`receive`] returns.
///
/// # Errors
/// What the kernel says.
pub fn enable(socket: BorrowedFd<'_>, v4: bool) -> io::Result<()> {
    let on: libc::c_int = 1;
    let (level, options) = if v4 {
        (libc::IPPROTO_IP, [libc::IP_RECVTTL, libc::IP_PKTINFO])
    } else {
        let options = [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVPKTINFO];
        (libc::IPPROTO_IPV6, options)
    };
    for option in options {
        set(socket, level, option, &on)?;
    }
    Ok(())
}

/// Reads one datagram; `None` when none waits. The socket must be non-blocking
/// and [`enable`]d.
///
/// # Errors
/// What the kernel says; `InvalidData` for a datagram of which it does not say
/// everything.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut ancillary = Ancillary([0; 128]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is valid (null pointers, no lengths).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    // The type of a length differs between C libraries.
    message.msg_controllen = ancillary.0.len() as _;
    // SAFETY: `try_init` lends storage that is large and aligned enough for
    // every socket address, and its true size; all pointers of `message` are
    // to objects that outlive the call, with their sizes. The kernel writes
    // the address and sets its length.
    let read = unsafe {
        SockAddr::try_init(|storage, length| {
            message.msg_name = storage.cast();
            message.msg_namelen = *length;
            let read = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
            *length = message.msg_namelen;
            usize::try_from(read).map_err(|_| io::Error::last_os_error())
        })
    };
    let (length, source) = match read {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let (mut ttl, mut arrival) = (None, None);
    // SAFETY: the kernel filled `msg_controllen` octets of `ancillary` with
    // whole headers; the macros of libc stay within them. Each payload is read
    // unaligned, of the type that its level and type promise, and only if the
    // header says that it is that long.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(control) = header.as_ref() {
            match (control.cmsg_level, control.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    ttl = payload::<libc::c_int>(control);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    arrival = payload::<libc::in_pktinfo>(control).map(|info| {
                        let address = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                        (IpAddr::V4(address), u32::try_from(info.ipi_ifindex).ok())
                    });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    arrival = payload::<libc::in6_pktinfo>(control).map(|info| {
                        let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                        (IpAddr::V6(address), Some(info.ipi6_ifindex))
                    });
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, control);
        }
    }
    let known = || {
        let (destination, interface) = arrival?;
        Some(Received {
            length,
            source: source.as_socket()?,
            destination,
            interface: interface?,
            ttl: u8::try_from(ttl?).ok()?,
        })
    };
    let incomplete = || io::Error::new(io::ErrorKind::InvalidData, "a datagram without its TTL");
    known().map(Some).ok_or_else(incomplete)
}

/// What follows a header, if it is as long as a `T`.
///
/// # Safety
/// The header must be one of a message that the kernel filled, and its payload
/// a `T`, of which every bit pattern must be valid.
unsafe fn payload<T>(header: &libc::cmsghdr) -> Option<T> {
    let size = libc::c_uint::try_from(size_of::<T>()).ok()?;
    // SAFETY: arithmetic on a length; no memory is read.
    let least = usize::try_from(unsafe { libc::CMSG_LEN(size) }).ok()?;
    #[allow(
        clippy::useless_conversion,
        reason = "its type differs between C libraries"
    )]
    let length = usize::try_from(header.cmsg_len).ok()?;
    if length < least {
        return None;
    }
    // SAFETY: the payload begins right after the header and, as was checked,
    // has the size of a `T`; it may be unaligned.
    Some(unsafe { libc::CMSG_DATA(header).cast::<T>().read_unaligned() })
}

/// The index of the interface of this name in the calling thread's network
/// namespace.
///
/// # Errors
/// `NotFound` if there is none, or the name cannot be one.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "there is no such interface");
    let name = std::ffi::CString::new(name).map_err(|_| none())?;
    // SAFETY: the pointer is to a string that ends in a zero octet and
    // outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(none()) } else { Ok(index) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::wait::readable;

    #[test]
    fn a_datagram_comes_with_its_ttl_its_destination_and_its_interface() {
        let loopback = interface_index("lo").unwrap();
        for (any, to) in [("0.0.0.0:0", "127.0.0.3"), ("[::]:0", "::1")] {
            let to: IpAddr = to.parse().unwrap();
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_nonblocking(true).unwrap();
            enable(socket.as_fd(), to.is_ipv4()).unwrap();
            let mut buffer = [0; 8];
            assert_eq!(receive(socket.as_fd(), &mut buffer).unwrap(), None);

            let sender = UdpSocket::bind((to, 0)).unwrap();
            let options = socket2::SockRef::from(&sender);
            let port = socket.local_addr().unwrap().port();
            for (ttl, text) in [(255, "far"), (7, "a longer text")] {
                if to.is_ipv4() {
                    options.set_ttl_v4(ttl.into()).unwrap();
                } else {
                    options.set_unicast_hops_v6(ttl.into()).unwrap();
                }
                sender.send_to(text.as_bytes(), (to, port)).unwrap();
                let patience = Some(Duration::from_secs(20));
                readable(&[socket.as_fd()], patience, &mut Vec::new()).unwrap();
                let received = receive(socket.as_fd(), &mut buffer).unwrap().unwrap();
                let expected = Received {
                    length: text.len().min(8),
                    source: sender.local_addr().unwrap(),
                    destination: to,
                    interface: loopback,
                    ttl,
                };
                assert_eq!(received, expected);
                assert_eq!(
                    &buffer[..received.length],
                    &text.as_bytes()[..received.length]
                );
            }
        }
    }

    #[test]
    fn a_socket_that_does_not_say_the_ttl_is_an_error() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(b"x", address)
            .unwrap();
        let error = receive(socket.as_fd(), &mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_name_of_no_interface_is_not_found() {
        for name in ["", "nodevice", "a\0b", "a name of more than fifteen octets"] {
            let error = interface_index(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name:?}");
        }
    }
}

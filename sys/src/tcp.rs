//! Options of TCP sockets that neither the standard library nor `socket2` has:
//! TCP MD5 signatures (RFC 2385) and the least TTL of what is received (GTSM,
//! RFC 5082).

use std::io;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use socket2::SockAddr;

use crate::option::set;

/// Longest key that the kernel takes, in octets.
pub const MAX_MD5_KEY: usize = 80;

const TCP_MD5SIG: libc::c_int = 14;

/// `struct tcp_md5sig` of `linux/tcp.h`.
#[repr(C, align(8))]
struct Md5Sig {
    /// A `__kernel_sockaddr_storage`.
    address: [u8; 128],
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    interface: i32,
    key: [u8; MAX_MD5_KEY],
}

const _: () = {
    assert!(size_of::<Md5Sig>() == 216);
    assert!(offset_of!(Md5Sig, flags) == 128);
    assert!(offset_of!(Md5Sig, key_len) == 130);
    assert!(offset_of!(Md5Sig, interface) == 132);
    assert!(offset_of!(Md5Sig, key) == 136);
};

/// Signs everything that the socket sends to `peer`, and drops everything from
/// it that is not signed with the same key. Must be called before `connect`;
/// on a listener, before the peer's SYN comes. An empty key removes it.
///
/// # Errors
/// A key of more than [`MAX_MD5_KEY`] octets; what the kernel says
/// (`ENOPROTOOPT` where it is built without `CONFIG_TCP_MD5SIG`).
pub fn set_md5_key(socket: BorrowedFd<'_>, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    let mut option = Md5Sig {
        address: [0; 128],
        flags: 0,
        prefix_len: 0,
        key_len: 0,
        interface: 0,
        key: [0; MAX_MD5_KEY],
    };
    let place = option.key.get_mut(..key.len());
    let (Some(place), Ok(length)) = (place, u16::try_from(key.len())) else {
        let message = "a TCP MD5 key has at most 80 octets";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    place.copy_from_slice(key);
    option.key_len = length;
    let address = SockAddr::from(SocketAddr::new(peer, 0));
    let length = usize::try_from(address.len()).map_err(io::Error::other)?;
    assert!(
        length <= option.address.len(),
        "a sockaddr fits its storage"
    );
    // SAFETY: `address` holds `length` initialised bytes, the storage holds at
    // least as many, and the two are different objects.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            option.address.as_mut_ptr(),
            length,
        );
    }
    set(socket, libc::IPPROTO_TCP, TCP_MD5SIG, &option)
}

/// Drops what arrives with a TTL (IPv4) or hop limit (IPv6) below `least`.
///
/// # Errors
/// What the kernel says.
pub fn set_least_ttl(socket: BorrowedFd<'_>, v4: bool, least: u8) -> io::Result<()> {
    let value = libc::c_int::from(least);
    if v4 {
        set(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &value)
    } else {
        const IPV6_MINHOPCOUNT: libc::c_int = 73;
        set(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &value)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use socket2::{Domain, Socket, Type};

    use super::*;

    const LOCAL: [&str; 2] = ["127.0.0.1", "::1"];

    fn tcp(address: IpAddr) -> Socket {
        let any = SocketAddr::new(address, 0);
        let socket = Socket::new(Domain::for_address(any), Type::STREAM, None).unwrap();
        socket.bind(&any.into()).unwrap();
        socket
    }

    /// Whether a connection comes up within a second, and carries an octet.
    fn talks(address: IpAddr, server: Option<&[u8]>, client: Option<&[u8]>) -> bool {
        let (listener, stream) = (tcp(address), tcp(address));
        for (socket, key) in [(&listener, server), (&stream, client)] {
            if let Some(key) = key {
                set_md5_key(socket.as_fd(), address, key).unwrap();
            }
        }
        listener.listen(1).unwrap();
        let target = listener.local_addr().unwrap();
        if stream
            .connect_timeout(&target, Duration::from_secs(1))
            .is_err()
        {
            return false;
        }
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"x").unwrap();
        (&stream).read_exact(&mut [0]).is_ok()
    }

    #[test]
    fn only_equal_keys_talk() {
        for address in LOCAL.map(|text| text.parse().unwrap()) {
            assert!(talks(address, Some(b"one"), Some(b"one")), "{address}");
            assert!(!talks(address, Some(b"one"), Some(b"two")), "{address}");
            assert!(!talks(address, Some(b"one"), None), "{address}");
        }
    }

    #[test]
    fn eighty_octets_are_a_key_and_one_more_is_not() {
        let address: IpAddr = "127.0.0.1".parse().unwrap();
        let socket = tcp(address);
        set_md5_key(socket.as_fd(), address, &[b'k'; 80]).unwrap();
        let error = set_md5_key(socket.as_fd(), address, &[b'k'; 81]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn what_comes_from_too_far_is_dropped() {
        for address in LOCAL.map(|text| text.parse::<IpAddr>().unwrap()) {
            for (ttl, heard) in [(255, true), (254, false)] {
                let (listener, stream) = (tcp(address), tcp(address));
                set_least_ttl(listener.as_fd(), address.is_ipv4(), 255).unwrap();
                if address.is_ipv4() {
                    stream.set_ttl_v4(ttl).unwrap();
                } else {
                    stream.set_unicast_hops_v6(ttl).unwrap();
                }
                listener.listen(1).unwrap();
                let target = listener.local_addr().unwrap();
                let connected = stream.connect_timeout(&target, Duration::from_millis(500));
                assert_eq!(connected.is_ok(), heard, "{address} {ttl}: {connected:?}");
            }
        }
    }
}

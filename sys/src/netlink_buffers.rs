//! Netlink socket buffers beyond the system's limits.
//!
//! A batch of nftables messages is atomic only inside one `sendmsg`, and the
//! kernel refuses (`EMSGSIZE`) one that does not fit the send buffer.
//! `net.core.wmem_max` is a few hundred kilobytes on most systems; the forced
//! options ignore it, with `CAP_NET_ADMIN` outside any user namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the send buffer hold `bytes`, by `SO_SNDBUFFORCE`, or as near as the
/// system's limit lets it. Returns the size that the kernel accounts, of which
/// a message may take all but a few bytes.
///
/// # Errors
/// What `setsockopt` and `getsockopt` say of a descriptor that is no socket.
pub fn grow_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    if set(socket, libc::SO_SNDBUFFORCE, bytes).is_err() {
        set(socket, libc::SO_SNDBUF, bytes)?;
    }
    get(socket, libc::SO_SNDBUF)
}

/// Makes the receive buffer hold `bytes`, by `SO_RCVBUFFORCE`, likewise.
///
/// # Errors
/// What `setsockopt` and `getsockopt` say of a descriptor that is no socket.
pub fn grow_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    if set(socket, libc::SO_RCVBUFFORCE, bytes).is_err() {
        set(socket, libc::SO_RCVBUF, bytes)?;
    }
    get(socket, libc::SO_RCVBUF)
}

fn set(socket: BorrowedFd<'_>, option: libc::c_int, bytes: usize) -> io::Result<()> {
    // The kernel doubles the value in an int.
    let value = libc::c_int::try_from(bytes)
        .unwrap_or(libc::c_int::MAX)
        .min(libc::c_int::MAX / 2);
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: `value` outlives the call and `length` is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn get(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: both pointers are to variables of this frame, and `length` is
    // the size of `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    #[test]
    fn buffers_grow_past_the_limit_with_the_right_to() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let limit: usize = std::fs::read_to_string("/proc/sys/net/core/wmem_max")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(212_992);
        let forced = super::set(socket.as_fd(), libc::SO_SNDBUFFORCE, 64 << 20).is_ok();
        let expected = if forced {
            128 << 20
        } else {
            limit.min(64 << 20) * 2
        };
        assert_eq!(
            super::grow_send_buffer(socket.as_fd(), 64 << 20).unwrap(),
            expected
        );
        let received = super::grow_receive_buffer(socket.as_fd(), 64 << 20).unwrap();
        assert!(!forced || received == 128 << 20, "{received}");
    }

    #[test]
    fn a_file_is_not_a_socket() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = super::grow_send_buffer(file.as_fd(), 1 << 20).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}

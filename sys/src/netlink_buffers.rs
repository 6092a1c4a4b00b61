//! Netlink socket buffers beyond the system's limits.
//!
//! A batch of nftables messages is atomic only inside one `sendmsg`, and the
//! kernel refuses (`EMSGSIZE`) one that does not fit the send buffer.
//! `net.core.wmem_max` is a few hundred kilobytes on most systems; the forced
//! options ignore it and need `CAP_NET_ADMIN`, which writing nftables needs
//! anyway.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets the send buffer (`SO_SNDBUFFORCE`) to `bytes`; the kernel doubles it
/// for its own accounting.
///
/// # Errors
/// What `setsockopt` says: `EPERM` without `CAP_NET_ADMIN`.
pub fn force_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    set(socket, libc::SO_SNDBUFFORCE, bytes)
}

/// Sets the receive buffer (`SO_RCVBUFFORCE`) likewise.
///
/// # Errors
/// What `setsockopt` says: `EPERM` without `CAP_NET_ADMIN`.
pub fn force_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    set(socket, libc::SO_RCVBUFFORCE, bytes)
}

fn set(socket: BorrowedFd<'_>, option: libc::c_int, bytes: usize) -> io::Result<()> {
    // The kernel doubles the value in an int.
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX).min(libc::c_int::MAX / 2);
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
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    #[test]
    fn buffers_pass_the_limit_of_the_system_or_say_why_not() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for set in [super::force_send_buffer, super::force_receive_buffer] {
            match set(socket.as_fd(), 64 << 20) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
            }
        }
        let socket = socket2::SockRef::from(&socket);
        if super::force_send_buffer(std::os::fd::AsFd::as_fd(&socket), 64 << 20).is_ok() {
            assert_eq!(socket.send_buffer_size().unwrap(), 128 << 20);
            assert_eq!(socket.recv_buffer_size().unwrap(), 128 << 20);
        }
    }
}

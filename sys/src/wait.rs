//! Waiting for several descriptors with a nanosecond timeout, and a
//! descriptor by which another thread ends the wait.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Waits until a descriptor is readable (or in error, which reading it will
/// tell) or `timeout` has passed; `None` waits for ever. Sets `ready[i]` for
/// `fds[i]`. A signal ends the wait early with nothing ready.
pub fn readable(
    fds: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
    ready: &mut Vec<bool>,
) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let count = libc::nfds_t::try_from(polled.len()).map_err(io::Error::other)?;
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `polled` holds `count` entries whose descriptors are borrowed
    // for the call; `timeout` is null or points to a timespec of this frame;
    // a null signal mask changes no mask.
    let result = unsafe { libc::ppoll(polled.as_mut_ptr(), count, timeout, std::ptr::null()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        polled.iter_mut().for_each(|entry| entry.revents = 0);
    }
    ready.clear();
    ready.extend(polled.iter().map(|entry| entry.revents != 0));
    Ok(())
}

/// An eventfd: [`wake`](Self::wake) makes it readable for the thread that
/// waits on it. Any number of wakes before the waiter looks count as one.
#[derive(Debug)]
pub struct WakeUp {
    file: File,
}

impl WakeUp {
    /// Makes one, non-blocking and closed on exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a returned descriptor is owned by nobody else.
        let fd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self {
            file: File::from(fd),
        })
    }

    /// Makes the descriptor readable. Never blocks: a full counter means that
    /// it is readable already.
    pub fn wake(&self) {
        let _ = (&self.file).write(&1_u64.to_ne_bytes());
    }

    /// Makes it unreadable again.
    pub fn clear(&self) {
        let mut count = [0; 8];
        let _ = (&self.file).read(&mut count);
    }
}

impl AsFd for WakeUp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_ends_the_wait_until_it_is_cleared() {
        let (a, b) = (WakeUp::new().unwrap(), WakeUp::new().unwrap());
        let mut ready = Vec::new();
        let fds = [a.as_fd(), b.as_fd()];
        readable(&fds, Some(Duration::from_millis(1)), &mut ready).unwrap();
        assert_eq!(ready, [false, false]);

        std::thread::scope(|scope| {
            scope.spawn(|| {
                b.wake();
                b.wake();
            });
            readable(&fds, None, &mut ready).unwrap();
        });
        assert_eq!(ready, [false, true]);

        b.clear();
        readable(&fds, Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, [false, false]);
    }
}

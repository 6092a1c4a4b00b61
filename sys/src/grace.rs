//! Waiting for the kernel's packet path to forget what was.
//!
//! The kernel handles a packet inside a read-side critical section of RCU
//! (read, copy, update), hooks and their lookups included. After a grace
//! period no packet is left that began before it.

use std::io;

/// Waits for a grace period of RCU: some milliseconds, more on a busy machine.
/// (`membarrier` with `MEMBARRIER_CMD_GLOBAL`, Linux 4.3.)
///
/// # Errors
/// `ENOSYS` where the call is not there or is filtered away, `EINVAL` with
/// processors that take no part (`nohz_full`).
pub fn wait_for_grace_period() -> io::Result<()> {
    // From include/uapi/linux/membarrier.h.
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    let (flags, cpu): (libc::c_uint, libc::c_int) = (0, 0);
    // SAFETY: membarrier takes three numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, flags, cpu) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_grace_period_ends_or_the_kernel_says_why_not() {
        match super::wait_for_grace_period() {
            Ok(()) => {}
            Err(error) => {
                let known = [libc::ENOSYS, libc::EINVAL, libc::EPERM];
                assert!(
                    error.raw_os_error().is_some_and(|e| known.contains(&e)),
                    "{error}"
                );
            }
        }
    }
}

//! Real-time scheduling of one thread (sched(7)).

use std::io;

/// Lets the calling thread run whenever it wants to, before every thread
/// without real-time priority: `SCHED_FIFO` of the given priority, 1 to 99.
/// Threads and processes that it starts do not inherit it.
///
/// # Errors
/// `PermissionDenied` without `CAP_SYS_NICE` (and without an `RLIMIT_RTPRIO`
/// that allows it), or where the control group has no real-time runtime.
pub fn real_time(priority: u8) -> io::Result<()> {
    // SAFETY: a structure of integers, of which zero is a value. Some C
    // libraries have more fields than the one that counts.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = priority.into();
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // By its number: musl's function of that name refuses everything. 0: the
    // calling thread.
    // SAFETY: the pointer is to a structure that outlives the call, and the
    // kernel only reads its first field.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy,
            &raw const parameter,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policy (column 41) of the calling thread in `/proc`.
    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        rest.split_whitespace().nth(38).unwrap().to_owned()
    }

    #[test]
    fn the_thread_alone_becomes_real_time_or_is_told_why_not() {
        assert_eq!(policy(), "0");
        let (result, own) = std::thread::spawn(|| (real_time(1), policy()))
            .join()
            .unwrap();
        match result {
            Ok(()) => assert_eq!(own, "1"),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                assert_eq!(own, "0");
            }
        }
        assert_eq!(policy(), "0");
    }

    #[test]
    fn a_priority_that_does_not_exist_is_an_error() {
        let result = std::thread::spawn(|| real_time(100)).join().unwrap();
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

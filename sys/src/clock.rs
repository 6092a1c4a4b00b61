//! `CLOCK_BOOTTIME`.

use std::time::Duration;

/// Time since the machine started, including the time it was suspended.
///
/// A loop that compares two readings learns that it was frozen, whether its
/// thread was stopped or the whole (virtual) machine slept. `CLOCK_MONOTONIC`,
/// which `std::time::Instant` reads, stands still in the second case.
pub fn boottime() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that outlives the call. The call
    // cannot fail: the clock exists since Linux 2.6.39 and the pointer is good.
    unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time);
    }
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::boottime;

    #[test]
    fn goes_forward_and_agrees_with_the_kernels_uptime() {
        let before = boottime();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
        let after = boottime();
        assert!(before <= after);
        // /proc/uptime counts in hundredths.
        assert!(before.as_secs_f64() - 0.02 <= seconds && seconds <= after.as_secs_f64() + 0.02);
    }
}

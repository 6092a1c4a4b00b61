//! Time as the pure core knows it: told by whoever drives it.

use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment: nanoseconds since some start that the driver fixes (the
/// machine's boot for the real driver, zero in a simulation).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `since_start` after the start.
    pub fn from_start(since_start: Duration) -> Self {
        Self(nanos(since_start))
    }

    /// Time from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The protocol's timers. All nodes of a segment should have the same ones.
///
/// The worst outage after an owner's sudden death, for the successor of rank
/// `r`, is `misses * hello + margin + (r - 1) * stagger + probes *
/// probe_interval`, plus the client's and the machine's own milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timers {
    /// I: one HELLO a node and interface in each such interval (10 ms to 10 s).
    pub hello: Duration,
    /// k: HELLOs that must be missing before a peer is called silent (2 to 20).
    pub misses: u32,
    /// W: what is waited beyond `misses * hello` (1 ms to 10 s).
    pub margin: Duration,
    /// S: how much later each next successor starts (at least 5 ms more than
    /// `probes * probe_interval`, so that the claim of the one before is heard
    /// first; at most 10 s).
    pub stagger: Duration,
    /// Probes before a claim (1 to 10).
    pub probes: u8,
    /// Time from one probe to the next, and from the last to the claim (5 ms
    /// to 2 s).
    pub probe_interval: Duration,
    /// How much longer a node waits to claim an address that nobody ever had,
    /// while the node it is meant for is heard: that node may learn of the
    /// address a little later (at most 60 s).
    pub first_claim_grace: Duration,
    /// From one announcement of a held address to the next, after the first
    /// few (1 s to 1 h).
    pub announce_every: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            hello: Duration::from_millis(100),
            misses: 3,
            margin: Duration::from_millis(20),
            stagger: Duration::from_millis(60),
            probes: 2,
            probe_interval: Duration::from_millis(20),
            first_claim_grace: Duration::from_secs(1),
            announce_every: Duration::from_secs(60),
        }
    }
}

/// A timer outside its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timer {name} is {value}, must be from {least} to {most}")]
pub struct TimersError {
    /// The field of [`Timers`].
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// The least it may be.
    pub least: String,
    /// The most it may be.
    pub most: String,
}

impl Timers {
    /// Checks the limits that the fields' docs name.
    pub fn validate(&self) -> Result<(), TimersError> {
        let ms = Duration::from_millis;
        check("hello", self.hello, ms(10), ms(10_000))?;
        check("misses", self.misses, 2, 20)?;
        check("margin", self.margin, ms(1), ms(10_000))?;
        check("probes", self.probes, 1, 10)?;
        check("probe_interval", self.probe_interval, ms(5), ms(2_000))?;
        let least = self.probe_window().saturating_add(ms(5));
        check("stagger", self.stagger, least, ms(10_000))?;
        check(
            "first_claim_grace",
            self.first_claim_grace,
            ms(0),
            ms(60_000),
        )?;
        check(
            "announce_every",
            self.announce_every,
            ms(1_000),
            ms(3_600_000),
        )
    }

    /// T_dead: a peer that was not heard for so long is silent.
    pub fn dead_after(&self) -> Duration {
        self.hello
            .saturating_mul(self.misses)
            .saturating_add(self.margin)
    }

    /// From the first probe to the claim.
    pub fn probe_window(&self) -> Duration {
        self.probe_interval.saturating_mul(self.probes.into())
    }
}

fn check<T: PartialOrd + std::fmt::Debug>(
    name: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), TimersError> {
    if value < least || value > most {
        let [value, least, most] = [value, least, most].map(|t| format!("{t:?}"));
        return Err(TimersError {
            name,
            value,
            least,
            most,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_the_fast_profile_are_within_the_limits() {
        Timers::default().validate().unwrap();
        assert_eq!(Timers::default().dead_after(), Duration::from_millis(320));
        let fast = Timers {
            hello: Duration::from_millis(20),
            margin: Duration::from_millis(5),
            ..Timers::default()
        };
        fast.validate().unwrap();
    }

    #[test]
    fn a_timer_outside_its_limits_is_named_with_them() {
        type Set = fn(&mut Timers, Duration);
        let ms = Duration::from_millis;
        let cases: [(&str, Set, Duration); 5] = [
            ("hello", |t, d| t.hello = d, ms(9)),
            ("margin", |t, d| t.margin = d, ms(0)),
            ("probe_interval", |t, d| t.probe_interval = d, ms(3_000)),
            ("stagger", |t, d| t.stagger = d, ms(44)),
            ("announce_every", |t, d| t.announce_every = d, ms(999)),
        ];
        for (name, set, value) in cases {
            let mut timers = Timers::default();
            set(&mut timers, value);
            let error = timers.validate().expect_err(name);
            assert_eq!(error.name, name);
            assert!(error.to_string().contains(&format!("{value:?}")), "{error}");
        }
        let error = Timers {
            misses: 1,
            ..Timers::default()
        }
        .validate()
        .unwrap_err();
        assert_eq!(error.to_string(), "timer misses is 1, must be from 2 to 20");
    }
}

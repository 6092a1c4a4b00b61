//! Which intervals are advertised and which are used (RFC 5880 sections 6.8.2
//! to 6.8.4 and 6.8.7).

use std::time::Duration;

use super::event::Remote;
use crate::config::Timers;

/// bfd.DesiredMinTxInterval is not below this while the session is not up.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// The two intervals of our end. What is advertised is used at once, but for
/// two cases while the session is up, in which the peer must have acknowledged
/// it: sending less often, and expecting packets more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    /// bfd.DesiredMinTxInterval, as advertised.
    pub(super) desired_min_tx: Duration,
    /// bfd.RequiredMinRxInterval, as advertised.
    pub(super) required_min_rx: Duration,
    /// What is used in place of the first.
    transmit: Duration,
    /// What is used in place of the second.
    receive: Duration,
}

impl Timing {
    /// Of a session that is not up.
    pub(super) fn new(timers: &Timers) -> Self {
        let desired_min_tx = timers.transmit.max(SLOW);
        Self {
            desired_min_tx,
            required_min_rx: timers.receive,
            transmit: desired_min_tx,
            receive: timers.receive,
        }
    }

    /// Advertises what state and settings ask for. Whether that is something
    /// else than before, so that the peer must be polled.
    pub(super) fn advertise(&mut self, timers: &Timers, up: bool) -> bool {
        let floor = if up { Duration::ZERO } else { SLOW };
        let (desired, required) = (timers.transmit.max(floor), timers.receive);
        let changed = (desired, required) != (self.desired_min_tx, self.required_min_rx);
        self.desired_min_tx = desired;
        self.required_min_rx = required;
        if up {
            self.transmit = self.transmit.min(desired);
            self.receive = self.receive.max(required);
        } else {
            self.acknowledged();
        }
        changed
    }

    /// The peer knows what is advertised: it is used.
    pub(super) fn acknowledged(&mut self) {
        self.transmit = self.desired_min_tx;
        self.receive = self.required_min_rx;
    }

    /// Between our packets, before jitter.
    pub(super) fn transmit_interval(&self, remote: &Remote) -> Duration {
        self.transmit
            .max(Duration::from_micros(remote.required_min_rx.into()))
    }

    /// Between the peer's packets, as agreed.
    pub(super) fn receive_interval(&self, remote: &Remote) -> Duration {
        self.receive
            .max(Duration::from_micros(remote.desired_min_tx.into()))
    }
}

/// An interval as a packet has it.
pub(super) fn micros(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX)
}

/// 75 to 100 % of an interval, or 75 to 90 % where the loss of one packet ends
/// the session (RFC 5880 section 6.8.7). `random` is 0 to 65,535.
pub(super) fn jittered(interval: Duration, single: bool, random: u32) -> Duration {
    let span = if single { 15 } else { 25 };
    interval * 75 / 100 + interval * span / 100 * random / 0x1_0000
}

//! Who of several controllers leads: the state machine over one Lease (`coordination.k8s.io/v1`).
//!
//! ```text
//!            read: free, mine, or unchanged for its duration        lease taken
//!   Follows ------------------------------------------------> asks ------------> Leads
//!      ^  ^---- read: somebody else's, and it changes;             | refused        | |
//!      |        no answer: read again soon <-----------------------'                | |
//!      '---- not renewed for `hold`, or read: somebody else's ----------------------' |
//!                                                       renew every `renew` <---------'
//! ```
//!
//! Time is this process's own, monotonic. The times in the Lease are for people: whether another
//! holder lives is judged by whether its Lease changes as this process looks on, so clocks that
//! differ do no harm. The holder counts from the moment at which it *sent* its last renewal that
//! was confirmed, and stops earlier (`hold`) than the others may take over (`duration`): a process
//! that was frozen knows, before it does anything else, that it leads no more.
//!
//! Every write is bound to the version that was read, so that of two that take a Lease one is
//! refused.

use std::time::Duration;

/// Times of the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long a Lease that does not change is somebody's.
    pub duration: Duration,
    /// How long the holder relies on a renewal; less than `duration`.
    pub hold: Duration,
    /// How often the holder renews.
    pub renew: Duration,
    /// How often the others look, and how soon what failed is tried again.
    pub retry: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(10),
            hold: Duration::from_secs(8),
            renew: Duration::from_secs(2),
            retry: Duration::from_millis(500),
        }
    }
}

/// A Lease as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `spec.holderIdentity`; empty or absent is nobody.
    pub holder: Option<String>,
    /// `spec.leaseDurationSeconds`.
    pub duration: Option<Duration>,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
}

/// A call to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Read the Lease.
    Read,
    /// Create it, held by us.
    Create,
    /// Write us into it, if it still is of this version.
    Take {
        /// The version.
        version: String,
        /// The number of times that it changed hands, this one included.
        transitions: i32,
    },
    /// Write that we still live.
    Renew {
        /// The version.
        version: String,
    },
    /// Write that nobody holds it.
    Release {
        /// The version.
        version: String,
    },
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The Lease as it is, read or just written.
    Is(Record),
    /// There is none.
    Missing,
    /// Somebody else wrote it since.
    Refused,
    /// No answer, or an error that says nothing of the Lease.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Follows {
        /// The Lease of somebody else: its version and since when we see it so.
        seen: Option<(String, Duration)>,
    },
    Leads {
        version: String,
        /// Until when, unless it is renewed.
        until: Duration,
    },
}

/// The election, as one controller sees it.
#[derive(Debug, Clone)]
pub struct Election {
    identity: String,
    times: Times,
    state: State,
    /// What to ask next, and when.
    next: (Ask, Duration),
    /// When the call under way was sent.
    sent: Duration,
    terms: u64,
    decided: bool,
}

impl Election {
    /// An election that has not begun. Nobody else may have the same `identity` at the same time.
    #[must_use]
    pub fn new(identity: String, times: Times) -> Self {
        Self {
            identity,
            times,
            state: State::Follows { seen: None },
            next: (Ask::Read, Duration::ZERO),
            sent: Duration::ZERO,
            terms: 0,
            decided: false,
        }
    }

    /// The number of the term in which this controller leads at `now`, and until when. Another
    /// term after a loss has another number.
    #[must_use]
    pub fn leads(&self, now: Duration) -> Option<(u64, Duration)> {
        match &self.state {
            State::Leads { until, .. } if now < *until => Some((self.terms, *until)),
            State::Leads { .. } | State::Follows { .. } => None,
        }
    }

    /// Whether it is known who leads, or that this cannot be known for now.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.decided
    }

    /// The call to make now, if one is due. It must be answered before the next.
    pub fn due(&mut self, now: Duration) -> Option<Ask> {
        if let State::Leads { until, .. } = self.state
            && until <= now
        {
            self.lose(now);
        }
        if now < self.next.1 {
            return None;
        }
        self.sent = now;
        Some(self.next.0.clone())
    }

    /// When to call [`Election::due`] next: for a call, or because the Lease runs out.
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        match self.state {
            State::Leads { until, .. } => until.min(self.next.1),
            State::Follows { .. } => self.next.1,
        }
    }

    /// Takes in what became of the call.
    pub fn answer(&mut self, answer: Answer, now: Duration) {
        let (ask, retry) = (self.next.0.clone(), now.saturating_add(self.times.retry));
        match (ask, answer) {
            (Ask::Read, Answer::Is(record)) => self.read(record, now),
            (Ask::Read, Answer::Missing) => {
                self.lose(now);
                self.next = (Ask::Create, now);
            }
            (Ask::Create | Ask::Take { .. }, Answer::Is(record)) => {
                self.terms += 1;
                self.decided = true;
                self.hold(record.version);
            }
            (Ask::Renew { .. }, Answer::Is(record)) => self.hold(record.version),
            // By somebody else; or an answer to us was lost, or somebody put a label on it.
            (Ask::Renew { .. }, Answer::Refused | Answer::Missing) => self.next = (Ask::Read, now),
            (Ask::Create | Ask::Take { .. }, Answer::Refused | Answer::Missing) => {
                self.next = (Ask::Read, now);
            }
            (Ask::Create | Ask::Take { .. } | Ask::Read, Answer::Failed | Answer::Refused) => {
                self.decided = true;
                self.next = (Ask::Read, retry);
            }
            (Ask::Renew { .. }, Answer::Failed) => self.next.1 = retry,
            (Ask::Release { .. }, _) => self.lose(now),
        }
    }

    /// The call that gives the Lease up, if it is held. Nothing may be led after it is made.
    pub fn release(&mut self, now: Duration) -> Option<Ask> {
        self.leads(now)?;
        if let State::Leads { version, .. } = &self.state {
            let version = version.clone();
            self.next = (Ask::Release { version }, now);
        }
        Some(self.next.0.clone())
    }

    fn read(&mut self, record: Record, now: Duration) {
        let holder = record.holder.as_deref().unwrap_or_default();
        let mine = holder == self.identity;
        if let State::Leads { until, .. } = self.state {
            if mine && now < until {
                let version = record.version;
                self.next = (
                    Ask::Renew {
                        version: version.clone(),
                    },
                    now,
                );
                self.state = State::Leads { version, until };
                return;
            }
            self.lose(now);
        }
        if mine || holder.is_empty() {
            self.next = (take(&record, mine), now);
            return;
        }
        self.decided = true;
        let State::Follows { seen } = &mut self.state else {
            return;
        };
        let since = match seen {
            Some((version, since)) if *version == record.version => *since,
            Some(_) | None => now,
        };
        let lasts = record.duration.unwrap_or(self.times.duration);
        let ends = since.saturating_add(lasts);
        *seen = Some((record.version.clone(), since));
        self.next = if ends <= now {
            (take(&record, false), now)
        } else {
            (Ask::Read, ends.min(now.saturating_add(self.times.retry)))
        };
    }

    fn hold(&mut self, version: String) {
        self.state = State::Leads {
            version: version.clone(),
            until: self.sent.saturating_add(self.times.hold),
        };
        self.next = (
            Ask::Renew { version },
            self.sent.saturating_add(self.times.renew),
        );
    }

    fn lose(&mut self, now: Duration) {
        if matches!(self.state, State::Leads { .. }) {
            self.state = State::Follows { seen: None };
            self.next = (Ask::Read, now);
        }
    }
}

fn take(record: &Record, mine: bool) -> Ask {
    Ask::Take {
        version: record.version.clone(),
        transitions: record.transitions.saturating_add(i32::from(!mine)),
    }
}

#[cfg(test)]
mod tests;

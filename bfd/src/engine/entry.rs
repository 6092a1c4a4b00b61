//! One session among the others.

use crate::config::Path;
use crate::packet::{Discriminator, State};
use crate::session::{Change, DownReason, Session};
use crate::status::{Counters, SessionStatus};
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Path,
    /// Index of its interface, where that is given.
    pub(super) interface: Option<u32>,
    pub(super) discriminator: Discriminator,
    pub(super) session: Session,
    pub(super) counters: Counters,
    /// It was removed, and says so until then.
    pub(super) leaves: Option<Instant>,
    /// Where it stands among the deadlines.
    pub(super) deadline: Option<Instant>,
    state: State,
    since: Instant,
    last_down: Option<DownReason>,
}

impl Entry {
    pub(super) fn new(
        path: Path,
        interface: Option<u32>,
        discriminator: Discriminator,
        session: Session,
        now: Instant,
    ) -> Self {
        Self {
            path,
            interface,
            discriminator,
            counters: Counters::default(),
            leaves: None,
            deadline: None,
            state: session.state(),
            since: now,
            last_down: None,
            session,
        }
    }

    pub(super) fn note(&mut self, change: Change) {
        match change {
            Change::Up => self.counters.ups += 1,
            Change::Down(reason) => {
                self.counters.downs += 1;
                self.last_down = Some(reason);
            }
            Change::PeerAdminDown | Change::Intervals(_) => {}
        }
    }

    pub(super) fn follow_state(&mut self, now: Instant) {
        if self.state != self.session.state() {
            self.state = self.session.state();
            self.since = now;
        }
    }

    /// It was removed, and the peer knows, or would not wait any longer.
    pub(super) fn has_left(&self, now: Instant) -> bool {
        let knows = match self.session.remote().state {
            State::AdminDown | State::Down => true,
            State::Init | State::Up => false,
        };
        self.leaves.is_some_and(|until| knows || until <= now)
    }

    pub(super) fn status(&self, now: Instant) -> SessionStatus {
        SessionStatus {
            path: self.path.clone(),
            settings: *self.session.settings(),
            state: self.state,
            lasts: now.since(self.since),
            diagnostic: self.session.diagnostic(),
            discriminator: self.discriminator,
            remote: *self.session.remote(),
            intervals: self.session.intervals(),
            polling: self.session.polls(),
            last_down: self.last_down,
            counters: self.counters,
            error: None,
        }
    }
}

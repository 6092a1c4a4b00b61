//! Starting, telling and stopping the driver.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is the part that has a clock and sockets"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bellrock_sys::wait::WakeUp;
use tokio::sync::mpsc;

use crate::config::{Invalid, Path, Settings};
use crate::driver::Driver;
use crate::status::{Event, SessionId, Snapshot};

/// The most sessions that a driver takes.
pub const MAX_SESSIONS: usize = 1024;
/// Events that may wait for whoever reads them.
const EVENTS: usize = 4096;
/// How long a snapshot may take.
const SNAPSHOT: Duration = Duration::from_secs(2);
/// How long a dropped handle waits for its thread.
const DROP: Duration = Duration::from_secs(1);

/// Why a driver, or a session, does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The session cannot be as it was asked for.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is a session on that path.
    #[error("there is a session on that path already")]
    Duplicate,
    /// There are [`MAX_SESSIONS`].
    #[error("there are {MAX_SESSIONS} sessions already")]
    TooMany,
    /// There is no session of that name.
    #[error("there is no such session")]
    Unknown,
    /// The thread or its descriptors could not be made.
    #[error("cannot start the BFD driver")]
    Start(#[source] io::Error),
    /// Its thread has not ended in time.
    #[error("the BFD driver did not end within {0:?}")]
    Stop(Duration),
}

/// What waits for the driver's next turn.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// The last word for each session; `None`: remove.
    pub(crate) sessions: BTreeMap<SessionId, Option<(Path, Settings)>>,
    pub(crate) snapshots: Vec<SyncSender<Snapshot>>,
    pub(crate) stop: bool,
}

#[derive(Debug, Default)]
struct State {
    pending: Pending,
    /// All sessions that were added and not removed.
    sessions: BTreeMap<SessionId, Path>,
    last: u64,
}

/// Between the driver's thread and everybody else.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) wake: WakeUp,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that waits.
    pub(crate) fn take(&self) -> Pending {
        self.wake.clear();
        std::mem::take(&mut self.lock().pending)
    }
}

/// What the driver has to tell, in order. When it is full, events are counted
/// ([`Snapshot::events_dropped`]) and dropped; [`Handle::snapshot`] has the
/// state.
pub type EventReceiver = mpsc::Receiver<Event>;

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    /// Disconnected when the driver has ended.
    ended: Receiver<()>,
}

/// A running driver. Dropping it stops it, as [`shutdown`](Self::shutdown)
/// does.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<Thread>>,
}

impl Handle {
    /// Starts it in the calling thread's network namespace, without sessions.
    ///
    /// It takes real-time priority, if it may (`CAP_SYS_NICE`); else
    /// [`Snapshot::no_real_time`] says why not. It needs no right for anything
    /// else.
    ///
    /// # Errors
    /// The thread or its descriptors cannot be made.
    pub fn start() -> Result<(Self, EventReceiver), Error> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: WakeUp::new().map_err(Error::Start)?,
        });
        let (events_sender, events) = mpsc::channel(EVENTS);
        let (alive, ended) = sync_channel::<()>(1);
        let driver = Driver::new(shared.clone(), events_sender);
        let handle = std::thread::Builder::new()
            .name("bfd".to_owned())
            .spawn(move || {
                let _alive = alive;
                if let Err(error) = driver.run() {
                    tracing::error!(%error, "the BFD driver ended");
                }
            })
            .map_err(Error::Start)?;
        let thread = Mutex::new(Some(Thread { handle, ended }));
        Ok((Self { shared, thread }, events))
    }

    /// Adds a session. Takes effect within the driver's next turn; never
    /// blocks. What keeps it from sending or receiving is in its
    /// [status](crate::SessionStatus::error), and tried again each second.
    ///
    /// # Errors
    /// The path or the timers are not valid, there is a session on the path,
    /// or there are too many.
    pub fn add(&self, path: Path, settings: Settings) -> Result<SessionId, Error> {
        path.validate()?;
        settings.timers.validate()?;
        let mut state = self.shared.lock();
        if state.sessions.len() >= MAX_SESSIONS {
            return Err(Error::TooMany);
        }
        // The least TTL does not make another path of it.
        let key = |path: &Path| {
            let port = crate::Port::of(path.hops);
            (path.peer, path.local, path.interface.clone(), port)
        };
        if state
            .sessions
            .values()
            .any(|other| key(other) == key(&path))
        {
            return Err(Error::Duplicate);
        }
        state.last += 1;
        let id = SessionId(state.last);
        state.sessions.insert(id, path.clone());
        state.pending.sessions.insert(id, Some((path, settings)));
        drop(state);
        self.shared.wake.wake();
        Ok(id)
    }

    /// Changes what can be changed while it runs. Nothing goes down for it:
    /// the peer is told by a Poll Sequence.
    ///
    /// # Errors
    /// The timers are not valid, or there is no such session.
    pub fn change(&self, id: SessionId, settings: Settings) -> Result<(), Error> {
        settings.timers.validate()?;
        let mut state = self.shared.lock();
        let path = state.sessions.get(&id).cloned().ok_or(Error::Unknown)?;
        state.pending.sessions.insert(id, Some((path, settings)));
        drop(state);
        self.shared.wake.wake();
        Ok(())
    }

    /// Takes a session away: the peer is told AdminDown, so that it does not
    /// take this for a failure. Its name does not come back.
    pub fn remove(&self, id: SessionId) {
        let mut state = self.shared.lock();
        if state.sessions.remove(&id).is_some() {
            state.pending.sessions.insert(id, None);
            drop(state);
            self.shared.wake.wake();
        }
    }

    /// Everything at this moment, earlier calls included. Waits for the
    /// driver's next turn, some microseconds; an empty one if it has ended.
    pub fn snapshot(&self) -> Snapshot {
        let (sender, reply) = sync_channel(1);
        self.shared.lock().pending.snapshots.push(sender);
        self.shared.wake.wake();
        reply.recv_timeout(SNAPSHOT).unwrap_or_default()
    }

    /// Tells all peers AdminDown, waits until each knows or would not wait any
    /// longer, and ends the thread. Again: no effect.
    ///
    /// # Errors
    /// The thread has not ended by the deadline; it ends by itself.
    pub fn shutdown(&self, deadline: Duration) -> Result<(), Error> {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(Thread { handle, ended }) = thread else {
            return Ok(());
        };
        self.shared.lock().pending.stop = true;
        self.shared.wake.wake();
        if ended.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(Error::Stop(deadline));
        }
        if handle.join().is_err() {
            tracing::error!("the BFD driver panicked");
        }
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown(DROP) {
            tracing::warn!(%error, "dropping the BFD driver");
        }
    }
}

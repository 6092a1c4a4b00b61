//! Starting, telling and stopping the driver.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is the part that has a clock and sockets"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bellrock_sys::packet::PacketSocket;
use bellrock_sys::wait::WakeUp;
use tokio::sync::{mpsc, oneshot};

use crate::MacAddr;
use crate::config::{Config, Error};
use crate::driver::Driver;
use crate::links::{self, Interface};
use crate::types::{Assignment, Estate, Event, Snapshot};

/// Events that may wait for whoever reads them.
const EVENTS: usize = 4096;
/// How long the first list of interfaces may take.
const START: Duration = Duration::from_secs(10);
/// How long a snapshot may take.
const SNAPSHOT: Duration = Duration::from_secs(2);
/// How long a dropped handle waits for its thread.
const DROP: Duration = Duration::from_secs(1);

/// What waits for the driver's next turn.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// The last word for each address; `None`: remove.
    pub(crate) assignments: BTreeMap<IpAddr, Option<Assignment>>,
    pub(crate) links: Option<(Vec<Interface>, BTreeSet<MacAddr>)>,
    pub(crate) snapshots: Vec<SyncSender<Snapshot>>,
    /// To end the standby, with what the process before left.
    pub(crate) begin: Option<Estate>,
    /// To stop without a word, and leave what is held to whoever asked.
    pub(crate) bequeath: Option<SyncSender<Estate>>,
    pub(crate) stop: bool,
}

/// Between the driver's thread and everybody else.
#[derive(Debug)]
pub(crate) struct Shared {
    pending: Mutex<Pending>,
    pub(crate) wake: WakeUp,
}

impl Shared {
    fn tell(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.lock());
        self.wake.wake();
    }

    /// Takes all that waits.
    pub(crate) fn take(&self) -> Pending {
        self.wake.clear();
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nobody leaves it half changed.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the driver has to tell, in order. When it is full, events are counted
/// (`events_dropped`) and dropped; [`Handle::snapshot`] has the state.
pub type EventReceiver = mpsc::Receiver<Event>;

#[derive(Debug)]
struct Threads {
    driver: JoinHandle<()>,
    links: JoinHandle<()>,
    /// Disconnected when the driver has ended.
    ended: Receiver<()>,
    _stop_links: oneshot::Sender<()>,
}

/// A running driver. Dropping it leaves the segment, as
/// [`shutdown`](Self::shutdown) does.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
}

impl Handle {
    /// Starts on all suitable interfaces of the calling thread's network
    /// namespace. Needs `CAP_NET_RAW`, and `CAP_NET_ADMIN` for nothing.
    ///
    /// Returns when the interfaces are known. Interfaces that come, go or
    /// change later are followed.
    pub fn start(config: Config) -> Result<(Self, EventReceiver), Error> {
        config.check()?;
        PacketSocket::permitted().map_err(Error::PacketSocket)?;
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            wake: WakeUp::new().map_err(Error::Start)?,
        });

        let exclude = config.exclude_interfaces.clone();
        let (ready_sender, ready) = sync_channel(1);
        let (stop_links, links_stopped) = oneshot::channel();
        let to = shared.clone();
        let links = spawn("arp-links", move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = ready_sender.try_send(Err(Error::Start(error)));
                    return;
                }
            };
            let publish = |table: Result<&links::Table, &str>| match table {
                Ok(table) => {
                    let links = (table.interfaces(&exclude), table.macs());
                    to.tell(|pending| pending.links = Some(links));
                    let _ = ready_sender.try_send(Ok(()));
                }
                Err(error) => {
                    tracing::warn!(error, "cannot follow the interfaces, trying again");
                    let _ = ready_sender.try_send(Err(Error::Links(error.to_owned())));
                }
            };
            runtime.block_on(links::watch(publish, links_stopped));
        })?;
        let started = match ready.recv_timeout(START) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(Error::Links(format!("no answer in {START:?}")))
            }
        };
        // An early return drops `stop_links`, which ends the thread.
        started?;

        let (events_sender, events) = mpsc::channel(EVENTS);
        let (alive, ended) = sync_channel::<()>(1);
        let driver = Driver::new(config, incarnation(), shared.clone(), events_sender);
        let driver = spawn("arp", move || {
            let _alive = alive;
            if let Err(error) = driver.run() {
                tracing::error!(%error, "the arp driver ended");
            }
        })?;
        let threads = Threads {
            driver,
            links,
            ended,
            _stop_links: stop_links,
        };
        Ok((
            Self {
                shared,
                threads: Mutex::new(Some(threads)),
            },
            events,
        ))
    }

    /// Serves an address, or changes who may hold it. Takes effect within the
    /// driver's next turn; never blocks.
    pub fn assign(&self, address: IpAddr, assignment: Assignment) {
        self.shared.tell(|pending| {
            pending.assignments.insert(address, Some(assignment));
        });
    }

    /// Serves an address no more. A held one is released.
    pub fn remove(&self, address: IpAddr) {
        self.shared.tell(|pending| {
            pending.assignments.insert(address, None);
        });
    }

    /// Ends the [standby](Config::standby). The process before this one has
    /// ended; `estate` is what it [left](Self::bequeath), if it could: then this
    /// node goes on with it as if nothing had happened. Addresses must be
    /// assigned before. Without a standby: no effect.
    pub fn begin(&self, estate: Option<Estate>) {
        self.shared
            .tell(|pending| pending.begin = Some(estate.unwrap_or_default()));
    }

    /// Stops without a word to anybody, and tells what this node held, for the
    /// process that goes on in its place; nothing, if the driver has ended or is
    /// on standby itself. [`shutdown`](Self::shutdown) should follow.
    pub fn bequeath(&self, deadline: Duration) -> Option<Estate> {
        let (sender, reply) = sync_channel(1);
        self.shared.tell(|pending| pending.bequeath = Some(sender));
        reply.recv_timeout(deadline).ok()
    }

    /// Everything at this moment, earlier [`assign`](Self::assign)s and
    /// [`remove`](Self::remove)s included. Waits for the driver's next turn,
    /// some microseconds; an empty one if the driver has ended.
    pub fn snapshot(&self) -> Snapshot {
        let (sender, reply) = sync_channel(1);
        self.shared.tell(|pending| pending.snapshots.push(sender));
        reply.recv_timeout(SNAPSHOT).unwrap_or_default()
    }

    /// Tells the peers that this node leaves, so that they take over at once,
    /// and ends the threads. Again: no effect.
    pub fn shutdown(&self, deadline: Duration) -> Result<(), Error> {
        let threads = self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(threads) = threads else {
            return Ok(());
        };
        self.shared.tell(|pending| pending.stop = true);
        if threads.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(Error::Stop(deadline));
        }
        let Threads {
            driver,
            links,
            _stop_links,
            ..
        } = threads;
        drop(_stop_links);
        for thread in [driver, links] {
            if thread.join().is_err() {
                tracing::error!("a thread of the arp driver panicked");
            }
        }
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown(DROP) {
            tracing::warn!(%error, "dropping the arp driver");
        }
    }
}

/// The wall clock at start, in nanoseconds. If it was set back, peers say so
/// and the incarnation grows beyond the one they know (STALE in [`frame`]).
fn incarnation() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(Error::Start)
}

//! BFD sessions with BGP peers. The driver runs from the first one on.
//!
//! A BFD session belongs to one BGP session: it begins once that is
//! Established, and goes with it (RFC 5882 section 4.1). One that was there
//! before would end it at once where the router begins anew at that moment, as
//! FRR does.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bellrock_bfd::{Change, EventReceiver, Handle, SessionId, Snapshot};

use super::bgp::Bgp;
use crate::cluster::Cluster;
use crate::plan;
use crate::plan::bfd::Watch;
use crate::routes::{Route, Routes};

/// How long peers have to hear that it is on purpose.
const SHUTDOWN: Duration = Duration::from_secs(2);

#[allow(clippy::disallowed_methods, reason = "when what is shown happened")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// The sessions of this node.
#[derive(Debug, Default)]
pub struct Bfd {
    driver: Option<(Arc<Handle>, EventReceiver)>,
    sessions: BTreeMap<String, Session>,
    /// What is not as the peers' profiles have it.
    problems: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Session {
    watch: Watch,
    id: SessionId,
    since: SystemTime,
    /// Since when the BGP session is up that it belongs to.
    bgp: SystemTime,
}

/// What is shown of them.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// The sessions by peer, with the time of the last change.
    pub sessions: BTreeMap<String, (SystemTime, bellrock_bfd::SessionStatus)>,
    /// The driver's own.
    pub driver: Option<Snapshot>,
}

impl Bfd {
    /// Has the peers of node `me` watched as their profiles say, as long as
    /// their BGP sessions are up. A session whose timers change stays up. To
    /// be called when peers or profiles change, and from time to time.
    pub async fn follow(&mut self, cluster: &Cluster, me: &str, bgp: &Bgp, routes: &Routes) {
        let (mut wanted, mut problems) = (BTreeMap::new(), BTreeMap::new());
        for name in plan::peers_of(cluster, me) {
            let Some(peer) = cluster.peers.get(name) else {
                continue;
            };
            let up = bgp.established(name);
            let distant = up.is_some()
                && peer.bfd_profile.is_some()
                && matches!(routes.to(peer.address).await, Ok(Route::Gateway));
            let (watch, problem) = plan::bfd::watch(cluster, peer, distant);
            problems.extend(problem.map(|problem| (name.clone(), problem)));
            wanted.extend(watch.zip(up).map(|watch| (name.clone(), watch)));
        }
        self.set(wanted, &mut problems);
        for (peer, problem) in &problems {
            if self.problems.get(peer) != Some(problem) {
                tracing::warn!(peer, problem, "BFD is not as it should be");
            }
        }
        self.problems = problems;
    }

    fn set(
        &mut self,
        wanted: BTreeMap<String, (Watch, SystemTime)>,
        problems: &mut BTreeMap<String, String>,
    ) {
        if wanted.is_empty() && self.driver.is_none() {
            return;
        }
        let handle = match self.driver() {
            Ok(handle) => handle,
            Err(error) => {
                problems.extend(wanted.into_keys().map(|peer| (peer, error.clone())));
                return;
            }
        };
        self.sessions.retain(|peer, session| {
            let stays = wanted.get(peer).is_some_and(|(watch, bgp)| {
                watch.path == session.watch.path && *bgp == session.bgp
            });
            if !stays {
                handle.remove(session.id);
            }
            stays
        });
        for (peer, (watch, bgp)) in wanted {
            let done = match self.sessions.get_mut(&peer) {
                Some(session) if session.watch == watch => Ok(()),
                Some(session) => {
                    let settings = watch.settings;
                    session.watch = watch;
                    handle.change(session.id, settings)
                }
                None => handle.add(watch.path.clone(), watch.settings).map(|id| {
                    let session = Session {
                        watch,
                        id,
                        since: now(),
                        bgp,
                    };
                    self.sessions.insert(peer.clone(), session);
                }),
            };
            if let Err(error) = done {
                problems.insert(peer, format!("BFD does not watch the peer: {error}"));
            }
        }
    }

    fn driver(&mut self) -> Result<Arc<Handle>, String> {
        if let Some((handle, _)) = &self.driver {
            return Ok(Arc::clone(handle));
        }
        let (handle, events) = Handle::start().map_err(|error| error.to_string())?;
        let handle = Arc::new(handle);
        self.driver = Some((Arc::clone(&handle), events));
        Ok(handle)
    }

    /// The next change, and of which peer. Cancel-safe. Waits for ever while
    /// nobody is watched.
    pub async fn event(&mut self) -> Option<(String, Change)> {
        loop {
            let Some((_, events)) = &mut self.driver else {
                return pending().await;
            };
            let event = events.recv().await?;
            let session = self
                .sessions
                .iter_mut()
                .find(|(_, session)| session.id == event.session);
            // One that was just removed has nothing to say.
            if let Some((peer, session)) = session {
                if !matches!(event.change, Change::Intervals(_)) {
                    session.since = now();
                }
                return Some((peer.clone(), event.change));
            }
        }
    }

    /// Ends the BGP session of a peer that can no longer be reached. One that is
    /// held down on purpose is alive: it keeps its session (RFC 5882 section
    /// 3.2).
    pub async fn obey(&self, bgp: &Bgp, peer: &str, change: Change) {
        let owner = self.sessions.get(peer).map(|session| session.bgp);
        match change {
            Change::Down(reason) if reason.is_failure() => {
                tracing::warn!(peer, %reason, "BFD: the path to the peer has failed");
                if owner.is_some() && owner == bgp.established(peer) {
                    bgp.bfd_down(peer).await;
                }
            }
            Change::Down(reason) => tracing::info!(peer, %reason, "BFD: down on purpose"),
            Change::Up => tracing::info!(peer, "BFD: the peer is watched"),
            Change::PeerAdminDown | Change::Intervals(_) => {}
        }
    }

    /// What is not as the peers' profiles have it, by peer.
    pub fn problems(&self) -> &BTreeMap<String, String> {
        &self.problems
    }

    /// Everything at this moment.
    pub async fn show(&self) -> Shown {
        let Some((handle, _)) = &self.driver else {
            return Shown::default();
        };
        let handle = Arc::clone(handle);
        // The driver answers in its next turn; no runtime thread waits.
        let snapshot = tokio::task::spawn_blocking(move || handle.snapshot()).await;
        let mut driver = snapshot.unwrap_or_default();
        let sessions = self
            .sessions
            .iter()
            .filter_map(|(peer, session)| {
                let status = driver.sessions.remove(&session.id)?;
                Some((peer.clone(), (session.since, status)))
            })
            .collect();
        Shown {
            sessions,
            driver: Some(driver),
        }
    }

    /// Tells all peers that it is on purpose, and ends.
    pub async fn stop(self) {
        let Some((handle, _)) = self.driver else {
            return;
        };
        let stopped = tokio::task::spawn_blocking(move || handle.shutdown(SHUTDOWN)).await;
        match stopped {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "BFD did not stop in order"),
            Err(error) => tracing::warn!(%error, "BFD did not stop in order"),
        }
    }
}

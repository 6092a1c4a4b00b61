//! Whether the speaker ends for good or only makes room for the next one.
//!
//! A speaker that restarts, or is replaced in a rollout, leaves the forwarding
//! table to its successor; one that is uninstalled must take it along. Both
//! get the same signal, and by the time it comes an uninstallation may have
//! taken the right to ask. So the speaker follows the DaemonSet that it
//! belongs to all the time: only what is known to be gone is gone. Where the
//! API server cannot be asked the table stays.

use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch as channel;

/// How long the API server may take for the last answer.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// What has been seen of the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Nothing, as where no DaemonSet started the speaker.
    Never,
    /// It is there.
    There,
    /// It was there, and is gone or going.
    Gone,
}

impl Seen {
    /// After looking: `Some` if it exists, with whether it is being deleted.
    fn after(self, found: Option<bool>) -> Self {
        match (self, found) {
            (_, Some(false)) => Self::There,
            (_, Some(true)) | (Self::There | Self::Gone, None) => Self::Gone,
            (Self::Never, None) => Self::Never,
        }
    }
}

/// The DaemonSet that the speaker belongs to.
#[derive(Debug)]
pub(crate) struct Installation {
    api: Api<PartialObjectMeta<DaemonSet>>,
    name: String,
    seen: channel::Receiver<Seen>,
}

impl Installation {
    /// The DaemonSet of this name, and the work that follows it until the
    /// other end is dropped.
    pub(crate) fn new(
        api: Api<PartialObjectMeta<DaemonSet>>,
        name: String,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, seen) = channel::channel(Seen::Never);
        let work = follow(api.clone(), name.clone(), sender);
        (Self { api, name, seen }, work)
    }

    /// Whether it has been deleted, or is being.
    pub(crate) async fn is_over(&self) -> bool {
        let seen = *self.seen.borrow();
        if seen != Seen::There {
            return seen == Seen::Gone;
        }
        // The watch may have been broken when it happened.
        let asked = self.api.get_opt(&self.name);
        match tokio::time::timeout(LAST_ANSWER, asked).await {
            Ok(Ok(found)) => {
                let found = found.map(|set| set.metadata.deletion_timestamp.is_some());
                seen.after(found) == Seen::Gone
            }
            Ok(Err(error)) => {
                tracing::info!(daemonset = self.name, %error, "not asked whether this is the end");
                false
            }
            Err(_) => {
                tracing::info!(daemonset = self.name, "no answer whether this is the end");
                false
            }
        }
    }
}

async fn follow(api: Api<PartialObjectMeta<DaemonSet>>, name: String, seen: channel::Sender<Seen>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    let mut listed = None;
    while let Some(event) = events.next().await {
        let found = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(set)) => {
                listed = Some(set.metadata.deletion_timestamp.is_some());
                continue;
            }
            Ok(Event::InitDone) => listed,
            Ok(Event::Apply(set)) => Some(set.metadata.deletion_timestamp.is_some()),
            Ok(Event::Delete(_)) => None,
            Err(error) => {
                tracing::debug!(daemonset = name, %error, "watch failed; trying again");
                continue;
            }
        };
        let now = seen.borrow().after(found);
        if now != seen.send_replace(now) {
            tracing::info!(daemonset = name, state = ?now, "the speakers' own DaemonSet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_there_can_be_gone() {
        let table = [
            (Seen::Never, None, Seen::Never),
            (Seen::Never, Some(false), Seen::There),
            (Seen::Never, Some(true), Seen::Gone),
            (Seen::There, Some(false), Seen::There),
            (Seen::There, Some(true), Seen::Gone),
            (Seen::There, None, Seen::Gone),
            // It has been made again, and has taken the pods over.
            (Seen::Gone, Some(false), Seen::There),
            (Seen::Gone, Some(true), Seen::Gone),
            (Seen::Gone, None, Seen::Gone),
        ];
        for (before, found, after) in table {
            assert_eq!(before.after(found), after, "{before:?} {found:?}");
        }
    }
}

//! The Secrets that BGPPeers name, read one by one: a speaker may `get` those of
//! its own namespace, and neither list nor watch any.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bellrock_bgp::Password;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::sync::{mpsc, watch as channel};

use crate::cluster::Change;
use crate::convert;
use crate::watch::{Kind, Update};

/// How often a Secret is looked at again.
const AGAIN: Duration = Duration::from_secs(60);
/// Likewise while one is missing or unusable.
const SOON: Duration = Duration::from_secs(5);

/// Reads the Secrets of these names now, when the names change, and again from
/// time to time, until the other end is gone. Reports what changed. While the
/// API server does not answer nothing is reported: what is known stays.
pub(crate) async fn follow(
    api: Api<Secret>,
    mut names: channel::Receiver<BTreeSet<String>>,
    updates: mpsc::Sender<Update>,
) {
    let mut known: BTreeMap<String, Result<Password, String>> = BTreeMap::new();
    loop {
        let wanted = names.borrow_and_update().clone();
        known.retain(|name, _| wanted.contains(name));
        for name in &wanted {
            let read = match api.get_opt(name).await {
                Ok(Some(secret)) => convert::password_secret(&secret),
                Ok(None) => Err("there is no such Secret in this namespace".to_owned()),
                Err(error) => {
                    tracing::warn!(secret = name, %error, "Secret not read");
                    continue;
                }
            };
            if known.get(name) == Some(&read) {
                continue;
            }
            known.insert(name.clone(), read.clone());
            let update = Update::Change {
                kind: Kind::PasswordSecret,
                name: name.clone(),
                change: Change::Password(name.clone(), read),
            };
            if updates.send(update).await.is_err() {
                return;
            }
        }
        let good = |name: &String| matches!(known.get(name), Some(Ok(_)));
        let pause = if wanted.iter().all(good) { AGAIN } else { SOON };
        tokio::select! {
            changed = names.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

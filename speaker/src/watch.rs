//! Watches: each kind's objects become [`Change`]s, relists included.

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures_util::StreamExt;
use kube::api::DynamicObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::cluster::Change;
use crate::convert::{Identity, gone, identity};

/// One of the watched kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Service.
    Service,
    /// EndpointSlice.
    EndpointSlice,
    /// Node.
    Node,
    /// VirtualIP.
    VirtualIp,
    /// IPAddressPool.
    Pool,
    /// L2Advertisement.
    L2Advertisement,
    /// BGPAdvertisement.
    BgpAdvertisement,
    /// BGPPeer.
    BgpPeer,
    /// BFDProfile.
    BfdProfile,
    /// Community.
    Community,
    /// Secrets that BGPPeers name. Not watched: each is read by its name.
    PasswordSecret,
}

impl Kind {
    /// All that are watched: the speaker acts once each has been listed.
    pub const ALL: [Self; 10] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::VirtualIp,
        Self::Pool,
        Self::L2Advertisement,
        Self::BgpAdvertisement,
        Self::BgpPeer,
        Self::BfdProfile,
        Self::Community,
    ];
}

impl Kind {
    /// The kind's name in the API, for kinds of ours.
    pub fn of_ours(self) -> Option<&'static str> {
        match self {
            Self::Service | Self::EndpointSlice | Self::Node | Self::PasswordSecret => None,
            Self::VirtualIp => Some("VirtualIP"),
            Self::Pool => Some("IPAddressPool"),
            Self::L2Advertisement => Some("L2Advertisement"),
            Self::BgpAdvertisement => Some("BGPAdvertisement"),
            Self::BgpPeer => Some("BGPPeer"),
            Self::BfdProfile => Some("BFDProfile"),
            Self::Community => Some("Community"),
        }
    }
}

/// What an object turned out to be.
#[derive(Debug)]
pub enum Parsed {
    /// A change to the snapshot.
    Change(Change),
    /// None of our business.
    Ignored,
    /// An object that cannot be used, and why; what it said before stays.
    Invalid {
        /// The change that its deletion would be.
        identity: Change,
        /// What is wrong, in words.
        message: String,
    },
}

/// What a watch reports.
#[derive(Debug)]
pub enum Update {
    /// The snapshot changes.
    Change {
        /// Of which kind the object is.
        kind: Kind,
        /// Its name.
        name: String,
        /// What it is now.
        change: Change,
    },
    /// An object cannot be used.
    Invalid {
        /// Of which kind.
        kind: Kind,
        /// Which.
        name: String,
        /// Why.
        message: String,
    },
    /// The kind has been listed completely.
    Synced(Kind),
}

/// Follows one kind for ever. Errors are logged and retried with backoff;
/// meanwhile the snapshot stays as it is.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: Kind,
    parse: impl Fn(&K) -> Parsed,
    updates: mpsc::Sender<Update>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    // What was reported, by identity, so that a relist finds what went away.
    let mut known: BTreeMap<Identity, (String, Change)> = BTreeMap::new();
    let mut listed: BTreeMap<Identity, (String, Change)> = BTreeMap::new();
    while let Some(event) = stream.next().await {
        let mut out = Vec::new();
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                take(kind, &object, &parse, &mut listed, &mut out);
            }
            Ok(watcher::Event::InitDone) => {
                for (id, (name, change)) in &known {
                    if !listed.contains_key(id) {
                        out.push(Update::Change {
                            kind,
                            name: name.clone(),
                            change: change.clone(),
                        });
                    }
                }
                known = std::mem::take(&mut listed);
                out.push(Update::Synced(kind));
            }
            Ok(watcher::Event::Apply(object)) => {
                take(kind, &object, &parse, &mut known, &mut out);
            }
            Ok(watcher::Event::Delete(object)) => {
                let change = match parse(&object) {
                    Parsed::Change(change)
                    | Parsed::Invalid {
                        identity: change, ..
                    } => change,
                    Parsed::Ignored => continue,
                };
                known.remove(&identity(&change));
                out.push(Update::Change {
                    kind,
                    name: full_name(&object),
                    change: gone(change),
                });
            }
            Err(error) => {
                tracing::warn!(?kind, %error, "watch interrupted; going on with what is known");
            }
        }
        for update in out {
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }
}

/// Parses objects of a kind of ours one by one. `gone` is what the deletion of
/// an object of that name would be.
pub fn each<K: DeserializeOwned>(
    parse: fn(&K) -> Parsed,
    gone: fn(&str) -> Option<Change>,
) -> impl Fn(&DynamicObject) -> Parsed {
    let parsed = |object: &DynamicObject| {
        let value = serde_json::to_value(object)?;
        serde_json::from_value::<K>(value)
    };
    move |object| match parsed(object) {
        Ok(object) => parse(&object),
        Err(error) => match gone(&object.name_any()) {
            Some(identity) => Parsed::Invalid {
                identity,
                message: error.to_string(),
            },
            None => Parsed::Ignored,
        },
    }
}

fn take<K: ResourceExt>(
    kind: Kind,
    object: &K,
    parse: impl Fn(&K) -> Parsed,
    seen: &mut BTreeMap<Identity, (String, Change)>,
    out: &mut Vec<Update>,
) {
    let name = full_name(object);
    match parse(object) {
        Parsed::Change(change) => {
            seen.insert(identity(&change), (name.clone(), gone(change.clone())));
            out.push(Update::Change { kind, name, change });
        }
        Parsed::Ignored => {}
        Parsed::Invalid {
            identity: change,
            message,
        } => {
            seen.insert(identity(&change), (name.clone(), gone(change)));
            out.push(Update::Invalid {
                kind,
                name,
                message,
            });
        }
    }
}

fn full_name(object: &impl ResourceExt) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

//! Keeps the webhook's certificate: the leader makes it and renews it, every replica serves it.
//!
//! The API server trusts a certificate before anybody serves it: a new one is first added to the
//! `caBundle` of the configuration, beside the one in use, and then put into the Secret. So there
//! is no moment at which a replica is not believed, and a leader that dies between the two leaves
//! nothing behind but a certificate that nobody has the key of.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::Identity;
use crate::election::Fence;
use crate::watch::in_full;

/// Between two looks at the Secret, and while there is nothing to serve or the last look failed.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1));

/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keys of the Secret.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ENDS: &str = "ends";

/// Keeps the certificate of the webhook whose Service, Secret and configuration have one name.
pub(crate) struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<ValidatingWebhookConfiguration>,
    name: String,
    /// The Service's name inside the cluster.
    host: String,
    fence: Fence,
    serving: Option<Identity>,
    served: watch::Sender<Option<Arc<ServerConfig>>>,
}

impl Keeper {
    /// A keeper, and what to serve by.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: String,
        fence: Fence,
    ) -> (Self, watch::Receiver<Option<Arc<ServerConfig>>>) {
        let (served, serve) = watch::channel(None);
        let keeper = Self {
            secrets: Api::namespaced(client.clone(), namespace),
            configurations: Api::all(client),
            host: format!("{name}.{namespace}.svc"),
            name,
            fence,
            serving: None,
            served,
        };
        (keeper, serve)
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let looked = tokio::time::timeout(PATIENCE, self.look()).await;
            let looked = looked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time")));
            if let Err(error) = &looked
                && !failing
            {
                tracing::warn!(
                    error = in_full(error.as_ref()),
                    "the webhook's certificate cannot be seen to; trying again"
                );
            }
            failing = looked.is_err();
            let (rarely, soon) = LOOK_EVERY;
            let pause = if failing || self.serving.is_none() {
                soon
            } else {
                rarely
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Serves what the Secret holds. The leader sees to it that it holds something good, and that
    /// it is trusted.
    async fn look(&mut self) -> Result<()> {
        let secret = self.secrets.get(&self.name).await.context("the Secret")?;
        let kept = read(&secret);
        let now = Timestamp::now();
        if !self.fence.is_open() {
            return self.serve(kept);
        }
        match kept {
            Some(kept) if !kept.is_due(now) => {
                self.trust(&[&kept]).await?;
                self.serve(Some(kept))
            }
            kept => {
                let new = Identity::issue(std::slice::from_ref(&self.host), now)?;
                let mut trusted = vec![&new];
                trusted.extend(&kept);
                self.trust(&trusted).await?;
                self.keep(&secret, &new).await?;
                tracing::info!(ends = %new.ends, "the webhook has a new certificate");
                self.serve(Some(new))
            }
        }
    }

    fn serve(&mut self, identity: Option<Identity>) -> Result<()> {
        let Some(identity) = identity else {
            return Ok(());
        };
        if self.serving.as_ref() != Some(&identity) {
            self.served.send_replace(Some(identity.server()?));
            self.serving = Some(identity);
        }
        Ok(())
    }

    /// Makes the API server trust these, if it does not yet.
    async fn trust(&self, identities: &[&Identity]) -> Result<()> {
        let present = self.configurations.get(&self.name).await;
        let present = present.context("the webhook's configuration")?;
        let webhooks = present.webhooks.iter().flatten();
        let trusts = |bundle: Option<&ByteString>| {
            let bundle = bundle.map(|bytes| String::from_utf8_lossy(&bytes.0));
            let mut wanted = identities.iter();
            bundle.is_some_and(|bundle| wanted.all(|id| bundle.contains(&id.certificate)))
        };
        let untold: Vec<&str> = webhooks
            .filter(|hook| !trusts(hook.client_config.ca_bundle.as_ref()))
            .map(|hook| hook.name.as_str())
            .collect();
        if untold.is_empty() {
            return Ok(());
        }
        let bundle: String = identities
            .iter()
            .map(|id| id.certificate.as_str())
            .collect();
        let bundle = ByteString(bundle.into_bytes());
        let hooks = untold
            .into_iter()
            .map(|name| json!({ "name": name, "clientConfig": { "caBundle": bundle } }));
        let body = json!({
            "metadata": { "resourceVersion": present.resource_version() },
            "webhooks": hooks.collect::<Vec<_>>(),
        });
        self.configurations
            .patch(
                &self.name,
                &PatchParams::default(),
                &Patch::Strategic(&body),
            )
            .await
            .context("the webhook's configuration")?;
        Ok(())
    }

    /// Puts a new one into the Secret, unless somebody else did.
    async fn keep(&self, present: &Secret, identity: &Identity) -> Result<()> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let body = json!({
            "metadata": { "resourceVersion": present.resource_version() },
            "data": {
                CERTIFICATE: bytes(&identity.certificate),
                KEY: bytes(&identity.key),
                ENDS: bytes(&identity.ends.to_string()),
            },
        });
        self.secrets
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(&body))
            .await
            .context("the Secret")?;
        Ok(())
    }
}

/// What a Secret holds; `None` if that is nothing to serve by.
fn read(secret: &Secret) -> Option<Identity> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    let identity = Identity {
        certificate: text(CERTIFICATE)?,
        key: text(KEY)?,
        ends: text(ENDS)?.parse().ok()?,
    };
    identity.server().is_ok().then_some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_is_empty_or_broken_holds_nothing() {
        let now = Timestamp::UNIX_EPOCH;
        let good = Identity::issue(&["localhost".to_owned()], now).unwrap();
        let of = |certificate: &str, key: &str, ends: &str| {
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            read(&Secret {
                data: Some(
                    [(CERTIFICATE, certificate), (KEY, key), (ENDS, ends)]
                        .map(|(name, text)| (name.to_owned(), bytes(text)))
                        .into(),
                ),
                ..Secret::default()
            })
        };
        let ends = good.ends.to_string();
        assert_eq!(of(&good.certificate, &good.key, &ends), Some(good.clone()));
        assert_eq!(read(&Secret::default()), None);
        assert_eq!(of(&good.certificate, "", &ends), None);
        assert_eq!(of("nonsense", &good.key, &ends), None);
        assert_eq!(of(&good.certificate, &good.key, "soon"), None);
    }
}

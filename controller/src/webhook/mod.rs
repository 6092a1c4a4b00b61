//! The validating webhook for pools and advertisements: served by every replica, its certificate
//! kept in a Secret by the leader.
//!
//! ```text
//! API server --AdmissionReview--> server (TLS) --Question--> driver: Core::judge --> answer
//! leader: certificate -> caBundle of the configuration, then the Secret -> every replica serves it
//! ```
//!
//! Its `failurePolicy` is `Ignore`. Nothing depends on it for safety, and objects of ours are made in
//! the same breath as the controller when the chart is installed. Before an uninstallation, which
//! deletes pools that Services use, its configuration goes.

mod certificate;
mod keeper;
mod server;
mod tls;

use anyhow::{Context, Result};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::DeleteParams;
use kube::{Api, Client};
use tokio::sync::oneshot;

pub use certificate::Identity;
pub use tls::TlsListener;

pub(crate) use keeper::Keeper;
pub(crate) use server::serve;

use bellrock_api::AddressRange;

use crate::core::{Judgement, Subject};

/// Questions that may wait for the loop; more are refused an answer.
pub(crate) const QUESTIONS: usize = 64;

/// What the loop is asked.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) subject: Subject,
    pub(crate) service_cidrs: Vec<AddressRange>,
    /// `None` while not everything has been read.
    pub(crate) answer: oneshot::Sender<Option<Judgement>>,
}

/// Deletes the webhook's configuration, if it is there: the API server asks nobody any more.
///
/// # Errors
/// When the API server does not let it.
pub(crate) async fn remove(client: Client, name: &str) -> Result<()> {
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client);
    match configurations.delete(name, &DeleteParams::default()).await {
        Ok(_) => tracing::info!(name, "the webhook is removed"),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error).context("delete the webhook's configuration"),
    }
    Ok(())
}

//! The validating webhook for pools and advertisements: served by every replica, its certificate
//! kept in a Secret by the leader.
//!
//! ```text
//! API server --AdmissionReview--> server (TLS) --Question--> driver: Core::judge --> answer
//! leader: certificate -> caBundle of the configuration, then the Secret -> every replica serves it
//! ```
//!
//! Its `failurePolicy` is `Ignore`. Nothing depends on it for safety, objects of ours are made in
//! the same breath as the controller when the chart is installed, and an uninstallation deletes
//! pools when no controller is left to ask.

mod certificate;
mod keeper;
mod server;
mod tls;

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

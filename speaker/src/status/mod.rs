//! What the speaker says of itself: SpeakerStatus, VirtualIP ownership,
//! Events and metrics.

mod metrics;
mod publish;
mod record;
mod view;

pub use publish::publish;
pub use record::Recorder;
pub use view::{View, only_here};

/// Who writes our fields, for server-side apply.
const FIELD_MANAGER: &str = "bellrock-speaker";

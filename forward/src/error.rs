//! What can go wrong with the whole table. What goes wrong with one Service
//! is in the report.

use std::io;

use crate::errno;

/// Why the table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be made.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused, and no Service is the cause.
    #[error("cannot {doing}: {} ({errno}{})", errno::words(*errno), extra(.text.as_deref()))]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// The kernel's error number.
        errno: i32,
        /// The kernel's own words, where it has some.
        text: Option<String>,
    },
    /// The kernel neither confirmed nor refused a batch.
    #[error("the kernel did not answer a batch")]
    NoAnswer,
    /// Others change the ruleset so often that no dump of it was whole.
    #[error("the ruleset changes too often to be read")]
    Restless,
    /// A change was asked for before the first [`sync`](crate::Forwarder::sync).
    #[error("the table was not synchronised yet")]
    NotSynced,
}

impl Error {
    pub(crate) fn kernel(doing: &'static str, error: &io::Error) -> Self {
        Self::Kernel {
            doing,
            errno: error.raw_os_error().unwrap_or_default(),
            text: None,
        }
    }

    /// Whether it says that someone else has changed the table, if it was right
    /// as we left it.
    pub(crate) fn may_be_others_doing(&self) -> bool {
        matches!(self, Self::Kernel { errno, .. } if errno::may_be_others(*errno))
    }
}

fn extra(text: Option<&str>) -> String {
    text.map(|text| format!(": {text}")).unwrap_or_default()
}

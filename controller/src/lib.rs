//! Allocates external addresses to Services of type LoadBalancer.
//!
//! ```text
//! watch (Services, Namespaces, Nodes, pools, L2Advertisements, VirtualIPs)
//!   -> core: Change in, Plan out          pure: the whole decision
//!        |- ipam: the book of addresses   pure: which address
//!        |- placement: nodes              pure: where it should live
//!        '- pools: which are in force     pure
//!   -> write: VirtualIP (create is the lock), Service status, pool status, Events
//! ```
//!
//! [`run`] is the process: it watches, decides and writes until it is told to stop. The rest is
//! public for the simulator, the command line and the tests.
//!
//! Of several controllers one leads ([`lease`]) and writes; the others watch, and wait.
//!
//! Nothing is kept but what the cluster keeps. A restart reads the VirtualIPs and goes on; a
//! controller that is away leaves everything that runs as it is.

#![warn(missing_docs)]

mod args;
pub mod core;
mod driver;
mod election;
mod http;
pub mod ipam;
pub mod lease;
mod metrics;
pub mod placement;
pub mod pools;
mod publish;
mod run;
mod strip;
pub mod view;
mod watch;
pub mod webhook;
mod write;

pub use args::Args;
pub use run::run;

/// Label of the VirtualIPs that the controller made, and deletes when nobody holds them. One
/// without it was made by hand and stays.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY_VALUE: &str = "bellrock";

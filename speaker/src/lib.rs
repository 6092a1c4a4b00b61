//! The speaker: one on every node.
//!
//! It watches Services, EndpointSlices and the objects of Bellrock, decides
//! by pure functions what this node does for each Service ([`plan`]), and
//! applies that: forwarding in the kernel, ownership on the segment, routes
//! to BGP peers.
//!
//! ```text
//! watches -> Cluster (typed snapshot, dirty Services) -> plan_service() -> ServicePlan
//!                                                          |-> apply::forward
//!                                                          |-> apply::l2
//!                                                          |-> apply::bgp
//!                                                          '-> Verdict per address -> status, metrics, `why`
//! ```
//!
//! If the API server is away, the last snapshot stays in force. An object
//! that cannot be used never replaces one that could.

pub mod apply;
mod ask;
pub mod chances;
pub mod cluster;
pub mod convert;
pub mod core;
pub mod health_check;
pub mod history;
pub mod netfilter;
pub mod plan;
pub mod routes;
mod run;
mod secrets;
mod serve;
pub mod silence;
pub mod status;
mod succession;
mod surroundings;
mod timers;
pub mod turn;
mod uninstall;
pub mod watch;

pub use run::{Args, run};
pub use surroundings::KubeProxy;
pub use timers::TimerArgs;

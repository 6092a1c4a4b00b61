//! Service forwarding in one nftables table, written over netlink.
//!
//! A [`Forwarder`] keeps the table `inet bellrock` in step with a list of
//! [`Service`]s: connections to their external addresses and node ports go to
//! their endpoints. It knows nothing of Kubernetes and needs no `nft` binary.
//!
//! ```text
//! Service ──content──▶ entries ──diff──▶ operations ──netlink──▶ kernel
//!  (pure)               (pure)             (pure)       bytes     table
//! ```
//!
//! - The number of rules does not grow with the number of Services: all is in
//!   maps (module `netlink::layout` has the table).
//! - `externalTrafficPolicy: Cluster` reaches any endpoint; the client's
//!   address is kept where the endpoint is on this node. `Local` reaches
//!   endpoints of this node only and drops if there is none; pods and the node
//!   itself reach any. A port without any endpoint is rejected, as is a port
//!   of an external address that no Service has.
//! - Every change keeps every packet whole: what a packet may have looked up
//!   before a change leads somewhere until it has passed.
//! - A restart loses nothing: what is there is read, compared and kept.
//! - What the kernel refuses is refused for the one Service that it is of.
//!
//! The table is IPv4 and IPv6, TCP, UDP and SCTP alike.

mod content;
mod diff;
mod errno;
mod error;
mod family;
mod forwarder;
mod model;
mod netlink;
mod slots;
mod state;
mod table;

pub use error::Error;
pub use forwarder::{Forwarder, Report, SecondChance};
pub use model::{Endpoint, ExternalPolicy, Node, Port, Protocol, Service, ServiceKey};

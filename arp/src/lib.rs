//! The ARP and NDP responder and the layer 2 ownership protocol.
//!
//! Nodes on one segment share addresses that no interface carries. Exactly one
//! of them answers for each, by ARP or, for IPv6, Neighbour Discovery; when it
//! dies, the next claims the address within some tenths of a second. The
//! segment itself is the judge: no lease, no gossip port and no API call is in
//! that path.
//!
//! - [`frame`]: the bytes on the wire, both ways.
//! - [`ownership`]: the pure state machines; [`ownership::Segment`] is one node
//!   on one segment. It is told the time and the frames, and says what to send.
//! - [`Handle`]: those machines on real interfaces, on a thread of their own.
//!
//! This crate knows nothing of Kubernetes: addresses, nodes and their order
//! come in by [`Handle::assign`].

mod config;
mod driver;
pub mod frame;
mod handle;
mod links;
pub mod ownership;
mod time;
mod types;

pub use config::{Config, Error, default_exclusions};
pub use handle::{EventReceiver, Handle};
pub use pnet::util::MacAddr;
pub use time::{Instant, Timers, TimersError};
pub use types::{
    AddressState, Assignment, Cause, Eligibility, Estate, Event, Held, InterfaceState, PeerState,
    Recorded, Snapshot, State,
};

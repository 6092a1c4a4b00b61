//! A BGP-4 speaker that announces routes and imports none.
//!
//! It opens one session to each configured peer, tells it the prefixes that
//! it should route to us, and takes them back. What a peer announces is
//! parsed, checked and counted, and goes nowhere. It knows nothing of
//! Kubernetes.
//!
//! ```text
//!   announce, withdraw                                    octets
//!  ------------------->  driver: one task a peer  <---------------------> peer
//!                          |        |        |
//!                       rib        fsm     message
//!                   (what is sent) (when)  (how it is written)
//! ```
//!
//! - [`message`]: the wire format, both ways. Pure, cannot panic.
//! - [`fsm`]: the state machine of RFC 4271 with all its timers. Pure.
//! - [`pair`]: the two connections of a peer, and which stays. Pure.
//! - [`rib`]: Adj-RIB-Out, packed into as few UPDATEs as possible. Pure.
//! - [`Peer`]: sockets and the clock, on tokio. [`Listener`], if there is one,
//!   hands it the connections that its peer opens.
//!
//! It is not a router: it has no best path and no policy on what it receives. `cargo run -p bellrock-bgp --example announce` shows it at work
//! without anything around it.

mod config;
mod connection;
mod driver;
pub mod fsm;
mod listener;
pub mod message;
pub mod pair;
mod reason;
pub mod rib;
mod socket;
mod status;

pub use config::{Attributes, Error, MAX_PASSWORD, Password, PeerAsn, PeerConfig, Restart};
pub use driver::Peer;
pub use fsm::State;
pub use listener::Listener;
pub use reason::{DownReason, StopReason, TcpFailure};
pub use rib::Refusal;
pub use status::{MessageCounts, PeerStatus};

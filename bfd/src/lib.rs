//! Bidirectional Forwarding Detection: RFC 5880, single hop (RFC 5881) and
//! multihop (RFC 5883).
//!
//! Two systems send each other small packets, some ten times a second; who
//! hears nothing for a while knows that the path has failed, long before a
//! routing protocol would. It knows nothing of routing protocols, nor of
//! Kubernetes.
//!
//! - [`packet`]: the wire format, both ways. Pure, cannot panic.
//! - [`session`]: the machine of one session with all its timers. Pure.
//! - [`Engine`]: all sessions, which datagram is for which. Pure.
//! - [`Handle`]: the engine on real sockets, on a thread of its own.
//!
//! `cargo run -p bellrock-bfd --example watch -- --peer ADDRESS` shows it at
//! work without anything around it.
//!
//! Echo, authentication and Demand mode of our own are not built; the peer is
//! told so in every packet.

mod config;
mod discard;
mod driver;
mod engine;
mod handle;
pub mod packet;
mod random;
pub mod session;
mod status;
mod time;

pub use config::{Hops, Invalid, Path, Role, Settings, Timers};
pub use discard::{Discard, Discards};
pub use engine::{Datagram, Engine, Output, Port};
pub use handle::{Error, EventReceiver, Handle, MAX_SESSIONS};
pub use packet::State;
pub use session::{Change, DownReason, Intervals};
pub use status::{Counters, Event, SessionId, SessionStatus, Snapshot};
pub use time::Instant;

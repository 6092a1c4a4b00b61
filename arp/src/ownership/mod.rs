//! Who holds an address: the pure state machines.
//!
//! [`Segment`] is one node on one segment. It is driven by [`Input`]s and the
//! time, and answers with [`Output`]s; it has no clock, no socket and no
//! randomness.
//!
//! # Terms
//!
//! - *live*: a peer whose authentic frame was heard within the dead time
//!   `misses * hello + margin`, or since which this node itself has executed
//!   fewer than `misses` rounds.
//! - *rank*: this node's place among the nodes heard now: the desired node
//!   first, then the successors, then the others by rendezvous hash.
//! - *epoch*: orders the claims to an address. It starts at the creation time
//!   of the address's object (seconds `<< 20`); a claimant takes the highest
//!   heard or recorded, plus one. Of two claims the higher (epoch, node name)
//!   stands.
//! - *list*: the addresses that a node owns, or is verifying that it still
//!   owns. HELLO carries its digest; SYNC fetches it when the digest is not
//!   what is known.
//!
//! # Each address
//!
//! `docs/l2.md` draws the states and has the whole table; the test
//! `the_state_table_is_this` goes through every cell of it.
//!
//! At start an address is IDLE, and nothing is taken for unowned before the
//! dead time has passed; one that the record gives to this node is in PROBE at
//! once, with the recorded epoch. An address that nobody ever had is left to
//! its desired node for a grace time, if that node is heard.
//!
//! A node that hears nobody keeps answering and announces nothing (DEAF); a
//! planned move leaves no gap (GIVE).
//!
//! Whoever owns an address does not give it back because a node of better rank
//! returns.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod machine;
mod peers;
mod rank;
mod segment;

pub use segment::{AddressView, Input, Output, Segment, SegmentConfig};

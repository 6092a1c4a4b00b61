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
//! ```text
//!              unowned, eligible            (rank-1) * stagger
//!      IDLE ------------------------> WAIT ---------------------> PROBE
//!       ^ ^                            |  ^   a better rank probes  |  |
//!       | '--- claim, answer: noted ---'  '------------------------'  | silent
//!       |                                                              v
//!       '------ higher claim, ineligible, removed, leaving ---------- OWN
//! ```
//!
//! | event \ state | IDLE | WAIT | PROBE | OWN | BLOCKED |
//! |---|---|---|---|---|---|
//! | in no live peer's list, eligible | WAIT `(rank-1) * stagger` | - | - | - | - |
//! | own time | look again | PROBE | next probe; after the last: OWN, CLAIM, announce | announce | PROBE |
//! | higher claim of a live peer | note | IDLE | IDLE | IDLE | IDLE |
//! | lower claim | note | - | - | CLAIM to it, announce | - |
//! | a live peer answers or announces | - | IDLE, look again in 1 s | the same | CLAIM to it, announce | - |
//! | a live peer probes | - | it outranks: start again | it outranks: WAIT | answer, CLAIM to it | - |
//! | a silent peer's station answers | - | - | SYNC to it, one more interval | - | - |
//! | a foreign host has it | report | IDLE, report | first claim: BLOCKED 60 s; takeover: WAIT 1 s, report | defend once in 10 s, report | report a new one |
//! | own loop late, hardware address changed | - | IDLE, look again | start again | PROBE, same epoch | - |
//! | carrier lost | - | IDLE | IDLE | IDLE; carrier back: PROBE, same epoch | IDLE |
//! | ineligible, removed, leaving | - | IDLE | IDLE | RELEASE, IDLE | IDLE |
//! | a client's request | - | - | - | answer | - |
//!
//! At start an address is IDLE, and nothing is taken for unowned before the
//! dead time has passed; one that the record gives to this node is in PROBE at
//! once, with the recorded epoch. An address that nobody ever had is left to
//! its desired node for a grace time, if that node is heard.
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

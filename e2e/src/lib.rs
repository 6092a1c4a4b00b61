//! Labs and end-to-end tests.
//!
//! Without the `lab` feature this crate is only the harness that the protocol
//! crates' own tests use: network namespaces ([`netns`]).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test harness: failing loudly and talking to the terminal are its job"
)]

pub mod frr;
pub mod netns;

//! Labs and end-to-end tests.
//!
//! With the `lab` feature: a whole cluster on real parts ([`lab::Lab`]).
//! Without it only the harness that the protocol crates' own tests use:
//! network namespaces ([`netns`]), routers ([`frr`], [`bird`], [`gobgp`],
//! [`openbgpd`], [`exabgp`]), clients ([`probe`]) and captures ([`capture`]).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test harness: failing loudly and talking to the terminal are its job"
)]

#[cfg(feature = "lab")]
pub mod agent;
#[cfg(feature = "lab")]
pub mod audit;
#[cfg(feature = "lab")]
pub mod bellrock;
#[cfg(feature = "lab")]
pub mod bench;
#[cfg(feature = "lab")]
pub mod bench_forward;
#[cfg(feature = "lab")]
pub mod bench_ipam;
#[cfg(feature = "lab")]
pub mod bench_l2;
pub mod bird;
pub mod capture;
#[cfg(feature = "lab")]
pub mod clab;
#[cfg(feature = "lab")]
pub mod cluster;
#[cfg(feature = "lab")]
mod container;
mod daemon;
#[cfg(feature = "lab")]
pub mod demo;
#[cfg(feature = "lab")]
pub mod echo;
pub mod exabgp;
#[cfg(feature = "lab")]
pub mod fault;
#[cfg(feature = "lab")]
pub mod figures;
pub mod frr;
pub mod gobgp;
#[cfg(feature = "lab")]
pub mod ground;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "lab")]
pub mod metallb;
pub mod metrics;
pub mod netns;
#[cfg(feature = "lab")]
pub mod observe;
pub mod openbgpd;
pub mod parts;
#[cfg(feature = "lab")]
pub mod pki;
#[cfg(feature = "lab")]
pub mod pods;
pub mod probe;
pub mod process;
#[cfg(feature = "lab")]
mod relay;
#[cfg(feature = "lab")]
pub mod suite;
#[cfg(feature = "lab")]
pub mod topology;
#[cfg(feature = "lab")]
mod wiring;

//! The core against a model of the API server: one that keeps versions, refuses what conflicts,
//! may fail before or after a write, and tells the core with a delay.
#![allow(
    clippy::needless_pass_by_value,
    reason = "json! reads better without a & before it"
)]

mod admission;
mod cluster;
mod faults;
mod kubernetes;
mod metrics;
mod reasons;
mod records;
mod requests;
mod reservations;
mod runner;
mod sharing;

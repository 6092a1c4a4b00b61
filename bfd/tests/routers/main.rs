//! The driver in namespaces: against itself, FRR's `bfdd` and BIRD. What is
//! asserted comes from the routers' own words, from Wireshark's decoder and
//! from our status.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests fail loudly, measure time, and print what they measured"
)]

mod hostile;
mod interop;
mod kind;
mod lab;
mod ours;
mod wire;

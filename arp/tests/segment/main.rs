//! The driver in namespaces: nodes on a bridge, a client, cables to pull.
//! What is asserted comes from the client's kernel, from Wireshark's decoder
//! and from what the client gets answered.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail loudly, and these print what they measured"
)]

mod failover;
mod foreign;
mod hostile;
mod interfaces;
mod lab;
mod privileges;
mod wire;

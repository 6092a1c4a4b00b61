//! Our speaker against FRR, in namespaces. What is asserted is what FRR, the
//! kernel and Wireshark's decoder say.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests may panic and measure time"
)]

mod faults;
mod lab;
mod routes;

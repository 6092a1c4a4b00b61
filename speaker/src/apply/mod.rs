//! From plans to the node: forwarding, the segment, BGP peers and what watches them.
//!
//! Each holds what was last applied and sends only what differs.

pub mod bfd;
pub mod bgp;
pub mod forward;
pub mod kernels;
pub mod l2;

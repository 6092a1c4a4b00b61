//! From plans to the node: forwarding, the segment, BGP peers.
//!
//! Each of the three holds what was last applied and sends only what differs.

pub mod bgp;
pub mod forward;
pub mod l2;

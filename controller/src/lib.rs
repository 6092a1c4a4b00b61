//! Allocates external addresses to Services of type LoadBalancer.

pub mod core;
pub mod ipam;
pub mod placement;
pub mod pools;
pub mod view;

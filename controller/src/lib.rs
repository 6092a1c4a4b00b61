//! Allocates external addresses to Services of type LoadBalancer.

pub mod ipam;

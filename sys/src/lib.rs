//! What the standard library and the crates we use do not offer of Linux's
//! sockets: the only `unsafe` code of the workspace.
//!
//! - [`packet`]: frames of one interface, behind a filter in the kernel.
//! - [`tcp`]: signatures and the least TTL of TCP connections.
//! - [`datagram`]: UDP with the TTL and the interface of each datagram.
//! - [`schedule`]: a thread with real-time priority.
//! - [`wait`]: waiting for several sockets, and being woken by a thread.
//! - [`clock`]: the clock that goes on while the machine sleeps.
//! - [`grace`]: waiting until no packet is left that began before.
//! - [`netlink_buffers`]: socket buffers for large netlink batches.

pub mod clock;
pub mod datagram;
pub mod grace;
pub mod netlink_buffers;
mod option;
pub mod packet;
pub mod schedule;
pub mod tcp;
pub mod wait;

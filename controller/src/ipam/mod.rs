//! The allocator: which address a Service gets, and from which pool.
//!
//! Pure: no clock, no API. [`Allocator`] is the book of pools, holders and addresses at rest;
//! [`Allocator::settle`] decides for one [`Request`]; the caller enters the decision into the book
//! and makes it true in the cluster.
//!
//! - Pools are tried by priority (lower first, 0 last), pools meant for some before pools open to
//!   all, then by name; in a pool the lowest free address wins. The same book gives the same
//!   answer.
//! - An address that was released rests for its pool's `reuseDelay`.
//! - Whoever names an address or a pool gets that or nothing, and `serviceAllocation` holds for
//!   them too.
//! - Each family is allocated by itself: the two addresses of a dual-stack Service may come from
//!   different pools.
//! - An address of a node is never handed out, though pools may contain some.
//! - What is held stays (see [`Allocator::settle`]).

mod book;
mod claim;
mod interval;
mod pool;
mod refusal;
mod settle;
mod small;
#[cfg(test)]
mod tests;

pub use book::{Allocator, Holding, Rest, Usage};
pub use claim::{Backend, Claim, Conflict, MAX_TERMS, PortKey, ServiceKey, ServiceName, may_share};
pub use interval::IntervalSet;
pub use pool::{Asker, Family, NotServed, Pool, Scope};
pub use refusal::{MAX_POOLS, Oversize, PassedOver, Refusal};
pub use settle::{Pick, Request, Settlement};
pub use small::{SmallMap, SmallSet};

//! Each router that we can run, through each feature. A table of it is in
//! `docs/bgp-routers.md`; [`table`] checks that it says what was tested here.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic and measure time"
)]

#[macro_use]
mod features;
mod configs;
mod kind;
mod setup;
mod table;
mod weights;

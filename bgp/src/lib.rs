//! Bellrock bgp.

//! Bellrock arp.

//! Bellrock speaker.

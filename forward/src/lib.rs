//! Bellrock forward.

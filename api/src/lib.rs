//! Bellrock vocabulary.

//! Bellrock controller.

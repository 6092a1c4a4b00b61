//! The bellrock program.
fn main() {}

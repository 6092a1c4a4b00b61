//! Our speaker against FRR, in namespaces. What is asserted is what FRR, the
//! kernel and Wireshark's decoder say.

mod faults;
mod lab;
mod routes;

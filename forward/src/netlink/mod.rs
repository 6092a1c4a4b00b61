//! nftables over netlink: bytes ([`wire`]), rule expressions ([`expr`]), the
//! table's fixed part ([`layout`]), messages to the kernel ([`encode`]) and
//! from it ([`decode`]), and the socket ([`socket`]).

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod expr;
pub(crate) mod layout;
pub(crate) mod socket;
pub(crate) mod wire;

#[cfg(test)]
mod oracle;

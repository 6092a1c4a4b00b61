//! nftables over netlink: bytes ([`wire`]), the kernel's numbers ([`abi`]),
//! rule expressions ([`expr`]), the table's sets ([`sets`]) and chains
//! ([`layout`]), messages to the kernel ([`encode`]) and from it ([`decode`]),
//! and the socket ([`socket`]). Beside the table: second
//! chances ([`second`]) and the connection table ([`flows`]).

pub(crate) mod abi;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod expr;
pub(crate) mod flows;
pub(crate) mod layout;
pub(crate) mod second;
pub(crate) mod sets;
pub(crate) mod socket;
pub(crate) mod wire;

#[cfg(test)]
mod oracle;

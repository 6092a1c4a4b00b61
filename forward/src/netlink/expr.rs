//! Rule expressions: the few of nftables' instructions that our rules use,
//! with the registers and the order that `nft` itself would choose, so that
//! it prints the rules back in its own language.

use crate::family::Family;
use crate::netlink::wire::Writer;

/// A register as the kernel numbers them: 1 to 4 are 16 bytes each, 8 to 23
/// the same space in words of 4.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register(u32);

impl Register {
    /// The word at this place, counted from 0; a register of 16 bytes where
    /// one starts there, as the kernel itself names it.
    pub(crate) const fn word(n: u32) -> Self {
        if n.is_multiple_of(4) {
            Self(n / 4 + 1)
        } else {
            Self(n + 8)
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    Priority,
    /// The index of the interface that the packet came in by.
    Iif,
    Nfproto,
    L4proto,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Header {
    Network,
    Transport,
}

/// Keys of the connection-tracking entry.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ct {
    State,
    Status,
    /// The destination as the client wrote it.
    OriginalAddress(Family),
    OriginalPort,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict<'a> {
    Drop,
    Return,
    Goto(&'a str),
}

/// What a lookup does with the element that it finds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    /// Goes on.
    Member,
    /// Ends the rule: the set must not have it.
    Absent,
    /// Puts the element's data into the register.
    Data(Register),
    /// Obeys the element's verdict.
    Verdict,
}

#[derive(Clone, Debug)]
pub(crate) enum Expr<'a> {
    LoadMeta(Meta, Register),
    SetPriority(Register),
    Payload {
        header: Header,
        offset: u32,
        len: u32,
        to: Register,
    },
    LoadCt(Ct, Register),
    /// `register &= mask` on 4 bytes in host order.
    And(Register, u32),
    /// The same on one byte.
    AndByte(Register, u8),
    Equal(Register, Vec<u8>),
    NotEqual(Register, Vec<u8>),
    Lookup {
        set: &'a str,
        key: Register,
        found: Found,
    },
    Random {
        modulus: u32,
        to: Register,
    },
    Jhash {
        from: Register,
        len: u32,
        modulus: u32,
        seed: u32,
        to: Register,
    },
    Dnat {
        family: Family,
        address: Register,
        port: Register,
    },
    Masquerade {
        fully_random: bool,
    },
    /// Sends a copy to the neighbour with this address.
    Dup {
        address: Register,
        device: Register,
    },
    Redirect,
    RejectReset,
    RejectPort,
    Counter,
    Verdict(Verdict<'a>),
}

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

impl Expr<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::LoadMeta(..) | Self::SetPriority(_) => "meta",
            Self::Payload { .. } => "payload",
            Self::LoadCt(..) => "ct",
            Self::And(..) | Self::AndByte(..) => "bitwise",
            Self::Equal(..) | Self::NotEqual(..) => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Jhash { .. } => "hash",
            Self::Dnat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Dup { .. } => "dup",
            Self::Redirect => "redir",
            Self::RejectReset | Self::RejectPort => "reject",
            Self::Counter => "counter",
            Self::Verdict(_) => "immediate",
        }
    }

    /// Writes the expression as one element of a rule's list.
    pub(crate) fn write(&self, w: &mut Writer) {
        let element = w.nest(NFTA_LIST_ELEM);
        w.string(NFTA_EXPR_NAME, self.name());
        let data = w.nest(NFTA_EXPR_DATA);
        self.write_data(w);
        w.end(data);
        w.end(element);
    }

    fn write_data(&self, w: &mut Writer) {
        // Attribute numbers are those of the kernel's
        // include/uapi/linux/netfilter/nf_tables.h, in its order.
        match self {
            Self::LoadMeta(key, to) => {
                w.be32(2, meta(*key));
                w.be32(1, to.0);
            }
            Self::SetPriority(from) => {
                w.be32(2, meta(Meta::Priority));
                w.be32(3, from.0);
            }
            Self::Payload {
                header,
                offset,
                len,
                to,
            } => {
                w.be32(1, to.0);
                w.be32(
                    2,
                    match header {
                        Header::Network => 1,
                        Header::Transport => 2,
                    },
                );
                w.be32(3, *offset);
                w.be32(4, *len);
            }
            Self::LoadCt(key, to) => {
                let (key, original) = match key {
                    Ct::State => (0, false),
                    Ct::Status => (2, false),
                    Ct::OriginalPort => (12, true),
                    Ct::OriginalAddress(Family::V4) => (20, true),
                    Ct::OriginalAddress(Family::V6) => (22, true),
                };
                w.be32(1, to.0);
                w.be32(2, key);
                if original {
                    w.raw(3, &[0]);
                }
            }
            Self::And(register, mask) => {
                w.be32(1, register.0);
                w.be32(2, register.0);
                w.be32(3, 4);
                write_value(w, 4, &mask.to_ne_bytes());
                write_value(w, 5, &[0; 4]);
            }
            Self::AndByte(register, mask) => {
                w.be32(1, register.0);
                w.be32(2, register.0);
                w.be32(3, 1);
                write_value(w, 4, &[*mask]);
                write_value(w, 5, &[0]);
            }
            Self::Equal(register, value) => {
                w.be32(1, register.0);
                w.be32(2, 0);
                write_value(w, 3, value);
            }
            Self::NotEqual(register, value) => {
                w.be32(1, register.0);
                w.be32(2, 1);
                write_value(w, 3, value);
            }
            Self::Lookup { set, key, found } => {
                w.string(1, set);
                w.be32(2, key.0);
                match found {
                    Found::Member => {}
                    Found::Absent => w.be32(5, 1),
                    Found::Data(to) => w.be32(3, to.0),
                    Found::Verdict => w.be32(3, 0),
                }
            }
            Self::Random { modulus, to } => {
                w.be32(1, to.0);
                w.be32(2, *modulus);
                w.be32(3, 1);
            }
            Self::Jhash {
                from,
                len,
                modulus,
                seed,
                to,
            } => {
                w.be32(1, from.0);
                w.be32(2, to.0);
                w.be32(3, *len);
                w.be32(4, *modulus);
                w.be32(5, *seed);
                w.be32(7, 0);
            }
            Self::Dnat {
                family,
                address,
                port,
            } => {
                w.be32(1, 1);
                w.be32(2, u32::from(family.nfproto()));
                w.be32(3, address.0);
                w.be32(5, port.0);
            }
            Self::Masquerade { fully_random } => {
                if *fully_random {
                    w.be32(1, 0x10);
                }
            }
            Self::Dup { address, device } => {
                w.be32(1, address.0);
                w.be32(2, device.0);
            }
            Self::RejectReset => w.be32(1, 1),
            Self::RejectPort => {
                w.be32(1, 2);
                w.raw(2, &[1]);
            }
            Self::Redirect | Self::Counter => {}
            Self::Verdict(verdict) => {
                w.be32(1, 0);
                write_verdict(w, 2, *verdict);
            }
        }
    }
}

fn meta(key: Meta) -> u32 {
    match key {
        Meta::Priority => 2,
        Meta::Iif => 4,
        Meta::Nfproto => 15,
        Meta::L4proto => 16,
    }
}

fn write_value(w: &mut Writer, kind: u16, value: &[u8]) {
    let nest = w.nest(kind);
    w.raw(NFTA_DATA_VALUE, value);
    w.end(nest);
}

/// A verdict as data, here and in elements of verdict maps.
pub(crate) fn write_verdict(w: &mut Writer, kind: u16, verdict: Verdict<'_>) {
    let data = w.nest(kind);
    let nest = w.nest(NFTA_DATA_VERDICT);
    let code: i32 = match verdict {
        Verdict::Drop => 0,
        Verdict::Return => -5,
        Verdict::Goto(_) => -4,
    };
    w.raw(NFTA_VERDICT_CODE, &code.to_be_bytes());
    if let Verdict::Goto(chain) = verdict {
        w.string(NFTA_VERDICT_CHAIN, chain);
    }
    w.end(nest);
    w.end(data);
}

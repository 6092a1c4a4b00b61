//! Numbers of the kernel's interface (include/uapi/linux/netfilter), as far as
//! messages have them; those of expressions are in [`super::expr`].

/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYSTEM: u16 = 10;
pub(crate) const BATCH_BEGIN: u16 = 0x10;
pub(crate) const BATCH_END: u16 = 0x11;

/// Message types of the nftables subsystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    GetGen = 16,
}

impl Kind {
    pub(crate) const fn number(self) -> u16 {
        SUBSYSTEM << 8 | self as u16
    }
}

/// Message types of the connection-tracking subsystem,
/// `NFNL_SUBSYS_CTNETLINK`.
pub(crate) const FLOW_GET: u16 = 1 << 8 | 1;
pub(crate) const FLOW_DELETE: u16 = 1 << 8 | 2;

pub(crate) const ATTR_TABLE_NAME: u16 = 1;
pub(crate) const ATTR_TABLE_USERDATA: u16 = 6;
pub(crate) const ATTR_CHAIN_TABLE: u16 = 1;
pub(crate) const ATTR_CHAIN_NAME: u16 = 3;
pub(crate) const ATTR_CHAIN_HOOK: u16 = 4;
pub(crate) const ATTR_CHAIN_POLICY: u16 = 5;
pub(crate) const ATTR_CHAIN_TYPE: u16 = 7;
pub(crate) const ATTR_RULE_TABLE: u16 = 1;
pub(crate) const ATTR_RULE_CHAIN: u16 = 2;
pub(crate) const ATTR_RULE_EXPRESSIONS: u16 = 4;
pub(crate) const ATTR_SET_TABLE: u16 = 1;
pub(crate) const ATTR_SET_NAME: u16 = 2;
pub(crate) const ATTR_SET_FLAGS: u16 = 3;
pub(crate) const ATTR_SET_KEY_TYPE: u16 = 4;
pub(crate) const ATTR_SET_KEY_LEN: u16 = 5;
pub(crate) const ATTR_SET_DATA_TYPE: u16 = 6;
pub(crate) const ATTR_SET_DATA_LEN: u16 = 7;
pub(crate) const ATTR_SET_DESC: u16 = 9;
pub(crate) const ATTR_SET_ID: u16 = 10;
pub(crate) const ATTR_SET_COUNT: u16 = 20;
pub(crate) const ATTR_ELEM_KEY: u16 = 1;
pub(crate) const ATTR_ELEM_DATA: u16 = 2;
pub(crate) const ATTR_ELEM_FLAGS: u16 = 3;
pub(crate) const ATTR_ELEM_TIMEOUT: u16 = 4;
pub(crate) const ATTR_ELEM_KEY_END: u16 = 10;
pub(crate) const ATTR_LIST_TABLE: u16 = 1;
pub(crate) const ATTR_LIST_SET: u16 = 2;
pub(crate) const ATTR_LIST_ELEMENTS: u16 = 3;
pub(crate) const LIST_ELEM: u16 = 1;
pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const INTERVAL_END: u32 = 1;
pub(crate) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

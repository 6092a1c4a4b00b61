//! Error numbers of the kernel, in words.

pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EINTR: i32 = 4;
pub(crate) const E2BIG: i32 = 7;
pub(crate) const EAGAIN: i32 = 11;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const EACCES: i32 = 13;
pub(crate) const EBUSY: i32 = 16;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENFILE: i32 = 23;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EMLINK: i32 = 31;
pub(crate) const ERANGE: i32 = 34;
pub(crate) const ENOTEMPTY: i32 = 39;
pub(crate) const EOVERFLOW: i32 = 75;
pub(crate) const EMSGSIZE: i32 = 90;
pub(crate) const EPROTONOSUPPORT: i32 = 93;
pub(crate) const EOPNOTSUPP: i32 = 95;
pub(crate) const EAFNOSUPPORT: i32 = 97;
pub(crate) const ENOBUFS: i32 = 105;

/// What the number means when nftables says it, and what to do.
pub(crate) fn words(errno: i32) -> &'static str {
    match errno {
        EPERM | EACCES => {
            "not permitted: nftables needs CAP_NET_ADMIN, and nobody else may own the table"
        }
        ENOENT => {
            "something that the change builds on is not there: the table was changed by someone else, or the kernel lacks an nftables module"
        }
        EAGAIN | EINTR => "interrupted by another change",
        ENOMEM => "the kernel has no memory left for it",
        EBUSY => "it is in use: something that is not ours leads to it",
        EEXIST => "it is there already, and leads elsewhere",
        ENOTEMPTY => "it overlaps with a range that is there already",
        EINVAL => "the kernel does not accept a value or an nftables feature",
        ENFILE | ENOSPC => "the set is full",
        EMLINK => "too many chains lead to each other",
        ERANGE | EOVERFLOW | E2BIG => "a value is larger than the kernel accepts",
        EMSGSIZE => {
            "the batch is larger than the socket's send buffer: raise net.core.wmem_max, or grant CAP_NET_ADMIN"
        }
        EPROTONOSUPPORT | EAFNOSUPPORT | EOPNOTSUPP => {
            "the kernel lacks nftables, or one of its modules nft_nat, nft_masq, nft_redir, nft_numgen, nft_hash, nft_ct, nft_reject_inet"
        }
        ENOBUFS => "the socket's receive buffer overflowed, or the kernel has no memory for one",
        _ => "the kernel refused it",
    }
}

/// Whether the number says that someone else has changed the table, if it was
/// right as we left it.
pub(crate) fn may_be_others(errno: i32) -> bool {
    matches!(errno, ENOENT | EEXIST | EBUSY | ENOTEMPTY)
}

/// Whether the number can come from a table that is not as we left it.
pub(crate) fn may_be_stale(errno: i32) -> bool {
    may_be_others(errno) || errno == ENOBUFS
}

/// Whether the number is about the process or the machine: no Service is to
/// blame, whatever it asks for.
pub(crate) fn is_of_no_service(errno: i32) -> bool {
    matches!(
        errno,
        EPERM | EACCES | EINTR | EAGAIN | ENOMEM | ENOBUFS | EMSGSIZE
    )
}

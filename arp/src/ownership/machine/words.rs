//! The vocabulary of the state table: phases, triggers, actions.

use crate::MacAddr;
use crate::time::Instant;
use crate::types::Cause;
use std::time::Duration;

/// The state, with what only that state has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ownership) enum Phase {
    /// Silent. Looked at again at `retry`.
    Idle { retry: Option<Instant> },
    /// Silent; probes at `until` unless somebody claims.
    Wait { until: Instant, delay: Duration },
    /// Silent; `sent` probes are out; the next step is due at `due`, or a
    /// probe is queued. `keep`: goes on with its old epoch. `asked`: a silent
    /// owner was given the chance to speak.
    Probe {
        sent: u8,
        due: Option<Instant>,
        keep: bool,
        asked: bool,
    },
    /// Answers; `announced` announcements are out; the next is due at `due`,
    /// or queued.
    Own {
        since: Instant,
        announced: usize,
        due: Option<Instant>,
    },
    /// Answers, never announces: this node hears no other.
    Deaf,
    /// Answers, and hands over to `to`: asks it again at `due`, after twice as
    /// long as the last time, until `until`. `hard`: must let go then. `since`
    /// and `announced` as in OWN, where it came from.
    Give {
        to: MacAddr,
        due: Instant,
        every: Duration,
        until: Instant,
        hard: bool,
        since: Instant,
        announced: usize,
    },
    /// A foreign host has it; tried again at `retry`.
    Blocked { retry: Instant },
}

/// What happens to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ownership) enum Trigger {
    /// No live peer has it in its list, and this node may hold it.
    Unowned { delay: Duration, cause: Cause },
    /// The time in the phase has come. `hears`: nothing says that this node
    /// hears nobody.
    Due { hears: bool },
    /// The queued probe or announcement was sent.
    Transmitted,
    /// A live peer holds it, with a claim above or below this node's.
    Claim {
        higher: bool,
        node: String,
        mac: MacAddr,
    },
    /// A peer held it too, and gives it up.
    PeerReleased,
    /// Peers that were silent are heard again.
    Healed,
    /// A live peer's hardware address answered or announced.
    PeerAnswer { mac: MacAddr },
    /// A live peer probes.
    PeerProbe { outranks: bool, mac: MacAddr },
    /// A silent peer's hardware address answered or announced.
    SilentAnswer { mac: MacAddr },
    /// This node hears no other any more.
    Deaf,
    /// It does again.
    Hearing,
    /// A live peer is to have it. `hard`: this node must let go soon.
    Give {
        to: MacAddr,
        hard: bool,
        cause: Cause,
    },
    /// Nobody takes it, and this node may keep it.
    Keep,
    /// The live owner hands it over.
    HandOver { mac: MacAddr },
    /// A host that is none of ours has the address.
    Foreign { mac: MacAddr },
    /// This node's loop stood still, or its hardware address changed.
    Doubt { cause: Cause },
    /// The carrier went: nothing is heard, nothing can be said.
    LinkDown,
    /// This node held it when it stopped, or when the carrier went.
    Resume { cause: Cause },
    /// The process before this one held it a moment ago, and left it to this one.
    GoOn { epoch: u64 },
    /// This node must not hold it.
    Stop { cause: Cause },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ownership) enum Action {
    /// Queue the probe or announcement that the state calls for.
    Transmit,
    /// Tell all peers of the claim.
    Claim,
    /// Tell one peer of the claim.
    ClaimTo(MacAddr),
    /// Ask a peer to take it.
    HandOver(MacAddr),
    /// The peer that was asked does not take it: ask another, or end it.
    GiveOn,
    /// Tell all peers that the claim is given up.
    Release { epoch: u64, removed: bool },
    /// Ask a silent peer whether it lives.
    Ask(MacAddr),
    /// See whether it is unowned.
    Reconsider,
    /// This node answers from now on.
    Owned {
        cause: Cause,
        /// Who was known to have it; empty: nobody.
        from: String,
    },
    /// This node answers no more.
    Lost(Cause, Option<String>),
    /// A foreign host keeps this node from claiming.
    Blocked(MacAddr),
    /// It does no more.
    Unblocked,
    /// A foreign host uses the address.
    ForeignClaim(MacAddr),
}

//! Who answers a call: one, any of several, nobody.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Result;
use bellrock_e2e::netns::Netns;
use bellrock_forward::Protocol;

use super::lab::{Answer, PATIENCE, SILENCE, call};

/// The protocols with sockets.
pub(crate) const L4: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

pub(crate) fn ask(from: &Netns, protocol: Protocol, to: SocketAddr) -> Result<Answer> {
    from.run(|| call(protocol, to, PATIENCE)).unwrap()
}

/// All answers that turn up, until those expected have.
pub(crate) fn answers(from: &Netns, protocol: Protocol, to: SocketAddr, expected: &[Answer]) {
    let expected: BTreeSet<Answer> = expected.iter().cloned().collect();
    let mut seen = BTreeSet::new();
    // With two endpoints, 40 calls that all reach one: once in 10^11.
    for _ in 0..40 {
        seen.insert(ask(from, protocol, to).unwrap());
        if seen == expected && seen.len() > 1 {
            break;
        }
    }
    assert_eq!(seen, expected, "{protocol} to {to}");
}

/// That nobody answers, and nobody refuses.
pub(crate) fn silence(from: &Netns, protocol: Protocol, to: SocketAddr) {
    let error = from
        .run(|| call(protocol, to, SILENCE))
        .unwrap()
        .unwrap_err();
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    assert!(
        matches!(
            kind,
            Some(std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock)
        ),
        "{protocol} to {to}: {error}"
    );
}

/// That the connection is refused: a reset, or port unreachable. A datagram
/// of the node itself is refused before it leaves the system call.
pub(crate) fn refused(from: &Netns, protocol: Protocol, to: SocketAddr) {
    let error = ask(from, protocol, to).unwrap_err();
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    assert!(
        matches!(
            kind,
            Some(std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::PermissionDenied)
        ),
        "{protocol} to {to}: {error}"
    );
}

//! UDP entries of the kernel's connection table, over `ctnetlink`: a dump
//! that the kernel filters, and deletions.
//!
//! ```text
//! entry      original: client -> front      reply: endpoint -> client (or node)
//! ```
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;

use crate::content::Front;
use crate::family::{Family, push_address};
use crate::model::Protocol;
use crate::netlink::abi::FLOW_DELETE;
use crate::netlink::encode::Batch;
use crate::netlink::wire::{Attributes, Message, NLM_F_ACK, NLM_F_REQUEST, Writer};

// From include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE: u16 = 2;
const PROTO_DESTINATION: u16 = 3;

/// Attributes of addresses: source and destination.
const fn addresses(family: Family) -> [u16; 2] {
    match family {
        Family::V4 => [1, 2],
        Family::V6 => [3, 4],
    }
}

/// What identifies an entry to the kernel, as it said it itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    family: Family,
    original: Vec<u8>,
    id: Vec<u8>,
    zone: Vec<u8>,
}

/// An entry of the connection table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// What the client wrote to.
    pub(crate) front: Front,
    /// Who answers.
    pub(crate) end: (IpAddr, u16),
    pub(crate) id: Id,
}

/// Asks for UDP entries only, those to one front's port if it is given, and of
/// IPv4 those to its address: by an IPv6 address the kernel passes all entries
/// but those asked for (seen with Linux 6.18). Kernels before 5.8 heed none of
/// it. So who reads looks again.
pub(crate) fn filter(w: &mut Writer, front: Option<&Front>) {
    const DESTINATION: u32 = 1 << 1;
    const NUMBER: u32 = 1 << 3;
    const DESTINATION_PORT: u32 = 1 << 5;
    let mut fields = NUMBER;
    let tuple = w.nest(TUPLE_ORIGINAL);
    if let Some(front) = front.filter(|front| front.address.is_ipv4()) {
        fields |= DESTINATION;
        let [_, destination] = addresses(Family::V4);
        let ip = w.nest(TUPLE_IP);
        w.with(destination, |bytes| push_address(bytes, front.address));
        w.end(ip);
    }
    let proto = w.nest(TUPLE_PROTO);
    w.raw(PROTO_NUMBER, &[Protocol::Udp.number()]);
    if let Some(front) = front {
        fields |= DESTINATION_PORT;
        w.raw(PROTO_DESTINATION, &front.port.to_be_bytes());
    }
    w.end(proto);
    w.end(tuple);
    let filter = w.nest(FILTER);
    w.raw(FILTER_ORIGINAL, &fields.to_ne_bytes());
    w.end(filter);
}

/// Reads an entry; none if it is not of UDP.
pub(crate) fn read(message: &Message<'_>) -> Option<Flow> {
    let attributes = message.attributes();
    let family = match message.payload.first()? {
        2 => Family::V4,
        10 => Family::V6,
        _ => return None,
    };
    let original = attributes.get(TUPLE_ORIGINAL)?;
    let [source, destination] = addresses(family);
    let (to, port) = half(family, original, destination, PROTO_DESTINATION)?;
    let end = half(family, attributes.get(TUPLE_REPLY)?, source, PROTO_SOURCE)?;
    Some(Flow {
        front: Front {
            address: to,
            protocol: Protocol::Udp,
            port,
        },
        end,
        id: Id {
            family,
            original: original.to_vec(),
            id: attributes.get(ID)?.to_vec(),
            zone: attributes.get(ZONE).unwrap_or_default().to_vec(),
        },
    })
}

/// An address and port of a tuple of UDP.
fn half(family: Family, tuple: &[u8], address: u16, port: u16) -> Option<(IpAddr, u16)> {
    let tuple = Attributes(tuple);
    let proto = tuple.nested(TUPLE_PROTO)?;
    if proto.get(PROTO_NUMBER)? != [Protocol::Udp.number()] {
        return None;
    }
    let port = u16::from_be_bytes(proto.get(port)?.try_into().ok()?);
    let address = family.address(tuple.nested(TUPLE_IP)?.get(address)?)?;
    Some((address, port))
}

/// Deletions, each on its own: one that fails stops no other. The entry's id
/// saves one that was made in its place.
pub(crate) fn delete(flows: &[Id]) -> Batch {
    let mut w = Writer::with_capacity(flows.len() * 128);
    let mut sequence = 0;
    for (left, flow) in (0..flows.len()).rev().zip(flows) {
        sequence += 1;
        let ack = if left == 0 { NLM_F_ACK } else { 0 };
        let m = w.message(
            FLOW_DELETE,
            NLM_F_REQUEST | ack,
            sequence,
            flow.family.nfproto(),
            0,
        );
        w.nested(TUPLE_ORIGINAL, &flow.original);
        w.raw(ID, &flow.id);
        if !flow.zone.is_empty() {
            w.raw(ZONE, &flow.zone);
        }
        w.end_message(m);
    }
    Batch {
        bytes: w.into_bytes(),
        acknowledged: sequence,
        added: 0,
        deleted: 0,
        marks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::Messages;
    use proptest::prelude::*;

    fn tuple(w: &mut Writer, kind: u16, from: [u8; 4], to: [u8; 4], ports: [u16; 2], number: u8) {
        let tuple = w.nest(kind);
        let ip = w.nest(TUPLE_IP);
        w.raw(1, &from);
        w.raw(2, &to);
        w.end(ip);
        let proto = w.nest(TUPLE_PROTO);
        w.raw(PROTO_NUMBER, &[number]);
        w.raw(PROTO_SOURCE, &ports[0].to_be_bytes());
        w.raw(PROTO_DESTINATION, &ports[1].to_be_bytes());
        w.end(proto);
        w.end(tuple);
    }

    fn entry(number: u8) -> Vec<u8> {
        let (client, front, pod) = ([192, 0, 2, 1], [203, 0, 113, 1], [10, 0, 0, 1]);
        let mut w = Writer::default();
        let m = w.message(FLOW_DELETE & 0xff00, 0, 1, 2, 0);
        tuple(&mut w, TUPLE_ORIGINAL, client, front, [4000, 53], number);
        tuple(&mut w, TUPLE_REPLY, pod, client, [5353, 4000], number);
        w.be32(ID, 7);
        w.end_message(m);
        w.into_bytes()
    }

    #[test]
    fn an_entry_says_what_was_dialled_and_who_answers() {
        let bytes = entry(17);
        let flow = read(&Messages(&bytes).next().unwrap()).unwrap();
        assert_eq!(flow.front.to_string(), "203.0.113.1 port 53/udp");
        assert_eq!(flow.end, ([10, 0, 0, 1].into(), 5353));
        let bytes = entry(6);
        assert_eq!(read(&Messages(&bytes).next().unwrap()), None, "not of UDP");
    }

    #[test]
    fn a_deletion_names_the_entry_as_the_kernel_did_and_the_last_is_acknowledged() {
        let bytes = entry(17);
        let message = Messages(&bytes).next().unwrap();
        let id = read(&message).unwrap().id;
        let batch = delete(&[id.clone(), id]);
        let all: Vec<_> = Messages(&batch.bytes).collect();
        assert_eq!(all.len(), 2);
        for (m, ack) in all.iter().zip([0, NLM_F_ACK]) {
            assert_eq!((m.kind, m.flags), (FLOW_DELETE, NLM_F_REQUEST | ack));
            for kind in [TUPLE_ORIGINAL, ID] {
                assert_eq!(m.attributes().get(kind), message.attributes().get(kind));
            }
            assert_eq!(m.attributes().get(TUPLE_REPLY), None);
        }
        assert_eq!(all.last().map(|m| m.sequence), Some(batch.acknowledged));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            for m in Messages(&bytes) {
                let _ = read(&m);
            }
        }
    }
}

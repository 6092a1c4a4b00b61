//! Netlink bytes, written and read.
//!
//! ```text
//! message    length u32 · type u16 · flags u16 · sequence u32 · port u32   (host order)
//! nfgenmsg   family u8 · version u8 · resource u16 (big-endian)
//! attribute  length u16 · type u16 (host order) · payload · padding to 4
//! ```
//!
//! The writer goes straight into one buffer: a generic encoder that builds a
//! tree first took a fifth of a full synchronisation.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

/// Bytes of a message header.
pub(crate) const HEADER: usize = 16;
/// Bytes of `nfgenmsg`.
pub(crate) const NFGEN: usize = 4;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// An open message or nest: where its length will be written.
#[derive(Debug)]
#[must_use]
pub(crate) struct Open(usize);

/// Writes messages one after the other.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Starts a message with its `nfgenmsg`.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
    ) -> Open {
        let open = Open(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        open
    }

    #[allow(
        clippy::needless_pass_by_value,
        reason = "an open message is ended once"
    )]
    pub(crate) fn end_message(&mut self, open: Open) {
        let length = u32::try_from(self.bytes.len() - open.0).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(open.0..open.0 + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Sets the flags of the message that starts at an offset.
    pub(crate) fn set_flags(&mut self, message: usize, flags: u16) {
        if let Some(place) = self.bytes.get_mut(message + 6..message + 8) {
            place.copy_from_slice(&flags.to_ne_bytes());
        }
    }

    /// Starts an attribute that holds attributes. Its payload must stay below
    /// 64 KiB.
    pub(crate) fn nest(&mut self, kind: u16) -> Open {
        self.open(kind | NLA_F_NESTED)
    }

    fn open(&mut self, kind: u16) -> Open {
        let open = Open(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        open
    }

    #[allow(clippy::needless_pass_by_value, reason = "an open nest is ended once")]
    pub(crate) fn end(&mut self, open: Open) {
        let length = self.bytes.len() - open.0;
        debug_assert!(
            length <= usize::from(u16::MAX),
            "attribute of {length} bytes"
        );
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(open.0..open.0 + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    pub(crate) fn raw(&mut self, kind: u16, payload: &[u8]) {
        self.with(kind, |bytes| bytes.extend_from_slice(payload));
    }

    /// An attribute that holds attributes, which are bytes already.
    pub(crate) fn nested(&mut self, kind: u16, attributes: &[u8]) {
        self.raw(kind | NLA_F_NESTED, attributes);
    }

    /// An attribute whose payload `write` appends.
    pub(crate) fn with(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let open = self.open(kind);
        write(&mut self.bytes);
        self.end(open);
    }

    /// A string with its terminating zero.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        self.with(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        });
    }

    /// A number in network byte order, as nftables wants them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// All of it after the header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after `nfgenmsg`.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(NFGEN..).unwrap_or_default())
    }
}

/// The messages of a datagram; ends at the first that is cut short.
#[derive(Clone, Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, _, _, _, _] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([t0, t1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    }
}

/// The attributes of a message or nest; ends at the first that is cut short.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of a kind.
    pub(crate) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone()
            .find(|(k, _)| *k == kind)
            .map(|(_, payload)| payload)
    }

    pub(crate) fn nested(&self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub(crate) fn string(&self, kind: u16) -> Option<&'a str> {
        string(self.get(kind)?)
    }

    pub(crate) fn be32(&self, kind: u16) -> Option<u32> {
        self.get(kind)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_be_bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let [l0, l1, k0, k1] = *self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, payload))
    }
}

/// A string up to its terminating zero.
pub(crate) fn string(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|b| *b == 0).next()?).ok()
}

/// Whether every attribute of `ours` is in `theirs` too, nests compared
/// likewise: the kernel adds attributes to what it was given, it drops none.
pub(crate) fn contained(ours: &[u8], theirs: &[u8]) -> bool {
    Attributes(ours).enumerate().all(|(at, (kind, payload))| {
        // In a list all attributes have one kind: the third is compared with
        // the third.
        let before = Attributes(ours)
            .take(at)
            .filter(|(k, _)| *k == kind)
            .count();
        let found = Attributes(theirs).filter(|(k, _)| *k == kind).nth(before);
        found.is_some_and(|(_, p)| p == payload || (is_nest(payload) && contained(payload, p)))
    })
}

/// Whether the bytes are a sequence of whole attributes.
fn is_nest(bytes: &[u8]) -> bool {
    let mut rest = Attributes(bytes);
    while rest.next().is_some() {}
    rest.0.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::default();
        let message = w.message(0xa0c, NLM_F_REQUEST, 7, 1, 10);
        w.string(1, "bellrock");
        let nest = w.nest(3);
        w.be32(2, 0x0102_0304);
        w.raw(5, &[9]);
        w.end(nest);
        w.end_message(message);
        let bytes = w.into_bytes();

        let mut messages = Messages(&bytes);
        let m = messages.next().unwrap();
        assert!(messages.next().is_none());
        assert_eq!((m.kind, m.flags, m.sequence), (0xa0c, NLM_F_REQUEST, 7));
        assert_eq!(m.payload.get(..NFGEN), Some([1, 0, 0, 10].as_slice()));
        assert_eq!(m.attributes().string(1), Some("bellrock"));
        let nest = m.attributes().nested(3).unwrap();
        assert_eq!(nest.be32(2), Some(0x0102_0304));
        assert_eq!(nest.get(5), Some([9].as_slice()));
        assert_eq!(nest.get(6), None);
    }

    #[test]
    fn the_kernel_may_add_attributes_but_not_change_or_drop_one() {
        let tree = |number: u32, extra: bool| {
            let mut w = Writer::default();
            w.string(1, "lookup");
            let nest = w.nest(2);
            w.be32(1, number);
            if extra {
                w.be32(9, 0);
            }
            w.end(nest);
            w.into_bytes()
        };
        assert!(contained(&tree(1, false), &tree(1, true)));
        assert!(!contained(&tree(1, true), &tree(1, false)));
        assert!(!contained(&tree(1, false), &tree(2, true)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            for m in Messages(&bytes) {
                for (_, payload) in m.attributes() {
                    let _ = Attributes(payload).count();
                }
            }
            let _ = contained(&bytes, &bytes);
        }
    }
}

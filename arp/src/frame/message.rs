//! The frames among nodes; the format is in the module above.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ring::{digest, hmac};

use super::{ENTRIES, Ethernet, FrameError, Nonce};
use crate::MacAddr;

const VERSION: u8 = 1;
const TAG: usize = 16;
const DEAF: u8 = 0x01;
const LEAVING: u8 = 0x02;
const REMOVED: u8 = 0x01;

/// What makes a frame ours: the cluster's id and the shared key.
#[derive(Clone)]
pub struct Credentials {
    cluster: [u8; 8],
    key: hmac::Key,
}

impl Credentials {
    /// From the cluster's name and the secret key.
    pub fn new(cluster: &str, key: &[u8]) -> Self {
        Self {
            cluster: first(digest::digest(&digest::SHA256, cluster.as_bytes()).as_ref()),
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// By what an interface knows its own probes for `address` again (RFC 7527
    /// section 4.1): none that a host without the key can foresee.
    pub fn nonce(&self, mac: MacAddr, incarnation: u64, address: Ipv6Addr) -> Nonce {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"nonce");
        context.update(&mac.octets());
        context.update(&incarnation.to_be_bytes());
        context.update(&address.octets());
        first(context.sign().as_ref())
    }

    fn tag(&self, source: MacAddr, bytes: &[u8]) -> [u8; TAG] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&source.octets());
        context.update(bytes);
        first(context.sign().as_ref())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// An address and the epoch of a claim to it.
pub type Entry = (IpAddr, u64);

/// The part that an entry has in the digest of a list. A list's digest is the
/// exclusive or of its entries', so that a change costs the same however long
/// the list is.
pub fn entry_digest((address, epoch): Entry) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&mapped(address).octets());
    context.update(&epoch.to_be_bytes());
    u64::from_be_bytes(first(context.finish().as_ref()))
}

/// A frame among nodes, authentic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub node: String,
    /// Grows with each start of its process.
    pub incarnation: u64,
    /// Grows with each frame of the incarnation.
    pub seq: u64,
    /// What is said.
    pub body: Body,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// "I live, and this is the digest of what I hold."
    Hello {
        /// Hears nobody.
        deaf: bool,
        /// Is about to go, and answers for nothing any more.
        leaving: bool,
        /// How many addresses it holds.
        count: u32,
        /// The exclusive or of their [`entry_digest`]s.
        digest: u64,
    },
    /// "I hold these now."
    Claim(Vec<Entry>),
    /// "I hold these no more."
    Release {
        /// Because the address is gone: others should look twice before they
        /// claim it.
        removed: bool,
        /// The claims that were given up.
        entries: Vec<Entry>,
    },
    /// "Tell me what you hold."
    Sync,
    /// "This is all that I hold from `from` to `to`."
    SyncAnswer {
        /// First address of the range.
        from: IpAddr,
        /// Last address of the range.
        to: IpAddr,
        /// Everything held in it.
        entries: Vec<Entry>,
    },
    /// "Take these: I hold them and want to give them to you."
    Handover(Vec<Entry>),
    /// "You speak as an earlier life of yourself than the one I know."
    Stale {
        /// The incarnation of that one.
        known: u64,
    },
}

impl Body {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Claim(_) => 2,
            Self::Release { .. } => 3,
            Self::Sync => 4,
            Self::SyncAnswer { .. } => 5,
            Self::Stale { .. } => 6,
            Self::Handover(_) => 7,
        }
    }

    fn flags(&self) -> u8 {
        match self {
            Self::Hello { deaf, leaving, .. } => {
                (if *deaf { DEAF } else { 0 }) | (if *leaving { LEAVING } else { 0 })
            }
            Self::Release { removed, .. } => {
                if *removed {
                    REMOVED
                } else {
                    0
                }
            }
            Self::Claim(_)
            | Self::Handover(_)
            | Self::Sync
            | Self::SyncAnswer { .. }
            | Self::Stale { .. } => 0,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { count, digest, .. } => {
                out.extend(count.to_be_bytes());
                out.extend(digest.to_be_bytes());
            }
            Self::Claim(entries) | Self::Handover(entries) | Self::Release { entries, .. } => {
                encode_entries(entries, out);
            }
            Self::Sync => {}
            Self::Stale { known } => out.extend(known.to_be_bytes()),
            Self::SyncAnswer { from, to, entries } => {
                out.extend(mapped(*from).octets());
                out.extend(mapped(*to).octets());
                encode_entries(entries, out);
            }
        }
    }

    fn decode(kind: u8, flags: u8, body: &[u8]) -> Result<Self, FrameError> {
        let mut body = Reader(body);
        let decoded = match kind {
            1 => Self::Hello {
                deaf: flags & DEAF != 0,
                leaving: flags & LEAVING != 0,
                count: u32::from_be_bytes(body.array()?),
                digest: u64::from_be_bytes(body.array()?),
            },
            2 => Self::Claim(body.entries()?),
            3 => Self::Release {
                removed: flags & REMOVED != 0,
                entries: body.entries()?,
            },
            4 => Self::Sync,
            5 => Self::SyncAnswer {
                from: body.address()?,
                to: body.address()?,
                entries: body.entries()?,
            },
            6 => Self::Stale {
                known: u64::from_be_bytes(body.array()?),
            },
            7 => Self::Handover(body.entries()?),
            _ => return Err(FrameError::Kind),
        };
        if body.0.is_empty() {
            Ok(decoded)
        } else {
            Err(FrameError::Body)
        }
    }
}

impl Message {
    /// The whole frame from `source` to `destination`. At most [`ENTRIES`]
    /// entries and 253 bytes of name are sent.
    pub fn frame(
        &self,
        credentials: &Credentials,
        ethertype: u16,
        source: MacAddr,
        destination: MacAddr,
    ) -> Vec<u8> {
        let node = name(&self.node);
        let mut body = Vec::new();
        self.body.encode(&mut body);
        let mut bytes = vec![
            VERSION,
            self.body.kind(),
            self.body.flags(),
            u8::try_from(node.len()).unwrap_or(u8::MAX),
        ];
        bytes.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(credentials.cluster);
        bytes.extend(self.incarnation.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(node.as_bytes());
        bytes.extend(body);
        let tag = credentials.tag(source, &bytes);
        bytes.extend(tag);
        Ethernet {
            destination,
            source,
            ethertype,
            payload: &bytes,
        }
        .encode()
    }

    /// Parses an Ethernet payload that came from `source`; only an authentic
    /// frame of this cluster becomes a message.
    pub fn decode(
        credentials: &Credentials,
        source: MacAddr,
        payload: &[u8],
    ) -> Result<Self, FrameError> {
        let mut rest = Reader(payload);
        let [version, kind, flags, name_length] = rest.array().map_err(truncated)?;
        if version != VERSION {
            return Err(FrameError::Version);
        }
        let body_length = u16::from_be_bytes(rest.array().map_err(truncated)?);
        rest.array::<2>().map_err(truncated)?;
        if rest.array().map_err(truncated)? != credentials.cluster {
            return Err(FrameError::OtherCluster);
        }
        let incarnation = u64::from_be_bytes(rest.array().map_err(truncated)?);
        let seq = u64::from_be_bytes(rest.array().map_err(truncated)?);
        let node = rest.take(name_length.into()).map_err(truncated)?;
        let body = rest.take(body_length.into()).map_err(truncated)?;
        let signed = payload.len().saturating_sub(rest.0.len());
        let tag: [u8; TAG] = rest.array().map_err(truncated)?;
        let expected = credentials.tag(source, payload.get(..signed).unwrap_or_default());
        if !same(&tag, &expected) {
            return Err(FrameError::Tag);
        }
        let node = std::str::from_utf8(node).map_err(|_| FrameError::Body)?;
        if node.is_empty() || name(node) != node {
            return Err(FrameError::Body);
        }
        Ok(Self {
            node: node.to_owned(),
            incarnation,
            seq,
            body: Body::decode(kind, flags, body)?,
        })
    }
}

/// A name as it fits a frame: at most 253 bytes (a DNS name), cut at a
/// character's end.
fn name(node: &str) -> &str {
    let mut end = node.len().min(253);
    while !node.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    node.get(..end).unwrap_or_default()
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn encode_entries(entries: &[Entry], out: &mut Vec<u8>) {
    for (address, epoch) in entries.iter().take(ENTRIES) {
        out.extend(mapped(*address).octets());
        out.extend(epoch.to_be_bytes());
    }
}

/// The first `N` of at least `N` bytes.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// Equality in a time that does not depend on where they differ.
fn same(a: &[u8; TAG], b: &[u8; TAG]) -> bool {
    a.iter()
        .zip(b)
        .fold(0, |difference, (a, b)| difference | (a ^ b))
        == 0
}

fn truncated(_: FrameError) -> FrameError {
    FrameError::Truncated
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(FrameError::Body)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.take(N)?.try_into().map_err(|_| FrameError::Body)
    }

    fn address(&mut self) -> Result<IpAddr, FrameError> {
        Ok(Ipv6Addr::from(self.array::<16>()?).to_canonical())
    }

    /// All that remains.
    fn entries(&mut self) -> Result<Vec<Entry>, FrameError> {
        let mut entries = Vec::new();
        while !self.0.is_empty() {
            if entries.len() == ENTRIES {
                return Err(FrameError::Body);
            }
            entries.push((self.address()?, u64::from_be_bytes(self.array()?)));
        }
        Ok(entries)
    }
}

//! SCTP without an SCTP stack: INIT and INIT ACK chunks (RFC 9260, section
//! 3.3) over raw sockets, checksums included.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bellrock_e2e::netns::Netns;
use socket2::{Domain, Protocol, Socket, Type};

/// The port that the other end sends from, or to.
pub(crate) const CLIENT_PORT: u16 = 40_000;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// A packet with one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: u16,
    pub(crate) to: u16,
    /// The verification tag of the packet.
    pub(crate) verification: u32,
    pub(crate) kind: u8,
    /// The tag that the sender wants to see.
    pub(crate) initiate: u32,
}

impl Packet {
    pub(crate) fn init(from: u16, to: u16) -> Self {
        Self {
            from,
            to,
            verification: 0,
            kind: INIT,
            initiate: 0x1111_2222,
        }
    }

    pub(crate) fn answer(&self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            verification: self.initiate,
            kind: INIT_ACK,
            initiate: 0x3333_4444,
        }
    }

    fn write(&self) -> Vec<u8> {
        // A state cookie is mandatory in INIT ACK.
        let cookie: &[u8] = if self.kind == INIT_ACK {
            &[0, 7, 0, 8, 1, 2, 3, 4]
        } else {
            &[]
        };
        let length = u16::try_from(20 + cookie.len()).unwrap();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.from.to_be_bytes());
        bytes.extend_from_slice(&self.to.to_be_bytes());
        bytes.extend_from_slice(&self.verification.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[self.kind, 0]);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.initiate.to_be_bytes());
        bytes.extend_from_slice(&65_536_u32.to_be_bytes());
        bytes.extend_from_slice(&[0, 10, 0, 10]);
        bytes.extend_from_slice(&1_u32.to_be_bytes());
        bytes.extend_from_slice(cookie);
        let sum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let mut zeroed = bytes.to_vec();
        let place = zeroed.get_mut(8..12).context("a short packet")?;
        let sum = u32::from_le_bytes((&*place).try_into()?);
        place.fill(0);
        if crc32c(&zeroed) != sum {
            bail!("a wrong checksum: {bytes:02x?}");
        }
        let word = |at: usize| -> Result<u32> {
            let bytes = bytes.get(at..at + 4).context("a short packet")?;
            Ok(u32::from_be_bytes(bytes.try_into()?))
        };
        let ports = word(0)?;
        Ok(Self {
            from: u16::try_from(ports >> 16)?,
            to: u16::try_from(ports & 0xffff)?,
            verification: word(4)?,
            kind: bytes[12],
            initiate: word(16)?,
        })
    }
}

/// CRC32c (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// A raw socket for SCTP, or for the family's ICMP.
pub(crate) struct Raw {
    socket: UdpSocket,
    v4: bool,
}

impl Raw {
    pub(crate) fn sctp(host: &Netns, family_of: IpAddr) -> Self {
        Self::open(host, family_of, 132)
    }

    pub(crate) fn icmp(host: &Netns, family_of: IpAddr) -> Self {
        Self::open(host, family_of, if family_of.is_ipv4() { 1 } else { 58 })
    }

    fn open(host: &Netns, family_of: IpAddr, protocol: i32) -> Self {
        let v4 = family_of.is_ipv4();
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = host
            .run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))))
            .unwrap()
            .unwrap();
        // Not UDP: the standard library's calls fit any datagram socket.
        Self {
            socket: socket.into(),
            v4,
        }
    }

    pub(crate) fn send(&self, packet: &Packet, to: IpAddr) {
        self.socket
            .send_to(&packet.write(), SocketAddr::new(to, 0))
            .unwrap();
    }

    /// The next datagram without its IPv4 header, and who sent it.
    pub(crate) fn receive(&self, within: Duration) -> Result<Option<(Vec<u8>, IpAddr)>> {
        self.socket.set_read_timeout(Some(within))?;
        let mut bytes = vec![0; 2048];
        let (n, from) = match self.socket.recv_from(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        };
        bytes.truncate(n);
        let header = if self.v4 {
            usize::from(bytes[0] & 0xf) * 4
        } else {
            0
        };
        Ok(Some((bytes[header..].to_vec(), from.ip())))
    }

    pub(crate) fn packet(&self, within: Duration) -> Result<Option<(Packet, IpAddr)>> {
        self.receive(within)?
            .map(|(bytes, from)| Ok((Packet::read(&bytes)?, from)))
            .transpose()
    }
}

//! The sockets: one a port and family that hears, and one a session that
//! sends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use bellrock_sys::datagram;
use bellrock_sys::netlink_buffers::grow_receive_buffer;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Path, link_local};
use crate::engine::Port;

/// From which ports packets are sent (RFC 5881 section 4).
const SOURCE_PORTS: RangeInclusive<u16> = 49152..=65535;
/// Internetwork control (DSCP CS6), as routers send it.
const INTERNETWORK_CONTROL: u32 = 0xc0;
/// Octets that may wait to be read. A datagram of ours counts for less than a
/// kilobyte, so a thousand sessions may each have one waiting.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Hears all that comes to a port, by any interface.
pub(super) fn receiver(port: Port, v4: bool) -> io::Result<Socket> {
    let any: IpAddr = if v4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let address = SocketAddr::new(any, port.number());
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    if !v4 {
        socket.set_only_v6(true)?;
    }
    datagram::enable(socket.as_fd(), v4)?;
    grow_receive_buffer(socket.as_fd(), RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Sends for one session: always from the same port, with TTL 255.
#[derive(Debug)]
pub(super) struct Sender {
    socket: Socket,
    /// The session's source port.
    pub(super) port: u16,
}

impl Sender {
    /// `interface` is the index of the path's interface, if it has one;
    /// `first` the source port to try first.
    pub(super) fn open(path: &Path, interface: Option<u32>, first: u16) -> io::Result<Self> {
        let v4 = path.peer.is_ipv4();
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if v4 {
            socket.set_ttl_v4(255)?;
            socket.set_tos_v4(INTERNETWORK_CONTROL)?;
        } else {
            socket.set_only_v6(true)?;
            socket.set_unicast_hops_v6(255)?;
            socket.set_tclass_v6(INTERNETWORK_CONTROL)?;
        }
        // Nobody answers to this port: the peer's packets come to ours.
        socket.set_recv_buffer_size(0)?;
        if let Some(name) = &path.interface {
            socket.bind_device(Some(name.as_bytes()))?;
        }
        let port = bind(&socket, path, interface, first)?;
        let to = Port::of(path.hops).number();
        // From here on the address of our end is fixed, too.
        socket.connect(&scoped(path.peer, to, interface).into())?;
        Ok(Self { socket, port })
    }

    /// Sends one packet.
    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(packet);
        let sent = match sent {
            // That a packet before was refused is told now, in place of
            // sending this one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.socket.send(packet)
            }
            other => other,
        };
        sent.map(drop)
    }
}

/// Binds to the first free port of the range, from `first` on and around.
fn bind(socket: &Socket, path: &Path, interface: Option<u32>, first: u16) -> io::Result<u16> {
    let any = if path.peer.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    let local = path.local.unwrap_or(any);
    let (start, end) = (*SOURCE_PORTS.start(), *SOURCE_PORTS.end());
    let first = first.clamp(start, end);
    for port in (first..=end).chain(start..first) {
        match socket.bind(&scoped(local, port, interface).into()) {
            Ok(()) => return Ok(port),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn scoped(address: IpAddr, port: u16, interface: Option<u32>) -> SocketAddr {
    match (address, interface) {
        (IpAddr::V6(v6), Some(interface)) if link_local(address) => {
            SocketAddrV6::new(v6, port, 0, interface).into()
        }
        _ => SocketAddr::new(address, port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_has_a_source_port_of_its_own_in_the_range() {
        let path = Path::single("127.0.0.2".parse().unwrap());
        let local = Path {
            local: Some("127.0.0.1".parse().unwrap()),
            ..path.clone()
        };
        // The last port is the first choice of all: the search goes around.
        let senders: Vec<Sender> = [&path, &path, &local, &local]
            .into_iter()
            .map(|path| Sender::open(path, None, 65535).unwrap())
            .collect();
        let ports: std::collections::BTreeSet<u16> =
            senders.iter().map(|sender| sender.port).collect();
        assert_eq!(ports.len(), senders.len());
        assert!(ports.iter().all(|port| SOURCE_PORTS.contains(port)));
        for sender in &senders {
            let bound = sender.socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound.port(), sender.port);
        }
    }

    #[test]
    fn an_address_that_is_not_ours_is_an_error() {
        let path = Path {
            local: Some("192.0.2.1".parse().unwrap()),
            ..Path::single("192.0.2.2".parse().unwrap())
        };
        let error = Sender::open(&path, None, 50_000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}

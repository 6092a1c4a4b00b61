//! The connection to one peer: how it is opened and how it is closed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use bellrock_sys::tcp;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::config::PeerConfig;
use crate::reason::TcpFailure;

/// How long a closed connection may take to deliver its last message.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// Internetwork control (DSCP CS6), as RFC 4271 section 3 asks of BGP.
const INTERNETWORK_CONTROL: u32 = 0xc0;

/// Connects to the peer.
pub(crate) async fn connect(config: PeerConfig) -> io::Result<TcpStream> {
    let peer = SocketAddr::new(config.address, config.port);
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // Before the SYN: it is signed too.
    if let Some(password) = &config.password {
        tcp::set_md5_key(socket.as_fd(), config.address, password.octets())?;
    }
    tune(&socket, &config)?;
    if let Some(source) = config.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    TcpSocket::from_std_stream(socket.into())
        .connect(peer)
        .await
}

/// What holds for connections of either side: priority, and the TTL that is
/// sent and asked for.
pub(crate) fn tune(socket: &Socket, config: &PeerConfig) -> io::Result<()> {
    let v4 = config.address.is_ipv4();
    let one_hop = !config.multihop && !config.peer_asn.is_internal(config.local_asn);
    if v4 {
        socket.set_tos_v4(INTERNETWORK_CONTROL)?;
        if config.ttl_security.is_some() {
            socket.set_ttl_v4(255)?;
        } else if one_hop {
            socket.set_ttl_v4(1)?;
        }
    } else {
        socket.set_tclass_v6(INTERNETWORK_CONTROL)?;
        if config.ttl_security.is_some() {
            socket.set_unicast_hops_v6(255)?;
        } else if one_hop {
            socket.set_unicast_hops_v6(1)?;
        }
    }
    if let Some(hops) = config.ttl_security {
        // 255 where the peer is on the link.
        let least = u8::MAX.saturating_sub(hops.saturating_sub(1));
        tcp::set_least_ttl(socket.as_fd(), v4, least)?;
    }
    Ok(())
}

/// Sends what is left, says that nothing follows, and waits until the peer has
/// closed too: a socket that is closed with octets unread resets the
/// connection, and the peer may never see why.
pub(crate) async fn finish(mut stream: TcpStream, rest: Vec<u8>) {
    let farewell = async {
        stream.write_all(&rest).await?;
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever fails now, the session is over, and its reason is known.
    let _ = timeout(LINGER, farewell).await;
}

/// The kernel's error by its name.
pub(crate) fn failure(error: &io::Error) -> TcpFailure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => TcpFailure::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            TcpFailure::Unreachable
        }
        io::ErrorKind::TimedOut => TcpFailure::TimedOut,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => TcpFailure::Reset,
        io::ErrorKind::AddrNotAvailable => TcpFailure::NoSuchSource,
        _ => TcpFailure::Other(error.to_string()),
    }
}

//! Connections that peers open.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bellrock_sys::tcp;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::driver::{Door, Peer};

const BACKLOG: i32 = 128;
/// Pause after an error of the socket, such as too many open files.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

type Doors = Arc<Mutex<BTreeMap<IpAddr, Door>>>;

/// Listens for peers. A connection from an address that is no peer's is closed
/// at once. Dropping it ends the listening, not the sessions.
///
/// Not needed where we open every session ourselves, and one open port less
/// without it.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<TcpListener>,
    doors: Doors,
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens on an address and port, of one family. Must be called in a
    /// tokio runtime, in the network namespace of the peers.
    ///
    /// # Errors
    /// What the kernel says: the port is taken, the address is not ours, the
    /// port needs a capability.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // A SYN-ACK must pass a peer that asks for GTSM.
        if address.is_ipv4() {
            socket.set_ttl_v4(255)?;
        } else {
            socket.set_unicast_hops_v6(255)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = Arc::new(TcpListener::from_std(socket.into())?);
        let doors = Doors::default();
        let task = tokio::spawn(accept(Arc::clone(&socket), Arc::clone(&doors)));
        Ok(Self {
            socket,
            doors,
            task,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes connections from this peer, in place of any other of its address.
    /// One with a password must sign them with it, from the SYN on.
    ///
    /// # Errors
    /// The kernel does not take the password; then no connection is taken.
    pub fn attach(&self, peer: &Peer) -> io::Result<()> {
        self.detach(peer.address());
        if peer.address().is_ipv4() != self.address()?.is_ipv4() {
            return Ok(());
        }
        if let Some(password) = peer.password() {
            tcp::set_md5_key(self.socket.as_fd(), peer.address(), password.octets())?;
        }
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.insert(peer.address(), peer.door());
        Ok(())
    }

    /// No longer takes connections from this address.
    pub fn detach(&self, peer: IpAddr) {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        if doors.remove(&peer).is_some() {
            // Fails where there was no key.
            let _ = tcp::set_md5_key(self.socket.as_fd(), peer, &[]);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(socket: Arc<TcpListener>, doors: Doors) {
    loop {
        match socket.accept().await {
            Ok((stream, from)) => {
                let doors = doors.lock().unwrap_or_else(PoisonError::into_inner);
                match doors.get(&from.ip()) {
                    Some(door) => door.hand_in(stream),
                    None => debug!(%from, "connection from nobody that we know"),
                }
            }
            Err(error) => {
                warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

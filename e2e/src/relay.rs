//! A door into a namespace: a loopback port of the machine whose connections
//! are carried to an address inside.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::netns::Netns;

type Call = oneshot::Sender<std::io::Result<TcpStream>>;

/// A loopback port that leads into a namespace as long as this lives.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    /// Opens a port of 127.0.0.1 that leads to `target` inside `ns`.
    pub(crate) fn open(runtime: &Handle, ns: &Netns, target: SocketAddr) -> Result<Self> {
        let dialer = dialer(ns, target)?;
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("open a loopback port")?;
        let address = listener.local_addr()?;
        let task = runtime.spawn(async move {
            while let Ok((outside, _)) = listener.accept().await {
                let dialer = dialer.clone();
                tokio::spawn(async move {
                    // An end that cannot be reached shows as a closed connection.
                    let _ = carry(outside, &dialer).await;
                });
            }
        });
        Ok(Self { address, task })
    }

    /// The port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A thread that has entered the namespace and connects for others: sockets
/// stay where they were opened.
fn dialer(ns: &Netns, target: SocketAddr) -> Result<Sender<Call>> {
    let file = std::fs::File::open(ns.path()).context("open namespace")?;
    let (calls, inbox) = channel::<Call>();
    std::thread::spawn(move || {
        let entered = setns(file, CloneFlags::CLONE_NEWNET);
        for call in inbox {
            let socket = entered
                .map_err(std::io::Error::from)
                .and_then(|()| TcpStream::connect_timeout(&target, Duration::from_secs(2)));
            let _ = call.send(socket);
        }
    });
    Ok(calls)
}

async fn carry(mut outside: tokio::net::TcpStream, dialer: &Sender<Call>) -> Result<()> {
    let (call, answer) = oneshot::channel();
    dialer.send(call).context("the dialing thread is gone")?;
    let inside = answer.await??;
    inside.set_nonblocking(true)?;
    inside.set_nodelay(true)?;
    outside.set_nodelay(true)?;
    let mut inside = tokio::net::TcpStream::from_std(inside)?;
    copy_bidirectional(&mut outside, &mut inside).await?;
    Ok(())
}

//! The two ends of open connections, each a process of its own: a server that
//! echoes, and a client that opens connections, uses them until its input ends,
//! and says how many failed.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Between two uses of one connection.
const PAUSE: Duration = Duration::from_secs(1);
/// Longer than this no echo takes.
const PATIENCE: Duration = Duration::from_secs(20);
const BACKLOG: i32 = 4096;

/// Options of `bellrock-lab peer`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    side: Side,
}

#[derive(Debug, Subcommand)]
enum Side {
    /// Echo on a port
    Serve { port: u16 },
    /// Hold connections to each of these addresses in turn
    Hold {
        /// How many connections
        count: usize,
        port: u16,
        addresses: Vec<IpAddr>,
    },
}

/// What the client says in the end.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// Connections that were open to the end.
    pub whole: usize,
    /// Connections that were reset, or did not echo within 20 s.
    pub failed: usize,
    /// Echoes of all.
    pub echoes: u64,
}

/// Runs one side until it is killed or its input ends.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match &args.side {
        Side::Serve { port } => runtime.block_on(serve(*port)),
        Side::Hold {
            count,
            port,
            addresses,
        } => {
            let held = runtime.block_on(hold(*count, *port, addresses))?;
            println!("{}", serde_json::to_string(&held)?);
            Ok(())
        }
    }
}

/// A listener on all addresses, whose queue holds a burst.
pub(super) fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn serve(port: u16) -> Result<()> {
    let listener = listen(port)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

async fn hold(count: usize, port: u16, addresses: &[IpAddr]) -> Result<Held> {
    let to = |n: usize| SocketAddr::new(addresses[n % addresses.len()], port);
    let streams: Vec<TcpStream> = stream::iter(0..count)
        .map(|n| async move {
            TcpStream::connect(to(n))
                .await
                .with_context(|| format!("connection {n} to {}", to(n)))
        })
        .buffer_unordered(64)
        .try_collect()
        .await?;
    println!("open");
    io::stdout().flush()?;

    let stop = Arc::new(AtomicBool::new(false));
    let stopper = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        stopper.store(true, Ordering::Relaxed);
    });
    let users: Vec<_> = streams
        .into_iter()
        .map(|stream| tokio::spawn(exercise(stream, Arc::clone(&stop))))
        .collect();
    let mut held = Held::default();
    for user in users {
        match user.await? {
            Ok(echoes) => {
                held.whole += 1;
                held.echoes += echoes;
            }
            Err(error) => {
                held.failed += 1;
                eprintln!("{error:#}");
            }
        }
    }
    Ok(held)
}

/// Sends and expects it back, and once more after the end was asked for.
async fn exercise(mut stream: TcpStream, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut echoes = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        let mut back = [0];
        stream.write_all(b"x").await.context("write")?;
        let read = stream.read_exact(&mut back);
        tokio::time::timeout(PATIENCE, read)
            .await
            .context("no echo")?
            .context("read")?;
        echoes += 1;
        if last {
            return Ok(echoes);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

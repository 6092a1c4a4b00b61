//! Watches peers by BFD until Ctrl-C, with nothing around it.
#![allow(clippy::print_stdout, reason = "a command line talks to the terminal")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use bellrock_bfd::{Change, Handle, Hops, Path, Role, SessionStatus, Settings, Timers};
use clap::Parser;

/// Watch peers by BFD until Ctrl-C; then tell them that it is on purpose.
#[derive(Debug, Parser)]
struct Arguments {
    /// Address of a peer; may be repeated.
    #[arg(long = "peer", value_name = "ADDRESS", required = true)]
    peers: Vec<IpAddr>,
    /// Our address toward the peers [default: the kernel chooses].
    #[arg(long, value_name = "ADDRESS")]
    local: Option<IpAddr>,
    /// Interface of the peers; needed if they are link-local.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// The peers are more than one hop away.
    #[arg(long)]
    multihop: bool,
    /// Lowest TTL that is taken of peers more than one hop away.
    #[arg(long, value_name = "TTL", default_value_t = 254)]
    minimum_ttl: u8,
    /// Least time between packets of ours, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300)]
    transmit: u64,
    /// Least time between packets of a peer, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300)]
    receive: u64,
    /// How many packets of ours must be missing.
    #[arg(long, value_name = "NUMBER", default_value = "3")]
    multiplier: NonZeroU8,
    /// Send nothing until a peer does.
    #[arg(long)]
    passive: bool,
}

/// What happened, and what is settled by the time that it is told.
fn line(change: Change, status: Option<&SessionStatus>) -> String {
    let settled = status.map(|status| status.intervals).unwrap_or_default();
    let time = |time: Option<Duration>| time.map_or("none".to_owned(), |t| format!("{t:?}"));
    let settled = format!(
        "sending every {}, detection time {}",
        time(settled.transmit),
        time(settled.detection)
    );
    match change {
        Change::Up | Change::Intervals(_) => format!("up, {settled}"),
        Change::Down(reason) => format!("down: {reason}"),
        Change::PeerAdminDown => "the peer is held down on purpose".to_owned(),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let settings = Settings {
        timers: Timers {
            transmit: Duration::from_millis(arguments.transmit),
            receive: Duration::from_millis(arguments.receive),
            multiplier: arguments.multiplier,
        },
        role: if arguments.passive {
            Role::Passive
        } else {
            Role::Active
        },
        enabled: true,
    };
    let hops = if arguments.multihop {
        Hops::Multi {
            minimum_ttl: arguments.minimum_ttl,
        }
    } else {
        Hops::Single
    };
    let (handle, mut events) = Handle::start()?;
    let mut peers = BTreeMap::new();
    for peer in arguments.peers {
        let path = Path {
            peer,
            local: arguments.local,
            interface: arguments.interface.clone(),
            hops,
        };
        peers.insert(handle.add(path, settings)?, peer);
    }
    let snapshot = handle.snapshot();
    if let Some(why) = snapshot.no_real_time {
        println!("no real-time priority ({why}): on a busy machine this may be late");
    }
    for status in snapshot.sessions.values() {
        if let Some(error) = &status.error {
            println!("{}: {error}; trying again each second", status.path.peer);
        }
    }
    let mut last = BTreeMap::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { break };
                let sessions = handle.snapshot().sessions;
                let line = line(event.change, sessions.get(&event.session));
                if let Some(peer) = peers.get(&event.session)
                    && last.get(peer) != Some(&line)
                {
                    println!("{peer}: {line}");
                    last.insert(*peer, line);
                }
            }
            _ = tokio::signal::ctrl_c() => break,
            _ = terminate.recv() => break,
        }
    }
    handle.shutdown(Duration::from_secs(5))?;
    println!("the peers know that we are gone");
    Ok(())
}

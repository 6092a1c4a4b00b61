//! Announces prefixes to a router until Ctrl-C, with nothing around it.
#![allow(clippy::print_stdout, reason = "a command line talks to the terminal")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bellrock_bgp::{Attributes, Password, Peer, PeerAsn, PeerConfig, StopReason};
use clap::Parser;
use ipnet::IpNet;

/// Announce prefixes to a BGP router until Ctrl-C; then say goodbye (Cease).
#[derive(Debug, Parser)]
struct Arguments {
    /// Address of the router.
    #[arg(long, value_name = "ADDRESS")]
    peer: IpAddr,
    /// Port of the router.
    #[arg(long, value_name = "PORT", default_value_t = 179)]
    port: u16,
    /// Our address toward the router [default: the kernel chooses].
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// Our AS number.
    #[arg(long, value_name = "ASN")]
    local_asn: u32,
    /// The router's AS number.
    #[arg(long, value_name = "ASN")]
    peer_asn: u32,
    /// Our BGP identifier [default: the source, if it is IPv4, else 192.0.2.255].
    #[arg(long, value_name = "ADDRESS")]
    router_id: Option<Ipv4Addr>,
    /// Hold time in seconds: 0, or at least 3.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    hold_time: u64,
    /// The router is more than one hop away.
    #[arg(long)]
    multihop: bool,
    /// A prefix to announce; may be repeated.
    #[arg(long = "prefix", value_name = "PREFIX", required = true)]
    prefixes: Vec<IpNet>,
    /// Announce this many prefixes, counted up from each one given.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    count: u32,
    /// Next hop [default: our address on the session].
    #[arg(long, value_name = "ADDRESS")]
    next_hop: Option<IpAddr>,
    /// A community, as ASN:VALUE; may be repeated.
    #[arg(long = "community", value_name = "ASN:VALUE", value_parser = community)]
    communities: Vec<u32>,
    /// How many times more than once our AS is in the path.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    prepend: u8,
    /// Link bandwidth to announce, in Mbit/s.
    #[arg(long, value_name = "NUMBER")]
    weight: Option<u32>,
    /// File with the TCP MD5 password, its first line.
    #[arg(long, value_name = "FILE")]
    password_file: Option<std::path::PathBuf>,
    /// Both sides send with a TTL of 255, and nothing from further away counts
    /// (GTSM, RFC 5082).
    #[arg(long)]
    ttl_security: bool,
}

fn community(text: &str) -> Result<u32, String> {
    let parts = text.split_once(':').and_then(|(asn, value)| {
        Some((
            u32::from(asn.parse::<u16>().ok()?),
            u32::from(value.parse::<u16>().ok()?),
        ))
    });
    let (asn, value) = parts.ok_or("expected two numbers up to 65535, as in 64512:100")?;
    Ok(asn << 16 | value)
}

/// The prefix `n` places after `first`, of the same length.
fn nth(first: IpNet, n: u32) -> Option<IpNet> {
    let address = match first.network() {
        IpAddr::V4(address) => {
            let step = u64::from(n) << (32 - u32::from(first.prefix_len()));
            IpAddr::from(Ipv4Addr::from(
                u32::try_from(u64::from(address.to_bits()) + step).ok()?,
            ))
        }
        IpAddr::V6(address) => {
            let step = u128::from(n).checked_shl(128 - u32::from(first.prefix_len()))?;
            IpAddr::from(std::net::Ipv6Addr::from(
                address.to_bits().checked_add(step)?,
            ))
        }
    };
    IpNet::new(address, first.prefix_len()).ok()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let router_id = arguments.router_id.unwrap_or(match arguments.source {
        Some(IpAddr::V4(source)) => source,
        Some(IpAddr::V6(_)) | None => Ipv4Addr::new(192, 0, 2, 255),
    });
    let mut config = PeerConfig::new(
        arguments.peer,
        arguments.local_asn,
        PeerAsn::Exact(arguments.peer_asn),
        router_id,
    );
    config.port = arguments.port;
    config.source = arguments.source;
    config.hold_time = Duration::from_secs(arguments.hold_time);
    config.multihop = arguments.multihop;
    config.ttl_security = arguments.ttl_security.then_some(1);
    if let Some(file) = &arguments.password_file {
        let text = std::fs::read_to_string(file)?;
        config.password = Some(Password::new(text.lines().next().unwrap_or_default()));
    }
    let attributes = Attributes {
        next_hop: arguments.next_hop,
        communities: BTreeSet::from_iter(arguments.communities),
        prepend: arguments.prepend,
        weight: arguments.weight,
        ..Attributes::default()
    };
    let mut routes = BTreeMap::new();
    for first in &arguments.prefixes {
        for n in 0..arguments.count {
            let prefix = nth(*first, n).ok_or("--count runs past the end of the address space")?;
            routes.insert(prefix, attributes.clone());
        }
    }

    let peer = Peer::spawn(config, routes)?;
    let mut status = peer.status();
    let mut last = String::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let line = {
            let status = status.borrow_and_update();
            let error = status
                .last_error
                .as_ref()
                .map(|error| format!(" ({error})"));
            let refused: Vec<_> = status
                .prefixes_refused
                .iter()
                .map(|(why, n)| format!(", {n} not sent: {why}"))
                .collect();
            format!(
                "{}: {} of {} prefixes sent{}{}",
                status.state,
                status.prefixes_sent,
                status.prefixes_wanted,
                refused.concat(),
                error.unwrap_or_default()
            )
        };
        if line != last {
            println!("{line}");
            last = line;
        }
        tokio::select! {
            changed = status.changed() => changed?,
            _ = tokio::signal::ctrl_c() => break,
            _ = terminate.recv() => break,
        }
    }
    peer.stop(StopReason::AdministrativeShutdown(None)).await;
    println!("session ended");
    Ok(())
}

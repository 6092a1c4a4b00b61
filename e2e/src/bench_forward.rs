//! `bellrock-lab bench-forward`: what forwarding costs, and beside kube-proxy.
//!
//! The large loads and the floods go straight to the crate, each in namespaces
//! of its own. kube-proxy gets its Services from a real API server.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use bellrock_forward::{Endpoint, Port, Protocol, Service};

use crate::figures::{Figures, Target, Wanted};

mod churn;
mod load;
mod path;
pub mod peer;
mod shrink;

/// Options of `bellrock-lab bench-forward`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measure only this; the run fails then, for the missing figures
    #[arg(long, value_enum)]
    only: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Full loads, one more, adoption, memory
    Load,
    /// Shrinking endpoint lists under 200,000 packets a second
    Shrink,
    /// 10,000 open connections while Services change
    Churn,
    /// Connections beside kube-proxy, 10,000 Services
    Path,
}

/// Every figure, its unit and its target.
const WANTED: [Wanted; 11] = [
    ("forward.load_10k_s", "s", Target::AtMost(0.3)),
    ("forward.load_100k_s", "s", Target::AtMost(3.0)),
    ("forward.one_more_10k_ms", "ms", Target::AtMost(1.0)),
    ("forward.one_more_100k_ms", "ms", Target::AtMost(1.0)),
    ("forward.load_5k_x50_s", "s", Target::AtMost(5.0)),
    ("forward.adopt_10k_s", "s", Target::AtMost(1.0)),
    ("forward.rss_10k_mb", "MB", Target::AtMost(15.0)),
    ("forward.shrink_misses", "packets", Target::AtMost(0.0)),
    (
        "forward.first_packet_p50_vs_kubeproxy",
        "ratio",
        Target::AtMost(1.05),
    ),
    (
        "forward.first_packet_p99_vs_kubeproxy",
        "ratio",
        Target::AtMost(1.10),
    ),
    (
        "forward.conns_per_s_vs_kubeproxy",
        "ratio",
        Target::AtLeast(0.95),
    ),
];

/// Measures and prints, a line `bench: NAME VALUE UNIT` for each figure. Fails
/// if one is missing or misses its target.
pub fn run(args: &Args) -> Result<()> {
    crate::ground::check_root()?;
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let mut figures = Figures::new(&WANTED);
    if wanted(Part::Load) {
        load::measure(&mut figures)?;
    }
    if wanted(Part::Shrink) {
        shrink::measure(&mut figures)?;
    }
    if wanted(Part::Churn) {
        churn::measure()?;
    }
    if wanted(Part::Path) {
        path::measure(&mut figures)?;
    }
    figures.verdict()
}

/// A Service of one port, for callers from outside.
fn service(address: Ipv4Addr, port: u16, protocol: Protocol, endpoints: &[Endpoint]) -> Service {
    Service {
        addresses: [address.into()].into(),
        ports: vec![Port {
            name: String::new(),
            protocol,
            port,
            node_port: None,
            endpoints: endpoints.to_vec(),
            local_endpoints: endpoints.iter().filter(|e| e.local).copied().collect(),
        }],
        ..Service::default()
    }
}

/// The value in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The time that so many of a hundred do not exceed, in microseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_micros).collect();
        assert!((percentile(&times, 50) - 51.0).abs() < 1e-6);
        assert!((percentile(&times, 99) - 100.0).abs() < 1e-6);
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-6);
    }
}

//! `bellrock-lab bench`: the figures of the whole path, in one lab.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::lab::{Lab, Options, service};
use crate::probe::{Pace, Prober};
use crate::suite::configuration;

const SOON: Duration = Duration::from_secs(30);

/// Options of `bellrock-lab bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Services to create, one after the other
    #[arg(long, default_value_t = 50)]
    services: usize,
    /// Cables to pull
    #[arg(long, default_value_t = 10)]
    pulls: usize,
}

/// Measures and prints, a line `bench: NAME VALUE UNIT` for each figure.
pub fn run(args: &Args) -> Result<()> {
    let lab = Lab::up(&Options::default())?;
    let measured = measure(&lab, args);
    if measured.is_err() {
        lab.keep_logs();
    }
    measured.with_context(|| format!("logs in {}", lab.dir().join("logs").display()))
}

fn measure(lab: &Lab, args: &Args) -> Result<()> {
    lab.install("")?;
    lab.apply(&configuration())?;
    let (controller, speakers) = lab.start_bellrock()?;
    lab.deploy("web", 2, &[])?;

    let (mut to_address, mut to_answer) = (Vec::new(), Vec::new());
    for n in 0..args.services {
        let manifest = service(
            &format!("web-{n}"),
            "web",
            &json!({ "type": "LoadBalancer" }),
        );
        let start = Instant::now();
        let (address, took) = lab.create_service(&manifest)?;
        to_address.push(took);
        lab.until("the first answer", SOON, || lab.http("c1", address, 80))?;
        to_answer.push(start.elapsed());
    }
    spread("path.create_to_address", to_address);
    spread("path.create_to_first_answer", to_answer);

    println!(
        "bench: path.controller_rss_mb {:.1} MB",
        mb(controller.rss_kib()?)
    );
    let speakers = speakers.values().map(|speaker| speaker.rss_kib());
    let largest = speakers
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .max()
        .unwrap_or_default();
    println!("bench: path.speaker_rss_mb {:.1} MB", mb(largest));

    let address = lab.address_of_service("web-0")?;
    let mut outages = Vec::new();
    for _ in 0..args.pulls {
        let owner = lab.neighbour("c1", address)?;
        lab.keep_pods_off("web", &owner)?;
        let owner = lab.neighbour("c1", address)?;
        let target = SocketAddr::new(address.into(), 80);
        let prober = Prober::start(lab.host("c1"), target, Pace::default())?;
        let answered = |more: u64| {
            let before = prober.answered();
            lab.until("probes are answered", SOON, || {
                ensure!(
                    prober.answered() >= before + more,
                    "{} answered",
                    prober.answered()
                );
                Ok(())
            })
        };
        answered(50)?;
        lab.cut(&owner)?;
        lab.until("another node answers", SOON, || {
            ensure!(lab.neighbour("c1", address)? != owner, "still {owner}");
            Ok(())
        })?;
        answered(100)?;
        outages.push(Duration::from_secs_f64(
            prober.stop()?.longest_ms() / 1000.0,
        ));
        lab.heal(&owner)?;
        lab.until_routed("r1", address, &lab.nodes())?;
    }
    spread("path.cable_pull_outage", outages);
    Ok(())
}

fn spread(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    println!(
        "bench: {name}_p50_ms {:.0} ms",
        ms(times.get(times.len() / 2))
    );
    println!("bench: {name}_max_ms {:.0} ms", ms(times.last()));
}

pub(crate) fn mb(kib: u64) -> f64 {
    let kib = u32::try_from(kib).unwrap_or(u32::MAX);
    f64::from(kib) * 1024.0 / 1_000_000.0
}

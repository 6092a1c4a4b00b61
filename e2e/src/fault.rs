//! `bellrock-lab fault-ipam`: two controllers, hundreds of Services that come, go and change their
//! minds, and everything that can happen to a controller: killed at any time and between any two
//! of its writes, frozen past its lease, its API server gone. What the API server's audit log then
//! tells is judged: no address held twice, moved unasked, or leaked.

mod checker;
mod churn;
mod history;
mod points;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bellrock_api::parse_virtual_ip_name;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bellrock::Workload;
use crate::cluster::{ApiOptions, KubeProxy};
use crate::lab::{Lab, Options};
use crate::suite::NAMESPACE;
use checker::{Pool, Verdict};
use churn::{Churn, Dice};
use history::History;
use points::{Point, Points};

/// Options of `bellrock-lab fault-ipam`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long faults go on
    #[arg(long, default_value_t = 10)]
    minutes: u32,
    /// Services that churn
    #[arg(long, default_value_t = 500)]
    services: u64,
    /// Seed of all that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What ten minutes must show; a shorter run, in proportion.
const ALLOCATIONS: usize = 2_000;
const LEADER_CHANGES: usize = 20;

/// How long a freed address rests, in every pool.
const REST: Duration = Duration::from_secs(3);

/// How long another leader, or quiet, may take.
const PATIENCE: Duration = Duration::from_secs(120);

const POOLS: [(&str, &[&str]); 3] = [
    ("a", &["10.32.0.0/24", "2001:db8:a::/118"]),
    ("b", &["10.33.0.0/24", "2001:db8:b::/120"]),
    ("small", &["10.34.0.0/28"]),
];

/// Runs, judges and prints.
pub fn run(args: &Args) -> Result<()> {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        api: ApiOptions {
            audit: true,
            dual_stack: true,
        },
        ..Options::default()
    })?;
    let judged = torment(&lab, args);
    if judged.is_err() {
        lab.keep_logs();
    }
    judged.with_context(|| format!("logs in {}", lab.dir().join("logs").display()))
}

fn torment(lab: &Lab, args: &Args) -> Result<()> {
    lab.install("")?;
    for (name, addresses) in POOLS {
        let spec = json!({
            "addresses": addresses, "reuseDelay": format!("{}s", REST.as_secs()),
            "autoAssign": name != "small",
        });
        lab.apply(&object("IPAddressPool", name, &spec))?;
    }
    lab.apply(&object("L2Advertisement", "main", &json!({})))?;
    let points = Points::serve(lab)?;
    let mut storm = Storm {
        lab,
        replicas: [lab.start_controller()?, lab.start_second_controller()?],
        points,
        dice: Dice::new(args.seed),
        kills: 0,
        freezes: 0,
        restarts: 0,
    };
    println!("seed {}", args.seed);
    lab.apply(&churn::tenant())?;
    let churn = Churn::start(lab, args.services, args.seed)?;
    storm.rage(Duration::from_secs(60) * args.minutes)?;
    lab.until("the churn ends", PATIENCE, || {
        ensure!(churn.has_stopped());
        Ok(())
    })?;
    // What does not become quiet is for the verdict to name.
    let quiet = lab.until("all is quiet", PATIENCE, || quiet(lab));
    if let Err(error) = &quiet {
        println!("{error:#}");
    }
    let verdict = verdict(lab)?;
    let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{} changes made, {} refused; {} kills, {} of {} fail points met, {} freezes, {} restarts \
         of the API server",
        count(&churn.counts.made),
        count(&churn.counts.refused),
        storm.kills,
        storm.points.hit().len(),
        Point::all().count(),
        storm.freezes,
        storm.restarts,
    );
    println!(
        "{} allocations, {} changes of leader, {} writes of unknown outcome, {} addresses held in \
         the end",
        verdict.allocations,
        verdict.leader_changes,
        verdict.perhaps,
        verdict.holders.len(),
    );
    judge(&verdict, &storm, args)?;
    quiet?;
    println!("no violation");
    Ok(())
}

fn judge(verdict: &Verdict, storm: &Storm<'_>, args: &Args) -> Result<()> {
    for (at, violation) in &verdict.violations {
        println!("violation at {at}: {violation}");
    }
    let found = verdict.violations.len();
    ensure!(found == 0, "{found} violations");
    let share = |of: usize| of * usize::try_from(args.minutes.min(10)).unwrap_or(10) / 10;
    let (allocations, changes) = (verdict.allocations, verdict.leader_changes);
    ensure!(
        allocations >= share(ALLOCATIONS),
        "{allocations} allocations are too few to say anything"
    );
    ensure!(
        changes >= share(LEADER_CHANGES),
        "{changes} changes of leader are too few to say anything"
    );
    if args.minutes >= 10 {
        let hit = storm.points.hit();
        let missed: Vec<String> = Point::all()
            .filter(|point| !hit.contains(point))
            .map(|point| point.to_string())
            .collect();
        ensure!(missed.is_empty(), "fail points not met: {missed:?}");
        ensure!(storm.restarts >= 2 && storm.freezes >= 1, "too few faults");
    }
    Ok(())
}

fn object(kind: &str, name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": kind,
        "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec,
    })
    .to_string()
}

/// Faults, one after the other.
struct Storm<'a> {
    lab: &'a Lab,
    replicas: [Workload; 2],
    points: Points,
    dice: Dice,
    kills: usize,
    freezes: usize,
    restarts: usize,
}

impl Storm<'_> {
    fn rage(&mut self, lasts: Duration) -> Result<()> {
        let start = Instant::now();
        let mut open: VecDeque<Point> = Point::all().collect();
        let (mut turn, mut last) = (0u32, start);
        while start.elapsed() < lasts {
            // From one fault to the next, but never before somebody leads.
            let pause = Duration::from_secs(5) + Duration::from_millis(self.dice.roll(25_000));
            let leader = self.leader()?;
            while last.elapsed() < pause && start.elapsed() < lasts {
                std::thread::sleep(Duration::from_millis(50));
            }
            if start.elapsed() >= lasts {
                break;
            }
            last = Instant::now();
            let thirds = usize::try_from(3 * start.elapsed().as_secs() / lasts.as_secs().max(1))?;
            if self.restarts < thirds.min(2) {
                println!("the API server is restarted");
                self.restarts += 1;
                self.lab.restart_api()?;
            } else if self.freezes * 6 < usize::try_from(turn)? {
                self.freeze(leader)?;
            } else if turn % 3 != 2
                && let Some(point) = open.pop_front()
            {
                if !self.kill_at(point, leader)? {
                    open.push_back(point);
                }
            } else {
                println!("{} is killed", self.replicas[leader].name());
                self.replicas[leader].kill9()?;
                self.succeed(leader)?;
            }
            turn += 1;
        }
        for replica in &self.replicas {
            replica.wait_ready()?;
        }
        Ok(())
    }

    /// Whom the Lease names.
    fn holder(&self) -> Result<String> {
        let api: Api<Lease> = Api::namespaced(self.lab.admin(), NAMESPACE);
        let lease = self.lab.block_on(api.get("bellrock-controller"))?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        holder.context("nobody leads")
    }

    /// The name in the Lease by which a replica goes.
    fn identity(&self, replica: usize) -> String {
        format!("bellrock-{}", self.replicas[replica].name())
    }

    /// Which of the two leads.
    fn leader(&self) -> Result<usize> {
        self.lab.until("somebody leads", PATIENCE, || {
            let name = self.holder()?;
            let found = (0..self.replicas.len()).find(|n| self.identity(*n) == name);
            let found = found.with_context(|| format!("{name} leads"))?;
            ensure!(self.replicas[found].is_running(), "{name} is dead");
            Ok(found)
        })
    }

    fn until_other(&self, than: usize) -> Result<()> {
        self.lab.until("the other one leads", PATIENCE, || {
            ensure!(self.holder()? != self.identity(than), "not yet");
            Ok(())
        })
    }

    /// Waits until the other one leads, and starts the dead one again.
    fn succeed(&mut self, dead: usize) -> Result<()> {
        self.kills += 1;
        self.until_other(dead)?;
        self.replicas[dead].respawn()
    }

    /// Kills the leader at a fail point; false if it was not met.
    fn kill_at(&mut self, point: Point, leader: usize) -> Result<bool> {
        let replica = self.replicas[leader].clone();
        self.points.arm(point, replica.clone());
        let met = self.lab.until("the point is met", REST * 5, || {
            ensure!(!replica.is_running(), "{} runs", replica.name());
            Ok(())
        });
        self.points.disarm();
        if met.is_err() {
            println!("{point}: not met");
            return Ok(false);
        }
        println!("{} is killed at {point}", replica.name());
        self.succeed(leader)?;
        Ok(true)
    }

    /// Stops the leader past its lease.
    fn freeze(&mut self, leader: usize) -> Result<()> {
        println!("{} is frozen", self.replicas[leader].name());
        self.freezes += 1;
        self.replicas[leader].signal(Signal::SIGSTOP)?;
        self.until_other(leader)?;
        self.replicas[leader].signal(Signal::SIGCONT)
    }
}

/// Fails while something is still to be done, by what the API server lists: it is what would be a
/// violation in the end.
fn quiet(lab: &Lab) -> Result<()> {
    let (services, vips) = listed(lab)?;
    let mut now = History::default();
    now.close(&services, &vips);
    let open = checker::open(&now.ordered());
    if let Some(violation) = open.first() {
        bail!("{violation}, and {} more", open.len() - 1);
    }
    Ok(())
}

/// All Services and VirtualIPs.
fn listed(lab: &Lab) -> Result<(Vec<Value>, Vec<Value>)> {
    let list = |kind: &str| -> Result<Vec<Value>> {
        let mut all = lab.kubectl_json(&["get", kind, "--all-namespaces"])?;
        match all["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("{kind}: {other}"),
        }
    };
    Ok((list("services")?, list("virtualips")?))
}

/// The address of a listed VirtualIP.
fn address(vip: &Value) -> Option<IpAddr> {
    parse_virtual_ip_name(vip["metadata"]["name"].as_str()?).ok()
}

/// Reads and judges the audit log. What the API server lists in the end closes the gaps that
/// writes of unknown outcome leave; there may be no others.
fn verdict(lab: &Lab) -> Result<Verdict> {
    let mut history = History::default();
    lab.each_audited(0, |entry| history.add(&entry))?;
    let (services, vips) = listed(lab)?;
    let unheard = history.close(&services, &vips);
    let pools: Vec<Pool> = POOLS
        .iter()
        .map(|(name, addresses)| {
            let ranges = addresses.iter().map(|text| text.parse());
            Ok(Pool {
                name,
                ranges: ranges.collect::<Result<_, _>>()?,
            })
        })
        .collect::<Result<_>>()?;
    let verdict = checker::check(&history.ordered(), &pools, REST);
    ensure!(
        unheard <= verdict.perhaps,
        "{unheard} objects are as no write in the audit log made them"
    );
    let recorded: BTreeSet<IpAddr> = verdict.holders.keys().copied().collect();
    let held: BTreeSet<IpAddr> = vips.iter().filter_map(address).collect();
    let differ: Vec<&IpAddr> = recorded.symmetric_difference(&held).collect();
    ensure!(
        differ.is_empty(),
        "held by the audit log or by the API server, not both: {differ:?}"
    );
    Ok(verdict)
}

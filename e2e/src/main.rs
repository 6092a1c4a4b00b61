//! `bellrock-lab`: a Kubernetes cluster on this machine, nodes, clients and
//! routers as network namespaces, for tests and for trying things out.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to the terminal"
)]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options, default_topology, lab_program};
use bellrock_e2e::parts::{self, Part};
use bellrock_e2e::topology::Role;
use bellrock_e2e::{
    agent, bench, bench_forward, bench_ipam, bench_l2, clab, demo, echo, fault, ground, probe,
    suite,
};
use clap::{Parser, Subcommand};

/// A Kubernetes cluster on this machine: nodes, clients and routers are
/// network namespaces, everything else is real.
#[derive(Parser)]
#[command(version, max_term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Start a lab and say how to use it
    Up(Up),
    /// Tell the whole story: address, ARP, BGP, a pulled cable, a reason
    Demo(demo::Args),
    /// End labs, and remove what killed ones left
    #[command(override_usage = "bellrock-lab down <ID | --all>")]
    Down {
        /// Id of the lab, as `list` shows it
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// End every lab of this machine and remove kept logs
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Show the labs of this machine
    List,
    /// Build the programs of the lab that are not built yet
    Parts {
        /// Build only this program and print its path
        #[arg(long, value_name = "PROGRAM", value_parser = known_part)]
        path: Option<Part>,
    },
    /// Test the image and the chart on nodes with a real kubelet
    ///
    /// Needs Docker, or starts a Docker engine of its own where none runs.
    Cluster(clab::Args),
    /// Measure the whole path: times, memory, pulled cables
    Bench(bench::Args),
    /// Measure how fast addresses are given, beside MetalLB
    BenchIpam(bench_ipam::Args),
    /// Measure how long an address is silent when its node fails, and what
    /// moves, drains, rollouts and crashes cost
    BenchL2(bench_l2::Args),
    /// Churn Services under two controllers that are killed, frozen and cut
    /// off, and check by the audit log that no address moved or leaked
    FaultIpam(fault::Args),
    /// Measure forwarding: loads, floods, connections beside kube-proxy
    BenchForward(bench_forward::Args),
    /// Probe an echo server by UDP and report when it did not answer
    ///
    /// Sends a datagram every 10 ms, each from a fresh source port, until
    /// Ctrl-C. Run it inside a client: ip netns exec blID-c1 bellrock-lab probe ...
    Probe {
        /// Address and port of the Service
        server: SocketAddr,
        /// Stop after this many seconds
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<f32>,
        /// Milliseconds between probes
        #[arg(long, value_name = "MS", default_value_t = 10)]
        every: u64,
        /// Milliseconds that an answer may take
        #[arg(long, value_name = "MS", default_value_t = 400)]
        patience: u64,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a node's pods and keep its lease (the lab starts one per node)
    #[command(hide = true)]
    Agent(agent::Args),
    /// One end of many open connections (bench-forward starts both)
    #[command(hide = true)]
    Peer(bench_forward::peer::Args),
    /// Answer with pod name and client address (runs inside each pod)
    #[command(hide = true)]
    Echo(echo::Args),
}

#[derive(clap::Args)]
struct Up {
    /// Topology in containerlab's format
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// kube-proxy on the nodes: nftables, iptables or none
    #[arg(long, value_name = "MODE", default_value = "nftables")]
    kube_proxy: KubeProxy,
    /// Install Bellrock: its chart, the controller, a speaker on each node
    #[arg(long)]
    bellrock: bool,
    /// Return when the lab is up and leave it running
    #[arg(long)]
    detach: bool,
    /// Written when the lab is up
    #[arg(long, hide = true)]
    ready_file: Option<PathBuf>,
}

fn known_part(name: &str) -> Result<Part, String> {
    Part::named(name).ok_or_else(|| {
        let names: Vec<&str> = Part::ALL.into_iter().map(Part::name).collect();
        format!("want one of {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Subject::Up(up) if up.detach => detach(&up),
        Subject::Up(up) => attached(&up),
        Subject::Demo(args) => demo::run(&args),
        Subject::Down { id, all } => down(id.as_deref(), all),
        Subject::List => list(),
        Subject::Parts { path } => build(path),
        Subject::Probe {
            server,
            seconds,
            every,
            patience,
            json,
        } => {
            let pace = probe::Pace {
                every: Duration::from_millis(every),
                patience: Duration::from_millis(patience),
            };
            measure(server, seconds, pace, json)
        }
        Subject::Cluster(args) => clab::run(&args),
        Subject::Bench(args) => bench::run(&args),
        Subject::BenchIpam(args) => bench_ipam::run(&args),
        Subject::BenchL2(args) => bench_l2::run(&args),
        Subject::FaultIpam(args) => fault::run(&args),
        Subject::BenchForward(args) => bench_forward::run(&args),
        Subject::Peer(args) => bench_forward::peer::run(&args),
        Subject::Agent(args) => agent::run(args),
        Subject::Echo(args) => echo::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn attached(up: &Up) -> Result<()> {
    let start = Instant::now();
    let options = Options {
        topology: up.topology.clone().unwrap_or_else(default_topology),
        kube_proxy: up.kube_proxy,
        say: Arc::new(|line| println!("{line}")),
        ..Options::default()
    };
    let lab = Lab::up(&options)?;
    if up.bellrock {
        let installing = Instant::now();
        let installed = lab
            .install("")
            .and_then(|()| lab.apply(&suite::configuration()))
            .and_then(|_| lab.start_bellrock());
        if installed.is_err() {
            lab.keep_logs();
        }
        installed?;
        println!(
            "{:<32} {:5.1} s",
            "Bellrock",
            installing.elapsed().as_secs_f32()
        );
    }
    println!(
        "{:<32} {:5.1} s",
        "the lab is up",
        start.elapsed().as_secs_f32()
    );
    let mut usage = usage(&lab)?;
    match &up.ready_file {
        Some(file) => std::fs::write(file, usage)?,
        None => {
            usage.push_str("  end it    Ctrl-C\n");
            println!("\n{usage}");
        }
    }
    // A signal ends the lab and this process.
    loop {
        std::thread::park();
    }
}

/// How to use a lab, and the small `kubectl` that it puts in the lab's folder.
fn usage(lab: &Lab) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let kubectl = lab.dir().join("kubectl.sh");
    let script = format!(
        "#!/bin/sh\nKUBECONFIG={} exec {} \"$@\"\n",
        lab.kubeconfig().display(),
        parts::path(Part::Kubectl)?.display()
    );
    std::fs::write(&kubectl, script)?;
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755))?;

    let hosts: Vec<&str> = lab.topology().nodes.keys().map(String::as_str).collect();
    let node = lab.nodes().first().copied().unwrap_or_default();
    let mut text = format!("lab {}: {}\n", lab.id(), hosts.join(" "));
    let enter = |host: &str| format!("ip netns exec {}", lab.host(host).name());
    let mut line = |what: &str, how: String| text.push_str(&format!("  {what:<9} {how}\n"));
    line("kubectl", format!("{} get nodes", kubectl.display()));
    line("enter", format!("{} bash", enter(node)));
    line("capture", format!("{} tcpdump -ni eth1", enter(node)));
    if let Some(client) = lab.topology().with_role(Role::Client).next() {
        let program = lab_program()?;
        line(
            "probe",
            format!("{} {} probe ADDRESS:PORT", enter(client), program.display()),
        );
    }
    for router in lab.topology().with_role(Role::Router) {
        let socket = lab.frr(router).folder().join("run");
        line(router, format!("vtysh --vty_socket {}", socket.display()));
    }
    line("logs", format!("{}", lab.dir().join("logs").display()));
    Ok(text)
}

/// Starts `up` as a process of its own, passes on what it says, and returns
/// when the lab is up.
fn detach(up: &Up) -> Result<()> {
    let folder = tempdir()?;
    let result = detached(up, &folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn tempdir() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("bellrock-lab-up-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn detached(up: &Up, folder: &Path) -> Result<()> {
    let (log, ready) = (folder.join("log"), folder.join("ready"));
    let output = std::fs::File::create(&log)?;
    let mut command = Command::new("setsid");
    command.arg(std::env::current_exe()?).arg("up");
    command.arg("--ready-file").arg(&ready);
    if let Some(topology) = &up.topology {
        command.arg("--topology").arg(topology);
    }
    if up.bellrock {
        command.arg("--bellrock");
    }
    let mode = match up.kube_proxy {
        KubeProxy::Nftables => "nftables",
        KubeProxy::Iptables => "iptables",
        KubeProxy::None => "none",
    };
    let mut child = command
        .args(["--kube-proxy", mode])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("start the lab's process")?;
    let mut said = std::fs::File::open(&log)?;
    let mut pass_on = || -> Result<()> {
        let mut text = String::new();
        said.read_to_string(&mut text)?;
        print!("{text}");
        std::io::stdout().flush()?;
        Ok(())
    };
    loop {
        pass_on()?;
        if let Some(status) = child.try_wait()? {
            pass_on()?;
            bail!("the lab's process ended: {status}");
        }
        if ready.exists() {
            pass_on()?;
            print!("\n{}", std::fs::read_to_string(&ready)?);
            println!("  end it    {} down --all", lab_program()?.display());
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn down(id: Option<&str>, all: bool) -> Result<()> {
    let labs = ground::labs()?;
    let chosen: Vec<_> = labs
        .iter()
        .filter(|lab| all || Some(lab.id.as_str()) == id)
        .collect();
    if let (true, Some(id)) = (chosen.is_empty(), id) {
        bail!("there is no lab {id}: see `bellrock-lab list`");
    }
    for lab in chosen {
        ground::end(lab)?;
        println!("lab {} ended", lab.id);
    }
    Ok(())
}

fn list() -> Result<()> {
    for lab in ground::labs()? {
        let state = match (lab.alive, ground::namespaces(&lab.id)?.len()) {
            (true, hosts) => format!("running  {hosts} namespaces"),
            (false, 0) => "ended    logs kept".to_owned(),
            (false, hosts) => format!("killed   {hosts} namespaces left"),
        };
        println!("{}  {state}  {}", lab.id, lab.dir.display());
    }
    Ok(())
}

fn build(path: Option<Part>) -> Result<()> {
    let wanted: Vec<Part> = path.map_or_else(|| Part::NAMESPACES.to_vec(), |part| vec![part]);
    parts::ensure(&wanted, &|line| eprintln!("{line}"))?;
    if let Some(part) = path {
        println!("{}", parts::path(part)?.display());
    }
    Ok(())
}

fn measure(server: SocketAddr, seconds: Option<f32>, pace: probe::Pace, json: bool) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let halt = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.spawn(async move {
        let end = Duration::from_secs_f32(seconds.unwrap_or(86_400.0));
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            () = tokio::time::sleep(end) => {}
        }
        halt.store(true, Ordering::Relaxed);
    });
    let report = probe::probe(server, pace, &stop, &AtomicU64::new(0));
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!(
        "{} probes, {} answered, slowest {:.1} ms",
        report.sent, report.answered, report.slowest_ms
    );
    for (pod, count) in &report.pods {
        println!("  {pod:<40} {count}");
    }
    for outage in &report.outages {
        println!(
            "  silent for {:.0} ms from {:.0} ms on ({} probes)",
            outage.length_ms, outage.start_ms, outage.lost
        );
    }
    Ok(())
}

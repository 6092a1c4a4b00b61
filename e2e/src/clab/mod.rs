//! The cluster lab: nodes with a real kubelet, deployed by containerlab.
//!
//! ```text
//!  bellrock-lab cluster            supervises; cleans up, however the work ends
//!    └─ unshare (mounts, network, processes), where no Docker engine runs
//!         └─ bellrock-lab cluster inside
//!              ├─ dockerd ── containers: cp n1 n2 c1 r1 c2 and the segment
//!              └─ helm, kubectl, probes: the story
//! ```
//!
//! An engine of our own lives in namespaces of its own: its bridges, firewall
//! rules, mounts and processes end with them, and nothing of the machine is
//! touched. What is left then is one folder and some control groups.

mod docker;
mod enclosure;
mod images;
mod options;
mod rights;
mod story;
mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::demo::screen::Screen;
use crate::ground::check_root;
use crate::parts::{self, Part};

/// How long the parts of the lab may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Options of `bellrock-lab cluster`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// Archive with the image of Bellrock, as `make image` leaves it
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Image to build the hosts' images on, such as debian:12; made from this
    /// machine's packages if absent
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Deploy the topology and leave it running until Ctrl-C
    Up(Options),
    /// Build the hosts' images in the Docker engine that runs, for
    /// `containerlab deploy -t e2e/topologies/cluster.clab.yml`
    Images(Options),
    /// The work, supervised by another process
    #[command(hide = true)]
    Inside(Inside),
}

/// What the supervisor tells the worker.
#[derive(Clone, Debug, clap::Args)]
struct Inside {
    /// Folder for everything that is left at the end
    #[arg(long)]
    folder: PathBuf,
    /// Archive with the image of Bellrock
    #[arg(long)]
    image: PathBuf,
    /// Image to build on
    #[arg(long)]
    base: Option<String>,
    /// Start a Docker engine in the namespaces that this process was given
    #[arg(long)]
    own_engine: bool,
    /// Do not tell the story: wait
    #[arg(long)]
    stay: bool,
}

/// Runs it. An error names the check that failed.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        None => supervise(&args.options, false),
        Some(Command::Up(options)) => supervise(options, true),
        Some(Command::Inside(inside)) => work(inside),
        Some(Command::Images(options)) => {
            ensure!(
                docker::engine().is_some(),
                "no Docker engine answers: start one, or use `bellrock-lab cluster up`"
            );
            let folder = tempfile::tempdir()?;
            prepare(&images::NEEDED, options.base.is_none())?;
            images::build(folder.path(), options.base.as_deref(), &say)
        }
    }
}

fn say(line: &str) {
    println!("      {line}");
}

/// What takes the network and minutes, once.
fn prepare(needed: &[Part], base: bool) -> Result<()> {
    parts::ensure(needed, &say)?;
    images::ensure_pods(&say)?;
    if base {
        images::ensure_base(&say)?;
    }
    Ok(())
}

fn supervise(options: &Options, stay: bool) -> Result<()> {
    check_root()?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => images::default_archive()?,
    };
    ensure!(
        image.exists(),
        "{} is not there: run `make image` first",
        image.display()
    );
    let engine = docker::engine();
    ensure!(
        engine.is_some() || options.base.is_none(),
        "--base needs a Docker engine that runs and has the image"
    );
    match &engine {
        Some(version) => println!("      Docker {version} runs here and is used"),
        None => docker::check_programs()?,
    }
    let mut needed = images::NEEDED.to_vec();
    needed.extend([Part::Helm, Part::Containerlab]);
    prepare(&needed, options.base.is_none())?;
    enclosure::sweep()?;
    let inside = Inside {
        folder: enclosure::folder()?,
        image: image.canonicalize()?,
        base: options.base.clone(),
        own_engine: engine.is_none(),
        stay,
    };
    enclosure::supervise(&inside)
}

fn work(inside: &Inside) -> Result<()> {
    let engine = inside
        .own_engine
        .then(|| docker::Engine::start(&inside.folder))
        .transpose()?;
    let mut screen = Screen::new();
    let result = tell(inside, &mut screen);
    drop(engine);
    result
}

fn tell(inside: &Inside, screen: &mut Screen) -> Result<()> {
    screen.chapter(
        "containerlab: a control plane, two nodes with a kubelet, an FRR router, two clients",
    );
    images::build(&inside.folder, inside.base.as_deref(), &say)?;
    let world = world::World::deploy(&inside.folder, screen)?;
    let told = world.join(screen).and_then(|()| {
        if inside.stay {
            println!("\n{}", world.usage()?);
            loop {
                std::thread::park();
            }
        }
        story::tell(&world, &inside.image, screen)
    });
    if let Err(error) = told {
        let place = match world.keep_logs() {
            Ok(logs) => format!("logs in {}", logs.display()),
            Err(error) => format!("its logs could not be kept: {error:#}"),
        };
        return Err(error.context(format!("cluster lab failed; {place}")));
    }
    screen.end("cluster lab");
    // In the words that test runners use.
    println!("cluster: {} passed, 0 failed", screen.checks());
    Ok(())
}

/// The checkout that this program was built from.
fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
        .to_owned()
}

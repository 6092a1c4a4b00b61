//! The `bellrock` program: `bellrock controller` and `bellrock speaker` are
//! the two processes of a cluster, the other commands are for people.
//! Installed as `kubectl-bellrock` it answers to `kubectl bellrock` too.

mod crds;
mod dump;
mod probe;
mod status;
mod table;
mod why;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

/// Addresses for Services of type LoadBalancer on bare metal.
#[derive(Debug, Parser)]
#[command(name = "bellrock", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: Log,
}

#[derive(Debug, clap::Args)]
struct Log {
    /// What to log: a level (error, warn, info, debug, trace) or a list such
    /// as info,bellrock_bgp=debug [controller and speaker: info; else: warn]
    #[arg(long, global = true, env = "BELLROCK_LOG", value_name = "FILTER", value_parser = filter)]
    log: Option<String>,
    /// How to log
    #[arg(
        long,
        global = true,
        env = "BELLROCK_LOG_FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map_err(|_| "not a level or a list of them")?;
    Ok(text.to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Allocate addresses: one process a cluster
    Controller(bellrock_controller::Args),
    /// Announce addresses and forward their traffic: one process a node
    Speaker(bellrock_speaker::Args),
    /// Show nodes, BGP sessions, pools and Services that wait
    Status(status::Args),
    /// Explain who announces an address, and for every other node why not
    Why(why::Args),
    /// Print the CustomResourceDefinitions as YAML, or apply them
    Crds(crds::Args),
    /// Ask a running speaker how it is: for probes
    Probe(probe::Args),
    /// Remove the forwarding that a speaker left on this node
    Cleanup,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = runtime(&cli.command)
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bellrock: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The controller waits for the API server and does little itself: one thread is enough for it, and
/// the memory that several would keep apart is not.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    let mut builder = match command {
        Command::Controller(_) => Builder::new_current_thread(),
        Command::Speaker(_)
        | Command::Status(_)
        | Command::Why(_)
        | Command::Crds(_)
        | Command::Probe(_)
        | Command::Cleanup => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let serving = matches!(cli.command, Command::Controller(_) | Command::Speaker(_));
    let fallback = if serving { "info" } else { "warn" };
    let filter = EnvFilter::try_new(cli.log.log.as_deref().unwrap_or(fallback))
        .context("--log: not a level or a list of them")?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match cli.log.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    match cli.command {
        Command::Controller(args) => bellrock_controller::run(args).await?,
        Command::Speaker(args) => bellrock_speaker::run(args).await?,
        Command::Status(args) => return status::run(&args).await,
        Command::Why(args) => return why::run(&args).await,
        Command::Probe(args) => return probe::run(&args),
        Command::Cleanup => {
            bellrock_forward::Forwarder::remove_table().context("remove the forwarding table")?;
        }
        Command::Crds(args) => crds::run(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

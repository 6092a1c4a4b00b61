//! `make demo`: the main job on one screen, each line checked from outside.

pub(crate) mod screen;
mod story;

use anyhow::{Context, Result, bail};

use crate::lab::{Lab, Options};
use screen::Screen;

/// Options of `bellrock-lab demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the speaker of one node, to see the demo fail and say where
    #[arg(long, value_name = "NODE")]
    without_speaker: Option<String>,
    /// Keep the logs of every part, also when all checks pass
    #[arg(long)]
    keep_logs: bool,
}

/// Tells the story. An error names the check that failed.
pub fn run(args: &Args) -> Result<()> {
    let mut screen = Screen::new();
    screen.chapter("A cluster: etcd, kube-apiserver, three nodes, an FRR router, two clients");
    let say = screen.progress();
    let options = Options {
        keep_logs: args.keep_logs,
        say,
        ..Options::default()
    };
    let lab = Lab::up(&options)?;
    let told = story::tell(&lab, &mut screen, args.without_speaker.as_deref());
    if let Err(error) = told {
        lab.keep_logs();
        let logs = lab.dir().join("logs");
        return Err(error).with_context(|| format!("demo failed; logs in {}", logs.display()));
    }
    drop(lab);
    let checks = screen.checks();
    if checks < LEAST {
        bail!("only {checks} checks were made");
    }
    screen.end("demo");
    Ok(())
}

/// A story that checked less has lost a part.
const LEAST: usize = 14;

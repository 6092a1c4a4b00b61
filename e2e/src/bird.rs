//! BIRD 2 as a real router: one process in a namespace, without systemd and
//! without touching `/etc/bird` or `/run/bird` of the machine.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::daemon::{Daemon, Folder, ask};
use crate::netns::Netns;

const PROGRAM: &str = "/usr/sbin/bird";

/// A running BIRD. Dropping it ends it and removes its folder, or keeps the
/// folder, and says where, when a test is failing.
#[derive(Debug)]
pub struct Bird(Daemon);

impl Bird {
    /// Starts BIRD in `ns` with `config` (the text of a `bird.conf`; logging is
    /// added). An error says what BIRD said.
    pub fn start(ns: &Netns, config: &str) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: install the package `bird2`"
        );
        let folder = Folder::new("bird", ns)?;
        write_config(folder.path(), config)?;
        let mut command = ns.command(PROGRAM);
        command.args(["-f", "-c", "bird.conf", "-s", "bird.ctl"]);
        let mut daemon = folder.start(&mut command)?;
        daemon.wait(|folder| birdc(folder, "show status"))?;
        Ok(Self(daemon))
    }

    /// Runs one command of BIRD's shell; its output.
    pub fn birdc(&self, command: &str) -> Result<String> {
        birdc(self.0.path(), command)
    }

    /// Replaces the configuration of the running process.
    pub fn configure(&self, config: &str) -> Result<()> {
        write_config(self.0.path(), config)?;
        self.birdc("configure").map(drop)
    }

    /// Its process id: `ip netns exec` becomes the program that it starts.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Where it logs.
    pub fn log(&self) -> PathBuf {
        self.0.path().join("bird.log")
    }
}

fn birdc(folder: &Path, command: &str) -> Result<String> {
    let socket = folder.join("bird.ctl");
    let socket = [OsStr::new("-s"), socket.as_os_str()];
    let words = command.split_whitespace().map(OsStr::new);
    let text = ask("/usr/sbin/birdc", socket.into_iter().chain(words))?;
    if text.contains("syntax error") {
        bail!("birdc {command}: {text}");
    }
    Ok(text)
}

fn write_config(folder: &Path, config: &str) -> Result<()> {
    let log = folder.join("bird.log");
    let text = format!("log \"{}\" all;\n{config}", log.display());
    fs::write(folder.join("bird.conf"), text).context("write bird.conf")
}

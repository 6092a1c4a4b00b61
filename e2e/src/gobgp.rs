//! GoBGP as a real router, built from its Go module: one process in a
//! namespace. It has no routes in the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::daemon::{Daemon, Folder, ask};
use crate::netns::Netns;
use crate::parts::{self, Part};

/// A running GoBGP. Dropping it ends it and removes its folder, or keeps the
/// folder, and says where, when a test is failing.
#[derive(Debug)]
pub struct Gobgp {
    daemon: Daemon,
    shell: PathBuf,
}

impl Gobgp {
    /// Starts GoBGP in `ns` with `config` (the text of its TOML file). Builds
    /// it first if need be. An error says what it said.
    pub fn start(ns: &Netns, config: &str) -> Result<Self> {
        parts::ensure(&[Part::Gobgpd, Part::Gobgp], &|line| println!("{line}"))?;
        let folder = Folder::new("gobgp", ns)?;
        fs::write(folder.path().join("gobgpd.toml"), config).context("write gobgpd.toml")?;
        let program = parts::path(Part::Gobgpd)?;
        let mut command = ns.command(&program.to_string_lossy());
        command.args(["-f", "gobgpd.toml", "-l", "debug", "--api-hosts"]);
        command.arg(socket(folder.path()));
        let mut daemon = folder.start(&mut command)?;
        let shell = parts::path(Part::Gobgp)?;
        daemon.wait(|folder| gobgp(&shell, folder, &["global"]))?;
        Ok(Self { daemon, shell })
    }

    /// Runs one command of its shell; its output.
    pub fn gobgp(&self, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        gobgp(&self.shell, self.daemon.path(), &words)
    }

    /// Runs one command of its shell; its output, parsed.
    pub fn json(&self, command: &str) -> Result<Value> {
        let text = self.gobgp(&format!("--json {command}"))?;
        serde_json::from_str(&text).with_context(|| format!("`{command}` said: {text}"))
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        self.daemon.said()
    }
}

fn socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("gobgpd.sock").display())
}

fn gobgp(shell: &Path, folder: &Path, words: &[&str]) -> Result<String> {
    let target = socket(folder);
    let target = ["--target", &target];
    ask(shell, target.iter().chain(words))
}

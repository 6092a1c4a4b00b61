//! A router that is one process: in a namespace, in a folder of its own,
//! without systemd and without touching the machine's configuration.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::netns::Netns;

const START: Duration = Duration::from_secs(30);

/// A running one. Dropping it ends it and removes its folder, or keeps the
/// folder, and says where, when a test is failing.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    folder: Option<TempDir>,
    path: PathBuf,
    process: Child,
}

/// A folder for one, not running yet.
#[derive(Debug)]
pub(crate) struct Folder {
    name: &'static str,
    folder: TempDir,
}

impl Folder {
    pub(crate) fn new(name: &'static str, ns: &Netns) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("{name}-{}-", ns.name()))
            .tempdir()
            .with_context(|| format!("make a folder for {name}"))?;
        Ok(Self { name, folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it there. What it says goes to the file `out`.
    pub(crate) fn start(self, command: &mut Command) -> Result<Daemon> {
        let path = self.folder.path().to_owned();
        let output = File::create(path.join("out"))?;
        let process = command
            .current_dir(&path)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        Ok(Daemon {
            name: self.name,
            folder: Some(self.folder),
            path,
            process,
        })
    }
}

impl Daemon {
    /// Waits until it answers.
    pub(crate) fn wait<T>(&mut self, answered: impl Fn(&Path) -> Result<T>) -> Result<()> {
        let (name, start) = (self.name, Instant::now());
        loop {
            let Err(error) = answered(&self.path) else {
                return Ok(());
            };
            if let Some(status) = self.process.try_wait()? {
                bail!("{name} ended at once: {status}: {}", self.said());
            }
            if start.elapsed() > START {
                return Err(error.context(format!("{name} did not answer within {START:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that it has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.path.join("out")).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its process id: `ip netns exec` becomes the program that it starts.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            let kept = folder.keep();
            println!("{}'s log is kept in {}", self.name, kept.display());
        }
    }
}

/// Runs a router's own command line; its output.
pub(crate) fn ask<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    ensure!(status.success(), "{command:?}: {status}: {text}{complaint}");
    Ok(text)
}

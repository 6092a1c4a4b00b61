//! BIRD 2 as a real router: one process in a namespace, without systemd and
//! without touching `/etc/bird` or `/run/bird` of the machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::netns::Netns;

const PROGRAM: &str = "/usr/sbin/bird";
const START: Duration = Duration::from_secs(30);

/// A running BIRD. Dropping it ends it and removes its folder, or keeps the
/// folder, and says where, when a test is failing.
#[derive(Debug)]
pub struct Bird {
    folder: Option<TempDir>,
    path: PathBuf,
    process: Child,
}

impl Bird {
    /// Starts BIRD in `ns` with `config` (the text of a `bird.conf`; logging is
    /// added). An error says what BIRD said.
    pub fn start(ns: &Netns, config: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("bird-{}-", ns.name()))
            .tempdir()
            .context("make a folder for BIRD")?;
        let path = folder.path().to_owned();
        if !Path::new(PROGRAM).exists() {
            bail!("{PROGRAM} is missing: install the package `bird2`");
        }
        write_config(&path, config)?;
        let output = File::create(path.join("bird.out"))?;
        let mut command: Command = ns.command(PROGRAM);
        let process = command
            .arg("-f")
            .arg("-c")
            .arg(path.join("bird.conf"))
            .arg("-s")
            .arg(path.join("bird.ctl"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start bird")?;
        let mut bird = Self {
            folder: Some(folder),
            path,
            process,
        };
        bird.wait_listening()?;
        Ok(bird)
    }

    fn wait_listening(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let answered = self.birdc("show status");
            let Err(error) = answered else { return Ok(()) };
            if let Some(status) = self.process.try_wait()? {
                let said = fs::read_to_string(self.path.join("bird.out"));
                bail!("bird ended at once: {status}: {}", said.unwrap_or_default());
            }
            if start.elapsed() > START {
                return Err(error.context(format!("bird did not answer within {START:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs one command of BIRD's shell; its output.
    pub fn birdc(&self, command: &str) -> Result<String> {
        let output = Command::new("/usr/sbin/birdc")
            .arg("-s")
            .arg(self.path.join("bird.ctl"))
            .args(command.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .context("run birdc")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || text.contains("syntax error") {
            bail!("birdc {command}: {}: {text}", output.status);
        }
        Ok(text)
    }

    /// Replaces the configuration of the running process.
    pub fn configure(&self, config: &str) -> Result<()> {
        write_config(&self.path, config)?;
        self.birdc("configure").map(drop)
    }

    /// Its process id: `ip netns exec` becomes the program that it starts.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where it logs.
    pub fn log(&self) -> PathBuf {
        self.path.join("bird.log")
    }
}

fn write_config(folder: &Path, config: &str) -> Result<()> {
    let log = folder.join("bird.log");
    let text = format!("log \"{}\" all;\n{config}", log.display());
    fs::write(folder.join("bird.conf"), text).context("write bird.conf")
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            println!("BIRD's log is kept in {}", folder.keep().display());
        }
    }
}

//! FRR as a real router: `zebra` and `bgpd` (with `staticd` and `bfdd` where
//! the configuration asks for them) in a namespace, without systemd and
//! without touching `/etc/frr` or `/run/frr` of the machine.
//!
//! Each [`Frr`] owns a folder with its sockets, its logs and its
//! configuration. The daemons run in a mount namespace of their own (`ip netns
//! exec` makes it) where that folder is `/run/frr`, so any number of them can
//! run at once, also as the root of a user namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Netns;

const DAEMONS: &str = "/usr/lib/frr";
const START: Duration = Duration::from_secs(30);

/// Runs in the daemon's own mount namespace. `$0` is our folder. FRR refuses
/// to run as a user that is not in its vty group, hence the group file.
const ENTER: &str = r#"
mkdir -p /run/frr
mount --bind "$0/run" /run/frr
mount --bind "$0/group" /etc/group
exec "$@"
"#;

/// A running FRR. Dropping it ends its daemons and removes its folder, or
/// keeps the folder, and says where, when a test is failing.
#[derive(Debug)]
pub struct Frr {
    folder: Option<TempDir>,
    path: PathBuf,
    daemons: Vec<(&'static str, Child)>,
}

impl Frr {
    /// Starts FRR in `ns` and applies `config` (the text of a `frr.conf`).
    ///
    /// `zebra` and `bgpd` always run; `staticd` runs if there is an `ip route`
    /// or `ipv6 route` line, `bfdd` if the word `bfd` occurs. Errors name the
    /// folder that holds the logs, and that folder is kept.
    pub fn start(ns: &Netns, config: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("frr-{}-", ns.name()))
            .tempdir()
            .context("make a folder for FRR")?;
        let path = folder.path().to_owned();
        let mut frr = Self {
            folder: Some(folder),
            path,
            daemons: Vec::new(),
        };
        match frr.launch(ns, config) {
            Ok(()) => Ok(frr),
            Err(error) => {
                frr.keep();
                Err(error.context(format!(
                    "FRR in {}, logs in {}",
                    ns.name(),
                    frr.path.display()
                )))
            }
        }
    }

    fn launch(&mut self, ns: &Netns, config: &str) -> Result<()> {
        fs::create_dir(self.path.join("run"))?;
        fs::write(
            self.path.join("group"),
            "root:x:0:\nfrr:x:0:root\nfrrvty:x:0:root\n",
        )?;
        // `vtysh` and each daemon want a file of their own, even if empty.
        fs::write(self.path.join("vtysh.conf"), "")?;
        fs::write(self.path.join("empty.conf"), "")?;
        let has = |words: &[&str]| {
            config
                .lines()
                .any(|line| words.iter().any(|w| line.trim_start().starts_with(w)))
        };
        let mut wanted = vec!["zebra", "bgpd"];
        if has(&["ip route ", "ipv6 route "]) {
            wanted.push("staticd");
        }
        if config.split_whitespace().any(|word| word == "bfd") {
            wanted.push("bfdd");
        }
        for daemon in wanted {
            let child = self.spawn(ns, daemon)?;
            self.daemons.push((daemon, child));
            self.wait_listening(daemon)?;
        }
        self.apply(config)
    }

    fn spawn(&self, ns: &Netns, daemon: &str) -> Result<Child> {
        let program = Path::new(DAEMONS).join(daemon);
        if !program.exists() {
            bail!(
                "{} is missing: install the package `frr`",
                program.display()
            );
        }
        let output = File::create(self.path.join(format!("{daemon}.out")))?;
        let mut command: Command = ns.command("sh");
        command.args(["-ec", ENTER]).arg(&self.path).arg(&program);
        command.args(["-u", "root", "-g", "root", "-P", "0"]);
        command.arg("-f").arg(self.path.join("empty.conf"));
        command
            .arg("--log")
            .arg(format!("file:{}", self.log(daemon).display()));
        command.args(["--log-level", "debugging"]);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {daemon}"))
    }

    /// Waits until the daemon's own terminal answers.
    fn wait_listening(&mut self, daemon: &'static str) -> Result<()> {
        let start = Instant::now();
        loop {
            let answered = self.vtysh_raw(&["-d", daemon, "-c", "show version"]);
            let Err(error) = answered else { return Ok(()) };
            if let Some((_, child)) = self.daemons.iter_mut().find(|(name, _)| *name == daemon)
                && let Some(status) = child.try_wait()?
            {
                let said = fs::read_to_string(self.path.join(format!("{daemon}.out")));
                bail!(
                    "{daemon} ended at once: {status}: {}",
                    said.unwrap_or_default()
                );
            }
            if start.elapsed() > START {
                return Err(error.context(format!("{daemon} did not answer within {START:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs one command of FRR's shell; its output.
    pub fn vtysh(&self, command: &str) -> Result<String> {
        self.vtysh_raw(&["-c", command])
    }

    /// Runs one command that ends in `json`; its output, parsed.
    pub fn json(&self, command: &str) -> Result<Value> {
        let text = self.vtysh(command)?;
        serde_json::from_str(&text).with_context(|| format!("`{command}` said: {text}"))
    }

    /// Applies configuration lines to the running daemons, as if typed after
    /// `configure terminal`. A line that FRR refuses is an error.
    pub fn apply(&self, config: &str) -> Result<()> {
        let file = self.path.join("frr.conf");
        fs::write(&file, config)?;
        let file = file.to_string_lossy().into_owned();
        self.vtysh_raw(&["-f", &file]).map(drop)
    }

    fn vtysh_raw(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("vtysh");
        command.arg("--vty_socket").arg(self.path.join("run"));
        command.arg("--config_dir").arg(&self.path);
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("run vtysh")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || text.starts_with('%') {
            bail!(
                "vtysh {arguments:?}: {}: {text}{} (logs in {})",
                output.status,
                String::from_utf8_lossy(&output.stderr),
                self.path.display()
            );
        }
        Ok(text)
    }

    /// Sends a signal to one daemon: `SIGSTOP` freezes a router's BGP while
    /// its kernel goes on acknowledging.
    pub fn signal(&self, daemon: &str, signal: Signal) -> Result<()> {
        let (_, child) = self
            .daemons
            .iter()
            .find(|(name, _)| *name == daemon)
            .with_context(|| format!("{daemon} does not run"))?;
        let pid = i32::try_from(child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {daemon}"))
    }

    /// Where a daemon logs.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.path.join(format!("{daemon}.log"))
    }

    /// The folder with all logs.
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder after the drop, for whoever reads the logs.
    pub fn keep(&mut self) {
        if let Some(folder) = self.folder.take() {
            let _ = folder.keep();
        }
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        for (_, child) in &mut self.daemons {
            let _ = child.kill();
        }
        for (_, child) in &mut self.daemons {
            let _ = child.wait();
        }
        if std::thread::panicking() && self.folder.is_some() {
            self.keep();
            println!("FRR's logs are kept in {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{as_root, veth, wait_for};

    fn router(asn: u32, own: &str, peer: &str, prefix: &str) -> String {
        format!(
            "router bgp {asn}\n bgp router-id {own}\n no bgp ebgp-requires-policy\n \
             no bgp network import-check\n neighbor {peer} remote-as external\n \
             neighbor {peer} timers connect 1\n address-family ipv4 unicast\n  \
             network {prefix}\n exit-address-family\nexit\n"
        )
    }

    #[test]
    fn two_routers_in_two_namespaces_exchange_routes() {
        if !as_root() {
            return;
        }
        let (a, b) = (Netns::new("r1").unwrap(), Netns::new("r2").unwrap());
        veth(&a, "eth0", &b, "eth0").unwrap();
        a.sh("ip addr add 192.0.2.1/24 dev eth0").unwrap();
        b.sh("ip addr add 192.0.2.2/24 dev eth0").unwrap();
        let one = Frr::start(
            &a,
            &router(64512, "192.0.2.1", "192.0.2.2", "198.51.100.1/32"),
        );
        let two = Frr::start(
            &b,
            &router(64513, "192.0.2.2", "192.0.2.1", "198.51.100.2/32"),
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        wait_for(
            "the other's route in both kernels",
            Duration::from_secs(60),
            || {
                anyhow::ensure!(a.sh("ip route")?.contains("198.51.100.2 "));
                anyhow::ensure!(b.sh("ip route")?.contains("198.51.100.1 "));
                Ok(())
            },
        );
        let summary = one.json("show bgp ipv4 unicast summary json").unwrap();
        assert_eq!(
            summary["peers"]["192.0.2.2"]["state"], "Established",
            "{summary}"
        );
        let folder = two.folder().to_owned();
        drop((one, two));
        assert!(!folder.exists(), "{} is left", folder.display());
    }

    #[test]
    fn a_line_that_frr_refuses_is_an_error_that_names_the_line_and_the_logs() {
        if !as_root() {
            return;
        }
        let ns = Netns::new("r1").unwrap();
        let error = Frr::start(&ns, "router bgp 64512\n bogus\nexit\n").unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("bogus") && text.contains("logs in /"),
            "{text}"
        );
        let folder = text
            .split("logs in ")
            .nth(1)
            .unwrap()
            .split([':', ')'])
            .next()
            .unwrap();
        fs::remove_dir_all(folder).unwrap();
    }
}

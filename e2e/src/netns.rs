//! Network namespaces as test hosts.
//!
//! A [`Netns`] is one host: it has its own interfaces, addresses, routes,
//! neighbour tables and nftables. Hosts are wired with [`veth`] pairs, or
//! plugged into a [`Netns::bridge`].

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A named network namespace, deleted when dropped if it was made here.
#[derive(Debug)]
pub struct Netns {
    name: String,
    ours: bool,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Netns {
    /// Makes a namespace with a name that no other test or lab uses, its
    /// loopback up. `role` ends its name, for readers of `ip netns`.
    pub fn new(role: &str) -> Result<Self> {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("bt{}-{n}-{role}", std::process::id()))
    }

    /// Makes a namespace of exactly this name; fails if it exists.
    pub fn named(name: &str) -> Result<Self> {
        sh(&format!("ip netns add {name}"))?;
        let ns = Self {
            name: name.to_owned(),
            ours: true,
        };
        ns.sh("ip link set lo up")?;
        Ok(ns)
    }

    /// A namespace of this name that somebody else made and will delete.
    pub fn of_others(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ours: false,
        }
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file under `/run/netns`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a shell line inside; its output, or an error that holds it.
    pub fn sh(&self, line: &str) -> Result<String> {
        check(line, self.command("sh").args(["-ec", line]).output())
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Runs `work` on a thread of its own that has entered the namespace.
    /// Sockets opened there stay there, whoever uses them later.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        run_in(&self.path(), work)
    }

    /// Adds a bridge without spanning tree or multicast snooping.
    pub fn bridge(&self, device: &str) -> Result<()> {
        self.sh(&format!(
            "ip link add {device} type bridge stp_state 0 mcast_snooping 0 && ip link set {device} up"
        ))?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        // The kernel ends the namespace when its last process leaves it.
        let _ = sh(&format!("ip netns delete {}", self.name));
    }
}

/// [`Netns::run`] for a namespace that somebody else owns.
pub(crate) fn run_in<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = std::fs::File::open(namespace).context("open namespace")?;
    std::thread::scope(|scope| {
        let handle = scope.spawn(move || -> Result<T> {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
                .context("enter namespace")?;
            Ok(work())
        });
        match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Joins two hosts by a cable: `a_device` in `a`, `b_device` in `b`, both up.
pub fn veth(a: &Netns, a_device: &str, b: &Netns, b_device: &str) -> Result<()> {
    sh(&format!(
        "ip link add {a_device} netns {} type veth peer name {b_device} netns {}",
        a.name, b.name
    ))?;
    a.sh(&format!("ip link set {a_device} up"))?;
    b.sh(&format!("ip link set {b_device} up"))?;
    Ok(())
}

/// Runs a shell line outside any namespace of ours.
pub fn sh(line: &str) -> Result<String> {
    check(line, Command::new("sh").args(["-ec", line]).output())
}

fn check(line: &str, output: io::Result<Output>) -> Result<String> {
    let output = output.with_context(|| format!("start: {line}"))?;
    if !output.status.success() {
        bail!(
            "`{line}`: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Polls `condition` until it yields a value; panics after `within`, saying
/// what was waited for and the last error.
pub fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<T>) -> T {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > within => {
                panic!("waited {within:?} for {what}: {error:#}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Whether this test may go on as root of a machine with namespaces.
///
/// As root: `true`. Otherwise the test re-runs itself inside user, mount and
/// network namespaces where it is root, and the answer is `false`: the work
/// is done. Where that is not allowed it says so and skips; with `CI` set it
/// panics instead, because there no test may skip for want of root.
pub fn as_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let allowed = Command::new("unshare")
        .args(["-Urnm", "mount", "-t", "tmpfs", "tmpfs", "/run"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !allowed {
        assert!(
            std::env::var_os("CI").is_none(),
            "{test} needs root or user namespaces, and has neither"
        );
        println!("skipped: {test}: needs root or user namespaces");
        return false;
    }
    let exe = std::env::current_exe().expect("own path");
    let status = Command::new("unshare")
        .args([
            "-Urnm",
            "sh",
            "-ec",
            "mount -t tmpfs tmpfs /run; mkdir /run/netns; exec \"$@\"",
            "sh",
        ])
        .arg(exe)
        .args(["--exact", &test, "--nocapture"])
        .status()
        .expect("start unshare");
    assert!(
        status.success(),
        "{test} failed inside namespaces: {status}"
    );
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hosts_on_a_cable_reach_each_other() {
        if !as_root() {
            return;
        }
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        veth(&a, "eth0", &b, "eth0").unwrap();
        a.sh("ip addr add 192.0.2.1/24 dev eth0").unwrap();
        b.sh("ip addr add 192.0.2.2/24 dev eth0").unwrap();
        let server = b
            .run(|| std::net::TcpListener::bind("192.0.2.2:80"))
            .unwrap()
            .unwrap();
        let client = a
            .run(|| std::net::TcpStream::connect("192.0.2.2:80"))
            .unwrap();
        client.unwrap();
        server.accept().unwrap();
    }
}

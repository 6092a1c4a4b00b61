//! The Docker engine: one that runs on the machine, or one of our own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The version of the engine that answers, if one does.
pub(super) fn engine() -> Option<String> {
    run("docker", ["version", "--format", "{{.Server.Version}}"])
        .ok()
        .map(|version| version.trim().to_owned())
        .filter(|version| !version.is_empty())
}

/// Checks that an engine can be started.
pub(super) fn check_programs() -> Result<()> {
    for (program, package) in [
        ("dockerd", "docker.io"),
        ("docker", "docker.io"),
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("mmdebstrap", "mmdebstrap"),
        ("unshare", "util-linux"),
    ] {
        ensure!(
            find(program).is_some(),
            "{program} is needed (Debian's package {package}): run e2e/prerequisites.sh cluster"
        );
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
}

/// A Docker engine in the namespaces of this process. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Engine {
    dockerd: Child,
}

impl Engine {
    /// Starts it. This process must be in mount, network and process
    /// namespaces of its own: `/run` and files that containerlab writes to
    /// become private to them.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        seal(folder)?;
        let log = folder.join("dockerd.log");
        let output = File::create(&log)?;
        let wrapper = super::checkout().join("e2e/images/node/lab/lab-runc");
        let dockerd = Command::new("dockerd")
            .arg("--data-root")
            .arg(folder.join("docker"))
            .args(["--bridge=none", "--storage-driver=overlay2"])
            .arg(format!(
                "--cgroup-parent={}",
                super::enclosure::cgroup(folder)?
            ))
            // Where the machine lacks a capability, runc needs this.
            .arg(format!("--add-runtime=lab={}", wrapper.display()))
            .arg("--default-runtime=lab")
            .env("PATH", path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start dockerd")?;
        let mut engine = Self { dockerd };
        let start = Instant::now();
        while self::engine().is_none() {
            if let Some(status) = engine.dockerd.try_wait()? {
                bail!("dockerd ended: {status}\n{}", tail(&log));
            }
            ensure!(
                start.elapsed() < super::PATIENCE,
                "dockerd does not answer\n{}",
                tail(&log)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(engine)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Everything that it runs ends with the process namespace.
        let _ = self.dockerd.kill();
        let _ = self.dockerd.wait();
    }
}

/// Makes private what would otherwise be seen, or written, outside.
fn seal(folder: &Path) -> Result<()> {
    let script = r#"
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir -p /run/netns /run/lock
        cp /etc/hosts "$1/hosts"
        mount --bind "$1/hosts" /etc/hosts
        [ ! -d /etc/ssh/ssh_config.d ] || mount -t tmpfs tmpfs /etc/ssh/ssh_config.d
        ip link set lo up
        sysctl -qw net.ipv4.ip_forward=1
    "#;
    run(
        "sh",
        [
            OsStr::new("-ec"),
            script.as_ref(),
            "sh".as_ref(),
            folder.as_ref(),
        ],
    )
    .map(drop)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// The PATH with the folders of system programs.
pub(super) fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

/// Runs a program and gives what it printed, or an error that holds it.
pub(super) fn run<S: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<String> {
    finish(Command::new(program).args(args), "")
}

/// Runs `command` with `input` and gives what it printed.
pub(super) fn finish(command: &mut Command, input: &str) -> Result<String> {
    let name = format!("{command:?}");
    let name: String = name.chars().take(200).collect();
    let mut child = command
        .env("PATH", path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let mut stdin = child.stdin.take().context("its input")?;
    let input = input.to_owned();
    // A program may answer before it has read everything.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    ensure!(
        output.status.success(),
        "{name}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        String::from_utf8_lossy(&output.stdout).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

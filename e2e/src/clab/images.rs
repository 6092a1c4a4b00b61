//! The images of the lab's hosts and pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::checkout;
use super::docker::{finish, run};
use crate::parts::{self, Part};

/// What a node's image holds.
pub(super) const NEEDED: [Part; 7] = [
    Part::Etcd,
    Part::Apiserver,
    Part::ControllerManager,
    Part::Scheduler,
    Part::Proxy,
    Part::Kubectl,
    Part::Kubelet,
];

/// The image that the hosts' are built on.
const BASE: &str = "bellrock-lab/base";
/// Packages of both container files.
const PACKAGES: &str = "containerd,runc,containernetworking-plugins,iproute2,iptables,nftables,procps,\
                        conntrack,openssl,ca-certificates,curl,iputils-arping,iputils-ping,tcpdump,frr";

/// Where `make image` leaves the archive of this version.
pub(super) fn default_archive() -> Result<PathBuf> {
    let machine = run("uname", ["-m"])?;
    let name = format!(
        "bellrock-{}-{}.tar",
        env!("CARGO_PKG_VERSION"),
        machine.trim()
    );
    Ok(checkout().join("dist").join(name))
}

fn base_archive() -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let text = format!("{PACKAGES}\n{release}");
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let short: String = digest
        .as_ref()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(parts::cache()?.join(format!("base-{short}.tar")))
}

/// Makes the base image's archive from the packages of this machine's own
/// distribution, from where this machine has them, once.
pub(super) fn ensure_base(say: &dyn Fn(&str)) -> Result<()> {
    let archive = base_archive()?;
    if archive.exists() {
        return Ok(());
    }
    say("making a base image of this machine's distribution, about 1 minute once");
    let script = checkout().join("e2e/images/base");
    finish(Command::new(script).arg(&archive).arg(PACKAGES), "").map(drop)
}

/// What the program of the lab's pods is started as, one image each.
const PODS: [&str; 2] = ["pause", "echo"];

fn pod_archive(task: &str) -> PathBuf {
    checkout().join(format!("target/lab-pods/{task}.tar"))
}

/// Builds the images of the lab's pods.
pub(super) fn ensure_pods(say: &dyn Fn(&str)) -> Result<()> {
    say("building the program of the pods");
    let program = run(
        &checkout().join("image/compile").to_string_lossy(),
        ["bellrock-e2e-pod", "lab-pod"],
    )?;
    let pack = checkout().join("image/pack");
    for task in PODS {
        let archive = pod_archive(task);
        let (name, archive) = (
            format!("bellrock-lab/{task}:latest"),
            archive.to_string_lossy(),
        );
        run(
            &pack.to_string_lossy(),
            [&name, program.trim(), &archive, "--", task],
        )?;
    }
    Ok(())
}

/// Builds the hosts' images in the engine that answers.
pub(super) fn build(folder: &Path, base: Option<&str>, say: &dyn Fn(&str)) -> Result<()> {
    let base = match base {
        Some(base) => base,
        None => {
            say("importing the base image");
            let archive = base_archive()?;
            let archive = archive.to_string_lossy();
            run("docker", ["import", &archive, BASE])?;
            BASE
        }
    };
    let sources = checkout().join("e2e/images");
    say("building the images of the hosts");
    let router = context(folder, "router", &sources)?;
    docker_build("bellrock-lab/router", base, &router)?;

    let node = context(folder, "node", &sources)?;
    let programs = node.join("bin");
    fs::create_dir(&programs)?;
    for part in NEEDED {
        let target = programs.join(part.name());
        fs::copy(parts::path(part)?, &target)
            .with_context(|| format!("copy {}", target.display()))?;
    }
    let archives = node.join("images");
    fs::create_dir(&archives)?;
    for task in PODS {
        fs::copy(pod_archive(task), archives.join(format!("{task}.tar")))
            .with_context(|| format!("copy the image of {task}"))?;
    }
    docker_build("bellrock-lab/node", base, &node)?;
    fs::remove_dir_all(&node)?;
    fs::remove_dir_all(&router)?;
    Ok(())
}

fn context(folder: &Path, name: &str, sources: &Path) -> Result<PathBuf> {
    let target = folder.join(name);
    let copied = Command::new("cp")
        .arg("--recursive")
        .arg(sources.join(name))
        .arg(&target)
        .status()?;
    ensure!(copied.success(), "copy {name}: {copied}");
    fs::copy(sources.join("packages"), target.join("packages"))?;
    Ok(target)
}

fn docker_build(tag: &str, base: &str, context: &Path) -> Result<()> {
    let argument = format!("BASE={base}");
    let mut command = Command::new("docker");
    // The engine's own builder: another may not be installed.
    command.env("DOCKER_BUILDKIT", "0");
    command.args(["build", "--quiet", "--tag", tag, "--build-arg", &argument]);
    finish(command.arg(context), "").map(drop)
}

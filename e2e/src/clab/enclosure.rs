//! The supervisor: a worker in namespaces of its own, and what is left when it
//! has ended.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::{Inside, world};

/// Not under /tmp, which may be memory: images of a gigabyte go there.
const BASE: &str = "/var/tmp";
const PREFIX: &str = "bellrock-cluster-";

/// The folder of a new lab.
pub(super) fn folder() -> Result<PathBuf> {
    Ok(tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(BASE)?
        .keep())
}

/// The control group above all containers of the lab in `folder`.
pub(super) fn cgroup(folder: &Path) -> Result<String> {
    let name = folder.file_name().context("a folder without a name")?;
    Ok(format!("/{}", name.to_string_lossy()))
}

/// Removes what labs left that were killed.
pub(super) fn sweep() -> Result<()> {
    for entry in fs::read_dir(BASE)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && let Ok(Some(_lock)) = claim(&entry.path())
        {
            remove(&entry.path());
        }
    }
    Ok(())
}

/// The lock that a lab holds on its folder as long as it lives.
fn claim(folder: &Path) -> Result<Option<Flock<File>>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
}

/// Starts the worker and waits for it; whatever happens, nothing is left.
pub(super) fn supervise(inside: &Inside) -> Result<()> {
    let Some(_lock) = claim(&inside.folder)? else {
        bail!("{} is in use", inside.folder.display());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(watch(inside));
    if !inside.own_engine {
        world::destroy(&inside.folder);
    }
    remove(&inside.folder);
    result
}

async fn watch(inside: &Inside) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = tokio::process::Command::from(command(inside)?)
        .kill_on_drop(true)
        .spawn()
        .context("start the worker")?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    let stopped = tokio::select! {
        status = child.wait() => {
            let status = status?;
            if status.success() {
                return Ok(());
            }
            // It has said why.
            bail!("the lab ended: {status}");
        }
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "terminated",
        _ = hangup.recv() => "the terminal is gone",
    };
    // The first process of the enclosure dies with its parent, and all others
    // with it; without an enclosure they are one process group.
    if let Some(pid) = group {
        let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
    }
    child.wait().await?;
    bail!("{stopped}");
}

fn command(inside: &Inside) -> Result<std::process::Command> {
    // Dies with this process, however that ends.
    let mut command = std::process::Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if inside.own_engine {
        command.args(["unshare", "--mount", "--net", "--pid", "--fork"]);
        command.args(["--kill-child=KILL", "--mount-proc", "--"]);
    }
    // A copy: this program may be built anew while it runs.
    let program = inside.folder.join("bellrock-lab");
    fs::copy("/proc/self/exe", &program)?;
    command.arg(program);
    command.args(["cluster", "inside"]);
    command.arg("--folder").arg(&inside.folder);
    command.arg("--image").arg(&inside.image);
    if let Some(base) = &inside.base {
        command.arg("--base").arg(base);
    }
    if inside.own_engine {
        command.arg("--own-engine");
    }
    if inside.stay {
        command.arg("--stay");
    }
    command.process_group(0);
    Ok(command)
}

/// Removes a lab's folder and its control groups.
fn remove(folder: &Path) {
    if let Ok(name) = cgroup(folder) {
        let name = name.trim_start_matches('/');
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(children(Path::new("/sys/fs/cgroup")));
        for root in roots {
            let group = root.join(name);
            // Processes that were killed may take a moment to leave.
            for _ in 0..100 {
                if !group.exists() || prune(&group) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
    for _ in 0..100 {
        if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    eprintln!("could not remove {}", folder.display());
}

/// Removes a control group and those in it.
fn prune(group: &Path) -> bool {
    for child in children(group) {
        prune(&child);
    }
    fs::remove_dir(group).is_ok()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

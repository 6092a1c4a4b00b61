//! The ground a lab stands on: its id, its folder, the namespaces that carry
//! its name, the children it started, and the end of all of these.
//!
//! A lab holds a lock on `/run/bellrock-lab/ID` as long as it lives. What
//! carries an id whose lock nobody holds is left over, and [`sweep`] removes
//! it. Beside each lab runs a watchdog, a shell that waits for the end of the
//! lab's process and then removes whatever the lab itself had no time to.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Write};
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Process, Task, lock};

const LOCKS: &str = "/run/bellrock-lab";
const NETNS: &str = "/run/netns";

/// Ends the lab `$1` when its standard input ends. Twice over, because a node
/// agent may have been starting a pod.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for round in 1 2 3; do
  for ns in /run/netns/"$1"-*; do
    [ -e "$ns" ] || continue
    ns=${ns##*/}
    pids=$(ip netns pids "$ns" 2>/dev/null)
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null
    ip netns delete "$ns" 2>/dev/null
  done
done
"#;

/// A lab's id, folder, children and lock.
#[derive(Debug)]
pub struct Ground {
    id: String,
    dir: PathBuf,
    processes: Mutex<Vec<Arc<Process>>>,
    watchdog: Mutex<Option<(Child, ChildStdin)>>,
    lock: Mutex<Option<Flock<File>>>,
    closed: AtomicBool,
    keep: AtomicBool,
}

impl Ground {
    /// Claims a new id, its folder and its lock.
    pub fn claim() -> Result<Arc<Self>> {
        fs::create_dir_all(LOCKS).with_context(|| format!("make {LOCKS}"))?;
        fs::create_dir_all(NETNS)?;
        for attempt in 0..32_u32 {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u32(attempt);
            let id = format!("{:04x}", hasher.finish() & 0xffff);
            let dir = std::env::temp_dir().join(format!("bellrock-lab-{id}"));
            let Some(mut lock) = take_lock(&id)? else {
                continue;
            };
            // A folder of a lab that failed: its logs stay, its id is used.
            if fs::create_dir(&dir).is_err() || !namespaces(&id)?.is_empty() {
                let _ = fs::remove_file(lock_path(&id));
                continue;
            }
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
            fs::create_dir(dir.join("logs"))?;
            lock.set_len(0)?;
            write!(lock, "{}\n{}\n", std::process::id(), dir.display())?;
            let ground = Arc::new(Self {
                watchdog: Mutex::new(Some(watchdog(&id)?)),
                id,
                dir,
                processes: Mutex::default(),
                lock: Mutex::new(Some(lock)),
                closed: AtomicBool::new(false),
                keep: AtomicBool::new(false),
            });
            watch_signals(&ground);
            return Ok(ground);
        }
        bail!("no free lab id: run `bellrock-lab down --all`")
    }

    /// Four hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The lab's folder; removed at the end, unless something failed.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of the namespace of a host.
    pub fn netns(&self, host: &str) -> String {
        format!("{}-{host}", prefix(&self.id))
    }

    /// What every namespace of this lab starts with, without the dash.
    pub fn prefix(&self) -> String {
        prefix(&self.id)
    }

    /// The log file of a part.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Starts a child that ends with the lab. An empty `log` becomes the
    /// lab's log of that name.
    pub fn start(&self, mut task: Task) -> Result<Arc<Process>> {
        if task.log.as_os_str().is_empty() {
            task.log = self.log(&task.name);
        }
        let mut processes = lock(&self.processes);
        if self.closed.load(Ordering::SeqCst) {
            bail!("the lab is ending");
        }
        let process = Arc::new(task.start()?);
        processes.push(Arc::clone(&process));
        Ok(process)
    }

    /// An error that quotes the log of a child that ended by itself.
    pub fn check(&self) -> Result<()> {
        lock(&self.processes)
            .iter()
            .try_for_each(|process| process.check())
    }

    /// Keeps the folder after the end.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    /// Whether the folder will be kept.
    pub fn keeps(&self) -> bool {
        self.keep.load(Ordering::SeqCst)
    }

    /// Ends everything: children, whatever else runs in the namespaces, the
    /// namespaces, the lock, and the folder if nothing failed. Safe to call
    /// twice and from any thread.
    pub fn teardown(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let processes = std::mem::take(&mut *lock(&self.processes));
        for process in &processes {
            process.close();
        }
        clear(&self.id);
        if let Some((mut child, input)) = lock(&self.watchdog).take() {
            drop(input);
            let _ = child.wait();
        }
        if let Some(held) = lock(&self.lock).take() {
            if self.keeps() {
                // Keys and tokens are of no use to a reader of logs.
                let _ = fs::remove_dir_all(self.dir.join("pki"));
                eprintln!(
                    "the lab's logs are kept in {}",
                    self.dir.join("logs").display()
                );
            } else {
                remove_routers(&self.id);
                let _ = fs::remove_dir_all(&self.dir);
            }
            let _ = fs::remove_file(lock_path(&self.id));
            drop(held);
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
        self.teardown();
    }
}

/// An error unless this is root.
pub fn check_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab needs root: it makes network namespaces");
    }
    Ok(())
}

fn prefix(id: &str) -> String {
    format!("bl{id}")
}

fn lock_path(id: &str) -> PathBuf {
    Path::new(LOCKS).join(id)
}

/// The lock of an id, or nothing if a living lab holds it.
fn take_lock(id: &str) -> Result<Option<Flock<File>>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(lock_path(id))
        .context("open the lab's lock")?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).context("lock the lab's id"),
    }
}

fn watchdog(id: &str) -> Result<(Child, ChildStdin)> {
    let mut child = Command::new("sh")
        .args(["-c", WATCHDOG, "bellrock-lab-watchdog", &prefix(id)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("start the lab's watchdog")?;
    let input = child.stdin.take().context("the watchdog's input")?;
    Ok((child, input))
}

/// Ends living labs on `SIGINT`, `SIGTERM` and `SIGHUP`, then the process.
fn watch_signals(ground: &Arc<Ground>) {
    static LABS: OnceLock<Mutex<Vec<Weak<Ground>>>> = OnceLock::new();
    let labs = LABS.get_or_init(|| {
        std::thread::spawn(|| {
            let number = wait_for_signal().unwrap_or(1);
            eprintln!("\nending the lab");
            let labs = LABS
                .get()
                .map(|labs| lock(labs).clone())
                .unwrap_or_default();
            for ground in labs.iter().filter_map(Weak::upgrade) {
                ground.teardown();
            }
            std::process::exit(128 + number);
        });
        Mutex::default()
    });
    let mut labs = lock(labs);
    labs.retain(|lab| lab.strong_count() > 0);
    labs.push(Arc::downgrade(ground));
}

fn wait_for_signal() -> Result<i32> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
        })
    })
}

/// The namespaces of a lab.
pub fn namespaces(id: &str) -> Result<Vec<String>> {
    let prefix = format!("{}-", prefix(id));
    Ok(all_namespaces()?
        .into_iter()
        .filter(|name| name.starts_with(&prefix))
        .collect())
}

fn all_namespaces() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(NETNS) else {
        return Ok(Vec::new());
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// The processes whose network namespace is one of `names`.
pub fn processes_in(names: &[String]) -> Vec<i32> {
    let inside: BTreeSet<(u64, u64)> = names
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS).join(name)).ok())
        .map(|data| (data.dev(), data.ino()))
        .collect();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != own)
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|data| inside.contains(&(data.dev(), data.ino())))
        })
        .collect()
}

/// Kills what runs in a lab's namespaces and deletes them.
fn clear(id: &str) {
    let start = Instant::now();
    while let Ok(names) = namespaces(id) {
        let pids = processes_in(&names);
        for &pid in &pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if pids.is_empty() || start.elapsed() > Duration::from_secs(10) {
            for name in &names {
                let _ = Command::new("ip").args(["netns", "delete", name]).output();
            }
            if names.is_empty() || start.elapsed() > Duration::from_secs(10) {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes the folders of a lab's routers, which carry their namespace's name.
fn remove_routers(id: &str) {
    let folder = format!("frr-{}-", prefix(id));
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with(&folder) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A lab that someone started.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Whether its process lives.
    pub alive: bool,
    /// That process.
    pub pid: Option<i32>,
    /// Its folder.
    pub dir: PathBuf,
}

/// All labs of this machine: the living, and the dead that left something, be
/// it only logs.
pub fn labs() -> Result<Vec<Found>> {
    let mut ids: BTreeSet<String> = all_namespaces()?
        .iter()
        .filter_map(|name| name.strip_prefix("bl")?.split_once('-'))
        .map(|(id, _)| id.to_owned())
        .collect();
    for entry in fs::read_dir(LOCKS).into_iter().flatten().flatten() {
        ids.extend(entry.file_name().into_string());
    }
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_prefix("bellrock-lab-"));
        ids.extend(id.map(str::to_owned));
    }
    ids.retain(|id| id.len() == 4 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    fs::create_dir_all(LOCKS)?;
    ids.into_iter().map(find).collect()
}

fn find(id: String) -> Result<Found> {
    let (locked, mut text) = (take_lock(&id)?, String::new());
    // Its lab may end, and the file with it, at any time.
    let _ = match &locked {
        Some(lock) => lock.deref().read_to_string(&mut text),
        None => File::open(lock_path(&id)).and_then(|mut file| file.read_to_string(&mut text)),
    };
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.parse().ok());
    let dir = lines.next().map_or_else(
        || std::env::temp_dir().join(format!("bellrock-lab-{id}")),
        PathBuf::from,
    );
    Ok(Found {
        alive: locked.is_none() && pid.is_none_or(|pid| holds(pid, &id)),
        id,
        pid,
        dir,
    })
}

/// Whether a process has a lab's lock open. Another that looks at a dead lab
/// holds its lock for a moment too.
fn holds(pid: i32, id: &str) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|target| target == lock_path(id)))
}

/// Ends a lab of another process and waits for its end.
pub fn end(lab: &Found) -> Result<()> {
    if !lab.alive {
        sweep_one(lab)?;
        remove_routers(&lab.id);
        let _ = fs::remove_dir_all(&lab.dir);
        return Ok(());
    }
    let pid = lab.pid.context("the lab is just starting")?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("end the lab's process")?;
    let start = Instant::now();
    while take_lock(&lab.id)?.is_none() {
        if start.elapsed() > Duration::from_secs(30) {
            bail!("lab {} (process {pid}) does not end", lab.id);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    sweep_one(lab)
}

/// Removes what a dead lab left, but its logs. Whoever holds its lock is a new
/// lab of that id.
fn sweep_one(lab: &Found) -> Result<()> {
    if let Some(_lock) = take_lock(&lab.id)? {
        clear(&lab.id);
        let _ = fs::remove_file(lock_path(&lab.id));
    }
    Ok(())
}

/// Removes processes and namespaces that dead labs left; their logs stay.
pub fn sweep() -> Result<()> {
    labs()?
        .iter()
        .filter(|lab| !lab.alive)
        .try_for_each(sweep_one)
}

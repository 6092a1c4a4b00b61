//! Children of a lab: started in a namespace, logged to a file, and gone when
//! the lab is gone, however it ended.
//!
//! Every child is started through `setpriv --pdeathsig KILL`. The kernel sends
//! that signal when the *thread* that started the child ends, so all children
//! are started from one thread that lives as long as the process does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts `command` from the thread that never ends.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, answer) = sync_channel(1);
    let gone = |_| io::Error::other("the thread that starts children is gone");
    lock(spawner)
        .send((command, reply))
        .map_err(|_| io::Error::other("the thread that starts children is gone"))?;
    answer.recv().map_err(gone)?
}

/// Locks, whatever happened to another holder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to run and where.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// Its name in messages and the name of its log.
    pub name: String,
    /// The namespace it runs in; the machine's own if absent.
    pub netns: Option<String>,
    /// Whether what it mounts (as `ip netns add` does) is seen outside. Its
    /// `/sys` is then the machine's, not the namespace's.
    pub shares_mounts: bool,
    /// The program, as a path or a name on the PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables added to its environment.
    pub env: BTreeMap<String, String>,
    /// User and group id to run as; root if absent.
    pub user: Option<u32>,
    /// The only capabilities it may hold, as `setpriv` spells them
    /// (`net_admin`); everything root has if absent.
    pub capabilities: Option<Vec<String>>,
    /// Whether it can never gain rights (`no_new_privs`).
    pub confined: bool,
    /// Where its output goes; appended to.
    pub log: PathBuf,
}

impl Task {
    fn command(&self) -> Result<Command> {
        let mut line: Vec<OsString> = Vec::new();
        match &self.netns {
            Some(netns) if self.shares_mounts => {
                let file = format!("--net=/run/netns/{netns}");
                line.extend(["nsenter", &file, "--"].map(OsString::from));
            }
            Some(netns) => line.extend(["ip", "netns", "exec", netns].map(OsString::from)),
            None => {}
        }
        line.extend(["setpriv", "--pdeathsig", "KILL"].map(OsString::from));
        if let Some(user) = self.user {
            let user = user.to_string();
            line.extend(["--reuid", &user, "--regid", &user, "--clear-groups"].map(Into::into));
        }
        if let Some(capabilities) = &self.capabilities {
            let set = capabilities
                .iter()
                .fold("-all".to_owned(), |set, one| format!("{set},+{one}"));
            line.extend(["--inh-caps", "-all", "--bounding-set", &set].map(Into::into));
        }
        line.extend(self.confined.then(|| "--no-new-privs".into()));
        line.push("--".into());
        line.push(self.program.clone().into());
        line.extend(self.args.iter().cloned());

        let output = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open log {}", self.log.display()))?;
        let (program, args) = line.split_first().context("empty command")?;
        let mut command = Command::new(program);
        command
            .args(args)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        Ok(command)
    }

    /// Starts it.
    pub fn start(self) -> Result<Process> {
        let child = self.launch()?;
        Ok(Process {
            task: self,
            state: Mutex::new(State {
                child,
                status: None,
                wanted: false,
                closed: false,
            }),
        })
    }

    fn launch(&self) -> Result<Child> {
        spawn(self.command()?).with_context(|| format!("start {}", self.name))
    }
}

#[derive(Debug)]
struct State {
    child: Child,
    status: Option<ExitStatus>,
    /// Somebody here sent it a signal: its end is no surprise.
    wanted: bool,
    closed: bool,
}

impl State {
    fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    fn kill(&mut self) -> Result<ExitStatus> {
        self.wanted = true;
        if self.poll()?.is_none() {
            self.child.kill()?;
            self.status = Some(self.child.wait()?);
        }
        self.status.context("no exit status")
    }
}

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    task: Task,
    state: Mutex<State>,
}

impl Process {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.task.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        lock(&self.state).child.id()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.task.log
    }

    /// The last `lines` lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.task.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(lock(&self.state).poll(), Ok(None))
    }

    /// An error that quotes its log if it ended though nobody here ended it.
    pub fn check(&self) -> Result<()> {
        let mut state = lock(&self.state);
        let status = state.poll()?.filter(|_| !state.wanted);
        drop(state);
        if let Some(status) = status {
            bail!(
                "{} ended: {status}; the end of {}:\n{}",
                self.name(),
                self.task.log.display(),
                self.log_tail(15)
            );
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut state = lock(&self.state);
        if state.poll()?.is_some() {
            bail!("{} does not run", self.name());
        }
        state.wanted = true;
        let pid = i32::try_from(state.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name()))
    }

    /// `kill -9`, and waits for its end.
    pub fn kill9(&self) -> Result<()> {
        lock(&self.state).kill().map(drop)
    }

    /// `SIGTERM`, and waits for its end. Past `within` it is killed and that
    /// is an error.
    pub fn terminate(&self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let start = Instant::now();
        loop {
            if let Some(status) = lock(&self.state).poll()? {
                return Ok(status);
            }
            if start.elapsed() > within {
                self.kill9()?;
                bail!("{} did not end within {within:?} of SIGTERM", self.name());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again with the same command; kills it first if it runs.
    pub fn restart(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if state.closed {
            bail!("the lab is ending");
        }
        state.kill()?;
        state.child = self.task.launch()?;
        state.status = None;
        state.wanted = false;
        Ok(())
    }

    /// Kills it for good: it cannot be restarted.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let _ = state.kill();
    }

    /// Resident memory now, in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory it ever had, in KiB.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(path)?;
        text.lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|value| value.parse().ok())
            .with_context(|| format!("no {field} for {}", self.name()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.close();
    }
}

//! OpenBGPD as a real router: one session engine in a namespace, without
//! touching `/etc/bgpd.conf` or `/run/openbgpd` of the machine. Its port for
//! Linux has no routes in the kernel.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::daemon::{Daemon, Folder, ask};
use crate::netns::Netns;

const PROGRAM: &str = "/usr/sbin/bgpd";
const SHELL: &str = "/usr/sbin/bgpctl";

/// Runs in its own mount namespace (`ip netns exec` makes it). It wants a user
/// of its own and the folder that its parts retreat into; in the namespace of
/// an unprivileged user there is only one user, so that one has both names.
const ENTER: &str = r#"
mkdir -p /run/openbgpd
mount --bind run /run/openbgpd
mount --bind passwd /etc/passwd
mount --bind group /etc/group
exec "$@"
"#;

/// A running OpenBGPD. Dropping it ends it and removes its folder, or keeps
/// the folder, and says where, when a test is failing.
#[derive(Debug)]
pub struct OpenBgpd(Daemon);

impl OpenBgpd {
    /// Starts OpenBGPD in `ns` with `config` (the text of a `bgpd.conf`; the
    /// control socket is added). An error says what it said.
    pub fn start(ns: &Netns, config: &str) -> Result<Self> {
        ensure!(
            Path::new(SHELL).exists(),
            "{SHELL} is missing: install the package `openbgpd`"
        );
        let folder = Folder::new("openbgpd", ns)?;
        let path = folder.path();
        fs::create_dir(path.join("run"))?;
        let passwd = "root:x:0:0::/root:/bin/sh\n_openbgpd:x:0:0::/run/openbgpd:/bin/false\n";
        fs::write(path.join("passwd"), passwd)?;
        fs::write(path.join("group"), "root:x:0:\n_openbgpd:x:0:\n")?;
        let socket = path.join("bgpd.sock");
        let file = path.join("bgpd.conf");
        let text = format!("socket \"{}\"\nlog updates\n{config}", socket.display());
        fs::write(&file, text).context("write bgpd.conf")?;
        // It may hold a password, so no one else may read it.
        fs::set_permissions(&file, Permissions::from_mode(0o600))?;
        let mut command = ns.command("sh");
        command.args(["-ec", ENTER, "sh", PROGRAM, "-d", "-v", "-f", "bgpd.conf"]);
        let mut daemon = folder.start(&mut command)?;
        daemon.wait(|folder| bgpctl(folder, &["show", "summary"]))?;
        Ok(Self(daemon))
    }

    /// Runs one command of its shell; its output.
    pub fn bgpctl(&self, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        bgpctl(self.0.path(), &words)
    }

    /// Runs one command of its shell; its output, parsed.
    pub fn json(&self, command: &str) -> Result<Value> {
        let text = self.bgpctl(&format!("-j {command}"))?;
        serde_json::from_str(&text).with_context(|| format!("`{command}` said: {text}"))
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        self.0.said()
    }
}

fn bgpctl(folder: &Path, words: &[&str]) -> Result<String> {
    let socket = folder.join("bgpd.sock");
    let socket = [OsStr::new("-s"), socket.as_os_str()];
    ask(
        SHELL,
        socket.into_iter().chain(words.iter().map(OsStr::new)),
    )
}

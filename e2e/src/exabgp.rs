//! ExaBGP as a real peer: it speaks BGP and hands what it hears to a program,
//! here as lines of JSON in a file. It is no router.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::daemon::{Daemon, Folder, ask};
use crate::netns::Netns;

const PROGRAM: &str = "/usr/sbin/exabgp";

/// What it hands its messages to, and takes commands from. It counts as dead
/// once it closes its output. It is started somewhere else.
const HELPER: &str = "#!/bin/sh
cd \"${0%/*}\"
exec 3<&0
cat >>heard <&3 &
exec cat <commands
";

/// A running ExaBGP. Dropping it ends it and removes its folder, or keeps the
/// folder, and says where, when a test is failing.
#[derive(Debug)]
pub struct Exabgp {
    daemon: Daemon,
    commands: File,
}

impl Exabgp {
    /// Starts ExaBGP in `ns`, listening on `address`, with `config` (the text
    /// of its file). The process `helper` is added: name it in the
    /// neighbour's `api`. An error says what it said.
    pub fn start(ns: &Netns, address: &str, config: &str) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: install the package `exabgp`"
        );
        let folder = Folder::new("exabgp", ns)?;
        let path = folder.path();
        let helper = path.join("helper");
        fs::write(&helper, HELPER)?;
        fs::set_permissions(&helper, Permissions::from_mode(0o755))?;
        fs::write(path.join("heard"), "")?;
        let pipe = path.join("commands");
        ask("mkfifo", [&pipe])?;
        // Opened for both, it does not wait for the other end.
        let commands = File::options().read(true).write(true).open(&pipe)?;
        let text = format!(
            "process helper {{\n run {};\n encoder json;\n}}\n{config}",
            helper.display()
        );
        fs::write(path.join("exabgp.conf"), text).context("write exabgp.conf")?;
        let mut command = ns.command(PROGRAM);
        command
            .arg("exabgp.conf")
            .env("exabgp.tcp.bind", address)
            .env("exabgp.tcp.port", "179")
            .env("exabgp.daemon.user", "root")
            .env("exabgp.daemon.drop", "false")
            .env("exabgp.log.destination", "stdout")
            .env("exabgp.api.cli", "false")
            .env("exabgp.api.ack", "false");
        let mut daemon = folder.start(&mut command)?;
        daemon.wait(|folder| {
            let said = fs::read_to_string(folder.join("out"))?;
            ensure!(said.contains("loaded new configuration"), "{said}");
            Ok(())
        })?;
        Ok(Self { daemon, commands })
    }

    /// Gives it a command of its API.
    pub fn command(&self, command: &str) -> Result<()> {
        writeln!(&self.commands, "{command}").context("write to ExaBGP")
    }

    /// All that it has handed over: one JSON object a line.
    pub fn heard(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.daemon.path().join("heard"))?;
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("ExaBGP said {line}")))
            .collect()
    }

    /// The prefixes that it was told of in its latest session.
    pub fn routes(&self) -> Result<BTreeSet<String>> {
        let mut routes = BTreeSet::new();
        for event in self.heard()? {
            if event["neighbor"]["state"] == "down" {
                routes.clear();
            }
            let update = &event["neighbor"]["message"]["update"];
            for family in update["withdraw"].as_object().into_iter().flatten() {
                for prefix in prefixes(family.1) {
                    routes.remove(&prefix);
                }
            }
            for family in update["announce"].as_object().into_iter().flatten() {
                let next_hops = family.1.as_object().into_iter().flatten();
                routes.extend(next_hops.flat_map(|(_, list)| prefixes(list)));
            }
        }
        Ok(routes)
    }
}

fn prefixes(list: &Value) -> impl Iterator<Item = String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|entry| entry["nlri"].as_str().map(str::to_owned))
}

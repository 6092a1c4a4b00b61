//! Captures with `tcpdump`, decoded by Wireshark.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::netns::{Netns, wait_for};

/// A running capture. Dropping it ends it and removes its file.
#[derive(Debug)]
pub struct Capture {
    _folder: TempDir,
    file: PathBuf,
    child: Child,
}

impl Capture {
    /// Captures what passes `device` in `ns` and matches `filter` (`pcap-filter(7)`,
    /// empty for all). When this returns, the capture has begun.
    pub fn start(ns: &Netns, device: &str, filter: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("capture.pcap");
        let log = folder.path().join("tcpdump.log");
        let child = ns
            .command("tcpdump")
            .args([
                "-i",
                device,
                "-n",
                "-p",
                "--immediate-mode",
                "-U",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file)
            .args(filter.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("start tcpdump")?;
        let mut capture = Self {
            _folder: folder,
            file,
            child,
        };
        let mut ended = None;
        wait_for("tcpdump to listen", Duration::from_secs(20), || {
            let said = std::fs::read_to_string(&log)?;
            ended = capture.child.try_wait()?;
            if said.contains("listening on") || ended.is_some() {
                return Ok(());
            }
            bail!("it said {said:?}")
        });
        if let Some(status) = ended {
            bail!("tcpdump: {status}: {}", std::fs::read_to_string(&log)?);
        }
        Ok(capture)
    }

    /// The capture file.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Decodes what has been captured so far: per packet that matches the
    /// display filter, the values of the fields, empty where a packet lacks one
    /// and comma-separated where it has several.
    pub fn decode(&self, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let mut command = Command::new("tshark");
        command.arg("-n").arg("-r").arg(&self.file);
        command.args(["-Y", filter, "-T", "fields", "-E", "separator=/t"]);
        for field in fields {
            command.args(["-e", field]);
        }
        let output = command.output().context("run tshark")?;
        let said = String::from_utf8_lossy(&output.stderr);
        // The last packet may be half written.
        if !output.status.success() && !said.contains("cut short in the middle of a packet") {
            bail!("tshark: {}: {said}", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect())
    }

    /// Ends the capture; it can still be decoded.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let pid = i32::try_from(self.child.id()).context("process id")?;
            kill(Pid::from_raw(pid), Signal::SIGINT)?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{as_root, veth};

    #[test]
    fn a_ping_is_captured_and_decoded() {
        if !as_root() {
            return;
        }
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        veth(&a, "eth0", &b, "eth0").unwrap();
        a.sh("ip addr add 192.0.2.1/24 dev eth0").unwrap();
        b.sh("ip addr add 192.0.2.2/24 dev eth0").unwrap();
        let mut capture = Capture::start(&b, "eth0", "arp or icmp").unwrap();
        a.sh("ping -c 1 -W 5 192.0.2.2").unwrap();
        wait_for("the reply in the capture", Duration::from_secs(20), || {
            let replies = capture.decode("icmp.type == 0", &["ip.src", "ip.dst"])?;
            anyhow::ensure!(replies == [["192.0.2.2", "192.0.2.1"]], "{replies:?}");
            Ok(())
        });
        capture.stop().unwrap();
        let asked = capture
            .decode("arp.opcode == 1", &["arp.dst.proto_ipv4"])
            .unwrap();
        assert!(asked.contains(&vec!["192.0.2.2".to_owned()]), "{asked:?}");
        assert!(Capture::start(&b, "nodevice", "").is_err());
    }
}

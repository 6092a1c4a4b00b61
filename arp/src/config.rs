//! What the driver is told at start, and why it may refuse.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::frame;
use crate::time::{Timers, TimersError};

/// The shortest key that is taken.
const KEY: usize = 16;

/// What the driver is told at start.
#[derive(Clone)]
pub struct Config {
    /// This node's name: at most 253 bytes.
    pub node: String,
    /// The cluster's name; nodes of other clusters on the segment are not
    /// heard.
    pub cluster: String,
    /// The key of the cluster's frames: at least 16 bytes, secret.
    pub key: Vec<u8>,
    /// The EtherType of our own frames; [`frame::ETHERTYPE`] unless something
    /// else uses that.
    pub ethertype: u16,
    /// The timers.
    pub timers: Timers,
    /// Interfaces that are not served: names, or prefixes that end in `*`.
    pub exclude_interfaces: Vec<String>,
    /// Another process of this node is on the segment: nothing is said, heard
    /// or answered until [`begin`](crate::Handle::begin).
    pub standby: bool,
}

impl Config {
    /// Defaults for everything else.
    pub fn new(node: impl Into<String>, cluster: impl Into<String>, key: Vec<u8>) -> Self {
        Self {
            node: node.into(),
            cluster: cluster.into(),
            key,
            ethertype: frame::ETHERTYPE,
            timers: Timers::default(),
            exclude_interfaces: default_exclusions(),
            standby: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.timers.validate()?;
        if self.node.is_empty() || self.node.len() > 253 {
            return Err(Error::Node {
                length: self.node.len(),
            });
        }
        if self.key.len() < KEY {
            return Err(Error::Key {
                length: self.key.len(),
            });
        }
        // Below 0x600 it is a length; these three carry everybody's traffic.
        if self.ethertype < 0x600 || [frame::ARP, 0x0800, 0x86dd].contains(&self.ethertype) {
            return Err(Error::EtherType {
                ethertype: self.ethertype,
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("node", &self.node)
            .field("cluster", &self.cluster)
            .field("ethertype", &self.ethertype)
            .field("timers", &self.timers)
            .field("exclude_interfaces", &self.exclude_interfaces)
            .field("standby", &self.standby)
            .finish_non_exhaustive()
    }
}

/// Interfaces that container runtimes and network plugins make, on which no
/// client of a LoadBalancer is.
pub fn default_exclusions() -> Vec<String> {
    [
        "lo",
        "docker*",
        "br-*",
        "cbr*",
        "cni*",
        "podman*",
        "virbr*",
        "lxcbr*",
        "lxc*",
        "veth*",
        "dummy*",
        "cali*",
        "tunl*",
        "vxlan*",
        "geneve*",
        "flannel*",
        "cilium*",
        "antrea*",
        "weave*",
        "ovs-*",
        "ovn*",
        "genev_sys*",
        "kube-bridge",
        "kube-ipvs*",
        "nodelocaldns*",
        "wg*",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Why the driver does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A timer is outside its limits.
    #[error(transparent)]
    Timers(#[from] TimersError),
    /// The node name does not fit a frame.
    #[error("node name has {length} bytes, must have 1 to 253")]
    Node {
        /// Its length in bytes.
        length: usize,
    },
    /// The key is too short to be one.
    #[error("key has {length} bytes, must have at least {KEY}")]
    Key {
        /// Its length in bytes.
        length: usize,
    },
    /// The EtherType is taken by something that every network needs.
    #[error("ethertype {ethertype:#06x} cannot be used for own frames")]
    EtherType {
        /// It.
        ethertype: u16,
    },
    /// Packet sockets need `CAP_NET_RAW`.
    #[error("cannot open packet sockets")]
    PacketSocket(#[source] io::Error),
    /// A thread, or what it needs, could not be had.
    #[error("cannot start the driver")]
    Start(#[source] io::Error),
    /// The interfaces could not be listed.
    #[error("cannot list the interfaces: {0}")]
    Links(String),
    /// The driver's thread did not end in time.
    #[error("the driver did not stop in {0:?}")]
    Stop(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_work_is_refused_with_the_reason() {
        let good = || Config::new("node", "cluster", b"0123456789abcdef".to_vec());
        good().check().unwrap();
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 6] = [
            (
                |c| c.node.clear(),
                "node name has 0 bytes, must have 1 to 253",
            ),
            (
                |c| c.node = "n".repeat(254),
                "node name has 254 bytes, must have 1 to 253",
            ),
            (
                |c| c.key.truncate(15),
                "key has 15 bytes, must have at least 16",
            ),
            (
                |c| c.ethertype = 0x0800,
                "ethertype 0x0800 cannot be used for own frames",
            ),
            (
                |c| c.ethertype = 1500,
                "ethertype 0x05dc cannot be used for own frames",
            ),
            (
                |c| c.timers.probes = 0,
                "timer probes is 0, must be from 1 to 10",
            ),
        ];
        for (change, expected) in cases {
            let mut config = good();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_key_does_not_show_in_debug_output() {
        let config = Config::new("node", "cluster", b"sixteen secret b".to_vec());
        let bytes = format!("{:?}", config.key);
        let said = format!("{config:?}");
        assert!(!said.contains("secret") && !said.contains(&bytes), "{said}");
    }
}

//! The chains of others, read over netlink: whether kube-proxy is there, and
//! what may drop the traffic that we forward.
//!
//! Only what nftables shows is seen: `iptables-legacy` keeps its rules
//! elsewhere.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use bellrock_api::NodeReason;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// How often a dump that a change interrupted is started again.
const DUMPS: usize = 20;
/// Receives any part of a dump.
const DATAGRAM: usize = 64 * 1024;
/// `NF_DROP`, as a chain's policy.
const NF_DROP: u32 = 0;

/// A chain, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// The name of its table.
    pub table: String,
    /// Its own name.
    pub name: String,
    /// It is a filter of forwarded packets and drops by policy.
    pub drops_forwarded: bool,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            name,
            ..
        } = self;
        write!(f, "chain {name} of table {family} {table}")
    }
}

/// Whether the chains say that kube-proxy is at work: its table in nftables
/// mode; otherwise its first chain. Others of its names are kubelet's.
pub fn has_kube_proxy(chains: &[Chain]) -> bool {
    chains.iter().any(|chain| {
        chain.family != "inet"
            && (chain.table == "kube-proxy"
                || (chain.table == "nat" && chain.name == "KUBE-SERVICES"))
    })
}

/// What may drop traffic to pods, each with its table and chain.
pub fn obstacles(chains: &[Chain]) -> Vec<(NodeReason, String)> {
    let drops = chains
        .iter()
        .filter(|chain| chain.drops_forwarded)
        .map(|chain| {
            (
                NodeReason::ForwardPolicyDrop,
                format!("{chain} has the policy drop"),
            )
        });
    let docker = chains
        .iter()
        .filter(|chain| chain.table == "filter" && chain.name == "DOCKER-USER")
        .map(|chain| (NodeReason::DockerRules, format!("{chain} is there")));
    drops.chain(docker).collect()
}

/// Every chain of the network namespace of the calling thread, but for those
/// of tables that route no IP. Blocks for the time that the kernel takes.
pub fn chains() -> Result<Vec<Chain>> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open netlink for netfilter")?;
    socket.bind_auto().context("bind the netlink socket")?;
    for sequence in 1..=DUMPS {
        let sequence = u32::try_from(sequence)?;
        if let Some(chains) = dump(&socket, sequence)? {
            return Ok(chains);
        }
    }
    bail!("the ruleset changes too often to be read")
}

/// Nothing, if a change interrupted the dump.
fn dump(socket: &Socket, sequence: u32) -> Result<Option<Vec<Chain>>> {
    let ask = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let mut request = NetlinkMessage::from(NetfilterMessage::new(header, ask));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.header.sequence_number = sequence;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket
        .send_to(&bytes, &SocketAddr::new(0, 0), 0)
        .context("ask for the chains")?;

    let mut chains = Vec::new();
    let mut interrupted = false;
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0).context("read the chains")?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                .context("a message of the kernel does not parse")?;
            let length = usize::try_from(message.header.length)?.next_multiple_of(4);
            ensure!(length > 0, "a message of the kernel is empty");
            rest = rest.get(length..).unwrap_or_default();
            // What an interrupted dump left behind.
            if message.header.sequence_number != sequence {
                continue;
            }
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(chains)),
                NetlinkPayload::Error(error) => match error.raw_code().abs() {
                    // EINTR and EAGAIN: the ruleset changed meanwhile.
                    4 | 11 => return Ok(None),
                    _ => return Err(error.to_io()).context("list the chains"),
                },
                NetlinkPayload::InnerMessage(message) => chains.extend(chain(&message)),
                _ => {}
            }
        }
    }
}

fn chain(message: &NetfilterMessage) -> Option<Chain> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = &message.inner else {
        return None;
    };
    let family = match message.header.family {
        NetfilterProtoFamily::IPv4 => "ip",
        NetfilterProtoFamily::IPv6 => "ip6",
        NetfilterProtoFamily::Inet => "inet",
        _ => return None,
    };
    let (mut table, mut name) = (None, None);
    let (mut forwards, mut filters, mut drops) = (false, false, false);
    for attribute in &chain.attributes {
        match attribute {
            ChainAttribute::Table(value) => table = Some(value.clone()),
            ChainAttribute::Name(value) => name = Some(value.clone()),
            ChainAttribute::Hook(hook) => {
                let forward = Hook::Number(HookNumber::Inet(InetHookNumber::Forward));
                forwards = hook.contains(&forward);
            }
            ChainAttribute::Type(kind) => filters = kind == "filter",
            ChainAttribute::Policy(policy) => drops = *policy == NF_DROP,
            _ => {}
        }
    }
    Some(Chain {
        family,
        table: table?,
        name: name?,
        drops_forwarded: forwards && filters && drops,
    })
}

#[cfg(test)]
mod tests {
    use bellrock_e2e::netns::{Netns, as_root};

    use super::*;

    fn chain(family: &'static str, table: &str, name: &str) -> Chain {
        Chain {
            family,
            table: table.to_owned(),
            name: name.to_owned(),
            drops_forwarded: false,
        }
    }

    #[test]
    fn kube_proxy_is_told_from_kubelet_and_from_namesakes() {
        for (family, table, name, expected) in [
            ("ip", "kube-proxy", "services", true),
            ("ip6", "kube-proxy", "services", true),
            ("ip", "nat", "KUBE-SERVICES", true),
            ("ip6", "nat", "KUBE-SERVICES", true),
            // kubelet's own.
            ("ip", "mangle", "KUBE-KUBELET-CANARY", false),
            ("ip", "nat", "KUBE-MARK-MASQ", false),
            ("ip", "filter", "KUBE-FIREWALL", false),
            ("inet", "kube-proxy", "services", false),
            ("inet", "bellrock", "inbound", false),
        ] {
            let chains = [chain("ip", "filter", "INPUT"), chain(family, table, name)];
            assert_eq!(has_kube_proxy(&chains), expected, "{family} {table} {name}");
        }
        assert!(!has_kube_proxy(&[]));
    }

    #[test]
    fn what_others_made_is_read_from_the_kernel() {
        if !as_root() {
            return;
        }
        let node = Netns::new("chains").unwrap();
        let read = || node.run(chains).unwrap().unwrap();
        assert_eq!(read(), []);
        node.sh(
            "nft add table inet firewall
             nft 'add chain inet firewall through { type filter hook forward priority 0; policy drop; }'
             nft 'add chain inet firewall in { type filter hook input priority 0; policy drop; }'
             nft 'add chain inet firewall fine { type filter hook forward priority 1; policy accept; }'
             nft add table netdev early
             iptables-nft -P FORWARD DROP
             iptables-nft -N DOCKER-USER
             ip6tables-nft -t nat -N KUBE-SERVICES",
        )
        .unwrap();
        let chains = read();
        assert!(has_kube_proxy(&chains));
        let found: Vec<String> = obstacles(&chains)
            .into_iter()
            .map(|(reason, words)| format!("{reason}: {words}"))
            .collect();
        assert_eq!(
            found,
            [
                "ForwardPolicyDrop: chain through of table inet firewall has the policy drop",
                "ForwardPolicyDrop: chain FORWARD of table ip filter has the policy drop",
                "DockerRules: chain DOCKER-USER of table ip filter is there",
            ]
        );
        node.sh("nft flush ruleset").unwrap();
        assert_eq!(read(), []);
    }

    #[test]
    fn a_large_ruleset_is_read_whole() {
        if !as_root() {
            return;
        }
        let node = Netns::new("many").unwrap();
        node.sh(
            "{ echo 'table ip kube-proxy {'; for n in $(seq 5000); do echo \"chain service-$n { }\"; done; echo '}'; } | nft -f -",
        )
        .unwrap();
        let chains = node.run(chains).unwrap().unwrap();
        assert_eq!(chains.len(), 5000);
        assert!(has_kube_proxy(&chains) && obstacles(&chains).is_empty());
    }
}

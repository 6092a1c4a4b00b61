//! Nodes on a bridge, and a client.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_arp::{
    AddressState, Assignment, Cause, Config, Eligibility, Event, EventReceiver, Handle, State,
    Timers,
};
use bellrock_e2e::netns::{Netns, veth, wait_for};
use bellrock_e2e::probe::{Pace, Prober};

pub(crate) const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 7, 0, 200));
/// Its solicited-node group is no other host's.
pub(crate) const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(
    0x2001, 0xdb8, 7, 0, 0, 0x0a, 0xb0c0, 0x200,
));
const PORT: u16 = 7;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const KEY: &[u8] = b"a key of some length";
pub(crate) const CREATED: u64 = 1_700_000_000;

/// A UDP server at the address that says which node it is.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(ns: &Netns, vip: IpAddr, node: String) -> Self {
        let socket = ns.run(|| UdpSocket::bind((vip, PORT))).unwrap().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let halt = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !halt.load(Ordering::Relaxed) {
                if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
                    let _ = socket.send_to(format!("{node} {client} {text}").as_bytes(), client);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) port: String,
    pub(crate) mac: String,
    pub(crate) handle: Handle,
    pub(crate) events: EventReceiver,
    _echo: Echo,
    pub(crate) ns: Netns,
}

impl Node {
    fn start(switch: &Netns, vip: IpAddr, index: usize, timers: Timers) -> Self {
        let name = format!("node-{index}");
        let port = format!("p{index}");
        let ns = host(switch, &name, &port, u8::try_from(index).unwrap());
        // The address is on the loopback, for the server; the kernel must not
        // answer ARP for it, nor use it as its own in requests. For IPv6 it
        // does neither.
        ns.sh(&format!(
            "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
             ip addr add {vip} dev lo {}",
            at_once(vip)
        ))
        .unwrap();
        let echo = Echo::start(&ns, vip, name.clone());
        let config = Config {
            timers,
            ..config(&name)
        };
        let (handle, events) = ns.run(|| Handle::start(config)).unwrap().unwrap();
        let mac = mac(&ns, "eth1");
        Self {
            name,
            port,
            mac,
            handle,
            events,
            _echo: echo,
            ns,
        }
    }

    pub(crate) fn state(&self, address: IpAddr) -> Result<AddressState> {
        let snapshot = self.handle.snapshot();
        snapshot
            .addresses
            .get(&address)
            .cloned()
            .context("the address is not known")
    }

    pub(crate) fn wait_state(&self, address: IpAddr, state: State, interfaces: &[&str]) {
        wait_for("the address's state", PATIENCE, || {
            let found = self.state(address)?;
            let settled = found.state == state && found.interfaces == interfaces;
            ensure!(settled, "{}: {found:?}", self.name);
            Ok(())
        });
    }

    /// The next event of an address, skipping none.
    pub(crate) fn event(&mut self) -> Event {
        wait_for("an event", PATIENCE, || self.next_event().context("none"))
    }

    /// The same, if it is there already.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let mut waiting = std::iter::from_fn(|| self.events.try_recv().ok());
        waiting.find(|event| event.address().is_some())
    }

    /// Nothing happened, but that a busy machine may have let it stand still
    /// and verify that it still owns the address.
    pub(crate) fn no_event(&mut self) {
        while let Some(event) = self.next_event() {
            let stood_still = match &event {
                Event::Owned { cause, .. } | Event::Lost { cause, .. } => *cause == Cause::Frozen,
                _ => false,
            };
            assert!(stood_still, "{}: {event:?}", self.name);
        }
    }
}

pub(crate) fn config(node: &str) -> Config {
    Config::new(node, "test", KEY.to_vec())
}

pub(crate) fn assignment(order: &[&str]) -> Assignment {
    let mut names = order.iter().map(|name| (*name).to_owned());
    Assignment {
        desired: names.next(),
        successors: names.collect(),
        created: CREATED,
        recorded: None,
        eligibility: Eligibility::Eligible,
        interfaces: None,
    }
}

/// What `ip addr add` needs for an address that is used at once.
pub(crate) fn at_once(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "nodad" } else { "" }
}

pub(crate) fn mac(ns: &Netns, device: &str) -> String {
    ns.sh(&format!("cat /sys/class/net/{device}/address"))
        .unwrap()
        .trim()
        .to_owned()
}

/// A host with addresses of both families on the bridge, usable at once.
pub(crate) fn host(switch: &Netns, role: &str, port: &str, last: u8) -> Netns {
    let ns = Netns::new(role).unwrap();
    // A kernel without a link-local address asks for nobody's.
    ns.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
        .unwrap();
    veth(&ns, "eth1", switch, port).unwrap();
    switch
        .sh(&format!("ip link set {port} master br0"))
        .unwrap();
    ns.sh(&format!(
        "ip addr add 10.7.0.{last}/24 dev eth1
         ip addr add 2001:db8:7::{last}/64 dev eth1 nodad"
    ))
    .unwrap();
    ns
}

pub(crate) fn switch() -> Netns {
    let switch = Netns::new("switch").unwrap();
    switch.bridge("br0").unwrap();
    switch
}

/// What a host's neighbour table has for `address`: the hardware address, and
/// the state.
pub(crate) fn neighbour(ns: &Netns, address: IpAddr) -> Result<(String, String)> {
    let text = ns.sh(&format!("ip neigh show {address} dev eth1"))?;
    let mut words = text.split_whitespace();
    let mac = words
        .by_ref()
        .skip_while(|word| *word != "lladdr")
        .nth(1)
        .with_context(|| format!("no hardware address in {text:?}"))?;
    Ok((mac.to_owned(), words.last().unwrap_or_default().to_owned()))
}

pub(crate) struct Lab {
    pub(crate) vip: IpAddr,
    pub(crate) nodes: Vec<Node>,
    pub(crate) client: Netns,
    pub(crate) switch: Netns,
}

impl Lab {
    pub(crate) fn new(vip: IpAddr, nodes: usize) -> Self {
        Self::on(switch(), vip, nodes, &Timers::default())
    }

    /// For what is not about time: nobody is called silent because a busy
    /// machine let it wait.
    pub(crate) fn steady(switch: Netns, vip: IpAddr, nodes: usize) -> Self {
        let timers = Timers {
            misses: 20,
            ..Timers::default()
        };
        Self::on(switch, vip, nodes, &timers)
    }

    fn on(switch: Netns, vip: IpAddr, nodes: usize, timers: &Timers) -> Self {
        let client = host(&switch, "client", "client", 99);
        let nodes = (1..=nodes)
            .map(|index| Node::start(&switch, vip, index, timers.clone()))
            .collect();
        Self {
            vip,
            nodes,
            client,
            switch,
        }
    }

    /// Told of the address in the order of the nodes, and owned by the first.
    pub(crate) fn settled(vip: IpAddr, nodes: usize) -> Self {
        Self::new(vip, nodes).settle()
    }

    /// As [`Self::settled`].
    pub(crate) fn settle(self) -> Self {
        self.assign_all();
        self.wait_owner(0);
        self
    }

    pub(crate) fn assign_all(&self) {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        for node in &self.nodes {
            node.handle.assign(self.vip, assignment(&names));
        }
    }

    pub(crate) fn wait_owner(&self, owner: usize) {
        wait_for("the owner", PATIENCE, || {
            for (index, node) in self.nodes.iter().enumerate() {
                let state = node.state(self.vip)?;
                let expected = if index == owner {
                    State::Own
                } else {
                    State::Idle
                };
                ensure!(state.state == expected, "{}: {state:?}", node.name);
                let name = Some(self.nodes[owner].name.clone());
                ensure!(state.owner == name, "{}: {state:?}", node.name);
            }
            Ok(())
        });
    }

    /// Waits until one of the others owns it.
    pub(crate) fn wait_successor(&self, of: usize) -> usize {
        wait_for("a successor", PATIENCE, || {
            let owns = |index: &usize| {
                let state = self.nodes[*index].state(self.vip);
                *index != of && state.is_ok_and(|state| state.state == State::Own)
            };
            (0..self.nodes.len()).find(owns).context("nobody")
        })
    }

    /// A client that is answered already.
    pub(crate) fn prober(&self) -> Prober {
        let prober = self.hopeful_prober();
        self.answered(&prober, 20);
        prober
    }

    /// A client that may not be answered yet.
    pub(crate) fn hopeful_prober(&self) -> Prober {
        let pace = Pace {
            every: Duration::from_millis(5),
            patience: Duration::from_millis(400),
        };
        Prober::start(&self.client, SocketAddr::new(self.vip, PORT), pace).unwrap()
    }

    /// Waits for that many more answers.
    pub(crate) fn answered(&self, prober: &Prober, more: u64) {
        let wanted = prober.answered() + more;
        wait_for("answers", PATIENCE, || {
            ensure!(prober.answered() >= wanted, "{}", prober.answered());
            Ok(())
        });
    }

    pub(crate) fn wait_neighbour(&self, mac: &str) {
        wait_for("the client's neighbour entry", PATIENCE, || {
            let (neighbour, _) = neighbour(&self.client, self.vip)?;
            ensure!(neighbour == mac, "{neighbour}, not {mac}");
            Ok(())
        });
    }

    /// Pulls or plugs a node's cable at the bridge: the node keeps its
    /// carrier, as behind a switch.
    pub(crate) fn cable(&self, index: usize, plugged: bool) {
        let port = &self.nodes[index].port;
        let master = if plugged { "master br0" } else { "nomaster" };
        self.switch
            .sh(&format!("ip link set {port} {master}"))
            .unwrap();
    }
}

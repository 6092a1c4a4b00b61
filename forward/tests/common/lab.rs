//! A small cluster of namespaces.
//!
//! ```text
//!              switch
//!   client ────┤ │ ├──── node1 ── pod a, pod b
//!              │   └──── node2 ── pod c
//! ```
//!
//! The client's route to the external addresses is node1; node1's default
//! route is the client, which forwards: a packet that node1 sent on would come
//! back until its TTL ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bellrock_e2e::netns::{Netns, veth};
use bellrock_forward::{Endpoint, Node, Protocol};

use super::ip;

/// The port that pods serve on.
pub(crate) const PORT: u16 = 8080;

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) client: IpAddr,
    pub(crate) node1: IpAddr,
    pub(crate) node2: IpAddr,
    pub(crate) a: IpAddr,
    pub(crate) b: IpAddr,
    pub(crate) c: IpAddr,
    pub(crate) vip: IpAddr,
}

impl Addresses {
    pub(crate) fn v4() -> Self {
        Self {
            client: ip("192.0.2.100"),
            node1: ip("192.0.2.11"),
            node2: ip("192.0.2.12"),
            a: ip("10.244.1.2"),
            b: ip("10.244.1.3"),
            c: ip("10.244.2.2"),
            vip: ip("203.0.113.10"),
        }
    }

    pub(crate) fn v6() -> Self {
        Self {
            client: ip("2001:db8::100"),
            node1: ip("2001:db8::11"),
            node2: ip("2001:db8::12"),
            a: ip("fd00:244:0:1::2"),
            b: ip("fd00:244:0:1::3"),
            c: ip("fd00:244:0:2::2"),
            vip: ip("2001:db8:113::10"),
        }
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::v4(), Self::v6()]
    }

    pub(crate) fn pod_a(&self) -> Endpoint {
        Endpoint {
            address: self.a,
            port: PORT,
            local: true,
        }
    }

    pub(crate) fn pod_b(&self) -> Endpoint {
        Endpoint {
            address: self.b,
            port: PORT,
            local: true,
        }
    }

    pub(crate) fn pod_c(&self) -> Endpoint {
        Endpoint {
            address: self.c,
            port: PORT,
            local: false,
        }
    }
}

pub(crate) struct Lab {
    // Servers end before their namespaces go.
    _servers: Vec<Server>,
    pub(crate) client: Netns,
    pub(crate) node1: Netns,
    pub(crate) node2: Netns,
    pub(crate) a: Netns,
    pub(crate) b: Netns,
    pub(crate) c: Netns,
    _switch: Netns,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let switch = Netns::new("switch").unwrap();
        switch.bridge("br0").unwrap();
        let host = |role: &str, number: u8, forwards: bool| {
            let host = Netns::new(role).unwrap();
            let port = format!("p{number}");
            veth(&switch, &port, &host, "eth0").unwrap();
            switch
                .sh(&format!("ip link set {port} master br0"))
                .unwrap();
            address(&host, "eth0", &format!("192.0.2.{number}/24"));
            address(&host, "eth0", &format!("2001:db8::{number}/64"));
            if forwards {
                host.sh(
                    "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                     net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0 \
                     net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0",
                )
                .unwrap();
            }
            host
        };
        let client = host("client", 100, true);
        let node1 = host("node1", 11, true);
        let node2 = host("node2", 12, true);
        let mut pods = Vec::new();
        for (node, number, names) in [(&node1, 1, &["a", "b"][..]), (&node2, 2, &["c"])] {
            node.bridge("cni0").unwrap();
            address(node, "cni0", &format!("10.244.{number}.1/24"));
            address(node, "cni0", &format!("fd00:244:0:{number}::1/64"));
            for (at, name) in (2..).zip(names) {
                let pod = Netns::new(name).unwrap();
                veth(node, &format!("veth{name}"), &pod, "eth0").unwrap();
                // As CNI's bridge plugin does: where br_netfilter is loaded, a
                // pod's packet to itself turns round in the bridge.
                node.sh(&format!(
                    "ip link set veth{name} master cni0; \
                     ip link set veth{name} type bridge_slave hairpin on"
                ))
                .unwrap();
                address(&pod, "eth0", &format!("10.244.{number}.{at}/24"));
                address(&pod, "eth0", &format!("fd00:244:0:{number}::{at}/64"));
                pod.sh(&format!(
                    "ip route add default via 10.244.{number}.1; \
                     ip -6 route add default via fd00:244:0:{number}::1"
                ))
                .unwrap();
                pods.push(pod);
            }
        }
        client
            .sh("ip route add 203.0.113.0/24 via 192.0.2.11; \
                 ip -6 route add 2001:db8:113::/64 via 2001:db8::11")
            .unwrap();
        node1
            .sh(
                "ip route add default via 192.0.2.100; ip -6 route add default via 2001:db8::100; \
                 ip route add 10.244.2.0/24 via 192.0.2.12; \
                 ip -6 route add fd00:244:0:2::/64 via 2001:db8::12",
            )
            .unwrap();
        node2
            .sh("ip route add 10.244.1.0/24 via 192.0.2.11; \
                 ip -6 route add fd00:244:0:1::/64 via 2001:db8::11")
            .unwrap();
        let mut servers: Vec<Server> = pods
            .iter()
            .zip(["a", "b", "c"])
            .map(|(pod, name)| Server::start(pod, name, ip("::")))
            .collect();
        // On the host network: each on one address, so that an answer by UDP
        // comes from where the question went.
        for a in Addresses::both() {
            servers.push(Server::start(&node1, "node1", a.node1));
            servers.push(Server::start(&node2, "node2", a.node2));
        }
        let mut pods = pods.into_iter();
        let mut pod = || pods.next().unwrap();
        Self {
            _servers: servers,
            client,
            node1,
            node2,
            a: pod(),
            b: pod(),
            c: pod(),
            _switch: switch,
        }
    }

    pub(crate) fn node() -> Node {
        Node {
            node_port_addresses: [Addresses::v4().node1, Addresses::v6().node1].into(),
            pod_networks: ["10.244.0.0/16", "fd00:244::/48"]
                .map(|n| n.parse().unwrap())
                .into(),
            local_pod_networks: ["10.244.1.0/24", "fd00:244:0:1::/64"]
                .map(|n| n.parse().unwrap())
                .into(),
        }
    }
}

fn address(host: &Netns, device: &str, address: &str) {
    let nodad = if address.contains(':') { "nodad" } else { "" };
    host.sh(&format!("ip addr add {address} dev {device} {nodad}"))
        .unwrap();
}

/// A server of a pod, or on a node's own network: says its name and the
/// client's address, then echoes.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(pod: &Netns, name: &'static str, address: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let any = SocketAddr::new(address, PORT);
        let (tcp, udp) = pod
            .run(|| {
                (
                    TcpListener::bind(any).unwrap(),
                    UdpSocket::bind(any).unwrap(),
                )
            })
            .unwrap();
        let tick = Some(Duration::from_millis(20));
        socket2::SockRef::from(&tcp).set_read_timeout(tick).unwrap();
        udp.set_read_timeout(tick).unwrap();
        let threads = vec![
            std::thread::spawn({
                let stop = stop.clone();
                move || serve_tcp(&tcp, name, &stop)
            }),
            std::thread::spawn({
                let stop = stop.clone();
                move || serve_udp(&udp, name, &stop)
            }),
        ];
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &'static str, stop: &Arc<AtomicBool>) {
    let mut threads = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, from)) = listener.accept() else {
            continue;
        };
        let stop = stop.clone();
        threads.retain(|thread: &JoinHandle<()>| !thread.is_finished());
        threads.push(std::thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
            if writeln!(stream, "{name} {}", from.ip().to_canonical()).is_err() {
                return;
            }
            let mut bytes = [0; 512];
            while !stop.load(Ordering::Relaxed) {
                match stream.read(&mut bytes) {
                    Ok(0) => return,
                    Ok(n) if stream.write_all(&bytes[..n]).is_ok() => {}
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    _ => return,
                }
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut bytes = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut bytes) {
            let text = format!("{name} {}\n", from.ip().to_canonical());
            let _ = socket.send_to(text.as_bytes(), from);
        }
    }
}

/// Moves the calling thread into a namespace for good: for threads that
/// outlive a call of `Netns::run`.
pub(crate) fn enter(namespace: &std::path::Path) -> Result<()> {
    let file = std::fs::File::open(namespace)?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Who answered, and which client address it saw.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    pub(crate) pod: String,
    pub(crate) client: IpAddr,
}

impl Answer {
    pub(crate) fn new(pod: &str, client: IpAddr) -> Self {
        Self {
            pod: pod.to_owned(),
            client,
        }
    }

    fn parse(line: &str) -> Result<Self> {
        let (pod, client) = line.trim().split_once(' ').context("no answer line")?;
        Ok(Self {
            pod: pod.to_owned(),
            client: client.parse()?,
        })
    }
}

/// Long enough for a busy machine, for what must be answered.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not be answered.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// Opens a connection and reads the server's line.
pub(crate) fn connect(to: SocketAddr, within: Duration) -> Result<(TcpStream, Answer)> {
    let stream = TcpStream::connect_timeout(&to, within)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(within))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok((stream, Answer::parse(&line)?))
}

/// Sends something and expects it back.
pub(crate) fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    if back != text.as_bytes() {
        bail!("sent {text:?}, got {back:?}");
    }
    Ok(())
}

/// One exchange from a new socket of the calling thread's namespace.
pub(crate) fn call(protocol: Protocol, to: SocketAddr, within: Duration) -> Result<Answer> {
    match protocol {
        Protocol::Tcp => connect(to, within).map(|(_, answer)| answer),
        Protocol::Udp => {
            let any: IpAddr = if to.is_ipv4() {
                ip("0.0.0.0")
            } else {
                ip("::")
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(within))?;
            socket.connect(to)?;
            socket.send(b"hello")?;
            let mut bytes = [0; 512];
            let n = socket.recv(&mut bytes)?;
            Answer::parse(std::str::from_utf8(&bytes[..n])?)
        }
        Protocol::Sctp => bail!("no SCTP sockets here"),
    }
}

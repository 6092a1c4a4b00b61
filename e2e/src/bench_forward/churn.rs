//! Ten thousand open connections while Services change.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bellrock_forward::{
    Endpoint, ExternalPolicy, Forwarder, Node, Protocol, Report, Service, ServiceKey,
};

use super::peer::Held;
use super::service;
use crate::lab::lab_program;
use crate::netns::{Netns, veth};

const CONNECTIONS: usize = 10_000;
const CHANGES: u32 = 1_000;
/// Services with connections.
const HELD: u8 = 50;
/// Services without.
const OTHERS: u8 = 100;
const PORT: u16 = 8080;

fn endpoint(third: u8, last: u8) -> Endpoint {
    Endpoint {
        address: Ipv4Addr::new(10, 244, third, last).into(),
        port: PORT,
        local: true,
    }
}

/// A Service whose connections lead to its first endpoint, with more of them.
fn held(n: u8, more: u8) -> (ServiceKey, Service) {
    let endpoints: Vec<Endpoint> = (0..=more).map(|at| endpoint(1 + at, n)).collect();
    let address = Ipv4Addr::new(203, 0, 113, n);
    (
        ServiceKey::new("default", format!("held-{n}")),
        service(address, PORT, Protocol::Tcp, &endpoints),
    )
}

fn other(n: u8, endpoints: u8) -> (ServiceKey, Service) {
    let endpoints: Vec<Endpoint> = (0..endpoints).map(|at| endpoint(100 + at, n)).collect();
    let address = Ipv4Addr::new(198, 51, 100, n);
    (
        ServiceKey::new("default", format!("other-{n}")),
        service(address, 80, Protocol::Tcp, &endpoints),
    )
}

/// Every kind of change, none of which takes away an endpoint with connections.
fn change(n: u32) -> (ServiceKey, Option<Service>) {
    let number = |of: u8| 1 + u8::try_from(n / 8 % u32::from(of)).unwrap_or_default();
    let more = u8::try_from(n % 3).unwrap_or_default();
    let (key, service) = match n % 8 {
        0 | 1 => held(number(HELD), more),
        2 => {
            let (key, mut service) = held(number(HELD), 2);
            service.policy = ExternalPolicy::Local;
            (key, service)
        }
        3 => {
            let (key, mut service) = held(number(HELD), 3);
            service.affinity = true;
            (key, service)
        }
        4 => held(number(HELD), 0),
        5 => return (other(number(OTHERS), 0).0, None),
        _ => other(number(OTHERS), more),
    };
    (key, Some(service))
}

/// One side, as a process in a namespace.
fn peer(host: &Netns, args: &[&str]) -> Result<Child> {
    let program = lab_program()?;
    let line = r#"ulimit -n "$(ulimit -Hn)"; exec "$0" peer "$@""#;
    let mut command: Command = host.command("sh");
    command
        .args(["-ec", line])
        .arg(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command.spawn().context("start a peer")
}

/// A process that ends with the measurement.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hosts() -> Result<[Netns; 3]> {
    let hosts = [
        Netns::new("client")?,
        Netns::new("node")?,
        Netns::new("server")?,
    ];
    let [client, node, server] = &hosts;
    veth(client, "eth0", node, "client")?;
    veth(server, "eth0", node, "server")?;
    client.sh("ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")?;
    node.sh(
        "ip addr add 192.0.2.1/24 dev client; ip addr add 192.168.0.1/24 dev server; \
         sysctl -qw net.ipv4.ip_forward=1; ip route add 10.244.0.0/16 via 192.168.0.2",
    )?;
    // All pods in one.
    server.sh(
        "ip addr add 192.168.0.2/24 dev eth0; ip route add default via 192.168.0.1; \
         ip route add local 10.244.0.0/16 dev lo",
    )?;
    Ok(hosts)
}

/// Measures, and fails if one connection whose endpoint stayed was reset.
pub(super) fn measure() -> Result<()> {
    let [client, node, server] = hosts()?;
    let mut forwarder = node.run(Forwarder::open)??;
    let all = (1..=HELD).map(|n| held(n, 0)).collect();
    forwarder.sync(&Node::default(), &all)?;

    let port = PORT.to_string();
    let _server = Guard(peer(&server, &["serve", &port])?);
    let addresses: Vec<String> = (1..=HELD).map(|n| format!("203.0.113.{n}")).collect();
    // The server may still be on its way.
    crate::netns::wait_for("the server", super::path::SOON, || {
        let to = std::net::SocketAddr::from(([203, 0, 113, 1], PORT));
        client.run(|| std::net::TcpStream::connect_timeout(&to, super::path::SOON))??;
        Ok(())
    });
    let count = CONNECTIONS.to_string();
    let mut args = vec!["hold", &count, &port];
    args.extend(addresses.iter().map(String::as_str));
    let mut holder = Guard(peer(&client, &args)?);
    let mut lines = BufReader::new(holder.0.stdout.take().context("no output")?).lines();
    let first = lines.next().context("the client ended")??;
    ensure!(first == "open", "the client says {first:?}");

    let start = Instant::now();
    let mut batches = 0;
    for n in 0..CHANGES {
        let report: Report = forwarder.apply([change(n)].into())?;
        ensure!(report.refused.is_empty(), "{report:?}");
        batches += report.batches;
    }
    let took = start.elapsed();
    drop(holder.0.stdin.take());
    let said = lines.next().context("the client ended")??;
    let held: Held = serde_json::from_str(&said)?;
    println!(
        "churn: {CHANGES} changes in {:.1} s ({batches} batches) beside {CONNECTIONS} open \
         connections, {} echoes: {} whole, {} reset or silent",
        took.as_secs_f64(),
        held.echoes,
        held.whole,
        held.failed
    );
    ensure!(
        held.failed == 0 && held.whole == CONNECTIONS,
        "connections were lost: {held:?}"
    );
    Ok(())
}

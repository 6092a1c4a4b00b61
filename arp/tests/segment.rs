//! The driver in namespaces: nodes on a bridge, a client, cables to pull.
//! What is asserted comes from the client's kernel, from Wireshark's decoder
//! and from what the client gets answered.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail loudly, and this one prints what it measured"
)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_arp::{
    AddressState, Assignment, Cause, Config, Eligibility, Event, EventReceiver, Handle, Recorded,
    State,
};
use bellrock_e2e::capture::Capture;
use bellrock_e2e::netns::{Netns, as_root, veth, wait_for};
use bellrock_e2e::probe::{Pace, Prober};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 200);
const PORT: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(20);
const CREATED: u64 = 1_700_000_000;

/// A UDP server at the address that says which node it is.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(ns: &Netns, node: String) -> Self {
        let socket = ns.run(|| UdpSocket::bind((VIP, PORT))).unwrap().unwrap();
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

struct Node {
    name: String,
    port: String,
    mac: String,
    handle: Handle,
    events: EventReceiver,
    _echo: Option<Echo>,
    ns: Netns,
}

impl Node {
    fn state(&self, address: IpAddr) -> Result<AddressState> {
        let snapshot = self.handle.snapshot();
        snapshot
            .addresses
            .get(&address)
            .cloned()
            .context("the address is not known")
    }

    /// The next event, skipping none.
    fn event(&mut self) -> Event {
        let events = &mut self.events;
        wait_for("an event", PATIENCE, || {
            events.try_recv().map_err(Into::into)
        })
    }

    fn no_event(&mut self) {
        if let Ok(event) = self.events.try_recv() {
            panic!("{}: {event:?}", self.name);
        }
    }
}

struct Lab {
    nodes: Vec<Node>,
    client: Netns,
    switch: Netns,
}

fn vip() -> IpAddr {
    IpAddr::V4(VIP)
}

fn config(node: &str) -> Config {
    Config::new(node, "test", b"a key of some length".to_vec())
}

fn assignment(order: &[&str]) -> Assignment {
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

fn mac(ns: &Netns, device: &str) -> String {
    ns.sh(&format!("cat /sys/class/net/{device}/address"))
        .unwrap()
        .trim()
        .to_owned()
}

/// A host with an address on the bridge.
fn host(switch: &Netns, role: &str, port: &str, address: &str) -> Netns {
    let ns = Netns::new(role).unwrap();
    veth(&ns, "eth1", switch, port).unwrap();
    switch
        .sh(&format!("ip link set {port} master br0"))
        .unwrap();
    ns.sh(&format!("ip addr add {address}/24 dev eth1"))
        .unwrap();
    ns
}

fn switch() -> Netns {
    let switch = Netns::new("switch").unwrap();
    switch.bridge("br0").unwrap();
    switch
}

fn node(switch: &Netns, index: usize) -> Node {
    let name = format!("node-{index}");
    let port = format!("p{index}");
    let ns = host(switch, &name, &port, &format!("10.7.0.{index}"));
    // The address is on the loopback, for the server; the kernel must not
    // answer ARP for it, nor use it as its own in requests.
    ns.sh(&format!(
        "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
         ip addr add {VIP}/32 dev lo"
    ))
    .unwrap();
    let echo = Echo::start(&ns, name.clone());
    let (handle, events) = ns.run(|| Handle::start(config(&name))).unwrap().unwrap();
    let mac = mac(&ns, "eth1");
    Node {
        name,
        port,
        mac,
        handle,
        events,
        _echo: Some(echo),
        ns,
    }
}

impl Lab {
    fn new(nodes: usize) -> Self {
        let switch = switch();
        let client = host(&switch, "client", "client", "10.7.0.99");
        let nodes = (1..=nodes).map(|index| node(&switch, index)).collect();
        Self {
            nodes,
            client,
            switch,
        }
    }

    /// Told of the address in the order of the nodes, and owned by the first.
    fn settled(nodes: usize) -> Self {
        let lab = Self::new(nodes);
        lab.assign_all();
        lab.wait_owner(0);
        lab
    }

    fn assign_all(&self) {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        for node in &self.nodes {
            node.handle.assign(vip(), assignment(&names));
        }
    }

    fn wait_owner(&self, owner: usize) {
        wait_for("the owner", PATIENCE, || {
            for (index, node) in self.nodes.iter().enumerate() {
                let state = node.state(vip())?;
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

    fn prober(&self) -> Prober {
        let pace = Pace {
            every: Duration::from_millis(5),
            patience: Duration::from_millis(400),
        };
        let prober = Prober::start(&self.client, SocketAddr::new(vip(), PORT), pace).unwrap();
        self.answered(&prober, 20);
        prober
    }

    /// Waits for that many more answers.
    fn answered(&self, prober: &Prober, more: u64) {
        let wanted = prober.answered() + more;
        wait_for("answers", PATIENCE, || {
            ensure!(prober.answered() >= wanted, "{}", prober.answered());
            Ok(())
        });
    }

    fn neighbour(&self) -> Result<String> {
        let text = self.client.sh(&format!("ip neigh show {VIP} dev eth1"))?;
        let mac = text
            .split_whitespace()
            .skip_while(|word| *word != "lladdr")
            .nth(1);
        Ok(mac
            .with_context(|| format!("no hardware address in {text:?}"))?
            .to_owned())
    }

    fn wait_neighbour(&self, mac: &str) {
        wait_for("the client's neighbour entry", PATIENCE, || {
            let neighbour = self.neighbour()?;
            ensure!(neighbour == mac, "{neighbour}, not {mac}");
            Ok(())
        });
    }

    /// Pulls or plugs a node's cable at the bridge: the node keeps its
    /// carrier, as behind a switch.
    fn cable(&self, index: usize, plugged: bool) {
        let port = &self.nodes[index].port;
        let master = if plugged { "master br0" } else { "nomaster" };
        self.switch
            .sh(&format!("ip link set {port} {master}"))
            .unwrap();
    }
}

#[test]
fn the_client_gets_the_owners_hardware_address_and_wireshark_reads_every_frame() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::new(3);
    let capture = Capture::start(&lab.client, "eth1", "arp or ether proto 0x88b5").unwrap();
    lab.assign_all();
    lab.wait_owner(0);

    let said = lab
        .client
        .sh(&format!("arping -c 3 -w 10 -I eth1 {VIP}"))
        .unwrap();
    let owner = lab.nodes[0].mac.clone();
    assert_eq!(said.to_lowercase().matches(&owner).count(), 3, "{said}");
    assert!(
        said.contains("Received 3 response(s)"),
        "one answer each: {said}"
    );
    let prober = lab.prober();
    assert_eq!(lab.neighbour().unwrap(), owner);
    let report = prober.stop().unwrap();
    assert_eq!(report.pods.keys().collect::<Vec<_>>(), ["node-1"]);

    // RFC 826, RFC 5227, as Wireshark decodes them.
    let fields = [
        "eth.dst",
        "eth.src",
        "arp.opcode",
        "arp.hw.type",
        "arp.proto.type",
        "arp.src.hw_mac",
        "arp.src.proto_ipv4",
        "arp.dst.hw_mac",
        "arp.dst.proto_ipv4",
    ];
    let client = mac(&lab.client, "eth1");
    let vip = VIP.to_string();
    let replies = wait_for("replies in the capture", PATIENCE, || {
        let filter = format!("arp.opcode == 2 && arp.src.proto_ipv4 == {vip}");
        let replies = capture.decode(&filter, &fields)?;
        ensure!(replies.len() >= 4, "{replies:?}");
        Ok(replies)
    });
    for reply in replies {
        let expected = [
            &client,
            &owner,
            "2",
            "1",
            "0x0800",
            &owner,
            &vip,
            &client,
            "10.7.0.99",
        ];
        assert_eq!(reply, expected);
    }
    let zero = "00:00:00:00:00:00";
    let all = "ff:ff:ff:ff:ff:ff";
    let announcements = wait_for("announcements in the capture", PATIENCE, || {
        let announcements = capture.decode("arp.isannouncement == 1", &fields)?;
        ensure!(announcements.len() >= 4, "{announcements:?}");
        Ok(announcements)
    });
    for announcement in announcements {
        assert_eq!(
            announcement,
            [all, &owner, "1", "1", "0x0800", &owner, &vip, zero, &vip]
        );
    }
    let probes = capture.decode("arp.isprobe == 1", &fields).unwrap();
    assert_eq!(probes.len(), 2, "{probes:?}");
    for probe in probes {
        assert_eq!(
            probe,
            [
                all, &owner, "1", "1", "0x0800", &owner, "0.0.0.0", zero, &vip
            ]
        );
    }
    assert_eq!(
        capture
            .decode("_ws.malformed", &["frame.number"])
            .unwrap()
            .len(),
        0
    );
    let claimed: BTreeSet<String> = capture
        .decode(&format!("arp.src.proto_ipv4 == {vip}"), &["eth.src"])
        .unwrap()
        .concat()
        .into_iter()
        .collect();
    assert_eq!(
        claimed.into_iter().collect::<Vec<_>>(),
        std::slice::from_ref(&owner),
        "nobody else"
    );
    let hellos = capture
        .decode("eth.type == 0x88b5", &["eth.dst", "eth.src"])
        .unwrap();
    for node in &lab.nodes {
        let hello = ["03:42:52:4b:88:b5".to_owned(), node.mac.clone()];
        assert!(
            hellos.iter().any(|frame| frame[..] == hello),
            "of {}",
            node.name
        );
    }

    let event = lab.nodes[0].event();
    let epoch = (CREATED << 20) + 1;
    let interface = "eth1".to_owned();
    let owned = Event::Owned {
        address: IpAddr::V4(VIP),
        epoch,
        cause: Cause::FirstClaim,
        interface,
    };
    assert_eq!(event, owned);
    lab.nodes[1].no_event();
    let snapshot = lab.nodes[0].handle.snapshot();
    let interface = &snapshot.interfaces["eth1"];
    assert_eq!(interface.mac.to_string(), owner);
    assert_eq!(interface.addresses, [(Ipv4Addr::new(10, 7, 0, 1), 24)]);
    let peers: Vec<&str> = interface
        .peers
        .iter()
        .map(|peer| peer.node.as_str())
        .collect();
    assert_eq!(
        BTreeSet::from_iter(peers),
        BTreeSet::from(["node-2", "node-3"])
    );
    assert!(snapshot.counters["answers"] >= 4, "{:?}", snapshot.counters);
}

#[test]
fn a_pulled_cable_moves_the_address_and_its_return_does_not_move_it_back() {
    if !as_root() {
        return;
    }
    let lab = Lab::settled(3);
    let mut owner = 0;
    let mut outages = Vec::new();
    for _ in 0..6 {
        let prober = lab.prober();
        lab.cable(owner, false);
        let next = wait_for("a successor", PATIENCE, || {
            let owns = |index: &usize| {
                let state = lab.nodes[*index].state(vip());
                *index != owner && state.is_ok_and(|state| state.state == State::Own)
            };
            (0..3).find(owns).context("nobody")
        });
        lab.answered(&prober, 50);
        lab.wait_neighbour(&lab.nodes[next].mac);
        let report = prober.stop().unwrap();
        outages.push(report.longest_ms());

        // Plugged in again: the old owner yields, and nothing is lost.
        let prober = lab.prober();
        lab.cable(owner, true);
        lab.wait_owner(next);
        lab.answered(&prober, 50);
        lab.wait_neighbour(&lab.nodes[next].mac);
        let report = prober.stop().unwrap();
        let lost: usize = report.outages.iter().map(|outage| outage.lost).sum();
        println!("heal: {lost} of {} lost", report.sent);
        owner = next;
    }
    outages.sort_by(f64::total_cmp);
    println!(
        "cable pull: p50 {:.0} ms, max {:.0} ms of {outages:.0?}",
        outages[outages.len() / 2],
        outages[outages.len() - 1]
    );
    assert!(
        outages[0] > 100.0,
        "a pull that nobody noticed is none: {outages:?}"
    );
    assert!(outages[outages.len() - 1] <= 2_000.0, "{outages:?}");
}

#[test]
fn a_node_that_leaves_hands_over_at_once() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::settled(3);
    let prober = lab.prober();
    // Longer than the others listen after their start.
    lab.answered(&prober, 100);
    // What leaves serves no more either.
    lab.nodes[0]
        .ns
        .sh(&format!("ip addr del {VIP}/32 dev lo"))
        .unwrap();
    lab.nodes[0]
        .handle
        .shutdown(Duration::from_secs(10))
        .unwrap();
    wait_for("the successor", PATIENCE, || {
        let state = lab.nodes[1].state(vip())?;
        ensure!(state.state == State::Own, "{state:?}");
        Ok(())
    });
    lab.answered(&prober, 50);
    let report = prober.stop().unwrap();
    println!("leaving: {:.0} ms", report.longest_ms());
    assert!(
        (20.0..=2_000.0).contains(&report.longest_ms()),
        "{report:?}"
    );
    assert!(matches!(lab.nodes[0].event(), Event::Owned { .. }));
    assert!(matches!(
        lab.nodes[0].event(),
        Event::Lost {
            cause: Cause::Shutdown,
            ..
        }
    ));
    let event = lab.nodes[1].event();
    assert!(
        matches!(
            event,
            Event::Owned {
                cause: Cause::OwnerLeft,
                ..
            }
        ),
        "{event:?}"
    );
    assert_eq!(
        lab.nodes[0].handle.snapshot().addresses.len(),
        0,
        "it has ended"
    );
}

#[test]
fn an_interface_that_comes_after_the_start_answers_and_one_that_goes_is_given_up() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::new(1);
    let Lab {
        nodes,
        client,
        switch,
    } = &mut lab;
    let node = &mut nodes[0];
    // A second segment, with a subnet of its own.
    let address: IpAddr = "10.8.0.200".parse().unwrap();
    node.handle.assign(address, assignment(&["node-1"]));
    wait_for("the address where there is an interface", PATIENCE, || {
        let state = node.state(address)?;
        ensure!(
            state.interfaces == ["eth1"] && state.state == State::Own,
            "{state:?}"
        );
        Ok(())
    });
    let owned = node.event();
    assert!(matches!(&owned, Event::Owned { interface, .. } if interface == "eth1"));

    veth(&node.ns, "eth2", client, "eth2").unwrap();
    client.sh("ip addr add 10.8.0.99/24 dev eth2").unwrap();
    node.ns.sh("ip addr add 10.8.0.1/24 dev eth2").unwrap();
    wait_for(
        "the address on the interface of its subnet",
        PATIENCE,
        || {
            let state = node.state(address)?;
            ensure!(
                state.interfaces == ["eth2"] && state.state == State::Own,
                "{state:?}"
            );
            Ok(())
        },
    );
    let said = client.sh("arping -c 1 -w 10 -I eth2 10.8.0.200").unwrap();
    assert!(
        said.to_lowercase().contains(&mac(&node.ns, "eth2")),
        "{said}"
    );
    let told: Vec<Event> = vec![node.event(), node.event()];
    assert!(
        told.iter().any(|event| matches!(
            event,
            Event::Lost { cause: Cause::Removed, interface, .. } if interface == "eth1"
        )),
        "{told:?}"
    );

    // Its hardware address changes: it answers with the new one.
    node.ns
        .sh("ip link set eth2 address 02:00:00:00:08:01")
        .unwrap();
    wait_for("the new hardware address", PATIENCE, || {
        let said = client.sh("arping -c 1 -w 2 -I eth2 10.8.0.200")?;
        ensure!(said.to_lowercase().contains("02:00:00:00:08:01"), "{said}");
        Ok(())
    });

    node.ns.sh("ip link delete eth2").unwrap();
    wait_for("the address back", PATIENCE, || {
        let state = node.state(address)?;
        ensure!(
            state.interfaces == ["eth1"] && state.state == State::Own,
            "{state:?}"
        );
        Ok(())
    });
    let _ = switch;
}

#[test]
fn a_lost_carrier_moves_the_address_too() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::settled(2);
    lab.nodes[0].event();
    let port = lab.nodes[0].port.clone();
    lab.switch.sh(&format!("ip link set {port} down")).unwrap();
    wait_for("the successor", PATIENCE, || {
        let state = lab.nodes[1].state(vip())?;
        ensure!(state.state == State::Own, "{state:?}");
        Ok(())
    });
    let event = lab.nodes[0].event();
    assert!(
        matches!(
            event,
            Event::Lost {
                cause: Cause::LinkChange,
                ..
            }
        ),
        "{event:?}"
    );
    assert!(!lab.nodes[0].handle.snapshot().interfaces["eth1"].carrier);
    lab.switch.sh(&format!("ip link set {port} up")).unwrap();
    lab.wait_owner(1);
    lab.nodes[0].no_event();
}

#[test]
fn an_address_that_another_host_has_is_blocked_with_its_hardware_address() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::new(2);
    let stranger = host(&lab.switch, "stranger", "stranger", "10.7.0.66");
    stranger
        .sh(&format!("ip addr add {VIP}/24 dev eth1"))
        .unwrap();
    let foreign = mac(&stranger, "eth1");
    lab.assign_all();
    let event = lab.nodes[0].event();
    let Event::Blocked {
        address,
        mac,
        interface,
    } = &event
    else {
        panic!("{event:?}")
    };
    assert_eq!(
        (*address, mac.to_string(), interface.as_str()),
        (vip(), foreign.clone(), "eth1")
    );
    let state = lab.nodes[0].state(vip()).unwrap();
    assert_eq!(state.state, State::Blocked);
    assert_eq!(state.foreign.unwrap().to_string(), foreign);
    let said = lab
        .client
        .sh(&format!("arping -c 2 -w 10 -I eth1 {VIP}"))
        .unwrap();
    assert_eq!(said.to_lowercase().matches(&foreign).count(), 2, "{said}");
    assert!(
        said.contains("Received 2 response(s)"),
        "nobody of ours answers: {said}"
    );
}

#[test]
fn a_recorded_owner_goes_on_after_its_restart_and_nobody_else_moves() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::settled(2);
    let epoch = lab.nodes[0].state(vip()).unwrap().epoch;
    // Cut off, so that its goodbye is not heard, as if it had crashed.
    lab.cable(0, false);
    lab.nodes[0]
        .handle
        .shutdown(Duration::from_secs(10))
        .unwrap();
    let (handle, events) = lab.nodes[0]
        .ns
        .run(|| Handle::start(config("node-1")))
        .unwrap()
        .unwrap();
    lab.nodes[0].handle = handle;
    lab.nodes[0].events = events;
    let mut told = assignment(&["node-1", "node-2"]);
    told.recorded = Some(Recorded {
        owner: "node-1".to_owned(),
        epoch,
    });
    lab.nodes[0].handle.assign(vip(), told);
    let event = lab.nodes[0].event();
    let Event::Owned {
        epoch: new, cause, ..
    } = event
    else {
        panic!("{event:?}")
    };
    assert_eq!((new, cause), (epoch, Cause::Restart));
}

#[test]
fn unsuitable_interfaces_are_not_served() {
    if !as_root() {
        return;
    }
    let switch = switch();
    let ns = host(&switch, "node", "p1", "10.7.0.1");
    // Each veth's other end is a "veth...", which is excluded by name.
    ns.sh("ip link add br-lan type bridge
         ip link add uplink address 02:00:00:00:00:77 type bridge
         ip link add member type veth peer name veth-m
         ip link add down type veth peer name veth-d
         ip link add noarp type veth peer name veth-n
         ip link set member master uplink
         ip link set noarp arp off
         for i in br-lan uplink member veth-m veth-d noarp veth-n; do ip link set $i up; done")
        .unwrap();
    let (handle, _events) = ns.run(|| Handle::start(config("node"))).unwrap().unwrap();
    let names = || -> Vec<String> { handle.snapshot().interfaces.into_keys().collect() };
    assert_eq!(names(), ["eth1", "uplink"]);

    // Membership can change.
    ns.sh("ip link set member nomaster && ip link set noarp arp on")
        .unwrap();
    wait_for("the change", PATIENCE, || {
        let names = names();
        ensure!(names == ["eth1", "member", "noarp", "uplink"], "{names:?}");
        Ok(())
    });
    ns.sh("ip link set eth1 down && ip link set eth1 name lan && ip link set lan up")
        .unwrap();
    wait_for("the new name", PATIENCE, || {
        let names = names();
        ensure!(names == ["lan", "member", "noarp", "uplink"], "{names:?}");
        Ok(())
    });
}

#[test]
fn an_address_limited_to_an_interface_is_served_there_alone() {
    if !as_root() {
        return;
    }
    let switch = switch();
    let ns = host(&switch, "node", "p1", "10.7.0.1");
    veth(&ns, "lan2", &switch, "p2").unwrap();
    ns.sh("ip addr add 10.7.0.9/24 dev lan2").unwrap();
    let (handle, _events) = ns.run(|| Handle::start(config("node"))).unwrap().unwrap();
    let served = |interfaces: Option<&[&str]>| {
        let mut told = assignment(&["node"]);
        told.interfaces =
            interfaces.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        handle.assign(vip(), told);
        handle.snapshot().addresses[&vip()].interfaces.clone()
    };
    let both = served(None);
    assert_eq!(
        BTreeSet::from_iter(both),
        BTreeSet::from(["eth1".to_owned(), "lan2".to_owned()])
    );
    assert_eq!(served(Some(&["lan2"])), ["lan2"]);
    assert_eq!(served(Some(&["none"])).len(), 0);
    handle.remove(vip());
    assert_eq!(handle.snapshot().addresses.len(), 0);
}

#[test]
fn a_restricted_process_is_told_what_it_lacks() {
    if !as_root() {
        return;
    }
    let ns = Netns::new("node").unwrap();
    let exe = std::env::current_exe().unwrap();
    if std::env::var_os("ARP_RESTRICTED").is_some() {
        let error = Handle::start(config("node")).map(|_| ()).unwrap_err();
        println!("error: {error}");
        return;
    }
    let mut command = ns.command("setpriv");
    command
        .args(["--bounding-set=-net_raw", "--inh-caps=-net_raw", "--"])
        .arg(exe)
        .args([
            "--exact",
            "a_restricted_process_is_told_what_it_lacks",
            "--nocapture",
        ]);
    let output = command.env("ARP_RESTRICTED", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if !said.contains("error: cannot open packet sockets") {
        panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
    }
}

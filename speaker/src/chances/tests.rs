use bellrock_arp::Cause;

use super::*;
use crate::cluster::Dirty;
use crate::cluster::{Change, VirtualIp};

const ME: &str = "n1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Nodes n1 to n3 of both families on one segment; the address is n2's.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for n in 1..=3 {
        node(&mut cluster, n, &[]);
    }
    vip(&mut cluster, "192.0.2.10", "n2", "n2");
    cluster
}

fn apply(cluster: &mut Cluster, change: Change) {
    cluster.apply(change, ME, &mut Dirty::default());
}

fn node(cluster: &mut Cluster, n: u8, taints: &[&str]) {
    let node = Node {
        addresses: [ip(&format!("10.0.0.{n}")), ip(&format!("fd00::{n}"))].into(),
        taints: taints.iter().map(|taint| (*taint).to_owned()).collect(),
        ..Node::default()
    };
    apply(cluster, Change::Node(format!("n{n}"), Some(node)));
}

fn vip(cluster: &mut Cluster, address: &str, desired: &str, owner: &str) {
    let vip = VirtualIp {
        pool: None,
        claims: [].into(),
        desired: Some(desired.to_owned()),
        successors: vec![],
        created: 0,
        recorded: Some((owner.to_owned(), 1)),
    };
    apply(cluster, Change::VirtualIp(ip(address), Some(vip)));
}

fn interfaces() -> BTreeMap<String, InterfaceState> {
    let one = |name: &str, index, addresses: &[(&str, u8)]| {
        let addresses = addresses.iter().map(|(own, length)| (ip(own), *length));
        let state = InterfaceState {
            name: name.to_owned(),
            index,
            mac: bellrock_arp::MacAddr(2, 0, 0, 0, 0, 1),
            carrier: true,
            addresses: addresses.collect(),
            peers: vec![],
        };
        (name.to_owned(), state)
    };
    [
        one("eth0", 2, &[("172.16.0.1", 24)]),
        one("eth1", 3, &[("10.0.0.1", 24), ("fd00::1", 64)]),
    ]
    .into()
}

fn owned(address: &str, from: Option<&str>) -> Event {
    Event::Owned {
        address: ip(address),
        epoch: 2,
        cause: Cause::HandedOver,
        from: from.map(str::to_owned),
        interface: "eth1".to_owned(),
    }
}

fn lost(address: &str) -> Event {
    Event::Lost {
        address: ip(address),
        cause: Cause::HandedOver,
        to: None,
        interface: "eth1".to_owned(),
    }
}

fn wanted(chances: &mut Chances, cluster: &Cluster, settings: &Settings, now: u64) -> Vec<String> {
    let all = chances.wanted(cluster, ME, settings, &interfaces(), at(now));
    let one = |(address, chance): (IpAddr, SecondChance)| {
        let left = chance.lasts.as_secs();
        format!(
            "{address} {} dev {} {left}",
            chance.previous, chance.interface
        )
    };
    all.into_iter().map(one).collect()
}

#[test]
fn what_moved_here_has_a_chance_until_it_ends_moves_on_or_the_other_kernel_dies() {
    let (mut chances, cluster, settings) = (Chances::default(), cluster(), Settings::default());
    assert!(wanted(&mut chances, &cluster, &settings, 0).is_empty());
    assert!(chances.take(&owned("192.0.2.10", Some("n2")), at(10)));
    assert!(chances.take(&owned("2001:db8::10", Some("n3")), at(10)));
    let both = [
        "192.0.2.10 10.0.0.2 dev 3 3590",
        "2001:db8::10 fd00::3 dev 3 3590",
    ];
    assert_eq!(wanted(&mut chances, &cluster, &settings, 20), both);
    let nodes = [("n2", ip("192.0.2.10")), ("n3", ip("2001:db8::10"))];
    assert_eq!(chances.nodes(), nodes.into());
    // Owned again, after a doubt about itself.
    chances.take(&owned("192.0.2.10", None), at(30));
    assert_eq!(wanted(&mut chances, &cluster, &settings, 20), both);

    chances.died("n3");
    assert_eq!(wanted(&mut chances, &cluster, &settings, 20), both[..1]);
    assert!(wanted(&mut chances, &cluster, &settings, 3610).is_empty());
    assert!(chances.take(&lost("192.0.2.10"), at(40)));
    assert!(wanted(&mut chances, &cluster, &settings, 40).is_empty());
    assert!(chances.nodes().is_empty());
}

#[test]
fn what_nobody_had_or_had_elsewhere_has_none() {
    let (mut chances, cluster, settings) = (Chances::default(), cluster(), Settings::default());
    chances.take(&owned("192.0.2.11", None), at(1));
    chances.take(&owned("192.0.2.12", Some("gone")), at(1));
    assert!(wanted(&mut chances, &cluster, &settings, 2).is_empty());
    // A neighbour on another interface only.
    let event = Event::Owned {
        address: ip("192.0.2.13"),
        epoch: 2,
        cause: Cause::HandedOver,
        from: Some("n2".to_owned()),
        interface: "eth0".to_owned(),
    };
    chances.take(&event, at(1));
    assert!(wanted(&mut chances, &cluster, &settings, 2).is_empty());
}

#[test]
fn a_chance_is_there_before_an_expected_move() {
    let plain = Settings::default();
    let silent = Settings {
        silent: ["n2".to_owned()].into(),
        ..Settings::default()
    };
    let expected = ["192.0.2.10 10.0.0.2 dev 3 3600"];

    let (mut chances, mut cluster) = (Chances::default(), cluster());
    assert!(wanted(&mut chances, &cluster, &plain, 1).is_empty());
    assert_eq!(wanted(&mut chances, &cluster, &silent, 2), expected);
    // The sign goes, the move may come on.
    assert_eq!(wanted(&mut chances, &cluster, &plain, 3), expected);
    node(&mut cluster, 2, &["ToBeDeletedByClusterAutoscaler"]);
    assert_eq!(wanted(&mut chances, &cluster, &plain, 10), expected);
    assert_eq!(wanted(&mut chances, &cluster, &plain, 19), expected);
    assert!(wanted(&mut chances, &cluster, &plain, 20).is_empty());
    node(&mut cluster, 2, &[]);
    vip(&mut cluster, "192.0.2.10", ME, "n2");
    assert_eq!(wanted(&mut chances, &cluster, &plain, 30), expected);

    // It is here: whoever had it before is known better.
    chances.take(&owned("192.0.2.10", None), at(31));
    assert!(wanted(&mut chances, &cluster, &silent, 31).is_empty());
    vip(&mut cluster, "192.0.2.10", "n2", ME);
    assert!(wanted(&mut chances, &cluster, &plain, 32).is_empty());
}

/// A node that does not take its address back is wanted for it all the same,
/// while the new owner names it: neither sends the other's packets back.
#[test]
fn what_was_so_all_along_announces_no_move() {
    let (mut chances, mut cluster) = (Chances::default(), cluster());
    let settings = Settings::default();
    vip(&mut cluster, "192.0.2.10", ME, "n2");
    assert!(wanted(&mut chances, &cluster, &settings, 1).is_empty());
    assert!(wanted(&mut chances, &cluster, &settings, 2).is_empty());
    // Another takes it: as well.
    vip(&mut cluster, "192.0.2.10", ME, "n3");
    assert!(wanted(&mut chances, &cluster, &settings, 3).is_empty());
    // Owned and lost here, and still wanted here.
    chances.take(&owned("192.0.2.10", Some("n3")), at(4));
    vip(&mut cluster, "192.0.2.10", ME, ME);
    assert_eq!(wanted(&mut chances, &cluster, &settings, 4).len(), 1);
    chances.take(&lost("192.0.2.10"), at(5));
    vip(&mut cluster, "192.0.2.10", ME, "n2");
    assert!(wanted(&mut chances, &cluster, &settings, 5).is_empty());
}

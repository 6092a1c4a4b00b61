//! Random faults on the segment in memory; afterwards, exactly one node holds
//! each address.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]
#![allow(dead_code, reason = "the bus serves other tests too")]

mod bus;

use bellrock_arp::ownership::Input;
use bellrock_arp::{Eligibility, State};
use bus::{Bus, assignment, ms, vip};
use proptest::prelude::*;

const NODES: usize = 5;
const ADDRESSES: u16 = 3;

#[derive(Clone, Debug)]
enum Fault {
    Kill(usize),
    Start(usize),
    Leave(usize),
    Freeze(usize),
    Thaw(usize),
    Part(usize, usize),
    Link(usize, bool),
    Loss(u64),
    Delay(u64),
    Reorder(bool),
    Eligible(usize, u16, bool),
    Forget(usize, u16),
    Order(usize, u16, usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    let node = || 0..NODES;
    let address = || 0..ADDRESSES;
    prop_oneof![
        1 => node().prop_map(Fault::Kill),
        3 => node().prop_map(Fault::Start),
        1 => node().prop_map(Fault::Leave),
        1 => node().prop_map(Fault::Freeze),
        2 => node().prop_map(Fault::Thaw),
        2 => (node(), 0..3_usize).prop_map(|(node, part)| Fault::Part(node, part)),
        1 => (node(), any::<bool>()).prop_map(|(node, up)| Fault::Link(node, up)),
        1 => prop_oneof![Just(0), Just(5), Just(30), Just(80)].prop_map(Fault::Loss),
        1 => (1..30_u64).prop_map(Fault::Delay),
        1 => any::<bool>().prop_map(Fault::Reorder),
        1 => (node(), address(), any::<bool>()).prop_map(|(n, a, yes)| Fault::Eligible(n, a, yes)),
        1 => (node(), address()).prop_map(|(n, a)| Fault::Forget(n, a)),
        // A node whose view of the order differs, until the end.
        1 => (node(), address(), node()).prop_map(|(n, a, first)| Fault::Order(n, a, first)),
    ]
}

fn order(first: usize) -> Vec<usize> {
    (0..NODES).map(|index| (index + first) % NODES).collect()
}

fn apply(bus: &mut Bus, fault: &Fault) {
    match *fault {
        Fault::Kill(node) => bus.kill(node),
        Fault::Start(node) => {
            if bus.nodes[node].segment.is_none() {
                bus.start(node);
                let up = bus.nodes[node].up;
                bus.link(node, up);
            }
        }
        Fault::Leave(node) => {
            if !bus.nodes[node].frozen {
                bus.feed(node, Input::Shutdown);
                bus.kill(node);
            }
        }
        Fault::Freeze(node) => bus.freeze(node),
        Fault::Thaw(node) => bus.thaw(node),
        Fault::Part(node, part) => bus.nodes[node].part = part,
        Fault::Link(node, up) => {
            if !bus.nodes[node].frozen {
                bus.link(node, up);
            }
        }
        Fault::Loss(percent) => bus.loss = percent,
        Fault::Delay(most) => bus.delay = (0, most),
        Fault::Reorder(reorder) => bus.reorder = reorder,
        Fault::Eligible(node, address, yes) => {
            if let Some(told) = bus.nodes[node].told.get(&vip(address)) {
                let mut told = told.clone();
                told.eligibility = if yes {
                    Eligibility::Eligible
                } else {
                    Eligibility::Ineligible
                };
                tell(bus, node, address, told);
            }
        }
        Fault::Forget(node, address) => {
            if !bus.nodes[node].frozen {
                bus.remove(node, vip(address));
            }
        }
        Fault::Order(node, address, first) => tell(bus, node, address, assignment(&order(first))),
    }
}

fn tell(bus: &mut Bus, node: usize, address: u16, told: bellrock_arp::Assignment) {
    if !bus.nodes[node].frozen {
        bus.assign(node, vip(address), told);
    }
}

proptest! {

    #[test]
    fn after_any_faults_each_address_has_exactly_one_owner(
        seed: u64,
        faults in proptest::collection::vec((fault(), 0..500_u64), 1..40),
    ) {
        let mut bus = Bus::new(NODES, seed);
        for node in 0..NODES {
            bus.start(node);
            for address in 0..ADDRESSES {
                bus.assign(node, vip(address), assignment(&order(address.into())));
            }
        }
        for (fault, then) in &faults {
            apply(&mut bus, fault);
            bus.run(ms(*then));
        }
        // Peace: one segment, no loss; who is dead stays dead.
        bus.loss = 0;
        bus.reorder = false;
        bus.delay = (0, 1);
        for node in 0..NODES {
            bus.nodes[node].part = 0;
            if bus.nodes[node].frozen {
                bus.thaw(node);
            }
            bus.link(node, true);
        }
        // All learn the same order in the end; a wish that could not be met is
        // tried again after a second and five.
        for node in 0..NODES {
            for (address, mut told) in bus.nodes[node].told.clone() {
                let last = (0..ADDRESSES).find(|n| vip(*n) == address).unwrap();
                let same = assignment(&order(last.into()));
                (told.desired, told.successors) = (same.desired, same.successors);
                bus.assign(node, address, told);
            }
        }
        bus.run(ms(8_000));
        for address in 0..ADDRESSES {
            let able: Vec<usize> = (0..NODES)
                .filter(|node| {
                    bus.nodes[*node].segment.is_some()
                        && bus.nodes[*node]
                            .told
                            .get(&vip(address))
                            .is_some_and(|told| told.eligibility == Eligibility::Eligible)
                })
                .collect();
            let owners = bus.owners(vip(address));
            prop_assert_eq!(owners.len(), able.len().min(1), "{:?} of {:?}", owners, able);
            if let [owner] = owners[..] {
                prop_assert!(able.contains(&owner));
                for node in able {
                    let view = bus.view(node, vip(address));
                    prop_assert_eq!(view.owner, Some(bus::name(owner)), "as {} sees it", node);
                    prop_assert_eq!(bus::answers(view.state), node == owner);
                    prop_assert!(node == owner || view.state == State::Idle);
                }
            }
        }
        let before = bus.events.len();
        bus.run(ms(3_000));
        prop_assert_eq!(bus.events.len(), before, "and it stays: {:?}", &bus.events[before..]);
    }
}

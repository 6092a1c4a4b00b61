//! The table itself: what the kernel and `nft` make of what we write.

mod common;

use bellrock_e2e::netns::{Netns, as_root};
use bellrock_forward::Forwarder;
use common::{key, service};

#[test]
fn nft_lists_every_shape_in_text_and_json() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let node = common::node();
    let shapes = common::shapes();
    let mut forwarder = host.run(Forwarder::open).unwrap().unwrap();
    let report = forwarder.sync(&node, &shapes).unwrap();
    assert_eq!(report.refused, [].into());
    assert_eq!(report.programmed, shapes.len());
    let text = host.sh("nft list ruleset").unwrap();
    println!("{text}");
    host.sh("nft -j list ruleset").unwrap();
    host.sh("nft -j list table inet bellrock").unwrap();
    let _ = (key("a"), service());
}

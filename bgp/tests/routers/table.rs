//! The page that says what was tested with which router.

use std::iter;

use crate::features::FEATURES;
use crate::kind::Kind;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/bgp-routers.md");

/// Why a router is not led through a feature.
const LACKS: &[(&str, Kind, &str)] = &[
    (
        "ipv4_over_ipv6_with_an_ipv6_next_hop",
        Kind::OpenBgpd,
        "no RFC 8950",
    ),
    (
        "graceful_restart",
        Kind::Exabgp,
        "forwards nothing, so keeps nothing",
    ),
    ("refresh", Kind::Gobgp, "never asks for one"),
    (
        "ttl_security",
        Kind::Exabgp,
        "sets it only on connections that it opens",
    ),
    (
        "shutdown_communication",
        Kind::Exabgp,
        "fails on any text, by an error of its own",
    ),
    ("extended_messages", Kind::OpenBgpd, "no RFC 8654"),
];

/// What a cell says.
fn cell(feature: &str, tested: &[Kind], kind: Kind) -> &'static str {
    let of = |(name, lacking, _): &&(&str, Kind, &str)| *name == feature && *lacking == kind;
    match (tested.contains(&kind), LACKS.iter().find(of)) {
        (true, None) => "tested",
        (false, Some((_, _, why))) => why,
        other => panic!("{feature}, {kind:?}: {other:?}"),
    }
}

fn row(cells: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let cells = cells
        .into_iter()
        .map(|cell| format!(" {} |", cell.as_ref()));
    format!("|{}\n", cells.collect::<String>())
}

fn page() -> String {
    let mut text = "# Routers\n\nEach cell is a test that runs against the real router (`bgp/tests/routers`), and\n\
         looks at what the router says and at the routes in its kernel, or in its table\n\
         where it puts none there. GoBGP is built from its module; the others are\nDebian's.\n\n"
        .to_owned();
    text += &row(iter::once("feature").chain(Kind::ALL.map(Kind::title)));
    text += &row(iter::repeat_n("---", 1 + Kind::ALL.len()));
    for (feature, tested) in FEATURES {
        let words = feature.replace('_', " ");
        let cells = Kind::ALL.map(|kind| cell(feature, tested, kind));
        text += &row(iter::once(words.as_str()).chain(cells));
    }
    text += &row([
        "weights as kernel weights",
        "tested",
        "no option to balance by the community",
        "no kernel",
        "no kernel",
        "no kernel",
    ]);
    text + "\nA hard reset (RFC 8538) reaches a router without it as the administrative shutdown\n\
            that it stands for.\n"
}

#[test]
fn the_page_says_what_is_tested() {
    if std::env::var_os("BELLROCK_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, page()).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(PAGE).unwrap_or_default(),
        page(),
        "write it anew: BELLROCK_WRITE_DOCS=1 cargo test -p bellrock-bgp --test routers table"
    );
}

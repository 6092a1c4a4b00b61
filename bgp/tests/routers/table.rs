//! The page that says what was tested with which router.

use std::fmt::Write;

use crate::features::FEATURES;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/bgp-routers.md");

fn page() -> String {
    let mut text = "# Routers\n\nEach row is a test that runs against the real router (`bgp/tests/routers`), and\n\
         looks at what the router says and at the routes in its kernel. Versions are\nDebian's.\n\n\
         | feature | FRR 8.4 | BIRD 2.0 |\n|---|---|---|\n"
        .to_owned();
    for feature in FEATURES {
        let words = feature.replace('_', " ");
        writeln!(text, "| {words} | tested | tested |").unwrap();
    }
    text += "| weights as kernel weights | tested | BIRD 2.0 has no option to balance by the community |\n\nBIRD 2.0 has no RFC 8538, so a hard reset reaches it as the \
             administrative shutdown\nthat it stands for.\n";
    text
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

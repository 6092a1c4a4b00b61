//! The page about the RFCs names tests; each of them exists.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeSet;
use std::path::Path;

use bellrock_bfd::Discard;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(CRATE).join("../docs").join(name)).unwrap()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_page_names_exists() {
    let page = page("bfd-standards.md");
    let mut all = String::new();
    for folder in ["src", "tests", "../speaker/tests"] {
        sources(&Path::new(CRATE).join(folder), &mut all);
    }
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let named: BTreeSet<&str> = rows
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .collect();
    assert!(named.len() > 40, "the table is read: {named:?}");
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !all.contains(&format!("fn {name}(")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_row_without_a_test_says_that_it_is_not_built() {
    for row in page("bfd-standards.md")
        .lines()
        .filter(|line| line.starts_with("| "))
    {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let (test, status) = (cells[3], cells[4]);
        assert!(
            test.contains('`') || status.starts_with("absent") || status == "status",
            "{row}"
        );
    }
}

#[test]
fn the_book_names_every_kind_of_discard_in_order() {
    let page = page("bfd.md");
    let places: Vec<Option<usize>> = Discard::ALL
        .iter()
        .map(|kind| page.find(&format!("`{}`", kind.as_str())))
        .collect();
    assert!(places.iter().all(Option::is_some), "{places:?}");
    assert!(places.is_sorted(), "{places:?}");
}

//! Replays the fuzz targets' corpus, and some random inputs beside it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is the fuzz targets' library too")]
mod targets;

use std::path::Path;

use proptest::prelude::*;

type Target = fn(&[u8]);

/// Every file of a target's corpus; how many there are.
fn replay(name: &str, target: Target) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = std::fs::read_dir(folder.join(name)).unwrap();
    let inputs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    for input in &inputs {
        eprintln!("{}", input.display());
        target(&std::fs::read(input).unwrap());
    }
    inputs.len()
}

#[test]
fn no_input_of_the_corpus_breaks_a_target() {
    for (name, target) in TARGETS {
        assert!(replay(name, target) >= 4, "{name} has a corpus");
    }
}

const TARGETS: [(&str, Target); 2] = [("message", targets::message), ("session", targets::session)];

proptest! {
    #[test]
    fn no_bytes_break_a_target(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (_, target) in TARGETS {
            target(&data);
        }
    }
}

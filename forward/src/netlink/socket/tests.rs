//! A receive buffer that does not hold all that the kernel says.

use bellrock_e2e::netns::{Netns, as_root};

use super::*;
use crate::content::{Entry, Value};
use crate::diff::{Action, Op};
use crate::netlink::encode::{Prelude, batch};

/// The least that the kernel grants.
fn narrow(host: &Netns) -> Socket {
    host.run(|| Socket::open_with(1, 1)).unwrap().unwrap()
}

fn addresses(count: u8) -> Vec<Op> {
    (0..count)
        .map(|n| Op {
            entry: Entry::Address([203, 0, 113, n].into()),
            action: Action::Add(Value::Member),
            owner: None,
        })
        .collect()
}

#[test]
fn of_more_failures_than_fit_some_are_told_and_the_next_batch_hears_of_none() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut socket = narrow(&host);
    // Every message of it fails, but for the batch's own two.
    let one = batch(Prelude::None, &addresses(1), false).bytes;
    let frame = batch(Prelude::None, &[], false).bytes;
    let half = frame.len() / 2;
    let (begin, end) = frame.split_at(half);
    let message = &one[half..one.len() - half];
    let bytes = [begin, &message.repeat(200), end].concat();
    let all = Batch {
        bytes,
        acknowledged: 2,
        added: 0,
        deleted: 0,
        marks: vec![],
    };
    let failures = socket.batch(&all).unwrap();
    assert!((1..200).contains(&failures.len()), "{}", failures.len());
    assert!(failures.iter().all(|f| f.errno == errno::ENOENT));

    let table = batch(Prelude::Create, &[], false);
    assert_eq!(socket.batch(&table).unwrap(), []);
    assert_eq!(
        socket
            .batch(&batch(Prelude::None, &addresses(9), false))
            .unwrap(),
        []
    );
    let listed = host.sh("nft list set inet bellrock addresses4").unwrap();
    assert_eq!(listed.matches("203.0.113.").count(), 9, "{listed}");
}

#[test]
fn a_lost_answer_has_words_and_a_lost_question_is_asked_again() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut socket = narrow(&host);
    socket.batch(&batch(Prelude::Create, &[], false)).unwrap();
    socket.clog();
    let error = socket
        .batch(&batch(Prelude::None, &addresses(9), false))
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("receive buffer overflowed") && text.contains("(105)"),
        "{text}"
    );
    // The kernel did it all the same.
    let listed = host.sh("nft list set inet bellrock addresses4").unwrap();
    assert_eq!(listed.matches("203.0.113.").count(), 9, "{listed}");

    let mut ask = |dump| {
        socket.clog();
        socket.ask(
            if dump { Kind::GetSet } else { Kind::GetGen },
            dump,
            |_| {},
            || 0,
            |count, _| *count += 1,
        )
    };
    assert_eq!(ask(false).unwrap(), Some(1));
    let sets = crate::netlink::sets::Set::all().count();
    assert_eq!(ask(true).unwrap(), Some(sets));
}

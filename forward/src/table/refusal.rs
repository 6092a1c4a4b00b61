//! What the kernel's answers to a batch mean: whose fault it is, and whether
//! the table can be the cause.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::content::Entry;
use crate::errno;
use crate::error::Error;
use crate::model::ServiceKey;
use crate::netlink::decode::Answer;
use crate::netlink::encode::Mark;
use crate::netlink::sets::Set;

/// Why a batch had no effect.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The kernel did not accept what these Services need; a sentence each.
    Services {
        sentences: BTreeMap<Arc<ServiceKey>, String>,
        /// It can also be that the table is not as we left it.
        stale: bool,
        /// The first of its answers.
        error: Error,
    },
    /// The table may not be as we left it.
    Stale(Error),
    /// Something else.
    Other(Error),
}

impl Refusal {
    /// What the kernel said.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Services { error, .. } | Self::Stale(error) | Self::Other(error) => error,
        }
    }

    /// Whether it can be that the table is not as we left it.
    pub(crate) fn is_stale(&self) -> bool {
        match self {
            Self::Services { stale, .. } => *stale,
            Self::Stale(_) => true,
            Self::Other(_) => false,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match &error {
            Error::Kernel { errno, .. } if errno::may_be_stale(*errno) => Self::Stale(error),
            _ => Self::Other(error),
        }
    }
}

/// A refusal of the second batch, when the first is in force: it can only mean
/// that the table is not as we thought.
pub(super) fn stale(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Services { error, .. } => Refusal::Stale(error),
        other => other,
    }
}

/// What the failures of a batch mean.
pub(super) fn refusal(failures: &[Answer], marks: &[Mark]) -> Refusal {
    let of_no_service = |f: &&Answer| errno::is_of_no_service(f.errno);
    let system = failures.iter().find(of_no_service);
    let first = system.or(failures.first());
    let error = first.map_or(Error::NoAnswer, |first| Error::Kernel {
        doing: "change the table",
        errno: first.errno,
        text: first.text.clone(),
    });
    match blame(failures, marks) {
        Some(sentences) if system.is_none() => Refusal::Services {
            sentences,
            stale: failures.iter().any(|f| errno::may_be_stale(f.errno)),
            error,
        },
        _ => error.into(),
    }
}

/// Finds the Services that failures come from, with a sentence each: none if
/// one failure has no owner.
fn blame(failures: &[Answer], marks: &[Mark]) -> Option<BTreeMap<Arc<ServiceKey>, String>> {
    let mut sentences = BTreeMap::new();
    for failure in failures {
        // The last mark at or before the place; without a place, all of the
        // message.
        let of_message = || marks.iter().filter(|m| m.sequence == failure.sequence);
        let precise = failure.offset.and_then(|at| {
            of_message()
                .filter(|m| m.offset <= at)
                .max_by_key(|m| m.offset)
        });
        let blamed: Vec<&Mark> = precise.map_or_else(|| of_message().collect(), |m| vec![m]);
        if blamed.is_empty() {
            return None;
        }
        for mark in blamed {
            let owner = mark.owner.clone()?;
            sentences
                .entry(owner)
                .or_insert_with(|| sentence(failure, &mark.entry));
        }
    }
    Some(sentences)
}

fn sentence(failure: &Answer, entry: &Entry) -> String {
    format!(
        "The kernel refused its element of {:?}: {} (error {}{}).",
        Set::of(entry).name(),
        errno::words(failure.errno),
        failure.errno,
        failure
            .text
            .as_deref()
            .map(|text| format!(", {text}"))
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Class, Front, Pick, Scope};
    use crate::content::{Entry, Value};
    use crate::diff::{Action, Op};
    use crate::family::Family;
    use crate::model::Protocol;
    use crate::netlink::encode::{self, Prelude};

    fn answer(sequence: u32, errno: i32, offset: Option<usize>) -> Answer {
        Answer {
            sequence,
            errno,
            text: None,
            offset,
        }
    }

    /// A Service's front with a class that nobody has yet.
    fn ops() -> Vec<Op> {
        let owner = Arc::new(ServiceKey::new("default", "web"));
        let front = Front {
            address: [203, 0, 113, 1].into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let class = Class {
            restricted: true,
            family: Family::V4,
            scope: Scope::Cluster,
            pick: Pick::Client,
            slots: 64,
        };
        let add = |entry, value| Op {
            entry,
            action: Action::Add(value),
            owner: Some(owner.clone()),
        };
        vec![
            add(Entry::Chain(class.unrestricted()), Value::Member),
            add(Entry::Chain(class), Value::Member),
            add(Entry::Class(front), Value::Class(class)),
            add(Entry::Ours(front), Value::Member),
        ]
    }

    #[test]
    fn whichever_message_fails_its_service_is_found() {
        let batch = encode::batch(Prelude::None, &ops(), true);
        // Counted from 2: the batch's own first message has none.
        assert!(batch.acknowledged > 8);
        for sequence in 2..=batch.acknowledged {
            // A chain's element, a rule's expression: some place far in.
            for offset in [None, Some(20), Some(60), Some(4_000)] {
                let failures = [answer(sequence, errno::EINVAL, offset)];
                let found = refusal(&failures, &batch.marks);
                let Refusal::Services {
                    sentences, stale, ..
                } = found
                else {
                    panic!("message {sequence} at {offset:?}: {found:?}")
                };
                assert_eq!((sentences.len(), stale), (1, false));
            }
        }
    }

    #[test]
    fn no_service_is_blamed_for_the_machine() {
        let marks = encode::batch(Prelude::None, &ops(), true).marks;
        for (number, stale) in [
            (errno::EPERM, false),
            (errno::ENOMEM, false),
            (errno::ENOBUFS, true),
        ] {
            let failures = [answer(2, errno::EINVAL, None), answer(3, number, None)];
            let found = refusal(&failures, &marks);
            assert!(!matches!(found, Refusal::Services { .. }), "{found:?}");
            assert_eq!(found.is_stale(), stale, "{found:?}");
            let text = found.into_error().to_string();
            assert!(text.contains(errno::words(number)), "{text}");
        }
    }
}

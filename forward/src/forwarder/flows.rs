//! UDP flows after a change: those that lead to an endpoint that is gone, or
//! past a front that is new, are forgotten by the kernel.
//!
//! A packet that began before a change can still confirm its flow after it,
//! so each front is looked at once more, a second later. What an earlier
//! process did not live to clear is looked for a second after the start.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Forwarder;
use crate::content::Front;
use crate::diff::Op;
use crate::table::Ends;

/// How long after a change flows are looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// Fronts whose flows are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Flows {
    now: BTreeSet<Front>,
    /// Once more at that time.
    again: Option<(Instant, BTreeSet<Front>)>,
    /// And these after those.
    next: BTreeSet<Front>,
    /// Deleted since the current call began.
    pub(super) cleared: usize,
    /// Why some were not, as of the last attempt.
    pub(super) trouble: Option<String>,
}

impl Flows {
    /// Takes note of operations, whether or not they come to pass.
    pub(super) fn note(&mut self, ops: &[Op]) {
        self.now.extend(ops.iter().filter_map(Op::redirects));
    }

    /// Has these looked at once, a second from now.
    pub(super) fn note_for_later(&mut self, fronts: impl Iterator<Item = Front>, now: Instant) {
        let again = self.again.get_or_insert((now + AGAIN, BTreeSet::new()));
        again.1.extend(fronts);
        if again.1.is_empty() {
            self.again = None;
        }
    }

    /// The fronts to look at.
    fn due(&mut self, now: Instant) -> BTreeSet<Front> {
        let mut due = std::mem::take(&mut self.now);
        self.next.extend(due.iter().copied());
        match &mut self.again {
            Some((at, _)) if *at > now => {}
            again => {
                if let Some((_, fronts)) = again.take() {
                    due.extend(fronts);
                }
                let next = std::mem::take(&mut self.next);
                if !next.is_empty() {
                    *again = Some((now + AGAIN, next));
                }
            }
        }
        due
    }
}

impl Forwarder {
    /// Clears what is due. A failure leaves the flows to their timeouts, or to
    /// the next call: it is no reason to undo what is in force.
    pub(super) fn clear_flows(&mut self, now: Instant) {
        let due = self.flows.due(now);
        if due.is_empty() {
            return;
        }
        let ends: Ends = due
            .iter()
            .map(|front| (*front, self.state.ends(front)))
            .collect();
        match self.table.clear_flows(&ends) {
            Ok(cleared) => {
                self.flows.cleared += cleared;
                self.flows.trouble = None;
            }
            Err(error) => {
                warn!(%error, "UDP flows not cleared");
                self.flows.trouble = Some(error.to_string());
                self.flows.next.extend(due);
                self.flows
                    .again
                    .get_or_insert((now + AGAIN, BTreeSet::new()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Entry, Scope, Value};
    use crate::diff::{Action, When};
    use crate::model::Protocol;

    fn front(port: u16, protocol: Protocol) -> Front {
        Front {
            address: [203, 0, 113, 1].into(),
            protocol,
            port,
        }
    }

    fn op(entry: Entry, action: Action) -> Op {
        Op {
            entry,
            action,
            owner: None,
        }
    }

    #[test]
    fn each_front_is_looked_at_at_once_and_again_after_a_second() {
        #[allow(clippy::disallowed_methods, reason = "a test may begin now")]
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (a, b) = (front(1, Protocol::Udp), front(2, Protocol::Udp));
        let mut flows = Flows::default();
        assert!(flows.due(at(0)).is_empty());
        flows.note(&[op(Entry::Ours(a), Action::Add(Value::Member))]);
        assert_eq!(flows.due(at(0)), [a].into());
        // Without end, too, changes do not keep the first from its turn.
        flows.note(&[op(Entry::Ours(b), Action::Delete(When::Now))]);
        assert_eq!(flows.due(at(500)), [b].into());
        assert!(flows.due(at(999)).is_empty());
        assert_eq!(flows.due(at(1_000)), [a].into());
        assert_eq!(flows.due(at(2_000)), [b].into());
        assert!(flows.due(at(9_000)).is_empty() && flows.again.is_none());
    }

    #[test]
    fn only_changes_of_where_udp_leads_count() {
        let udp = front(1, Protocol::Udp);
        let slot = |front| Entry::Endpoint(front, Scope::Cluster, 0);
        let to = Value::Endpoint([10, 0, 0, 1].into(), 1);
        let redirects = |entry, action| op(entry, action).redirects();
        assert_eq!(redirects(slot(udp), Action::Replace(to)), Some(udp));
        assert_eq!(redirects(slot(udp), Action::Delete(When::Later)), Some(udp));
        assert_eq!(redirects(slot(udp), Action::Add(to)), None);
        let tcp = front(1, Protocol::Tcp);
        assert_eq!(redirects(slot(tcp), Action::Delete(When::Later)), None);
        assert_eq!(
            redirects(Entry::Ours(tcp), Action::Add(Value::Member)),
            None
        );
    }
}

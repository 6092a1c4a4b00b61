//! Several elections over one Lease, step by step.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// The Lease, as an API server keeps it.
#[derive(Default)]
struct Store {
    lease: Option<Record>,
    versions: u64,
}

impl Store {
    fn make(&mut self, who: &str, ask: &Ask) -> Answer {
        let present = self.lease.clone();
        let bound = |version: &String| present.as_ref().map(|r| &r.version == version);
        let (holder, transitions) = match ask {
            Ask::Read => return present.map_or(Answer::Missing, Answer::Is),
            Ask::Create if present.is_some() => return Answer::Refused,
            Ask::Create => (Some(who.to_owned()), 0),
            Ask::Take { version, .. } | Ask::Renew { version } | Ask::Release { version }
                if bound(version) != Some(true) =>
            {
                return present.map_or(Answer::Missing, |_| Answer::Refused);
            }
            Ask::Take { transitions, .. } => (Some(who.to_owned()), *transitions),
            Ask::Renew { .. } => {
                let record = present.as_ref().unwrap();
                (record.holder.clone(), record.transitions)
            }
            Ask::Release { .. } => (None, present.as_ref().unwrap().transitions),
        };
        self.versions += 1;
        let record = Record {
            version: self.versions.to_string(),
            holder,
            duration: Some(Times::default().duration),
            transitions,
        };
        self.lease = Some(record.clone());
        Answer::Is(record)
    }

    fn holder(&self) -> Option<&str> {
        self.lease.as_ref()?.holder.as_deref()
    }
}

fn election(name: &str) -> Election {
    Election::new(name.to_owned(), Times::default())
}

/// Makes all calls that are due, at once answered.
fn turn(store: &mut Store, election: &mut Election, now: Duration) {
    for _ in 0..8 {
        let Some(ask) = election.due(now) else {
            return;
        };
        let answer = store.make(&election.identity.clone(), &ask);
        election.answer(answer, now);
    }
    panic!("asks without end: {election:?}");
}

/// Runs `elections` from `from` to `to`.
fn pass(store: &mut Store, elections: &mut [&mut Election], from: Duration, to: Duration) {
    let mut now = from;
    while now < to {
        for election in elections.iter_mut() {
            turn(store, election, now);
        }
        now += 50 * MS;
    }
}

#[test]
fn the_first_takes_the_lease_and_keeps_it_while_the_other_looks_on() {
    let (mut store, mut a, mut b) = (Store::default(), election("a"), election("b"));
    assert!(!a.is_decided());
    turn(&mut store, &mut a, Duration::ZERO);
    turn(&mut store, &mut b, Duration::ZERO);
    assert!(a.is_decided() && b.is_decided());
    pass(&mut store, &mut [&mut a, &mut b], MS, 60_000 * MS);
    assert_eq!(a.leads(60_000 * MS).map(|(term, _)| term), Some(1));
    assert_eq!(b.leads(60_000 * MS), None);
    assert_eq!(store.lease.unwrap().transitions, 0);
}

#[test]
fn a_lease_that_is_released_is_taken_within_a_second() {
    let (mut store, mut a, mut b) = (Store::default(), election("a"), election("b"));
    pass(&mut store, &mut [&mut a, &mut b], MS, 5_000 * MS);
    let ask = a.release(5_000 * MS).unwrap();
    let answer = store.make("a", &ask);
    a.answer(answer, 5_000 * MS);
    assert_eq!(a.leads(5_000 * MS), None);
    assert_eq!(store.holder(), None);
    pass(&mut store, &mut [&mut b], 5_001 * MS, 6_000 * MS);
    assert!(b.leads(6_000 * MS).is_some());
    assert_eq!(store.lease.unwrap().transitions, 1);
    assert_eq!(
        b.release(60_000 * MS),
        None,
        "what has run out is not given up"
    );
}

#[test]
fn the_lease_of_one_that_died_is_taken_when_it_has_run_out_and_not_before() {
    let (mut store, mut a, mut b) = (Store::default(), election("a"), election("b"));
    pass(&mut store, &mut [&mut a, &mut b], MS, 5_000 * MS);
    let (_, until) = a.leads(5_000 * MS).unwrap();
    pass(&mut store, &mut [&mut b], 5_000 * MS, until);
    assert_eq!(b.leads(until), None);
    pass(&mut store, &mut [&mut b], until, 16_000 * MS);
    assert!(b.leads(16_000 * MS).is_some());
}

#[test]
fn one_that_was_frozen_knows_at_once_and_leads_again_in_another_term() {
    let (mut store, mut a, mut b) = (Store::default(), election("a"), election("b"));
    pass(&mut store, &mut [&mut a, &mut b], MS, 5_000 * MS);
    pass(&mut store, &mut [&mut b], 5_000 * MS, 30_000 * MS);
    assert_eq!(a.leads(30_000 * MS), None, "before it has asked anybody");
    turn(&mut store, &mut a, 30_000 * MS);
    assert_eq!(store.holder(), Some("b"));
    // The same with the renewal sent before the freeze and answered after it.
    let mut now = 30_000 * MS;
    let ask = loop {
        match b.due(now) {
            Some(ask) => break ask,
            None => now += 50 * MS,
        }
    };
    let answer = store.make("b", &ask);
    b.answer(answer, 60_000 * MS);
    assert_eq!(b.leads(60_000 * MS), None);
    pass(&mut store, &mut [&mut a], 60_000 * MS, 75_000 * MS);
    assert_eq!(a.leads(75_000 * MS).map(|(term, _)| term), Some(2));
}

#[test]
fn a_renewal_whose_answer_is_lost_or_a_label_by_hand_costs_nothing() {
    let (mut store, mut a) = (Store::default(), election("a"));
    turn(&mut store, &mut a, Duration::ZERO);
    let ask = a.due(2_000 * MS).unwrap();
    store.make("a", &ask);
    a.answer(Answer::Failed, 4_000 * MS);
    assert!(a.leads(4_000 * MS).is_some());
    turn(&mut store, &mut a, 4_500 * MS);
    assert_eq!(a.leads(12_000 * MS).map(|(term, _)| term), Some(1));
}

#[test]
fn an_api_server_that_is_away_ends_the_term_and_the_start_as_undecided() {
    let (mut store, mut a) = (Store::default(), election("a"));
    assert_eq!(a.due(Duration::ZERO), Some(Ask::Read));
    a.answer(Answer::Failed, MS);
    assert!(a.is_decided() && a.leads(MS).is_none());
    turn(&mut store, &mut a, 1_000 * MS);
    let mut now = 3_000 * MS;
    while now < 9_000 * MS {
        assert!(a.leads(now).is_some());
        if a.due(now).is_some() {
            a.answer(Answer::Failed, now);
        }
        now += 100 * MS;
    }
    assert_eq!(a.due(now), Some(Ask::Read));
    assert_eq!(a.leads(now), None);
}

proptest! {
    /// Calls take time, get lost on either way, processes freeze: at no time do two lead.
    #[test]
    fn two_never_lead_at_once(
        steps in prop::collection::vec((0usize..3, 0u64..4_000, 0u8..8), 1..400)
    ) {
        let mut store = Store::default();
        let mut all = [election("a"), election("b"), election("c")];
        // Asked, answered by the store, not yet heard of.
        let mut under_way: [Option<Option<Answer>>; 3] = [None, None, None];
        let mut now = Duration::ZERO;
        for (who, pause, fate) in steps {
            now += Duration::from_millis(if fate == 7 { pause * 4 } else { pause / 8 });
            match under_way[who].take() {
                Some(answer) => all[who].answer(answer.unwrap_or(Answer::Failed), now),
                None => {
                    if let Some(ask) = all[who].due(now) {
                        let name = all[who].identity.clone();
                        under_way[who] = Some(match fate {
                            0 => None,
                            1 => {
                                store.make(&name, &ask);
                                None
                            }
                            _ => Some(store.make(&name, &ask)),
                        });
                    }
                }
            }
            let leaders = all.iter().filter(|e| e.leads(now).is_some()).count();
            prop_assert!(leaders <= 1, "{:?}", all);
        }
    }
}

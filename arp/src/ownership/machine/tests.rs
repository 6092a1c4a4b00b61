//! Every cell of the state table.
#![allow(clippy::panic, reason = "that is how tests fail")]

use std::time::Duration;

use super::*;

const T: Instant = Instant(1_000_000_000);
const PEER: MacAddr = MacAddr(2, 0, 0, 0, 0, 0x0b);
const HOST: MacAddr = MacAddr(2, 0, 0, 0, 0, 0xee);
const FOREIGN: MacAddr = MacAddr(2, 0, 0, 0, 0, 0xff);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One phase per column. Epochs: the base is 100, others had 105 (first
/// claims: nobody), this node has 105 where it has one.
fn columns() -> [(&'static str, Phase, u64); 10] {
    let later = T + ms(500);
    let probe = |sent, due, keep| Phase::Probe {
        sent,
        due,
        keep,
        asked: false,
    };
    [
        ("IDLE", Phase::Idle { retry: Some(later) }, 105),
        (
            "WAIT",
            Phase::Wait {
                until: later,
                delay: ms(60),
            },
            105,
        ),
        ("PROBE first", probe(1, Some(later), false), 0),
        ("PROBE", probe(1, Some(later), false), 105),
        ("PROBE end", probe(2, Some(later), false), 105),
        ("PROBE keep", probe(2, Some(later), true), 105),
        (
            "OWN",
            Phase::Own {
                since: T,
                announced: 0,
                due: Some(later),
            },
            105,
        ),
        ("DEAF", Phase::Deaf, 105),
        (
            "GIVE",
            Phase::Give {
                to: PEER,
                due: T,
                every: ms(20),
                until: later,
                hard: false,
                since: T,
                announced: 2,
            },
            105,
        ),
        ("BLOCKED", Phase::Blocked { retry: later }, 0),
    ]
}

fn triggers() -> Vec<(&'static str, Trigger)> {
    let node = || "b".to_owned();
    vec![
        (
            "unowned",
            Trigger::Unowned {
                delay: ms(60),
                cause: Cause::OwnerSilent,
            },
        ),
        ("due", Trigger::Due { hears: true }),
        ("due, hears nobody", Trigger::Due { hears: false }),
        ("transmitted", Trigger::Transmitted),
        (
            "higher claim",
            Trigger::Claim {
                higher: true,
                node: node(),
                mac: PEER,
            },
        ),
        (
            "lower claim",
            Trigger::Claim {
                higher: false,
                node: node(),
                mac: PEER,
            },
        ),
        ("peer releases", Trigger::PeerReleased),
        ("healed", Trigger::Healed),
        ("peer answers", Trigger::PeerAnswer { mac: PEER }),
        (
            "better probes",
            Trigger::PeerProbe {
                outranks: true,
                mac: PEER,
            },
        ),
        (
            "worse probes",
            Trigger::PeerProbe {
                outranks: false,
                mac: PEER,
            },
        ),
        ("silent answers", Trigger::SilentAnswer { mac: PEER }),
        ("deaf", Trigger::Deaf),
        ("hearing", Trigger::Hearing),
        (
            "give",
            Trigger::Give {
                to: PEER,
                hard: true,
                cause: Cause::Ineligible,
            },
        ),
        ("keep", Trigger::Keep),
        ("hand-over", Trigger::HandOver { mac: PEER }),
        ("foreign", Trigger::Foreign { mac: FOREIGN }),
        (
            "frozen",
            Trigger::Doubt {
                cause: Cause::Frozen,
            },
        ),
        ("link down", Trigger::LinkDown),
        (
            "resume",
            Trigger::Resume {
                cause: Cause::LinkChange,
            },
        ),
        (
            "restart",
            Trigger::Resume {
                cause: Cause::Restart,
            },
        ),
        ("goes on", Trigger::GoOn { epoch: 105 }),
        (
            "ineligible",
            Trigger::Stop {
                cause: Cause::Ineligible,
            },
        ),
        (
            "removed",
            Trigger::Stop {
                cause: Cause::Removed,
            },
        ),
    ]
}

fn describe(machine: &Machine, actions: &[Action]) -> String {
    let relative = |at: Instant| match at.since(T) {
        Duration::ZERO => "0".to_owned(),
        after => format!("{}ms", after.as_millis()),
    };
    let due = |due: Option<Instant>| due.map_or("-".to_owned(), relative);
    let mut text = match &machine.phase {
        Phase::Idle { retry } => format!("IDLE {}", due(*retry)),
        Phase::Wait { until, .. } => format!("WAIT {}", relative(*until)),
        Phase::Probe {
            sent,
            due: at,
            keep,
            asked,
        } => format!(
            "PROBE {sent} {}{}{}",
            due(*at),
            if *keep { " keep" } else { "" },
            if *asked { " asked" } else { "" }
        ),
        Phase::Own {
            announced, due: at, ..
        } => {
            format!("OWN {} {announced} {}", machine.epoch, due(*at))
        }
        Phase::Deaf => format!("DEAF {}", machine.epoch),
        Phase::Give {
            due: at,
            until,
            hard,
            ..
        } => format!(
            "GIVE {} {}{}",
            relative(*at),
            relative(*until),
            if *hard { " hard" } else { "" }
        ),
        Phase::Blocked { retry } => format!("BLOCKED {}", relative(*retry)),
    };
    for action in actions {
        let short = match action {
            Action::Transmit => "transmit".to_owned(),
            Action::Claim => "claim".to_owned(),
            Action::ClaimTo(PEER) => "claim-to".to_owned(),
            Action::Release { epoch, removed } => {
                format!("release {epoch}{}", if *removed { " removed" } else { "" })
            }
            Action::Ask(PEER) => "ask".to_owned(),
            Action::HandOver(PEER) => "hand-over".to_owned(),
            Action::GiveOn => "give-on".to_owned(),
            Action::Reconsider => "reconsider".to_owned(),
            Action::Owned { cause, .. } => format!("Owned({cause})"),
            Action::Lost(cause, to) => {
                format!(
                    "Lost({cause}{})",
                    to.as_ref().map_or(String::new(), |to| format!(" {to}"))
                )
            }
            Action::Blocked(FOREIGN) => "Blocked".to_owned(),
            Action::Unblocked => "Unblocked".to_owned(),
            Action::ForeignClaim(FOREIGN) => "Foreign".to_owned(),
            other => panic!("{other:?}"),
        };
        text = format!("{text}; {short}");
    }
    text
}

fn cell(phase: &Phase, epoch: u64, trigger: &Trigger) -> String {
    let mut machine = Machine::in_phase(phase.clone(), epoch);
    machine.foreign = matches!(phase, Phase::Blocked { .. }).then_some((HOST, T));
    if matches!(
        trigger,
        Trigger::Resume {
            cause: Cause::LinkChange
        }
    ) {
        machine.resume = matches!(phase, Phase::Idle { .. });
    }
    let before = machine.clone();
    let actions = machine.step(trigger.clone(), T, &Timers::default());
    if actions.is_empty() && machine.phase == before.phase {
        return "-".to_owned();
    }
    describe(&machine, &actions)
}

/// `trigger | column: result`, cells that leave everything as it is left out.
#[test]
fn the_state_table_is_this() {
    let mut table = Vec::new();
    for (name, trigger) in triggers() {
        for (column, phase, epoch) in columns() {
            let cell = cell(&phase, epoch, &trigger);
            if cell != "-" {
                table.push(format!("{name} | {column}: {cell}"));
            }
        }
    }
    let expected = "\
unowned | IDLE: WAIT 60ms
unowned | WAIT: WAIT 60ms
due | IDLE: IDLE -; reconsider
due | WAIT: PROBE 0 -; transmit
due | PROBE first: PROBE 1 -; transmit
due | PROBE: PROBE 1 -; transmit
due | PROBE end: OWN 106 0 -; Owned(FirstClaim); claim; transmit
due | PROBE keep: OWN 105 0 -; Owned(FirstClaim); claim; transmit
due | OWN: OWN 105 0 -; transmit
due | GIVE: GIVE 40ms 500ms; hand-over
due | BLOCKED: PROBE 0 -; transmit
due, hears nobody | IDLE: IDLE -; reconsider
due, hears nobody | WAIT: WAIT 100ms
due, hears nobody | PROBE first: PROBE 1 -; transmit
due, hears nobody | PROBE: PROBE 1 -; transmit
due, hears nobody | PROBE end: WAIT 100ms
due, hears nobody | PROBE keep: PROBE 2 100ms keep
due, hears nobody | OWN: OWN 105 0 100ms
due, hears nobody | GIVE: GIVE 40ms 500ms; hand-over
due, hears nobody | BLOCKED: PROBE 0 -; transmit
transmitted | PROBE first: PROBE 2 20ms
transmitted | PROBE: PROBE 2 20ms
transmitted | PROBE end: PROBE 3 20ms
transmitted | PROBE keep: PROBE 3 20ms keep
transmitted | OWN: OWN 105 1 50ms
higher claim | IDLE: IDLE -
higher claim | WAIT: IDLE -
higher claim | PROBE first: IDLE -
higher claim | PROBE: IDLE -
higher claim | PROBE end: IDLE -
higher claim | PROBE keep: IDLE -
higher claim | OWN: IDLE -; Lost(HigherClaim b); release 105
higher claim | DEAF: IDLE -; Lost(HigherClaim b); release 105
higher claim | GIVE: IDLE -; Lost(HandedOver b); release 105
higher claim | BLOCKED: IDLE -; Unblocked
lower claim | OWN: OWN 105 0 -; claim-to; transmit
lower claim | DEAF: PROBE 0 - keep; Lost(Deaf); transmit
lower claim | GIVE: GIVE 0 500ms; hand-over
peer releases | OWN: OWN 105 0 -; transmit
healed | OWN: OWN 105 0 -; transmit
peer answers | WAIT: IDLE 1000ms
peer answers | PROBE first: IDLE 1000ms
peer answers | PROBE: IDLE 1000ms
peer answers | PROBE end: IDLE 1000ms
peer answers | PROBE keep: IDLE 1000ms
peer answers | OWN: OWN 105 0 -; claim-to; transmit
peer answers | DEAF: PROBE 0 - keep; Lost(Deaf); transmit
better probes | WAIT: WAIT 60ms
better probes | PROBE first: WAIT 60ms
better probes | PROBE: WAIT 60ms
better probes | PROBE end: WAIT 60ms
better probes | PROBE keep: WAIT 60ms
better probes | OWN: OWN 105 0 500ms; claim-to
better probes | DEAF: DEAF 105; claim-to
better probes | GIVE: GIVE 0 500ms; claim-to
worse probes | OWN: OWN 105 0 500ms; claim-to
worse probes | DEAF: DEAF 105; claim-to
worse probes | GIVE: GIVE 0 500ms; claim-to
silent answers | PROBE first: PROBE 1 500ms asked; ask
silent answers | PROBE: PROBE 1 500ms asked; ask
silent answers | PROBE end: PROBE 2 500ms asked; ask
silent answers | PROBE keep: PROBE 2 500ms keep asked; ask
deaf | OWN: DEAF 105
hearing | DEAF: PROBE 0 - keep; Lost(Deaf); transmit
give | OWN: GIVE 20ms 60ms hard; hand-over
give | DEAF: GIVE 20ms 60ms hard; hand-over
give | GIVE: GIVE 20ms 60ms hard; hand-over
keep | GIVE: OWN 105 2 250ms
hand-over | IDLE: OWN 106 0 -; Owned(HandedOver); claim; transmit
hand-over | WAIT: OWN 106 0 -; Owned(HandedOver); claim; transmit
hand-over | PROBE first: OWN 101 0 -; Owned(HandedOver); claim; transmit
hand-over | PROBE: OWN 106 0 -; Owned(HandedOver); claim; transmit
hand-over | PROBE end: OWN 106 0 -; Owned(HandedOver); claim; transmit
hand-over | PROBE keep: OWN 106 0 -; Owned(HandedOver); claim; transmit
hand-over | OWN: OWN 105 0 500ms; claim-to
hand-over | DEAF: DEAF 105; claim-to
foreign | IDLE: IDLE 500ms; Foreign
foreign | WAIT: IDLE 1000ms; Foreign
foreign | PROBE first: BLOCKED 60000ms; Blocked
foreign | PROBE: WAIT 1000ms; Foreign
foreign | PROBE end: WAIT 1000ms; Foreign
foreign | PROBE keep: WAIT 1000ms; Foreign
foreign | OWN: OWN 105 0 -; transmit; Foreign
foreign | DEAF: DEAF 105; Foreign
foreign | GIVE: GIVE 0 500ms; Foreign
foreign | BLOCKED: BLOCKED 500ms; Blocked
frozen | WAIT: IDLE 320ms
frozen | PROBE first: PROBE 0 -; transmit
frozen | PROBE: PROBE 0 -; transmit
frozen | PROBE end: PROBE 0 -; transmit
frozen | PROBE keep: PROBE 0 - keep; transmit
frozen | OWN: PROBE 0 - keep; Lost(Frozen); transmit
frozen | DEAF: PROBE 0 - keep; Lost(Frozen); transmit
frozen | GIVE: PROBE 0 - keep; Lost(Frozen); transmit
link down | IDLE: IDLE -
link down | WAIT: IDLE -
link down | PROBE first: IDLE -
link down | PROBE: IDLE -
link down | PROBE end: IDLE -
link down | PROBE keep: IDLE -
link down | OWN: IDLE -; Lost(LinkChange); release 105
link down | DEAF: IDLE -; Lost(LinkChange); release 105
link down | GIVE: IDLE -; Lost(LinkChange); release 105
link down | BLOCKED: IDLE -; Unblocked
resume | IDLE: PROBE 0 - keep; transmit
restart | IDLE: PROBE 0 - keep; transmit
goes on | IDLE: OWN 105 3 1100ms
goes on | WAIT: OWN 105 3 1100ms
goes on | PROBE first: OWN 105 3 1100ms; Owned(Restart)
goes on | PROBE: OWN 105 3 1100ms
goes on | PROBE end: OWN 105 3 1100ms
goes on | PROBE keep: OWN 105 3 1100ms
ineligible | IDLE: IDLE -
ineligible | WAIT: IDLE -
ineligible | PROBE first: IDLE -
ineligible | PROBE: IDLE -
ineligible | PROBE end: IDLE -
ineligible | PROBE keep: IDLE -
ineligible | OWN: IDLE -; Lost(Ineligible); release 105
ineligible | DEAF: IDLE -; Lost(Ineligible); release 105
ineligible | GIVE: IDLE -; Lost(Ineligible); release 105
ineligible | BLOCKED: IDLE -; Unblocked
removed | IDLE: IDLE -
removed | WAIT: IDLE -
removed | PROBE first: IDLE -
removed | PROBE: IDLE -
removed | PROBE end: IDLE -
removed | PROBE keep: IDLE -
removed | OWN: IDLE -; Lost(Removed); release 105 removed
removed | DEAF: IDLE -; Lost(Removed); release 105 removed
removed | GIVE: IDLE -; Lost(Removed); release 105 removed
removed | BLOCKED: IDLE -; Unblocked";
    let got = table.join("\n");
    for (got, expected) in got.lines().zip(expected.lines()) {
        assert_eq!(got, expected);
    }
    assert_eq!(got, expected);
}

fn own(now: Instant) -> Machine {
    let mut machine = Machine::in_phase(
        Phase::Probe {
            sent: 2,
            due: Some(now),
            keep: false,
            asked: false,
        },
        105,
    );
    machine.step(Trigger::Due { hears: true }, now, &Timers::default());
    machine
}

#[test]
fn announcements_follow_the_claim_at_fixed_times_then_every_minute() {
    let timers = Timers::default();
    let mut machine = own(T);
    let mut at = T;
    let mut times = Vec::new();
    for _ in 0..8 {
        times.push(at.since(T).as_millis());
        machine.step(Trigger::Transmitted, at, &timers);
        at = machine.deadline().unwrap();
        assert_eq!(
            machine.step(Trigger::Due { hears: true }, at, &timers),
            [Action::Transmit]
        );
    }
    assert_eq!(times, [0, 50, 250, 1_100, 2_200, 62_200, 122_200, 182_200]);
}

#[test]
fn an_announcement_for_another_reason_takes_the_place_of_none() {
    let timers = Timers::default();
    let mut machine = own(T);
    machine.step(Trigger::Transmitted, T, &timers);
    machine.step(Trigger::Foreign { mac: FOREIGN }, T + ms(20), &timers);
    machine.step(Trigger::Transmitted, T + ms(20), &timers);
    assert_eq!(machine.deadline(), Some(T + ms(50)));
}

#[test]
fn after_a_lower_claim_clients_that_may_not_change_at_once_get_another_chance() {
    let timers = Timers::default();
    let mut machine = own(T);
    for at in [0, 50, 250, 1_100, 2_200] {
        machine.step(Trigger::Transmitted, T + ms(at), &timers);
    }
    let rival = T + ms(9_000);
    for trigger in [Trigger::PeerAnswer { mac: PEER }, Trigger::Healed] {
        machine.step(trigger, rival, &timers);
        machine.step(Trigger::Transmitted, rival, &timers);
        assert_eq!(machine.deadline(), Some(rival + ms(1_100)));
    }
}

#[test]
fn a_held_address_is_defended_once_in_ten_seconds_and_reported_once_a_minute() {
    let timers = Timers::default();
    let mut machine = own(T);
    let (mut defended, mut reported) = (Vec::new(), Vec::new());
    for second in 0..65 {
        let now = T + Duration::from_secs(second);
        for action in machine.step(Trigger::Foreign { mac: FOREIGN }, now, &timers) {
            match action {
                Action::Transmit => defended.push(second),
                Action::ForeignClaim(FOREIGN) => reported.push(second),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(defended, [0, 10, 20, 30, 40, 50, 60]);
    assert_eq!(reported, [0, 60]);
    let other = machine.step(Trigger::Foreign { mac: HOST }, T + ms(64_001), &timers);
    assert_eq!(other, [Action::ForeignClaim(HOST)], "another host is news");
}

#[test]
fn a_lower_claim_is_contradicted_at_most_once_an_interval() {
    let timers = Timers::default();
    let mut machine = own(T);
    let claim = || Trigger::Claim {
        higher: false,
        node: "b".to_owned(),
        mac: PEER,
    };
    let counts =
        [0, 1, 99, 100, 150, 200].map(|at| machine.step(claim(), T + ms(at), &timers).len());
    assert_eq!(counts, [2, 0, 0, 2, 0, 2]);
}

#[test]
fn a_silent_owner_gets_one_more_interval_and_only_once() {
    let timers = Timers::default();
    let soon = T + ms(5);
    let mut machine = Machine::in_phase(
        Phase::Probe {
            sent: 2,
            due: Some(soon),
            keep: false,
            asked: false,
        },
        105,
    );
    let answer = || Trigger::SilentAnswer { mac: PEER };
    assert_eq!(machine.step(answer(), T, &timers), [Action::Ask(PEER)]);
    assert_eq!(machine.deadline(), Some(T + ms(20)));
    assert_eq!(machine.step(answer(), T + ms(10), &timers), []);
    assert_eq!(
        machine.deadline(),
        Some(T + ms(20)),
        "it cannot put the claim off for ever"
    );
}

#[test]
fn a_blocked_address_is_told_once_and_unblocked_when_it_is_claimed() {
    let timers = Timers::default();
    let mut machine = Machine::new(100, T);
    let foreign = || Trigger::Foreign { mac: FOREIGN };
    let unowned = Trigger::Unowned {
        delay: Duration::ZERO,
        cause: Cause::FirstClaim,
    };
    machine.step(unowned, T, &timers);
    machine.step(Trigger::Due { hears: true }, T, &timers);
    assert_eq!(
        machine.step(foreign(), T, &timers),
        [Action::Blocked(FOREIGN)]
    );
    assert_eq!(machine.step(foreign(), T, &timers), []);
    // Tried again: the host is still there.
    machine.step(Trigger::Due { hears: true }, T + ms(60_000), &timers);
    assert_eq!(machine.state(), State::Probe);
    assert_eq!(machine.step(foreign(), T + ms(60_001), &timers), []);
    assert_eq!(machine.state(), State::Blocked);
    // And again: it is gone.
    let mut now = T + ms(120_001);
    machine.step(Trigger::Due { hears: true }, now, &timers);
    for _ in 0..2 {
        machine.step(Trigger::Transmitted, now, &timers);
        now = machine.deadline().unwrap();
        machine.step(Trigger::Due { hears: true }, now, &timers);
    }
    assert_eq!(machine.state(), State::Own);
    assert_eq!(machine.foreign(), None);
    assert_eq!(machine.owned(), Some(101));
}

#[test]
fn a_younger_object_voids_the_claims_of_the_older_one() {
    let mut machine = own(T);
    assert_eq!(machine.owned(), Some(106));
    assert_eq!(machine.rebase(100, T), []);
    assert_eq!(machine.rebase(1_000, T), [Action::Claim, Action::Transmit]);
    assert_eq!(machine.owned(), Some(1_001));

    let mut idle = Machine::in_phase(Phase::Idle { retry: None }, 105);
    assert!(!idle.is_first());
    assert_eq!(idle.rebase(1_000, T), []);
    assert!(idle.is_first(), "nobody had the new one");
}

#[test]
fn who_is_handed_what_it_holds_with_a_lower_claim_claims_above() {
    let timers = Timers::default();
    let mut machine = own(T);
    assert_eq!(machine.owned(), Some(106));
    // The giver claimed with the same epoch, and its name is greater.
    machine.learn(106, "z");
    let actions = machine.step(Trigger::HandOver { mac: PEER }, T, &timers);
    let claims = [Action::Claim, Action::Transmit, Action::ClaimTo(PEER)];
    assert_eq!(actions, claims);
    assert_eq!(machine.owned(), Some(107));
}

//! Judges a history: whether an address was ever held by two Services unlawfully, moved unasked,
//! given out before its rest was over, or leaked. Pure, and independent of the controller's code.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::{AddressRange, Claim, TrafficPolicy};
use k8s_openapi::jiff::Timestamp;

use super::history::{Act, Event, Key, Record, Told, Wish};

/// A pool of the run; none is changed while it goes on.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) name: &'static str,
    pub(crate) ranges: Vec<AddressRange>,
}

/// What may not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Two Services have an address, on terms on which they may not share it.
    Doubled(IpAddr, Key, Key),
    /// A Service is told an address that is not recorded for it.
    NotHeld(IpAddr, Key),
    /// A Service lost an address, though nothing that it asked for since calls for that.
    Moved(IpAddr, Key),
    /// Given to another Service before its rest was over.
    RestCutShort(IpAddr, Key),
    /// In the end, recorded for nobody, or for a Service that is not there or is not told.
    Leaked(IpAddr, Option<Key>),
    /// In the end, a Service that is ours has not been told anything.
    Forgotten(Key),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |key: &Key| format!("{}/{}", key.0, key.1);
        match self {
            Self::Doubled(ip, a, b) => write!(f, "{ip} is held by {} and {}", name(a), name(b)),
            Self::NotHeld(ip, key) => write!(f, "{} shows {ip} and does not hold it", name(key)),
            Self::Moved(ip, key) => write!(f, "{} lost {ip} unasked", name(key)),
            Self::RestCutShort(ip, key) => write!(f, "{} got {ip}, which rests", name(key)),
            Self::Leaked(ip, Some(key)) => write!(f, "{ip} is leaked to {}", name(key)),
            Self::Leaked(ip, None) => write!(f, "{ip} is leaked"),
            Self::Forgotten(key) => write!(f, "{} was told nothing", name(key)),
        }
    }
}

/// What a history shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<(usize, Violation)>,
    /// Times that a Service was given an address.
    pub(crate) allocations: usize,
    /// Times that another controller came to lead.
    pub(crate) leader_changes: usize,
    /// Writes of which the API server does not say whether they were made.
    pub(crate) perhaps: usize,
    /// Addresses that are recorded in the end, and for whom.
    pub(crate) holders: BTreeMap<IpAddr, BTreeSet<Key>>,
}

/// A Service, and what it asked for since it has each of its addresses.
#[derive(Clone, Debug, Default)]
struct Known {
    told: Told,
    asked: BTreeMap<IpAddr, Vec<Wish>>,
}

/// Who may hold an address, and when and by whom it may have been released.
type Perhaps = (BTreeSet<Key>, Option<(Timestamp, Key)>);

#[derive(Debug, Default)]
struct Checker<'a> {
    pools: &'a [Pool],
    rest: Duration,
    services: BTreeMap<Key, Known>,
    vips: BTreeMap<IpAddr, Record>,
    /// By writes of which nobody knows whether they were made.
    perhaps: BTreeMap<IpAddr, Perhaps>,
    /// What Services may show since, by such writes of their status.
    perhaps_shown: BTreeMap<Key, Vec<BTreeSet<IpAddr>>>,
    shown: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// When addresses that are not recorded any more were released, and by whom.
    resting: BTreeMap<IpAddr, (Timestamp, Key)>,
    leader: Option<String>,
    at: usize,
    verdict: Verdict,
}

/// Judges `events`, which end when everything is quiet again. Every pool's addresses rest for
/// `rest`.
pub(crate) fn check(events: &[Event], pools: &[Pool], rest: Duration) -> Verdict {
    let mut checker = Checker::after(events, pools, rest);
    checker.end();
    checker.verdict
}

/// What would be a violation if `events` ended here, whatever was one before.
pub(crate) fn open(events: &[Event]) -> Vec<Violation> {
    let mut checker = Checker::after(events, &[], Duration::ZERO);
    checker.verdict = Verdict::default();
    checker.end();
    let found = checker.verdict.violations.into_iter();
    found.map(|(_, violation)| violation).collect()
}

impl<'a> Checker<'a> {
    fn after(events: &[Event], pools: &'a [Pool], rest: Duration) -> Self {
        let mut checker = Self {
            pools,
            rest,
            ..Self::default()
        };
        for (at, event) in events.iter().enumerate() {
            checker.at = at;
            checker.event(event);
        }
        checker.at = events.len();
        checker
    }

    fn found(&mut self, violation: Violation) {
        self.verdict.violations.push((self.at, violation));
    }

    fn event(&mut self, event: &Event) {
        match &event.act {
            Act::Service(key, told) => {
                self.perhaps_shown.remove(key);
                self.service(key, told);
            }
            Act::ServicePerhaps(key, shows) => {
                self.verdict.perhaps += 1;
                let known = self.perhaps_shown.entry(key.clone()).or_default();
                known.push(shows.clone());
            }
            Act::ServiceGone(key, uid) => {
                self.perhaps_shown.remove(key);
                if self.services.get(key).is_some_and(|k| k.told.uid == *uid) {
                    self.forget(key);
                }
            }
            Act::Vip(ip, record) => self.vip(*ip, record, event.received),
            Act::VipPerhaps(ip, record) => {
                self.verdict.perhaps += 1;
                let known = self.perhaps.entry(*ip).or_default();
                known.0.extend(record.claims.keys().cloned());
                known.1.clone_from(&record.released);
            }
            Act::VipGone(ip) => {
                let perhaps = self.perhaps.remove(ip).and_then(|(_, released)| released);
                if let Some(Record { claims, released }) = self.vips.remove(ip) {
                    // One that still has claims is released by this, unless it was before, by a
                    // write that turns out to have been made.
                    let last = claims.into_keys().next();
                    let by_this = last.map(|last| perhaps.unwrap_or((event.received, last)));
                    self.resting
                        .extend(by_this.or(released).map(|rest| (*ip, rest)));
                }
                self.all_held(*ip);
            }
            Act::Leads(name) => {
                if !name.is_empty() && self.leader.as_ref() != Some(name) {
                    self.verdict.leader_changes += usize::from(self.leader.is_some());
                    self.leader = Some(name.clone());
                }
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(known) = self.services.remove(key) {
            for ip in known.told.shows {
                self.hide(ip, key);
            }
        }
    }

    fn hide(&mut self, ip: IpAddr, key: &Key) {
        if let Some(keys) = self.shown.get_mut(&ip) {
            keys.remove(key);
        }
    }

    fn service(&mut self, key: &Key, told: &Told) {
        if self
            .services
            .get(key)
            .is_some_and(|k| k.told.uid != told.uid)
        {
            self.forget(key);
        }
        let mut known = self.services.remove(key).unwrap_or_default();
        for wishes in known.asked.values_mut() {
            if wishes.last() != Some(&told.wish) {
                wishes.push(told.wish.clone());
            }
        }
        let before = std::mem::take(&mut known.told.shows);
        for ip in before.difference(&told.shows) {
            let wishes = known.asked.remove(ip).unwrap_or_default();
            if !self.is_called_for(*ip, &wishes) {
                self.found(Violation::Moved(*ip, key.clone()));
            }
            self.hide(*ip, key);
        }
        for ip in told.shows.difference(&before) {
            known.asked.insert(*ip, vec![told.wish.clone()]);
            self.shown.entry(*ip).or_default().insert(key.clone());
        }
        known.told = told.clone();
        self.services.insert(key.clone(), known);
        for ip in &told.shows {
            self.all_held(*ip);
        }
    }

    /// Whether one of a Service's wishes since it has `ip` is a reason to take it away. So may be
    /// the first of them, with which it got it: who names an address that others have keeps the
    /// one recorded for it, until it gets what it asks for.
    fn is_called_for(&self, ip: IpAddr, wishes: &[Wish]) -> bool {
        let Some(first) = wishes.first() else {
            return true;
        };
        wishes.iter().any(|wish| {
            let family = usize::from(ip.is_ipv6());
            let same_family = |other: &&IpAddr| other.is_ipv6() == ip.is_ipv6();
            let in_pool = |pool: &&Pool| {
                wish.pools.contains(pool.name) && pool.ranges.iter().any(|r| r.contains(ip))
            };
            let shares = first.key.is_some() || wish.key.is_some();
            !wish.ours
                || !wish.families[family]
                || wish.addresses.iter().filter(same_family).any(|a| *a != ip)
                || (!wish.pools.is_empty() && !self.pools.iter().any(|p| in_pool(&p)))
                || (shares
                    && (first.key != wish.key
                        || first.ports != wish.ports
                        || first.local != wish.local))
        })
    }

    fn vip(&mut self, ip: IpAddr, record: &Record, received: Timestamp) {
        let before = self.vips.get(&ip).cloned();
        let had = |key: &Key| before.as_ref().is_some_and(|b| b.claims.contains_key(key));
        let new: Vec<&Key> = record.claims.keys().filter(|key| !had(key)).collect();
        self.verdict.allocations += new.len();
        let released = before
            .as_ref()
            .filter(|b| b.claims.is_empty())
            .and_then(|b| b.released.clone())
            .or_else(|| self.resting.remove(&ip));
        if let Some((at, by)) = released {
            let rested = at.duration_until(received);
            let short = Duration::try_from(rested).is_ok_and(|rested| rested < self.rest);
            for key in new.iter().filter(|key| short && ***key != by) {
                self.found(Violation::RestCutShort(ip, (*key).clone()));
            }
        }
        let claims: Vec<(&Key, &Claim)> = record.claims.iter().collect();
        for (index, (a, left)) in claims.iter().enumerate() {
            for (b, right) in claims.iter().skip(index + 1) {
                if !may_share(left, right) {
                    self.found(Violation::Doubled(ip, (*a).clone(), (*b).clone()));
                }
            }
        }
        self.vips.insert(ip, record.clone());
        self.perhaps.remove(&ip);
        self.all_held(ip);
    }

    /// Whoever shows an address holds it.
    fn all_held(&mut self, ip: IpAddr) {
        for key in self.not_held(ip) {
            self.found(Violation::NotHeld(ip, key));
        }
    }

    /// Who shows an address that cannot be recorded for it.
    fn not_held(&self, ip: IpAddr) -> Vec<Key> {
        let holds = |key: &Key| {
            let recorded = self.vips.get(&ip);
            recorded.is_some_and(|record| record.claims.contains_key(key))
                || self
                    .perhaps
                    .get(&ip)
                    .is_some_and(|(keys, _)| keys.contains(key))
        };
        let hides = |key: &Key| {
            let perhaps = self.perhaps_shown.get(key).into_iter().flatten();
            perhaps.into_iter().any(|shows| !shows.contains(&ip))
        };
        let shown = self.shown.get(&ip).into_iter().flatten();
        let shown = shown.filter(|key| !holds(key) && !hides(key));
        shown.cloned().collect()
    }

    fn end(&mut self) {
        let mut found = Vec::new();
        // What was not made by now never was.
        self.perhaps.clear();
        self.perhaps_shown.clear();
        for (ip, keys) in &self.shown {
            let not_held = self.not_held(*ip).into_iter();
            found.extend(not_held.map(|key| Violation::NotHeld(*ip, key)));
            // The record may be of what they wanted once. By now it is what they want that counts.
            let known = |key| self.services.get(key).map(|known| (key, &known.told.wish));
            let wishes: Vec<(&Key, &Wish)> = keys.iter().filter_map(known).collect();
            for (index, a) in wishes.iter().enumerate() {
                for b in wishes.iter().skip(index + 1) {
                    if !go_together(*a, *b) {
                        found.push(Violation::Doubled(*ip, a.0.clone(), b.0.clone()));
                    }
                }
            }
        }
        for (ip, record) in &self.vips {
            if record.claims.is_empty() {
                found.push(Violation::Leaked(*ip, None));
            }
            for key in record.claims.keys() {
                let told = self.services.get(key).map(|known| &known.told);
                if !told.is_some_and(|told| told.wish.ours && told.shows.contains(ip)) {
                    found.push(Violation::Leaked(*ip, Some(key.clone())));
                }
            }
            let keys = record.claims.keys().cloned().collect();
            self.verdict.holders.insert(*ip, keys);
        }
        for (key, known) in &self.services {
            if known.told.wish.ours && known.told.reason.is_none() {
                found.push(Violation::Forgotten(key.clone()));
            }
        }
        for violation in found {
            // Once is enough of what was found on the way and is still so.
            let known = &self.verdict.violations;
            if !known.iter().any(|(_, before)| *before == violation) {
                self.found(violation);
            }
        }
    }
}

/// Whether two Services that want this may have one address: one namespace, one key that both
/// give, no port in common, and packets that end on the same nodes.
fn go_together((a_key, a): (&Key, &Wish), (b_key, b): (&Key, &Wish)) -> bool {
    let same_nodes = match (&a.local, &b.local) {
        (None, None) => true,
        (Some(a), Some(b)) => a == b && !a.is_empty(),
        (None, Some(_)) | (Some(_), None) => false,
    };
    a_key.0 == b_key.0
        && a.key.is_some()
        && a.key == b.key
        && a.ports.is_disjoint(&b.ports)
        && same_nodes
}

/// Whether two claims go together by what they record: one namespace, one key that both give, no
/// port in common, and one policy, with one selector where it is `Local`.
fn may_share(a: &Claim, b: &Claim) -> bool {
    let in_common = a.ports.iter().any(|port| b.ports.contains(port));
    let policies = (a.external_traffic_policy, b.external_traffic_policy);
    let same_nodes = match policies {
        (Some(TrafficPolicy::Local), Some(TrafficPolicy::Local)) => {
            a.selector == b.selector && !a.selector.is_empty()
        }
        (Some(a), Some(b)) => a == b,
        // Not recorded: in the end the Services' own is judged.
        (None, _) | (_, None) => true,
    };
    a.namespace == b.namespace
        && a.sharing_key.is_some()
        && a.sharing_key == b.sharing_key
        && !in_common
        && same_nodes
}

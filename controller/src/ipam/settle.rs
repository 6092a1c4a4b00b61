//! The decision: which addresses a Service should have, given what it asks for and what it has.

use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::MAX_CLAIMS;

use super::book::{Allocator, Found};
use super::claim::{Backend, Claim, Conflict, MAX_TERMS, ServiceKey, may_share};
use super::pool::{Asker, Family, Pool};
use super::refusal::{PassedOver, Refusal};

/// What a Service asks for.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The Service.
    pub service: &'a ServiceKey,
    /// Labels of the Service and of its namespace.
    pub namespace_labels: Option<&'a std::collections::BTreeMap<String, String>>,
    /// Labels of the Service.
    pub service_labels: &'a std::collections::BTreeMap<String, String>,
    /// On what terms it would hold an address.
    pub claim: &'a Claim,
    /// Its families, primary first (`spec.ipFamilies`).
    pub families: &'a [Family],
    /// `spec.ipFamilyPolicy` is `RequireDualStack`: both families or none.
    pub require_both: bool,
    /// Addresses asked for by name, at most one of each family.
    pub addresses: &'a [IpAddr],
    /// Why the addresses asked for cannot be read, if so.
    pub unreadable: Option<&'a Refusal>,
    /// Pools asked for by name; empty for any.
    pub pools: &'a [String],
    /// Addresses that it had before, in its status: taken again if they are free and the rules
    /// would allow them today.
    pub before: &'a [IpAddr],
}

/// An address to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// The address.
    pub address: IpAddr,
    /// The pool that it comes from.
    pub pool: String,
}

/// What a Service should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Held addresses that it keeps.
    pub keep: Vec<IpAddr>,
    /// Addresses that it gets.
    pub take: Vec<Pick>,
    /// Held addresses that it gives up.
    pub give_up: Vec<IpAddr>,
    /// What it asked for and did not get. With `keep` or `take`: what runs is not all that was
    /// asked for.
    pub refusal: Option<Refusal>,
}

impl Settlement {
    /// True when nothing is to be taken, given up or refused.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.take.is_empty() && self.give_up.is_empty() && self.refusal.is_none()
    }
}

impl Allocator {
    /// Decides what `request.service` should have. Changes no holder: the caller does, with
    /// [`Allocator::claim`] and [`Allocator::release`], in the same turn.
    ///
    /// An address that is held stays, unless the Service itself asks for something else, changes
    /// its families, or can lawfully share it no more. What is asked for and cannot be had does
    /// not cost what is held.
    pub fn settle(&mut self, request: &Request<'_>, now: Duration) -> Settlement {
        self.end_rests(now);
        let held: Vec<IpAddr> = self.held_by(request.service).collect();
        let mut out = Settlement::default();
        if let Some(refusal) = request.impossible() {
            // A request that cannot be understood gives nothing on a guess and takes nothing away.
            let families = if request.families.is_empty() {
                &Family::BOTH[..]
            } else {
                request.families
            };
            out.keep = families
                .iter()
                .filter_map(|f| self.current(request, &held, *f))
                .collect();
            out.give_up = held
                .into_iter()
                .filter(|ip| !out.keep.contains(ip))
                .collect();
            out.refusal = Some(refusal);
            return out;
        }

        let mut fresh: Vec<Pick> = Vec::new();
        for &family in request.families {
            let current = self.current(request, &held, family);
            if let Some(ip) = current
                && self.satisfies(request, ip)
            {
                out.keep.push(ip);
                if let Some(node) = self.node_of(ip) {
                    out.refusal.get_or_insert(Refusal::OfNode {
                        address: ip,
                        node: node.to_owned(),
                    });
                }
                continue;
            }
            match (self.pick(request, family), current) {
                (Ok(pick), Some(_)) => out.take.push(pick),
                (Ok(pick), None) => fresh.push(pick),
                (Err(refusal), current) => {
                    out.keep.extend(current);
                    out.refusal.get_or_insert(refusal);
                }
            }
        }
        let have = out.keep.len() + out.take.len() + fresh.len();
        if !request.require_both || have == 2 {
            out.take.append(&mut fresh);
        }
        out.give_up = held
            .into_iter()
            .filter(|ip| !out.keep.contains(ip))
            .collect();
        out
    }

    /// The held address of `family` that counts: the requested one before others, one of a
    /// requested pool before others, the one in the status before others, else the lowest. So a
    /// move that was interrupted half-way goes on to where it was going.
    fn current(&self, request: &Request<'_>, held: &[IpAddr], family: Family) -> Option<IpAddr> {
        held.iter()
            .copied()
            .filter(|ip| Family::of(*ip) == family)
            .filter(|ip| self.keeps_lawfully(request, *ip).is_ok())
            // A node came by the address of a Service: that is reported, and moved only when asked
            // for. What was never told to anybody is not told now.
            .filter(|ip| self.node_of(*ip).is_none() || request.before.contains(ip))
            .min_by_key(|ip| {
                (
                    !request.addresses.contains(ip),
                    !self.in_requested_pool(request, *ip),
                    !request.before.contains(ip),
                    *ip,
                )
            })
    }

    /// Whether the Service may go on holding `ip` beside those who share it.
    fn keeps_lawfully(
        &self,
        request: &Request<'_>,
        ip: IpAddr,
    ) -> Result<(), (ServiceKey, Conflict)> {
        let Some(holding) = self.holding(ip) else {
            return Ok(());
        };
        // Whoever is named on a VirtualIP may use it before the others that are named exist.
        let named = holding.claims.contains_key(request.service);
        let others = || {
            let all = holding.claims.iter();
            all.filter(|(other, _)| *other != request.service)
        };
        let mut terms = request.claim.terms();
        for (other, claim) in others() {
            terms += claim.terms();
            let absent = named && claim.backend == Backend::Unknown;
            if !absent {
                may_share((request.service, request.claim), (other, claim))
                    .map_err(|conflict| (other.clone(), conflict))?;
            }
        }
        match others().next() {
            Some((first, _)) if others().count() >= MAX_CLAIMS || terms > MAX_TERMS => {
                Err((first.clone(), Conflict::Full))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn in_requested_pool(&self, request: &Request<'_>, ip: IpAddr) -> bool {
        request.pools.is_empty() || self.pools_of(ip).any(|p| request.pools.contains(&p.name))
    }

    /// Whether a held address is what the Service asks for. Pools are looked at only if it names
    /// one: who runs is not disturbed by an edited pool.
    fn satisfies(&self, request: &Request<'_>, ip: IpAddr) -> bool {
        let asked = request
            .addresses
            .iter()
            .find(|a| Family::of(**a) == Family::of(ip));
        asked.is_none_or(|a| *a == ip) && self.in_requested_pool(request, ip)
    }

    /// An address of `family` for the Service, or why there is none.
    fn pick(&mut self, request: &Request<'_>, family: Family) -> Result<Pick, Refusal> {
        if self.by_name_is_empty() {
            return Err(Refusal::NoPool);
        }
        if let Some(pool) = request.pools.iter().find(|name| self.pool(name).is_none()) {
            return Err(Refusal::UnknownPool {
                pool: pool.clone(),
                known: self.pools().map(|p| p.name.clone()).collect(),
            });
        }
        match request.addresses.iter().find(|a| Family::of(**a) == family) {
            Some(&address) => self.pick_exactly(request, address),
            None => self.pick_any(request, family),
        }
    }

    fn by_name_is_empty(&self) -> bool {
        self.pools().next().is_none()
    }

    /// An address that the Service names. It may come from a pool with `autoAssign: false`. At
    /// rest it goes to its last holder only.
    fn pick_exactly(&self, request: &Request<'_>, address: IpAddr) -> Result<Pick, Refusal> {
        if let Some(node) = self.node_of(address) {
            return Err(Refusal::OfNode {
                address,
                node: node.to_owned(),
            });
        }
        let lies_in: Vec<&Pool> = self.pools_of(address).collect();
        if lies_in.is_empty() {
            return Err(Refusal::OutsidePools { address });
        }
        let mut refusal = Refusal::NotInPool {
            address,
            asked: request.pools.to_vec(),
            lies_in: lies_in.iter().map(|p| p.name.clone()).collect(),
        };
        for pool in lies_in {
            if !request.pools.is_empty() && !request.pools.contains(&pool.name) {
                continue;
            }
            if let Err(fence) = pool.scope.admits(request.asker()) {
                refusal = Refusal::Fenced {
                    address,
                    pool: pool.name.clone(),
                    fence,
                };
                continue;
            }
            if !pool.offers(address) {
                refusal = Refusal::Avoided {
                    address,
                    pool: pool.name.clone(),
                };
                continue;
            }
            if let Err((by, conflict)) = self.keeps_lawfully(request, address) {
                let absent = self
                    .holding(address)
                    .and_then(|h| h.claims.get(&by))
                    .is_some_and(|claim| claim.backend == Backend::Unknown);
                return Err(if absent {
                    Refusal::Reserved { address, by }
                } else {
                    let asked_to_share = request.claim.sharing_key.is_some();
                    Refusal::InUse {
                        address,
                        by,
                        conflict,
                        asked_to_share,
                    }
                });
            }
            if let Some(rest) = self.rest(address)
                && rest.last.as_ref() != Some(request.service)
            {
                return Err(Refusal::AtRest {
                    address,
                    pool: pool.name.clone(),
                });
            }
            return Ok(Pick {
                address,
                pool: pool.name.clone(),
            });
        }
        Err(refusal)
    }

    /// Any address of `family`: one that it may share under its key, else the one that it had
    /// before, else the lowest free one of the first pool that has one.
    fn pick_any(&mut self, request: &Request<'_>, family: Family) -> Result<Pick, Refusal> {
        if let Some(key) = &request.claim.sharing_key {
            let namespace = &request.service.namespace;
            let shared = self.shared_under(namespace, key, family).find_map(|ip| {
                self.keeps_lawfully(request, ip).ok()?;
                if self.node_of(ip).is_some() {
                    return None;
                }
                self.automatic_pool(request, ip)
            });
            if let Some(pick) = shared {
                return Ok(pick);
            }
        }
        let before = request
            .before
            .iter()
            .copied()
            .chain(self.left_by(request.service));
        for ip in before.filter(|ip| Family::of(*ip) == family) {
            if self.is_free_for(ip, request.service)
                && let Some(pick) = self.automatic_pool(request, ip)
            {
                return Ok(pick);
            }
        }
        let mut passed_over = Vec::new();
        for state in self.states() {
            let why = match automatic(request, &state.pool) {
                Err(why) => why,
                Ok(()) => match state.lowest(family) {
                    Found::Address(address) => {
                        return Ok(Pick {
                            address,
                            pool: state.pool.name.clone(),
                        });
                    }
                    Found::NoFamily => PassedOver::NoFamily,
                    Found::Full { reuse_delay } => PassedOver::Full { reuse_delay },
                },
            };
            if request.pools.is_empty() || request.pools.contains(&state.pool.name) {
                passed_over.push((state.pool.name.clone(), why));
            }
        }
        Err(Refusal::NoneFits {
            family,
            passed_over,
        })
    }

    /// The best pool that would give `ip` to the Service without being asked for that address.
    fn automatic_pool(&self, request: &Request<'_>, ip: IpAddr) -> Option<Pick> {
        self.pools_of(ip)
            .find(|pool| pool.offers(ip) && automatic(request, pool).is_ok())
            .map(|pool| Pick {
                address: ip,
                pool: pool.name.clone(),
            })
    }
}

/// Whether `pool` may give the Service an address of the pool's choice.
fn automatic(request: &Request<'_>, pool: &Pool) -> Result<(), PassedOver> {
    let asked_for = request.pools.contains(&pool.name);
    if !asked_for && (!request.pools.is_empty() || !pool.auto_assign) {
        return Err(PassedOver::NotAutomatic);
    }
    pool.scope
        .admits(request.asker())
        .map_err(PassedOver::NotServed)
}

impl Request<'_> {
    fn asker(&self) -> Asker<'_> {
        Asker {
            namespace: &self.service.namespace,
            namespace_labels: self.namespace_labels,
            service_labels: self.service_labels,
        }
    }

    /// What makes the request impossible in itself, whatever the pools.
    fn impossible(&self) -> Option<Refusal> {
        if let Some(refusal) = self.unreadable {
            return Some(refusal.clone());
        }
        if self.families.is_empty() {
            return Some(Refusal::NoFamily);
        }
        for (index, &address) in self.addresses.iter().enumerate() {
            let same = |other: &&IpAddr| Family::of(**other) == Family::of(address);
            if let Some(&first) = self.addresses.iter().take(index).find(same) {
                return Some(Refusal::TwoOfAFamily {
                    first,
                    second: address,
                });
            }
            if !self.families.contains(&Family::of(address)) {
                return Some(Refusal::WrongFamily {
                    address,
                    families: self.families.to_vec(),
                });
            }
        }
        (self.require_both && self.families.len() < 2).then_some(Refusal::NeedsBothFamilies)
    }
}

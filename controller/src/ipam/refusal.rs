//! Why a Service does not get what it asks for, with the facts that a person needs to fix it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::{AllocationReason, MAX_PORTS, MAX_SELECTOR, MAX_SHARING_KEY};

use super::claim::{Conflict, ServiceKey};
use super::pool::{Family, NotServed};

/// Why one pool was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassedOver {
    /// `autoAssign: false`, and the Service does not ask for it.
    NotAutomatic,
    /// `serviceAllocation` leaves the Service out.
    NotServed(NotServed),
    /// It has no address of the family.
    NoFamily,
    /// Every address is in use, or rests after its release. Which of the two is not said: it
    /// changes with every release, and all who wait would have to be told each time.
    Full {
        /// How long released ones rest.
        reuse_delay: Duration,
    },
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Full { reuse_delay } if !reuse_delay.is_zero() => {
                let seconds = reuse_delay.as_secs();
                return write!(
                    f,
                    "has no free address (a released one rests for its reuseDelay, {seconds}s)"
                );
            }
            Self::NotAutomatic => "has autoAssign: false and must be asked for",
            Self::NotServed(NotServed::Namespace) => "does not serve this namespace",
            Self::NotServed(NotServed::Service) => "does not serve services with these labels",
            Self::NoFamily => "has no address of this family",
            Self::Full { .. } => "has no free address",
        };
        f.write_str(text)
    }
}

/// What is more than a VirtualIP can record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversize {
    /// The sharing key, in characters.
    SharingKey,
    /// The ports.
    Ports,
    /// The selector, in labels.
    Selector,
    /// The pools asked for.
    Pools,
}

/// Why an address, or a family's address, was not allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no pool at all.
    NoPool,
    /// The Service asks for a pool that does not exist.
    UnknownPool {
        /// The pool that it names.
        pool: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// No pool has an address of this family for the Service.
    NoneFits {
        /// The family.
        family: Family,
        /// Every pool that was looked at, in order, and why it was passed over.
        passed_over: Vec<(String, PassedOver)>,
    },
    /// The address lies in no pool.
    OutsidePools {
        /// The address.
        address: IpAddr,
    },
    /// The address lies in another pool than the one asked for.
    NotInPool {
        /// The address.
        address: IpAddr,
        /// The pools asked for.
        asked: Vec<String>,
        /// The pools that it lies in.
        lies_in: Vec<String>,
    },
    /// The pool of the address does not serve this Service.
    Fenced {
        /// The address.
        address: IpAddr,
        /// Its pool.
        pool: String,
        /// The fence.
        fence: NotServed,
    },
    /// The address belongs to a node of the cluster.
    OfNode {
        /// The address.
        address: IpAddr,
        /// The node.
        node: String,
    },
    /// `avoidBuggyIPs` keeps the address back.
    Avoided {
        /// The address.
        address: IpAddr,
        /// Its pool.
        pool: String,
    },
    /// Somebody else has it and does not share, or not with this Service.
    InUse {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: ServiceKey,
        /// Why it cannot be shared.
        conflict: Conflict,
        /// Whether the Service has a sharing key.
        asked_to_share: bool,
    },
    /// A VirtualIP keeps it for a Service that does not exist.
    Reserved {
        /// The address.
        address: IpAddr,
        /// For whom.
        by: ServiceKey,
    },
    /// It was released a moment ago by somebody else.
    AtRest {
        /// The address.
        address: IpAddr,
        /// Its pool, whose `reuseDelay` this is.
        pool: String,
    },
    /// The annotation and `spec.loadBalancerIP` ask for different addresses.
    TwoRequests,
    /// An address of a family that the Service does not have.
    WrongFamily {
        /// The address.
        address: IpAddr,
        /// The Service's families.
        families: Vec<Family>,
    },
    /// Two addresses of one family.
    TwoOfAFamily {
        /// The first.
        first: IpAddr,
        /// The second.
        second: IpAddr,
    },
    /// The request cannot be read.
    Malformed {
        /// The annotation or field.
        field: &'static str,
        /// What is wrong with it.
        error: String,
    },
    /// A VirtualIP cannot record it.
    TooLarge {
        /// What.
        what: Oversize,
        /// How many it has.
        found: usize,
    },
    /// `RequireDualStack` and only one family: of the Service, or to be had.
    NeedsBothFamilies,
    /// The Service has no cluster address family (headless).
    NoFamily,
}

impl Refusal {
    /// Its name in conditions, Events, metrics and logs.
    #[must_use]
    pub fn reason(&self) -> AllocationReason {
        match self {
            Self::NoPool => AllocationReason::NoPool,
            Self::UnknownPool { .. } => AllocationReason::PoolNotFound,
            Self::NoneFits { passed_over, .. } => {
                let any =
                    |test: fn(&PassedOver) -> bool| passed_over.iter().any(|(_, why)| test(why));
                if any(|why| matches!(why, PassedOver::Full { .. })) {
                    AllocationReason::PoolExhausted
                } else if any(|why| matches!(why, PassedOver::NoFamily)) {
                    AllocationReason::FamilyUnavailable
                } else if any(|why| matches!(why, PassedOver::NotServed(_))) {
                    AllocationReason::PoolNotForService
                } else {
                    AllocationReason::NoPool
                }
            }
            Self::OutsidePools { .. } | Self::NotInPool { .. } => {
                AllocationReason::AddressNotInPool
            }
            Self::Fenced { .. } => AllocationReason::PoolNotForService,
            Self::OfNode { .. } => AllocationReason::AddressOfNode,
            Self::Avoided { .. } => AllocationReason::AddressBuggy,
            Self::InUse {
                conflict: Conflict::Key,
                asked_to_share: false,
                ..
            } => AllocationReason::AddressInUse,
            Self::InUse { .. } => AllocationReason::SharingConflict,
            Self::Reserved { .. } => AllocationReason::AddressReserved,
            Self::AtRest { .. } => AllocationReason::AddressResting,
            Self::TwoRequests => AllocationReason::ConflictingRequest,
            Self::WrongFamily { .. } => AllocationReason::FamilyMismatch,
            Self::TwoOfAFamily { .. } | Self::Malformed { .. } => AllocationReason::AddressInvalid,
            Self::TooLarge { .. } => AllocationReason::RequestTooLarge,
            Self::NeedsBothFamilies => AllocationReason::FamilyUnavailable,
            Self::NoFamily => AllocationReason::NoClusterIP,
        }
    }
}

impl Refusal {
    /// What to do when no pool has an address.
    fn what_helps(&self) -> &'static str {
        match self.reason() {
            AllocationReason::PoolExhausted => {
                "add addresses to a pool, or delete services that need none"
            }
            AllocationReason::FamilyUnavailable => {
                "add addresses of this family to a pool, or change the service's ipFamilyPolicy"
            }
            AllocationReason::PoolNotForService => {
                "change a pool's serviceAllocation, or the labels that it selects"
            }
            _ => "ask for a pool in the annotation bellrock.dev/address-pool",
        }
    }
}

/// The first names joined by commas, or `none`.
fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let words = items.iter().take(MAX_NAMED);
    let words: Vec<String> = words.map(|item| shortened(&item.to_string())).collect();
    match items.len() - words.len() {
        0 => words.join(", "),
        more => format!("{} and {more} more", words.join(", ")),
    }
}

/// A user's words, as far as they help to find them again.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Why pools were passed over. Where they are many, those come first that would serve the Service
/// if they had an address.
fn passed(pools: &[(String, PassedOver)]) -> Vec<&(String, PassedOver)> {
    let mut all: Vec<_> = pools.iter().collect();
    if all.len() > MAX_NAMED {
        all.sort_by_key(|(_, why)| match why {
            PassedOver::Full { .. } => 0,
            PassedOver::NoFamily => 1,
            PassedOver::NotServed(_) => 2,
            PassedOver::NotAutomatic => 3,
        });
    }
    all
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPool => f.write_str("no IPAddressPool is in force: create one with addresses of your network, or correct those whose condition Accepted is False"),
            Self::UnknownPool { pool, known } => write!(
                f,
                "there is no pool {:?} (pools: {}): correct the {} annotation or create the pool",
                shortened(pool),
                list(known),
                bellrock_api::annotations::ADDRESS_POOL
            ),
            Self::NoneFits { family, passed_over } => {
                write!(f, "no pool has an {family} address for this service: ")?;
                for (pool, why) in passed(passed_over).into_iter().take(MAX_NAMED) {
                    write!(f, "{pool} {why}; ")?;
                }
                let more = passed_over.len().saturating_sub(MAX_NAMED);
                if more > 0 {
                    write!(f, "and {more} more pools; ")?;
                }
                f.write_str(self.what_helps())
            }
            Self::OutsidePools { address } => write!(
                f,
                "{address} lies in no pool: ask for an address of a pool, or add it to one"
            ),
            Self::NotInPool { address, asked, lies_in } => write!(
                f,
                "{address} is not in pool {} but in {}: change the requested address or the requested pool",
                list(asked),
                list(lies_in)
            ),
            Self::Fenced { address, pool, fence } => write!(
                f,
                "{address} belongs to pool {pool}, which {}: ask for another address, or change the pool's serviceAllocation",
                PassedOver::NotServed(*fence)
            ),
            Self::OfNode { address, node } => write!(
                f,
                "{address} belongs to node {node} and is not announced, which would cut the node off: ask for another address, and take this one out of the pool"
            ),
            Self::Avoided { address, pool } => write!(
                f,
                "{address} ends in .0 or .255, which pool {pool} keeps back: ask for another address, or set its avoidBuggyIPs to false"
            ),
            Self::Reserved { address, by } => write!(
                f,
                "{address} is reserved for service {by} by its VirtualIP: add this service to the claims there, or ask for another address"
            ),
            Self::AtRest { address, pool } => write!(
                f,
                "{address} was released a moment ago and rests for the reuseDelay of pool {pool}; it is assigned then"
            ),
            Self::TwoRequests => write!(
                f,
                "spec.loadBalancerIP and the annotation {} ask for different addresses: keep one of them",
                bellrock_api::annotations::LOAD_BALANCER_IPS
            ),
            Self::InUse { address, by, conflict, .. } => {
                write!(f, "{address} is held by service {by}")?;
                match conflict {
                    Conflict::Key => f.write_str(
                        ", which does not share it with this one: choose another address, or give both the same sharing key",
                    ),
                    Conflict::Namespace => f.write_str(", and an address is shared within one namespace only: ask for another address"),
                    Conflict::Port((protocol, port)) => {
                        write!(f, ", which uses port {port}/{protocol} too: choose another port or address")
                    }
                    Conflict::Full => f.write_str(
                        " and others, as many services or ports as one address may have: use another sharing key or address",
                    ),
                    Conflict::Policy => f.write_str(
                        ": services share an address only if all have externalTrafficPolicy Cluster, or all have Local and the same selector",
                    ),
                }
            }
            Self::WrongFamily { address, families } => write!(
                f,
                "{address} is requested, but the service is {} only: change the address or spec.ipFamilies",
                list(families)
            ),
            Self::TwoOfAFamily { first, second } => write!(
                f,
                "{first} and {second} are requested: ask for at most one address of each family"
            ),
            Self::Malformed { field, error } => write!(f, "{field}: {}", shortened(error)),
            Self::TooLarge { what, found } => match what {
                Oversize::SharingKey => write!(
                    f,
                    "the annotation {} has {found} characters: at most {MAX_SHARING_KEY} are recorded, shorten it",
                    bellrock_api::annotations::SHARING_KEY
                ),
                Oversize::Ports => write!(
                    f,
                    "the service has {found} ports: at most {MAX_PORTS} are recorded of one, divide it into several services"
                ),
                Oversize::Pools => write!(
                    f,
                    "the annotation {} names {found} pools: at most {MAX_POOLS} are looked at, name fewer",
                    bellrock_api::annotations::ADDRESS_POOL
                ),
                Oversize::Selector => write!(
                    f,
                    "the service shares an address and its selector has {found} labels: at most {MAX_SELECTOR} are recorded, shorten it or share no address"
                ),
            },
            Self::NeedsBothFamilies => f.write_str(
                "ipFamilyPolicy is RequireDualStack, but the service has one family only: change the policy, or give the service two families",
            ),
            Self::NoFamily => f.write_str("the service has no cluster IP, hence no address family: a headless service cannot have an external address"),
        }
    }
}

/// Pools that a Service may ask for.
pub const MAX_POOLS: usize = 16;

/// Pools that a message names before it says "and N more".
const MAX_NAMED: usize = 8;

/// Characters that a message quotes of a user's words.
const MAX_QUOTED: usize = 200;

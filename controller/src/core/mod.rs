//! The decision core: what the cluster says goes in, writes come out. No clock, no API, no task.
//!
//! ```text
//! Change -> apply() -> queue -> next() -> decide: Plan { writes } -> (driver) -> done() / apply()
//! ```
//!
//! The VirtualIPs are the record and the lock. The book of addresses ([`Allocator`]) follows
//! them: an address is held by whom its VirtualIP names, and by Services for which this core has
//! just decided so ([`Core::wanted`]) and whose write is under way. A write that fails is simply
//! decided again: whatever the cluster then says is true.
//!
//! A released address rests: its VirtualIP stays, without claims and with the time of the release,
//! until the pool's `reuseDelay` is over, so that a restart does not cut the rest short. Time is
//! counted from the epoch for that reason, and never goes back.
//!
//! One Service has at most one plan under way, and so does one VirtualIP; different ones run side
//! by side.

mod admission;
mod apply;
mod decide;
mod placing;
mod pool_status;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::{AllocationReason, VirtualIPSpec};
use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::ipam::{Allocator, ServiceKey, SmallSet};
use crate::placement::{Candidate, Placement};
use crate::pools::{PoolBook, PoolView};
use crate::view::{AdvertisementView, Labels, NodeView, Release, ServiceView, Version, VipView};

pub use admission::{Judgement, Subject};
pub use pool_status::PoolPatch;
use queue::Queue;

/// Which Services are ours, and other choices of the operator.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Load balancer classes that are served.
    pub classes: BTreeSet<String>,
    /// Whether Services without a class are served.
    pub serve_classless: bool,
    /// Whether nodes with the exclude label may announce all the same.
    pub ignore_exclude_label: bool,
    /// Whether Services are held by the cleanup finalizer until their addresses are released.
    pub cleanup_finalizer: bool,
}

/// The kinds that the core follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `Service`.
    Service,
    /// `Namespace`.
    Namespace,
    /// `Node`.
    Node,
    /// `IPAddressPool`.
    Pool,
    /// `L2Advertisement`.
    L2Advertisement,
    /// `VirtualIP`.
    VirtualIp,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Service,
        Self::Namespace,
        Self::Node,
        Self::Pool,
        Self::L2Advertisement,
        Self::VirtualIp,
    ];

    /// The kind's name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pool => "IPAddressPool",
            Self::L2Advertisement => "L2Advertisement",
            Self::VirtualIp => "VirtualIP",
        }
    }
}

/// Something that the cluster says.
#[derive(Debug, Clone)]
pub enum Change {
    /// A Service is so.
    Service(ServiceKey, Box<ServiceView>),
    /// A namespace has these labels.
    Namespace(String, Labels),
    /// A node is so.
    Node(String, NodeView),
    /// A pool is so.
    Pool(String, Box<PoolView>),
    /// An advertisement is so.
    L2Advertisement(String, Box<AdvertisementView>),
    /// The VirtualIP of this address is so.
    VirtualIp(IpAddr, Box<VipView>),
    /// The object is gone: its namespace (empty if it has none), name and uid.
    Gone(Kind, String, String, String),
    /// A list of a kind begins: what is told of it until [`Change::Complete`] is listed, and true
    /// whatever was known, but for what our own writes did meanwhile.
    Listing(Kind),
    /// All objects of a kind have been told; those not named (namespace, name) are gone. The
    /// namespace is empty but for Services.
    Complete(Kind, BTreeSet<(String, String)>),
}

/// A write to the API, as data.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Create the VirtualIP of an address: whoever succeeds has it.
    CreateVip(Box<VirtualIPSpec>),
    /// Change a VirtualIP, if it still is of this version.
    PatchVip {
        /// The address.
        ip: IpAddr,
        /// The version that the decision was made on.
        version: Version,
        /// What it shall say.
        spec: Box<VirtualIPSpec>,
        /// When it was released, if that is what the patch does.
        released: Option<Release>,
    },
    /// Delete a VirtualIP, if it still is of this version.
    DeleteVip {
        /// The address.
        ip: IpAddr,
        /// The version that the decision was made on.
        version: Version,
    },
    /// Change a Service's status, if it still is of this version.
    PatchStatus(Box<StatusPatch>),
    /// Change a Service's finalizers, if it still is of this version.
    PatchFinalizers {
        /// The Service.
        service: ServiceKey,
        /// The version that the decision was made on.
        version: Version,
        /// All that it shall have.
        finalizers: Vec<String>,
    },
}

impl Write {
    /// The address whose VirtualIP it writes.
    #[must_use]
    pub fn vip(&self) -> Option<IpAddr> {
        match self {
            Self::CreateVip(spec) => spec.ip().ok(),
            Self::PatchVip { ip, .. } | Self::DeleteVip { ip, .. } => Some(*ip),
            Self::PatchStatus(_) | Self::PatchFinalizers { .. } => None,
        }
    }
}

/// A change of a Service's status.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusPatch {
    /// The Service.
    pub service: ServiceKey,
    /// The version that the decision was made on.
    pub version: Version,
    /// `status.loadBalancer.ingress`, if it is to change.
    pub ingress: Option<Vec<LoadBalancerIngress>>,
    /// The conditions of others, unchanged.
    pub others: Vec<Condition>,
    /// Ours; `None` to have none.
    pub condition: Option<OurCondition>,
    /// What happened, if it is news.
    pub event: Option<(AllocationReason, String)>,
}

/// The condition `bellrock.dev/LoadBalancer` as it shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct OurCondition {
    /// Whether the Service has all that it asks for.
    pub met: bool,
    /// Why, in a word.
    pub reason: AllocationReason,
    /// Why, and what to do.
    pub message: String,
    /// Since when, if the status does not change.
    pub since: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
}

/// What needs to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// A Service.
    Service(ServiceKey),
    /// A VirtualIP's pool and placement.
    Vip(IpAddr),
}

/// Writes to be made in order, stopping at the first that fails.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// For what.
    pub work: Work,
    /// The writes; never empty.
    pub writes: Vec<Write>,
}

/// What the outcome of a Service's last decision was, for counting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Services that are ours.
    pub services: usize,
    /// Those among them that do not have all that they ask for.
    pub pending: usize,
    /// VirtualIPs.
    pub virtual_ips: usize,
}

/// Why a Service does not have all that it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    reason: AllocationReason,
    /// The addresses that it asks for and has not got.
    over: Vec<IpAddr>,
}

/// The state.
#[derive(Debug, Default)]
pub struct Core {
    settings: Settings,
    services: BTreeMap<ServiceKey, ServiceView>,
    namespaces: BTreeMap<String, Labels>,
    nodes: BTreeMap<String, NodeView>,
    advertisements: BTreeMap<String, AdvertisementView>,
    pools: PoolBook,
    vips: BTreeMap<IpAddr, VipView>,
    /// Deleted by us, as long as the watch has not told so: address -> uid.
    buried: BTreeMap<IpAddr, String>,
    synced: BTreeSet<Kind>,
    /// Services and VirtualIPs that our own writes changed since a list of their kind began, while
    /// it goes on: what is listed of them may be older.
    services_since: Option<BTreeSet<ServiceKey>>,
    vips_since: Option<BTreeSet<IpAddr>>,

    allocator: Allocator,
    placement: Placement,
    /// Candidates by pool, while nothing that they depend on changes.
    candidates: BTreeMap<Option<String>, Vec<Candidate>>,
    /// What each Service should hold, as last decided.
    wanted: BTreeMap<ServiceKey, SmallSet<IpAddr>>,
    /// Services that do not have all that they ask for, and why.
    refused: BTreeMap<ServiceKey, Refused>,
    /// Services that want an address that others hold: they are told who.
    awaited: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
    /// An address, a pool or a namespace may let in who was refused.
    retry_refused: bool,
    queue: Queue,
    /// The API server drops what a claim says of policy and selector: its definition of a
    /// VirtualIP is older than this program.
    forgetful: bool,
    /// News for [`Core::take_refusals`].
    refusals: Vec<AllocationReason>,
    allocations: u64,
    now: Duration,
}

impl Core {
    /// A core that knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// True when every kind has been listed once: before that nothing is decided, because what
    /// looks free or orphaned may be neither.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.len() == Kind::ALL.len()
    }

    /// The kinds that have not been listed yet.
    pub fn unsynced(&self) -> impl Iterator<Item = Kind> + '_ {
        Kind::ALL
            .into_iter()
            .filter(|kind| !self.synced.contains(kind))
    }

    /// Whether the API server's definition of a VirtualIP is older than this program and drops
    /// what a claim says of policy and selector.
    #[must_use]
    pub fn server_forgets(&self) -> bool {
        self.forgetful
    }

    /// Numbers for the metrics.
    #[must_use]
    pub fn census(&self) -> Census {
        Census {
            services: self.services.values().filter(|s| self.is_ours(s)).count(),
            pending: self.refused.len(),
            virtual_ips: self.vips.len(),
        }
    }

    /// Services that have not got all that they ask for, by reason.
    #[must_use]
    pub fn refused_by_reason(&self) -> BTreeMap<AllocationReason, u64> {
        let mut counts = BTreeMap::new();
        for refused in self.refused.values() {
            *counts.entry(refused.reason).or_default() += 1;
        }
        counts
    }

    /// Refusals since the last call: one for each Service and change of reason.
    pub fn take_refusals(&mut self) -> Vec<AllocationReason> {
        std::mem::take(&mut self.refusals)
    }

    /// Addresses allocated since the last call.
    pub fn take_allocations(&mut self) -> u64 {
        std::mem::take(&mut self.allocations)
    }

    /// The allocator, to look at.
    #[must_use]
    pub fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// Whether the Service is served by this controller. One that is deleted and waits for us is
    /// not, any more.
    fn is_ours(&self, service: &ServiceView) -> bool {
        service.is_load_balancer
            && !(service.leaving && service.is_held())
            && match &service.class {
                Some(class) => self.settings.classes.contains(class),
                None => self.settings.serve_classless,
            }
    }

    /// The Service, if it exists and is ours.
    fn ours(&self, key: &ServiceKey) -> Option<&ServiceView> {
        self.services
            .get(key)
            .filter(|service| self.is_ours(service))
    }

    /// Begins a term: everything will be listed again, and until that is done nothing is decided.
    /// What the leader before wrote last may not have been told yet.
    pub fn take_up(&mut self) {
        self.synced.clear();
    }

    /// Ends a term: forgets what was decided and may not be written, and what was under way.
    pub fn stand_down(&mut self) {
        self.queue = Queue::default();
        self.wanted.clear();
        self.refused.clear();
        self.awaited.clear();
        self.retry_refused = false;
        self.follow_all();
    }

    /// Follows what happens while somebody else leads. Nothing is decided, and nothing is kept to
    /// be decided: a term begins with a look at everything.
    pub fn look_on(&mut self, now: Duration) {
        self.now = now;
        self.allocator.end_rests(now);
        self.queue = Queue::default();
        self.retry_refused = false;
    }

    /// The next plan that can start now, or `None` when there is nothing to do (yet).
    pub fn next(&mut self, now: Duration) -> Option<Plan> {
        self.now = now;
        if !self.is_synced() {
            return None;
        }
        for ip in self.allocator.end_rests(now) {
            self.retry_refused = true;
            self.queue.push(Work::Vip(ip));
        }
        while let Some(work) = self.pop() {
            let writes = match &work {
                Work::Service(key) => self.decide_service(key),
                Work::Vip(ip) => self.decide_vip(*ip),
            };
            if writes.is_empty() {
                continue;
            }
            let vips: Vec<IpAddr> = writes.iter().filter_map(Write::vip).collect();
            if self.queue.begin(&work, &vips) {
                return Some(Plan { work, writes });
            }
        }
        None
    }

    /// Ends the plan for `work`; `again` to look at it once more (now, or after a delay that the
    /// driver keeps).
    pub fn done(&mut self, work: &Work, again: bool) {
        self.queue.end(work);
        if again {
            self.queue.push(work.clone());
        }
    }

    /// Looks at `work` again.
    pub fn requeue(&mut self, work: Work) {
        self.queue.push(work);
    }

    /// When there will be something to do without any news: the end of the next rest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.allocator.next_rest_end()
    }

    /// Plans under way.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.queue.busy()
    }

    /// What is queued, and when nothing is, those who wait for an address, if one may have become
    /// free: once for however many did.
    fn pop(&mut self) -> Option<Work> {
        if let Some(work) = self.queue.pop() {
            return Some(work);
        }
        if std::mem::take(&mut self.retry_refused) {
            for key in self.refused.keys() {
                self.queue.push(Work::Service(key.clone()));
            }
        }
        self.queue.pop()
    }
}

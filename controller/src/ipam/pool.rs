//! A pool as the allocator sees it: ranges, order of preference, and whom it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bellrock_api::{AddressRange, selectors};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Both families, in order.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Kubernetes' spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of `family` whose number is `bits`; `None` when an IPv4 number is too large.
pub(crate) fn address(family: Family, bits: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => u32::try_from(bits)
            .ok()
            .map(|b| IpAddr::V4(Ipv4Addr::from_bits(b))),
        Family::V6 => Some(IpAddr::V6(Ipv6Addr::from_bits(bits))),
    }
}

/// True for IPv4 addresses that end in .0 or .255, which some old equipment drops.
pub(crate) fn is_buggy(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets(), [_, _, _, 0 | 255]),
        IpAddr::V6(_) => false,
    }
}

/// A parsed [`IPAddressPool`](bellrock_api::IPAddressPool).
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// The object's name.
    pub name: String,
    /// Its entries, in any order; they may touch or overlap.
    pub ranges: Vec<AddressRange>,
    /// Whether Services that do not ask for this pool may have its addresses.
    pub auto_assign: bool,
    /// Whether IPv4 addresses that end in .0 and .255 are never handed out.
    pub avoid_buggy_ips: bool,
    /// How long a released address rests before it is handed out again.
    pub reuse_delay: Duration,
    /// Whom it serves, and how eagerly.
    pub scope: Scope,
}

/// Whom a pool serves: `serviceAllocation`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scope {
    /// Lower comes first; 0 comes last.
    pub priority: u32,
    /// Names of namespaces that are served.
    pub namespaces: BTreeSet<String>,
    /// Labels of namespaces that are served, beside those named.
    pub namespace_selectors: Vec<LabelSelector>,
    /// Labels of Services that are served; no selector serves all.
    pub service_selectors: Vec<LabelSelector>,
}

/// Who asks, as far as [`Scope`] looks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Labels of that namespace; `None` while it is unknown.
    pub namespace_labels: Option<&'a BTreeMap<String, String>>,
    /// Labels of the Service.
    pub service_labels: &'a BTreeMap<String, String>,
}

/// Why a pool does not serve someone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotServed {
    /// The namespace is neither named nor selected.
    Namespace,
    /// No service selector matches.
    Service,
}

impl Scope {
    /// True when the pool is meant for some namespaces or Services only.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        !self.namespaces.is_empty()
            || !self.namespace_selectors.is_empty()
            || !self.service_selectors.is_empty()
    }

    /// Whether `asker` is served. Fails closed: selectors that match no namespace serve no
    /// namespace, and a namespace whose labels are not known yet matches no selector.
    ///
    /// # Errors
    /// The first fence that keeps `asker` out.
    pub fn admits(&self, asker: Asker<'_>) -> Result<(), NotServed> {
        let by_namespace = !self.namespaces.is_empty() || !self.namespace_selectors.is_empty();
        if by_namespace
            && !self.namespaces.contains(asker.namespace)
            && !asker
                .namespace_labels
                .is_some_and(|labels| selectors::any_matches(&self.namespace_selectors, labels))
        {
            return Err(NotServed::Namespace);
        }
        if !selectors::allows(&self.service_selectors, asker.service_labels) {
            return Err(NotServed::Service);
        }
        Ok(())
    }
}

impl Pool {
    /// The order in which pools are tried: by priority (0 last), then fenced pools before open
    /// ones, so that a tenant's own pool is used before the common one, then by name.
    #[must_use]
    pub fn rank(&self) -> (u32, bool, &str) {
        let priority = match self.scope.priority {
            0 => u32::MAX,
            p => p,
        };
        (priority, !self.scope.is_fenced(), &self.name)
    }

    /// True when `address` lies in one of the ranges.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(address))
    }

    /// True when the pool may hand out `address`, which lies in it.
    #[must_use]
    pub fn offers(&self, address: IpAddr) -> bool {
        !(self.avoid_buggy_ips && is_buggy(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn selector(key: &str, value: &str) -> LabelSelector {
        LabelSelector {
            match_labels: Some(labels(&[(key, value)])),
            match_expressions: None,
        }
    }

    #[test]
    fn whom_a_scope_serves() {
        let named = Scope {
            namespaces: ["a".to_owned()].into(),
            ..Scope::default()
        };
        let selected = Scope {
            namespace_selectors: vec![selector("team", "x")],
            ..Scope::default()
        };
        let both = Scope {
            namespaces: ["a".to_owned()].into(),
            service_selectors: vec![selector("app", "web"), selector("app", "dns")],
            ..Scope::default()
        };
        let team_x = labels(&[("team", "x")]);
        let (web, none) = (labels(&[("app", "web")]), labels(&[]));
        let rows = [
            (&Scope::default(), "b", None, &none, Ok(())),
            (&named, "a", None, &none, Ok(())),
            (&named, "b", Some(&team_x), &none, Err(NotServed::Namespace)),
            (&selected, "b", Some(&team_x), &none, Ok(())),
            // No namespace matches, or its labels are unknown: nobody is served.
            (&selected, "b", Some(&none), &web, Err(NotServed::Namespace)),
            (&selected, "b", None, &none, Err(NotServed::Namespace)),
            // Both fences hold together.
            (&both, "a", None, &web, Ok(())),
            (&both, "a", None, &none, Err(NotServed::Service)),
            (&both, "b", None, &web, Err(NotServed::Namespace)),
        ];
        for (index, (scope, namespace, namespace_labels, service_labels, expected)) in
            rows.into_iter().enumerate()
        {
            let asker = Asker {
                namespace,
                namespace_labels,
                service_labels,
            };
            assert_eq!(scope.admits(asker), expected, "row {index}");
        }
    }
}

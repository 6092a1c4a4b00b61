//! Who holds an address, and who may hold it together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bellrock_api::Protocol;

/// A Service's namespace and name: how Bellrock knows a Service, since a restored or re-created
/// one has a new uid and should have its old address.
///
/// Copies share one text: the same key stands in several maps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey(Arc<ServiceName>);

/// What a [`ServiceKey`] dereferences to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Deref for ServiceKey {
    type Target = ServiceName;

    fn deref(&self) -> &ServiceName {
        &self.0
    }
}

impl ServiceKey {
    /// A key of its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self(Arc::new(ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        }))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A protocol and a port.
pub type PortKey = (Protocol, u16);

/// Where a Service's packets end: two Services on one address must agree on it, because one node
/// answers for the address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Backend {
    /// Not known: the claim names a Service that does not exist (yet).
    #[default]
    Unknown,
    /// `externalTrafficPolicy: Cluster`: any node will do.
    Cluster,
    /// `externalTrafficPolicy: Local`: only nodes with one of the pods of this selector.
    Local(BTreeMap<String, String>),
}

/// A Service's hold on an address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claim {
    /// Protocols and ports that the Service uses.
    pub ports: BTreeSet<PortKey>,
    /// The key under which it shares, if it does.
    pub sharing_key: Option<String>,
    /// What the sharers must have in common.
    pub backend: Backend,
}

impl Claim {
    /// Ports and labels: what a VirtualIP has to record of it. A label counts for as many ports as
    /// take its room.
    #[must_use]
    pub fn terms(&self) -> usize {
        let label = |(key, value): (&String, &String)| 1 + (key.len() + value.len()) / PORT_BYTES;
        let labels = match &self.backend {
            Backend::Local(selector) => selector.iter().map(label).sum(),
            Backend::Unknown | Backend::Cluster => 0,
        };
        self.ports.len() + labels
    }
}

/// What a recorded port takes, in JSON.
const PORT_BYTES: usize = 32;

/// Terms of all Services that share an address, at most: more than a hundred thousand bytes below
/// what etcd takes as one object.
pub const MAX_TERMS: usize = 16_384;

/// Why two Services cannot hold one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// One of them has no sharing key, or the keys differ.
    Key,
    /// The same key in another namespace: keys are honoured within one namespace, so that nobody
    /// can guess their way onto somebody else's address.
    Namespace,
    /// Both use this protocol and port.
    Port(PortKey),
    /// One is `Cluster` and the other `Local`, or both are `Local` with different selectors (or
    /// none).
    Policy,
    /// As many as an address may have hold it already.
    Full,
}

/// Whether the Services `a` and `b` may hold one address together.
///
/// # Errors
/// The first rule that forbids it.
pub fn may_share(a: (&ServiceKey, &Claim), b: (&ServiceKey, &Claim)) -> Result<(), Conflict> {
    let ((a_key, a), (b_key, b)) = (a, b);
    if a.sharing_key.is_none() || a.sharing_key != b.sharing_key {
        return Err(Conflict::Key);
    }
    if a_key.namespace != b_key.namespace {
        return Err(Conflict::Namespace);
    }
    if let Some(port) = a.ports.intersection(&b.ports).next() {
        return Err(Conflict::Port(*port));
    }
    match (&a.backend, &b.backend) {
        (Backend::Cluster, Backend::Cluster) => Ok(()),
        (Backend::Local(x), Backend::Local(y)) if x == y && !x.is_empty() => Ok(()),
        (Backend::Unknown | Backend::Cluster | Backend::Local(_), _) => Err(Conflict::Policy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(port: u16, key: &str, backend: Backend) -> Claim {
        Claim {
            ports: [(Protocol::Tcp, port)].into(),
            sharing_key: (!key.is_empty()).then(|| key.to_owned()),
            backend,
        }
    }

    fn local(app: &str) -> Backend {
        Backend::Local([("app".to_owned(), app.to_owned())].into())
    }

    #[test]
    fn who_may_share_an_address() {
        use Backend::{Cluster, Unknown};
        let no_pods = Backend::Local(BTreeMap::new());
        let key = |ns: &str, name: &str| ServiceKey::new(ns, name);
        let rows = [
            (
                ("a", claim(80, "k", Cluster)),
                ("a", claim(81, "k", Cluster)),
                Ok(()),
            ),
            (
                ("a", claim(80, "k", local("x"))),
                ("a", claim(81, "k", local("x"))),
                Ok(()),
            ),
            (
                ("a", claim(80, "", Cluster)),
                ("a", claim(81, "", Cluster)),
                Err(Conflict::Key),
            ),
            (
                ("a", claim(80, "k", Cluster)),
                ("a", claim(81, "l", Cluster)),
                Err(Conflict::Key),
            ),
            (
                ("a", claim(80, "k", Cluster)),
                ("b", claim(81, "k", Cluster)),
                Err(Conflict::Namespace),
            ),
            (
                ("a", claim(80, "k", Cluster)),
                ("a", claim(80, "k", Cluster)),
                Err(Conflict::Port((Protocol::Tcp, 80))),
            ),
            (
                ("a", claim(80, "k", Cluster)),
                ("a", claim(81, "k", local("x"))),
                Err(Conflict::Policy),
            ),
            (
                ("a", claim(80, "k", local("x"))),
                ("a", claim(81, "k", local("y"))),
                Err(Conflict::Policy),
            ),
            (
                ("a", claim(80, "k", no_pods.clone())),
                ("a", claim(81, "k", no_pods)),
                Err(Conflict::Policy),
            ),
            (
                ("a", claim(80, "k", Unknown)),
                ("a", claim(81, "k", Unknown)),
                Err(Conflict::Policy),
            ),
        ];
        for (index, ((ns_a, a), (ns_b, b), expected)) in rows.into_iter().enumerate() {
            let (ka, kb) = (key(ns_a, "one"), key(ns_b, "two"));
            assert_eq!(may_share((&ka, &a), (&kb, &b)), expected, "row {index}");
            assert_eq!(
                may_share((&kb, &b), (&ka, &a)),
                expected,
                "row {index}, swapped"
            );
        }
    }
}

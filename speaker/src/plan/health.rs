//! What a Service's `healthCheckNodePort` says.

use super::{Settings, Usable};
use crate::cluster::Service;

/// The answer of one Service's health check port on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// Ready IPv4 endpoints on this node.
    pub endpoints_v4: u32,
    /// Ready IPv6 endpoints on this node.
    pub endpoints_v6: u32,
}

impl HealthCheck {
    /// Ready endpoints of the family that the question came by.
    pub fn endpoints(&self, v4: bool) -> u32 {
        if v4 {
            self.endpoints_v4
        } else {
            self.endpoints_v6
        }
    }
}

/// Endpoints that only terminate do not count (KEP-1669): balancers should
/// send nothing new, while what they still send is served.
pub(super) fn check(
    service: &Service,
    usable: &Usable,
    settings: &Settings,
) -> Option<HealthCheck> {
    let port = service.health_check_port?;
    settings.replaces_kube_proxy().then(|| HealthCheck {
        port,
        endpoints_v4: usable.count_here(true),
        endpoints_v6: usable.count_here(false),
    })
}

//! Which advertisement speaks for which pool, Service and node.

use bellrock_api::selectors::matches;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::cluster::{Cluster, Scope, Service, VirtualIp};

/// Whether the advertisement covers a Service's address.
///
/// An address that somebody reserved by hand may name no pool; it is covered
/// by advertisements for every pool.
pub(super) fn covers(scope: &Scope, cluster: &Cluster, vip: &VirtualIp, service: &Service) -> bool {
    let every_pool = scope.pools.is_empty() && scope.pool_selectors.is_empty();
    let pool = every_pool
        || vip.pool.as_ref().is_some_and(|name| {
            scope.pools.contains(name)
                || cluster
                    .pools
                    .get(name)
                    .is_some_and(|labels| scope.pool_selectors.iter().any(|s| matches(s, labels)))
        });
    let services = &scope.service_selectors;
    pool && (services.is_empty() || services.iter().any(|s| matches(s, &service.labels)))
}

/// Whether the advertisement is for node `me`.
pub(super) fn selects(scope: &Scope, cluster: &Cluster, me: &str) -> bool {
    node_selected(&scope.node_selectors, cluster, me)
}

/// Whether selectors, of which none means all, pick node `me`.
pub(super) fn node_selected(selectors: &[LabelSelector], cluster: &Cluster, me: &str) -> bool {
    selectors.is_empty()
        || cluster
            .nodes
            .get(me)
            .is_some_and(|node| selectors.iter().any(|s| matches(s, &node.labels)))
}

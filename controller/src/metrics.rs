//! Metrics, in the OpenMetrics text format. Counters get their `_total` from the encoder.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::core::Core;
use crate::ipam::Family;
use crate::write::Call;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    verb: &'static str,
    resource: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// The controller's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    allocations: Counter,
    refusals: Labelled<Reason, Counter>,
    refused: Labelled<Reason, Gauge>,
    services: Gauge,
    virtual_ips: Gauge,
    size: Labelled<PoolLabels, Gauge>,
    assigned: Labelled<PoolLabels, Gauge>,
    available: Labelled<PoolLabels, Gauge>,
    latency: Histogram,
    writes: Labelled<CallLabels, Counter>,
    watch_errors: Labelled<KindLabels, Counter>,
    dropped_events: Counter,
    leads: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("bellrock_controller");
        let latency = Histogram::new(exponential_buckets(0.002, 2.0, 14));
        let metrics = Self {
            allocations: Counter::default(),
            refusals: Labelled::default(),
            refused: Labelled::default(),
            services: Gauge::default(),
            virtual_ips: Gauge::default(),
            size: Labelled::default(),
            assigned: Labelled::default(),
            available: Labelled::default(),
            latency,
            writes: Labelled::default(),
            watch_errors: Labelled::default(),
            dropped_events: Counter::default(),
            leads: Gauge::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register(
            "allocations",
            "Addresses given to Services",
            metrics.allocations.clone(),
        );
        r.register(
            "refusals",
            "Requests that could not be met: one for each Service and change of reason",
            metrics.refusals.clone(),
        );
        r.register(
            "services_refused",
            "Services that do not have all that they ask for, now",
            metrics.refused.clone(),
        );
        r.register(
            "services",
            "Services that this controller serves",
            metrics.services.clone(),
        );
        r.register(
            "virtual_ips",
            "VirtualIPs that exist",
            metrics.virtual_ips.clone(),
        );
        r.register(
            "pool_addresses",
            "Addresses of a pool, used, free, resting or kept back",
            metrics.size.clone(),
        );
        r.register(
            "pool_addresses_assigned",
            "Addresses of a pool in use",
            metrics.assigned.clone(),
        );
        r.register(
            "pool_addresses_available",
            "Addresses of a pool that can be given out now",
            metrics.available.clone(),
        );
        r.register_with_unit(
            "allocation_latency",
            "From the first sight of a new Service to its address in its status",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        r.register(
            "api_writes",
            "Writes to the API server",
            metrics.writes.clone(),
        );
        r.register(
            "watch_errors",
            "Interruptions of watches",
            metrics.watch_errors.clone(),
        );
        r.register(
            "events_dropped",
            "Events not published: too many waited, this controller leads no more, or the API server refused",
            metrics.dropped_events.clone(),
        );
        r.register(
            "leads",
            "1 for the controller that leads and writes, 0 for those that wait",
            metrics.leads.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }

    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    pub(crate) fn write(&self, call: Call, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        let labels = CallLabels {
            verb: call.verb,
            resource: call.resource,
            result,
        };
        self.writes.get_or_create(&labels).inc();
    }

    pub(crate) fn watch_error(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&KindLabels { kind }).inc();
    }

    pub(crate) fn event_dropped(&self) {
        self.dropped_events.inc();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    pub(crate) fn latency(&self, taken: std::time::Duration) {
        self.latency.observe(taken.as_secs_f64());
    }

    /// What happened since the last call.
    pub(crate) fn count(&self, core: &mut Core) {
        self.allocations.inc_by(core.take_allocations());
        for reason in core.take_refusals() {
            self.refusals
                .get_or_create(&Reason {
                    reason: reason.as_str(),
                })
                .inc();
        }
    }

    /// How things are.
    pub(crate) fn measure(&self, core: &Core) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let census = core.census();
        self.services.set(number(census.services));
        self.virtual_ips.set(number(census.virtual_ips));
        self.refused.clear();
        for (reason, count) in core.refused_by_reason() {
            let labels = Reason {
                reason: reason.as_str(),
            };
            self.refused
                .get_or_create(&labels)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.size.clear();
        self.assigned.clear();
        self.available.clear();
        for pool in core.allocator().pools() {
            for family in Family::BOTH {
                let usage = core
                    .allocator()
                    .usage(&pool.name, family)
                    .unwrap_or_default();
                let ranges = pool.ranges.iter();
                let size = ranges
                    .filter(|range| Family::of(range.start) == family)
                    .fold(0u128, |sum, range| sum.saturating_add(range.size()));
                if size == 0 {
                    continue;
                }
                let labels = PoolLabels {
                    pool: pool.name.clone(),
                    family: family.as_str(),
                };
                let small = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
                self.size.get_or_create(&labels).set(small(size));
                self.assigned
                    .get_or_create(&labels)
                    .set(small(usage.assigned));
                self.available
                    .get_or_create(&labels)
                    .set(small(usage.available));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new();
        metrics.write(
            Call {
                verb: "create",
                resource: "virtualips",
            },
            true,
        );
        metrics.latency(std::time::Duration::from_millis(5));
        metrics.watch_error("Service");
        let text = metrics.text().unwrap();
        for line in [
            "bellrock_controller_allocations_total 0",
            "bellrock_controller_api_writes_total{verb=\"create\",resource=\"virtualips\",result=\"ok\"} 1",
            "bellrock_controller_allocation_latency_seconds_count 1",
            "bellrock_controller_watch_errors_total{kind=\"Service\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!text.contains("total_total"), "{text}");
    }
}

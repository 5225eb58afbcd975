//! `/metrics` for Prometheus: what `/v1/status` says, as numbers, and how long groups take to apply.
//!
//! Everything but the histogram is read when it is asked for; there is no second bookkeeping.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use schemas::TenantId;
use schemas::status::Status;

/// What [`Metrics::text`] is, for HTTP (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `tenant` and its value, or nothing where tenants are added up.
type Labels = Vec<(&'static str, String)>;

/// The lanes' histograms, and how tenants are told apart.
#[derive(Debug)]
pub struct Metrics {
    per_tenant: bool,
    apply_seconds: Family<Labels, Histogram>,
}

/// What a move counts beside its status.
#[derive(Debug)]
pub struct Numbers {
    /// The tenant.
    pub tenant: TenantId,
    /// Row changes applied in this run of the daemon.
    pub changes: u64,
    /// Source transactions applied in this run of the daemon.
    pub transactions: u64,
    /// Rows that the last `verify` in this run found different.
    pub differences: Option<u64>,
}

impl Metrics {
    /// With a series per tenant, or without.
    pub fn new(per_tenant: bool) -> Self {
        // From half a millisecond to half a minute.
        let buckets = || Histogram::new(exponential_buckets(0.0005, 2.0, 17));
        Metrics { per_tenant, apply_seconds: Family::new_with_constructor(buckets) }
    }

    fn labels(&self, tenant: &TenantId) -> Labels {
        if self.per_tenant { vec![("tenant", tenant.0.clone())] } else { Vec::new() }
    }

    /// Where a tenant's lane writes down how long its groups take.
    pub fn apply_seconds(&self, tenant: &TenantId) -> Histogram {
        self.apply_seconds.get_or_create(&self.labels(tenant)).clone()
    }

    /// The page that Prometheus reads.
    pub fn text(&self, status: &Status, numbers: &[Numbers]) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("carveout");
        self.source(&mut registry, status);
        self.tenants(&mut registry, status, numbers);
        let text = "Time to apply one group of source transactions, with its commit";
        registry.register("apply_seconds", text, self.apply_seconds.clone());
        let mut out = String::new();
        encode(&mut out, &registry)?;
        Ok(out)
    }

    fn source(&self, registry: &mut Registry, status: &Status) {
        let source = &status.source;
        let mut gauge = |name: &str, help: &str, value: u64| {
            let gauge: Gauge<f64, AtomicU64> = Gauge::default();
            gauge.set(value as f64);
            registry.register(name, help, gauge);
        };
        gauge(
            "source_streaming",
            "Whether the source streams to us (1) or not (0)",
            u64::from(source.state == "streaming"),
        );
        gauge("source_lag_bytes", "Log of the source that has not been received", source.lag_bytes);
        if let Some(kept) = source.retained_bytes {
            gauge("slot_retained_bytes", "Log that the slot keeps on the source", kept);
        }
        let tenants = status.tenants.iter().filter(|tenant| tenant.fault.is_some()).count() as u64;
        let paused = status.tenants.iter().filter(|tenant| tenant.paused).count() as u64;
        let throttled = status.tenants.iter().filter(|tenant| tenant.throttled_by.is_some()).count() as u64;
        gauge("copies_throttled", "Copies that give way to the source's load", throttled);
        gauge("paused", "Moves that a person holds", paused);
        gauge("faults", "Faults that wait for a person", tenants + u64::from(source.fault.is_some()));
    }

    fn tenants(&self, registry: &mut Registry, status: &Status, numbers: &[Numbers]) {
        let gauges = Family::<Labels, Gauge<f64, AtomicU64>>::default;
        let (lag, behind, spool, differences) = (gauges(), gauges(), gauges(), gauges());
        let counter = Family::<Labels, Counter>::default;
        let (changes, transactions, copied) = (counter(), counter(), counter());
        for tenant in &status.tenants {
            let labels = self.labels(&tenant.tenant);
            // Added up, the worst lag counts.
            if let Some(seconds) = tenant.lag_seconds {
                let worst = lag.get_or_create(&labels).get().max(seconds);
                lag.get_or_create(&labels).set(worst);
            }
            let worst = behind.get_or_create(&labels).get().max(tenant.lag_bytes as f64);
            behind.get_or_create(&labels).set(worst);
            spool.get_or_create(&labels).inc_by(tenant.spool_bytes as f64);
            copied.get_or_create(&labels).inc_by(tenant.rows_copied);
        }
        for number in numbers {
            let labels = self.labels(&number.tenant);
            changes.get_or_create(&labels).inc_by(number.changes);
            transactions.get_or_create(&labels).inc_by(number.transactions);
            if let Some(found) = number.differences {
                differences.get_or_create(&labels).inc_by(found as f64);
            }
        }
        registry.register("tenant_lag_seconds", "Age of the oldest change that is not in the target", lag);
        registry.register("tenant_lag_bytes", "Log between the source's end and the tenant's position", behind);
        registry.register("spool_bytes", "Changes on disk that the target does not hold yet", spool);
        registry.register("rows_copied", "Rows copied", copied);
        registry.register("changes_applied", "Row changes applied since the daemon started", changes);
        registry.register("transactions_applied", "Source transactions applied since the daemon started", transactions);
        registry.register("verify_differences", "Rows that the last verify found different", differences);
    }
}

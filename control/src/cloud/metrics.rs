//! The cloud's metrics.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    action: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAction {
    action: String,
}

/// Counters over requests.
pub struct Metrics {
    requests: Family<Answered, Counter>,
    seconds: Family<OfAction, Histogram>,
}

impl Metrics {
    /// Registered there.
    pub fn new(registry: &mut Registry) -> Self {
        let buckets = || Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
        let metrics =
            Self { requests: Family::default(), seconds: Family::new_with_constructor(buckets as fn() -> Histogram) };
        registry.register("api_requests", "API requests by action and error code", metrics.requests.clone());
        registry.register("api_seconds", "Seconds to an API answer by action", metrics.seconds.clone());
        metrics
    }

    /// A request was answered. `action` is empty where none was known; `code` is `ok` or AWS's error code.
    pub fn answered(&self, action: &str, code: &'static str, took: Duration) {
        let action = if action.is_empty() { "unknown" } else { action };
        self.requests.get_or_create(&Answered { action: action.into(), code: code.into() }).inc();
        self.seconds.get_or_create(&OfAction { action: action.into() }).observe(took.as_secs_f64());
    }
}

//! The role's figures for Prometheus, read when they are asked for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::host::{Host, Open};

/// Adds the host's figures to a registry.
pub(super) fn register(registry: &mut Registry, host: &Arc<Host>) {
    registry.register_collector(Box::new(Figures(Arc::downgrade(host))));
}

#[derive(Debug)]
struct Figures(Weak<Host>);

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(host) = self.0.upgrade() else { return Ok(()) };
        for (name, value) in host.health().capacity {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(&name, "As in the role's status", None, gauge.metric_type())?)?;
        }
        let open = host.open.lock().unwrap_or_else(PoisonError::into_inner);
        type Read = fn(&Open) -> &AtomicU64;
        let counters: [(&str, &str, Read); 9] = [
            ("volume_reads", "Completed reads", |o| &o.stats.reads),
            ("volume_read_bytes", "Bytes read", |o| &o.stats.read_bytes),
            ("volume_writes", "Completed writes", |o| &o.stats.writes),
            ("volume_write_bytes", "Bytes written", |o| &o.stats.write_bytes),
            ("volume_flushes", "Flushes that had something to do", |o| &o.stats.flushes),
            ("volume_errors", "Failed requests", |o| &o.stats.errors),
            ("volume_queue_requests", "Requests taken from virtqueues", |o| &o.server.stats().requests),
            ("volume_queue_calls", "Interrupts sent to drivers", |o| &o.server.stats().calls),
            ("volume_queue_broken", "Requests with broken descriptor chains", |o| &o.server.stats().broken),
        ];
        for (name, help, read) in counters {
            let kind = prometheus_client::metrics::MetricType::Counter;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (volume, o) in open.iter() {
                let labels = [("volume", volume.as_str())];
                ConstCounter::new(read(o).load(Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        let kind = prometheus_client::metrics::MetricType::Gauge;
        let mut family = encoder.encode_descriptor("volume_allocated_bytes", "Bytes of its extents", None, kind)?;
        for (volume, o) in open.iter() {
            let labels = [("volume", volume.as_str())];
            let value = o.stats.allocated_bytes.load(Relaxed) as i64;
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

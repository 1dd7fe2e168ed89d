//! What the store counts.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::MetaError;

/// Clones share the counts.
#[derive(Clone)]
pub(super) struct Metrics {
    commits: Counter,
    conflicts: Counter,
    refused_full: Counter,
    failed: Counter,
    sync_seconds: Histogram,
    group_commits: Histogram,
    /// Reads that memory could not answer.
    pub(super) reads_from_disk: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            commits: Counter::default(),
            conflicts: Counter::default(),
            refused_full: Counter::default(),
            failed: Counter::default(),
            sync_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            group_commits: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            reads_from_disk: Counter::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("karri_meta");
        registry.register("commits", "Batches committed durably", self.commits.clone());
        registry.register("conflicts", "Batches refused by a check", self.conflicts.clone());
        registry.register("refused_full", "Batches refused for lack of space", self.refused_full.clone());
        registry.register("failed", "Batches that the store failed to write", self.failed.clone());
        registry.register("sync_seconds", "Time of one synced write", self.sync_seconds.clone());
        registry.register("group_commits", "Batches in one synced write", self.group_commits.clone());
        registry.register("reads_from_disk", "Reads that memory could not answer", self.reads_from_disk.clone());
    }

    pub(super) fn refused(&self, error: &MetaError) {
        match error {
            MetaError::Conflict { .. } => self.conflicts.inc(),
            MetaError::NoSpace { .. } => self.refused_full.inc(),
            MetaError::Failed { .. } => self.failed.inc(),
        };
    }

    pub(super) fn timed<E>(&self, commits: usize, write: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let began = Instant::now();
        let answer = write();
        self.sync_seconds.observe(began.elapsed().as_secs_f64());
        self.group_commits.observe(commits as f64);
        let counter = if answer.is_ok() { &self.commits } else { &self.failed };
        counter.inc_by(commits as u64);
        answer
    }
}

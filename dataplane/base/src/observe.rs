//! Logs and metrics: one set-up for every role, with fixed field names.
//!
//! Fields: `role`, `account`, `request_id`, `instance`, `volume`, `bucket`, `core`, `error`. Lines are JSON when
//! standard error is not a terminal or `KARRI_LOG_FORMAT=json`; `KARRI_LOG` filters as `tracing` does
//! (`info`, `karri_engine=debug`); the default is `info` without `s3s`, which calls every client's mistake an error. Secrets and payloads are never logged.

use std::io::IsTerminal;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Sets up logging for the process; a second call does nothing.
pub fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KARRI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,s3s=off"));
    let json = match std::env::var("KARRI_LOG_FORMAT") {
        Ok(format) => format == "json",
        Err(_) => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation (tests) is harmless.
    let _ = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
}

/// A registry whose metrics all begin with `karri_` and carry the role.
pub fn registry(role: &'static str) -> Registry {
    Registry::with_prefix_and_labels("karri", [("role".into(), role.into())].into_iter())
}

/// The registry in Prometheus's text form (OpenMetrics 1.0).
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = encode(&mut text, registry);
    text
}

//! Logs and metrics: one set-up for every role, with fixed field names.
//!
//! Fields: `role`, `account`, `request_id`, `instance`, `volume`, `bucket`, `core`, `error`. Lines are JSON when
//! standard error is not a terminal or `KARRI_LOG_FORMAT=json`; `KARRI_LOG` filters as `tracing` does
//! (`info`, `karri_engine=debug`); the default is `info`. `s3s`, which calls every client's mistake an error, says nothing
//! unless it is named (`s3s=debug`). Secrets and payloads are never logged.

use std::io::IsTerminal;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

/// What clients can trigger without bound is not logged unless it is asked for by name.
const QUIET: &str = "s3s=off";

/// Sets up logging for the process; a second call does nothing.
pub fn init_logs() {
    let filter = filter(&std::env::var("KARRI_LOG").unwrap_or_default());
    let json = match std::env::var("KARRI_LOG_FORMAT") {
        Ok(format) => format == "json",
        Err(_) => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation (tests) is harmless.
    let _ = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
}

/// What is logged, as asked for; the default where nothing is, or nothing that can be read.
fn filter(asked: &str) -> EnvFilter {
    let with = |asked: &str| EnvFilter::try_new(format!("{QUIET},{asked}"));
    let asked = if asked.trim().is_empty() { "info" } else { asked };
    with(asked).or_else(|_| with("info")).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_mistakes_are_not_logged_unless_asked_for() {
        let all = |asked: &str| {
            let mut directives: Vec<String> = filter(asked).to_string().split(',').map(str::to_owned).collect();
            directives.sort();
            directives.join(",")
        };
        for (asked, want) in [
            ("", "info,s3s=off"),
            ("warn", "s3s=off,warn"),
            ("info,karri_engine=debug", "info,karri_engine=debug,s3s=off"),
            ("s3s=debug,info", "info,s3s=debug"),
            ("karri_engine=loudest", "info,s3s=off"),
        ] {
            assert_eq!(all(asked), want, "{asked}");
        }
    }
}

//! A role's plain listener: `GET /metrics` (OpenMetrics) and `GET /healthz` (200 or 503 with the trouble).

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use karri_base::observe;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// The media type of [`observe::render`]'s text.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the listener fails. `trouble` says what is wrong; nothing where all is well.
pub async fn serve(
    listener: TcpListener,
    trouble: impl Fn() -> Option<String> + Clone + Send + Sync + 'static,
    registry: Arc<Registry>,
) -> io::Result<()> {
    let metrics = move || {
        let registry = registry.clone();
        async move { ([(header::CONTENT_TYPE, OPENMETRICS)], observe::render(&registry)) }
    };
    let health = move || {
        let trouble = trouble();
        async move {
            match trouble {
                None => (StatusCode::OK, "ok\n".to_owned()).into_response(),
                Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")).into_response(),
            }
        }
    };
    let app = Router::new().route("/metrics", get(metrics)).route("/healthz", get(health));
    axum::serve(listener, app).await
}

//! One metrics listener for the whole machine: the roles' texts, put together family by family, and the supervisor's own
//! counters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;

use crate::chassis::OPENMETRICS;
use crate::role::Role;

/// A role's text may be so long; more is dropped.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// How often each role's process ended unasked.
#[derive(Clone, Default)]
pub struct Counters(Arc<Mutex<BTreeMap<Role, u64>>>);

impl Counters {
    /// Counts an end.
    pub fn died(&self, role: Role) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(role).or_default() += 1;
    }

    fn render(&self, answers: &[(Role, Option<String>)]) -> String {
        let mut text = String::from(
            "# HELP karri_role_deaths Times that a role's process ended unasked.\n# TYPE karri_role_deaths counter\n",
        );
        let deaths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for role in Role::ALL {
            let _ = writeln!(text, "karri_role_deaths_total{{role=\"{role}\"}} {}", deaths.get(&role).unwrap_or(&0));
        }
        text += "# HELP karri_role_up Whether the role's metrics answer.\n# TYPE karri_role_up gauge\n";
        for (role, answer) in answers {
            let _ = writeln!(text, "karri_role_up{{role=\"{role}\"}} {}", u8::from(answer.is_some()));
        }
        text
    }
}

/// Serves `GET /metrics` until the listener fails.
pub async fn serve(listener: TcpListener, roles: Vec<(Role, SocketAddr)>, counters: Counters) -> io::Result<()> {
    let roles = Arc::new(roles);
    let metrics = move || {
        let (roles, counters) = (roles.clone(), counters.clone());
        async move {
            let answers = futures_util::future::join_all(
                roles.iter().map(|(role, addr)| async move { (*role, scrape(*addr).await) }),
            )
            .await;
            let own = counters.render(&answers);
            let texts = answers.iter().filter_map(|(_, text)| text.as_deref()).chain([own.as_str()]);
            ([(header::CONTENT_TYPE, OPENMETRICS)], merge(texts))
        }
    };
    axum::serve(listener, Router::new().route("/metrics", get(metrics))).await
}

async fn scrape(addr: SocketAddr) -> Option<String> {
    let uri = format!("http://{addr}/metrics").parse().ok()?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let get = async {
        let body = client.get(uri).await.ok()?.into_body();
        let bytes = Limited::new(body, TEXT_BYTES_MAX).collect().await.ok()?.to_bytes();
        String::from_utf8(bytes.to_vec()).ok()
    };
    tokio::time::timeout(Duration::from_secs(2), get).await.ok()?
}

/// Puts OpenMetrics texts together: a family's description once, then everybody's samples, as the format demands.
fn merge<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    #[derive(Default)]
    struct Family<'a> {
        head: Vec<&'a str>,
        samples: Vec<&'a str>,
    }
    let mut families: Vec<(&str, Family<'_>)> = Vec::new();
    let mut index = BTreeMap::new();
    for text in texts {
        let mut now = None;
        for line in text.lines().filter(|line| *line != "# EOF") {
            let mut words = line.split(' ');
            let name = match (words.next(), words.next(), words.next()) {
                (Some("#"), Some("HELP" | "TYPE" | "UNIT"), Some(name)) => Some(name),
                _ => None,
            };
            if let Some(name) = name {
                now = Some(*index.entry(name).or_insert_with(|| {
                    families.push((name, Family::default()));
                    families.len() - 1
                }));
            }
            let Some((_, family)) = now.and_then(|at: usize| families.get_mut(at)) else { continue };
            match name {
                Some(_) if family.head.contains(&line) => {}
                // A description that differs between roles: the first stands.
                Some(_) if !family.samples.is_empty() => {}
                Some(_) => family.head.push(line),
                None => family.samples.push(line),
            }
        }
    }
    let mut text = String::new();
    for (_, family) in families {
        for line in family.head.iter().chain(&family.samples) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push_str("# EOF\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_several_roles_become_one() {
        let a = "# HELP karri_x X.\n# TYPE karri_x counter\nkarri_x_total{role=\"a\"} 1\n# EOF\n";
        let b = "# HELP karri_y Y.\n# TYPE karri_y gauge\nkarri_y{role=\"b\"} 2\n\
                 # HELP karri_x X.\n# TYPE karri_x counter\nkarri_x_total{role=\"b\"} 3\n# EOF\n";
        assert_eq!(
            merge([a, b].into_iter()),
            "# HELP karri_x X.\n# TYPE karri_x counter\nkarri_x_total{role=\"a\"} 1\nkarri_x_total{role=\"b\"} 3\n\
             # HELP karri_y Y.\n# TYPE karri_y gauge\nkarri_y{role=\"b\"} 2\n# EOF\n"
        );
    }
}

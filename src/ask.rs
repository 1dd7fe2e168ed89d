//! `karri env` and `karri status`: what runs on a state folder, asked from another terminal.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use karri_base::proto::role_client::RoleClient;
use karri_base::proto::{StatusReply, StatusRequest};

use crate::layout::Layout;
use crate::peers::Credentials;
use crate::pki;
use crate::role::Role;
use crate::supervisor::scheme;

/// Prints the export lines that AWS's and Eucalyptus's tools read.
pub fn env(layout: &Layout) -> Result<ExitCode> {
    let runtime = layout.read_runtime()?;
    let admin = layout.read_credentials()?.admin;
    let api = format!("{}://{}", scheme(runtime.api_tls()), runtime.api);
    let s3 = format!("{}://{}", scheme(runtime.tls), runtime.s3);
    let lines = [
        ("AWS_ACCESS_KEY_ID", admin.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", admin.secret_access_key),
        ("AWS_DEFAULT_REGION", runtime.region),
        ("AWS_ENDPOINT_URL", api.clone()),
        ("AWS_ENDPOINT_URL_S3", s3.clone()),
        ("EC2_URL", api),
        ("S3_URL", s3),
        ("KARRI_CONSOLE_URL", format!("http://{}", runtime.console)),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "export {name}='{value}'");
    }
    // The last line, so that `eval` without quotes reads all the others.
    text += "# KARRI_CONSOLE_URL is kept for the web console: nothing listens there yet.\n";
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// Prints a table of roles; success only when all are healthy.
pub fn status(layout: &Layout) -> Result<ExitCode> {
    let runtime = layout.read_runtime()?;
    let admin = Credentials::read(&pki::files(&layout.tls(), pki::ADMIN))?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = tokio.block_on(async {
        let asked = Role::ALL.map(|role| {
            let addr = runtime.grpc.get(role.name()).copied();
            let admin = &admin;
            async move {
                let addr = addr.context("is not part of this karri")?;
                role_status(role, admin.channel(role, addr)?, Duration::from_secs(3)).await
            }
        });
        futures_util::future::join_all(asked).await
    });
    let rows = Role::ALL.into_iter().zip(answers).collect::<Vec<_>>();
    print(&table(&rows));
    let healthy = rows.iter().all(|(_, answer)| answer.as_ref().is_ok_and(|reply| reply.healthy));
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One role's answer, or why there is none.
pub async fn role_status(role: Role, channel: tonic::transport::Channel, patience: Duration) -> Result<StatusReply> {
    let ask = async { RoleClient::new(channel).status(StatusRequest {}).await };
    match tokio::time::timeout(patience, ask).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(anyhow::anyhow!("{role} does not answer: {}", status.message())),
        Err(_) => Err(anyhow::anyhow!("{role} does not answer in {} s", patience.as_secs())),
    }
}

fn table(rows: &[(Role, Result<StatusReply>)]) -> String {
    let mut text = format!("{:<8} {:<9} {:<8} {:>7} {:>8}  CAPACITY\n", "ROLE", "HEALTH", "VERSION", "PID", "UPTIME");
    for (role, answer) in rows {
        let _ = match answer {
            Ok(reply) => {
                let health = if reply.healthy { "healthy" } else { "unhealthy" };
                let mut capacity = reply.capacity.iter().map(|(k, v)| figure(k, *v)).collect::<Vec<_>>();
                capacity.sort();
                if !reply.message.is_empty() {
                    capacity.insert(0, format!("({})", reply.message));
                }
                writeln!(
                    text,
                    "{role:<8} {health:<9} {:<8} {:>7} {:>8}  {}",
                    reply.version,
                    reply.pid,
                    span(reply.uptime_secs),
                    capacity.join(" ")
                )
            }
            Err(why) => writeln!(text, "{role:<8} {:<9} {:<8} {:>7} {:>8}  ({why:#})", "down", "-", "-", "-"),
        };
    }
    text
}

/// `store_bytes_total=64.0GiB`, `instances=3`.
fn figure(name: &str, value: u64) -> String {
    let is_bytes = name.split('_').any(|word| word == "bytes");
    let unit = [("TiB", 40), ("GiB", 30), ("MiB", 20)].into_iter().find(|(_, shift)| value >> shift > 0);
    match unit {
        Some((unit, shift)) if is_bytes => format!("{name}={:.1}{unit}", value as f64 / (1u64 << shift) as f64),
        _ => format!("{name}={value}"),
    }
}

fn span(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        3600..86400 => format!("{}h{:02}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d{:02}h", secs / 86400, secs % 86400 / 3600),
    }
}

/// Prints; a reader that went away is no error.
pub fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_health_and_why_not() {
        let well = StatusReply {
            role: "walrus".into(),
            version: "0.1.0".into(),
            healthy: true,
            capacity: [("store_bytes_total".to_owned(), 3 << 30), ("buckets".to_owned(), 2)].into(),
            pid: 7,
            uptime_secs: 61,
            ..Default::default()
        };
        let ill = StatusReply { healthy: false, message: "the store is full".into(), ..well.clone() };
        let text =
            table(&[(Role::Walrus, Ok(well)), (Role::Storage, Ok(ill)), (Role::Node, Err(anyhow::anyhow!("gone")))]);
        let lines = text.lines().collect::<Vec<_>>();
        assert_eq!(lines[1], "walrus   healthy   0.1.0          7    1m01s  buckets=2 store_bytes_total=3.0GiB");
        assert!(lines[2].contains("unhealthy") && lines[2].contains("(the store is full)"), "{text}");
        assert!(lines[3].contains("down") && lines[3].contains("(gone)"), "{text}");
    }
}

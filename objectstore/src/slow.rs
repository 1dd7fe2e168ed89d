//! The log of slow requests: what took the server longer than the operator thinks right, the client's own time taken off.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Lines in a second; more are counted and told with the next one that is written.
const LINES_PER_SECOND: u32 = 10;
/// Bytes of a bucket or a key in a line: the client chose them, and S3's keys have at most so many.
const TEXT_MAX: usize = 1024;
/// A request is slow from here on, unless the operator says otherwise.
pub const THRESHOLD: Duration = Duration::from_secs(5);

/// Holds the lines to their rate.
#[derive(Debug, Default)]
pub struct Slow(Mutex<Written>);

#[derive(Debug, Default)]
struct Written {
    second: u64,
    lines: u32,
    suppressed: u64,
}

/// A request that was answered.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its id.
    pub id: &'a str,
    /// AWS's name of what it asked for.
    pub operation: &'a str,
    /// HTTP status.
    pub status: u16,
    /// Whose key signed it; empty for nobody's.
    pub account: &'a str,
    /// The bucket, as in the URL.
    pub bucket: &'a str,
    /// The key, as in the URL.
    pub key: &'a str,
    /// From where.
    pub source: String,
    /// From its head to its answer's head.
    pub took: Duration,
    /// Of that, waiting for its body.
    pub waited: Duration,
}

impl Slow {
    /// Writes a line where the request was slow and the rate allows; true where it did.
    pub fn see(&self, threshold: Duration, now: Duration, request: &Request<'_>) -> bool {
        let own = request.took.saturating_sub(request.waited);
        if threshold.is_zero() || own < threshold {
            return false;
        }
        let Some(suppressed) = self.turn(now) else { return false };
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(
            request_id = request.id,
            operation = request.operation,
            status = request.status,
            account = request.account,
            bucket = %cut(request.bucket).escape_debug(),
            key = %cut(request.key).escape_debug(),
            source = %request.source,
            server_ms = ms(own),
            client_ms = ms(request.waited),
            suppressed,
            "a request was slow"
        );
        true
    }

    /// How many lines were left out before this one; `None` where this one is left out too.
    fn turn(&self, now: Duration) -> Option<u64> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.second != now.as_secs() {
            (written.second, written.lines) = (now.as_secs(), 0);
        }
        if written.lines >= LINES_PER_SECOND {
            written.suppressed += 1;
            return None;
        }
        written.lines += 1;
        Some(std::mem::take(&mut written.suppressed))
    }
}

/// The text, or what of it a line may have and a mark.
fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_MAX {
        return text.into();
    }
    format!("{}... ({} bytes)", &text[..text.floor_char_boundary(TEXT_MAX)], text.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_with_a_mark() {
        let long = "\u{20ac}".repeat(1000);
        assert_eq!(cut(&long[..TEXT_MAX - 1]), long[..TEXT_MAX - 1]);
        let cut = cut(&long);
        assert!(cut.len() < TEXT_MAX + 32 && cut.ends_with("... (3000 bytes)"), "{cut}");
    }

    #[test]
    fn what_is_slow_and_how_often_it_is_said() {
        let slow = Slow::default();
        let secs = Duration::from_secs;
        let see = |threshold, now, took, waited| {
            let (took, waited) = (secs(took), secs(waited));
            let (source, request) = ("127.0.0.1".to_owned(), "id");
            slow.see(
                secs(threshold),
                now,
                &Request {
                    id: request,
                    operation: "PutObject",
                    status: 200,
                    account: "",
                    bucket: "b",
                    key: "k",
                    source,
                    took,
                    waited,
                },
            )
        };
        assert!(!see(5, secs(1), 4, 0) && !see(5, secs(1), 60, 56) && !see(0, secs(1), 60, 0));
        for _ in 0..LINES_PER_SECOND {
            assert!(see(5, secs(1), 5, 0));
        }
        assert!(!see(5, secs(1), 5, 0) && !see(5, secs(1), 5, 0));
        assert_eq!(slow.turn(secs(2)), Some(2));
        assert_eq!(slow.turn(secs(2)), Some(0));
    }
}

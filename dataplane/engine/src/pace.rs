//! A least rate of a transfer whose other end is somebody's client: one byte now and then must not hold a connection for
//! ever. Only the time counts in which the client was waited for, so that our own disk, or others' requests, are never its
//! fault. Pure: told what moved and how long it was waited for.

use std::time::Duration;

/// How slow a transfer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Waiting is judged when it has come to so much, and then from the beginning.
    pub window: Duration,
    /// Bytes in a second of waiting, on average over a window.
    pub bytes_per_second: u64,
}

impl Default for Rate {
    /// 1 KiB a second over a minute: a tenth of what a modem did.
    fn default() -> Self {
        Self { window: Duration::from_secs(60), bytes_per_second: 1024 }
    }
}

/// A transfer's way through its window.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: Rate,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// At the beginning of a window.
    pub fn new(rate: Rate) -> Self {
        Self { rate, waited: Duration::ZERO, bytes: 0 }
    }

    /// So many bytes moved after so long a wait. False for a window that ends with it and was too slow.
    #[must_use]
    pub fn moved(&mut self, bytes: u64, waited: Duration) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        self.waited += waited;
        if self.waited < self.rate.window {
            return true;
        }
        let least = u128::from(self.rate.bytes_per_second) * self.waited.as_millis() / 1000;
        let fits = u128::from(self.bytes) >= least;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        fits
    }

    /// True where the window ends with so long a wait.
    pub fn ends(&self, waited: Duration) -> bool {
        self.waited + waited >= self.rate.window
    }

    /// The waiting that is left of the window; never zero.
    pub fn left(&self) -> Duration {
        self.rate.window.saturating_sub(self.waited).max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_judged_by_what_was_waited() {
        let secs = Duration::from_secs;
        let mut pace = Pace::new(Rate::default());
        // Nothing is waited for: any number of small pieces is fine.
        assert!((0..1000).all(|_| pace.moved(1, Duration::ZERO)));
        assert_eq!(pace.left(), secs(60));
        // A byte each 59 seconds.
        assert!(pace.moved(1, secs(59)));
        assert_eq!(pace.left(), secs(1));
        assert!(!pace.moved(1, secs(59)));
        // A new window, exactly at the rate, in one burst at its beginning.
        assert!(pace.moved(60 << 10, secs(1)) && pace.moved(0, secs(59)));
        // What was sent in one window does not help in the next.
        assert!(pace.moved(1 << 30, secs(60)));
        assert!(!pace.moved(0, secs(60)));
        // A longer wait than the window asks for more.
        assert!(!pace.moved(100 << 10, secs(101)));
    }
}

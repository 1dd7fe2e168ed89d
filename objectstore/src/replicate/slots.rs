//! Whose turn it is: the destinations that are worked for at once, shared so that slow ones leave room for others. Pure.
//!
//! A look for work goes on behind the destination that got the last slot, so all get their turn; and neither a remote nor an
//! account has more than its share of the slots.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use crate::keys;

/// Destinations that are worked for at once.
const ALL: usize = 32;
/// Of these, destinations of one remote.
const OF_REMOTE: usize = 8;
/// Of these, destinations that buckets of one account send to.
const OF_ACCOUNT: usize = 16;

/// The destinations that are worked for, and for whose account; which one came last.
#[derive(Debug, Default)]
pub struct Slots {
    busy: HashMap<String, String>,
    last: Option<String>,
}

/// A destination's remote; nothing for this Walrus.
fn remote(to: &str) -> &str {
    to.split_once(':').map_or("", |(remote, _)| remote)
}

impl Slots {
    /// True where no destination gets one.
    pub fn are_taken(&self) -> bool {
        self.busy.len() >= ALL
    }
    /// True while a destination is worked for.
    pub fn has(&self, to: &str) -> bool {
        self.busy.contains_key(to)
    }
    /// Gives a destination a slot, for changes of this account's; false where it has one, or its remote or its account have
    /// their share.
    pub fn take(&mut self, to: &str, account: &str) -> bool {
        let (of, here) = (remote(to), remote(to).is_empty());
        let of_remote = self.busy.keys().filter(|other| remote(other) == of).count();
        let of_account = self.busy.values().filter(|other| *other == account).count();
        if self.are_taken() || self.has(to) || of_account >= OF_ACCOUNT || (!here && of_remote >= OF_REMOTE) {
            return false;
        }
        self.busy.insert(to.to_owned(), account.to_owned());
        self.last = Some(to.to_owned());
        true
    }
    /// Its slot is free again.
    pub fn free(&mut self, to: &str) {
        self.busy.remove(to);
    }
    /// Where to look for work, in this order.
    pub fn ranges(&self) -> [Range<Bytes>; 2] {
        let all = keys::all(b'R');
        let middle = self.last.as_ref().map_or_else(|| all.start.clone(), |last| keys::replications_of(last).end);
        [middle.clone()..all.end, all.start..middle]
    }
}

#[cfg(test)]
mod tests {
    use karri_base::clock::UnixMicros;

    use super::*;

    #[test]
    fn neither_a_remote_nor_an_account_has_all_slots() {
        let mut slots = Slots::default();
        let fill = |slots: &mut Slots, remote: &str, account: &str| {
            (0..ALL).filter(|n| slots.take(&format!("{remote}:b{n}"), account)).count()
        };
        assert_eq!(fill(&mut slots, "slow", "1"), OF_REMOTE);
        assert_eq!(fill(&mut slots, "slow", "2"), 0, "whoever asks");
        assert_eq!(fill(&mut slots, "", "1"), OF_ACCOUNT - OF_REMOTE);
        assert_eq!(fill(&mut slots, "other", "2"), OF_REMOTE);
        assert_eq!(fill(&mut slots, "third", "3"), ALL - OF_ACCOUNT - OF_REMOTE);
        assert!(slots.are_taken() && !slots.take("fourth:b", "4"));
        slots.free("slow:b0");
        assert!(!slots.has("slow:b0") && slots.take("fourth:b", "4"));
    }

    #[test]
    fn all_get_their_turn() {
        let mut slots = Slots::default();
        let key = |to: &str| keys::replication(to, UnixMicros(1), 1);
        let next = |slots: &Slots| {
            let all = ["", "a", "b", "c"].map(|remote| format!("{remote}:k"));
            let [first, second] = slots.ranges();
            let found =
                |range: &Range<Bytes>| all.iter().find(|to| range.contains(&key(to)) && !slots.has(to)).cloned();
            found(&first).or_else(|| found(&second)).unwrap()
        };
        let mut order = Vec::new();
        for _ in 0..6 {
            let to = next(&slots);
            slots.take(&to, "1");
            slots.free(&to);
            order.push(to);
        }
        assert_eq!(order, [":k", "a:k", "b:k", "c:k", ":k", "a:k"]);
    }
}

//! The walk behind LIST: prefix, delimiter, start and page size over an ordered key space, by seeking.
//!
//! Pure: [`Walk`] says which range to scan next and is fed what the scan found, so the property test drives it over a
//! `BTreeMap`. Its cost grows with the page, not with the bucket: on a common prefix it seeks to the prefix's end.
//!
//! ```text
//!   next() -> Some(range, limit) --scan--> feed(pairs) -> next() ... -> None: finish()
//! ```

use std::ops::Range;

use bytes::Bytes;

use crate::keys;

/// Scans ask for no more than this.
const SCAN_MAX: usize = 1_000;
/// The first scan with a delimiter: small, since one folder may fill it.
const SCAN_FIRST: usize = 32;

/// Where a listing begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Start {
    /// At the first key.
    #[default]
    First,
    /// After this key. When it is a common prefix (it ends with the delimiter), after all keys under it.
    After(Vec<u8>),
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<V> {
    /// A key and what the scan found under it.
    Key(Bytes, V),
    /// A common prefix.
    Prefix(Bytes),
}

impl<V> Entry<V> {
    /// The text that orders entries and that the next page begins after.
    pub fn name(&self) -> &Bytes {
        match self {
            Self::Key(k, _) | Self::Prefix(k) => k,
        }
    }
}

/// A listing under way. Keys are object keys; the caller adds and strips what precedes them in the store.
#[derive(Debug)]
pub struct Walk<V> {
    prefix: Vec<u8>,
    delimiter: Vec<u8>,
    max: usize,
    /// The next scan's start; `None` when there is nothing more to scan.
    from: Option<Bytes>,
    end: Option<Bytes>,
    chunk: usize,
    entries: Vec<Entry<V>>,
    truncated: bool,
}

impl<V> Walk<V> {
    /// A walk of at most `max` entries. An empty delimiter is none.
    pub fn new(prefix: &[u8], delimiter: &[u8], start: &Start, max: usize) -> Self {
        let from = match start {
            Start::First => Bytes::copy_from_slice(prefix),
            Start::After(key) => {
                let next = match common_prefix(key, prefix, delimiter) {
                    Some(p) if p.len() == key.len() => keys::successor(key),
                    _ => Some(keys::after(key)),
                };
                // `None` only for all-0xFF keys, which UTF-8 cannot spell: then nothing follows.
                next.unwrap_or_else(|| Bytes::from(vec![0xFF; key.len() + 1])).max(Bytes::copy_from_slice(prefix))
            }
        };
        let chunk = if delimiter.is_empty() { (max + 1).min(SCAN_MAX) } else { (max + 1).min(SCAN_FIRST) };
        Self {
            prefix: prefix.to_vec(),
            delimiter: delimiter.to_vec(),
            max,
            from: (max > 0).then_some(from),
            end: keys::successor(prefix),
            chunk,
            entries: Vec::new(),
            truncated: false,
        }
    }

    /// What to scan next: from, to (`None`: no end) and how many; `None` when the walk is over.
    pub fn next(&self) -> Option<(Bytes, Option<Bytes>, usize)> {
        let from = self.from.clone()?;
        Some((from, self.end.clone(), self.chunk))
    }

    /// Takes what the scan that [`next`](Self::next) asked for found. Fewer pairs than asked for means the end.
    pub fn feed(&mut self, found: impl IntoIterator<Item = (Bytes, V)>) {
        self.feed_shown(found, |_| true);
    }

    /// As [`feed`](Self::feed), leaving out those pairs that `shown` is not true of (delete markers). It is not asked
    /// about keys under a common prefix that is listed already.
    pub fn feed_shown(&mut self, found: impl IntoIterator<Item = (Bytes, V)>, shown: impl Fn(&V) -> bool) {
        let mut count = 0;
        let mut skip: Option<Bytes> = None;
        let mut last = None;
        let mut distinct = 0;
        for (key, value) in found {
            count += 1;
            let inside = skip.as_ref().is_some_and(|p| key.starts_with(p));
            if !inside && !shown(&value) {
                distinct += 1;
                last = Some(key);
                skip = None;
                continue;
            }
            if !inside {
                if self.entries.len() == self.max {
                    self.truncated = true;
                    self.from = None;
                    return;
                }
                distinct += 1;
                match common_prefix(&key, &self.prefix, &self.delimiter) {
                    Some(p) => {
                        // Of its own: a slice would keep what the scan shares with it.
                        let p = Bytes::copy_from_slice(p);
                        self.entries.push(Entry::Prefix(p.clone()));
                        skip = Some(p);
                    }
                    None => {
                        self.entries.push(Entry::Key(key.clone(), value));
                        skip = None;
                    }
                }
            }
            last = Some(key);
        }
        let Some(last) = last.filter(|_| count >= self.chunk) else {
            self.from = None;
            return;
        };
        // Many keys in few folders: keep chunks small and seek; otherwise read on in larger steps.
        self.chunk = if distinct * 4 < count { SCAN_FIRST } else { (self.chunk * 4).min(SCAN_MAX) };
        self.from = match skip {
            Some(p) => keys::successor(&p),
            None => Some(keys::after(&last)),
        };
    }

    /// The entries in order, and whether there are more.
    pub fn finish(self) -> (Vec<Entry<V>>, bool) {
        (self.entries, self.truncated)
    }
}

/// The part of `key` up to and with the first delimiter after `prefix`.
pub fn common_prefix<'k>(key: &'k [u8], prefix: &[u8], delimiter: &[u8]) -> Option<&'k [u8]> {
    if delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(prefix)?;
    let at = rest.windows(delimiter.len()).position(|w| w == delimiter)?;
    Some(&key[..prefix.len() + at + delimiter.len()])
}

/// The store's range for a walk's request, where `before` precedes every key and `whole` is all of them.
pub fn absolute(before: &[u8], whole: &Range<Bytes>, from: &[u8], to: Option<&[u8]>) -> Range<Bytes> {
    let join = |key: &[u8]| Bytes::from([before, key].concat());
    join(from)..to.map_or_else(|| whole.end.clone(), join)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Runs a walk over a map, counting pairs read.
    fn walk(
        map: &BTreeMap<Vec<u8>, u32>,
        prefix: &str,
        delimiter: &str,
        start: &Start,
        max: usize,
    ) -> (Vec<String>, bool, usize) {
        let mut walk = Walk::new(prefix.as_bytes(), delimiter.as_bytes(), start, max);
        let mut read = 0;
        while let Some((from, to, limit)) = walk.next() {
            let found: Vec<_> = map
                .range(from.to_vec()..)
                .take_while(|(k, _)| to.as_ref().is_none_or(|to| k.as_slice() < to))
                .take(limit)
                .map(|(k, v)| (Bytes::from(k.clone()), *v))
                .collect();
            read += found.len();
            walk.feed(found);
        }
        let (entries, more) = walk.finish();
        let names = entries
            .iter()
            .map(|e| match e {
                Entry::Key(k, v) => {
                    assert_eq!(map.get(&k[..]), Some(v));
                    format!("k:{}", String::from_utf8_lossy(k))
                }
                Entry::Prefix(p) => format!("p:{}", String::from_utf8_lossy(p)),
            })
            .collect();
        (names, more, read)
    }

    /// What a listing is, said naively.
    fn oracle(
        map: &BTreeMap<Vec<u8>, u32>,
        prefix: &str,
        delimiter: &str,
        start: &Start,
        max: usize,
    ) -> (Vec<String>, bool) {
        let mut all: Vec<String> = Vec::new();
        for key in map.keys() {
            let key = String::from_utf8(key.clone()).unwrap();
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            if let Start::After(after) = start {
                let after = std::str::from_utf8(after).unwrap();
                let under = !delimiter.is_empty()
                    && after
                        .strip_prefix(prefix)
                        .is_some_and(|r| r.find(delimiter).is_some_and(|at| at + delimiter.len() == r.len()))
                    && key.starts_with(after);
                if key.as_str() <= after || under {
                    continue;
                }
            }
            let name = match (delimiter.is_empty(), rest.find(delimiter)) {
                (false, Some(at)) => format!("p:{prefix}{}", &rest[..at + delimiter.len()]),
                _ => format!("k:{key}"),
            };
            if all.last() != Some(&name) {
                all.push(name);
            }
        }
        let more = max > 0 && all.len() > max;
        all.truncate(max);
        (all, more)
    }

    fn map(keys: impl IntoIterator<Item = String>) -> BTreeMap<Vec<u8>, u32> {
        keys.into_iter().enumerate().map(|(i, k)| (k.into_bytes(), i as u32)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn agrees_with_the_naive_listing(
            keys in proptest::collection::vec("[ab/.\u{e9}]{1,6}", 0..60),
            prefix in "[ab/]{0,3}",
            delimiter in prop_oneof![Just(""), Just("/"), Just("a"), Just("//"), Just("b/")],
            after in proptest::option::of("[ab/\u{e9}]{0,5}"),
            max in 0usize..12,
        ) {
            let map = map(keys);
            let start = after.map_or(Start::First, |a| Start::After(a.into_bytes()));
            let (names, more, _) = walk(&map, &prefix, delimiter, &start, max);
            prop_assert_eq!((names, more), oracle(&map, &prefix, delimiter, &start, max));
        }

        #[test]
        fn pages_add_up_to_the_whole(
            keys in proptest::collection::vec("[ab/]{1,5}", 0..60),
            delimiter in prop_oneof![Just(""), Just("/")],
            max in 1usize..7,
        ) {
            let map = map(keys);
            let (whole, more, _) = walk(&map, "", delimiter, &Start::First, 10_000);
            prop_assert!(!more);
            let (mut pages, mut start) = (Vec::new(), Start::First);
            loop {
                let (names, more, _) = walk(&map, "", delimiter, &start, max);
                prop_assert_eq!(more, pages.len() + names.len() < whole.len());
                pages.extend(names);
                if !more { break }
                start = Start::After(pages.last().unwrap().as_bytes()[2..].to_vec());
            }
            prop_assert_eq!(pages, whole);
        }
    }

    #[test]
    fn cost_grows_with_the_page_and_not_with_the_bucket() {
        let map = map((0..100_000).map(|i| format!("folder{:02}/object{i:06}", i % 20)));
        let (names, more, read) = walk(&map, "", "/", &Start::First, 1_000);
        assert_eq!((names.len(), more), (20, false));
        assert!(read < 2_000, "read {read} keys for 20 folders");
        let (names, more, read) = walk(&map, "folder07/", "/", &Start::First, 100);
        assert_eq!((names.len(), more), (100, true));
        assert!(read < 300, "read {read} keys for a page of 100");
    }
}

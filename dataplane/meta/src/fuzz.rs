//! Hostile bytes against the store's own format; see [`karri_base::fuzz`].

use crate::rocks;

karri_base::fuzz::targets! {
    /// The `FORMAT` file: only this version's exact words are accepted.
    fn format_file(data) from ["karri-meta 1\n", "karri-meta 2\n"] {
        let text = String::from_utf8_lossy(data);
        assert_eq!(rocks::is_this_version(&text), text == "karri-meta 1\n");
    }
}

//! What becomes known of a request on its way through: for metrics, access logs and headers of the answer.

use std::sync::{Arc, OnceLock};

use karri_base::aws::keys::{Key, SignedIn};

use crate::core::Caller;

/// A slip that travels with a request, among its extensions. Clones are the same slip.
#[derive(Debug, Clone, Default)]
pub struct Note(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    operation: OnceLock<&'static str>,
    sender: OnceLock<Arc<Key>>,
    caller: OnceLock<Caller>,
}

impl Note {
    /// The operation's name; the first one counts.
    pub fn operation(&self, name: &'static str) {
        let _ = self.0.operation.set(name);
    }
    /// Who signed it, let in or not.
    pub fn signed(&self, who: Option<&SignedIn>) {
        if let Some(who) = who {
            let _ = self.0.sender.set(who.key.clone());
        }
    }
    /// Who was let in, and for what.
    pub fn caller(&self, caller: &Caller) {
        let _ = self.0.caller.set(caller.clone());
    }
    /// The operation, as far as the request got.
    pub fn named(&self) -> Option<&'static str> {
        self.0.operation.get().copied()
    }
    /// Whose key signed it.
    pub fn sender(&self) -> Option<&Key> {
        self.0.sender.get().map(|key| &**key)
    }
    /// Who was let in; `None` for a request that was refused before.
    pub fn admitted(&self) -> Option<&Caller> {
        self.0.caller.get()
    }
    /// True for a request that its sender pays, not the bucket's owner.
    pub fn is_charged(&self) -> bool {
        self.admitted().is_some_and(|caller| caller.leave.charged)
    }
}

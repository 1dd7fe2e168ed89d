//! Values that live on a core, found again from jobs that other threads send there.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static HELD: RefCell<HashMap<u64, Rc<dyn Any>>> = RefCell::default();
}

/// The name of one value a core. It may go anywhere; the values stay.
pub struct CoreLocal<T> {
    id: u64,
    _kind: PhantomData<fn() -> T>,
}

impl<T> Clone for CoreLocal<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for CoreLocal<T> {}

impl<T: 'static> CoreLocal<T> {
    /// A name that no core has a value for.
    #[allow(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), _kind: PhantomData }
    }

    /// Keeps a value on this core.
    pub fn set(&self, value: T) {
        HELD.with(|h| h.borrow_mut().insert(self.id, Rc::new(value)));
    }

    /// This core's value.
    ///
    /// # Panics
    /// When none was set here.
    pub fn get(&self) -> Rc<T> {
        let held = HELD.with(|h| h.borrow().get(&self.id).cloned());
        held.and_then(|v| v.downcast().ok()).expect("set on this core")
    }

    /// Forgets this core's value.
    pub fn take(&self) -> Option<Rc<T>> {
        let held = HELD.with(|h| h.borrow_mut().remove(&self.id));
        held.and_then(|v| v.downcast().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_its_own() {
        let name = CoreLocal::new();
        name.set(1);
        std::thread::spawn(move || {
            name.set(2);
            assert_eq!(*name.get(), 2);
        })
        .join()
        .unwrap();
        assert_eq!(*name.get(), 1);
        assert_eq!(name.take().as_deref(), Some(&1));
        assert!(name.take().is_none());
    }
}

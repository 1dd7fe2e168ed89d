//! What tasks of one core share: notifications, semaphores, a mutex, bounded queues. None is `Send`, none allocates on
//! its uncontended path, and no borrow is held over an await. Waiters are served in the order they came.
//!
//! Between threads use `futures-channel`'s oneshot (it wakes engine tasks like any other) or a core's handle.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

struct Waiter {
    need: u64,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

struct Permits {
    free: Cell<u64>,
    queue: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Permits {
    fn release(&self, n: u64) {
        self.free.set(self.free.get() + n);
        self.grant();
    }

    fn grant(&self) {
        loop {
            let waiter = {
                let mut queue = self.queue.borrow_mut();
                match queue.front() {
                    Some(first) if first.need <= self.free.get() => {
                        self.free.set(self.free.get() - first.need);
                        queue.pop_front()
                    }
                    _ => None,
                }
            };
            let Some(waiter) = waiter else { return };
            waiter.granted.set(true);
            let waker = waiter.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// A counted limit: connections, bytes of memory, requests in flight.
#[derive(Clone)]
pub struct Semaphore(Rc<Permits>);

impl std::fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Semaphore").field("free", &self.available()).finish_non_exhaustive()
    }
}

impl Semaphore {
    /// `n` permits.
    pub fn new(n: u64) -> Self {
        Self(Rc::new(Permits { free: Cell::new(n), queue: RefCell::default() }))
    }

    /// Waits for `n` permits, first come, first served (a large request is not overtaken by small ones). Asking for more
    /// than there ever are waits for ever. Dropping the future gives up its place.
    pub fn acquire(&self, n: u64) -> Acquire {
        Acquire { permits: self.0.clone(), need: n, waiter: None, done: false }
    }

    /// `n` permits now, or nothing; never overtakes those who wait.
    pub fn try_acquire(&self, n: u64) -> Option<Permit> {
        if self.0.free.get() < n || !self.0.queue.borrow().is_empty() {
            return None;
        }
        self.0.free.set(self.0.free.get() - n);
        Some(Permit { permits: self.0.clone(), n })
    }

    /// Permits free now.
    pub fn available(&self) -> u64 {
        self.0.free.get()
    }

    /// Adds permits.
    pub fn add(&self, n: u64) {
        self.0.release(n);
    }
}

/// Permits held; dropping gives them back.
pub struct Permit {
    permits: Rc<Permits>,
    n: u64,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Permit").field(&self.n).finish()
    }
}

impl Permit {
    /// How many.
    pub fn count(&self) -> u64 {
        self.n
    }

    /// Splits `n` of them off.
    ///
    /// # Panics
    /// When it holds fewer.
    pub fn split(&mut self, n: u64) -> Permit {
        assert!(n <= self.n, "splitting {n} of {} permits", self.n);
        self.n -= n;
        Permit { permits: self.permits.clone(), n }
    }

    /// Adds another's permits of the same semaphore.
    ///
    /// # Panics
    /// When it is of another semaphore.
    pub fn merge(&mut self, mut other: Permit) {
        assert!(Rc::ptr_eq(&self.permits, &other.permits), "permits of two semaphores");
        self.n += std::mem::take(&mut other.n);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.n > 0 {
            self.permits.release(self.n);
        }
    }
}

/// See [`Semaphore::acquire`].
pub struct Acquire {
    permits: Rc<Permits>,
    need: u64,
    waiter: Option<Rc<Waiter>>,
    done: bool,
}

impl std::fmt::Debug for Acquire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Acquire").field(&self.need).finish()
    }
}

impl Future for Acquire {
    type Output = Permit;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        match &self.waiter {
            Some(waiter) if waiter.granted.get() => {}
            Some(waiter) => {
                *waiter.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            None => {
                let mut queue = self.permits.queue.borrow_mut();
                if !queue.is_empty() || self.permits.free.get() < self.need {
                    let waiter = Rc::new(Waiter {
                        need: self.need,
                        granted: Cell::new(false),
                        waker: RefCell::new(Some(cx.waker().clone())),
                    });
                    queue.push_back(waiter.clone());
                    drop(queue);
                    self.waiter = Some(waiter);
                    return Poll::Pending;
                }
                self.permits.free.set(self.permits.free.get() - self.need);
            }
        }
        self.done = true;
        Poll::Ready(Permit { permits: self.permits.clone(), n: self.need })
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take().filter(|_| !self.done) else { return };
        if waiter.granted.get() {
            self.permits.release(self.need);
        } else {
            self.permits.queue.borrow_mut().retain(|w| !Rc::ptr_eq(w, &waiter));
            // It may have kept smaller ones waiting.
            self.permits.grant();
        }
    }
}

/// A value that one task at a time may hold over awaits.
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

impl<T: std::fmt::Debug> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutex").field("value", &self.value).finish_non_exhaustive()
    }
}

impl<T> Mutex<T> {
    /// An unlocked one.
    pub fn new(value: T) -> Self {
        Self { turn: Semaphore::new(1), value: RefCell::new(value) }
    }

    /// Waits for its turn.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let permit = self.turn.acquire(1).await;
        MutexGuard { value: self.value.borrow_mut(), _permit: permit }
    }

    /// The lock now, or nothing.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let permit = self.turn.try_acquire(1)?;
        Some(MutexGuard { value: self.value.borrow_mut(), _permit: permit })
    }

    /// The value, when nobody else can hold it.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// A held [`Mutex`].
// Field order: the borrow ends before the next one's turn begins.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    value: RefMut<'a, T>,
    _permit: Permit,
}

impl<T> std::ops::Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Wakers waiting for one event.
#[derive(Default)]
struct Wakers(RefCell<Vec<Waker>>);

impl Wakers {
    fn add(&self, waker: &Waker) {
        let mut all = self.0.borrow_mut();
        if !all.iter().any(|w| w.will_wake(waker)) {
            all.push(waker.clone());
        }
    }

    fn wake_all(&self) {
        let all = std::mem::take(&mut *self.0.borrow_mut());
        all.into_iter().for_each(Waker::wake);
    }
}

/// Something changed: look again.
#[derive(Default)]
pub struct Notify {
    count: Cell<u64>,
    waiting: RefCell<Slab<Waker>>,
}

impl std::fmt::Debug for Notify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notify").field("count", &self.count.get()).finish_non_exhaustive()
    }
}

impl Notify {
    /// Nobody notified yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every wait that began before.
    pub fn notify_all(&self) {
        self.count.set(self.count.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Waits for a [`notify_all`](Self::notify_all) after this call (not after the first poll).
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, seen: self.count.get(), key: None }
    }

    /// Waits until `ready` holds, looking again at every notification.
    pub async fn wait_until(&self, mut ready: impl FnMut() -> bool) {
        loop {
            let changed = self.notified();
            if ready() {
                return;
            }
            changed.await;
        }
    }
}

/// See [`Notify::notified`].
#[derive(Debug)]
pub struct Notified<'a> {
    notify: &'a Notify,
    seen: u64,
    /// Its place among the waiting, good until the next notification.
    key: Option<usize>,
}

impl Future for Notified<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.notify.count.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiting = self.notify.waiting.borrow_mut();
        match self.key {
            Some(key) => waiting[key].clone_from(cx.waker()),
            None => {
                let key = waiting.insert(cx.waker().clone());
                drop(waiting);
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key.filter(|_| self.notify.count.get() == self.seen) else { return };
        let waker = self.notify.waiting.borrow_mut().remove(key);
        drop(waker);
    }
}

struct Queue<T> {
    items: RefCell<VecDeque<T>>,
    bound: usize,
    senders: Cell<usize>,
    receiving: Cell<bool>,
    not_full: Wakers,
    not_empty: Wakers,
}

/// Bounded queue: `send` waits while it is full, `try_send` gives the item back.
///
/// # Panics
/// With a bound of 0.
pub fn channel<T>(bound: usize) -> (Sender<T>, Receiver<T>) {
    assert!(bound > 0, "a queue of no length");
    let queue = Rc::new(Queue {
        items: RefCell::default(),
        bound,
        senders: Cell::new(1),
        receiving: Cell::new(true),
        not_full: Wakers::default(),
        not_empty: Wakers::default(),
    });
    (Sender(queue.clone()), Receiver(queue))
}

/// The writing end of [`channel`].
pub struct Sender<T>(Rc<Queue<T>>);

/// The reading end of [`channel`]; dropping it closes the queue and drops what is in it.
pub struct Receiver<T>(Rc<Queue<T>>);

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("len", &self.0.items.borrow().len()).finish_non_exhaustive()
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("len", &self.0.items.borrow().len()).finish_non_exhaustive()
    }
}

/// Why an item was not sent; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum SendError<T> {
    /// As many items wait as the bound allows.
    Full(T),
    /// Nobody will receive it.
    Closed(T),
}

impl<T> Sender<T> {
    /// Sends now or gives the item back.
    ///
    /// # Errors
    /// Full or closed.
    pub fn try_send(&self, item: T) -> Result<(), SendError<T>> {
        if !self.0.receiving.get() {
            return Err(SendError::Closed(item));
        }
        let mut items = self.0.items.borrow_mut();
        if items.len() >= self.0.bound {
            return Err(SendError::Full(item));
        }
        items.push_back(item);
        drop(items);
        self.0.not_empty.wake_all();
        Ok(())
    }

    /// Sends, waiting for room.
    ///
    /// # Errors
    /// The item, when nobody will receive it.
    pub async fn send(&self, item: T) -> Result<(), T> {
        let mut item = Some(item);
        poll_fn(|cx| match self.try_send(item.take().expect("polled after its end")) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(SendError::Closed(back)) => Poll::Ready(Err(back)),
            Err(SendError::Full(back)) => {
                item = Some(back);
                self.0.not_full.add(cx.waker());
                Poll::Pending
            }
        })
        .await
    }

    /// True when the receiver is gone.
    pub fn is_closed(&self) -> bool {
        !self.0.receiving.get()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.set(self.0.senders.get() + 1);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.senders.set(self.0.senders.get() - 1);
        if self.0.senders.get() == 0 {
            self.0.not_empty.wake_all();
        }
    }
}

impl<T> Receiver<T> {
    /// The next item, or None when it is empty and every sender is gone.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| match self.try_recv() {
            Some(item) => Poll::Ready(Some(item)),
            None if self.0.senders.get() == 0 => Poll::Ready(None),
            None => {
                self.0.not_empty.add(cx.waker());
                Poll::Pending
            }
        })
        .await
    }

    /// The next item, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        let item = self.0.items.borrow_mut().pop_front()?;
        self.0.not_full.wake_all();
        Some(item)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.receiving.set(false);
        let items = std::mem::take(&mut *self.0.items.borrow_mut());
        drop(items);
        self.0.not_full.wake_all();
    }
}

/// One value from one task to another.
pub fn oneshot<T>() -> (OneSender<T>, OneReceiver<T>) {
    let (tx, rx) = channel(1);
    (OneSender(tx), OneReceiver(rx))
}

/// The writing end of [`oneshot`].
#[derive(Debug)]
pub struct OneSender<T>(Sender<T>);

/// The reading end of [`oneshot`]: a future of the value, None when the sender was dropped.
#[derive(Debug)]
pub struct OneReceiver<T>(Receiver<T>);

impl<T> OneSender<T> {
    /// Sends.
    ///
    /// # Errors
    /// The value, when nobody waits for it.
    pub fn send(self, value: T) -> Result<(), T> {
        self.0.try_send(value).map_err(|e| match e {
            SendError::Full(v) | SendError::Closed(v) => v,
        })
    }

    /// True when nobody waits for it.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl<T> Future for OneReceiver<T> {
    type Output = Option<T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let recv = std::pin::pin!(self.0.recv());
        recv.poll(cx)
    }
}

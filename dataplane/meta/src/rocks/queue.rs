//! A bounded queue from async callers to blocking threads. Full means that the pusher waits.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

use futures_channel::oneshot;

/// How much may stand in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) items: usize,
    /// In the unit of [`Queue::push`]'s `weight`. One item may be heavier: it then stands alone.
    pub(super) weight: usize,
}

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    bound: Bound,
}

struct State<T> {
    items: VecDeque<(usize, T)>,
    weight: usize,
    /// Pushers that found no room. All are woken when some is made: one that was dropped meanwhile takes no turn away.
    waiters: Vec<oneshot::Sender<()>>,
    closed: bool,
}

impl<T> State<T> {
    fn has_room(&self, weight: usize, bound: Bound) -> bool {
        self.items.is_empty() || (self.items.len() < bound.items && self.weight + weight <= bound.weight)
    }
}

impl<T> Queue<T> {
    pub(super) fn new(bound: Bound) -> Self {
        let state = State { items: VecDeque::new(), weight: 0, waiters: Vec::new(), closed: false };
        Self { state: Mutex::new(state), ready: Condvar::new(), bound }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Puts `item` in as soon as there is room; hands it back once the queue is closed.
    pub(super) async fn push(&self, weight: usize, item: T) -> Result<(), T> {
        loop {
            let room = {
                let mut state = self.lock();
                if state.closed {
                    return Err(item);
                }
                if state.has_room(weight, self.bound) {
                    state.items.push_back((weight, item));
                    state.weight += weight;
                    drop(state);
                    self.ready.notify_one();
                    return Ok(());
                }
                let (sender, room) = oneshot::channel();
                state.waiters.push(sender);
                room
            };
            // A cancelled sender means closed: the next round sees it.
            let _ = room.await;
        }
    }

    /// Blocks for at least one item, then takes what is there up to `most`; nothing once closed and empty.
    pub(super) fn take(&self, most: Bound) -> Option<Vec<T>> {
        let mut state = self.lock();
        while state.items.is_empty() {
            if state.closed {
                return None;
            }
            state = self.ready.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        let (mut taken, mut sum) = (Vec::new(), 0);
        while let Some(&(weight, _)) = state.items.front() {
            if !taken.is_empty() && (taken.len() >= most.items || sum + weight > most.weight) {
                break;
            }
            sum += weight;
            taken.extend(state.items.pop_front().map(|(_, item)| item));
        }
        state.weight -= sum;
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        for waiter in waiters {
            let _ = waiter.send(());
        }
        Some(taken)
    }

    /// Refuses new items; what is queued is still taken.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiters.clear();
        drop(state);
        self.ready.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::block_on;

    #[test]
    fn a_full_queue_makes_pushers_wait_and_loses_nothing() {
        let queue = Arc::new(Queue::new(Bound { items: 2, weight: 100 }));
        let pushers: Vec<_> = (0..4)
            .map(|p| {
                let queue = queue.clone();
                std::thread::spawn(move || (0..100).for_each(|i| block_on(queue.push(60, p * 100 + i)).expect("open")))
            })
            .collect();
        let mut seen: Vec<u32> = Vec::new();
        while seen.len() < 400 {
            let taken = queue.take(Bound { items: 10, weight: 1000 }).expect("open");
            assert!(taken.len() <= 2, "weight bounds the queue");
            seen.extend(taken);
        }
        for pusher in pushers {
            pusher.join().expect("no panic");
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..400).collect::<Vec<_>>());
        queue.close();
        assert_eq!(block_on(queue.push(1, 7)), Err(7));
        assert_eq!(queue.take(Bound { items: 1, weight: 1 }), None);
    }
}

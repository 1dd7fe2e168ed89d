//! A split virtqueue (virtio 1.2, 2.7), the device's side.
//!
//! Promises: whatever the guest writes, [`Ring::pop`] and [`Ring::chain`] end after at most `size` (and, indirect, 1,024)
//! descriptors, touch no memory outside the guest's regions and never panic. A broken ring (an index that jumped, a head
//! that is no descriptor) is an error for good; a broken chain is an error of that one request.

use std::sync::Arc;

use super::memory::{GuestBytes, GuestMemory, MemoryError, View};

/// The longest queue we take.
pub const SIZE_MAX: u16 = 1024;
/// The longest indirect table, and so the most pieces of a request (IOV_MAX).
pub const INDIRECT_MAX: usize = 1024;
/// The most bytes of a request.
pub const REQUEST_BYTES_MAX: u64 = 256 << 20;

const DESC_BYTES: usize = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// The ring itself is broken: the queue stops.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Its size is not a power of two up to [`SIZE_MAX`].
    #[error("queue size {0} is not a power of two from 1 to {SIZE_MAX}")]
    Size(u32),
    /// A table is outside guest memory.
    #[error("a ring table is unusable")]
    Table(#[from] MemoryError),
    /// More heads are available than the queue has descriptors.
    #[error("the available index went from {from} to {to}, past the queue's size")]
    Jumped {
        /// Where we stood.
        from: u16,
        /// Where the guest says we are.
        to: u16,
    },
    /// A head is no descriptor's index.
    #[error("head {0} is past the queue's size")]
    Head(u16),
}

/// A chain is broken: the request fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It loops or is longer than the queue.
    #[error("the chain is longer than its table")]
    Long,
    /// A descriptor's `next` is no descriptor's index.
    #[error("descriptor {0} is past the table's end")]
    Next(u16),
    /// An indirect table of no or odd length, too long, nested, or with NEXT beside it.
    #[error("the indirect table is malformed: {0}")]
    Indirect(&'static str),
    /// A readable descriptor follows a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// All its bytes together are more than [`REQUEST_BYTES_MAX`].
    #[error("the request has more than {REQUEST_BYTES_MAX} bytes")]
    Bytes,
    /// An address is outside guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A request's bytes: what the device reads, then what it writes.
#[derive(Debug)]
pub struct Chain {
    /// Written by the driver.
    pub readable: GuestBytes,
    /// Written by the device.
    pub writable: GuestBytes,
}

/// Where a ring is: guest addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// A queue at work.
#[derive(Debug)]
pub struct Ring {
    size: u16,
    desc: View,
    avail: View,
    used: View,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    next_used: u16,
    /// `next_used` when the driver was last called, or asked whether it wants to be.
    signalled: u16,
}

struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    fn parse(raw: [u8; DESC_BYTES]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

impl Ring {
    /// A ring of `size` descriptors. The used index is taken from the used ring; the first head popped is `next_avail`.
    ///
    /// # Errors
    /// `Size`, `Table`.
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u32,
        at: Addresses,
        next_avail: u16,
        event_idx: bool,
        indirect: bool,
    ) -> Result<Self, RingError> {
        if !size.is_power_of_two() || size > u32::from(SIZE_MAX) {
            return Err(RingError::Size(size));
        }
        let n = size as usize;
        let tail = if event_idx { 2 } else { 0 };
        let desc = memory.view(at.desc, n * DESC_BYTES, 1)?;
        let avail = memory.view(at.avail, 4 + 2 * n + tail, 2)?;
        let used = memory.view(at.used, 4 + 8 * n + tail, 2)?;
        let next_used = used.load_u16(2);
        let size = size as u16;
        Ok(Self { size, desc, avail, used, event_idx, indirect, next_avail, next_used, signalled: next_used })
    }

    /// The same ring, at the same guest addresses, in another table of memory.
    ///
    /// # Errors
    /// `Table` when it is not in there.
    pub fn remapped(&self, memory: &Arc<GuestMemory>, at: Addresses) -> Result<Self, RingError> {
        let size = u32::from(self.size);
        let ring = Self::new(memory, size, at, self.next_avail, self.event_idx, self.indirect)?;
        Ok(Self { next_used: self.next_used, signalled: self.signalled, ..ring })
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }
    /// The head that is popped next.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }
    /// The used index as we publish it.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The next available head, if there is one.
    ///
    /// # Errors
    /// `Jumped`, `Head`: the queue must stop.
    pub fn pop(&mut self) -> Result<Option<u16>, RingError> {
        let to = self.avail.load_u16(2);
        let ready = to.wrapping_sub(self.next_avail);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.size {
            return Err(RingError::Jumped { from: self.next_avail, to });
        }
        let at = 4 + 2 * usize::from(self.next_avail % self.size);
        let head = u16::from_le_bytes(self.avail.read(at));
        if head >= self.size {
            return Err(RingError::Head(head));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// The bytes that the chain at `head` names.
    ///
    /// # Errors
    /// `ChainError`; the request is then completed with nothing written.
    pub fn chain(&self, memory: &Arc<GuestMemory>, head: u16) -> Result<Chain, ChainError> {
        let mut chain = Chain { readable: GuestBytes::new(memory.clone()), writable: GuestBytes::new(memory.clone()) };
        let mut at = head;
        for _ in 0..self.size {
            if at >= self.size {
                return Err(ChainError::Next(at));
            }
            let desc = Desc::parse(self.desc.read(usize::from(at) * DESC_BYTES));
            if desc.flags & F_INDIRECT != 0 {
                self.indirect(memory, &desc, &mut chain)?;
                return Ok(chain);
            }
            chain.push(&desc)?;
            if desc.flags & F_NEXT == 0 {
                return Ok(chain);
            }
            at = desc.next;
        }
        Err(ChainError::Long)
    }

    fn indirect(&self, memory: &Arc<GuestMemory>, desc: &Desc, chain: &mut Chain) -> Result<(), ChainError> {
        let n = desc.len as usize / DESC_BYTES;
        if !self.indirect {
            return Err(ChainError::Indirect("it was not negotiated"));
        }
        if desc.flags & F_NEXT != 0 {
            return Err(ChainError::Indirect("NEXT stands beside INDIRECT"));
        }
        if n == 0 || !(desc.len as usize).is_multiple_of(DESC_BYTES) || n > INDIRECT_MAX {
            return Err(ChainError::Indirect("its length is 0, odd or more than 1,024 descriptors"));
        }
        let table = memory.view(desc.addr, n * DESC_BYTES, 1)?;
        let mut at = 0;
        for _ in 0..n {
            if usize::from(at) >= n {
                return Err(ChainError::Next(at));
            }
            let desc = Desc::parse(table.read(usize::from(at) * DESC_BYTES));
            if desc.flags & F_INDIRECT != 0 {
                return Err(ChainError::Indirect("it is nested"));
            }
            chain.push(&desc)?;
            if desc.flags & F_NEXT == 0 {
                return Ok(());
            }
            at = desc.next;
        }
        Err(ChainError::Long)
    }

    /// Puts a completed request on the used ring; the driver sees it at [`publish`](Self::publish).
    pub fn push_used(&mut self, head: u16, len: u32) {
        let at = 4 + 8 * usize::from(self.next_used % self.size);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        self.used.write(at, element);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows everything pushed to the driver.
    pub fn publish(&mut self) {
        self.used.store_u16(2, self.next_used);
    }

    /// Whether the driver wants a call for what was published since it was last asked.
    pub fn wants_call(&mut self) -> bool {
        let old = std::mem::replace(&mut self.signalled, self.next_used);
        if old == self.next_used {
            return false;
        }
        // Our used index must be seen before we look at what the driver asked for.
        View::full_fence();
        if !self.event_idx {
            return self.avail.load_u16(0) & AVAIL_NO_INTERRUPT == 0;
        }
        let event = self.avail.load_u16(4 + 2 * usize::from(self.size));
        need_event(event, self.next_used, old)
    }

    /// Asks for kicks (before sleeping). True when more became available meanwhile: look again instead.
    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.used.store_u16(4 + 8 * usize::from(self.size), self.next_avail);
        } else {
            self.used.store_u16(0, 0);
        }
        View::full_fence();
        self.avail.load_u16(2) != self.next_avail
    }

    /// Asks for no kicks while we look anyway. With event indexes the last one asked for simply lies behind.
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            self.used.store_u16(0, USED_NO_NOTIFY);
        }
    }
}

impl Chain {
    fn push(&mut self, desc: &Desc) -> Result<(), ChainError> {
        let writable = desc.flags & F_WRITE != 0;
        if !writable && !self.writable.is_empty() {
            return Err(ChainError::Order);
        }
        if self.readable.len() + self.writable.len() + u64::from(desc.len) > REQUEST_BYTES_MAX {
            return Err(ChainError::Bytes);
        }
        let to = if writable { &mut self.writable } else { &mut self.readable };
        Ok(to.push(desc.addr, u64::from(desc.len))?)
    }
}

/// virtio 1.2, 2.7.7.2: whether going from `old` to `new` passes what `event` asked for.
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::super::memory::Region;
    use super::*;

    const AT: Addresses = Addresses { desc: 0x1000, avail: 0x2000, used: 0x3000 };
    const SIZE: u16 = 8;

    struct Guest {
        memory: Arc<GuestMemory>,
        avail: u16,
    }

    impl Guest {
        fn new() -> Self {
            let memory = GuestMemory::new(vec![Arc::new(Region::anonymous(0, 0x10000).unwrap())]).unwrap();
            Self { memory, avail: 0 }
        }
        fn ring(&self, event_idx: bool) -> Ring {
            Ring::new(&self.memory, SIZE.into(), AT, 0, event_idx, true).unwrap()
        }
        fn desc_at(&self, table: u64, i: u64, addr: u64, len: u32, flags: u16, next: u16) {
            let mut d = addr.to_le_bytes().to_vec();
            d.extend(len.to_le_bytes());
            d.extend(flags.to_le_bytes());
            d.extend(next.to_le_bytes());
            self.memory.write(table + 16 * i, &d).unwrap();
        }
        fn desc(&self, i: u64, addr: u64, len: u32, flags: u16, next: u16) {
            self.desc_at(AT.desc, i, addr, len, flags, next);
        }
        fn offer(&mut self, head: u16) {
            let at = AT.avail + 4 + 2 * u64::from(self.avail % SIZE);
            self.memory.write(at, &head.to_le_bytes()).unwrap();
            self.avail = self.avail.wrapping_add(1);
            self.memory.write(AT.avail + 2, &self.avail.to_le_bytes()).unwrap();
        }
        fn u16_at(&self, at: u64) -> u16 {
            let mut b = [0; 2];
            self.memory.read(at, &mut b).unwrap();
            u16::from_le_bytes(b)
        }
    }

    #[test]
    fn a_chain_comes_out_as_it_was_put_in() {
        let mut g = Guest::new();
        g.desc(3, 0x4000, 16, F_NEXT, 5);
        g.desc(5, 0x5000, 4096, F_NEXT | F_WRITE, 0);
        g.desc(0, 0x6000, 1, F_WRITE, 7);
        g.offer(3);
        let mut ring = g.ring(false);
        let head = ring.pop().unwrap().unwrap();
        assert_eq!((head, ring.pop()), (3, Ok(None)));
        let chain = ring.chain(&g.memory, head).unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (16, 4097));
        // The same through an indirect table.
        g.desc_at(0x7000, 0, 0x4000, 16, F_NEXT, 1);
        g.desc_at(0x7000, 1, 0x5000, 4097, F_WRITE, 9);
        g.desc(1, 0x7000, 32, F_INDIRECT, 0);
        let chain = ring.chain(&g.memory, 1).unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (16, 4097));
        ring.push_used(head, 4097);
        assert_eq!(g.u16_at(AT.used + 2), 0, "not before publish");
        ring.publish();
        assert_eq!(g.u16_at(AT.used + 2), 1);
        assert!(ring.wants_call() && !ring.wants_call());
    }

    fn broken(build: impl Fn(&Guest)) -> ChainError {
        let g = Guest::new();
        build(&g);
        g.ring(false).chain(&g.memory, 0).expect_err("a broken chain")
    }

    #[test]
    fn hostile_chains_end_in_an_error() {
        let loops = broken(|g| {
            g.desc(0, 0x4000, 1, F_NEXT, 1);
            g.desc(1, 0x4000, 1, F_NEXT, 0);
        });
        assert_eq!(loops, ChainError::Long);
        assert_eq!(broken(|g| g.desc(0, 0x4000, 16, F_NEXT, 8)), ChainError::Next(8));
        assert!(matches!(broken(|g| g.desc(0, 0x10000, 16, 0, 0)), ChainError::Memory(_)));
        assert!(matches!(broken(|g| g.desc(0, 0xfff8, 16, 0, 0)), ChainError::Memory(_)));
        assert!(matches!(broken(|g| g.desc(0, u64::MAX, 16, F_WRITE, 0)), ChainError::Memory(_)));
        assert!(matches!(broken(|g| g.desc(0, 0x0, u32::MAX, F_WRITE, 0)), ChainError::Bytes));
        let order = broken(|g| {
            g.desc(0, 0x4000, 1, F_NEXT | F_WRITE, 1);
            g.desc(1, 0x4000, 1, 0, 0);
        });
        assert_eq!(order, ChainError::Order);
        for (len, flags) in [(0, 0), (15, 0), (16 * 1025, 0), (16, F_NEXT)] {
            let e = broken(|g| g.desc(0, 0x4000, len, F_INDIRECT | flags, 1));
            assert!(matches!(e, ChainError::Indirect(_)), "{len} {flags}: {e:?}");
        }
        let nested = broken(|g| {
            g.desc(0, 0x4000, 16, F_INDIRECT, 0);
            g.desc_at(0x4000, 0, 0x4000, 16, F_INDIRECT, 0);
        });
        assert!(matches!(nested, ChainError::Indirect(_)));
        let looping = broken(|g| {
            g.desc(0, 0x4000, 32, F_INDIRECT, 0);
            g.desc_at(0x4000, 0, 0x5000, 1, F_NEXT, 1);
            g.desc_at(0x4000, 1, 0x5000, 1, F_NEXT, 0);
        });
        assert_eq!(looping, ChainError::Long);
    }

    #[test]
    fn hostile_rings_are_refused_or_stop() {
        let g = Guest::new();
        for size in [0, 3, 2048, u32::MAX] {
            assert!(matches!(Ring::new(&g.memory, size, AT, 0, true, true), Err(RingError::Size(_))), "{size}");
        }
        for at in [
            Addresses { desc: 0xfff8, ..AT },
            Addresses { avail: 0xffff, ..AT },
            Addresses { avail: 0x2001, ..AT },
            Addresses { used: u64::MAX, ..AT },
        ] {
            assert!(matches!(Ring::new(&g.memory, 8, at, 0, true, true), Err(RingError::Table(_))), "{at:?}");
        }
        let mut ring = g.ring(false);
        g.memory.write(AT.avail + 2, &9u16.to_le_bytes()).unwrap();
        assert_eq!(ring.pop(), Err(RingError::Jumped { from: 0, to: 9 }));
        g.memory.write(AT.avail + 2, &1u16.to_le_bytes()).unwrap();
        g.memory.write(AT.avail + 4, &8u16.to_le_bytes()).unwrap();
        assert_eq!(ring.pop(), Err(RingError::Head(8)));
    }

    #[test]
    fn event_indexes_say_when_to_call_and_kick() {
        let mut g = Guest::new();
        let mut ring = g.ring(true);
        assert!(!ring.enable_kicks());
        g.offer(0);
        assert_eq!(ring.pop(), Ok(Some(0)));
        g.offer(1);
        assert!(ring.enable_kicks(), "something came meanwhile");
        assert_eq!(g.u16_at(AT.used + 4 + 8 * u64::from(SIZE)), 1);
        // The driver wants a call only once used passes 1.
        g.memory.write(AT.avail + 4 + 2 * u64::from(SIZE), &1u16.to_le_bytes()).unwrap();
        ring.push_used(0, 1);
        ring.publish();
        assert!(!ring.wants_call());
        ring.push_used(1, 1);
        ring.publish();
        assert!(ring.wants_call());
        assert!(need_event(65535, 0, 65535) && !need_event(0, 0, 65535) && need_event(0, 1, 0));
    }
}

//! One vhost-user connection: the protocol's state, on the control thread. Every change of a queue or of memory is a
//! command to the core, answered before the front end is.
//!
//! A ring's life (specification, "Ring states"), with PROTOCOL_FEATURES:
//!
//! ```text
//! stopped --SET_VRING_KICK--> started, disabled --SET_VRING_ENABLE 1--> running
//!    ^                                                  | ENABLE 0: drained, its place kept
//!    +--------------- GET_VRING_BASE: drained ----------+
//! ```

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, Weak, mpsc as std_mpsc};

use futures_channel::mpsc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::queue::{Command, Setup};
use crate::virtio::block::{Device, feature};
use crate::virtio::inflight::{self, Inflight};
use crate::virtio::memory::{GuestMemory, Region, memfd, sealed};
use crate::virtio::ring::{Addresses, SIZE_MAX};

/// Memory regions that we take at most: what QEMU uses at most.
const MEMORY_SLOTS: usize = 509;

/// Serves a connection until it ends. Answers why it did.
pub(super) fn serve(stream: UnixStream, device: Arc<Device>, core: mpsc::UnboundedSender<Command>) -> String {
    let queues = (0..device.queues()).map(|_| Queue::default()).collect();
    let session = Session {
        device,
        core,
        regions: Vec::new(),
        memory: GuestMemory::new(Vec::new()).unwrap_or_default(),
        queues,
        protocol: 0,
        inflight: None,
        pinner: None,
        wanted: Vec::new(),
    };
    let session = Arc::new(Mutex::new(session));
    let mut handler = BackendReqHandler::from_stream(stream, session.clone());
    let why = loop {
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::SocketRetry(_)) => {}
            Err(Error::Disconnected) => break "it disconnected".to_owned(),
            Err(e) => break e.to_string(),
        }
    };
    let mut session = session.lock().unwrap_or_else(|e| e.into_inner());
    session.stop_all();
    // The core lets go of what it borrowed of this memory; when it is gone, so is that.
    let _ = session.set_regions(Vec::new());
    session.device.reset();
    why
}

struct Session {
    device: Arc<Device>,
    core: mpsc::UnboundedSender<Command>,
    regions: Vec<Arc<Region>>,
    memory: Arc<GuestMemory>,
    queues: Vec<Queue>,
    protocol: u64,
    inflight: Option<(File, VhostUserInflight)>,
    /// Pins regions, one after the other, while requests go on.
    pinner: Option<std_mpsc::Sender<(Arc<Region>, Weak<()>)>>,
    /// What of the table the pinner was given; it stops at what is taken away again.
    wanted: Vec<(Arc<Region>, Arc<()>)>,
}

#[derive(Default)]
struct Queue {
    size: u32,
    base: u16,
    /// As given: the front end's addresses.
    user: Option<Addresses>,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    enabled: bool,
    running: bool,
}

/// A thread that pins regions and lends them to the core, until the sender is gone or something cannot be pinned.
fn pinner(core: mpsc::UnboundedSender<Command>) -> std_mpsc::Sender<(Arc<Region>, Weak<()>)> {
    let (send, receive) = std_mpsc::channel::<(Arc<Region>, Weak<()>)>();
    let work = move || {
        for (region, wanted) in receive {
            let wanted = || wanted.strong_count() > 0;
            if !wanted() {
                continue;
            }
            let pinned = region.pin(|pinned| {
                let lend = Command::Lend { region: region.clone(), pinned };
                core.unbounded_send(lend).is_ok() && wanted()
            });
            if let Err(e) = pinned {
                tracing::warn!(bytes = region.len, error = %e, "guest memory is not pinned: requests go on without");
                return;
            }
        }
    };
    // Without a thread the sender finds nobody, which is how it is without pinning.
    let _ = std::thread::Builder::new().name("pin-memory".into()).spawn(work);
    send
}

fn internal(e: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(std::io::Error::other(e.to_string()))
}

impl Session {
    /// Sends a command to the core and waits for what it answers.
    fn ask<T>(&self, command: impl FnOnce(std_mpsc::SyncSender<T>) -> Command) -> Result<T> {
        let (send, receive) = std_mpsc::sync_channel(1);
        self.core.unbounded_send(command(send)).map_err(|_| Error::BackendInternalError)?;
        receive.recv().map_err(|_| Error::BackendInternalError)
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue> {
        self.queues.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn acked(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol & feature.bits() != 0
    }

    /// Replaces the table; running queues go on with the new one.
    fn set_regions(&mut self, regions: Vec<Arc<Region>>) -> Result<()> {
        let memory = GuestMemory::new(regions.clone()).map_err(internal)?;
        self.ask(|reply| Command::Memory { memory: memory.clone(), reply })?;
        if self.device.pins() {
            let known = |region: &Arc<Region>| self.regions.iter().any(|r| Arc::ptr_eq(r, region));
            let new: Vec<_> = regions.iter().filter(|r| !known(r)).cloned().collect();
            self.wanted.retain(|(region, _)| regions.iter().any(|r| Arc::ptr_eq(r, region)));
            let pinner = self.pinner.get_or_insert_with(|| pinner(self.core.clone()));
            for region in new {
                let wanted = Arc::new(());
                // A pinner that could not start or has given up: requests go on as they do without.
                drop(pinner.send((region.clone(), Arc::downgrade(&wanted))));
                self.wanted.push((region, wanted));
            }
        }
        self.regions = regions;
        self.memory = memory;
        Ok(())
    }

    /// Refuses a file that its owner could shorten under our mapping.
    fn check_sealed(&self, what: &str, file: &File) -> Result<()> {
        if self.device.trusts() || sealed(file) {
            return Ok(());
        }
        Err(internal(format!(
            "{what} could shrink: it must be a memfd sealed with F_SEAL_SHRINK (memory-backend-memfd)"
        )))
    }

    fn map(&self, region: &VhostUserMemoryRegion, file: &File) -> Result<Arc<Region>> {
        let r = region;
        self.check_sealed("guest memory", file)?;
        let mapped = Region::map(file, r.mmap_offset, r.guest_phys_addr, r.user_addr, r.memory_size);
        mapped.map(Arc::new).map_err(internal)
    }

    /// Starts a queue that has all it needs and may run.
    fn start_if_ready(&mut self, index: usize) -> Result<()> {
        let has_states = self.device.has(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits());
        let inflight =
            self.acked(VhostUserProtocolFeatures::INFLIGHT_SHMFD).then_some(self.inflight.as_ref()).flatten();
        let memory = &self.memory;
        let queue = &self.queues[index];
        let (Some(user), Some(kick)) = (queue.user, &queue.kick) else { return Ok(()) };
        if queue.running || queue.size == 0 || (has_states && !queue.enabled) {
            return Ok(());
        }
        let guest = |user: u64| {
            memory.guest_of_user(user).ok_or_else(|| internal(format!("ring address {user:#x} is in no memory region")))
        };
        let at = Addresses { desc: guest(user.desc)?, avail: guest(user.avail)?, used: guest(user.used)? };
        let inflight = match inflight {
            Some((file, m)) if index < usize::from(m.num_queues) => {
                if queue.size != u32::from(m.queue_size) {
                    return Err(internal(format!("queue size {} is not the in-flight region's", queue.size)));
                }
                Some(Inflight::open(file, m.mmap_offset, index as u16, m.queue_size).map_err(internal)?)
            }
            _ => None,
        };
        let own = |file: &File| file.try_clone().map_err(internal);
        let setup = Setup {
            size: queue.size,
            at,
            base: queue.base,
            event_idx: self.device.has(feature::EVENT_IDX),
            indirect: self.device.has(feature::INDIRECT_DESC),
            memory: memory.clone(),
            kick: own(kick)?,
            call: queue.call.as_ref().map(own).transpose()?,
            err: queue.err.as_ref().map(own).transpose()?,
            inflight,
        };
        self.ask(|reply| Command::Start { index, setup: Box::new(setup), reply })?.map_err(internal)?;
        self.queues[index].running = true;
        Ok(())
    }

    /// Ends a queue after its last request; its next available index.
    fn stop(&mut self, index: usize) -> Result<u16> {
        if self.queues[index].running {
            let base = self.ask(|reply| Command::Stop { index, reply })?;
            let queue = &mut self.queues[index];
            queue.running = false;
            queue.base = base;
        }
        Ok(self.queues[index].base)
    }

    fn stop_all(&mut self) {
        for index in 0..self.queues.len() {
            if self.stop(index).is_err() {
                return;
            }
        }
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }
    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }
    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        for queue in &mut self.queues {
            *queue = Queue::default();
        }
        self.device.reset();
        Ok(())
    }
    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_features()?;
        // LOG_ALL (bit 26) comes with live migration, which a local disk does not take part in.
        if features & !offered != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.device.acknowledge(features);
        Ok(())
    }
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        use VhostUserProtocolFeatures as P;
        Ok(P::MQ | P::CONFIG | P::REPLY_ACK | P::INFLIGHT_SHMFD | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE)
    }
    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol = features;
        Ok(())
    }
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mapped = regions.iter().zip(&files).map(|(r, f)| self.map(r, f)).collect::<Result<Vec<_>>>()?;
        self.set_regions(mapped)?;
        Ok(None)
    }
    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_SLOTS as u64)
    }
    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.regions.len() >= MEMORY_SLOTS {
            return Err(Error::InvalidParam);
        }
        let mut regions = self.regions.clone();
        regions.push(self.map(region, &file)?);
        self.set_regions(regions)?;
        Ok(None)
    }
    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, user, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let mut regions = self.regions.clone();
        regions.retain(|r| (r.guest, r.user, r.len) != (guest, user, len));
        if regions.len() == self.regions.len() {
            return Err(Error::InvalidParam);
        }
        self.set_regions(regions)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        if !num.is_power_of_two() || num > u32::from(SIZE_MAX) {
            return Err(Error::InvalidParam);
        }
        self.queue(index)?.size = num;
        Ok(())
    }
    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.queue(index)?.user = Some(Addresses { desc: descriptor, avail: available, used });
        self.start_if_ready(index as usize)
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.queue(index)?.base = base;
        Ok(())
    }
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.queue(index)?;
        let base = self.stop(index as usize)?;
        let queue = self.queue(index)?;
        (queue.kick, queue.call) = (None, None);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // Without an fd the front end wants to be polled, which nobody uses.
        let fd = fd.ok_or(Error::InvalidParam)?;
        self.queue(index.into())?;
        self.stop(index.into())?;
        self.queue(index.into())?.kick = Some(fd);
        self.start_if_ready(index.into())
    }
    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.queue(index.into())?.call = fd;
        let queue = &self.queues[usize::from(index)];
        if queue.running {
            let call = queue.call.as_ref().map(|f| f.try_clone()).transpose().map_err(internal)?;
            self.ask(|reply| Command::Call { index: index.into(), call, reply })?;
        }
        Ok(())
    }
    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.queue(index.into())?.err = fd;
        Ok(())
    }
    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.enabled = enable;
        if enable {
            return self.start_if_ready(index as usize);
        }
        self.stop(index as usize).map(drop)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = self.device.config();
        // What we do not fill reads as zeros: later fields belong to features that we do not offer.
        Ok((offset..offset.saturating_add(size)).map(|at| config.get(at as usize).copied().unwrap_or(0)).collect())
    }
    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("nothing of the configuration may be written"))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        if queues == 0 || usize::from(queues) > self.queues.len() || !size.is_power_of_two() || size > SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        let bytes = (inflight::queue_bytes(size) * usize::from(queues)).next_multiple_of(4096) as u64;
        let file = memfd(c"karri-inflight", bytes).map_err(internal)?;
        let answer = VhostUserInflight::new(bytes, 0, queues, size);
        self.inflight = Some((file.try_clone().map_err(internal)?, answer));
        Ok((answer, file))
    }
    fn set_inflight_fd(&mut self, region: &VhostUserInflight, file: File) -> Result<()> {
        let (queues, size) = (region.num_queues, region.queue_size);
        let need = (inflight::queue_bytes(size) * usize::from(queues)) as u64;
        let aligned = region.mmap_offset.is_multiple_of(64);
        let fits = aligned && need <= region.mmap_size && size.is_power_of_two() && size <= SIZE_MAX;
        if queues == 0 || usize::from(queues) > self.queues.len() || !fits {
            return Err(Error::InvalidParam);
        }
        self.check_sealed("the in-flight region", &file)?;
        self.inflight = Some((file, *region));
        Ok(())
    }

    // What we do not offer.
    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("not a GPU"))
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no device state"))
    }
    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no device state"))
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory"))
    }
    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("no dirty log"))
    }
}

//! A hypervisor in memory: for tests, and for scale runs of everything above it (`--hypervisor fake`).
//!
//! It is deterministic and takes no time. Machines live in a [`World`], which outlives the [`Fake`] as QEMUs outlive a
//! node; a process that ends takes its world along. A guest prints what karri's own guest prints.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use karri_base::id::{InstanceId, VolumeId};
use tokio::sync::watch;

use super::hypervisor::{
    CONSOLE_BYTES, DISKS_MAX, Description, Ended, Hypervisor, HypervisorError, VmDisk, VmSpec, VmStatus,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Starts fail.
    pub start_fails: bool,
    /// Plugging fails.
    pub plug_fails: bool,
    /// Guests hold on to their disks.
    pub guest_holds_disks: bool,
    /// Guests do not hear the power button.
    pub guest_ignores_power_button: bool,
}

#[derive(Debug)]
struct Machine {
    volumes: BTreeMap<VolumeId, VmDisk>,
    console: Vec<u8>,
    ended: Option<Ended>,
}

#[derive(Debug, Default)]
struct Inner {
    machines: BTreeMap<InstanceId, Machine>,
    faults: Faults,
}

/// All machines there are. Clones share them.
#[derive(Debug, Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Default for World {
    fn default() -> Self {
        Self { inner: Arc::default(), changes: Arc::new(watch::channel(0).0) }
    }
}

impl World {
    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Switches faults on and off.
    pub fn set_faults(&self, faults: Faults) {
        self.locked().faults = faults;
    }

    /// Ends a machine as its guest or an accident would.
    pub fn end(&self, instance: &InstanceId, ended: Ended) {
        let mut inner = self.locked();
        if let Some(machine) = inner.machines.get_mut(instance).filter(|m| m.ended.is_none()) {
            machine.ended = Some(ended);
            machine.volumes.clear();
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// Lets a guest print something.
    pub fn print(&self, instance: &InstanceId, text: &str) {
        if let Some(machine) = self.locked().machines.get_mut(instance) {
            machine.print(text);
        }
    }
}

impl Machine {
    fn print(&mut self, text: &str) {
        self.console.extend_from_slice(text.as_bytes());
        let surplus = self.console.len().saturating_sub(CONSOLE_BYTES);
        self.console.drain(..surplus);
    }
}

/// The hypervisor.
#[derive(Debug, Default)]
pub struct Fake {
    world: World,
}

impl Fake {
    /// A hypervisor over `world`.
    pub fn over(world: World) -> Self {
        Self { world }
    }

    fn with_running<T>(
        &self,
        instance: &InstanceId,
        act: impl FnOnce(&mut Machine, Faults) -> T,
    ) -> Result<T, HypervisorError> {
        let mut inner = self.world.locked();
        let faults = inner.faults;
        match inner.machines.get_mut(instance).filter(|m| m.ended.is_none()) {
            Some(machine) => Ok(act(machine, faults)),
            None => Err(HypervisorError::NotRunning { instance: instance.clone() }),
        }
    }
}

#[async_trait]
impl Hypervisor for Fake {
    fn describe(&self) -> Description {
        Description { name: "fake", accelerator: "none", real: false }
    }

    async fn adopt(&self) -> Result<Vec<InstanceId>, HypervisorError> {
        Ok(self.world.locked().machines.keys().cloned().collect())
    }

    async fn start(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        if self.with_running(&spec.instance, |_, _| ()).is_ok() {
            return Ok(());
        }
        let mut inner = self.world.locked();
        if inner.faults.start_fails {
            let why = "it was asked to fail".to_owned();
            return Err(HypervisorError::Failed { instance: spec.instance.clone(), op: "starting", why });
        }
        if spec.disks.len() > DISKS_MAX {
            let why = format!("{} disks are more than the {DISKS_MAX} that fit", spec.disks.len());
            return Err(HypervisorError::Invalid { instance: spec.instance.clone(), why });
        }
        let volumes = spec.disks.iter().map(|d| (d.volume.clone(), d.clone())).collect();
        let mut machine = Machine { volumes, console: Vec::new(), ended: None };
        machine.print(&format!("karri guest ready: instance {} kernel fake\n", spec.instance));
        inner.machines.insert(spec.instance.clone(), machine);
        Ok(())
    }

    async fn status(&self, instance: &InstanceId) -> VmStatus {
        match self.world.locked().machines.get(instance) {
            None => VmStatus::Absent,
            Some(Machine { ended: Some(reason), .. }) => VmStatus::Gone { reason: reason.clone() },
            Some(machine) => VmStatus::Running { volumes: machine.volumes.keys().cloned().collect() },
        }
    }

    async fn press_power_button(&self, instance: &InstanceId) -> Result<(), HypervisorError> {
        let hears = self.with_running(instance, |machine, faults| {
            if !faults.guest_ignores_power_button {
                machine.print("karri guest: power button, going down\nkarri guest: down\n");
            }
            !faults.guest_ignores_power_button
        })?;
        if hears {
            self.world.end(instance, Ended::Guest);
        }
        Ok(())
    }

    async fn reboot(&self, instance: &InstanceId, _: Duration) -> Result<(), HypervisorError> {
        let text = format!("karri guest ready: instance {instance} kernel fake\n");
        self.with_running(instance, |machine, _| machine.print(&text))
    }

    async fn kill(&self, instance: &InstanceId) -> Result<(), HypervisorError> {
        self.world.end(instance, Ended::Killed);
        Ok(())
    }

    async fn wait_gone(&self, instance: &InstanceId, at_most: Duration) -> bool {
        let mut changes = self.changes();
        let gone = changes.wait_for(|_| self.with_running(instance, |_, _| ()).is_err());
        tokio::time::timeout(at_most, gone).await.is_ok()
    }

    async fn plug(&self, instance: &InstanceId, disk: &VmDisk) -> Result<(), HypervisorError> {
        self.with_running(instance, |machine, faults| {
            let failed = |why: &str| HypervisorError::Failed {
                instance: instance.clone(),
                op: "plugging a disk",
                why: why.to_owned(),
            };
            if machine.volumes.contains_key(&disk.volume) {
                return Ok(());
            }
            if faults.plug_fails {
                return Err(failed("it was asked to fail"));
            }
            if machine.volumes.len() == DISKS_MAX {
                let why = format!("volume {} does not fit: all {DISKS_MAX} disk slots are taken", disk.volume);
                return Err(HypervisorError::Invalid { instance: instance.clone(), why });
            }
            let name = (b'a' + machine.volumes.len() as u8) as char;
            machine.volumes.insert(disk.volume.clone(), disk.clone());
            machine.print(&format!("karri guest: disk vd{name} appeared, 0 bytes\n"));
            Ok(())
        })?
    }

    async fn unplug(
        &self,
        instance: &InstanceId,
        volume: &VolumeId,
        patience: Duration,
    ) -> Result<(), HypervisorError> {
        self.with_running(instance, |machine, faults| {
            if !machine.volumes.contains_key(volume) {
                return Ok(());
            }
            if faults.guest_holds_disks {
                return Err(HypervisorError::TimedOut {
                    instance: instance.clone(),
                    op: "unplugging a disk",
                    patience,
                    hint: "the guest holds on to it",
                });
            }
            machine.volumes.remove(volume);
            let name = (b'a' + machine.volumes.len() as u8) as char;
            machine.print(&format!("karri guest: disk vd{name} gone\n"));
            Ok(())
        })?
    }

    async fn console(&self, instance: &InstanceId) -> Vec<u8> {
        self.world.locked().machines.get(instance).map(|m| m.console.clone()).unwrap_or_default()
    }

    async fn forget(&self, instance: &InstanceId) -> Result<(), HypervisorError> {
        let mut inner = self.world.locked();
        if inner.machines.get(instance).is_some_and(|m| m.ended.is_none()) {
            return Err(HypervisorError::Invalid { instance: instance.clone(), why: "it still runs".into() });
        }
        inner.machines.remove(instance);
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.world.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::conformance::{self, Bench};

    struct Memory(World);

    impl Bench for Memory {
        fn open(&self) -> Arc<dyn Hypervisor> {
            Arc::new(Fake::over(self.0.clone()))
        }
        fn spec(&self) -> VmSpec {
            conformance::plain_spec()
        }
        fn disk(&self) -> VmDisk {
            VmDisk { volume: VolumeId::from_bits(0xd), socket: "/none/d.sock".into() }
        }
    }

    #[tokio::test]
    async fn the_suite_holds() {
        conformance::check(&Memory(World::default())).await;
    }

    #[tokio::test]
    async fn faults_can_be_switched_on() {
        let world = World::default();
        let fake = Fake::over(world.clone());
        let spec = conformance::plain_spec();
        world.set_faults(Faults { start_fails: true, ..Faults::default() });
        assert!(fake.start(&spec).await.is_err());
        assert_eq!(fake.status(&spec.instance).await, VmStatus::Absent);
        world.set_faults(Faults { guest_ignores_power_button: true, guest_holds_disks: true, ..Faults::default() });
        fake.start(&spec).await.unwrap();
        fake.press_power_button(&spec.instance).await.unwrap();
        assert!(!fake.wait_gone(&spec.instance, Duration::from_millis(1)).await);
        let volume = &spec.disks[0].volume;
        let held = fake.unplug(&spec.instance, volume, Duration::from_millis(1)).await;
        assert!(matches!(held, Err(HypervisorError::TimedOut { .. })), "{held:?}");
        world.end(&spec.instance, Ended::Crashed { why: "a test".into() });
        assert!(fake.wait_gone(&spec.instance, Duration::from_millis(1)).await);
    }
}

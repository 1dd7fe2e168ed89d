//! The node role: one host's virtual machines.
//!
//! | module | holds |
//! |---|---|
//! | [`hypervisor`] | the `Hypervisor` seam |
//! | [`qemu`] | QEMU over QMP behind it |
//! | [`fake`] | its twin in memory |

pub mod fake;
pub mod hypervisor;
pub mod qemu;

#[cfg(test)]
mod conformance;

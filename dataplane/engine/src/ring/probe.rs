//! What this kernel and container allow, found out before anything is started, and said in words that help.

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, Probe, opcode};

use super::RingOptions;
use crate::error::EngineError;

/// Optional features that this machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Waiting does not count as iowait (Linux 6.15).
    pub no_iowait: bool,
    /// Waiting for several completions with a shorter limit for the first (Linux 6.12).
    pub min_timeout: bool,
    /// Vectored I/O on registered memory (Linux 6.15).
    pub fixed_vectors: bool,
    /// Zero-copy sendmsg (Linux 6.1).
    pub send_zc: bool,
}

fn unsupported(why: impl Into<String>, fix: impl Into<String>, source: Option<io::Error>) -> EngineError {
    EngineError::Unsupported { why: why.into(), fix: fix.into(), source }
}

pub(super) fn build(options: &RingOptions) -> Result<IoUring, EngineError> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(options.entries * 4)
        .dontfork();
    builder.build(options.entries).map_err(refusal)
}

/// Why io_uring_setup said no, and what to change.
fn refusal(error: io::Error) -> EngineError {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let disabled = disabled.trim();
    match error.raw_os_error() {
        Some(libc::EPERM) if disabled == "2" => unsupported(
            "kernel.io_uring_disabled is 2 (off for everyone)",
            "sysctl kernel.io_uring_disabled=0",
            Some(error),
        ),
        Some(libc::EPERM) if disabled == "1" => unsupported(
            "kernel.io_uring_disabled is 1 (only for CAP_SYS_ADMIN or members of kernel.io_uring_group)",
            "run as root, add this user's group as kernel.io_uring_group, or sysctl kernel.io_uring_disabled=0",
            Some(error),
        ),
        Some(libc::EPERM | libc::EACCES) => unsupported(
            "a seccomp or LSM policy forbids io_uring_setup, as container runtimes do by default",
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile \
             (docker: --security-opt seccomp=PROFILE)",
            Some(error),
        ),
        Some(libc::ENOSYS) => unsupported(
            "this kernel has no io_uring, or seccomp hides it",
            "use Linux 6.1 or newer built with CONFIG_IO_URING, or allow io_uring in the seccomp profile",
            Some(error),
        ),
        Some(libc::EINVAL) => {
            unsupported("this kernel lacks SINGLE_ISSUER and DEFER_TASKRUN", "use Linux 6.1 or newer", Some(error))
        }
        Some(libc::ENOMEM) => unsupported(
            "there is not enough lockable memory for the ring",
            "raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK= of the systemd unit) to 64 MiB or more",
            Some(error),
        ),
        Some(libc::EMFILE | libc::ENFILE) => {
            unsupported("no more files may be opened", "raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)", Some(error))
        }
        _ => unsupported("io_uring_setup failed", "see the kernel's log", Some(error)),
    }
}

pub(super) fn check(uring: &IoUring) -> Result<Features, EngineError> {
    let params = uring.params();
    let newer = || "use Linux 6.1 or newer".to_owned();
    for (has, what) in [
        (params.is_feature_nodrop(), "NODROP"),
        (params.is_feature_submit_stable(), "SUBMIT_STABLE"),
        (params.is_feature_ext_arg(), "EXT_ARG"),
        (params.is_feature_fast_poll(), "FAST_POLL"),
    ] {
        if !has {
            return Err(unsupported(format!("the kernel lacks the feature {what}"), newer(), None));
        }
    }
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(EngineError::io("ask the ring what it supports"))?;
    for (code, what) in [
        (opcode::Read::CODE, "READ"),
        (opcode::Write::CODE, "WRITE"),
        (opcode::Readv::CODE, "READV"),
        (opcode::Writev::CODE, "WRITEV"),
        (opcode::ReadFixed::CODE, "READ_FIXED"),
        (opcode::WriteFixed::CODE, "WRITE_FIXED"),
        (opcode::Fsync::CODE, "FSYNC"),
        (opcode::Fallocate::CODE, "FALLOCATE"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
        (opcode::Accept::CODE, "ACCEPT"),
        (opcode::Connect::CODE, "CONNECT"),
        (opcode::Recv::CODE, "RECV"),
        (opcode::Send::CODE, "SEND"),
        (opcode::SendMsg::CODE, "SENDMSG"),
    ] {
        if !probe.is_supported(code) {
            return Err(unsupported(format!("the kernel lacks the operation {what}"), newer(), None));
        }
    }
    Ok(Features {
        no_iowait: params.is_feature_no_iowait(),
        min_timeout: params.is_feature_min_timeout(),
        fixed_vectors: probe.is_supported(opcode::ReadvFixed::CODE),
        send_zc: probe.is_supported(opcode::SendMsgZc::CODE),
    })
}

/// Registers the ring's own fd, so that an enter need not look it up: its index.
pub(super) fn register_ring_fd(fd: RawFd) -> io::Result<RawFd> {
    #[repr(C)]
    struct Update {
        offset: u32,
        resv: u32,
        data: u64,
    }
    const REGISTER_RING_FDS: libc::c_uint = 20;
    let mut update = Update { offset: u32::MAX, resv: 0, data: fd as u64 };
    // SAFETY: io_uring_register with one io_uring_rsrc_update, laid out as the kernel has it, alive here.
    let answer = unsafe {
        libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_RING_FDS, &raw mut update, 1 as libc::c_uint)
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(update.offset as RawFd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_change() {
        for (errno, word) in [(libc::ENOSYS, "Linux 6.1"), (libc::ENOMEM, "MEMLOCK"), (libc::EACCES, "seccomp")] {
            let words = refusal(io::Error::from_raw_os_error(errno)).to_string();
            assert!(words.contains(word), "{words}");
        }
    }
}

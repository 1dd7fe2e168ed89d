//! The eBPF overlay network: not built yet. Guests have QEMU's user-mode network until then (`--network user`).

#![forbid(unsafe_code)]

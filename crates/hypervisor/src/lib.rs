//! Snapshots and backups: QEMU over QMP.

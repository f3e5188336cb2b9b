//! Backups of real QEMU processes. Run with `--features testbed`, as root (some tests mount small file systems of their own).
//!
//! Most VMs here have no operating system: the test writes through the guest device's own block backend (`qemu-io` in a second
//! monitor), the very path that a guest's writes take. `guest.rs` boots a real Debian. `LULL_QEMU` names another QEMU (and `LULL_QEMU_ARGS` its
//! arguments, split at blanks), so that the same tests hold for several versions.

mod bed;
mod cut;
mod faults;
mod figures;
mod full_backup;
mod guard;
mod guest;
mod killed;
mod refused;
mod storage;

//! The component on real file systems: frozen, killed, stopped and cut at every step, on loop-mounted images.
//!
//! Needs root, busybox-static, mkfs.ext4 and mkfs.xfs. The static component is tested where `LULL_RUNTIME_LINUX` names it.

mod bed;
mod client;
mod deploy;
mod fence;
mod listing;
mod matrix;
mod residence;
mod scripts;
mod window;

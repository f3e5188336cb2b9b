//! The disks under a file system, from sysfs: through partitions, device mapper, RAID, btrfs members and loop images.
//!
//! Answers one question that matters for the label: does everything under this file system lie in the VM's own snapshot, or on
//! a device that only the guest sees (iSCSI, NBD, …)? Reads sysfs below a given folder, so tests bring their own. Knows nothing of freezing.

use lull_guest_wire::Superblock;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What lies under one block device or one superblock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beneath {
    /// Whole disks, by kernel name.
    pub disks: BTreeSet<String>,
    /// Disks that are not in the VM's snapshot, by kernel name, with the reason.
    pub foreign: BTreeSet<(String, String)>,
    /// Files that back loop devices on the way.
    pub images: BTreeSet<PathBuf>,
}

/// Levels of devices on devices that are followed; more would be a circle.
const LEVELS_MAX: usize = 16;

/// Follows `major:minor` down to whole disks. `sys` is `/sys`.
pub fn beneath(sys: &Path, major: u32, minor: u32) -> Beneath {
    let mut found = Beneath::default();
    if let Ok(device) = sys.join(format!("dev/block/{major}:{minor}")).canonicalize() {
        follow(&device, LEVELS_MAX, &mut found);
    }
    found
}

/// The disks of a btrfs superblock (which has no device number of its own): all members of the file system to which the
/// device `major:minor` belongs.
pub fn beneath_btrfs(sys: &Path, major: u32, minor: u32) -> Beneath {
    let mut found = Beneath::default();
    let Ok(source) = sys.join(format!("dev/block/{major}:{minor}")).canonicalize() else { return found };
    for file_system in entries(&sys.join("fs/btrfs")) {
        let members: Vec<PathBuf> =
            entries(&file_system.join("devices")).iter().filter_map(|member| member.canonicalize().ok()).collect();
        if members.contains(&source) {
            members.iter().for_each(|member| follow(member, LEVELS_MAX, &mut found));
        }
    }
    if found == Beneath::default() {
        follow(&source, LEVELS_MAX, &mut found);
    }
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn follow(device: &Path, levels: usize, found: &mut Beneath) {
    if levels == 0 {
        return;
    }
    if device.join("partition").exists() {
        if let Some(disk) = device.parent() {
            follow(disk, levels - 1, found);
        }
        return;
    }
    if let Ok(image) = std::fs::read_to_string(device.join("loop/backing_file")) {
        found.images.insert(PathBuf::from(image.trim_end_matches('\n')));
        return;
    }
    let members = entries(&device.join("slaves"));
    if !members.is_empty() {
        for member in members.iter().filter_map(|member| member.canonicalize().ok()) {
            follow(&member, levels - 1, found);
        }
        return;
    }
    let Some(name) = device.file_name().map(|name| name.to_string_lossy().into_owned()) else { return };
    if let Some(reason) = foreign(device, &name) {
        found.foreign.insert((name.clone(), reason));
    }
    found.disks.insert(name);
}

/// Why a whole disk is not one of the VM's, if it is not.
fn foreign(device: &Path, name: &str) -> Option<String> {
    let by_name = [
        ("nbd", "a network block device"),
        ("rbd", "a Ceph block device that the guest mapped"),
        ("drbd", "replicated over the network"),
        ("ram", "in memory"),
        ("zram", "in memory"),
        ("loop", "an image that could not be found"),
        ("dm-", "a device mapper target without disks"),
        ("md", "a RAID without disks"),
    ];
    let starts =
        |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if let Some((_, reason)) = by_name.iter().find(|(prefix, _)| starts(prefix)) {
        return Some((*reason).to_string());
    }
    let has = |prefix: &str| {
        device.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    if has("session") {
        return Some("iSCSI".into());
    }
    if has("rport-") {
        return Some("Fibre Channel".into());
    }
    if name.starts_with("nvme") {
        return foreign_nvme(device);
    }
    None
}

/// The namespace's controllers: its parent folder, or all of its subsystem when it is a multipath device.
fn foreign_nvme(device: &Path) -> Option<String> {
    let parent = device.parent()?;
    let mut controllers = vec![parent.to_path_buf()];
    controllers.extend(entries(parent));
    let transports =
        controllers.iter().filter_map(|controller| std::fs::read_to_string(controller.join("transport")).ok());
    let remote: BTreeSet<String> =
        transports.map(|transport| transport.trim().to_string()).filter(|transport| transport != "pcie").collect();
    if remote.is_empty() {
        return None;
    }
    Some(format!("NVMe over {}", remote.into_iter().collect::<Vec<_>>().join(", ")))
}

/// The superblock that holds `image`, by the longest mount point above it.
pub fn holder(mount_points: &[(PathBuf, Superblock)], image: &Path) -> Option<Superblock> {
    mount_points
        .iter()
        .filter(|(point, _)| image.starts_with(point))
        .max_by_key(|(point, _)| point.components().count())
        .map(|(_, superblock)| *superblock)
}

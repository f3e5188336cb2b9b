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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs in a folder: each line is `file = text`, `folder/`, or `link -> target` (relative to the root).
    fn check(tree: &str, number: (u32, u32), disks: &[&str], foreign: &[(&str, &str)], images: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        for line in tree.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let make = |path: &str| {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                path
            };
            if let Some((link, target)) = line.split_once(" -> ") {
                std::fs::create_dir_all(root.path().join(target)).unwrap();
                symlink(root.path().join(target), make(link)).unwrap();
            } else if let Some((file, text)) = line.split_once(" = ") {
                std::fs::write(make(file), format!("{text}\n")).unwrap();
            } else {
                std::fs::create_dir_all(make(line)).unwrap();
            }
        }
        let found = match number {
            (0, minor) => beneath_btrfs(root.path(), 8, minor),
            (major, minor) => beneath(root.path(), major, minor),
        };
        let found_foreign: Vec<(&str, &str)> = found.foreign.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(found.disks.iter().map(String::as_str).collect::<Vec<_>>(), disks);
        assert_eq!(found_foreign, foreign);
        assert_eq!(found.images.iter().map(|image| image.to_str().unwrap()).collect::<Vec<_>>(), images);
    }

    #[test]
    fn a_partition_lies_on_its_disk() {
        let tree = "dev/block/254:1 -> devices/pci0/virtio1/block/vda/vda1
            devices/pci0/virtio1/block/vda/vda1/partition = 1";
        check(tree, (254, 1), &["vda"], &[], &[]);
    }

    #[test]
    fn lvm_over_raid_over_partitions_lies_on_every_disk() {
        let tree = "dev/block/253:0 -> devices/virtual/block/dm-0
            devices/virtual/block/dm-0/slaves/md0 -> devices/virtual/block/md0
            devices/virtual/block/md0/slaves/sda1 -> devices/pci0/host0/block/sda/sda1
            devices/virtual/block/md0/slaves/sdb -> devices/pci0/host1/block/sdb
            devices/pci0/host0/block/sda/sda1/partition = 1";
        check(tree, (253, 0), &["sda", "sdb"], &[], &[]);
    }

    #[test]
    fn network_devices_are_not_in_the_vms_snapshot() {
        let iscsi = "dev/block/8:0 -> devices/platform/host2/session1/target2:0:0/2:0:0:0/block/sda";
        check(iscsi, (8, 0), &["sda"], &[("sda", "iSCSI")], &[]);
        let nbd = "dev/block/43:0 -> devices/virtual/block/nbd0";
        check(nbd, (43, 0), &["nbd0"], &[("nbd0", "a network block device")], &[]);
        let tcp = "dev/block/259:0 -> devices/virtual/nvme-fabrics/ctl/nvme0/nvme0n1
            devices/virtual/nvme-fabrics/ctl/nvme0/transport = tcp";
        check(tcp, (259, 0), &["nvme0n1"], &[("nvme0n1", "NVMe over tcp")], &[]);
        let multipath = "dev/block/259:0 -> devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1
            devices/virtual/nvme-subsystem/nvme-subsys0/nvme0 -> devices/virtual/nvme-fabrics/ctl/nvme0
            devices/virtual/nvme-fabrics/ctl/nvme0/transport = rdma";
        check(multipath, (259, 0), &["nvme0n1"], &[("nvme0n1", "NVMe over rdma")], &[]);
        let local = "dev/block/259:1 -> devices/pci0/nvme/nvme0/nvme0n1/nvme0n1p1
            devices/pci0/nvme/nvme0/nvme0n1/nvme0n1p1/partition = 1
            devices/pci0/nvme/nvme0/transport = pcie";
        check(local, (259, 1), &["nvme0n1"], &[], &[]);
    }

    #[test]
    fn an_encrypted_loop_image_is_found_inside_its_file() {
        let tree = "dev/block/253:1 -> devices/virtual/block/dm-1
            devices/virtual/block/dm-1/slaves/loop0 -> devices/virtual/block/loop0
            devices/virtual/block/loop0/loop/backing_file = /srv/images/my disk.img";
        check(tree, (253, 1), &[], &[], &["/srv/images/my disk.img"]);
    }

    #[test]
    fn btrfs_lies_on_all_its_members() {
        let tree = "dev/block/8:16 -> devices/pci0/block/sdb
            fs/btrfs/uuid-1/devices/sdb -> devices/pci0/block/sdb
            fs/btrfs/uuid-1/devices/sdc -> devices/pci0/block/sdc
            fs/btrfs/uuid-2/devices/sdd -> devices/pci0/block/sdd
            fs/btrfs/features/";
        check(tree, (0, 16), &["sdb", "sdc"], &[], &[]);
    }

    #[test]
    fn a_circle_ends() {
        let tree = "dev/block/253:0 -> devices/virtual/block/dm-0
            devices/virtual/block/dm-0/slaves/dm-0 -> devices/virtual/block/dm-0";
        check(tree, (253, 0), &[], &[], &[]);
    }

    #[test]
    fn an_image_belongs_to_the_innermost_mount_above_it() {
        let superblock = |minor| Superblock { major: 8, minor };
        let points = [("/", 1), ("/srv", 2), ("/srv", 3), ("/srv/images-old", 4)];
        let points: Vec<_> = points.iter().map(|(path, minor)| (PathBuf::from(path), superblock(*minor))).collect();
        assert_eq!(
            holder(&points, Path::new("/srv/images/a")),
            Some(superblock(3)),
            "of two, the later covers the earlier"
        );
        assert_eq!(holder(&points, Path::new("/home/a")), Some(superblock(1)));
    }
}

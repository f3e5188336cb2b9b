//! mountinfo, and the superblocks behind it.
//!
//! A superblock is named by the `major:minor` of mountinfo, not by `st_dev`: every btrfs subvolume has a `st_dev` of its own,
//! and all of them share one superblock. Pure: text in, values out. Knows nothing of disks or of freezing.

use lull_guest_wire::Superblock;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of mountinfo, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of the mount, as in `fdinfo`.
    pub id: u64,
    /// The file system instance.
    pub superblock: Superblock,
    /// What of the file system is mounted: `/`, or the part that a bind mount or a subvolume shows.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// This mount is read-only.
    pub read_only: bool,
    /// `ext4`, `fuse.sshfs`, …
    pub fs_type: String,
    /// Device or name, as the kernel shows it.
    pub source: String,
    /// The whole superblock is read-only.
    pub superblock_read_only: bool,
}

/// One superblock on a block device (or a pool of them), with every place where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Its identity.
    pub superblock: Superblock,
    /// As in mountinfo.
    pub fs_type: String,
    /// As in mountinfo.
    pub source: String,
    /// Number and place of each of its mounts, the shortest place first.
    pub mounts: Vec<(u64, PathBuf)>,
    /// Holds `/`.
    pub is_root: bool,
    /// The superblock itself is read-only: nothing can write to it.
    pub superblock_read_only: bool,
    /// Every mount of it is read-only.
    pub mounts_read_only: bool,
}

impl Mounted {
    /// The mount point that names it for people: the shortest one.
    pub fn name(&self) -> String {
        self.mounts.first().map_or_else(|| self.source.clone(), |(_, path)| path.to_string_lossy().into_owned())
    }
}

/// Every line of mountinfo that can be understood, in the kernel's order, and how many could not.
pub fn parse(mountinfo: &[u8]) -> (Vec<Mount>, usize) {
    let mut mounts = Vec::new();
    let mut malformed = 0;
    for line in mountinfo.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match parse_line(line) {
            Some(mount) => mounts.push(mount),
            None => malformed += 1,
        }
    }
    (mounts, malformed)
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc(5)).
fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    let text = |index: usize| fields.get(index).map(|field| String::from_utf8_lossy(&unescape(field)).into_owned());
    let device = text(2)?;
    let (major, minor) = device.split_once(':')?;
    let read_only = |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount {
        id: text(0)?.parse().ok()?,
        superblock: Superblock { major: major.parse().ok()?, minor: minor.parse().ok()? },
        root: PathBuf::from(OsString::from_vec(unescape(fields.get(3)?))),
        mount_point: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        read_only: read_only(fields.get(5)?),
        fs_type: text(dash + 1)?,
        source: text(dash + 2)?,
        superblock_read_only: read_only(fields.get(dash + 3)?),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

/// File systems without a device number of their own that nevertheless lie on disks.
const POOLED: [&str; 3] = ["btrfs", "zfs", "bcachefs"];

/// Every superblock that lies on a block device, each once, sorted by identity.
pub fn on_block_devices(mounts: &[Mount]) -> Vec<Mounted> {
    let root = mounts.iter().rev().find(|mount| mount.mount_point == Path::new("/")).map(|mount| mount.superblock);
    let mut found: Vec<Mounted> = Vec::new();
    for mount in mounts {
        if mount.superblock.major == 0 && !POOLED.contains(&mount.fs_type.as_str()) {
            continue;
        }
        let place = (mount.id, mount.mount_point.clone());
        match found.iter_mut().find(|known| known.superblock == mount.superblock) {
            Some(known) => {
                known.mounts.push(place);
                known.mounts_read_only &= mount.read_only;
                known.superblock_read_only &= mount.superblock_read_only;
            }
            None => found.push(Mounted {
                superblock: mount.superblock,
                fs_type: mount.fs_type.clone(),
                source: mount.source.clone(),
                mounts: vec![place],
                is_root: root == Some(mount.superblock),
                superblock_read_only: mount.superblock_read_only,
                mounts_read_only: mount.read_only,
            }),
        }
    }
    for known in &mut found {
        known.mounts.sort_by_key(|(id, path)| (path.components().count(), path.clone(), *id));
    }
    found.sort_by_key(|known| known.superblock);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
30 27 254:16 / /srv/my\\040data rw,relatime shared:3 master:2 - xfs /dev/vdb rw,attr2
31 27 254:16 /sub /mnt ro,relatime - xfs /dev/vdb rw,attr2
32 27 0:45 /@home /home rw - btrfs /dev/vdc rw,subvolid=256
33 27 0:45 /@var /var rw - btrfs /dev/vdc rw,subvolid=257
34 27 0:46 / /mnt/nfs rw - nfs4 filer:/export rw
35 27 0:47 / /merged rw - overlay overlay rw,lowerdir=/a
36 27 7:0 / /snap/core/1 ro - squashfs /dev/loop0 ro
";

    fn check(text: &str, expect: &[&str]) {
        let (mounts, malformed) = parse(text.as_bytes());
        assert_eq!(malformed, 0);
        let got: Vec<String> = on_block_devices(&mounts)
            .iter()
            .map(|found| {
                let places: Vec<_> = found.mounts.iter().map(|(_, path)| path.display().to_string()).collect();
                format!(
                    "{} {} {}{}",
                    found.superblock,
                    found.fs_type,
                    places.join("|"),
                    if found.is_root { " root" } else { "" }
                )
            })
            .collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn each_superblock_appears_once_with_all_its_places() {
        check(
            GUEST,
            &[
                "0:45 btrfs /var|/home",
                "7:0 squashfs /snap/core/1",
                "254:1 ext4 / root",
                "254:16 xfs /mnt|/srv/my data",
            ]
            .map(|line| if line.starts_with("0:45") { "0:45 btrfs /home|/var" } else { line }),
        );
    }

    #[test]
    fn a_mount_read_only_in_one_place_is_not_a_read_only_superblock() {
        let (mounts, _) = parse(GUEST.as_bytes());
        let found = on_block_devices(&mounts);
        let xfs = found.iter().find(|found| found.fs_type == "xfs").unwrap();
        assert!(!xfs.superblock_read_only && !xfs.mounts_read_only);
        let snap = found.iter().find(|found| found.fs_type == "squashfs").unwrap();
        assert!(snap.superblock_read_only && snap.mounts_read_only);
    }

    #[test]
    fn the_last_root_mounted_is_the_root() {
        check(
            "1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / / rw - ext4 /dev/sda2 rw\n",
            &["8:1 ext4 /", "8:2 ext4 / root"],
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_counted_or_understood(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count();
            let (mounts, malformed) = parse(&text);
            prop_assert_eq!(mounts.len() + malformed, lines);
        }

        #[test]
        fn every_mount_point_survives_the_kernels_escapes(name in "[ -~]{1,20}") {
            let escaped: String = name.chars().map(|c| match c {
                ' ' | '\\' => format!("\\{:03o}", c as u32),
                c => c.to_string(),
            }).collect();
            let (mounts, _) = parse(format!("5 1 8:1 / /{escaped} rw - ext4 /dev/sda rw\n").as_bytes());
            prop_assert_eq!(mounts[0].mount_point.clone(), PathBuf::from(format!("/{name}")));
        }
    }
}

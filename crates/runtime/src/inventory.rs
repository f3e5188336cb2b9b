//! What the guest is: operating system, file systems, and what lies under them.
//!
//! Reads /proc, /sys and os-release; decides nothing about freezing beyond [`crate::plan`]. A fact that cannot be read
//! becomes a note, never an abort. Knows nothing of applications.

use crate::disks::{self, Beneath};
use crate::mounts::{self, Mount, Mounted};
use crate::plan::{self, Candidate};
use lull_guest_wire::{FileSystem, LIST_MAX, Os, Superblock};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything known about the guest's storage at one moment.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Every mount, in the kernel's order.
    pub mounts: Vec<Mount>,
    /// Each superblock on a block device with what lies under it.
    pub candidates: Vec<(Candidate, Beneath)>,
    /// What could not be found out.
    pub notes: Vec<String>,
}

/// Reads mountinfo and sysfs.
pub fn storage() -> Result<Storage, String> {
    let text = std::fs::read("/proc/self/mountinfo")
        .map_err(|e| format!("cannot read /proc/self/mountinfo: {e}; is /proc mounted in the guest?"))?;
    let (mounts, malformed) = mounts::parse(&text);
    let mut notes = Vec::new();
    if malformed > 0 {
        notes.push(format!("{malformed} lines of mountinfo could not be understood"));
    }
    let points: Vec<(PathBuf, Superblock)> =
        mounts.iter().map(|mount| (mount.mount_point.clone(), mount.superblock)).collect();
    let found = mounts::on_block_devices(&mounts);
    notes.extend(hidden_by_a_private_namespace(&found));
    let on_disk: BTreeSet<Superblock> = found.iter().map(|mounted| mounted.superblock).collect();
    let candidates: Vec<(Candidate, Beneath)> = found
        .into_iter()
        .map(|mounted| {
            let beneath = beneath(Path::new("/sys"), &mounted);
            let inside = beneath
                .images
                .iter()
                // A deleted image, or one in another mount namespace, shows a path that means nothing here.
                .filter(|image| std::fs::symlink_metadata(image).is_ok())
                .filter_map(|image| disks::holder(&points, image))
                .filter(|holder| on_disk.contains(holder) && *holder != mounted.superblock)
                .collect();
            (Candidate { mounted, inside }, beneath)
        })
        .collect();
    if candidates.len() > LIST_MAX {
        return Err(format!("{} file systems are mounted, at most {LIST_MAX} can be handled", candidates.len()));
    }
    Ok(Storage { mounts, candidates, notes })
}

fn beneath(sys: &Path, mounted: &Mounted) -> Beneath {
    let Superblock { major, minor } = mounted.superblock;
    if major != 0 {
        return disks::beneath(sys, major, minor);
    }
    let Ok(source) = std::fs::metadata(&mounted.source) else { return Beneath::default() };
    let device = source.rdev();
    disks::beneath_btrfs(sys, libc::major(device), libc::minor(device))
}

/// `sudo` and `sshd` may run commands in a mount namespace of their own: then some of the guest's mounts cannot be seen.
fn hidden_by_a_private_namespace(seen: &[Mounted]) -> Option<String> {
    let init = mounts::on_block_devices(&mounts::parse(&std::fs::read("/proc/1/mountinfo").ok()?).0);
    let hidden: Vec<String> = init
        .iter()
        .filter(|mounted| !seen.iter().any(|other| other.superblock == mounted.superblock))
        .map(|mounted| format!("{} ({})", mounted.name(), mounted.superblock))
        .collect();
    if hidden.is_empty() {
        return None;
    }
    Some(format!(
        "the login has a mount namespace of its own and does not see these file systems of the guest's first process, \
         which are not frozen: {}",
        hidden.join(", ")
    ))
}

/// The file systems as the proxy wants them, and what could not be found out about them.
pub fn file_systems(storage: &Storage) -> (Vec<FileSystem>, Vec<String>) {
    let mut notes = storage.notes.clone();
    let mut list = Vec::with_capacity(storage.candidates.len());
    for (candidate, _) in &storage.candidates {
        let mounted = &candidate.mounted;
        let (disks, foreign) = down_to_disks(storage, mounted.superblock, LEVELS_MAX);
        if let Some((disk, reason)) = foreign.first() {
            notes.push(format!("{} lies on {disk}, which is not in the VM's snapshot ({reason})", mounted.name()));
        } else if disks.is_empty() {
            notes.push(format!("no disk was found under {} ({})", mounted.name(), mounted.source));
        }
        let place = mounted.mounts.first().map_or(Path::new("/"), |(_, path)| path.as_path());
        let (size_bytes, free_bytes) = sizes(place).unwrap_or_else(|e| {
            notes.push(format!("cannot tell the size of {}: {e}", place.display()));
            (0, 0)
        });
        list.push(FileSystem {
            superblock: mounted.superblock,
            fs_type: mounted.fs_type.clone(),
            source: mounted.source.clone(),
            mount_points: mounted.mounts.iter().map(|(_, path)| path.to_string_lossy().into_owned()).collect(),
            is_root: mounted.is_root,
            read_only: mounted.superblock_read_only || mounted.mounts_read_only,
            freezable: plan::freezable(mounted),
            on_vm_disks: !disks.is_empty() && foreign.is_empty(),
            disks: disks.into_iter().collect(),
            inside: candidate.inside.first().copied(),
            size_bytes,
            free_bytes,
        });
    }
    (list, notes)
}

/// Images within images that are followed.
const LEVELS_MAX: usize = 8;

/// Disks and foreign devices under a superblock, through the file systems that hold its images.
fn down_to_disks(
    storage: &Storage,
    superblock: Superblock,
    levels: usize,
) -> (BTreeSet<String>, BTreeSet<(String, String)>) {
    let Some((candidate, beneath)) = storage.candidates.iter().find(|(c, _)| c.mounted.superblock == superblock) else {
        return Default::default();
    };
    let (mut disks, mut foreign) = (beneath.disks.clone(), beneath.foreign.clone());
    if candidate.inside.len() < beneath.images.len() || levels == 0 {
        for image in &beneath.images {
            foreign.insert((
                image.display().to_string(),
                "an image that is not on a file system of this guest's disks".into(),
            ));
        }
    }
    for outer in candidate.inside.iter().filter(|_| levels > 0) {
        let (outer_disks, outer_foreign) = down_to_disks(storage, *outer, levels - 1);
        disks.extend(outer_disks);
        foreign.extend(outer_foreign);
    }
    (disks, foreign)
}

/// Superblocks of which at least a part lies on a disk that is not in the VM's snapshot.
pub fn outside_the_snapshot(storage: &Storage) -> BTreeSet<Superblock> {
    let all = storage.candidates.iter().map(|(candidate, _)| candidate.mounted.superblock);
    all.filter(|superblock| !down_to_disks(storage, *superblock, LEVELS_MAX).1.is_empty()).collect()
}

/// Size and free space in bytes.
fn sizes(place: &Path) -> Result<(u64, u64), std::io::Error> {
    let path = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: all zeroes is a valid statfs, which the call then fills.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, `stat` is live.
    if unsafe { libc::statfs(path.as_ptr(), &mut stat) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let block = stat.f_bsize as u64;
    Ok((stat.f_blocks * block, stat.f_bfree * block))
}

/// The operating system, from os-release, uname and machine-id.
pub fn os() -> Os {
    let release = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| std::fs::read_to_string(path).ok());
    let release = release.unwrap_or_default();
    let field = |name: &str| os_release_field(&release, name).unwrap_or_default();
    let first_line = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().next().unwrap_or_default().trim().to_string()
    };
    Os {
        name: Some(field("PRETTY_NAME")).filter(|name| !name.is_empty()).unwrap_or_else(|| "Linux".into()),
        id: Some(field("ID")).filter(|id| !id.is_empty()).unwrap_or_else(|| "linux".into()),
        version: field("VERSION_ID"),
        kernel: first_line("/proc/sys/kernel/osrelease"),
        host_name: first_line("/proc/sys/kernel/hostname"),
        machine_id: first_line("/etc/machine-id"),
    }
}

/// One value of os-release, without its quotes (os-release(5)).
fn os_release_field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
    let quoted = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    let mut plain = String::new();
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            plain.push(c);
            escaped = false;
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (\\\"bookworm\\\")\"\nID=debian\nVERSION_ID='12'\n";
        assert_eq!(os_release_field(text, "PRETTY_NAME").unwrap(), "Debian GNU/Linux 12 (\"bookworm\")");
        assert_eq!(os_release_field(text, "ID").unwrap(), "debian");
        assert_eq!(os_release_field(text, "VERSION_ID").unwrap(), "12");
        assert_eq!(os_release_field(text, "VARIANT"), None);
    }
}

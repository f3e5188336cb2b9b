//! Whether a backup can be incremental, and if not, why it is full.
//!
//! [`decide`] is pure: it sees what the order, the repository and the VM say, and either finds for every disk the parent's image
//! to lie over, or gives the first [`FullBecause`] in the order of that type. **When in doubt, full**: an increment over the wrong
//! parent is a restore point that is not one. Knows nothing of how an increment is read.

use std::fmt;

use crate::chain::{BrokenLink, backing_name};
use crate::facts::{Bitmap, Disk};
use crate::metadata::{DiskFile, RestorePointMetadata};

/// Why a backup is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FullBecause {
    /// Whoever ordered it wants it so: in its words.
    Ordered(String),
    /// The parent is not in the VM's folder of this repository.
    ParentElsewhere {
        /// Its id.
        parent: String,
    },
    /// The parent or one of its ancestors is missing or damaged, or could not be looked at.
    ParentBroken {
        /// Its id.
        parent: String,
        /// The link that is the matter, and how.
        link: String,
    },
    /// The parent is of a VM with another name or UUID.
    OtherVm {
        /// That VM.
        vm: String,
    },
    /// The parent has a disk that the VM has no longer.
    DiskGone {
        /// The disk.
        disk: String,
    },
    /// The VM has a disk that the parent has not.
    DiskAdded {
        /// The disk.
        disk: String,
    },
    /// A disk has another size than in the parent.
    DiskResized {
        /// The disk.
        disk: String,
        /// Then.
        from_bytes: u64,
        /// Now.
        to_bytes: u64,
    },
    /// A disk's image is another file or of another format than in the parent.
    DiskChanged {
        /// The disk.
        disk: String,
        /// Then.
        from: String,
        /// Now.
        to: String,
    },
    /// The parent's bitmap is not on the disk any more.
    BitmapMissing {
        /// The disk.
        disk: String,
        /// Its image could have kept the bitmap over a restart of the VM's process.
        kept: bool,
    },
    /// The bitmap was not stored when the VM's process ended: QEMU knows that it lacks writes.
    BitmapInconsistent {
        /// The disk.
        disk: String,
    },
    /// Somebody switched the bitmap off: it may lack writes.
    BitmapNotRecording {
        /// The disk.
        disk: String,
    },
    /// The bitmap is in use by somebody else's job or export.
    BitmapBusy {
        /// The disk.
        disk: String,
    },
}

impl fmt::Display for FullBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FullBecause::Ordered(why) => f.write_str(why),
            FullBecause::ParentElsewhere { parent } => {
                write!(f, "the restore point before ({parent}) lies in another folder: the VM's name or UUID changed")
            }
            FullBecause::ParentBroken { parent, link } => {
                write!(f, "the restore point before ({parent}) cannot be built on: {link}")
            }
            FullBecause::OtherVm { vm } => write!(f, "the restore point before is of another VM ({vm})"),
            FullBecause::DiskGone { disk } => write!(f, "disk {disk} is gone since the restore point before"),
            FullBecause::DiskAdded { disk } => write!(f, "disk {disk} is new since the restore point before"),
            FullBecause::DiskResized { disk, from_bytes, to_bytes } => {
                write!(f, "disk {disk} was resized from {from_bytes} to {to_bytes} bytes")
            }
            FullBecause::DiskChanged { disk, from, to } => write!(f, "disk {disk} is now {to}, and was {from}"),
            FullBecause::BitmapMissing { disk, kept: true } => write!(
                f,
                "the dirty bitmap of disk {disk} is gone: the VM's process did not end in order since, or somebody removed it"
            ),
            FullBecause::BitmapMissing { disk, kept: false } => write!(
                f,
                "the dirty bitmap of disk {disk} is gone: the VM's process was restarted, and an image of this format \
                 keeps none"
            ),
            FullBecause::BitmapInconsistent { disk } => {
                write!(f, "the dirty bitmap of disk {disk} is inconsistent: the VM's process did not end in order")
            }
            FullBecause::BitmapNotRecording { disk } => {
                write!(f, "the dirty bitmap of disk {disk} was switched off by somebody")
            }
            FullBecause::BitmapBusy { disk } => write!(f, "the dirty bitmap of disk {disk} is in use by somebody else"),
        }
    }
}

/// What the VM is, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vm<'a> {
    pub name: &'a str,
    pub uuid: Option<&'a str>,
    /// The disks to back up.
    pub disks: &'a [&'a Disk],
}

/// For each disk the image to lie over, or why the backup must be full. `chain`: what reading the parent's chain came to, the
/// parent first.
pub(crate) fn decide(
    parent: &str,
    chain: Result<&RestorePointMetadata, &BrokenLink>,
    vm: Vm<'_>,
) -> Result<Vec<String>, FullBecause> {
    let below =
        chain.map_err(|broken| FullBecause::ParentBroken { parent: parent.to_owned(), link: broken.to_string() })?;
    if below.restore_point != parent {
        let link = format!("its folder holds restore point {}", below.restore_point);
        return Err(FullBecause::ParentBroken { parent: parent.to_owned(), link });
    }
    if (below.vm.as_str(), below.uuid.as_deref()) != (vm.name, vm.uuid) {
        return Err(FullBecause::OtherVm { vm: below.vm.clone() });
    }
    if let Some(gone) = below.disks.iter().find(|b| !vm.disks.iter().any(|d| d.qdev == b.qdev)) {
        return Err(FullBecause::DiskGone { disk: gone.name.clone() });
    }
    let pairs = vm.disks.iter().map(|disk| {
        let same = below.disks.iter().find(|b| b.qdev == disk.qdev);
        same.map(|same| (*disk, same)).ok_or_else(|| FullBecause::DiskAdded { disk: disk.name.clone() })
    });
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    // What changed on a disk is a better reason than what that did to its bitmap.
    for (disk, below) in &pairs {
        changed(disk, below).map_or(Ok(()), Err)?;
    }
    for (disk, below_disk) in &pairs {
        let bitmap = disk.bitmaps.iter().find(|b| b.name == below.bitmap);
        unusable(&disk.name, bitmap, below_disk.bitmap_persistent).map_or(Ok(()), Err)?;
    }
    Ok(pairs.into_iter().map(|(_, below)| backing_name(parent, &below.file)).collect())
}

fn changed(disk: &Disk, below: &DiskFile) -> Option<FullBecause> {
    if disk.virtual_bytes != below.virtual_bytes {
        let (from_bytes, to_bytes) = (below.virtual_bytes, disk.virtual_bytes);
        return Some(FullBecause::DiskResized { disk: disk.name.clone(), from_bytes, to_bytes });
    }
    let is = |file: &str, format: &str| format!("{file} ({format})");
    let (from, to) = (is(&below.source_file, &below.source_format), is(&disk.file, &disk.format));
    (from != to).then(|| FullBecause::DiskChanged { disk: disk.name.clone(), from, to })
}

fn unusable(disk: &str, bitmap: Option<&Bitmap>, kept: bool) -> Option<FullBecause> {
    let disk = disk.to_owned();
    match bitmap {
        None => Some(FullBecause::BitmapMissing { disk, kept }),
        Some(bitmap) if bitmap.inconsistent => Some(FullBecause::BitmapInconsistent { disk }),
        Some(bitmap) if bitmap.busy => Some(FullBecause::BitmapBusy { disk }),
        Some(bitmap) if !bitmap.recording => Some(FullBecause::BitmapNotRecording { disk }),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;

//! What makes restore points a chain, and where one is broken.
//!
//! A chain is a full backup and the increments on it, each in a folder beside its parent's; each disk's image lies over the
//! parent's image of the same disk. [`own_fault`] holds a point's files against its description, [`link_fault`] (pure) a point's
//! description against its parent's, [`judge`] (pure) says of many points at once which are whole. A fault says what is wrong in words.
//!
//! Headers and lengths only: whether the tables in an image are sound is [`crate::verify`]'s business. Changes nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::metadata::{self, DiskFile, Kind, RestorePointMetadata};
use crate::qcow2::{self, Header};

/// No chain of ours has more points; a longer one is not followed.
pub const POINTS_MAX: usize = 1_000;

/// One point of a chain, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainPoint {
    /// Its folder.
    pub dir: PathBuf,
    /// Its description.
    pub metadata: RestorePointMetadata,
}

/// Where a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("restore point {restore_point}: {why}")]
pub struct BrokenLink {
    /// The point that is the matter; its children and theirs are lost with it.
    pub restore_point: String,
    /// What is wrong with it.
    pub why: String,
}

/// The image under an increment's disk, as it is written into the image.
pub(crate) fn backing_name(parent: &str, parent_file: &str) -> String {
    format!("../{parent}/{parent_file}")
}

/// Reads the chain of the restore point in `dir`, the point itself first, its full backup last.
///
/// # Errors
/// The first broken link, going up.
pub fn read_chain(dir: &Path) -> Result<Vec<ChainPoint>, BrokenLink> {
    let mut chain: Vec<ChainPoint> = Vec::new();
    let mut next = Some(dir.to_owned());
    while let Some(dir) = next {
        let restore_point = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let broken = |why| BrokenLink { restore_point: restore_point.clone(), why };
        if chain.iter().any(|p| p.dir == dir) {
            return Err(broken("it is its own ancestor".into()));
        }
        if chain.len() >= POINTS_MAX {
            return Err(broken(format!("more than {POINTS_MAX} points build on it")));
        }
        let metadata =
            metadata::read(&dir).map_err(|e| broken(format!("{} cannot be read ({e})", metadata::FILE_NAME)))?;
        if let Some(why) = own_fault(&dir, &metadata) {
            return Err(broken(why));
        }
        if let Some(why) = chain.last().and_then(|child| link_fault(&child.metadata, &metadata)) {
            let child = chain.last().map(|c| c.metadata.restore_point.clone()).unwrap_or_default();
            return Err(BrokenLink { restore_point: child, why });
        }
        next = metadata.parent.as_deref().map(|parent| dir.with_file_name(parent));
        chain.push(ChainPoint { dir, metadata });
    }
    Ok(chain)
}

/// What is wrong with a point's own files.
pub(crate) fn own_fault(dir: &Path, metadata: &RestorePointMetadata) -> Option<String> {
    if dir.file_name().and_then(|n| n.to_str()) != Some(metadata.restore_point.as_str()) {
        return Some(format!("its description is that of restore point {}", metadata.restore_point));
    }
    metadata.disks.iter().find_map(|disk| file_fault(dir, metadata, disk))
}

/// What is wrong with one of a point's files.
pub(crate) fn file_fault(dir: &Path, metadata: &RestorePointMetadata, disk: &DiskFile) -> Option<String> {
    match qcow2::read_header(&dir.join(&disk.file)) {
        Ok(header) => header_fault(metadata, disk, &header),
        Err(e) => Some(format!("{} cannot be read ({e})", disk.file)),
    }
}

/// What of a file's header is not as the description says.
pub(crate) fn header_fault(metadata: &RestorePointMetadata, disk: &DiskFile, header: &Header) -> Option<String> {
    let file = &disk.file;
    if header.virtual_bytes != disk.virtual_bytes {
        return Some(format!("{file} is of a disk of {} bytes, not {}", header.virtual_bytes, disk.virtual_bytes));
    }
    if let Some(length) = disk.length_bytes.filter(|length| *length != header.length_bytes) {
        return Some(format!("{file} is {} bytes long, not {length}", header.length_bytes));
    }
    let lies_over = header.backing.as_deref();
    let right = match (&metadata.parent, lies_over) {
        (None, over) => over.is_none(),
        (Some(_), None) => false,
        (Some(parent), Some(over)) => {
            let rest = over.strip_prefix("../").and_then(|o| o.strip_prefix(parent.as_str()));
            rest.and_then(|o| o.strip_prefix('/')).is_some_and(metadata::is_disk_file)
        }
    };
    let shown = |over: Option<&str>| over.map_or("nothing".to_owned(), |o| format!("{o:?}"));
    let parent = metadata.parent.as_deref().map(|p| format!("../{p}/"));
    (!right).then(|| format!("{file} lies over {}, not over {}", shown(lies_over), shown(parent.as_deref())))
}

/// What of a point does not fit its parent.
pub(crate) fn link_fault(child: &RestorePointMetadata, parent: &RestorePointMetadata) -> Option<String> {
    if (&child.vm, &child.uuid) != (&parent.vm, &parent.uuid) {
        return Some(format!("its parent {} is of another VM ({})", parent.restore_point, parent.vm));
    }
    child.disks.iter().find_map(|disk| match parent.disks.iter().find(|d| d.qdev == disk.qdev) {
        None => Some(format!("its parent {} has no disk {}", parent.restore_point, disk.name)),
        Some(below) if below.virtual_bytes != disk.virtual_bytes => Some(format!(
            "disk {} has {} bytes, but {} in its parent {}",
            disk.name, disk.virtual_bytes, below.virtual_bytes, parent.restore_point
        )),
        Some(_) => None,
    })
}

/// What is known of one point when many are judged.
#[derive(Debug, Clone)]
pub(crate) struct Seen<'a> {
    pub metadata: &'a RestorePointMetadata,
    /// [`own_fault`].
    pub own_fault: Option<String>,
}

/// For each of the points of one folder, what its chain breaks at; `None`: it is whole.
pub(crate) fn judge(points: &[Seen<'_>]) -> Vec<Option<BrokenLink>> {
    let by_id: HashMap<&str, usize> =
        points.iter().enumerate().map(|(n, p)| (p.metadata.restore_point.as_str(), n)).collect();
    // What each point adds to its parent's verdict.
    let own = |n: usize| -> Option<BrokenLink> {
        let Seen { metadata, own_fault } = &points[n];
        let broken = |restore_point: &str, why| BrokenLink { restore_point: restore_point.to_owned(), why };
        if let Some(why) = own_fault {
            return Some(broken(&metadata.restore_point, why.clone()));
        }
        let parent = metadata.parent.as_deref()?;
        match by_id.get(parent) {
            None => Some(broken(parent, "it is missing".into())),
            Some(p) => link_fault(metadata, points[*p].metadata).map(|why| broken(&metadata.restore_point, why)),
        }
    };
    let mut verdicts: Vec<Option<Option<BrokenLink>>> = vec![None; points.len()];
    for start in 0..points.len() {
        // Up to a point that is judged already or ends the chain, then down again.
        let (mut path, mut at) = (Vec::new(), Some(start));
        let mut verdict = loop {
            let Some(n) = at else { break None };
            if let Some(known) = &verdicts[n] {
                break known.clone();
            }
            if path.contains(&n) || path.len() >= POINTS_MAX {
                let restore_point = points[n].metadata.restore_point.clone();
                break Some(BrokenLink { restore_point, why: "its chain has no beginning".into() });
            }
            path.push(n);
            let parent = points[n].metadata.parent.as_deref().filter(|_| points[n].metadata.kind == Kind::Incremental);
            at = parent.and_then(|p| by_id.get(p).copied());
        };
        for n in path.into_iter().rev() {
            verdict = own(n).or(verdict);
            verdicts[n] = Some(verdict.clone());
        }
    }
    verdicts.into_iter().map(Option::flatten).collect()
}

#[cfg(test)]
pub(crate) mod tests;

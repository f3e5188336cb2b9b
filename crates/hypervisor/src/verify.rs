//! Checking a finished restore point: its own images and every one that they lie over. Knows nothing of VMs; changes nothing.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chain::{self, BrokenLink, POINTS_MAX};
use crate::error::{ErrorClass, HypervisorError, Step};
use crate::image::{self, Check};
use crate::metadata::{self, RestorePointMetadata};

/// One image of a chain, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedFile {
    /// The restore point that the image belongs to: the one that was asked for, or one that it builds on.
    pub restore_point: String,
    /// The image's file name.
    pub file: String,
    /// What is wrong with it; `None`: nothing.
    pub fault: Option<String>,
}

/// A restore point, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// What the restore point says of itself.
    pub metadata: RestorePointMetadata,
    /// The point that was asked for, then what each builds on, as far as the chain could be followed; the last may be the one that is missing.
    pub chain: Vec<String>,
    /// Each of its images, then each of its parent's, and so on to the full backup.
    pub files: Vec<VerifiedFile>,
    /// What is wrong between two points of the chain, or where it ends too early.
    pub broken_links: Vec<BrokenLink>,
}

impl VerifyReport {
    /// Whether every image is sound, and the chain whole.
    pub fn is_sound(&self) -> bool {
        self.broken_links.is_empty() && self.files.iter().all(|f| f.fault.is_none())
    }
}

/// Checks the whole chain of a restore point: every image by `qemu-img check`, and that sizes, lengths and what lies over what are as
/// the descriptions say.
///
/// # Errors
/// If the folder is no restore point. A damaged or missing image, or a broken chain, is no error but a fault in the report.
pub async fn verify(restore_point_dir: &Path) -> Result<VerifyReport, HypervisorError> {
    let metadata = metadata::read(restore_point_dir).map_err(|e| {
        let place = restore_point_dir.display().to_string();
        let cause = format!("{} cannot be read ({e})", metadata::FILE_NAME);
        HypervisorError::new(
            Step::Verify,
            &place,
            ErrorClass::Repository,
            cause,
            "see that this is a whole restore point",
        )
    })?;
    let chain = vec![metadata.restore_point.clone()];
    let mut report = VerifyReport { metadata: metadata.clone(), chain, files: Vec::new(), broken_links: Vec::new() };
    let (mut dir, mut point) = (restore_point_dir.to_owned(), metadata);
    loop {
        for disk in &point.disks {
            let fault = match image::check(&dir.join(&disk.file)).await {
                Ok(Check::Sound) => chain::file_fault(&dir, &point, disk),
                Ok(Check::Damaged(found)) | Err(found) => Some(found),
            };
            let restore_point = point.restore_point.clone();
            report.files.push(VerifiedFile { restore_point, file: disk.file.clone(), fault });
        }
        let Some(parent) = point.parent.clone() else { return Ok(report) };
        dir.set_file_name(&parent);
        report.chain.push(parent.clone());
        let broken = |why: String| BrokenLink { restore_point: parent.clone(), why };
        let why = match metadata::read(&dir) {
            Ok(_) if report.chain.len() > POINTS_MAX => "it has no beginning".into(),
            Ok(below) if below.restore_point != parent => format!("its description is that of {}", below.restore_point),
            Ok(below) => {
                let fault = chain::link_fault(&point, &below);
                let of_child = |why| BrokenLink { restore_point: point.restore_point.clone(), why };
                report.broken_links.extend(fault.map(of_child));
                point = below;
                continue;
            }
            Err(e) => format!("{} cannot be read ({e})", metadata::FILE_NAME),
        };
        report.broken_links.push(broken(why));
        return Ok(report);
    }
}

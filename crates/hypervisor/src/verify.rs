//! Checking a finished restore point's images. Knows nothing of VMs; changes nothing.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorClass, HypervisorError, Step};
use crate::image::{self, Check};
use crate::metadata::{self, RestorePointMetadata};

/// One image of a restore point, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedFile {
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
    /// Each of its images.
    pub files: Vec<VerifiedFile>,
}

impl VerifyReport {
    /// Whether every image is sound.
    pub fn is_sound(&self) -> bool {
        self.files.iter().all(|f| f.fault.is_none())
    }
}

/// Checks every image that the restore point's metadata names, by `qemu-img check`.
///
/// # Errors
/// If the folder is no restore point. A damaged or missing image is no error but a fault in the report.
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
    let mut files = Vec::with_capacity(metadata.disks.len());
    for disk in &metadata.disks {
        let fault = match image::check(&restore_point_dir.join(&disk.file)).await {
            Ok(Check::Sound) => None,
            Ok(Check::Damaged(found)) | Err(found) => Some(found),
        };
        files.push(VerifiedFile { file: disk.file.clone(), fault });
    }
    Ok(VerifyReport { metadata, files })
}

//! From copied images to a restore point: checked, durable, named, described.
//!
//! `restore-point.json` is written last; before it there is no restore point, with it there is a whole one. Knows nothing of the
//! hypervisor: its nodes are gone when this begins.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backup::{PlannedDisk, PreparedBackup, Stage};
use crate::error::{ErrorClass, HypervisorError, Step};
use crate::files::{self, Layout};
use crate::image::{self, Check};
use crate::metadata::{DiskFile, Kind, RestorePointMetadata, SkippedDrive, VERSION};
use crate::names::bitmap_name;
use crate::qcow2::{self, Header};

/// A restore point's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePointFiles {
    /// Its folder.
    pub dir: PathBuf,
    /// The disks' images, by index.
    pub disks: Vec<PathBuf>,
    /// What `restore-point.json` says.
    pub metadata: RestorePointMetadata,
}

impl PreparedBackup {
    /// Checks every image, makes it durable, gives it its name, and writes `restore-point.json`. From then on
    /// [`PreparedBackup::abandon`] and dropping do nothing, and the bitmap is owed.
    ///
    /// # Errors
    /// [`ErrorClass::Repository`] if an image is damaged or cannot be made durable. Then [`PreparedBackup::abandon`].
    pub async fn finish(&mut self) -> Result<RestorePointFiles, HypervisorError> {
        self.expect(Stage::Copied, Step::Finish)?;
        self.stage = Stage::Ended;
        let mut disks = Vec::with_capacity(self.disks.len());
        for planned in &self.disks {
            disks.push(self.finish_disk(planned).await?);
        }
        let metadata = self.metadata(disks);
        let json = serde_json::to_vec_pretty(&metadata).map_err(|e| self.finish_fault(e.to_string()))?;
        let layout = self.ground.layout.clone();
        let wanted = Arc::new(());
        let still_wanted = Arc::downgrade(&wanted);
        self.durably(move || files::complete(&layout, &json, || still_wanted.strong_count() > 0))
            .await
            .map_err(|cause| self.finish_fault(cause))?;
        drop(wanted);
        self.stage = Stage::Finished;
        self.claim = None;
        let disks = self.disks.iter().map(|d| self.ground.layout.disk(d.index)).collect();
        Ok(RestorePointFiles { dir: self.ground.layout.point_dir.clone(), disks, metadata })
    }

    async fn finish_disk(&self, planned: &PlannedDisk) -> Result<DiskFile, HypervisorError> {
        use std::os::unix::fs::MetadataExt;
        let (partial, disk) = (self.ground.layout.partial(planned.index), self.ground.layout.disk(planned.index));
        match image::check(&partial).await {
            Ok(Check::Sound) => {}
            Ok(Check::Damaged(found)) => {
                return Err(self.finish_fault(format!("qemu-img check found {} damaged: {found}", partial.display())));
            }
            Err(cause) => return Err(self.finish_fault(format!("{} cannot be checked: {cause}", partial.display()))),
        }
        let path = partial.clone();
        let sync_and_rename = move || {
            files::sync_file(&path)?;
            std::fs::rename(&path, &disk)?;
            Ok((std::fs::metadata(&disk)?.blocks() * 512, qcow2::read_header(&disk)?))
        };
        let (file_bytes, header) = self
            .durably(sync_and_rename)
            .await
            .map_err(|cause| self.finish_fault(format!("{}: {cause}", partial.display())))?;
        let disk = &planned.disk;
        let Header { virtual_bytes, backing, length_bytes } = header;
        if (virtual_bytes, &backing) != (disk.virtual_bytes, &planned.backing) {
            let cause =
                format!("{} is of {virtual_bytes} bytes over {backing:?}, not as it was made", partial.display());
            return Err(self.finish_fault(cause));
        }
        Ok(DiskFile {
            index: planned.index,
            file: Layout::disk_name(planned.index),
            format: "qcow2".into(),
            virtual_bytes,
            file_bytes,
            length_bytes: Some(length_bytes),
            name: disk.name.clone(),
            qdev: disk.qdev.clone(),
            node_name: planned.node_name.clone(),
            source_file: disk.file.clone(),
            source_format: disk.format.clone(),
            bitmap_persistent: disk.bitmap_persistent,
        })
    }

    fn metadata(&self, disks: Vec<DiskFile>) -> RestorePointMetadata {
        let (order, facts) = (&self.ground.order, &self.facts);
        let skipped = facts
            .disks
            .iter()
            .filter_map(|d| d.skip.map(|reason| SkippedDrive { name: d.name.clone(), reason: reason.to_string() }));
        let (level, level_reasons) = self.level.clone().unzip();
        RestorePointMetadata {
            version: VERSION,
            vm: self.ground.vm.name.clone(),
            uuid: facts.uuid.clone(),
            restore_point: order.restore_point.clone(),
            parent: self.parent().map(str::to_owned),
            kind: if self.parent.is_some() { Kind::Incremental } else { Kind::Full },
            full_because: self.full_because().map(ToString::to_string),
            bitmap: bitmap_name(&order.restore_point),
            disks,
            skipped: skipped.collect(),
            // Stage Copied comes after Taken, which sets it.
            created: self.taken_at.unwrap_or_default(),
            atomic: self.atomic,
            task: order.task.clone(),
            epoch: order.epoch,
            qemu_version: facts.qemu_version.clone(),
            level,
            level_reasons: level_reasons.unwrap_or_default(),
            origin: order.origin.clone(),
            annotations: self.annotations.clone(),
        }
    }

    fn finish_fault(&self, cause: String) -> HypervisorError {
        let remedy = "see to the repository's space and storage, then run the job again";
        self.ground.fail(Step::Finish, ErrorClass::Repository, cause, remedy)
    }
}

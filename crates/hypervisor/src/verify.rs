//! Checking a finished restore point: its own images and every one that they lie over. Knows nothing of VMs; changes nothing.
//!
//! Damage is what was seen. What could not be looked at (storage that is away or fails, no `qemu-img`) is told apart and says nothing.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chain::{self, BrokenLink, POINTS_MAX};
use crate::image::{self, Check};
use crate::metadata::{self, DiskFile, RestorePointMetadata};
use crate::qcow2;

/// What was seen of an image or a description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// Nothing is wrong.
    Sound,
    /// What is wrong.
    Damaged(String),
    /// Why it could not be looked at.
    NotChecked(String),
}

impl Finding {
    /// What is wrong.
    pub fn fault(&self) -> Option<&str> {
        if let Finding::Damaged(why) = self { Some(why) } else { None }
    }
}

/// One image of a chain, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedFile {
    /// The restore point that the image belongs to: the one that was asked for, or one that it builds on.
    pub restore_point: String,
    /// The image's file name.
    pub file: String,
    /// What was seen.
    pub finding: Finding,
}

/// A restore point, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The point that was asked for, then what each builds on, as far as the chain could be followed; the last may be the one that is missing.
    pub chain: Vec<String>,
    /// Each of its images, then each of its parent's, and so on to the full backup.
    pub files: Vec<VerifiedFile>,
    /// What is wrong between two points of the chain, or where it ends too early.
    pub broken_links: Vec<BrokenLink>,
    /// Where the chain could not be followed, and why.
    pub not_followed: Option<BrokenLink>,
}

impl VerifyReport {
    /// Whether every image is sound, and the chain whole.
    pub fn is_sound(&self) -> bool {
        let is_sound = |file: &VerifiedFile| file.finding == Finding::Sound;
        self.broken_links.is_empty() && self.not_followed.is_none() && self.files.iter().all(is_sound)
    }
}

/// Checks the whole chain of a restore point: every image by `qemu-img check`, and that sizes, lengths and what lies over what are as
/// the descriptions say.
pub async fn verify(restore_point_dir: &Path) -> VerifyReport {
    let mut report = VerifyReport::default();
    let mut dir = restore_point_dir.to_owned();
    let mut child: Option<RestorePointMetadata> = None;
    loop {
        let id = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let again = report.chain.contains(&id);
        report.chain.push(id.clone());
        let at = |why: String| BrokenLink { restore_point: id.clone(), why };
        let point = match metadata::read(&dir) {
            Ok(_) if again || report.chain.len() > POINTS_MAX => Finding::Damaged("its chain has no beginning".into()),
            Ok(point) if point.restore_point != id => {
                Finding::Damaged(format!("its description is that of {}", point.restore_point))
            }
            Ok(point) => {
                let fault = child.as_ref().and_then(|child| Some((child, chain::link_fault(child, &point)?)));
                let of_child = |(child, why): (&RestorePointMetadata, _)| BrokenLink {
                    restore_point: child.restore_point.clone(),
                    why,
                };
                report.broken_links.extend(fault.map(of_child));
                for disk in &point.disks {
                    let finding = examined(&dir, &point, disk).await;
                    report.files.push(VerifiedFile { restore_point: id.clone(), file: disk.file.clone(), finding });
                }
                let Some(parent) = &point.parent else { return report };
                dir.set_file_name(parent);
                child = Some(point);
                continue;
            }
            Err(error) => unreadable(&dir, metadata::FILE_NAME, &error),
        };
        match point {
            Finding::Sound => {}
            Finding::Damaged(why) => report.broken_links.push(at(why)),
            Finding::NotChecked(why) => report.not_followed = Some(at(why)),
        }
        return report;
    }
}

async fn examined(dir: &Path, point: &RestorePointMetadata, disk: &DiskFile) -> Finding {
    let path = dir.join(&disk.file);
    let checked = image::check(&path).await;
    let by_header = match qcow2::read_header(&path) {
        Ok(header) => chain::header_fault(point, disk, &header).map_or(Finding::Sound, Finding::Damaged),
        Err(error) => unreadable(dir, &disk.file, &error),
    };
    match (checked, by_header) {
        // Storage that went away under the check, or is not there at all.
        (_, Finding::NotChecked(why)) => Finding::NotChecked(why),
        (_, Finding::Damaged(why)) => Finding::Damaged(why),
        (Ok(Check::Damaged(why)), Finding::Sound) => Finding::Damaged(why),
        (Err(why), Finding::Sound) => Finding::NotChecked(why),
        (Ok(Check::Sound), Finding::Sound) => Finding::Sound,
    }
}

/// What it means that one of a point's files cannot be read. It is missing only where the VM's folder is there: a repository that is not mounted
/// must not look like files that are gone.
fn unreadable(dir: &Path, file: &str, error: &io::Error) -> Finding {
    let what = format!("{file} cannot be read ({error})");
    let above = dir.parent().unwrap_or(dir);
    match std::fs::metadata(above) {
        Ok(_) if image::is_of_the_machine(error) || error.kind() == io::ErrorKind::Unsupported => {
            Finding::NotChecked(what)
        }
        Ok(_) => Finding::Damaged(what),
        Err(away) => Finding::NotChecked(format!(
            "{} cannot be looked at ({away}): mount the repository; where its files are gone for good, make that folder",
            above.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::tests::{point, write};

    /// A chain of two with whole images; the second is asked for.
    async fn pair(vm_dir: &Path) {
        for (id, parent) in [("aa", ""), ("bb", "aa")] {
            let mut point = point(id, parent);
            point.disks.truncate(1);
            write(vm_dir, &point);
            let backing = point.parent.as_deref().map(|parent| chain::backing_name(parent, "disk0.qcow2"));
            let image = vm_dir.join(id).join("disk0.qcow2");
            image::create(&image, point.disks[0].virtual_bytes, backing.as_deref()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_could_not_be_looked_at_is_not_called_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let vm_dir = dir.path().join("vm");
        pair(&vm_dir).await;
        assert!(verify(&vm_dir.join("bb")).await.is_sound());

        // The files are gone, and the folder that held them is there.
        std::fs::rename(vm_dir.join("aa"), dir.path().join("aa")).unwrap();
        let report = verify(&vm_dir.join("bb")).await;
        assert_eq!(report.broken_links[0].restore_point, "aa");
        assert_eq!(report.not_followed, None);
        let report = verify(&vm_dir.join("aa")).await;
        assert!(report.broken_links[0].why.contains("cannot be read"), "{report:?}");

        // Nothing is there: the repository is not mounted.
        std::fs::rename(&vm_dir, dir.path().join("hidden")).unwrap();
        let report = verify(&vm_dir.join("bb")).await;
        assert!(report.broken_links.is_empty() && !report.is_sound(), "{report:?}");
        assert!(report.not_followed.unwrap().why.contains("mount the repository"));
        std::fs::rename(dir.path().join("hidden"), &vm_dir).unwrap();

        // A newer version knows what it means.
        std::fs::rename(dir.path().join("aa"), vm_dir.join("aa")).unwrap();
        let description = vm_dir.join("aa").join(metadata::FILE_NAME);
        let text = std::fs::read_to_string(&description).unwrap();
        std::fs::write(&description, text.replace("\"version\":2", "\"version\":9")).unwrap();
        let report = verify(&vm_dir.join("bb")).await;
        assert!(report.not_followed.unwrap().why.contains("newer Lull") && report.broken_links.is_empty());
        std::fs::write(&description, "{}").unwrap();
        assert_eq!(verify(&vm_dir.join("bb")).await.broken_links.len(), 1);
        std::fs::write(&description, text).unwrap();

        // An image that is gone or none is damaged, whatever the check's exit code.
        let image = vm_dir.join("aa/disk0.qcow2");
        std::fs::write(&image, [0; 4096]).unwrap();
        let report = verify(&vm_dir.join("bb")).await;
        assert_eq!((&report.files[0].finding, report.files[1].finding.fault().is_some()), (&Finding::Sound, true));
        std::fs::remove_file(&image).unwrap();
        assert!(verify(&vm_dir.join("bb")).await.files[1].finding.fault().is_some());
    }
}

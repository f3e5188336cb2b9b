//! Removing a restore point's files. Whether it may go is decided elsewhere; its bitmap goes with the VM's next task, which owes it no more.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::metadata;

/// Whether the folder of a restore point can be got at, or is gone from where it was: a repository that is not mounted must not look like files
/// that are gone.
///
/// # Errors
/// What is in the way, and what to do.
pub fn in_reach(repository: &Path, restore_point_dir: &Path) -> Result<(), String> {
    let below = restore_point_dir.strip_prefix(repository).is_ok_and(|rest| rest.components().count() > 0);
    if !below || restore_point_dir.components().any(|part| part == std::path::Component::ParentDir) {
        let (dir, repository) = (restore_point_dir.display(), repository.display());
        return Err(format!("{dir} does not lie in the repository's folder {repository}"));
    }
    // The mount point of one that is not mounted is a folder, too.
    let above = restore_point_dir.parent().unwrap_or(repository);
    for folder in [repository, above] {
        match std::fs::metadata(folder) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(format!("{} is no folder", folder.display())),
            Err(error) => {
                return Err(format!(
                    "{} cannot be looked at ({error}): mount the repository; where its files are gone for good, make that folder",
                    folder.display()
                ));
            }
        }
    }
    Ok(())
}

/// Deletes what belongs to a restore point with these images, and nothing else: a folder with anything else in it stays. What is gone already is
/// no error, so that a removal that broke off can be repeated.
///
/// # Errors
/// What could not be deleted, and why.
pub fn remove_files(restore_point_dir: &Path, disks: &[String]) -> Result<(), String> {
    let gone = |what: &Path, done: io::Result<()>| match done {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("{}: {error}", what.display())),
        _ => Ok(()),
    };
    // The list of its files goes last: until then it is known what is left.
    for file in disks.iter().map(String::as_str).chain([metadata::FILE_NAME]) {
        if file.contains('/') {
            return Err(format!("{file} is no file name"));
        }
        let file = restore_point_dir.join(file);
        gone(&file, std::fs::remove_file(&file))?;
    }
    gone(restore_point_dir, std::fs::remove_dir(restore_point_dir))
}

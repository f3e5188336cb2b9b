//! The component's own file: gone from the guest as soon as it runs.
//!
//! Removes `…/lull-SUFFIX/lull-runtime` and the folder, and nothing that looks different: a component that somebody started from
//! another place leaves that place alone. Knows nothing of how it was put there.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Prefix of the deployment folder.
pub const FOLDER_PREFIX: &str = "lull-";
/// Name of the component in it.
pub const FILE_NAME: &str = "lull-runtime";

/// The fence of the order that brought a program, from its path: `…/lull-SUFFIX.FENCE/lull-runtime`, removed or not. 0 is none.
pub fn fence(program: &Path) -> Option<u64> {
    let name = program.file_name()?.to_str()?;
    let folder = program.parent()?.file_name()?.to_str()?.strip_prefix(FOLDER_PREFIX)?;
    let (_, fence) = folder.split_once('.')?;
    let is_ours = name.strip_suffix(" (deleted)").unwrap_or(name) == FILE_NAME;
    fence.parse().ok().filter(|fence| is_ours && *fence > 0)
}

/// Removes the running program's file and folder. Says what is left, one sentence each.
pub fn remove_own_file() -> Vec<String> {
    match std::fs::read_link("/proc/self/exe") {
        Ok(path) => remove(&path),
        Err(e) => vec![format!("the component's own file is unknown: {e}")],
    }
}

fn remove(program: &Path) -> Vec<String> {
    if program.to_string_lossy().ends_with(" (deleted)") {
        return Vec::new();
    }
    let Some(folder) = deployment_folder(program) else {
        return vec![format!("{} (not a deployment folder: left alone)", program.display())];
    };
    let mut left = Vec::new();
    if let Err(e) = std::fs::remove_file(program) {
        left.push(format!("{} ({e})", program.display()));
    }
    if let Err(e) = std::fs::remove_dir(&folder) {
        left.push(format!("{} ({e})", folder.display()));
    }
    left
}

/// The folder of `program`, if it is one that a proxy made: the right names, ours, closed to everybody else.
fn deployment_folder(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?;
    let suffix = folder.file_name()?.to_str()?.strip_prefix(FOLDER_PREFIX)?;
    let named = !suffix.is_empty() && program.file_name()? == FILE_NAME;
    let meta = std::fs::symlink_metadata(folder).ok()?;
    // SAFETY: no pointers.
    let own = unsafe { libc::geteuid() };
    let closed = meta.is_dir() && meta.uid() == own && meta.permissions().mode() & 0o077 == 0;
    (named && closed).then(|| folder.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(folder: &str, file: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
        let program = folder.join(file);
        std::fs::write(&program, "").unwrap();
        (scratch, program)
    }

    #[test]
    fn a_deployment_is_removed_with_its_folder() {
        let (_scratch, program) = deploy("lull-a1b2", "lull-runtime", 0o700);
        assert!(remove(&program).is_empty());
        assert!(!program.parent().unwrap().exists());
    }

    #[test]
    fn whatever_else_is_in_the_folder_is_kept_and_named() {
        let (_scratch, program) = deploy("lull-a1b2", "lull-runtime", 0o700);
        std::fs::write(program.with_file_name("other"), "").unwrap();
        let left = remove(&program);
        assert_eq!(left.len(), 1);
        assert!(left[0].contains("lull-a1b2") && !program.exists());
    }

    #[test]
    fn the_folder_tells_the_fence() {
        let check = |path: &str, expect| assert_eq!(fence(Path::new(path)), expect, "{path}");
        check("/run/lull-00c0ffee00c0ffee.17/lull-runtime", Some(17));
        check("/run/lull-00c0ffee00c0ffee.17/lull-runtime (deleted)", Some(17));
        check("/run/lull-00c0ffee00c0ffee.0/lull-runtime", None);
        check("/run/lull-00c0ffee00c0ffee/lull-runtime (deleted)", None);
        check("/run/lull-00c0ffee00c0ffee.17/other", None);
        check("/bin/lull-runtime", None);
    }

    #[test]
    fn anything_that_is_no_deployment_is_left_alone() {
        for (folder, file, mode) in [
            ("bin", "lull-runtime", 0o700),
            ("lull-x", "other", 0o700),
            ("lull-x", "lull-runtime", 0o755),
            ("lull-", "lull-runtime", 0o700),
        ] {
            let (_scratch, program) = deploy(folder, file, mode);
            assert!(remove(&program)[0].contains("left alone"));
            assert!(program.exists());
        }
    }
}

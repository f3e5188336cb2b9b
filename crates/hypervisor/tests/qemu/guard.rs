//! Which file system of this machine a test may freeze: one whose image lies beside the place where the test mounted it, and
//! none that the machine runs on. Knows nothing of what it is frozen for.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// Panics unless `dir` is such a place.
pub fn assert_may_be_frozen(dir: &Path) {
    let device = |path: &Path| std::fs::metadata(path).map(|data| data.dev()).ok();
    let own = device(dir);
    let beside = dir.parent().unwrap().canonicalize().unwrap();
    assert!(own.is_some() && own != device(&beside), "refusing to freeze {}: it is no mount of its own", dir.display());
    for path in ["/", "/boot", "/etc", "/home", "/root", "/tmp", "/usr", "/var"] {
        assert_ne!(own, device(Path::new(path)), "refusing to freeze {}: it holds {path}", dir.display());
    }
    let findmnt = Command::new("findmnt").args(["-n", "-o", "SOURCE", "--mountpoint"]).arg(dir).output().unwrap();
    let source = String::from_utf8(findmnt.stdout).unwrap();
    let name = source.trim().strip_prefix("/dev/").filter(|name| name.starts_with("loop"));
    let name = name.unwrap_or_else(|| panic!("refusing to freeze {}: {source} is no loop device", dir.display()));
    let image = std::fs::read_to_string(format!("/sys/class/block/{name}/loop/backing_file")).unwrap();
    let image = Path::new(image.trim_end());
    assert_eq!(image.parent(), Some(&*beside), "refusing to freeze {}: its image lies elsewhere", dir.display());
}

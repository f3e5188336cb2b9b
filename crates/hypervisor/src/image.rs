//! `qemu-img`: creating empty images and checking finished ones.
//!
//! A process of its own, so that slow storage holds up this program and never a VM. Knows nothing of VMs.
//!
//! An image that cannot be read is damaged; a machine that cannot read it says nothing of the image ([`is_of_the_machine`]).

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

/// Time for creating an empty image, in ms.
const CREATE_MS: u64 = 60_000;
/// Time for checking an image, in ms. A check reads all tables: minutes for many TB on slow storage.
const CHECK_MS: u64 = 3_600_000;

/// What the machine or its storage answers where a file's content is not the matter.
const OF_THE_MACHINE: &[Errno] = &[
    Errno::IO,
    Errno::ACCESS,
    Errno::PERM,
    Errno::STALE,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
    Errno::AGAIN,
    Errno::INTR,
    Errno::BUSY,
    Errno::TIMEDOUT,
    Errno::NXIO,
    Errno::NODEV,
    Errno::NOTCONN,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
    Errno::REMOTEIO,
    Errno::SHUTDOWN,
];

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    Sound,
    /// What `qemu-img check` found.
    Damaged(String),
}

/// Creates an empty qcow2 image, over another where one is named; that one is opened, with all that lies under it.
pub(crate) async fn create(path: &Path, virtual_bytes: u64, backing: Option<&str>) -> Result<(), String> {
    let size = virtual_bytes.to_string();
    let mut command = qemu_img();
    command.args(["create", "-q", "-f", "qcow2"]);
    if let Some(backing) = backing {
        command.args(["-F", "qcow2", "-b", backing]);
    }
    command.arg("--").arg(path).arg(size);
    let (code, output) = run(command, CREATE_MS).await?;
    if code == Some(0) { Ok(()) } else { Err(output) }
}

/// Checks a qcow2 image, without what it lies over. `Err`: the check itself could not be done, which says nothing of the image.
pub(crate) async fn check(path: &Path) -> Result<Check, String> {
    let Some(filename) = path.to_str() else { return Err(format!("{} is not UTF-8", path.display())) };
    let node = json!({"driver": "qcow2", "backing": null, "file": {"driver": "file", "filename": filename}});
    let mut command = qemu_img();
    command.args(["check", "-q", "--"]).arg(format!("json:{node}"));
    let (code, output) = run(command, CHECK_MS).await?;
    match code {
        Some(0) => Ok(Check::Sound),
        // 2: corrupt, 3: leaked clusters only. A finished copy has neither.
        Some(2 | 3) => Ok(Check::Damaged(output)),
        // 1: it could not be opened or read, because of what is in it or because of the machine.
        Some(1) if !tells_of_the_machine(&output) => Ok(Check::Damaged(output)),
        None => Err(format!("qemu-img was killed; {output}")),
        Some(_) => Err(output),
    }
}

/// Whether an error is the machine's or its storage's, and says nothing of what a file holds.
pub(crate) fn is_of_the_machine(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|raw| OF_THE_MACHINE.iter().any(|errno| errno.raw_os_error() == raw))
}

/// The same of what `qemu-img` said. It ends with the system's words for the error, or names a lock that another program holds.
fn tells_of_the_machine(output: &str) -> bool {
    let words = |errno: &Errno| {
        let shown = io::Error::from(*errno).to_string();
        shown.split_once(" (os error").map_or(shown.clone(), |(words, _)| words.to_owned())
    };
    let ends_with = |errno: &Errno| output.split("; ").any(|line| line.ends_with(&words(errno)));
    output.contains("Failed to get") && output.contains("lock") || OF_THE_MACHINE.iter().any(ends_with)
}

fn qemu_img() -> Command {
    let mut command = Command::new("qemu-img");
    // In the words that are looked for.
    command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Exit code (`None`: killed) and what it said, in one line.
async fn run(mut command: Command, within_ms: u64) -> Result<(Option<i32>, String), String> {
    let output = timeout(Duration::from_millis(within_ms), command.output())
        .await
        .map_err(|_| format!("qemu-img did not end within {within_ms} ms"))?
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "qemu-img is not installed (package qemu-utils)".to_owned(),
            _ => format!("qemu-img cannot be started ({e})"),
        })?;
    let said = [output.stderr, output.stdout].concat();
    let said =
        String::from_utf8_lossy(&said).lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
    Ok((output.status.code(), said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_image_is_created_and_checked_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("--odd name.qcow2");
        create(&image, 1 << 20, None).await.unwrap();
        assert_eq!(check(&image).await, Ok(Check::Sound));
        let over = dir.path().join("over, \"quoted\".qcow2");
        create(&over, 1 << 20, Some("--odd name.qcow2")).await.unwrap();
        assert!(create(&dir.path().join("x"), 1 << 20, Some("none.qcow2")).await.is_err());
        // The refcount table's first entry points nowhere: every cluster in use is then unaccounted for.
        let mut bytes = std::fs::read(&image).unwrap();
        let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
        bytes[table..table + 8].fill(0);
        std::fs::write(&image, bytes).unwrap();
        assert!(matches!(check(&image).await, Ok(Check::Damaged(_))));
        assert_eq!(check(&over).await, Ok(Check::Sound), "what it lies over is checked by itself");
        assert!(
            matches!(check(&dir.path().join("none")).await, Ok(Check::Damaged(_))),
            "whether its storage is there is not known here"
        );
    }

    #[test]
    fn what_the_machine_cannot_read_is_not_what_is_damaged() {
        let open = "qemu-img: Could not open 'json:{\"driver\": \"qcow2\"}': ";
        for machine in [
            "Could not open '/r/disk0.qcow2': Permission denied",
            "Could not read qcow2 header: Input/output error",
            "Could not open '/r/disk0.qcow2': Stale file handle",
            "Failed to get shared \"write\" lock; Is another process using the image [/r/disk0.qcow2]?",
        ] {
            assert!(tells_of_the_machine(&format!("{open}{machine}")), "{machine}");
        }
        for image in
            ["Image is not in qcow2 format", "Active L1 table offset invalid", "File too large", "Invalid argument"]
        {
            assert!(!tells_of_the_machine(&format!("{open}{image}")), "{image}");
        }
        assert!(is_of_the_machine(&io::Error::from_raw_os_error(5)));
        assert!(!is_of_the_machine(&io::Error::from(io::ErrorKind::NotFound)));
    }
}

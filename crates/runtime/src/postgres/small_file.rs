//! Reads a small file that somebody else controls: never a FIFO or device, never through a last symlink, never more than was allowed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

/// The whole content of the regular file at `path`.
///
/// Errors: what opening gives (`ELOOP` for a symlink), `InvalidInput` for anything but a regular file, `FileTooLarge` past `bytes_max`.
pub(super) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK a FIFO put there by its owner would hold us for good.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut content = Vec::new();
    file.by_ref().take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {bytes_max} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_a_symlink_and_a_long_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, b"12345").unwrap();
        assert_eq!(read(&plain, 5).unwrap(), b"12345");
        assert_eq!(read(&plain, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        let looped = rustix::io::Errno::LOOP.raw_os_error();
        assert_eq!(read(&link, 5).unwrap_err().raw_os_error(), Some(looped));

        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(read(&fifo, 5).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

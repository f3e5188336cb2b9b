//! The header of a qcow2 image: how large the disk is, and which image lies under it.
//!
//! Read by this program itself, bounded and without a process: a repository holds many images, and some may have been put there
//! by others. Whether an image's tables are sound is `qemu-img check`'s business ([`crate::image`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// All of the header that is read, in bytes.
const HEADER_BYTES: usize = 32;
/// The format allows no longer name of a backing file, in bytes.
const BACKING_BYTES_MAX: u32 = 1023;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Size the guest sees.
    pub virtual_bytes: u64,
    /// The image under this one, as it is written: relative to this image's folder.
    pub backing: Option<String>,
    /// Size of the file, in bytes.
    pub length_bytes: u64,
}

/// Opens a regular file and nothing else: no link is followed, and no pipe waited for.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(invalid("it is not a regular file")) }
}

/// Reads an image's header.
pub(crate) fn read_header(path: &Path) -> io::Result<Header> {
    let mut file = open_regular(path)?;
    let length_bytes = file.metadata()?.len();
    let mut head = [0; HEADER_BYTES];
    file.read_exact(&mut head).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => invalid("it is no qcow2 image"),
        _ => e,
    })?;
    let (virtual_bytes, backing_at, backing_bytes) = parse(&head).map_err(invalid)?;
    let backing = match backing_bytes {
        0 => None,
        bytes => {
            let mut name = vec![0; bytes as usize];
            file.seek(SeekFrom::Start(backing_at))?;
            file.read_exact(&mut name)?;
            Some(String::from_utf8(name).map_err(|_| invalid("its backing file's name is not UTF-8"))?)
        }
    };
    Ok(Header { virtual_bytes, backing, length_bytes })
}

/// Virtual size, and where the backing file's name lies and how long it is (0: there is none).
fn parse(head: &[u8; HEADER_BYTES]) -> Result<(u64, u64, u32), &'static str> {
    // The array is long enough for each of these.
    let u32_at = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    if head[..4] != MAGIC || !matches!(u32_at(4), 2 | 3) {
        return Err("it is no qcow2 image");
    }
    let (backing_at, backing_bytes) = (u64_at(8), u32_at(16));
    if backing_at == 0 {
        return Ok((u64_at(24), 0, 0));
    }
    if backing_bytes == 0 || backing_bytes > BACKING_BYTES_MAX {
        return Err("its backing file's name has no possible length");
    }
    Ok((u64_at(24), backing_at, backing_bytes))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file that is as much of an image as this module reads.
    pub(crate) fn image(virtual_bytes: u64, backing: Option<&str>) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&virtual_bytes.to_be_bytes());
        if let Some(name) = backing {
            bytes[8..16].copy_from_slice(&128u64.to_be_bytes());
            bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            bytes.extend(name.as_bytes());
        }
        bytes
    }

    #[test]
    fn size_and_backing_file_are_read_from_a_real_image() {
        let dir = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let done = std::process::Command::new("qemu-img").args(arguments).current_dir(dir.path()).output().unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        run(&["create", "-q", "-f", "qcow2", "a/disk0.qcow2", "66048"]);
        run(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "../a/disk0.qcow2", "b/disk0.qcow2", "66048"]);
        let base = read_header(&dir.path().join("a/disk0.qcow2")).unwrap();
        assert_eq!((base.virtual_bytes, base.backing), (66048, None));
        let over = read_header(&dir.path().join("b/disk0.qcow2")).unwrap();
        assert_eq!((over.virtual_bytes, over.backing.as_deref()), (66048, Some("../a/disk0.qcow2")));
    }

    #[test]
    fn what_is_no_image_is_refused_and_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        for content in [&b""[..], b"QFI\xfb", &[0; 200]] {
            std::fs::write(&file, content).unwrap();
            assert!(read_header(&file).is_err());
        }
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(read_header(&pipe).is_err());
        std::fs::write(&file, image(512, None)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(read_header(&link).is_err());
        assert_eq!(read_header(&file).unwrap().virtual_bytes, 512);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_read_without_bound(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), real: bool) {
            if real && bytes.len() > 20 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            if let Ok(header) = read_header(file.path()) {
                prop_assert!(header.backing.is_none_or(|b| b.len() <= BACKING_BYTES_MAX as usize));
            }
        }
    }
}

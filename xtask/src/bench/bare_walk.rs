//! The least that any walk which looks at every entry costs: open each folder, read its names, `statx` each, by two threads, and nothing else.
//!
//! Its time is the kernel's. What a walker takes beyond it is the walker's own. Knows nothing of Lull.

use anyhow::{Result, anyhow};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, StatxFlags, openat, statx};
use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

const THREADS: usize = 2;
const NAMES_BYTES: usize = 64 * 1024;

#[derive(Default)]
struct Todo {
    folders: Vec<PathBuf>,
    working: usize,
}

/// Milliseconds that it takes.
///
/// # Errors
/// When a folder cannot be read.
pub fn timed(tree: &Path) -> Result<f64> {
    let began = Instant::now();
    let todo = Mutex::new(Todo { folders: vec![tree.to_path_buf()], working: 0 });
    let changed = Condvar::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| work(&todo, &changed))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread broke off"))?)
    })?;
    Ok(began.elapsed().as_secs_f64() * 1_000.0)
}

fn work(todo: &Mutex<Todo>, changed: &Condvar) -> Result<()> {
    let mut names = vec![MaybeUninit::uninit(); NAMES_BYTES];
    let mut state = todo.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(folder) = state.folders.pop() else {
            if state.working == 0 {
                return Ok(());
            }
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.working += 1;
        drop(state);
        let below = list(&folder, &mut names);
        state = todo.lock().unwrap_or_else(PoisonError::into_inner);
        state.working -= 1;
        changed.notify_all();
        state.folders.extend(below?);
    }
}

/// The folders in it.
fn list(folder: &Path, names: &mut [MaybeUninit<u8>]) -> Result<Vec<PathBuf>> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let open = openat(CWD, &path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let mut below = Vec::new();
    let mut entries = RawDir::new(&open, names);
    while let Some(entry) = entries.next().transpose()? {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        statx(&open, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS)?;
        if entry.file_type() == FileType::Directory {
            below.push(folder.join(OsStr::from_bytes(name.to_bytes())));
        }
    }
    Ok(below)
}

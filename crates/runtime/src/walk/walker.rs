//! One walker: takes folder after folder, lists each, and finds the folders below it.
//!
//! Everything that it needs is allocated once. Knows nothing of where a walk begins or how its frames leave.

use super::Shared;
use super::outgoing::Stopped;
use super::packer::Packer;
use super::pending::{Item, Kept, Node};
use super::stat;
use super::tally::Tally;
use crate::kernel;
use lull_guest_wire::listing::{Entry, Kind, PATH_BYTES_MAX};
use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::thread::JoinHandle;

/// The kernel fills so much with names at once.
const NAMES_BYTES: usize = 64 * 1024;
/// Folders are handed to the others so many at a time.
const SHARE: usize = 64;
/// A folder that was put aside goes on by so many folders at least, however little room there is.
const PROGRESS: usize = 8;

/// A walker's thread.
pub struct Walker {
    thread: JoinHandle<Result<Tally, String>>,
    id: Arc<AtomicI32>,
}

impl Walker {
    /// Starts it.
    pub fn spawn(shared: Arc<Shared>, stack_bytes: usize) -> std::io::Result<Walker> {
        let id = Arc::new(AtomicI32::new(0));
        let builder = std::thread::Builder::new().name("lull-walk".into()).stack_size(stack_bytes);
        let thread = builder.spawn({
            let id = id.clone();
            move || {
                // SAFETY: no pointers, cannot fail.
                id.store(unsafe { libc::gettid() }, SeqCst);
                kernel::step_back();
                work(&shared)
            }
        })?;
        Ok(Walker { thread, id })
    }

    /// The kernel's number of the thread; 0 before it runs.
    pub fn thread_id(&self) -> i32 {
        self.id.load(SeqCst)
    }

    /// Waits for its end.
    pub fn join(self) -> Result<Tally, String> {
        self.thread.join().unwrap_or_else(|_| Err("a walker broke off inside the component".into()))
    }
}

fn work(shared: &Shared) -> Result<Tally, String> {
    let mut hand = Hand {
        shared,
        packer: Packer::new(shared.outgoing.clone())?,
        tally: Tally::default(),
        path: Vec::new(),
        found: Vec::with_capacity(SHARE),
    };
    let mut names = vec![MaybeUninit::uninit(); NAMES_BYTES];
    while let Some(item) = shared.pending.next() {
        let walked = hand.folder(&item, &mut names);
        shared.pending.add(&mut hand.found);
        drop(item);
        shared.pending.done();
        if walked.is_err() {
            return Ok(hand.tally);
        }
    }
    // Stopped or not: whoever stopped the walk said why.
    let _ = hand.packer.flush();
    Ok(hand.tally)
}

struct Hand<'a> {
    shared: &'a Shared,
    packer: Packer,
    tally: Tally,
    /// The folder's, absolute.
    path: Vec<u8>,
    found: Vec<Arc<Node>>,
}

impl Hand<'_> {
    fn folder(&mut self, item: &Item, names: &mut [MaybeUninit<u8>]) -> Result<(), Stopped> {
        let start = &self.shared.starts[item.node.start];
        self.path.clear();
        self.path.extend_from_slice(&start.path);
        let mut below = self.path.len();
        if item.node.below_bytes > 0 {
            if self.path != b"/" {
                self.path.push(b'/');
            }
            below = self.path.len();
            if below + item.node.below_bytes > PATH_BYTES_MAX {
                self.tally.unreadable_folder(&self.path, &format!("a path below has more than {PATH_BYTES_MAX} bytes"));
                return Ok(());
            }
            item.node.write_path(&mut self.path);
        }
        let opened = start.opener.open(&self.path, below, item.node.in_open_folder()).and_then(|folder| {
            if let Some(place) = item.resume {
                seek(&folder, SeekFrom::Start(place))?;
            }
            Ok(item.node.keep_open(folder))
        });
        match opened {
            Ok(folder) if item.resume.is_some() => self.rest(item, folder, names),
            Ok(folder) => self.list(item, folder, names),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.tally.vanished += 1;
                Ok(())
            }
            // The root of another mount, or of one that came in between.
            Err(Errno::XDEV) => Ok(()),
            Err(e) => self.unreadable(e),
        }
    }

    fn unreadable(&mut self, errno: Errno) -> Result<(), Stopped> {
        let why = kernel::describe(errno.raw_os_error());
        self.tally.unreadable_folder(&self.path, &why);
        self.packer.end_folder(&self.path, Some(&why))
    }

    /// Lists every entry, and remembers the folders among them as long as there is room.
    fn list(&mut self, item: &Item, folder: Kept<'_>, names: &mut [MaybeUninit<u8>]) -> Result<(), Stopped> {
        let mut entries = RawDir::new(folder.as_fd(), names);
        let (mut place, mut aside) = (0, None);
        let mut unread: Option<(String, u64)> = None;
        let ended = loop {
            if self.shared.outgoing.is_stopped() {
                return Err(Stopped);
            }
            let entry = match entries.next() {
                None => break Ok(()),
                Some(Err(e)) => break Err(e),
                Some(Ok(entry)) => entry,
            };
            let (this_place, name) = (place, entry.file_name());
            place = entry.next_entry_cookie();
            if is_dots(name) {
                continue;
            }
            match stat::of(folder.as_fd(), name) {
                Ok(stat) => {
                    self.entry(name.to_bytes(), &stat)?;
                    if stat.kind == Kind::Folder && aside.is_none() && !self.remember(item, name.to_bytes(), 0) {
                        aside = Some(this_place);
                    }
                }
                Err(libc::ENOENT) => self.tally.vanished += 1,
                Err(errno) => {
                    let first = self.tally.unreadable_entry(&self.path, name.to_bytes(), errno);
                    unread.get_or_insert((first, 0)).1 += 1;
                }
            }
        };
        self.put_aside(item, aside);
        let error = match (ended, unread) {
            // Removed while it was read.
            (Err(Errno::NOENT), _) => {
                self.tally.vanished += 1;
                None
            }
            (Err(e), _) => {
                let why = kernel::describe(e.raw_os_error());
                self.tally.unreadable_folder(&self.path, &why);
                Some(why)
            }
            (Ok(()), Some((first, 1))) => Some(format!("an entry could not be read: {first}")),
            (Ok(()), Some((first, count))) => Some(format!("{count} entries could not be read, the first: {first}")),
            (Ok(()), None) => None,
        };
        self.tally.folders += 1;
        self.packer.end_folder(&self.path, error.as_deref())
    }

    fn entry(&mut self, name: &[u8], stat: &stat::Stat) -> Result<(), Stopped> {
        let stat::Stat { kind, size_bytes, mtime_us, ctime_us, mode, uid, gid } = *stat;
        let changed_after_freeze = self.shared.changed_after.is_some_and(|freeze| freeze.holds(ctime_us));
        self.tally.entries += 1;
        self.packer.entry(&self.path, &Entry { name, kind, size_bytes, mtime_us, mode, uid, gid, changed_after_freeze })
    }

    /// Finds the folders from where it was put aside. Its entries are listed.
    fn rest(&mut self, item: &Item, folder: Kept<'_>, names: &mut [MaybeUninit<u8>]) -> Result<(), Stopped> {
        let mut entries = RawDir::new(folder.as_fd(), names);
        let (mut place, mut found) = (item.resume.unwrap_or(0), 0);
        loop {
            if self.shared.outgoing.is_stopped() {
                return Err(Stopped);
            }
            let entry = match entries.next() {
                None | Some(Err(Errno::NOENT)) => return Ok(()),
                Some(Err(e)) => return self.unreadable(e),
                Some(Ok(entry)) => entry,
            };
            let name = entry.file_name();
            let is_folder = match entry.file_type() {
                FileType::Directory => !is_dots(name),
                FileType::Unknown => {
                    !is_dots(name) && stat::of(folder.as_fd(), name).is_ok_and(|stat| stat.kind == Kind::Folder)
                }
                _ => false,
            };
            if is_folder && !self.remember(item, name.to_bytes(), PROGRESS.saturating_sub(found)) {
                self.put_aside(item, Some(place));
                return Ok(());
            }
            found += usize::from(is_folder);
            place = entry.next_entry_cookie();
        }
    }

    /// Hands over what was found before the folder itself is put aside, so that it is not taken up at once.
    fn put_aside(&mut self, item: &Item, place: Option<u64>) {
        if let Some(place) = place {
            self.shared.pending.add(&mut self.found);
            self.shared.pending.put_aside(item.node.clone(), place);
        }
    }

    /// A folder in the one that is read is to be walked. False where there is no room for it; `must`: so many need none.
    fn remember(&mut self, item: &Item, name: &[u8], must: usize) -> bool {
        if self.shared.noise.is_noise(&self.path, name) {
            return true;
        }
        if must == 0 && self.shared.pending.is_full() {
            return false;
        }
        self.found.push(item.node.child(name));
        if self.found.len() >= SHARE {
            self.shared.pending.add(&mut self.found);
        }
        true
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

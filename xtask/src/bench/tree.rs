//! Trees of files for the benches, on the machine's own disk; removed with the value.
//!
//! Knows nothing of who walks them.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

/// What a tree is modelled on: folders that are large and real on any machine that builds Lull.
const MODELS: [&str; 5] = ["/usr", "/etc", "/var/lib", "/opt", "/root"];
/// Hard links to one file; file systems allow 65 000 at least.
const LINKS_MAX: u64 = 50_000;
/// Entries of the one large folder of [`Tree::of_links`].
const LARGE_FOLDER: u64 = 1_000_000;
/// Entries of its other folders.
const SMALL_FOLDER: u64 = 1_000;

/// A tree.
pub struct Tree {
    path: PathBuf,
    ours: bool,
    stop: Arc<AtomicBool>,
    maker: Option<JoinHandle<Result<()>>>,
}

impl Tree {
    /// One that is there; it stays.
    ///
    /// # Errors
    /// When it is not there.
    pub fn existing(path: &Path) -> Result<Tree> {
        let path = path.canonicalize().with_context(|| format!("the tree {}", path.display()))?;
        Ok(Tree { path, ours: false, stop: Arc::default(), maker: None })
    }

    /// Folders, names, sizes, times and modes of this machine's own files, as often as it takes; the files are empty of data.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn like_this_machine(entries: u64) -> Result<Tree> {
        Tree::made(move |path, stop| {
            let mut made = 0;
            for copy in 0.. {
                let before = made;
                for model in MODELS {
                    let to = path.join(copy.to_string()).join(&model[1..]);
                    fs::create_dir_all(&to)?;
                    imitate(Path::new(model), &to, entries, &mut made, stop)?;
                }
                if made >= entries || stop.load(Relaxed) {
                    break;
                }
                ensure!(made > before, "none of {} holds a file", MODELS.join(", "));
            }
            Ok(())
        })
        .await
    }

    /// So many names of few files: one folder with a million, the others with a thousand each.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn of_links(entries: u64) -> Result<Tree> {
        Tree::made(move |path, stop| {
            let large = path.join("large");
            fs::create_dir(&large)?;
            let (mut file, mut folder) = (PathBuf::new(), large);
            for entry in 0..entries {
                if entry % LINKS_MAX == 0 {
                    file = path.join(format!("file {entry}"));
                    fs::write(&file, b"")?;
                }
                if entry >= LARGE_FOLDER && entry % SMALL_FOLDER == 0 {
                    folder = path.join(format!("{}/{}", entry / LARGE_FOLDER, entry / SMALL_FOLDER));
                    fs::create_dir_all(&folder)?;
                }
                fs::hard_link(&file, folder.join(format!("an entry with the number {entry}")))?;
                if stop.load(Relaxed) {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    async fn made(make: impl FnOnce(&Path, &AtomicBool) -> Result<()> + Send + 'static) -> Result<Tree> {
        // Not the folder for temporary files, which may lie in memory.
        let path = PathBuf::from(format!("/var/tmp/lull-tree-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        eprintln!("making a tree in {} …", path.display());
        let stop = Arc::new(AtomicBool::new(false));
        let (done, is_done) = tokio::sync::oneshot::channel();
        let maker = std::thread::spawn({
            let (path, stop) = (path.clone(), stop.clone());
            move || {
                let made = make(&path, &stop);
                let _ = done.send(());
                made
            }
        });
        let mut tree = Tree { path, ours: true, stop, maker: Some(maker) };
        let _ = is_done.await;
        let made = tree.maker.take().map(JoinHandle::join);
        match made {
            Some(Ok(made)) => made.with_context(|| format!("making the tree {}", tree.path.display()))?,
            _ => anyhow::bail!("making the tree {} broke off", tree.path.display()),
        }
        Ok(tree)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.ours {
            self.stop.store(true, Relaxed);
            if let Some(maker) = self.maker.take() {
                let _ = maker.join();
            }
            super::stage::remove(&self.path);
        }
    }
}

/// Makes in `to` what is in `from`, but for the data, until there are enough entries.
fn imitate(from: &Path, to: &Path, entries: u64, made: &mut u64, stop: &AtomicBool) -> Result<()> {
    // What cannot be read is left out.
    let Ok(folder) = fs::read_dir(from) else { return Ok(()) };
    for entry in folder.filter_map(Result::ok) {
        if *made >= entries || stop.load(Relaxed) {
            return Ok(());
        }
        let (Ok(meta), copy) = (entry.path().symlink_metadata(), to.join(entry.file_name())) else { continue };
        if meta.is_dir() {
            fs::create_dir(&copy)?;
            *made += 1;
            imitate(&entry.path(), &copy, entries, made, stop)?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(entry.path())?, &copy)?;
            *made += 1;
        } else if meta.is_file() {
            let file = fs::File::create(&copy)?;
            file.set_len(meta.len())?;
            file.set_permissions(fs::Permissions::from_mode(meta.permissions().mode() & 0o777))?;
            file.set_modified(meta.modified()?)?;
            *made += 1;
        }
    }
    Ok(())
}

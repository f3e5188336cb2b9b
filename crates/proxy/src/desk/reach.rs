//! Which hypervisor hosts this machine reaches: whose folder of sockets can be read here.
//!
//! A folder on a mount that hangs must not hold the heartbeat up: each is looked at by a thread of its own, at most one at a time, and who
//! asks waits a moment and then takes the last answer, while that is young. Knows nothing of VMs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A folder is not looked at again within this time.
const FRESH: Duration = Duration::from_secs(5);
/// A look is waited for so long.
const LOOK_WITHIN: Duration = Duration::from_millis(500);
/// An answer counts for so long while a new one is awaited; then a folder that does not answer is not reached.
const ANSWER_COUNTS: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Answer {
    looking: bool,
    known: Option<(bool, Instant)>,
}

/// What is known of folders.
#[derive(Clone, Default)]
pub(super) struct Reach(Arc<Mutex<BTreeMap<PathBuf, watch::Sender<Answer>>>>);

impl Reach {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, watch::Sender<Answer>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Which of these folders can be read, in their order; within a moment. Folders that are not asked about are forgotten.
    pub(super) async fn readable(&self, folders: &[PathBuf]) -> Vec<bool> {
        self.readable_by(folders, |folder| std::fs::read_dir(folder).is_ok()).await
    }

    async fn readable_by(&self, folders: &[PathBuf], read: fn(&Path) -> bool) -> Vec<bool> {
        let mut answers: Vec<watch::Receiver<Answer>> = {
            let mut known = self.lock();
            known.retain(|folder, answer| answer.borrow().looking || folders.contains(folder));
            folders.iter().map(|folder| look(known.entry(folder.clone()).or_default(), folder, read)).collect()
        };
        let until = Instant::now() + LOOK_WITHIN;
        let mut readable = Vec::with_capacity(folders.len());
        for answer in &mut answers {
            let _ = tokio::time::timeout_at(until, answer.wait_for(|answer| !answer.looking)).await;
            let known = answer.borrow().known;
            readable.push(known.is_some_and(|(readable, at)| readable && at.elapsed() < ANSWER_COUNTS));
        }
        readable
    }
}

/// Has the folder looked at, unless somebody is at it or was there just now.
fn look(answer: &mut watch::Sender<Answer>, folder: &Path, read: fn(&Path) -> bool) -> watch::Receiver<Answer> {
    let receiver = answer.subscribe();
    let is_fresh = |known: &(bool, Instant)| known.1.elapsed() < FRESH;
    if !answer.borrow().looking && !answer.borrow().known.as_ref().is_some_and(is_fresh) {
        answer.send_modify(|answer| answer.looking = true);
        let (answer, folder) = (answer.clone(), folder.to_path_buf());
        // Not `spawn_blocking`: the program's end would wait for a mount that hangs.
        std::thread::spawn(move || {
            let readable = read(&folder);
            answer.send_replace(Answer { looking: false, known: Some((readable, Instant::now())) });
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_reached_when_it_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().to_path_buf();
        let asked = [there.clone(), there.join("no"), there];
        assert_eq!(Reach::default().readable(&asked).await, [true, false, true]);
    }

    #[tokio::test]
    async fn a_mount_that_hangs_holds_nobody_up_and_is_looked_at_once() {
        static LOOKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        fn hangs(folder: &Path) -> bool {
            if folder.ends_with("hung") {
                LOOKS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                std::thread::sleep(Duration::from_secs(60));
            }
            true
        }
        let reach = Reach::default();
        let began = Instant::now();
        for _ in 0..2 {
            let asked = [PathBuf::from("/hung"), PathBuf::from("/there")];
            assert_eq!(reach.readable_by(&asked, hangs).await, [false, true]);
        }
        assert!(began.elapsed() < Duration::from_secs(10));
        assert_eq!(LOOKS.load(std::sync::atomic::Ordering::SeqCst), 1);
    }
}

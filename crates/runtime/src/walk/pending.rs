//! What is still to be walked, shared by all walkers, in bounded memory.
//!
//! A folder is a node that knows its parent and its own name, so a deep tree costs no long paths. The folder found last is walked
//! first, which keeps the list short in most trees, and the folder that holds it is mostly still open, so that it is found from there
//! instead of along its whole path. Where a folder holds more folders than there is room for, it is put aside with
//! the place to which it was read ([`Item::resume`]), and read on from there when there is room again.
//!
//! Knows nothing of how a folder is read.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Nodes may take so much memory before folders are put aside, in bytes.
const ROOM_BYTES: usize = 8 << 20;
/// Folders put aside go on once so much is taken, in bytes.
const ROOMY_BYTES: usize = ROOM_BYTES / 4;
/// What a node costs besides its name: itself, its place in the list, and what the heap adds.
const NODE_BYTES: usize = 160;
/// Folders that are kept open for those in them; a process may have 1 024 descriptors, mostly.
const OPEN_MAX: usize = 256;

/// One folder of the tree.
#[derive(Debug)]
pub struct Node {
    above: Option<Arc<Node>>,
    name: Box<[u8]>,
    /// Which of the walk's starts it lies below.
    pub start: usize,
    /// Length of its path below the start, in bytes.
    pub below_bytes: usize,
    /// Open while something in it is still to be walked, if there is a descriptor to spare.
    folder: OnceLock<OwnedFd>,
    open: Arc<AtomicUsize>,
}

impl Node {
    /// A start itself. `open` counts the folders of the walk that are kept open.
    pub fn of_start(start: usize, open: &Arc<AtomicUsize>) -> Arc<Node> {
        Arc::new(Node {
            above: None,
            name: Box::default(),
            start,
            below_bytes: 0,
            folder: OnceLock::new(),
            open: open.clone(),
        })
    }

    /// A folder in this one.
    pub fn child(self: &Arc<Node>, name: &[u8]) -> Arc<Node> {
        let slash = usize::from(self.below_bytes > 0);
        Arc::new(Node {
            above: Some(self.clone()),
            name: name.into(),
            start: self.start,
            below_bytes: self.below_bytes + slash + name.len(),
            folder: OnceLock::new(),
            open: self.open.clone(),
        })
    }

    /// The folder that holds this one, if it is open, and this one's name.
    pub fn in_open_folder(&self) -> Option<(&OwnedFd, &[u8])> {
        Some((self.above.as_ref()?.folder.get()?, &self.name))
    }

    /// Keeps the folder open for those in it, unless too many are open already.
    pub fn keep_open(&self, folder: OwnedFd) -> Kept<'_> {
        if self.open.fetch_add(1, Relaxed) >= OPEN_MAX {
            self.open.fetch_sub(1, Relaxed);
            return Kept::No(folder);
        }
        // A folder that was put aside may have been kept the first time.
        if let Err(folder) = self.folder.set(folder) {
            self.open.fetch_sub(1, Relaxed);
            return Kept::No(folder);
        }
        self.folder.get().map_or_else(|| unreachable!("it was set just now"), Kept::Yes)
    }

    /// Appends its path below the start, without a slash at the beginning.
    pub fn write_path(&self, to: &mut Vec<u8>) {
        let begin = to.len();
        let mut end = begin + self.below_bytes;
        to.resize(end, b'/');
        let mut node = self;
        while let Some(above) = &node.above {
            let name = end - node.name.len();
            to[name..end].copy_from_slice(&node.name);
            end = name.saturating_sub(1);
            node = above;
        }
    }

    fn cost_bytes(&self) -> usize {
        NODE_BYTES + self.name.len()
    }
}

impl Drop for Node {
    /// Node by node: a tree may be deeper than a stack.
    fn drop(&mut self) {
        if self.folder.get().is_some() {
            self.open.fetch_sub(1, Relaxed);
        }
        let mut above = self.above.take();
        while let Some(mut node) = above.and_then(Arc::into_inner) {
            above = node.above.take();
        }
    }
}

/// An open folder: of its node, or of whoever opened it.
#[derive(Debug)]
pub enum Kept<'a> {
    /// Open as long as the node.
    Yes(&'a OwnedFd),
    /// Closed when it is dropped.
    No(OwnedFd),
}

impl AsFd for Kept<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Kept::Yes(folder) => folder.as_fd(),
            Kept::No(folder) => folder.as_fd(),
        }
    }
}

/// A folder to be walked.
#[derive(Debug)]
pub struct Item {
    /// Which.
    pub node: Arc<Node>,
    /// Its entries are listed already; of its folders those from this place on are still to be walked.
    pub resume: Option<u64>,
}

#[derive(Default)]
struct State {
    fresh: Vec<Item>,
    aside: Vec<Item>,
    starts: VecDeque<Item>,
    working: usize,
    stopped: bool,
}

impl State {
    fn is_over(&self) -> bool {
        let left = self.fresh.len() + self.aside.len() + self.starts.len() + self.working;
        self.stopped && self.working == 0 || left == 0
    }
}

/// The list.
pub struct Pending {
    state: Mutex<State>,
    changed: Condvar,
    over: Condvar,
    taken_bytes: AtomicUsize,
    most_bytes: AtomicUsize,
}

impl Pending {
    /// Begins with so many starts.
    pub fn new(starts: usize) -> Pending {
        let open = Arc::new(AtomicUsize::new(0));
        let starts = (0..starts).map(|start| Item { node: Node::of_start(start, &open), resume: None }).collect();
        Pending {
            state: Mutex::new(State { starts, ..State::default() }),
            changed: Condvar::new(),
            over: Condvar::new(),
            taken_bytes: AtomicUsize::new(0),
            most_bytes: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next folder, as soon as there is one; `None` once the walk is over. Each folder ends with [`Self::done`].
    pub fn next(&self) -> Option<Item> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let roomy = self.taken_bytes.load(Relaxed) < ROOMY_BYTES;
            let aside = if roomy || state.fresh.is_empty() { state.aside.pop() } else { None };
            // One start after the other: each is a tree of its own, and the list shall stay short.
            let item = aside.or_else(|| state.fresh.pop()).or_else(|| state.starts.pop_front());
            if let Some(item) = item {
                self.taken_bytes.fetch_sub(self.counted_bytes(&item), Relaxed);
                state.working += 1;
                return Some(item);
            }
            if state.working == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Starts cost nothing that grows.
    fn counted_bytes(&self, item: &Item) -> usize {
        if item.node.above.is_none() && item.resume.is_none() { 0 } else { item.node.cost_bytes() }
    }

    /// Whether there is no room for more.
    pub fn is_full(&self) -> bool {
        self.taken_bytes.load(Relaxed) >= ROOM_BYTES
    }

    /// Adds folders.
    pub fn add(&self, folders: &mut Vec<Arc<Node>>) {
        if folders.is_empty() {
            return;
        }
        self.take_room(folders.iter().map(|node| node.cost_bytes()).sum());
        let mut state = self.lock();
        state.fresh.extend(folders.drain(..).map(|node| Item { node, resume: None }));
        drop(state);
        self.changed.notify_all();
    }

    /// Puts the folder aside that could only be read up to `resume`.
    pub fn put_aside(&self, node: Arc<Node>, resume: u64) {
        self.take_room(node.cost_bytes());
        self.lock().aside.push(Item { node, resume: Some(resume) });
        self.changed.notify_all();
    }

    fn take_room(&self, bytes: usize) {
        let taken = self.taken_bytes.fetch_add(bytes, Relaxed) + bytes;
        self.most_bytes.fetch_max(taken, Relaxed);
    }

    /// The most that was ever taken, in bytes.
    pub fn most_bytes(&self) -> usize {
        self.most_bytes.load(Relaxed)
    }

    /// One folder is walked; what was found in it was added before.
    pub fn done(&self) {
        let mut state = self.lock();
        state.working -= 1;
        if state.is_over() {
            drop(state);
            self.changed.notify_all();
            self.over.notify_all();
        }
    }

    /// Ends the walk: nobody gets a folder any more.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
        self.over.notify_all();
    }

    /// How many folders are known and not walked yet.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.fresh.len() + state.aside.len() + state.starts.len()
    }

    /// Whether there is nothing to be walked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the end, no longer than `limit`; whether it came.
    pub fn over_within(&self, limit: Duration) -> bool {
        let state = self.lock();
        let waited = self.over.wait_timeout_while(state, limit, |state| !state.is_over());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(node: &Node) -> String {
        let mut bytes = b"/start/".to_vec();
        node.write_path(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_node_knows_its_path() {
        let start = Node::of_start(0, &Arc::default());
        let below = start.child(b"a").child(b"bc").child(b"d");
        assert_eq!((path(&start).as_str(), path(&below).as_str()), ("/start/", "/start/a/bc/d"));
        assert_eq!(below.below_bytes, "a/bc/d".len());
    }

    #[test]
    fn a_tree_deeper_than_any_stack_is_let_go() {
        let mut node = Node::of_start(0, &Arc::default());
        for _ in 0..1_000_000 {
            node = node.child(b"d");
        }
        drop(node);
    }

    /// Walks an imaginary tree in which each folder down to `depth` holds `width` folders.
    fn walk(width: u64, depth: usize) -> (usize, usize) {
        let pending = Pending::new(1);
        let mut walked = 0;
        while let Some(Item { node, resume }) = pending.next() {
            walked += usize::from(resume.is_none());
            let levels = if node.below_bytes == 0 { 0 } else { node.below_bytes.div_ceil(9) };
            let mut found = Vec::new();
            let (first, must) = (resume.unwrap_or(0), usize::from(resume.is_some()));
            for at in first..if levels < depth { width } else { 0 } {
                if pending.is_full() && found.len() >= must {
                    pending.add(&mut found);
                    pending.put_aside(node.clone(), at);
                    break;
                }
                found.push(node.child(format!("{at:08}").as_bytes()));
                if found.len() == 64 {
                    pending.add(&mut found);
                }
            }
            pending.add(&mut found);
            pending.done();
        }
        assert!(pending.over_within(Duration::ZERO) && pending.is_empty());
        (walked, pending.most_bytes())
    }

    #[test]
    fn every_folder_is_walked_once_in_bounded_memory_whatever_the_tree() {
        for (width, depth, folders) in
            [(1_000_000, 1, 1_000_001), (1_000, 2, 1_001_001), (60, 3, 219_661), (1, 9_999, 10_000)]
        {
            let (walked, most_bytes) = walk(width, depth);
            assert_eq!(walked, folders, "{width} wide, {depth} deep");
            assert!(most_bytes < ROOM_BYTES + (256 << 10), "{width} wide, {depth} deep: {most_bytes} bytes");
        }
    }

    #[test]
    fn a_stopped_walk_hands_out_nothing_more() {
        let pending = Pending::new(3);
        assert!(pending.next().is_some());
        pending.stop();
        assert!(pending.next().is_none() && !pending.over_within(Duration::ZERO));
        pending.done();
        assert!(pending.over_within(Duration::ZERO));
    }
}

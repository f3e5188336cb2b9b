//! What hostile bytes can make a reader allocate: bounded, whatever lengths they announce.
//!
//! A program of its own, since it counts every allocation of the process.

use lull_guest_wire::listing::{self, UNPACKED_BYTES_MAX};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static MOST_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything to the system's allocator, and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE_BYTES.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        MOST_BYTES.fetch_max(live, Ordering::SeqCst);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that were allocated at once while reading.
fn taken_by(bytes: &[u8]) -> usize {
    let before = LIVE_BYTES.load(Ordering::SeqCst);
    MOST_BYTES.store(before, Ordering::SeqCst);
    let _ = listing::read(bytes);
    MOST_BYTES.load(Ordering::SeqCst) - before
}

/// One test, so that no other one's allocations are counted.
#[test]
fn announced_lengths_allocate_no_more_than_a_bound() {
    // Thousands of millions of folders are announced, and there is none.
    let folders = taken_by(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    // One folder, with as many entries.
    let entries = taken_by(&[1, 1, b'/', 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(folders <= 2 << 20 && entries <= 3 << 20, "{folders}, {entries}");
    // As many of the smallest folders as fit: the worst that there is.
    let mut many = vec![0x80, 0x80, 0x10];
    many.extend([1, b'/', 0, 0, 0].repeat((UNPACKED_BYTES_MAX - 3) / 5));
    let worst = taken_by(&many);
    assert!(worst <= 32 * UNPACKED_BYTES_MAX, "{worst}");
    // Longer ones are not looked into.
    assert!(taken_by(&vec![1; UNPACKED_BYTES_MAX + 1]) < 1_000);
}

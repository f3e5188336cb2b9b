//! Memory that needs nothing from anybody while file systems are frozen.
//!
//! A page fault that needs a page reclaimed may wait for a write to a frozen file system. So before the first freeze
//! everything is resident and locked, and the heap holds a reserve of touched pages that is never given back: what is allocated in
//! the window (a reply of some hundred bytes) comes out of that. Locks do not survive a fork: each process locks for itself.

/// Touched and kept in the heap: a frame of the largest size in and a reply to it out.
const RESERVE_BYTES: usize = 4 << 20;

/// Keeps freed memory in one heap instead of giving it back to the kernel. Called once, before anything is allocated in bulk.
pub fn keep_the_heap() {
    // SAFETY: plain integers; must be called before other threads exist, as main does.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Grows the heap by the reserve, with every page touched.
pub fn reserve() {
    let mut block = vec![0u8; RESERVE_BYTES];
    for page in block.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&block);
}

/// Locks everything that is mapped and everything that will be. Says why where it cannot.
pub fn lock() -> Result<(), String> {
    // SAFETY: no pointers.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}

/// Lets the locks go: between two freezes nothing needs them.
pub fn unlock() {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::munlockall() };
}

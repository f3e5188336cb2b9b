//! Runs inside a guest: writes numbers to two disks in turns, one after the other, as fast as the disks take them.
//!
//! Number n goes to disk n % 2, block (n / 2) % 4096; the next is written when the disk has confirmed the one before. So at every instant the disks'
//! content follows from one number. Compiled by the test with `rustc` alone. How many were written and the longest wait in ms
//! go to `/run/longest` at every 256th number; each wait over 150 ms goes to standard output, with its end in ms since 1970.

use std::alloc::{Layout, alloc_zeroed};
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Instant, SystemTime};

const O_DIRECT: i32 = 0o40000;

fn main() {
    let open = |path| OpenOptions::new().write(true).custom_flags(O_DIRECT).open(path).unwrap();
    let disks = [open("/dev/vdb"), open("/dev/vdh")];
    // O_DIRECT wants an aligned buffer.
    let layout = Layout::from_size_align(512, 4096).unwrap();
    // SAFETY: 512 zeroed bytes of our own, never freed, used by this thread alone.
    let block = unsafe { std::slice::from_raw_parts_mut(alloc_zeroed(layout), 512) };
    let mut longest_ms = 0;
    for n in 1u64.. {
        block[..8].copy_from_slice(&n.to_le_bytes());
        let began = Instant::now();
        disks[(n % 2) as usize].write_all_at(block, n / 2 % 4096 * 512).unwrap();
        let waited_ms = began.elapsed().as_millis();
        longest_ms = longest_ms.max(waited_ms);
        if waited_ms > 150 {
            println!("{} {waited_ms}", SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis());
        }
        if n % 256 == 0 {
            std::fs::write("/run/longest", format!("{n} {longest_ms}")).unwrap();
        }
    }
}

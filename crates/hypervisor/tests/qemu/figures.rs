//! Prints how long a snapshot holds the guest and how fast a copy is; asserts no time, only what was done.

use crate::bed::{Bed, MIB, Style, copy, str, tool};

const ROUNDS: usize = 11;

/// Median and largest `window_us` of snapshots over that many disks.
async fn windows(disks: usize, guest_is_frozen: bool) -> (u64, u64) {
    let bed = Bed::start(&vec![Style::Blockdev; disks]).await;
    let mut windows = Vec::new();
    for round in 0..ROUNDS {
        let mut backup = bed.open().await.prepare(bed.order(&format!("rp{round}"))).await.unwrap();
        windows.push(backup.snapshot(guest_is_frozen).await.unwrap().window_us);
        backup.abandon().await.unwrap();
    }
    windows.sort_unstable();
    (windows[ROUNDS / 2], windows[ROUNDS - 1])
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_after_snapshot_is_taken_and_abandoned() {
    for (disks, frozen) in [(1, true), (4, true), (1, false), (4, false)] {
        let (median, largest) = windows(disks, frozen).await;
        println!("snapshot of {disks} disks, guest frozen: {frozen}: median {median} us, largest {largest} us");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stores_what_was_written_and_nothing_else() {
    let mut bed = Bed::start_sized(&[Style::Blockdev], 1024 * MIB, &[]).await;
    for offset in (0..512).step_by(8) {
        bed.write(0, 0x5a, offset * MIB, 8 * MIB).await;
    }
    let mut backup = bed.taken(bed.order("rp1")).await;
    let done = copy(&mut backup).await.unwrap();
    let began = std::time::Instant::now();
    let files = backup.finish().await.unwrap();
    let finish_ms = began.elapsed().as_millis();
    let mib_per_s = done.stored_bytes / MIB * 1000 / done.took_ms.max(1);
    println!(
        "QEMU {}: copied {} MiB in {} ms: {mib_per_s} MiB/s; checked and durable in {finish_ms} ms",
        files.metadata.qemu_version,
        done.stored_bytes / MIB,
        done.took_ms
    );
    assert!(done.stored_bytes >= 512 * MIB && done.stored_bytes < 530 * MIB);
    bed.shut_down().await;
    tool("qemu-img", &["compare", str(&bed.disks[0].file), str(&files.disks[0])]);
}

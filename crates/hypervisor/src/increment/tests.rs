//! Full or incremental: the table of reasons, and what no table shows.

use super::*;
use crate::chain::tests::point;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn disk(n: usize) -> Disk {
    Disk {
        name: format!("vd{n}"),
        qdev: format!("/machine/peripheral/vd{n}/virtio-backend"),
        node_name: Some(format!("disk{n}")),
        device: String::new(),
        virtual_bytes: MIB,
        format: "qcow2".into(),
        file: format!("/vm/disk{n}"),
        read_only: false,
        removable: false,
        bitmap_persistent: true,
        bitmaps: vec![bitmap("other"), bitmap("lull-ab")],
        skip: None,
    }
}

fn bitmap(name: &str) -> Bitmap {
    Bitmap { name: name.into(), recording: true, busy: false, inconsistent: false, dirty_bytes: 0 }
}

/// The parent as its backup of the same disks described it.
fn parent(disks: &[Disk]) -> RestorePointMetadata {
    let mut metadata = point("ab", "");
    let file = |(index, d): (usize, &Disk)| DiskFile {
        index,
        file: format!("disk{index}.qcow2"),
        virtual_bytes: d.virtual_bytes,
        name: d.name.clone(),
        qdev: d.qdev.clone(),
        source_file: d.file.clone(),
        source_format: d.format.clone(),
        bitmap_persistent: d.bitmap_persistent,
        ..metadata.disks[0].clone()
    };
    metadata.disks = disks.iter().enumerate().map(file).collect();
    metadata
}

/// The situation that an increment needs, for a change by a test.
struct Case {
    parent: Result<RestorePointMetadata, BrokenLink>,
    name: &'static str,
    disks: Vec<Disk>,
}

impl Case {
    fn good() -> Case {
        let disks = vec![disk(0), disk(1)];
        Case { parent: Ok(parent(&disks)), name: "pg1", disks }
    }

    fn decide(&self) -> Result<Vec<String>, FullBecause> {
        let disks: Vec<&Disk> = self.disks.iter().collect();
        let uuid = Some("0f0e0d0c-0b0a-0908-0706-050403020100");
        decide("ab", self.parent.as_ref(), Vm { name: self.name, uuid, disks: &disks })
    }
}

type Change = (&'static str, fn(&mut Case));

/// Each reason, what brings it about, and what people read.
const TABLE: [Change; 12] = [
    ("cannot be built on: restore point cd: it is missing", |c| {
        c.parent = Err(BrokenLink { restore_point: "cd".into(), why: "it is missing".into() });
    }),
    ("cannot be built on: its folder holds restore point zz", |c| {
        c.parent = c.parent.clone().map(|p| RestorePointMetadata { restore_point: "zz".into(), ..p })
    }),
    ("of another VM (pg1)", |c| c.name = "pg2"),
    ("disk vd1 is gone", |c| drop(c.disks.remove(1))),
    ("disk vd2 is new", |c| c.disks.push(disk(2))),
    ("disk vd1 was resized from 1048576 to 2097152 bytes", |c| c.disks[1].virtual_bytes *= 2),
    ("disk vd0 is now /vm/other (qcow2), and was /vm/disk0 (qcow2)", |c| c.disks[0].file = "/vm/other".into()),
    ("disk vd0 is gone: the VM's process did not end in order", |c| drop(c.disks[0].bitmaps.pop())),
    ("disk vd0 is gone: the VM's process was restarted", |c| {
        c.disks[0].bitmap_persistent = false;
        c.parent = Ok(parent(&c.disks));
        c.disks[0].bitmaps.clear();
    }),
    ("disk vd1 is inconsistent", |c| {
        (c.disks[1].bitmaps[1].inconsistent, c.disks[1].bitmaps[1].recording) = (true, false)
    }),
    ("disk vd1 was switched off", |c| c.disks[1].bitmaps[1].recording = false),
    ("disk vd1 is in use by somebody else", |c| c.disks[1].bitmaps[1].busy = true),
];

#[test]
fn with_everything_as_it_was_each_disk_lies_over_its_parents() {
    assert_eq!(Case::good().decide().unwrap(), ["../ab/disk0.qcow2", "../ab/disk1.qcow2"]);
    let mut swapped = Case::good();
    swapped.disks.reverse();
    assert_eq!(swapped.decide().unwrap(), ["../ab/disk1.qcow2", "../ab/disk0.qcow2"]);
}

#[test]
fn each_reason_is_found_and_named() {
    for (expect, change) in TABLE {
        let mut case = Case::good();
        change(&mut case);
        let said = case.decide().unwrap_err().to_string();
        assert!(said.contains(expect), "{said}, not {expect}");
    }
}

proptest! {
    /// Whatever else is wrong as well, no fault is ever outweighed; and nothing else makes a backup full.
    #[test]
    fn a_backup_is_incremental_exactly_when_nothing_is_wrong(faults in proptest::collection::vec(0usize..TABLE.len(), 0..4)) {
        let mut case = Case::good();
        for fault in &faults {
            // A disk that went away with an earlier fault cannot have another.
            if case.disks.len() >= 2 && case.disks.iter().all(|d| d.bitmaps.len() == 2) && case.parent.is_ok() {
                TABLE[*fault].1(&mut case);
            }
        }
        prop_assert_eq!(case.decide().is_ok(), faults.is_empty());
    }

    /// An increment's disk only ever lies over an image of the same device, size and file, whose bitmap recorded all along.
    #[test]
    fn an_increment_never_lies_over_another_disk(
        now in proptest::collection::vec((0usize..3, 1u64..3, any::<bool>(), any::<bool>(), any::<bool>()), 1..4),
        then in proptest::collection::vec((0usize..3, 1u64..3), 1..4),
    ) {
        let mut disks: Vec<Disk> = Vec::new();
        for (n, size, recording, busy, inconsistent) in now {
            if disks.iter().all(|d| d.name != disk(n).name) {
                let bitmaps = vec![Bitmap { recording, busy, inconsistent, ..bitmap("lull-ab") }];
                disks.push(Disk { virtual_bytes: size, bitmaps, ..disk(n) });
            }
        }
        let mut before: Vec<Disk> = Vec::new();
        for (n, size) in then {
            if before.iter().all(|d| d.name != disk(n).name) {
                before.push(Disk { virtual_bytes: size, ..disk(n) });
            }
        }
        let below = parent(&before);
        let case = Case { parent: Ok(below.clone()), name: "pg1", disks: disks.clone() };
        if let Ok(over) = case.decide() {
            prop_assert_eq!(disks.len(), before.len());
            for (disk, over) in disks.iter().zip(over) {
                let file = over.strip_prefix("../ab/").unwrap();
                let under = below.disks.iter().find(|d| d.file == file).unwrap();
                prop_assert_eq!((&under.qdev, under.virtual_bytes), (&disk.qdev, disk.virtual_bytes));
                prop_assert!(disk.bitmaps[0].recording && !disk.bitmaps[0].busy && !disk.bitmaps[0].inconsistent);
            }
        }
    }
}

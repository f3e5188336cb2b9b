//! The files of a real guest, listed beside its backup.

#[path = "support/embedded.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod embedded;
#[path = "support/guest.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod guest;

use embedded::{Running, embedded};
use guest::Guest;
use lull_guest_wire::listing::{self, Kind, UNPACKED_BYTES_MAX};
use lull_proxy::desk::ProxyConfig;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::task_order::Work;
use lull_proxy_wire::v1::to_task::Message;
use std::collections::BTreeMap;

/// A backup into folders that live as long as the returned value, with these settings.
fn backup(guest: &Guest, settings: serde_json::Value) -> (v1::TaskOrder, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (repository, fleecing) = (folder.path().join("repository"), folder.path().join("fleecing"));
    std::fs::create_dir_all(&repository).unwrap();
    std::fs::create_dir_all(&fleecing).unwrap();
    let work = v1::BackupWork {
        repository_dir: repository.display().to_string(),
        restore_point_id: "0197a3b2-1111-7222-8333-444455556666".into(),
        ..Default::default()
    };
    let order = v1::TaskOrder {
        task_id: folder.path().display().to_string(),
        epoch: 1,
        vm_name: guest.name().into(),
        guest: Some(guest.target()),
        hypervisor: Some(guest.hypervisor(&fleecing)),
        settings_json: settings.to_string(),
        work: Some(Work::Backup(work)),
        ..Default::default()
    };
    (order, folder)
}

/// By path: what it is, and whether it changed after the freeze.
fn listed(task: &Running) -> BTreeMap<Vec<u8>, (Kind, bool)> {
    let mut unpacked = vec![0; UNPACKED_BYTES_MAX];
    let mut all = BTreeMap::new();
    for event in &task.told {
        let Event::IndexFrame(frame) = event else { continue };
        let bytes = zstd_safe::decompress(&mut unpacked[..], &frame.compressed).unwrap();
        for folder in listing::read(&unpacked[..bytes]).unwrap().folders {
            assert_eq!(folder.error, None, "{}", String::from_utf8_lossy(folder.path));
            let above: &[u8] = if folder.path == b"/" { b"" } else { folder.path };
            for entry in folder.entries {
                all.insert([above, b"/", entry.name].concat(), (entry.kind, entry.changed_after_freeze));
            }
        }
    }
    all
}

fn ended(task: &Running) -> v1::IndexEnded {
    let mut ends =
        task.told.iter().filter_map(|event| if let Event::IndexEnded(end) = event { Some(end) } else { None });
    let end = ends.next().unwrap_or_else(|| panic!("no end of the listing\n{}", task.words_told())).clone();
    assert!(ends.next().is_none());
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_real_guest_are_listed_and_nothing_of_ours_among_them() {
    let guest = Guest::boot("pg", "index");
    guest.ssh("mkdir -p /srv/deep/er /var/cache/noise; touch \"$(printf '/srv/deep/er/caf\\351\\nline')\" /var/cache/noise/x; sync");
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    let settings = serde_json::json!({
        "indexing": { "kind": "everything-except-noise" },
        "scripts": { "linux": { "pre": "#!/bin/sh\ntrue\n", "post": "#!/bin/sh\ntouch /srv/after\n" } },
    });
    let (order, _folder) = backup(&guest, settings);
    let mut task = Running::start(&mut client, order).await;
    let finished = task.finished().await;
    assert_eq!(finished.outcome, "success", "{}", task.words_told());
    let end = ended(&task);
    assert!(end.complete && end.stopped_because.is_empty() && end.began_us > 0, "{end:?}");
    let files = listed(&task);
    assert_eq!(end.entries, files.len() as u64);
    assert_eq!(files[b"/srv/deep/er/caf\xe9\nline".as_slice()], (Kind::File, false));
    assert_eq!(files[b"/srv/after".as_slice()], (Kind::File, true), "the post-thaw script made it");
    assert_eq!(files[b"/var/cache".as_slice()].0, Kind::Folder);
    assert!(files.contains_key(b"/etc/passwd".as_slice()));
    for path in files.keys().map(|path| String::from_utf8_lossy(path)) {
        assert!(
            !path.starts_with("/proc/") && !path.starts_with("/sys/") && !path.starts_with("/var/cache/"),
            "{path}"
        );
        assert!(!path.contains("lull-runtime"), "{path}");
    }
    let receipt = finished.receipt.unwrap();
    assert!(receipt.guest_checked && receipt.left_in_guest.is_empty(), "{receipt:?}");

    // The backup server has no room for it: the listing ends, the backup does not.
    let (order, _folder) = backup(&guest, serde_json::json!({ "indexing": { "kind": "everything" } }));
    let mut task = Running::start(&mut client, order).await;
    let stop = v1::StopIndex { reason: "the disk is full".into() };
    task.words.send(v1::ToTask { message: Some(Message::StopIndex(stop)) }).await.unwrap();
    let finished = task.finished().await;
    assert_eq!(finished.outcome, "warning", "{}", task.words_told());
    assert!(task.restore_point().is_some());
    assert_eq!(ended(&task).stopped_because, "the disk is full");
    assert!(finished.receipt.unwrap().left_in_guest.is_empty());
}

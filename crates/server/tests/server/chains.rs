//! Restore points that build on each other, as the server orders, records and removes them.

use crate::fake::Fake;
use crate::harness::{Server, furnish, one_vm, problem};
use lull_api::infrastructure::{RepositoryScan, RestorePoint};
use lull_api::job::GuestSettings;
use lull_proxy_wire::v1::task_order::Work;
use serde_json::json;
use std::path::Path;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_run_again_builds_on_the_point_before_until_the_chain_is_complete() {
    let (_place, fake, server) = one_vm().await;
    for _ in 0..15 {
        server.finished(server.run("j").await.summary.id).await;
    }
    let works: Vec<_> = fake.orders().into_iter().map(|order| order.work).collect();
    let works: Vec<_> =
        works.into_iter().map(|work| if let Some(Work::Backup(work)) = work { work } else { panic!() }).collect();
    let mut points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    points.reverse();
    for (n, work) in works.iter().enumerate() {
        let origin = work.origin.clone().unwrap();
        assert_eq!((origin.restore_point_id, origin.job_name.as_str()), (points[n].id.to_string(), "j"));
        let (kind, parent) = (points[n].kind.as_str(), points[n].parent);
        if n == 0 || n == 14 {
            assert_eq!((kind, parent, &work.parent), ("full", None, &None), "point {n}");
        } else {
            let over = work.parent.clone().unwrap();
            assert_eq!((kind, parent), ("incremental", Some(points[n - 1].id)), "point {n}");
            assert!(points[n - 1].id.simple().to_string().ends_with(&over.restore_point_id));
            assert_eq!((over.directory, work.full_because.as_str()), (points[n - 1].directory.clone(), ""));
        }
    }
    assert!(points[0].full_because.as_ref().unwrap().contains("no restore point in this repository yet"));
    assert!(points[14].full_because.as_ref().unwrap().contains("complete with 14 restore points"));
}

/// The proxy has the last word: what it says it made is what is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_could_not_be_incremental_is_recorded_as_full_with_its_reason() {
    let (_place, fake, server) = one_vm().await;
    server.finished(server.run("j").await.summary.id).await;
    fake.set(|script| script.falls_back = Some("the dirty bitmap of disk vd0 is gone".into()));
    server.finished(server.run("j").await.summary.id).await;
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!((points[0].kind.as_str(), points[0].parent), ("full", None));
    assert_eq!(points[0].full_because.as_deref(), Some("the dirty bitmap of disk vd0 is gone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_others_build_on_is_not_deleted_and_they_are_named() {
    let (_place, _fake, server) = one_vm().await;
    for _ in 0..3 {
        server.finished(server.run("j").await.summary.id).await;
    }
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    let [newest, middle, oldest] = [points[0].id, points[1].id, points[2].id];
    for point in &points {
        std::fs::create_dir_all(&point.directory).unwrap();
        for file in ["disk0.qcow2", "restore-point.json"] {
            std::fs::write(format!("{}/{file}", point.directory), "x").unwrap();
        }
    }
    let path = |id| format!("/restore-points/{id}");
    let refused = problem(server.client.delete(&path(oldest)).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "in-use"));
    let said = format!("{refused:?}");
    assert!(said.contains(&newest.to_string()) && said.contains(&middle.to_string()), "{said}");
    assert!(points.iter().all(|p| std::path::Path::new(&p.directory).join("disk0.qcow2").exists()));
    for id in [newest, middle, oldest] {
        server.client.delete(&path(id)).await.unwrap();
    }
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!(points, []);
}

/// A backup under way builds on the newest: that one stays until it is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_a_running_backup_builds_on_is_not_deleted() {
    let (place, fake, server) = one_vm().await;
    server.finished(server.run("j").await.summary.id).await;
    fake.set(|script| script.pause_ms = 100);
    let running = server.run("j").await.summary.id;
    server.until(running, "it is at work", |s| !s.tasks[0].steps.is_empty()).await;
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    let path = format!("/restore-points/{}", points[0].id);
    let refused = problem(server.client.delete(&path).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "in-use"));
    assert!(format!("{refused:?}").contains(&format!("session {running} is backing db up")), "{refused:?}");
    server.finished(running).await;
    let refused = problem(server.client.delete(&path).await);
    assert!(format!("{refused:?}").contains("others build on it"), "{refused:?}");
    assert!(place.repository.exists());
}

/// What a proxy would have left in the repository for this order: a description and as much of an image as a scan reads.
pub fn write_point(order: &lull_proxy_wire::v1::TaskOrder, parent: Option<&str>) {
    let Some(Work::Backup(work)) = &order.work else { panic!() };
    let dir = Path::new(&work.repository_dir).join("db").join(&work.restore_point_id);
    std::fs::create_dir_all(&dir).unwrap();
    let mut image = vec![0; 128];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    image[24..32].copy_from_slice(&1_048_576u64.to_be_bytes());
    if let Some(parent) = parent {
        let backing = format!("../{parent}/disk0.qcow2");
        image[8..16].copy_from_slice(&128u64.to_be_bytes());
        image[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
        image.extend(backing.bytes());
    }
    std::fs::write(dir.join("disk0.qcow2"), image).unwrap();
    let origin = work.origin.as_ref().unwrap();
    let description = json!({
        "version": 2, "vm": "db", "uuid": null, "restore_point": work.restore_point_id, "parent": parent,
        "kind": if parent.is_some() { "incremental" } else { "full" }, "bitmap": format!("lull-{}", work.restore_point_id),
        "disks": [{"index": 0, "file": "disk0.qcow2", "format": "qcow2", "virtual_bytes": 1_048_576, "file_bytes": 500,
            "name": "vd0", "qdev": "/machine/peripheral/vd0/virtio-backend", "node_name": "disk0", "source_file": "/vm/d",
            "source_format": "qcow2", "bitmap_persistent": true}],
        "skipped": [], "created": jiff::Timestamp::now(), "atomic": true, "task": order.task_id, "epoch": order.epoch,
        "qemu_version": "10.0.2", "level": "application", "level_reasons": ["/boot: synced"],
        "origin": {"restore_point_id": origin.restore_point_id, "vm_id": order.vm_id, "vm_name": "db",
            "job": origin.job_name, "session": order.session_id}});
    std::fs::write(dir.join("restore-point.json"), description.to_string()).unwrap();
}

/// A server that lost its state knows the restore points again after a scan, and goes on with their chain.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_rebuilt_from_the_repository() {
    let (place, fake, server) = one_vm().await;
    for _ in 0..2 {
        server.finished(server.run("j").await.summary.id).await;
    }
    let orders = fake.orders();
    let folder = |n: usize| {
        let Some(Work::Backup(work)) = &orders[n].work else { panic!() };
        work.restore_point_id.clone()
    };
    write_point(&orders[0], None);
    write_point(&orders[1], Some(&folder(0)));
    let before: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    let scan: RepositoryScan = server.client.post("/repositories/r/scan", &()).await.unwrap();
    assert_eq!(scan, RepositoryScan { known: 2, ..Default::default() });
    server.kill().await;
    std::fs::remove_dir_all(&place.state).unwrap();

    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let stranger = place.repository.join("db/elsewhere");
    std::fs::create_dir_all(&stranger).unwrap();
    let scan: RepositoryScan = server.client.post("/repositories/r/scan", &()).await.unwrap();
    assert_eq!(scan.recorded.len(), 2, "{scan:?}");
    assert_eq!((scan.strangers.len(), scan.left_out.len(), scan.missing.len()), (1, 0, 0), "{scan:?}");
    let after: Vec<RestorePoint> = server.client.get("/restore-points?vm=db").await.unwrap();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.id, &before.kind, before.parent), (after.id, &after.kind, after.parent));
        assert_eq!((&before.directory, &before.disks, &before.job), (&after.directory, &after.disks, &after.job));
        assert_eq!((after.level.as_str(), after.bytes), ("application", 500));
    }
    let again: RepositoryScan = server.client.post("/repositories/r/scan", &()).await.unwrap();
    assert_eq!((again.recorded.len(), again.known), (0, 2));
    server.finished(server.run("j").await.summary.id).await;
    let Some(Work::Backup(work)) = &fake.orders()[0].work else { panic!() };
    assert_eq!(work.parent.as_ref().map(|parent| &parent.restore_point_id), Some(&folder(1)));

    // A link goes: what builds on it is named, and nothing is forgotten.
    std::fs::remove_dir_all(&before[1].directory).unwrap();
    let broken: RepositoryScan = server.client.post("/repositories/r/scan", &()).await.unwrap();
    let said: Vec<&str> = broken.missing.iter().map(|missing| missing.why.as_str()).collect();
    assert!(said.iter().any(|why| why.contains(&format!("restore point {}: it is missing", folder(0)))), "{said:?}");
    assert!(said.iter().any(|why| why.contains(&before[1].id.to_string())), "{said:?}");
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!(points.len(), 3);
}

/// Whose VM is not in the infrastructure, or whose chain is broken, is named and not recorded.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_scan_cannot_record_is_named_with_the_reason() {
    let (place, fake, server) = one_vm().await;
    server.finished(server.run("j").await.summary.id).await;
    let order = fake.orders()[0].clone();
    write_point(&order, None);
    let Some(Work::Backup(work)) = &order.work else { panic!() };
    let dir = place.repository.join("db").join(&work.restore_point_id);
    let text = std::fs::read_to_string(dir.join("restore-point.json")).unwrap();
    let copy = |id: &str, change: &dyn Fn(String) -> String| {
        let to = place.repository.join("db").join(id);
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(dir.join("disk0.qcow2"), to.join("disk0.qcow2")).unwrap();
        let origin = serde_json::from_str::<serde_json::Value>(&text).unwrap()["origin"].to_string();
        let text = text.replace(&origin, "null").replace(&work.restore_point_id, id);
        std::fs::write(to.join("restore-point.json"), change(text)).unwrap();
    };
    copy("aaaabbbbccccdddd", &|text| text.replace("\"vm\":\"db\"", "\"vm\":\"other\""));
    copy("nohexdigits", &|text| text);
    copy("aaaabbbbccccdd00", &|text| {
        text.replace("\"kind\":\"full\"", "\"kind\":\"incremental\"").replace("\"parent\":null", "\"parent\":\"gone\"")
    });
    copy("aaaabbbbccccdd01", &|text| text.replace("\"version\":2", "\"version\":1"));
    let scan: RepositoryScan = server.client.post("/repositories/r/scan", &()).await.unwrap();
    let why = |id: &str| {
        let found = scan.left_out.iter().find(|found| found.path.ends_with(id));
        found.unwrap_or_else(|| panic!("{id}: {scan:?}")).why.clone()
    };
    assert!(why("aaaabbbbccccdddd").contains("VM other is not in the infrastructure"));
    assert!(why("nohexdigits").contains("not the id of a restore point"));
    assert!(why("aaaabbbbccccdd00").contains("lies over nothing"));
    let old = "00000000-0000-0000-aaaa-bbbbccccdd01".parse().unwrap();
    assert_eq!((scan.recorded, scan.known), (vec![old], 1));
    let refused = problem(server.client.post::<RepositoryScan>("/repositories/none/scan", &()).await);
    assert_eq!(refused.status, 404);
    std::fs::rename(&place.repository, place.dir.path().join("unmounted")).unwrap();
    let refused = problem(server.client.post::<RepositoryScan>("/repositories/r/scan", &()).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "not-readable"));
}

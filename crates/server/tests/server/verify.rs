//! What a verification says of each restore point of a chain, and what follows from it.

use crate::chains::write_point;
use crate::fake::Fake;
use crate::harness::{Server, one_vm};
use lull_api::infrastructure::{RestorePoint, Verdict, Verification};
use lull_proxy_wire::v1::task_order::Work;
use serde_json::json;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Runs the job so many times; each time whole images lie in the repository afterwards.
async fn run(server: &Server, fake: &Fake, times: usize) -> i64 {
    let mut last = 0;
    for _ in 0..times {
        last = server.finished(server.run("j").await.summary.id).await.summary.id;
        let order = fake.orders().pop().unwrap();
        let Some(Work::Backup(work)) = &order.work else { panic!() };
        let parent = work.parent.as_ref().map(|parent| parent.restore_point_id.as_str());
        write_point(&order, parent);
        let image = Path::new(&work.repository_dir).join("db").join(&work.restore_point_id).join("disk0.qcow2");
        let mut tool = std::process::Command::new("qemu-img");
        tool.args(["create", "-q", "-f", "qcow2"]);
        if let Some(parent) = parent {
            tool.args(["-F", "qcow2", "-b", &format!("../{parent}/disk0.qcow2")]);
        }
        assert!(tool.arg(&image).arg("1048576").status().unwrap().success());
    }
    last
}

async fn points(server: &Server) -> Vec<RestorePoint> {
    server.client.get("/restore-points").await.unwrap()
}

async fn verify(server: &Server, id: Uuid) -> Verification {
    server.client.post(&format!("/restore-points/{id}/verify"), &()).await.unwrap()
}

/// The outcome of each verification, the newest point first.
async fn outcomes(server: &Server) -> Vec<String> {
    let outcome =
        |point: RestorePoint| point.verified.map_or("-".into(), |text| text.split_once(": ").unwrap().1.into());
    points(server).await.into_iter().map(outcome).collect()
}

fn image(point: &RestorePoint) -> PathBuf {
    Path::new(&point.directory).join("disk0.qcow2")
}

/// A table that points nowhere: length and header are as they were.
fn rot(point: &RestorePoint) {
    let mut bytes = std::fs::read(image(point)).unwrap();
    let table = usize::try_from(u64::from_be_bytes(bytes[48..56].try_into().unwrap())).unwrap();
    bytes[table..table + 8].fill(0);
    std::fs::write(image(point), bytes).unwrap();
}

/// Three chains of two points; then the full one of the newest rots, and the increment on it is verified.
#[tokio::test(flavor = "multi_thread")]
async fn a_sound_chain_stays_while_a_newer_one_rests_on_what_is_damaged() {
    let (_place, fake, server) = one_vm().await;
    server.change("j", json!({"full_every": 2})).await;
    run(&server, &fake, 6).await;
    let before = points(&server).await;
    rot(&before[1]);
    let found = verify(&server, before[0].id).await;
    assert!(!found.ok && found.findings[0].ends_with("disk0.qcow2: sound"), "{found:?}");
    let rests_on = format!("builds on {}, which is damaged", before[1].id);
    assert_eq!(outcomes(&server).await[..2], [rests_on, "damaged".into()]);
    server.change("j", json!({"retention": {"last": 2}})).await;
    let seventh = run(&server, &fake, 1).await;
    server
        .until(seventh, "something is removed", |session| session.notes.join("\n").contains("retention: removed"))
        .await;
    let left: Vec<Uuid> = points(&server).await.iter().map(|point| point.id).skip(1).collect();
    let expected: Vec<Uuid> = before[..4].iter().map(|point| point.id).collect();
    assert_eq!(left, expected, "the last two that can be restored are the new one and one of the second chain");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_builds_on_what_is_damaged_also_when_who_was_verified_is_gone() {
    let (_place, fake, server) = one_vm().await;
    run(&server, &fake, 3).await;
    let before = points(&server).await;
    rot(&before[2]);
    assert!(!verify(&server, before[0].id).await.ok);
    server.client.delete(&format!("/restore-points/{}", before[0].id)).await.unwrap();
    run(&server, &fake, 1).await;
    let newest = points(&server).await.remove(0);
    let why = newest.full_because.unwrap_or_default();
    assert!(newest.kind == "full" && why.contains(&format!("found restore point {} damaged", before[2].id)), "{why}");
}

/// What was put right is found sound with all that builds on it; a point whose parent is not known any more answers for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_says_of_every_point_of_the_chain_what_it_found() {
    let (_place, fake, server) = one_vm().await;
    run(&server, &fake, 3).await;
    let all = points(&server).await;
    let good = std::fs::read(image(&all[1])).unwrap();
    rot(&all[1]);
    assert!(!verify(&server, all[0].id).await.ok);
    let rests_on = format!("builds on {}, which is damaged", all[1].id);
    assert_eq!(outcomes(&server).await, [rests_on.as_str(), "damaged", "sound"]);
    std::fs::write(image(&all[1]), good).unwrap();
    assert!(verify(&server, all[0].id).await.ok);
    assert_eq!(outcomes(&server).await, ["sound", "sound", "sound"]);
    std::fs::remove_dir_all(&all[2].directory).unwrap();
    let found = verify(&server, all[1].id).await;
    assert!(found.findings.join("\n").contains("restore-point.json cannot be read"), "{found:?}");
    let rests_on = format!("builds on {}, which is damaged", all[2].id);
    assert_eq!(outcomes(&server).await, ["sound", rests_on.as_str(), "damaged"]);
}

/// A repository that is not mounted says nothing of what lies in it.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_checked_is_told_and_never_recorded_as_damage() {
    let (place, fake, server) = one_vm().await;
    run(&server, &fake, 2).await;
    let newest = points(&server).await.remove(0);
    assert!(verify(&server, newest.id).await.ok);
    let hidden = place.dir.path().join("hidden");
    std::fs::rename(&place.repository, &hidden).unwrap();
    std::fs::create_dir(&place.repository).unwrap();
    let found = verify(&server, newest.id).await;
    assert_eq!((found.ok, found.verdict), (false, Verdict::NotChecked));
    assert!(found.not_checked[0].contains("mount the repository"), "{found:?}");
    assert_eq!(outcomes(&server).await, ["sound", "sound"]);
    std::fs::remove_dir(&place.repository).unwrap();
    std::fs::rename(&hidden, &place.repository).unwrap();
    // Damage counts whatever else could not be looked at.
    rot(&newest);
    let description = Path::new(&points(&server).await[1].directory).join("restore-point.json");
    let text = std::fs::read_to_string(&description).unwrap();
    std::fs::write(&description, text.replace("\"version\":2", "\"version\":9")).unwrap();
    let found = verify(&server, newest.id).await;
    assert_eq!((found.verdict, found.not_checked.len()), (Verdict::Damaged, 1), "{found:?}");
    assert_eq!(outcomes(&server).await, ["damaged", "sound"]);
    run(&server, &fake, 1).await;
    assert_eq!(points(&server).await[0].kind, "full");
}

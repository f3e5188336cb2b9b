//! Whole tasks on a real guest, through the proxy's own calls.

#[path = "support/embedded.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod embedded;
#[path = "support/guest.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod guest;

use embedded::{Running, embedded};
use guest::Guest;
use lull_engine::consistency::{ConsistencyLevel, Evidence, assess};
use lull_proxy::desk::ProxyConfig;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::task_order::Work;
use lull_proxy_wire::v1::to_task::Message;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn order(guest: &Guest, work: Work) -> v1::TaskOrder {
    static ORDERS: AtomicU64 = AtomicU64::new(0);
    v1::TaskOrder {
        task_id: "task".into(),
        epoch: ORDERS.fetch_add(1, Ordering::Relaxed),
        vm_name: guest.name().into(),
        guest: Some(guest.target()),
        work: Some(work),
        ..Default::default()
    }
}

/// A backup into folders that live as long as the returned value.
fn backup(guest: &Guest) -> (v1::TaskOrder, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (repository, fleecing) = (folder.path().join("repository"), folder.path().join("fleecing"));
    std::fs::create_dir_all(&repository).unwrap();
    std::fs::create_dir_all(&fleecing).unwrap();
    let work = v1::BackupWork {
        repository_dir: repository.display().to_string(),
        restore_point_id: "0197a3b2-1111-7222-8333-444455556666".into(),
        ..Default::default()
    };
    let order = v1::TaskOrder { hypervisor: Some(guest.hypervisor(&fleecing)), ..order(guest, Work::Backup(work)) };
    (order, folder)
}

fn level(finished: &v1::Finished) -> Option<ConsistencyLevel> {
    let evidence: Evidence = serde_json::from_str(&finished.evidence_json).unwrap();
    assess(&evidence).level
}

/// By another way than ours: nothing of ours is in the guest, and it writes.
fn assert_clean(guest: &Guest) {
    let left = guest.ssh(
        "ls -d /run/lull* /dev/shm/lull* /tmp/lull* 2>/dev/null; ls -l /proc/[0-9]*/exe 2>/dev/null | grep lull; true",
    );
    assert_eq!(left, "");
    guest.ssh("timeout 10 sh -c 'echo alive >/root/alive && sync /root/alive && rm /root/alive'");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_reaches_application_level_and_leaves_nothing() {
    let guest = Guest::boot("pg", "backup");
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    let (mut order, folder) = backup(&guest);
    order.settings_json = serde_json::json!({ "scripts": { "linux": {
        "pre": "#!/bin/sh\necho before $LULL_VM\ntouch /root/pre\n", "post": "#!/bin/sh\nrm /root/pre\n",
    } } })
    .to_string();
    let mut task = Running::start(&mut client, order).await;
    let finished = task.finished().await;
    println!("{}", task.words_told());
    assert_eq!(finished.outcome, "success", "{finished:?}");
    // The listing ends when it ends: beside copy and verify.
    let steps = task.steps();
    assert!(steps.contains("index ok, "), "{steps}");
    assert_eq!(
        steps.replace("index ok, ", ""),
        "connect ok, deploy ok, inventory ok, pre-script ok, quiesce ok, freeze ok, snapshot ok, thaw ok, release ok, \
         post-script ok, copy ok, verify ok, remove ok, receipt ok"
    );
    assert_eq!(level(&finished), Some(ConsistencyLevel::Application));
    let words = task.words_told();
    assert!(words.contains(&format!("before {}", guest.name())), "the script's output is kept: {words}");
    let files = task.restore_point().unwrap();
    assert!(files.atomic && files.directory.starts_with(&*folder.path().to_string_lossy()), "{files:?}");
    let receipt = finished.receipt.unwrap();
    assert!(receipt.guest_checked && receipt.hypervisor_checked, "{receipt:?}");
    assert!(receipt.left_in_guest.is_empty() && receipt.left_in_hypervisor.is_empty(), "{receipt:?}");
    assert_eq!(guest.ssh("ls /root/pre 2>/dev/null; true"), "", "the post-thaw script ran");
    assert_clean(&guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_lasts_as_long_as_its_caller_renews_it() {
    let guest = Guest::boot("pg", "hold");
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    let hold =
        |settings: &str| v1::TaskOrder { settings_json: settings.into(), ..order(&guest, Work::Hold(v1::HoldWork {})) };

    // A caller that renews past one lease, and whose command then succeeds.
    let mut task = Running::start(&mut client, hold("{\"lease_ms\":2000}")).await;
    let ready = task.until(|event| matches!(event, Event::HoldReady(_))).await;
    let Event::HoldReady(ready) = ready else { panic!() };
    assert_eq!(ready.facts["LULL_VM"], guest.name());
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        task.words.send(v1::ToTask { message: Some(Message::Renew(v1::HoldRenewal {})) }).await.unwrap();
    }
    let end = v1::HoldEnd { succeeded: true, detail: "taken".into() };
    task.words.send(v1::ToTask { message: Some(Message::End(end)) }).await.unwrap();
    let finished = task.finished().await;
    assert_eq!(finished.outcome, "success", "{}", task.words_told());
    let thawed = task.told.iter().find_map(|e| if let Event::Thawed(t) = e { Some(*t) } else { None }).unwrap();
    assert!(thawed.no_gap && thawed.window_us > 2_900_000, "{thawed:?}");

    // A caller that falls silent.
    let mut task = Running::start(&mut client, hold("{\"lease_ms\":2000}")).await;
    task.until(|event| matches!(event, Event::HoldReady(_))).await;
    let finished = task.finished().await;
    assert_eq!(finished.outcome, "failed");
    assert!(finished.failure_json.contains("did not renew"), "{}", finished.failure_json);
    assert_clean(&guest);

    // A caller that is gone, call and all.
    let mut task = Running::start(&mut client, hold("{}")).await;
    task.until(|event| matches!(event, Event::HoldReady(_))).await;
    drop(task);
    guest.ssh("timeout 10 sh -c 'echo alive >/root/alive && sync /root/alive && rm /root/alive'");
    let recover = v1::RecoverOrder {
        vm_name: guest.name().into(),
        guest: Some(guest.target()),
        maybe_frozen: true,
        ..Default::default()
    };
    let mut recovery = Running::listen(client.recover(recover).await.unwrap().into_inner());
    let finished = recovery.finished().await;
    assert_eq!(finished.outcome, "success", "{}", recovery.words_told());
    assert_clean(&guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_component_and_watchdog_are_recovered_from_by_hand() {
    let guest = Guest::boot("pg", "killed");
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    // A long lease: a busy machine's guest must not thaw by itself before it is killed.
    let hold = v1::TaskOrder {
        settings_json: "{\"lease_ms\":30000,\"freeze_budget_ms\":60000}".into(),
        ..order(&guest, Work::Hold(v1::HoldWork {}))
    };
    // Both at once, which no watchdog survives: the root stays frozen until the ladder's third step. Stopped first, so
    // that neither sees the other die. The killer waits in the guest from before: while root is frozen the guest's log
    // stands still, and a login at sshd's level VERBOSE fills what little of it waits in memory.
    guest.ssh(
        "(while [ ! -d /run/lull.lock ]; do sleep 0.2; done; sleep 6; \
         p=$(ls -l /proc/[0-9]*/exe | sed -n 's#.*/proc/\\([0-9]*\\)/exe -> .*/lull-runtime.*#\\1#p'); \
         kill -STOP $p; kill -KILL $p) >/dev/null 2>&1 </dev/null &",
    );
    let mut task = Running::start(&mut client, hold).await;
    task.until(|event| matches!(event, Event::HoldReady(_))).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let end = v1::HoldEnd { succeeded: true, detail: String::new() };
    task.words.send(v1::ToTask { message: Some(Message::End(end)) }).await.unwrap();
    let finished = task.finished().await;
    assert_eq!(finished.outcome, "failed", "{}", task.words_told());
    println!("{}", task.words_told());
    assert!(task.words_told().contains("by hand: 1 of 1"), "{}", task.words_told());
    assert_ne!(level(&finished), Some(ConsistencyLevel::Application));
    guest.ssh("timeout 10 sh -c 'echo alive >/root/alive && sync /root/alive && rm /root/alive'");

    let recover = v1::RecoverOrder {
        vm_name: guest.name().into(),
        guest: Some(guest.target()),
        maybe_frozen: true,
        ..Default::default()
    };
    let mut recovery = Running::listen(client.recover(recover).await.unwrap().into_inner());
    assert_eq!(recovery.finished().await.outcome, "success", "{}", recovery.words_told());
    assert_clean(&guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_at_any_step_the_guest_is_as_before() {
    let guest = Guest::boot("pg", "cancel");
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    let scripts = serde_json::json!({ "scripts": { "linux": {
        "pre": "#!/bin/sh\ntouch /root/pre; sleep 1\n", "post": "#!/bin/sh\nrm /root/pre\n",
    } } });
    for step in ["connect", "deploy", "inventory", "pre-script", "quiesce", "freeze", "copy"] {
        let (mut order, folder) = backup(&guest);
        order.settings_json = scripts.to_string();
        let mut task = Running::start(&mut client, order).await;
        task.until_step(step).await;
        let cancel = v1::Cancel { reason: "a person asked".into() };
        task.words.send(v1::ToTask { message: Some(Message::Cancel(cancel)) }).await.unwrap();
        let finished = task.finished().await;
        assert_eq!(finished.outcome, "cancelled", "at {step}:\n{}", task.words_told());
        assert_eq!(task.restore_point(), None);
        let receipt = finished.receipt.unwrap_or_default();
        assert!(receipt.left_in_guest.is_empty() && receipt.left_in_hypervisor.is_empty(), "at {step}: {receipt:?}");
        assert_eq!(guest.ssh("ls /root/pre 2>/dev/null; true"), "", "at {step}: the post-thaw script ran");
        let files = std::fs::read_dir(folder.path().join("repository")).unwrap().count();
        assert_eq!(files, 0, "at {step}: nothing is left in the repository");
        assert_clean(&guest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_now_rehearse_and_the_list_of_vms() {
    let guest = Guest::boot("pg", "trial");
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    let test = v1::TestOrder {
        vm_name: guest.name().into(),
        guest: Some(guest.target()),
        hypervisor: Some(guest.hypervisor(guest.folder())),
        session_id: 1,
    };
    let mut trial = Running::listen(client.test_guest(test).await.unwrap().into_inner());
    let finished = trial.finished().await;
    assert_eq!(finished.outcome, "success", "{}", trial.words_told());
    assert!(finished.inventory_json.contains("PostgreSQL"), "{}", finished.inventory_json);

    let mut task = Running::start(&mut client, order(&guest, Work::Rehearse(v1::RehearseWork {}))).await;
    let finished = task.finished().await;
    assert_eq!(finished.outcome, "success", "{}", task.words_told());
    assert!(task.told.iter().any(|e| matches!(e, Event::Thawed(t) if t.no_gap)));

    let list = client.list_vms(guest.hypervisor(guest.folder())).await.unwrap().into_inner();
    assert_eq!((list.vms[0].name.as_str(), list.vms[0].state.as_str()), (guest.name(), "running"));
    assert_eq!(list.vms[0].disks, ["vd0"]);
    assert_clean(&guest);
}

/// An sshd that logs as by default: while root is frozen the log stands still, and at the testbed's level VERBOSE a login and a
/// few commands fill what little of it waits in memory.
fn with_sshds_own_log_level(guest: &Guest) {
    // It writes its pid again once it listens again.
    guest.ssh(
        "sed -i s/VERBOSE/INFO/ /etc/ssh/sshd_config.d/testbed.conf && mv /run/sshd.pid /run/sshd.old && \
         kill -HUP $(cat /run/sshd.old) && until [ -s /run/sshd.pid ]; do sleep 0.1; done",
    );
}

/// In the guest, from before the freeze: waits for it, so many seconds more, and then does `what`; `$p` are the components.
fn later(guest: &Guest, seconds: u32, what: &str) {
    guest.ssh(&format!(
        "(while [ ! -d /run/lull.lock ]; do sleep 0.2; done; sleep {seconds}; \
         p=$(ls -l /proc/[0-9]*/exe | sed -n 's#.*/proc/\\([0-9]*\\)/exe -> .*/lull-runtime.*#\\1#p'); \
         {what}) >/dev/null 2>&1 </dev/null &"
    ));
}

fn long_hold(guest: &Guest) -> v1::TaskOrder {
    v1::TaskOrder {
        settings_json: "{\"lease_ms\":60000,\"freeze_budget_ms\":60000}".into(),
        ..order(guest, Work::Hold(v1::HoldWork {}))
    }
}

fn recovery(guest: &Guest) -> v1::RecoverOrder {
    v1::RecoverOrder {
        vm_name: guest.name().into(),
        guest: Some(guest.target()),
        maybe_frozen: true,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_guest_without_fsfreeze_is_thawed_by_a_component_in_memory() {
    let guest = Guest::boot("pg", "bare");
    with_sshds_own_log_level(&guest);
    guest.ssh("mv $(command -v fsfreeze) /root/hidden; ! command -v fsfreeze");
    later(&guest, 6, "kill -STOP $p; kill -KILL $p");
    // A proxy in a runtime of its own, so that it can be killed like a process.
    let killed = tokio::runtime::Runtime::new().unwrap();
    let (frozen, is_frozen) = tokio::sync::oneshot::channel();
    let order = long_hold(&guest);
    killed.spawn(async move {
        let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
        let mut task = Running::start(&mut client, order).await;
        task.until(|event| matches!(event, Event::HoldReady(_))).await;
        frozen.send(()).unwrap();
        std::future::pending::<()>().await
    });
    is_frozen.await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    // Component and watchdog are dead, the server dies with its proxy: what is left is a frozen root.
    killed.shutdown_background();
    let (mut second, _proxy) = embedded(ProxyConfig::default()).await;
    // Between the two scripts: the second one is owed.
    let script =
        v1::OwedScript { body: "#!/bin/sh\necho after $LULL_VM; touch /root/post\n".into(), timeout_ms: 10_000 };
    let order = v1::RecoverOrder { post_script: Some(script), ..recovery(&guest) };
    let mut recovery = Running::listen(second.recover(order).await.unwrap().into_inner());
    let finished = recovery.finished().await;
    println!("{}", recovery.words_told());
    assert_eq!(finished.outcome, "success", "{}", recovery.words_told());
    let words = recovery.words_told();
    assert!(words.contains("1 of 1 file systems were still frozen (with the component: the guest has no fsfreeze)"));
    assert!(words.contains(&format!("after {}", guest.name())), "the script's output is kept: {words}");
    assert_eq!(recovery.steps(), "connect ok, thaw ok, remove ok, post-script ok, receipt ok");
    assert_eq!(guest.ssh("ls /root/post && rm /root/post"), "/root/post");
    assert_clean(&guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_component_is_evicted_and_an_orphaned_watchdog_is_waited_for() {
    let guest = Guest::boot("pg", "evict");
    with_sshds_own_log_level(&guest);
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    // Another proxy's task, alive and renewed: whoever recovers wins.
    let mut task = Running::start(&mut client, long_hold(&guest)).await;
    task.until(|event| matches!(event, Event::HoldReady(_))).await;
    let (mut second, _second_proxy) = embedded(ProxyConfig::default()).await;
    let mut evicting = Running::listen(second.recover(recovery(&guest)).await.unwrap().into_inner());
    let finished = evicting.finished().await;
    let words = evicting.words_told();
    assert_eq!(finished.outcome, "success", "{words}");
    assert!(words.contains("a component of an earlier task still runs and is ended"), "{words}");
    assert!(words.contains("the last one ended in order"), "its watchdog thawed: {words}");
    let end = v1::HoldEnd { succeeded: true, detail: String::new() };
    task.words.send(v1::ToTask { message: Some(Message::End(end)) }).await.unwrap();
    assert_eq!(task.finished().await.outcome, "failed", "{}", task.words_told());
    assert_clean(&guest);

    // A watchdog that stands still while its main process is killed: it is nobody's child any more, and must live.
    later(
        &guest,
        4,
        "for q in $p; do [ $(cat /proc/$q/comm) = lull-watchdog ] && w=$q || m=$q; done; \
         kill -STOP $w; kill -KILL $m; sleep 20; kill -CONT $w",
    );
    let mut task = Running::start(&mut client, long_hold(&guest)).await;
    task.until(|event| matches!(event, Event::HoldReady(_))).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let mut waiting = Running::listen(second.recover(recovery(&guest)).await.unwrap().into_inner());
    let finished = waiting.finished().await;
    let words = waiting.words_told();
    assert_eq!(finished.outcome, "success", "{words}");
    assert!(words.contains("the last one ended in order"), "nobody thawed by hand: {words}");
    drop(task);
    assert_clean(&guest);
}

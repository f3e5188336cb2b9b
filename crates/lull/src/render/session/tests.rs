//! How sessions look.

use super::*;
use lull_api::infrastructure::{ProxyCandidate, ProxyExplanation};
use lull_api::proxy_tier::ProxyChoice;
use lull_api::timing::RetryOf;

fn step(step: &str, state: &str, took_us: Option<u64>, detail: &str) -> Step {
    Step {
        step: step.into(),
        state: state.into(),
        detail: detail.into(),
        started_at: "2026-03-01T11:59:58Z".into(),
        took_us,
        done_bytes: None,
        total_bytes: None,
    }
}

fn task() -> Task {
    Task {
        id: "01890000-0000-7000-8000-000000000001".parse().unwrap(),
        vm: "pg-demo".into(),
        state: "finished".into(),
        result: Some("success".into()),
        failure: None,
        proxy: Some(ProxyExplanation {
            vm: "pg-demo".into(),
            chosen: Some("backup-server".into()),
            tier: Some(4),
            summary: "the only proxy that is online".into(),
            candidates: vec![
                ProxyCandidate {
                    name: "backup-server".into(),
                    chosen: true,
                    tier: Some(4),
                    running_tasks: 0,
                    reason: "chosen".into(),
                },
                ProxyCandidate {
                    name: "win-1".into(),
                    chosen: false,
                    tier: None,
                    running_tasks: 0,
                    reason: "offline".into(),
                },
            ],
            more: vec![],
        }),
        earlier_choices: vec![],
        steps: vec![
            step("connect", "ok", Some(41_000), "127.0.0.1:2222 as root"),
            step("freeze", "ok", Some(2_100), "2 file systems"),
            step("snapshot", "ok", Some(900), "1 disk, one instant"),
            step("copy", "ok", Some(3_200_000), "2.9 GiB"),
        ],
        level: Some("application".into()),
        level_reasons: vec!["/boot/efi (vfat) was synced, not frozen".into()],
        freeze_window_us: Some(3_400),
        restore_point: Some("01890000-0000-7000-8000-000000000002".parse().unwrap()),
        receipt: Some(Receipt {
            guest_checked: true,
            hypervisor_checked: true,
            rightly_remains: vec!["authentication log".into(), "wtmp".into()],
            ..Receipt::default()
        }),
        inventory: None,
        notes: vec![],
    }
}

fn session(tasks: Vec<Task>) -> Session {
    Session {
        summary: SessionSummary {
            id: 12,
            kind: "backup".into(),
            job: Some("nightly".into()),
            scheduled_for: None,
            retry: None,
            state: "finished".into(),
            result: Some("success".into()),
            started_at: "2026-03-01T11:59:46Z".into(),
            ended_at: Some("2026-03-01T12:00:00.2Z".into()),
            vms: tasks.iter().map(|task| task.vm.clone()).collect(),
        },
        tasks,
        notes: vec![],
        last_event: 40,
    }
}

#[test]
fn a_finished_session_is_a_tree_with_times() {
    assert_eq!(
        tree(&session(vec![task()]), &Look::plain(None), false),
        "\
Session 12  backup of job nightly  success  2026-03-01 11:59:46, 14.2 s
└─ pg-demo  success
   ├─ · proxy                      backup-server (tier 4): the only proxy that is online
   ├─ ✓ connect             41 ms  127.0.0.1:2222 as root
   ├─ ✓ freeze             2.1 ms  2 file systems
   ├─ ✓ snapshot           900 µs  1 disk, one instant
   ├─ ✓ copy                3.2 s  2.9 GiB
   ├─ · freeze window      3.4 ms  from freeze sent to thaw answered
   ├─ · level                      application
   │                                 /boot/efi (vfat) was synced, not frozen
   ├─ · restore point              01890000-0000-7000-8000-000000000002
   └─ ✓ receipt                    nothing left in guest and hypervisor; rightly remain: authentication log, wtmp
"
    );
}

#[test]
fn who_began_a_session_and_what_came_after_it_is_told() {
    let mut retry = session(vec![task()]);
    retry.summary.retry = Some(RetryOf { attempt: 1, times: 3, session: 12 });
    retry.notes = vec!["retention: removed 1 expired restore point".into(), "tried again".into()];
    let text = tree(&retry, &Look::plain(None), false);
    assert!(text.starts_with("Session 12  backup of job nightly, retry 1 of 3 of session 12  success"), "{text}");
    let branches: Vec<&str> = text.lines().filter(|line| line.starts_with(['├', '└'])).collect();
    assert!(branches[0].starts_with("├─ pg-demo") && branches[1].starts_with("├─ · note"), "{text}");
    assert!(branches[2].starts_with("└─ · note") && branches[2].ends_with("tried again"), "{text}");
    let mut scheduled = session(vec![]);
    scheduled.summary.scheduled_for = Some("2026-03-01T11:59:00Z".into());
    assert_eq!(purpose(&scheduled.summary), "backup of job nightly, scheduled");
}

#[test]
fn why_shows_every_candidate_and_the_inventory() {
    let mut task = task();
    task.inventory = Some(serde_json::json!({"os": "Debian 12"}));
    let text = tree(&session(vec![task]), &Look::plain(None), true);
    assert!(text.contains("│                                 ✗ win-1                   0 tasks  offline\n"), "{text}");
    assert!(text.contains("\"os\": \"Debian 12\""), "{text}");
}

#[test]
fn a_failure_names_hop_cause_and_remedy() {
    let mut failed = task();
    failed.result = Some("failed".into());
    failed.steps = vec![step("connect", "failed", Some(5_000_000), "no answer")];
    failed.failure = Some(Failure {
        step: "connect".into(),
        hop: "proxy to guest".into(),
        cause: "connection refused".into(),
        remedy: "see whether sshd runs in the guest".into(),
        text: "pg-demo: backup-server could not connect to 10.0.0.5:22: connection refused".into(),
    });
    (failed.level, failed.freeze_window_us, failed.restore_point) = (None, None, None);
    failed.receipt = Some(Receipt { hypervisor_checked: true, ..Receipt::default() });
    assert_eq!(
        task_tree(&failed, &Look::plain(Some(76)), false, true),
        "\
└─ pg-demo  failed
   ├─ · proxy                      backup-server (tier 4): the only proxy
   │                               that is online
   ├─ ✗ connect             5.0 s  no answer
   ├─ ✗ failure                    pg-demo: backup-server could not connect
   │                               to 10.0.0.5:22: connection refused
   │                                 do: see whether sshd runs in the
   │                                   guest
   └─ ! receipt                    the guest was not looked at; nothing left
                                   in hypervisor
"
    );
}

#[test]
fn a_running_step_shows_its_time_and_progress_so_far() {
    let mut copy = step("copy", "running", None, "disk0");
    (copy.done_bytes, copy.total_bytes) = (Some(1 << 30), Some(4 << 30));
    assert_eq!(step_line(&copy, &Look::plain(None), 0), "● copy                2.0 s  25 %, 1.0 GiB of 4.0 GiB  disk0");
    assert_eq!(step_line(&copy, &Look::plain(Some(45)), 3), "● copy                2.0 s  25 %, 1.0 Gi…");
    assert_eq!(progress(5, 0), "100 %, 5 B of 0 B");
    assert_eq!(progress(u64::MAX, u64::MAX), "100 %, 16 EiB of 16 EiB");
}

#[test]
fn what_is_left_is_named() {
    let receipt = Receipt {
        guest_checked: true,
        hypervisor_checked: true,
        left_in_guest: vec!["/run/lull-x".into()],
        ..Receipt::default()
    };
    assert_eq!(receipt_text(&receipt), "LEFT in guest: /run/lull-x; nothing left in hypervisor");
    assert!(!receipt_is_clean(&receipt));
}

#[test]
fn several_tasks_hang_on_one_trunk_and_no_guest_paints_the_terminal() {
    let mut evil = task();
    evil.notes = vec!["script said \x1b[2Jboo\nand more".into()];
    let text = tree(&session(vec![evil, task()]), &Look::plain(None), false);
    assert!(!text.contains('\x1b'));
    assert!(
        text.contains(
            "\n│  ├─ · note                       script said ?[2Jboo\n│  │                               and more\n"
        ),
        "{text}"
    );
    assert!(text.contains("\n└─ pg-demo"));
    assert!(text.contains("\n├─ pg-demo"));
}

#[test]
fn what_is_said_of_the_whole_session_stands_before_its_tasks() {
    let told = "https://monitor.example was told of this session: it answered 204 No Content".to_string();
    let session = Session { notes: vec![told], ..session(vec![]) };
    let text = tree(&session, &Look::plain(None), false);
    assert_eq!(
        text.lines().nth(1),
        Some("note: https://monitor.example was told of this session: it answered 204 No Content")
    );
}

#[test]
fn a_proxy_that_lost_the_task_is_shown_before_the_one_that_has_it() {
    let mut session = session(vec![task()]);
    let mut before = session.tasks[0].proxy.clone().unwrap();
    before.chosen = Some("site-a".into());
    session.tasks[0].earlier_choices = vec![ProxyChoice {
        at: "2026-03-01T11:59:47Z".into(),
        explanation: before,
        ended_at: Some("2026-03-01T11:59:48Z".into()),
        ended: Some("handed-on".into()),
    }];
    let text = tree(&session, &Look::plain(None), true);
    let (lost, has) = (text.find("proxy before").unwrap(), text.find("· proxy  ").unwrap());
    assert!(lost < has, "{text}");
    assert!(text.contains("site-a (tier 4)") && text.contains("another proxy had to take over"), "{text}");
    assert_eq!(text.matches("✗ win-1").count(), 2, "each choice has its reasons: {text}");
    for (end, words) in [("failed", "; it failed there"), ("not-begun", "; the backup server stopped before it began")]
    {
        session.tasks[0].earlier_choices[0].ended = Some(end.into());
        assert!(tree(&session, &Look::plain(None), true).contains(words), "{end}");
    }
}

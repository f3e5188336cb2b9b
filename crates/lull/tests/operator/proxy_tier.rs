//! The commands about how work is shared out over proxies.

use crate::commands::check;
use crate::fake::Fake;
use crate::run::{document, run};
use lull_api::infrastructure::{Host, Proxy, Repository};
use lull_api::licence::LicenceStatus;
use lull_api::proxy_tier::{JobPreview, Load, LoadReport, ProxyLoad, ProxyShare, VmPreview};
use serde_json::json;

fn preview() -> JobPreview {
    JobPreview {
        job: "nightly".into(),
        vms: vec![VmPreview {
            vm: "shop".into(),
            proxy: Some("site-a".into()),
            tier: Some(1),
            channel: Some("SSH".into()),
            turn: 1,
            why: "same network, not the backup server".into(),
            reasons: vec![],
        }],
        proxies: vec![ProxyShare {
            proxy: "site-a".into(),
            state: "online".into(),
            tasks: 1,
            at_once: 1,
            slots: 2,
            by_tier: vec![1, 0, 0, 0],
        }],
        notes: vec![],
    }
}

#[test]
fn a_preview_is_asked_for_and_shown() {
    let line = "shop  site-a  1     SSH      at once  same network, not the backup server";
    check(&["job", "preview", "nightly"], "GET /jobs/nightly/preview", json!(null), &preview(), line);
}

#[test]
fn the_load_of_the_last_days_is_asked_for_and_shown() {
    let load = Load { tasks: 3, busy_us: 60_000_000, by_tier: [2, 0, 1, 0], failovers: 1 };
    let report = LoadReport {
        since: "2026-03-01T00:00:00Z".into(),
        until: "2026-03-01T12:00:00Z".into(),
        bucket_s: 86_400,
        buckets: vec!["2026-03-01T00:00:00Z".into()],
        proxies: vec![ProxyLoad { proxy: "site-a".into(), total: load.clone(), buckets: vec![load] }],
    };
    let asked = |args: &[&str]| {
        let fake = Fake::start();
        // The time is the clock's: what is asked for is seen first, then answered.
        run(&fake, args);
        let call = fake.script.requests()[0].call.clone();
        fake.script.answer(&call, &report);
        (call, fake)
    };
    let (call, _) = asked(&["proxy", "load"]);
    assert!(call.starts_with("GET /proxies/load?since=20") && !call.contains('&'), "{call}");
    let (call, _) = asked(&["proxy", "load", "site-a", "--since", "36h", "--by", "hour"]);
    assert!(call.ends_with("&proxy=site-a&bucket=hour"), "{call}");
    let since = call.split("since=").nth(1).unwrap().split('&').next().unwrap().replace("%3A", ":");
    let ago = jiff::Timestamp::now().duration_since(since.parse().unwrap());
    assert!((ago.as_hours() - 36).abs() <= 1, "{since}");

    let fake = Fake::start();
    // Whatever second it is.
    let any = jiff::Timestamp::now().as_second();
    for second in any - 90..any + 90 {
        let since = jiff::Timestamp::from_second(second - 7 * 86_400).unwrap().to_string().replace(':', "%3A");
        fake.script.answer(&format!("GET /proxies/load?since={since}"), &report);
        fake.script.answer(&format!("GET /proxies/load?since={since}&proxy=site-a"), &report);
    }
    let output = run(&fake, &["proxy", "load"]);
    assert!(output.stdout.contains("site-a  3") && output.stdout.contains("2 in tier 1, 1 in tier 3"), "{output:?}");
    let one = run(&fake, &["proxy", "load", "site-a"]);
    assert!(one.stdout.contains("TASKS AT ONCE"), "{one:?}");
    let json = run(&fake, &["proxy", "load", "--json"]);
    assert_eq!(document(&json.stdout), serde_json::to_value(&report).unwrap());
    assert_eq!(run(&fake, &["proxy", "load", "--since", "soon"]).code, 2);
}

#[test]
fn a_licence_is_shown_installed_and_removed() {
    let status = LicenceStatus {
        state: "valid".into(),
        kind: "socket".into(),
        edition: Some("standard".into()),
        sockets: Some(4),
        id: Some("T-1".into()),
        licensee: Some("Example".into()),
        issuer: Some("Lull".into()),
        valid_from: Some("2026-01-01".into()),
        valid_until: Some("2026-12-31".into()),
        admits_proxies: false,
        meaning: vec!["the backup server does all guest interaction itself".into()],
        warning: None,
    };
    check(&["license", "show"], "GET /licence", json!(null), &status, "proxies    not licensed");
    check(&["licence", "show"], "GET /licence", json!(null), &status, "Example");

    let fake = Fake::start();
    fake.script.answer("POST /licence", &status).answer_with("DELETE /licence", 204, &());
    let file = fake.folder().join("example.lic");
    let licence = json!({
        "lull_licence": 1,
        "licence": {"id": "T-1", "licensee": "Example", "kind": "universal", "valid_from": "2026-01-01",
            "valid_until": "2026-12-31", "issuer": "00"},
        "signature": "ff"
    });
    std::fs::write(&file, serde_json::to_string_pretty(&licence).unwrap()).unwrap();
    let path = file.display().to_string();
    let installed = run(&fake, &["license", "install", &path]);
    assert!(installed.code == 0 && installed.stdout.contains("edition standard, 4 sockets"), "{installed:?}");
    assert_eq!(fake.script.requests()[0].body, licence);
    let removed = run(&fake, &["license", "remove"]);
    assert_eq!(removed.stdout, "Removed the licence: the built-in universal one holds again.\n");

    std::fs::write(&file, "{\"lull_licence\": 1, \"lic").unwrap();
    let damaged = run(&fake, &["license", "install", &path]);
    assert!(damaged.stderr.contains("is no licence, or damaged"), "{damaged:?}");
    assert_eq!(fake.script.requests().len(), 2, "nothing was sent");
    assert_eq!(run(&fake, &["license", "install", "/nowhere/at/all"]).code, 1);
}

#[test]
fn what_a_proxy_may_do_is_said_in_one_word() {
    let proxy = Proxy {
        id: uuid::Uuid::nil(),
        name: "site-a".into(),
        platform: "linux".into(),
        is_backup_server: false,
        state: "draining".into(),
        problem: None,
        last_heard: Some("2026-03-01T12:00:00Z".into()),
        version: "0.1.0".into(),
        networks: vec![],
        channels: vec!["ssh".into()],
        slots: 8,
        slots_set: Some(8),
        running_tasks: 3,
        licensed: false,
    };
    let line = "site-a  draining, not licensed  3 of 8 (set)";
    for (args, body) in [
        (&["proxy", "drain", "site-a"][..], json!({"state": "draining"})),
        (&["proxy", "disable", "site-a"], json!({"state": "disabled"})),
        (&["proxy", "enable", "site-a"], json!({"state": "enabled"})),
        (&["proxy", "slots", "site-a", "8"], json!({"slots": 8})),
        (&["proxy", "slots", "site-a", "auto"], json!({"slots": 0})),
    ] {
        check(args, "PATCH /proxies/site-a", body, &proxy, line);
    }
    for wrong in ["0", "-1", "many"] {
        assert_eq!(run(&Fake::start(), &["proxy", "slots", "site-a", wrong]).code, 2, "{wrong}");
    }
}

#[test]
fn how_many_backups_run_at_once_is_set_on_hosts_and_repositories() {
    let host = Host {
        id: uuid::Uuid::nil(),
        name: "here".into(),
        kind: "qemu".into(),
        qemu_dir: "/run/vms".into(),
        fleecing_dir: "/var/fleecing".into(),
        vms: 2,
        max_tasks: 8,
        problem: None,
    };
    let set = |value| ["host", "set", "here", "--max-tasks", value];
    check(&set("8"), "PATCH /hosts/here", json!({"max_tasks": 8}), &host, "at once   at most 8 backups");
    let unlimited = Host { max_tasks: 0, ..host };
    check(&set("unlimited"), "PATCH /hosts/here", json!({"max_tasks": 0}), &unlimited, "at once   unlimited");
    assert_eq!(run(&Fake::start(), &set("0")).code, 2);
    let repository = Repository {
        id: uuid::Uuid::nil(),
        name: "local".into(),
        path: "/srv/backup".into(),
        free_bytes: None,
        restore_points: 0,
        max_tasks: 3,
        problem: None,
    };
    let args = ["repository", "set", "local", "--max-tasks", "3"];
    check(&args, "PATCH /repositories/local", json!({"max_tasks": 3}), &repository, "at most 3 backups");
}

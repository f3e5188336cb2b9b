//! Each command sends the call it should, and shows the answer as text and as one JSON document.

use crate::fake::Fake;
use crate::run::{Outcome, answer_on_a_terminal, document, run};
use crate::samples::{explanation, finished, vm};
use lull_api::catalog::{CatalogEnd, CatalogLine};
use lull_api::infrastructure::{
    Finding, Host, Proxy, Repository, RepositoryScan, RestorePoint, ScanFinding, ServerStatus, Verdict, Verification,
};
use lull_api::job::{GuestSettings, Job, SavedJob};
use lull_api::notify::Notify;
use lull_api::vm_settings::{SavedVmSettings, VmSettings};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

/// The command makes this call with this body; its answer is shown, as text that contains `text`, and as JSON.
pub fn check(args: &[&str], call: &str, body: serde_json::Value, answer: &impl Serialize, text: &str) {
    let fake = Fake::start();
    fake.script.answer(call, answer);
    let output = run(&fake, args);
    assert_eq!(output.code, 0, "{args:?} {output:?}");
    assert!(output.stdout.contains(text), "{args:?}: {}", output.stdout);
    let requests = fake.script.requests();
    assert_eq!((requests[0].call.as_str(), &requests[0].body), (call, &body), "{args:?}");
    let output = run(&fake, &[args, &["--json"]].concat());
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{args:?}");
    assert_eq!(document(&output.stdout), serde_json::to_value(answer).unwrap(), "{args:?}");
}

/// The command deletes this object, and says so.
pub fn check_removal(args: &[&str], call: &str) {
    let fake = Fake::start();
    fake.script.answer_with(call, 204, &());
    let output = run(&fake, args);
    assert_eq!(output.code, 0, "{args:?} {output:?}");
    assert!(output.stdout.starts_with("Removed "), "{output:?}");
    assert_eq!(document(&run(&fake, &[args, &["--json"]].concat()).stdout), json!({"removed": args[2]}));
    assert_eq!(fake.script.requests_of(call).len(), 2);
}

fn host() -> Host {
    Host {
        id: Uuid::nil(),
        name: "here".into(),
        kind: "qemu".into(),
        qemu_dir: "/run/vms".into(),
        fleecing_dir: "/var/fleecing".into(),
        vms: 2,
        max_tasks: 4,
        problem: None,
    }
}

fn job() -> Job {
    Job {
        id: Uuid::nil(),
        name: "nightly".into(),
        vms: vec!["shop".into()],
        repository: "local".into(),
        guest: GuestSettings { application_aware: Some("try".into()), ..GuestSettings::default() },
        schedule: None,
        next_run: None,
        last_skipped: None,
        retries: Default::default(),
        retention: Default::default(),
        full_every: 14,
        notify: Notify { url: Some("https://monitor.example/".into()), has_secret: true, ..Notify::default() },
        overrides: vec![],
        last_session: Some(12),
        last_result: Some("success".into()),
    }
}

fn vm_settings() -> SavedVmSettings {
    let settings = VmSettings {
        job: "nightly".into(),
        vm: "shop".into(),
        guest: GuestSettings { lease_ms: Some(3_000), ..GuestSettings::default() },
        credential: Some("app".into()),
        from: [("lease".to_string(), "override".to_string())].into(),
    };
    SavedVmSettings { settings, warnings: vec![] }
}

#[test]
fn settings_of_single_vms() {
    let call = |method: &str| format!("{method} /jobs/nightly/vms/here%2Fshop/settings");
    let lease = "lease       3.0 s  this VM in this job";
    check(&["job", "vm-settings", "nightly", "here/shop"], &call("GET"), json!(null), &vm_settings().settings, lease);
    check(
        &[
            "job",
            "vm-settings",
            "nightly",
            "here/shop",
            "--lease",
            "3s",
            "--credential",
            "app",
            "--clear",
            "scripts,exclude",
        ],
        &call("PATCH"),
        json!({"guest": {"lease_ms": 3000}, "credential": "app", "clear": ["scripts", "exclude"]}),
        &vm_settings(),
        lease,
    );
    check(
        &["job", "vm-settings", "nightly", "here/shop", "--no-pre-freeze-script"],
        &call("PATCH"),
        json!({"guest": {"pre_freeze_script": ""}}),
        &vm_settings(),
        lease,
    );
    check(
        &["job", "vm-settings", "nightly", "here/shop", "--clear-all"],
        &call("DELETE"),
        json!(null),
        &vm_settings(),
        lease,
    );
}

fn point() -> RestorePoint {
    RestorePoint {
        id: Uuid::from_u128(9),
        vm: "shop".into(),
        job: Some("nightly".into()),
        session: 12,
        repository: "local".into(),
        created_at: "2026-03-01T12:00:00Z".into(),
        kind: "full".into(),
        parent: None,
        full_because: Some("the VM has no restore point in this repository yet".into()),
        level: "application".into(),
        level_reasons: vec!["/boot/efi was synced, not frozen".into()],
        directory: "/srv/backup/shop".into(),
        disks: vec!["disk0.qcow2".into()],
        bytes: 3 << 30,
        verified: None,
        removing: false,
    }
}

#[test]
fn hosts() {
    check(
        &["host", "add", "here", "--qemu", "/run/vms", "--fleecing", "/var/fleecing"],
        "POST /hosts",
        json!({"name": "here", "qemu_dir": "/run/vms", "fleecing_dir": "/var/fleecing"}),
        &host(),
        "sockets   /run/vms",
    );
    check(&["host", "list"], "GET /hosts", json!(null), &[host()], "here  qemu  2    /run/vms");
    check(&["host", "show", "here"], "GET /hosts/here", json!(null), &host(), "sockets   /run/vms");
    check(&["host", "rescan", "here"], "POST /hosts/here/rescan", json!(null), &host(), "vms       2");
    check_removal(&["host", "remove", "here"], "DELETE /hosts/here");
}

#[test]
fn relative_paths_become_absolute_here_since_the_server_is_elsewhere() {
    let fake = Fake::start();
    fake.script.answer("POST /repositories", &repository());
    let mut command = crate::run::lull(&fake);
    let output = command.current_dir(fake.folder()).args(["repository", "add", "local", "./backup"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let folder = fake.folder().canonicalize().unwrap();
    assert_eq!(fake.script.requests()[0].body["path"], json!(folder.join("backup")));
}

#[test]
fn vms() {
    check(&["vm", "list"], "GET /vms", json!(null), &[vm()], "shop  here  running  linux  10.0.0.5");
    check(&["vm", "show", "here/shop"], "GET /vms/here%2Fshop", json!(null), &vm(), "host key    SHA256:aaa");
    check(
        &["vm", "set", "shop", "--address", "10.0.0.5,fd00::5", "--connect", "127.0.0.1:2222", "--credential", ""],
        "PATCH /vms/shop",
        json!({"addresses": ["10.0.0.5", "fd00::5"], "connect": "127.0.0.1:2222", "credential": "", "guest_os": null}),
        &vm(),
        "credential  root-key",
    );
    let fingerprint = format!("SHA256:{}", "b".repeat(43));
    check(
        &["vm", "accept-host-key", "shop", "--fingerprint", &fingerprint],
        "POST /vms/shop/accept-host-key",
        json!({"fingerprint": fingerprint}),
        &vm(),
        "host key",
    );
}

fn repository() -> Repository {
    Repository {
        id: Uuid::nil(),
        name: "local".into(),
        path: "/srv/backup".into(),
        free_bytes: Some(5 << 40),
        restore_points: 3,
        max_tasks: 16,
        problem: None,
    }
}

#[test]
fn what_a_scan_left_out_is_told_and_ends_with_6() {
    let fake = Fake::start();
    let path = "/srv/backup/shop/8333444455556666".to_string();
    let left_out = ScanFinding { path: path.clone(), why: "restore point 83: it is missing".into() };
    let scan = RepositoryScan { recorded: vec![Uuid::nil()], known: 2, left_out: vec![left_out], ..Default::default() };
    fake.script.answer("POST /repositories/local/scan", &scan);
    let output = run(&fake, &["repository", "scan", "local"]);
    assert!(output.stdout.contains("1 restore points recorded, 2 known before"), "{output:?}");
    assert!(output.stdout.contains(&format!("left out: {path}: restore point 83: it is missing")), "{output:?}");
    assert_eq!(output.code, 6);
    let whole = RepositoryScan { known: 3, ..Default::default() };
    check(&["repository", "scan", "local"], "POST /repositories/local/scan", json!(null), &whole, "3 known before");
}

#[test]
fn repositories() {
    check(
        &["repository", "add", "local", "/srv/backup"],
        "POST /repositories",
        json!({"name": "local", "path": "/srv/backup"}),
        &repository(),
        "free            5.0 TiB",
    );
    check(
        &["repository", "show", "local"],
        "GET /repositories/local",
        json!(null),
        &repository(),
        "free            5.0 TiB",
    );
    check(
        &["repository", "list"],
        "GET /repositories",
        json!(null),
        &[repository()],
        "local       /srv/backup  5.0 TiB",
    );
    check_removal(&["repository", "remove", "local"], "DELETE /repositories/local");
}

#[test]
fn jobs() {
    let saved = SavedJob { job: job(), warnings: vec!["shop has no credential".into()] };
    let fake = Fake::start();
    fake.script.answer_with("POST /jobs", 201, &saved);
    let script = fake.folder().join("pre");
    std::fs::write(&script, "#!/bin/sh\nsync\n").unwrap();
    let script = script.to_str().unwrap();
    let args = ["job", "create", "nightly", "--vm", "shop", "--repository", "local", "--lease=3s", "--prefer=a,b"];
    let output = run(&fake, &[&args[..], &["--pre-freeze-script", script, "--copy-limit=10MiB"]].concat());
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(output.stderr, "warning: shop has no credential\n");
    assert!(output.stdout.contains("application-aware  try"), "{output:?}");
    assert_eq!(
        fake.script.requests()[0].body,
        json!({"name": "nightly", "vms": ["shop"], "repository": "local", "guest": {
            "lease_ms": 3000, "pre_freeze_script": "#!/bin/sh\nsync\n", "guest_interaction_proxy": "prefer", "fallback": "backup-server",
            "preferred_servers": ["a", "b"], "copy_limit_bytes_per_s": 10 << 20}})
    );
    fake.script.answer("PATCH /jobs/nightly", &saved);
    let output = run(&fake, &["job", "edit", "nightly", "--application-aware", "try", "--json"]);
    assert_eq!(document(&output.stdout)["warnings"], json!(["shop has no credential"]));
    assert_eq!(
        fake.script.requests_of("PATCH")[0].body,
        json!({"name": null, "vms": null, "repository": null, "guest": {"application_aware": "try"}})
    );
    let timing =
        ["--schedule=0 2 * * *", "--time-zone=Europe/Berlin", "--retries=2", "--keep-last=7", "--full-every=7"];
    let output = run(&fake, &[&["job", "edit", "nightly"][..], &timing].concat());
    assert_eq!(output.code, 0, "{output:?}");
    let none = json!({"name": null, "vms": null, "repository": null, "guest": null});
    let with = |more: serde_json::Value| {
        let mut body = none.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(
        fake.script.requests_of("PATCH")[1].body,
        with(json!({"schedule": {"cron": "0 2 * * *", "time_zone": "Europe/Berlin"}, "retries": {"times": 2},
            "retention": {"last": 7}, "full_every": 7}))
    );
    run(&fake, &["job", "edit", "nightly", "--no-schedule", "--keep-all"]);
    assert_eq!(fake.script.requests_of("PATCH")[2].body, with(json!({"schedule": null, "retention": null})));
    check(&["job", "show", "nightly"], "GET /jobs/nightly", json!(null), &job(), "last session       12, success");
    check(&["job", "list"], "GET /jobs", json!(null), &[job()], "nightly  shop  local");
    check_removal(&["job", "remove", "nightly"], "DELETE /jobs/nightly");
}

#[test]
fn a_search_that_finds_nothing_says_so_and_what_it_does_not_know() {
    let fake = Fake::start();
    let call = "GET /catalog/search?pattern=x&limit=100";
    fake.script.answer(call, &CatalogLine::End(CatalogEnd::default()));
    let search = ["catalog", "search", "x"];
    let output = run(&fake, &search);
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, "", "Nothing was found.\n"));
    let unknown = vec!["shop: 1 restore point has no index: 01 (why)".to_string()];
    fake.script.answer(call, &CatalogLine::End(CatalogEnd { unknown, ..CatalogEnd::default() }));
    let output = run(&fake, &search);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(output.stderr, "Nothing was found.\nnot known: shop: 1 restore point has no index: 01 (why)\n");
    let missing = vec!["restore point 01 of shop has no index: why".to_string()];
    fake.script.answer(call, &CatalogLine::End(CatalogEnd { missing, ..CatalogEnd::default() }));
    let output = run(&fake, &search);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(output.stderr.ends_with("not searched: restore point 01 of shop has no index: why\n"), "{output:?}");
    let output = run(&fake, &[&search[..], &["--json"]].concat());
    assert_eq!((output.code, output.stderr.as_str()), (6, ""), "{output:?}");
    assert_eq!(document(&output.stdout)["end"]["told"], 0);
}

#[test]
fn whom_a_job_tells() {
    let fake = Fake::start();
    let secret = fake.folder().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let secret = secret.to_str().unwrap();
    let saved = SavedJob { job: job(), warnings: vec![] };
    fake.script.answer("POST /jobs", &saved);
    let args = ["job", "create", "nightly", "--vm", "shop", "--repository", "local", "--notify-on", "problems"];
    let url = "https://monitor.example/token";
    let address = fake.folder().join("address");
    std::fs::write(&address, format!("{url}\n")).unwrap();
    let from_files = ["--notify-url-file", address.to_str().unwrap(), "--notify-secret-file", secret];
    let output = run(&fake, &[&args[..], &from_files].concat());
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("notify url         https://monitor.example/, signed"), "{output:?}");
    let notify = &fake.script.requests()[0].body["notify"];
    assert_eq!(*notify, json!({"url": url, "secret": "s3cret", "on": "problems"}));

    fake.script.answer("PATCH /jobs/nightly", &saved);
    run(&fake, &["job", "edit", "nightly", "--no-notify-url", "--notify-command", "tell"]);
    let body = &fake.script.requests_of("PATCH")[0].body;
    assert_eq!(body["notify"], json!({"url": "", "secret": "", "command": "tell"}));
    let refused = run(&fake, &["job", "edit", "nightly", "--no-notify-command", "--notify-command", "tell"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    let refused = run(&fake, &["job", "edit", "nightly", "--notify-url", url]);
    assert!(refused.code == 2 && refused.stderr.contains("often holds a token"), "{refused:?}");
    assert!(refused.stderr.contains("--notify-url-file FILE") && !refused.stderr.contains(url), "{refused:?}");
    assert_eq!(fake.script.requests_of("PATCH").len(), 1);
}

#[test]
fn cancelling_a_job_cancels_its_newest_session() {
    let fake = Fake::start();
    fake.script.answer("GET /jobs/nightly", &job());
    fake.script.answer("POST /sessions/12/cancel", &finished("backup", "cancelled"));
    let output = run(&fake, &["job", "cancel", "nightly"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("Session 12  backup of job nightly  cancelled"), "{output:?}");
    fake.script.answer("GET /jobs/nightly", &Job { last_session: None, last_result: None, ..job() });
    let output = run(&fake, &["job", "cancel", "nightly"]);
    assert_eq!(output.code, 3);
    assert!(output.stderr.contains("the job nightly never ran"), "{output:?}");
}

#[test]
fn sessions() {
    let session = finished("backup", "success");
    check(
        &["session", "list", "--job", "night ly", "--limit", "5"],
        "GET /sessions?limit=5&job=night%20ly",
        json!(null),
        &[&session.summary],
        "12       success  backup of job nightly",
    );
    check(&["session", "show", "12"], "GET /sessions/12", json!(null), &session, "├─ ✓ freeze             2.1 ms");
    check(&["session", "show", "12", "--why"], "GET /sessions/12", json!(null), &session, "✓ backup-server  tier 4");
    check(&["session", "cancel", "12"], "POST /sessions/12/cancel", json!(null), &session, "Session 12");
}

#[test]
fn restore_points() {
    let id = point().id.to_string();
    let call = format!("GET /restore-points/{id}");
    check(&["restore-point", "list"], "GET /restore-points", json!(null), &[point()], "application  full");
    check(
        &["restore-point", "list", "--vm", "shop"],
        "GET /restore-points?vm=shop",
        json!(null),
        &[point()],
        "3.0 GiB",
    );
    check(&["restore-point", "show", &id], &call, json!(null), &point(), "/boot/efi was synced, not frozen");
    let known = RestorePoint { verified: Some("2026-03-01T11:59:58.5Z: sound".into()), ..point() };
    check(&["restore-point", "list"], "GET /restore-points", json!(null), &[known], "sound, 2026-03-01 11:59:58");
    let going = RestorePoint { removing: true, ..point() };
    check(&["restore-point", "list"], "GET /restore-points", json!(null), &[going], "being removed");
    let call = format!("POST /restore-points/{id}/verify");
    let sound = Verification {
        ok: true,
        verdict: Verdict::Sound,
        not_checked: vec![],
        findings: vec!["disk0.qcow2: no errors".into()],
    };
    check(&["restore-point", "verify", &id], &call, json!(null), &sound, "sound\n  disk0.qcow2: no errors");
    check_removal(&["restore-point", "remove", &id, "--yes"], &format!("DELETE /restore-points/{id}"));
    let fake = Fake::start();
    for verdict in [Verdict::Damaged, Verdict::NotChecked] {
        fake.script.answer(&call, &Verification { ok: false, verdict, not_checked: vec![], findings: vec![] });
        assert_eq!(run(&fake, &["restore-point", "verify", &id]).code, 1);
    }
}

#[test]
fn a_restore_point_goes_only_with_a_persons_word() {
    let id = point().id.to_string();
    let (get, delete) = (format!("GET /restore-points/{id}"), format!("DELETE /restore-points/{id}"));
    let fake = Fake::start();
    fake.script.answer(&get, &point());
    fake.script.answer_with(&delete, 204, &());
    // Without a terminal: the command that would do it is named.
    let mut command = std::process::Command::new("setsid");
    command.args(["--wait", env!("CARGO_BIN_EXE_lull"), "restore-point", "remove", &id]);
    command.stdin(std::process::Stdio::null()).env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    let outcome: Outcome = command.output().unwrap().into();
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("lull restore-point remove {id} --yes")), "{outcome:?}");
    assert!(fake.script.requests_of(&delete).is_empty());
    // On a terminal: only `yes` is a yes.
    for (answer, code, removed) in [("y", 1, 0), ("yes", 0, 1)] {
        let seen = fake.script.requests_of(&get).len();
        let outcome = answer_on_a_terminal(&fake, &format!("restore-point remove {id}"), answer, (&get, seen + 1));
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(outcome.stdout.contains("of shop, taken 2026-03-01T12:00:00Z, application, 3.0 GiB"), "{outcome:?}");
        assert_eq!(fake.script.requests_of(&delete).len(), removed, "{answer}");
    }
}

#[test]
fn proxies() {
    let proxy = Proxy {
        id: Uuid::nil(),
        name: "backup-server".into(),
        platform: "linux".into(),
        is_backup_server: true,
        state: "online".into(),
        problem: None,
        last_heard: "2026-03-01T12:00:00Z".into(),
        version: "0.1.0".into(),
        networks: vec!["10.0.0.0/24".into()],
        channels: vec!["ssh".into()],
        slots: 2,
        slots_set: None,
        licensed: true,
        running_tasks: 1,
    };
    check(&["proxy", "list"], "GET /proxies", json!(null), &[proxy], "(backup server)  online  1 of 2");
    let text = "shop would be served by backup-server, tier 4";
    check(&["proxy", "explain", "shop"], "GET /vms/shop/proxy-explain", json!(null), &explanation(), text);
    let call = "GET /vms/shop/proxy-explain?job=nightly";
    check(&["proxy", "explain", "shop", "--job", "nightly"], call, json!(null), &explanation(), text);
}

#[test]
fn the_doctor_looks_here_and_there() {
    let fake = Fake::start();
    let status = ServerStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        started_at: "2026-03-01T12:00:00Z".into(),
        state_dir: "/var/lib/lull".into(),
        running_tasks: 0,
    };
    fake.script.answer("GET /status", &status);
    let finding = Finding {
        subject: "repository local".into(),
        state: "error".into(),
        text: "is full".into(),
        remedy: Some("free some space".into()),
    };
    fake.script.answer("GET /doctor", &[finding]);
    let output = run(&fake, &["doctor"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stdout.contains("✗ repository local: is full\n    do: free some space\n"), "{output:?}");
    assert!(output.stdout.contains(&format!("✓ server: {}", fake.url)), "{output:?}");
    assert!(output.stdout.contains("✗ token: "), "the fake's token file is readable by all: {output:?}");
    let output = run(&fake, &["doctor", "--json", "--server", "http://127.0.0.1:1"]);
    assert_eq!(output.code, 1);
    let findings = document(&output.stdout);
    let server = findings.as_array().unwrap().iter().find(|finding| finding["subject"] == "server").unwrap();
    assert!(server["text"].as_str().unwrap().contains("no answer from the backup server at http://127.0.0.1:1"));
}

#[test]
fn completions_know_the_commands() {
    let fake = Fake::start();
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&fake, &["completions", shell]);
        assert_eq!(output.code, 0);
        assert!(output.stdout.contains("restore-point"), "{shell}");
    }
    assert!(run(&fake, &["--version"]).stdout.starts_with("lull "));
}

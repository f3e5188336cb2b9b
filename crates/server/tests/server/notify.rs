//! Who is told of a session that ended: a real little HTTP server on loopback, and programs in the folder `commands/`.

use crate::harness::{PATIENCE, Place, Server, one_vm, problem};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use lull_api::job::{Job, SavedJob};
use lull_api::notify::{Notify, SessionReport};
use lull_api::session::Session;
use lull_engine::failover::FailureClass;
use lull_engine::timeline::Step;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SECRET: &str = "a shared secret";

/// What the receiver does with the next post; then it takes everything.
#[derive(Clone, Copy)]
enum Then {
    Refuse,
    NeverAnswer,
}

#[derive(Clone, Default)]
struct Receiver {
    got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    script: Arc<Mutex<VecDeque<Then>>>,
}

impl Receiver {
    async fn start(script: &[Then]) -> (Receiver, String) {
        let receiver = Receiver::default();
        receiver.script.lock().unwrap().extend(script);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=s3cret-token", listener.local_addr().unwrap());
        let app = Router::new().fallback(take).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (receiver, url)
    }

    async fn until(&self, posts: usize) -> Vec<(HeaderMap, Bytes)> {
        let since = Instant::now();
        loop {
            let got = self.got.lock().unwrap().clone();
            if got.len() >= posts {
                return got;
            }
            assert!(since.elapsed() < PATIENCE, "{} of {posts} posts", got.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    receiver.got.lock().unwrap().push((headers, body));
    let then = receiver.script.lock().unwrap().pop_front();
    match then {
        None => StatusCode::NO_CONTENT,
        Some(Then::Refuse) => StatusCode::SERVICE_UNAVAILABLE,
        Some(Then::NeverAnswer) => std::future::pending().await,
    }
}

async fn tells(server: &Server, notify: Value) -> Notify {
    let saved: SavedJob = server.client.patch("/jobs/j", &json!({"notify": notify})).await.unwrap();
    saved.job.notify
}

/// The session with its result, once this was said of it.
async fn said(server: &Server, id: i64, what: &str) -> Session {
    server.until(id, what, |session| session.notes.iter().any(|note| note.contains(what))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_gets_a_signed_summary_of_the_session() {
    let (_place, fake, server) = one_vm().await;
    let (receiver, url) = Receiver::start(&[]).await;
    let notify = tells(&server, json!({"url": url, "secret": SECRET})).await;
    let shown = url.strip_suffix("/hook?token=s3cret-token").unwrap().to_string();
    assert_eq!(notify, Notify { url: Some(shown), has_secret: true, on: "always".into(), command: None });
    let session = server.finished(server.run("j").await.summary.id).await;
    let (headers, body) = receiver.until(1).await.remove(0);

    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    let hex: String = ring::hmac::sign(&key, &body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(headers["x-lull-signature"], format!("sha256={hex}"));
    assert_eq!(
        (&headers["content-type"], headers.contains_key("authorization")),
        (&"application/json".parse().unwrap(), false)
    );
    let report: SessionReport = serde_json::from_slice(&body).unwrap();
    assert_eq!((report.format, report.session, report.job.as_str()), (1, session.summary.id, "j"));
    assert_eq!((report.result.as_str(), report.ended_at), ("success", session.summary.ended_at));
    let (vm, task) = (&report.vms[0], &session.tasks[0]);
    assert_eq!((vm.vm.as_str(), vm.result.as_str(), vm.level.as_deref()), ("db", "success", Some("application")));
    assert_eq!((vm.restore_point, vm.bytes, vm.kind.as_deref()), (task.restore_point, Some(1_000), Some("full")));
    assert_eq!((vm.freeze_window_us, vm.failure.as_deref()), (Some(12_345), None));
    assert!(vm.started_at.is_some() && vm.ended_at >= vm.started_at);

    let session = said(&server, session.summary.id, "was told of this session: it answered 204").await;
    assert!(!session.notes.iter().any(|note| note.contains("s3cret-token")), "{:?}", session.notes);
    // A failure is told with its sentence, and nothing is told once nobody shall be.
    fake.set(|script| script.fail_at = Some((Step::Freeze, FailureClass::FileSystem)));
    let failed = server.finished(server.run("j").await.summary.id).await;
    let report: SessionReport = serde_json::from_slice(&receiver.until(2).await[1].1).unwrap();
    assert_eq!(report.result, "failed");
    assert_eq!(report.vms[0].failure, failed.tasks[0].failure.as_ref().map(|failure| failure.text.clone()));
    let notify = tells(&server, json!({"url": "", "secret": ""})).await;
    assert_eq!(notify, Notify { on: "always".into(), ..Notify::default() });
    server.finished(server.run("j").await.summary.id).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(receiver.got.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_twice_gets_the_same_report_under_the_same_number() {
    let (_place, _fake, server) = one_vm().await;
    let (receiver, url) = Receiver::start(&[Then::Refuse, Then::NeverAnswer]).await;
    tells(&server, json!({"url": url})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let got = receiver.until(3).await;
    let session = said(&server, id, "was told of this session").await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    for (headers, body) in &got {
        assert_eq!((&headers["x-lull-delivery"], body), (&got[0].0["x-lull-delivery"], &got[0].1));
    }
    assert!(!got[0].0.contains_key("x-lull-signature"), "nobody gave a secret");
    assert_eq!(session.notes.len(), 1, "what succeeded in the end is no warning: {:?}", session.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_never_answers_is_given_up_and_changes_no_result() {
    let (_place, _fake, server) = one_vm().await;
    let (receiver, url) = Receiver::start(&[Then::NeverAnswer; 9]).await;
    tells(&server, json!({"url": url})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let session = said(&server, id, "could not be told of this session: it did not answer within 500 ms").await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    assert_eq!(receiver.got.lock().unwrap().len(), 4, "so many attempts and no more");
    assert!(!session.notes[0].contains("s3cret-token"), "{:?}", session.notes);

    // Who speaks no TLS is as good as who does not answer.
    let no_tls = url.replace("http://", "https://");
    tells(&server, json!({"url": no_tls})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let session = said(&server, id, "could not be told of this session").await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_before_it_could_tell_tells_once_it_is_back() {
    let (place, fake, server) = one_vm().await;
    let (receiver, url) = Receiver::start(&[Then::NeverAnswer]).await;
    tells(&server, json!({"url": url, "secret": SECRET})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    receiver.until(1).await;
    server.kill().await;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let got = receiver.until(2).await;
    assert_eq!(got[0].1, got[1].1);
    assert_eq!(got[0].0["x-lull-signature"], got[1].0["x-lull-signature"]);
    said(&server, id, "was told of this session").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_problems_are_told_where_only_problems_shall_be() {
    let (_place, fake, server) = one_vm().await;
    let (receiver, url) = Receiver::start(&[]).await;
    tells(&server, json!({"url": url, "on": "problems"})).await;
    server.finished(server.run("j").await.summary.id).await;
    fake.set(|script| script.fail_at = Some((Step::Deploy, FailureClass::GuestSide)));
    let failed = server.finished(server.run("j").await.summary.id).await.summary.id;
    let report: SessionReport = serde_json::from_slice(&receiver.until(1).await[0].1).unwrap();
    assert_eq!((report.session, report.result.as_str()), (failed, "failed"));
}

/// A program in the folder of commands.
fn program(place: &Place, name: &str, text: &str) -> PathBuf {
    let folder = place.state.join("commands");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    for path in [&folder, &path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_the_summary_and_its_output_is_kept() {
    let (place, _fake, server) = one_vm().await;
    let got = place.dir.path().join("got.json");
    let text = format!("#!/bin/sh\ncat > {}\necho \"$LULL_JOB $LULL_SESSION $LULL_RESULT $HOME\"\n", got.display());
    program(&place, "tell", &text);
    tells(&server, json!({"command": "tell"})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let session = said(&server, id, "command tell was told of this session: exit code 0").await;
    assert!(session.notes[0].ends_with(&format!("its output:\nj {id} success")), "{:?}", session.notes);
    let report: SessionReport = serde_json::from_slice(&std::fs::read(&got).unwrap()).unwrap();
    assert_eq!((report.session, report.vms.len()), (id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_or_hangs_is_a_warning_and_leaves_no_process() {
    let (place, _fake, server) = one_vm().await;
    program(&place, "fails", "#!/bin/sh\nyes 0123456789 | head -c 20000\necho last words >&2\nexit 3\n");
    tells(&server, json!({"command": "fails"})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let session =
        said(&server, id, "command fails could not be told of this session: it ended with exit status: 3").await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    assert!(session.notes[0].contains("last words") && session.notes[0].len() < 10_000, "the end of it, bounded");

    let pid_file = place.dir.path().join("pid");
    program(&place, "hangs", &format!("#!/bin/sh\nsleep 600 &\necho $! > {}\nwait\n", pid_file.display()));
    tells(&server, json!({"command": "hangs"})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    said(&server, id, "it did not end within 1500 ms and was killed").await;
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let since = Instant::now();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    while state().is_ok_and(|stat| !stat.contains(") Z")) {
        assert!(since.elapsed() < PATIENCE, "what it started goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_kill_cut_off_is_not_started_again() {
    let (place, fake, server) = one_vm().await;
    let runs = place.dir.path().join("runs");
    program(&place, "slow", &format!("#!/bin/sh\necho run >> {}\nsleep 600\n", runs.display()));
    tells(&server, json!({"command": "slow"})).await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let since = Instant::now();
    while !runs.exists() {
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.kill().await;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    said(&server, id, "the backup server was stopped meanwhile or failed at it").await;
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n");
}

/// What a stopping server began would be cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_a_stop_cancelled_is_told_at_the_next_start() {
    let (place, fake, server) = one_vm().await;
    let runs = place.dir.path().join("runs");
    let text = format!("#!/bin/sh\nsleep 0.2\necho $LULL_SESSION $LULL_RESULT >> {}\n", runs.display());
    program(&place, "slow", &text);
    tells(&server, json!({"command": "slow"})).await;
    fake.set(|script| script.hang_after = Some(12));
    let id = server.run("j").await.summary.id;
    server.until(id, "it is frozen", |s| s.tasks[0].steps.iter().any(|step| step.step == "freeze")).await;
    server.stop().await.unwrap();
    assert!(!runs.exists());
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    said(&server, id, "command slow was told of this session: exit code 0").await;
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), format!("{id} cancelled\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_to_tell_is_checked_when_the_job_is_saved() {
    let (place, _fake, server) = one_vm().await;
    program(&place, "open", "#!/bin/sh\n");
    std::fs::set_permissions(place.state.join("commands/open"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let check = async |notify: Value, says: &str| {
        let problem = problem(server.client.patch::<SavedJob>("/jobs/j", &json!({"notify": notify})).await);
        let text = format!("{} {:?}", problem.what, problem.why);
        assert!(problem.status == 422 && text.contains(says), "{text}");
    };
    check(json!({"url": "http://192.0.2.1/"}), "must begin with https:// unless it is on the backup server").await;
    check(json!({"url": "nonsense"}), "must be an address such as https://").await;
    check(json!({"on": "sometimes"}), "must be always or problems").await;
    check(json!({"secret": "x"}), "there is no notify.url").await;
    check(json!({"command": "../lull.db"}), "without a path").await;
    check(json!({"command": "nothing"}), "nothing is not there").await;
    check(json!({"command": "open"}), "open can be written to by others").await;
    let job: Job = server.client.get("/jobs/j").await.unwrap();
    assert_eq!(job.notify, Notify { on: "always".into(), ..Notify::default() });
}

//! The client against a scripted server, as scenarios: what QEMU, or something that is not QEMU, may do to it.

use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

use super::*;

const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}"#;

/// One step of the server's side.
enum Do {
    /// Reads a command and checks its name; remembers its id.
    Expect(&'static str),
    /// Answers the n-th command read, the greeting's negotiation not counted.
    Answer(usize, &'static str),
    /// Sends a line as it is.
    Say(&'static str),
    /// Sends that many bytes without a line end.
    Flood(usize),
    Pause(u64),
    /// Holds the connection open until the client is gone.
    Hold,
}

struct Server {
    _dir: TempDir,
    path: PathBuf,
}

/// A server that greets, negotiates, does `script` with the first connection and then closes it.
fn serve(script: Vec<Do>) -> Server {
    serve_after("", script)
}

/// The same, with `leftovers` sent before the greeting.
fn serve_after(leftovers: &'static str, script: Vec<Do>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.qmp");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut lines = Lines { reader: BufReader::new(read), line: Vec::new(), line_bytes_max: 1 << 20 };
        write.write_all(format!("{leftovers}{GREETING}\r\n").as_bytes()).await.unwrap();
        let negotiation: Value = serde_json::from_slice(lines.next().await.unwrap()).unwrap();
        assert_eq!(negotiation["execute"], "qmp_capabilities");
        let answer = json!({"return": {}, "id": negotiation["id"]});
        write.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
        let mut ids = Vec::new();
        for step in script {
            match step {
                Do::Expect(command) => {
                    let line: Value = serde_json::from_slice(lines.next().await.unwrap()).unwrap();
                    assert_eq!(line["execute"], command);
                    ids.push(line["id"].as_u64().unwrap());
                }
                Do::Answer(n, body) => {
                    let mut answer: Value = serde_json::from_str(body).unwrap();
                    answer["id"] = ids[n].into();
                    write.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
                }
                Do::Say(line) => write.write_all(format!("{line}\r\n").as_bytes()).await.unwrap(),
                // The client may hang up on us in the middle of it.
                Do::Flood(bytes) => drop(write.write_all(&vec![b'x'; bytes]).await),
                Do::Pause(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Do::Hold => drop(lines.reader.read_to_end(&mut Vec::new()).await),
            }
        }
    });
    Server { _dir: dir, path }
}

fn limits() -> QmpLimits {
    QmpLimits { greeting_ms: 300, command_ms: 300, line_bytes_max: 64 << 10 }
}

impl Server {
    async fn client(&self) -> QmpClient {
        QmpClient::connect(&self.path, limits()).await.unwrap()
    }
}

#[tokio::test]
async fn answers_find_their_commands_in_any_order_and_events_come_between() {
    let server = serve(vec![
        Do::Expect("query-status"),
        Do::Expect("query-name"),
        Do::Say(r#"{"event": "STOP", "timestamp": {}}"#),
        Do::Answer(1, r#"{"return": {"name": "b"}}"#),
        Do::Say(""),
        Do::Say(r#"{"event": "JOB_STATUS_CHANGE", "data": {"id": "j"}}"#),
        Do::Answer(0, r#"{"return": {"status": "paused"}}"#),
        Do::Hold,
    ]);
    let client = server.client().await;
    assert_eq!(client.version(), QemuVersion { major: 10, minor: 0, micro: 2 });
    let mut events = client.events();
    let answers = client.pipeline(&[("query-status", Value::Null), ("query-name", Value::Null)], 300).await;
    assert_eq!(answers, [Ok(json!({"status": "paused"})), Ok(json!({"name": "b"}))]);
    assert_eq!(events.recv().await.unwrap().name, "STOP");
    assert_eq!(events.recv().await.unwrap().data, json!({"id": "j"}));
    assert!(client.stopped_seen());
}

#[tokio::test]
async fn what_the_client_before_was_yet_to_be_told_is_passed_over() {
    let leftovers = "{\"return\": {\"name\": \"vm\"}, \"id\": 2}\r\n{\"event\": \"STOP\"}\r\n\
                     {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 3}\r\n";
    let stale = r#"{"return": "not yours", "id": 2}"#;
    let script = vec![Do::Say(stale), Do::Expect("stop"), Do::Say(stale), Do::Answer(0, r#"{"return": {}}"#), Do::Hold];
    let server = serve_after(leftovers, script);
    let client = server.client().await;
    assert!(!client.stopped_seen(), "an event of before the greeting says nothing about now");
    assert_eq!(client.execute("stop", Value::Null).await, Ok(json!({})));
}

#[tokio::test]
async fn a_refusal_names_the_command_and_the_next_one_still_works() {
    let server = serve(vec![
        Do::Expect("qom-set"),
        Do::Answer(0, r#"{"error": {"class": "DeviceNotFound", "desc": "no vd9"}}"#),
        Do::Expect("stop"),
        Do::Answer(1, r#"{"return": {}}"#),
        Do::Hold,
    ]);
    let client = server.client().await;
    let refused = client.execute("qom-set", json!({"path": "vd9"})).await.unwrap_err();
    assert_eq!(
        refused,
        QmpError::Refused { command: "qom-set".into(), class: "DeviceNotFound".into(), desc: "no vd9".into() }
    );
    assert_eq!(client.execute("stop", Value::Null).await, Ok(json!({})));
}

#[tokio::test]
async fn a_connection_cut_before_or_during_a_command_is_gone_for_good() {
    for script in [vec![], vec![Do::Expect("stop")], vec![Do::Expect("stop"), Do::Say(r#"{"event": "STOP"}"#)]] {
        let server = serve(script);
        let client = server.client().await;
        let lost = client.execute("stop", Value::Null).await.unwrap_err();
        assert!(matches!(&lost, QmpError::Gone { command, .. } if command == "stop"), "{lost}");
        assert!(client.is_gone());
        let began = Instant::now();
        assert!(matches!(client.execute("cont", Value::Null).await, Err(QmpError::Gone { .. })));
        assert!(began.elapsed() < Duration::from_millis(100), "a dead connection answers at once");
    }
}

#[tokio::test]
async fn a_cut_after_the_first_answers_loses_only_the_rest() {
    let server = serve(vec![Do::Expect("a"), Do::Answer(0, r#"{"return": 1}"#), Do::Expect("b")]);
    let answers = server.client().await.pipeline(&[("a", Value::Null), ("b", Value::Null)], 300).await;
    assert_eq!(answers[0], Ok(json!(1)));
    assert!(matches!(&answers[1], Err(QmpError::Gone { command, .. }) if command == "b"), "{answers:?}");
}

#[tokio::test]
async fn a_late_answer_is_a_timeout_and_does_not_disturb_what_follows() {
    let server = serve(vec![
        Do::Expect("slow"),
        Do::Expect("quick"),
        Do::Answer(0, r#"{"return": "late"}"#),
        Do::Answer(1, r#"{"return": "quick"}"#),
        Do::Hold,
    ]);
    let client = server.client().await;
    let slow = client.execute("slow", Value::Null).await.unwrap_err();
    assert_eq!(slow, QmpError::Timeout { command: "slow".into(), waited_ms: 300 });
    assert_eq!(client.execute("quick", Value::Null).await, Ok(json!("quick")));
}

#[tokio::test]
async fn garbage_and_lines_without_end_close_the_connection() {
    for (step, expected) in [
        (Do::Say("\u{7f}ELF"), "not JSON"),
        (Do::Say(r#"{"return": {}}"#), "without an id"),
        (Do::Say(GREETING), "second greeting"),
        (Do::Say(r#"{"error": {"class": "GenericError", "desc": "JSON parse error"}}"#), "JSON parse error"),
        (Do::Flood(100 << 10), "longer than 65536 bytes"),
    ] {
        let server = serve(vec![Do::Expect("stop"), step, Do::Hold]);
        let broken = server.client().await.execute("stop", Value::Null).await.unwrap_err();
        assert!(matches!(&broken, QmpError::Protocol { cause, .. } if cause.contains(expected)), "{broken}");
    }
}

#[tokio::test]
async fn a_socket_that_accepts_without_greeting_is_busy_and_one_without_listener_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.qmp");
    let absent = QmpClient::connect(&path, limits()).await.map(|_| ()).unwrap_err();
    assert!(matches!(absent, QmpError::Unreachable { .. }), "{absent}");
    let _listener = UnixListener::bind(&path).unwrap();
    let busy = QmpClient::connect(&path, limits()).await.map(|_| ()).unwrap_err();
    assert!(matches!(busy, QmpError::Busy { waited_ms: 300, .. }), "{busy}");
}

#[tokio::test]
async fn something_that_is_not_qemu_is_named_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.qmp");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
    });
    let other = QmpClient::connect(&path, limits()).await.map(|_| ()).unwrap_err();
    assert!(matches!(&other, QmpError::Protocol { cause, .. } if cause.contains("220 mail")), "{other}");
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_nothing_pending_and_closing_ends_what_waits() {
    let server = serve(vec![Do::Expect("a"), Do::Expect("b"), Do::Pause(50), Do::Hold]);
    let client = server.client().await;
    let gave_up = timeout(Duration::from_millis(20), client.execute("a", Value::Null)).await;
    assert!(gave_up.is_err());
    assert!(client.shared.state().pending.is_empty());
    let (answer, ()) = tokio::join!(client.execute("b", Value::Null), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.close().await;
    });
    assert!(matches!(answer, Err(QmpError::Gone { .. })), "{answer:?}");
}

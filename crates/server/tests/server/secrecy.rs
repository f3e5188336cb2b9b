//! Secrets go in and never come out: not in the database, not in the log, not in any answer.

use crate::harness::{PATIENCE, one_vm};
use futures::StreamExt;
use lull_api::infrastructure::{Credential, Elevation, NewCredential};
use lull_engine::failover::FailureClass;
use lull_engine::timeline::Step;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tracing_subscriber::fmt::MakeWriter;

const SECRETS: [&str; 8] = [
    "s3cret-password",
    "s3cret-changed",
    "s3cret-key-material",
    "s3cret-passphrase",
    "s3cret-root-password",
    "s3cret-signature",
    "s3cret-token",
    "s3cret-of-nobody",
];

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;
    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

fn holds_no_secret(what: &str, bytes: &[u8]) {
    for secret in SECRETS {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{what} holds {secret}");
    }
}

fn files_hold_no_secret(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_hold_no_secret(&path);
        } else {
            holds_no_secret(&path.display().to_string(), &std::fs::read(&path).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_nowhere_to_be_found() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_max_level(tracing::Level::TRACE);
    // Another test of the same process may have set its own; this one then sees only the rest.
    let _ = subscriber.try_init();
    let (place, fake, server) = one_vm().await;
    let key = NewCredential {
        name: "k".into(),
        user: "backup".into(),
        password: None,
        private_key: Some("-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret-key-material\n".into()),
        passphrase: Some("s3cret-passphrase".into()),
        elevation: Elevation::Su,
        elevation_password: Some("s3cret-root-password".into()),
    };
    holds_no_secret("Debug", format!("{key:?}").as_bytes());
    let _: Credential = server.client.post("/credentials", &key).await.unwrap();
    let notify =
        serde_json::json!({"url": "https://127.0.0.1:9/s3cret-token?k=s3cret-token", "secret": "s3cret-signature"});
    let typed: lull_api::notify::NotifySettings = serde_json::from_value(notify.clone()).unwrap();
    holds_no_secret("Debug", format!("{typed:?}").as_bytes());
    let _: serde_json::Value = server.client.patch("/jobs/j", &serde_json::json!({"notify": notify})).await.unwrap();
    let unsigned = serde_json::json!({"notify": {"url": "", "secret": "s3cret-of-nobody"}});
    let refused = server.client.patch::<serde_json::Value>("/jobs/j", &unsigned).await.unwrap_err();
    holds_no_secret("an error", format!("{refused:?}").as_bytes());
    let nowhere = serde_json::json!({"notify": {"url": "ftp://127.0.0.1/s3cret-token"}});
    let refused = server.client.patch::<serde_json::Value>("/jobs/j", &nowhere).await.unwrap_err();
    holds_no_secret("an error", format!("{refused:?}").as_bytes());
    let change = serde_json::json!({"credential": "k"});
    let _: serde_json::Value = server.client.patch("/vms/db", &change).await.unwrap();
    server.finished(server.run("j").await.summary.id).await;
    let change = serde_json::json!({"password": "s3cret-changed", "elevation": "sudo"});
    let _: Credential = server.client.patch("/credentials/c", &change).await.unwrap();
    let change = serde_json::json!({"credential": "c"});
    let _: serde_json::Value = server.client.patch("/vms/db", &change).await.unwrap();
    fake.set(|script| script.fail_at = Some((Step::Connect, FailureClass::RefusedCredential)));
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;

    // They did go out with the orders, or nothing was shown here.
    let credentials: Vec<_> = fake.orders().iter().map(|o| o.guest.clone().unwrap().credential.unwrap()).collect();
    let login = credentials[0].login.clone().unwrap();
    let lull_proxy_wire::v1::credential::Login::PrivateKey(sent) = login else { panic!() };
    assert!(sent.pem.contains("s3cret-key-material") && sent.passphrase == "s3cret-passphrase");
    assert_eq!(credentials[0].elevation.as_ref().unwrap().password, "s3cret-root-password");
    assert_eq!(credentials[1].elevation.as_ref().unwrap().password, "s3cret-changed");

    for path in [
        "/status",
        "/doctor",
        "/hosts",
        "/hosts/h",
        "/vms",
        "/vms/db",
        "/vms/db/proxy-explain",
        "/credentials",
        "/credentials/c",
        "/credentials/k",
        "/repositories",
        "/repositories/r",
        "/jobs",
        "/jobs/j",
        "/sessions",
        &format!("/sessions/{id}"),
        "/restore-points",
        "/proxies",
    ] {
        let answer: serde_json::Value = server.client.get(path).await.unwrap();
        holds_no_secret(path, answer.to_string().as_bytes());
    }
    let events: Vec<_> =
        server.client.events(id, 0).map(|e| serde_json::to_string(&e.unwrap()).unwrap()).collect().await;
    holds_no_secret("events", events.join("\n").as_bytes());
    let broken = reqwest::Client::new().post(server.url("/credentials")).bearer_auth(&server.token);
    let broken =
        broken.body(r#"{"name": "x", "password": ["s3cret-password"]}"#).timeout(PATIENCE).send().await.unwrap();
    holds_no_secret("an error", broken.text().await.unwrap().as_bytes());
    files_hold_no_secret(&place.state);
    let token = server.token.clone();
    server.stop().await.unwrap();
    files_hold_no_secret(&place.state);
    let log = log.0.lock().unwrap().clone();
    holds_no_secret("the log", &log);
    assert!(!log.windows(token.len()).any(|window| window == token.as_bytes()), "the log holds the token");
}

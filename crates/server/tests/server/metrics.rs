//! What monitoring is told.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish};
use lull_api::job::GuestSettings;
use lull_engine::timeline::Step;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Arc, Mutex};

pub async fn metrics(server: &Server) -> String {
    let url = format!("http://{}/metrics", server.ready.metrics.unwrap());
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_string();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    answer.text().await.unwrap()
}

/// The value behind this name and these labels.
pub fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_is_told_of_queue_proxies_choices_results_and_windows() {
    let (place, mut site) = (Place::new(), Fake::named("site-a", false));
    site.networks = vec!["192.0.2.0/24".into()];
    site.slots = 3;
    let fakes = vec![Fake::embedded(), site];
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["db", "web"], GuestSettings::default()).await;

    let before = metrics(&server).await;
    assert!(before.ends_with("# EOF\n"), "{before}");
    assert_eq!(value(&before, "lull_tasks_open{state=\"waiting\"}"), 0.0);
    assert_eq!(value(&before, "lull_proxy_slots{proxy=\"site-a\"}"), 3.0);
    assert_eq!(value(&before, "lull_proxy_online{proxy=\"site-a\"}"), 1.0);
    assert_eq!(value(&before, "lull_failovers_total"), 0.0);

    server.finished(server.run("j").await.summary.id).await;
    fakes[1].set(|script| script.die_at = Some(Step::Deploy));
    server.finished(server.run("j").await.summary.id).await;
    let after = metrics(&server).await;
    assert_eq!(value(&after, "lull_proxy_choices_total{tier=\"1\"}"), 4.0);
    assert_eq!(value(&after, "lull_proxy_choices_total{tier=\"4\"}"), 2.0);
    assert_eq!(value(&after, "lull_failovers_total"), 2.0);
    assert_eq!(value(&after, "lull_tasks_finished_total{result=\"success\"}"), 4.0);
    assert_eq!(value(&after, "lull_sessions_finished_total{result=\"success\"}"), 2.0);
    // Each window of the fakes takes 12.345 ms.
    assert_eq!(value(&after, "lull_freeze_window_seconds_count"), 4.0);
    assert_eq!(value(&after, "lull_freeze_window_seconds_bucket{le=\"0.01\"}"), 0.0);
    assert_eq!(value(&after, "lull_freeze_window_seconds_bucket{le=\"0.025\"}"), 4.0);
    assert!((value(&after, "lull_freeze_window_seconds_sum") - 4.0 * 0.012_345).abs() < 1e-9);

    // What waits and what runs is seen at the moment of asking.
    fakes[1].set(|script| (script.die_at, script.hang_after) = (None, Some(2)));
    let _: serde_json::Value = server.client.patch("/proxies/site-a", &json!({"slots": 1})).await.unwrap();
    let _: serde_json::Value =
        server.client.patch("/proxies/backup-server", &json!({"state": "draining"})).await.unwrap();
    let id = server.run("j").await.summary.id;
    server.until(id, "one runs", |session| session.tasks.iter().any(|task| task.state == "running")).await;
    let now = metrics(&server).await;
    assert_eq!(value(&now, "lull_tasks_open{state=\"waiting\"}"), 1.0);
    assert_eq!(value(&now, "lull_tasks_open{state=\"running\"}"), 1.0);
    assert_eq!(value(&now, "lull_proxy_tasks{proxy=\"site-a\"}"), 1.0);
    assert_eq!(value(&now, "lull_proxy_online{proxy=\"backup-server\"}"), 0.0);
    assert_eq!(value(&now, "lull_proxy_state{proxy=\"backup-server\",state=\"draining\"}"), 1.0);
    assert!(!now.contains("db") && !now.contains("192.0.2"), "no VM is named");

    let elsewhere = format!("http://{}/api/v1/status", server.ready.metrics.unwrap());
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(elsewhere).send().await.unwrap();
    assert_eq!(answer.status(), 404, "nothing else is told there");
}

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

#[tokio::test(flavor = "multi_thread")]
async fn what_the_runner_logs_names_session_and_task() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone());
    // Another test of the same process may have set its own: then there is nothing to read here.
    if subscriber.try_init().is_err() {
        return;
    }
    let (place, own) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let session = server.finished(server.run("j").await.summary.id).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let task = session.tasks[0].id.to_string();
    let said = |message: &str| {
        let found = lines.iter().find(|line| line["fields"]["message"] == message);
        found.unwrap_or_else(|| panic!("no {message:?} in:\n{text}")).clone()
    };
    let given = said("a proxy gets the task");
    assert_eq!((&given["fields"]["session"], &given["fields"]["task"]), (&json!(session.summary.id), &json!(task)));
    assert_eq!(given["fields"]["proxy"], "backup-server");
    // What is logged while the task runs stands in its span.
    let over = said("the task is over");
    assert_eq!((&over["span"]["session"], &over["span"]["task"]), (&json!(session.summary.id), &json!(task)));
    assert_eq!((&over["span"]["vm"], &over["fields"]["result"]), (&json!("db"), &json!("success")));
    assert_eq!(said("the session is over")["fields"]["session"], json!(session.summary.id));
}

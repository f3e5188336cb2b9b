//! Every path and method of the OpenAPI document: who may call, what unknown names and broken bodies get, and that
//! the published document is the one in `docs/`.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish, one_vm, problem};
use lull_api::Problem;
use lull_api::infrastructure::{Finding, Host, NewHost, NewRepository, Proxy, Repository, ServerStatus, Vm};
use lull_api::job::{GuestSettings, Job, JobValidation, SavedJob};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::path::Path;

struct Endpoint {
    method: Method,
    path: String,
    takes_body: bool,
}

fn endpoints() -> Vec<Endpoint> {
    let document = serde_json::to_value(lull_server::rest::openapi()).unwrap();
    let mut endpoints = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            let takes_body = operation.get("requestBody").is_some();
            endpoints.push(Endpoint { method, path: path.clone(), takes_body });
        }
    }
    assert!(endpoints.len() >= 40, "only {} endpoints", endpoints.len());
    endpoints
}

/// `/api/v1/hosts/{host}/rescan` with every name replaced.
fn filled(path: &str, name: &str) -> String {
    let mut filled = String::new();
    for part in path.split('/').skip(1) {
        filled.push('/');
        filled.push_str(if part.starts_with('{') { name } else { part });
    }
    filled
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn at(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.ready.address)
}

async fn body(response: Response) -> Problem {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let problem: Problem = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} {text}: {e}"));
    assert_eq!(problem.status, status, "{text}");
    assert!(!problem.code.is_empty() && !problem.what.is_empty());
    problem
}

/// A body that is right in itself, for the paths that take one.
fn fitting(path: &str) -> Value {
    if path.contains("/managed-servers/{") {
        return json!({"login": {"user": "root", "password": "x"}});
    }
    match path.rsplit('/').next().unwrap() {
        "accept-host-key" => json!({"fingerprint": "SHA256:x"}),
        "end" => json!({"succeeded": true, "detail": "exit code 0"}),
        "hosts" => json!({"name": "h2", "qemu_dir": "/run/other"}),
        "credentials" => json!({"name": "c2", "user": "root", "password": "x"}),
        "repositories" => json!({"name": "r2", "path": "/"}),
        "jobs" | "validate" => json!({"name": "j2", "vms": ["db"], "repository": "r"}),
        _ => json!({}),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_without_the_token() {
    let (_place, _fake, server) = one_vm().await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let http = http();
    let before: Vec<Job> = server.client.get("/jobs").await.unwrap();
    for endpoint in endpoints() {
        for name in ["j", "db", &id.to_string()] {
            let url = at(&server, &filled(&endpoint.path, name));
            let request = || http.request(endpoint.method.clone(), &url).json(&fitting(&endpoint.path));
            let wrong = format!("{}x", &server.token[..server.token.len() - 1]);
            for request in [
                request(),
                request().bearer_auth(""),
                request().bearer_auth(wrong),
                request().basic_auth("admin", Some(&server.token)),
                http.request(endpoint.method.clone(), format!("{url}?token={}", server.token)),
            ] {
                let response = request.send().await.unwrap();
                assert!(response.headers().contains_key("www-authenticate"), "{url}");
                let problem = body(response).await;
                assert_eq!((problem.status, problem.code.as_str()), (401, "not-authenticated"), "{url}");
                assert!(problem.remedy.unwrap().contains("admin-token"));
            }
        }
    }
    let unknown = http.get(at(&server, "/anything")).send().await.unwrap();
    assert_eq!(unknown.status(), 401, "what exists is nobody's business either");
    let after: Vec<Job> = server.client.get("/jobs").await.unwrap();
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_on_any_path_says_what_exists() {
    let (_place, _fake, server) = one_vm().await;
    server.finished(server.run("j").await.summary.id).await;
    let http = http();
    for endpoint in endpoints().into_iter().filter(|e| e.path.contains('{')) {
        for name in ["no-such-thing", "999999999999", "0b0b0b0b-0000-7000-8000-000000000000", "%F0%9F%90%98%2Fx"] {
            let url = at(&server, &filled(&endpoint.path, name));
            let mut request = http.request(endpoint.method.clone(), &url).bearer_auth(&server.token);
            if endpoint.takes_body {
                request = request.json(&fitting(&endpoint.path));
            }
            let problem = body(request.send().await.unwrap()).await;
            assert_eq!(problem.status, 404, "{} {url}: {problem:?}", endpoint.method);
            assert!(problem.code.starts_with("unknown-"), "{url}: {}", problem.code);
            let why = problem.why.unwrap();
            assert!(why.contains("there is: ") || why.contains("the newest are: "), "{url}: {why}");
        }
    }
    let missing = body(http.get(server.url("/jbos")).bearer_auth(&server.token).send().await.unwrap()).await;
    assert_eq!((missing.status, missing.code.as_str()), (404, "unknown-path"));
    let method = body(http.put(server.url("/jobs")).bearer_auth(&server.token).send().await.unwrap()).await;
    assert_eq!((method.status, method.code.as_str()), (405, "unknown-method"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_body_is_refused_with_a_reason_and_changes_nothing() {
    let (_place, _fake, server) = one_vm().await;
    let http = http();
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(2 << 20));
    let deep = "[".repeat(10_000);
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"17".to_vec(),
        b"\"text\"".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"{\"surprise\": 1}".to_vec(),
        b"{\"name\": {\"a\": [1, 2, {}]}, \"vms\": 3, \"fingerprint\": [], \"succeeded\": \"yes\"}".to_vec(),
        b"{\"name\": \"a\", \"name\": \"b\"}".to_vec(),
        b"{\"addresses\": [\"not an address\"], \"qemu_dir\": \"../x\", \"path\": \"x\"}".to_vec(),
        b"{\"guest\": {\"lease_ms\": 1e99}}".to_vec(),
        b"{\"guest\": {\"application_aware\": \"maybe\"}}".to_vec(),
        deep.into_bytes(),
        long.into_bytes(),
    ];
    let state = || async {
        let jobs: Value = server.client.get("/jobs").await.unwrap();
        let vms: Value = server.client.get("/vms").await.unwrap();
        let credentials: Value = server.client.get("/credentials").await.unwrap();
        let sessions: Value = server.client.get("/sessions").await.unwrap();
        (jobs, vms, credentials, sessions)
    };
    let before = state().await;
    for endpoint in endpoints().into_iter().filter(|e| e.takes_body) {
        let name = if endpoint.path.contains("vms") {
            "db"
        } else if endpoint.path.contains("cred") {
            "c"
        } else {
            "j"
        };
        let url = at(&server, &filled(&endpoint.path, name));
        for bytes in &bodies {
            let request = http.request(endpoint.method.clone(), &url).bearer_auth(&server.token);
            let response = request.header("content-type", "application/json").body(bytes.clone()).send().await.unwrap();
            let problem = body(response).await;
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            assert!((400..500).contains(&problem.status), "{url} {shown}: {problem:?}");
            assert!(problem.what.len() + problem.why.map_or(0, |why| why.len()) < 2_000, "{url} {shown}");
        }
    }
    assert_eq!(state().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_never_make_the_server_fail() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    let (_place, _fake, server) = one_vm().await;
    let http = http();
    let mut runner = TestRunner::deterministic();
    let names = "[ -~]{1,40}";
    for _ in 0..150 {
        let name = names.new_tree(&mut runner).unwrap().current();
        let bytes = proptest::collection::vec(proptest::num::u8::ANY, 0..200).new_tree(&mut runner).unwrap().current();
        let escaped: String = name.bytes().map(|b| format!("%{b:02X}")).collect();
        for path in ["/jobs", "/vms/db/quiesce", "/credentials", &format!("/vms/{escaped}/test")] {
            let request = http.post(server.url(path)).bearer_auth(&server.token).body(bytes.clone());
            let problem = body(request.send().await.unwrap()).await;
            assert!((400..500).contains(&problem.status), "{path} {problem:?}");
        }
        let get = http.get(server.url(&format!("/sessions?limit={escaped}&job={escaped}"))).bearer_auth(&server.token);
        assert_eq!(body(get.send().await.unwrap()).await.status, 422);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn references_in_bodies_and_names_that_are_taken_are_named() {
    let (place, _fake, server) = one_vm().await;
    let check = |problem: Problem, status: u16, code: &str, says: &str| {
        let text =
            format!("{} {} {}", problem.what, problem.why.unwrap_or_default(), problem.remedy.unwrap_or_default());
        assert_eq!((problem.status, problem.code.as_str()), (status, code), "{text}");
        assert!(text.contains(says), "{text}");
    };
    let post = async |path: &str, body: Value| problem(server.client.post::<Value>(path, &body).await);
    let job = |vms: Value, repository: &str| json!({"name": "k", "vms": vms, "repository": repository});
    check(post("/jobs", job(json!(["bd"]), "r")).await, 422, "unknown-vm", "there is: db, web");
    check(post("/jobs", job(json!(["db"]), "s")).await, 422, "unknown-repository", "there is: r");
    check(post("/jobs", job(json!([]), "r")).await, 422, "invalid-job", "no VMs in scope");
    check(post("/jobs", json!({"name": "j", "vms": ["db"], "repository": "r"})).await, 409, "name-taken", "job");
    let lease = json!({"name": "k", "vms": ["db"], "repository": "r", "guest": {"lease_ms": 1}});
    check(post("/jobs", lease).await, 422, "invalid-job", "lease");
    check(post("/hosts", json!({"name": "h", "qemu_dir": "/run/x"})).await, 409, "name-taken", "host");
    check(post("/hosts", json!({"name": "i", "qemu_dir": "run"})).await, 422, "bad-value", "absolute");
    check(post("/hosts", json!({"name": "i", "qemu_dir": "/missing"})).await, 422, "host-unreachable", "not there");
    check(post("/repositories", json!({"name": "s", "path": "/no/such"})).await, 422, "bad-value", "/no/such");
    let credential = |extra: Value| {
        let mut body = json!({"name": "d", "user": "root"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    check(post("/credentials", credential(json!({}))).await, 422, "bad-value", "a password or a private key");
    check(post("/credentials", credential(json!({"private_key": "x"}))).await, 422, "bad-value", "PEM or OpenSSH");
    let both = json!({"password": "x", "private_key": "-----BEGIN OPENSSH PRIVATE KEY-----"});
    check(post("/credentials", credential(both)).await, 422, "bad-value", "not both");
    let su = json!({"password": "x", "elevation": "su"});
    check(post("/credentials", credential(su)).await, 422, "bad-value", "root's password");

    let delete = async |path: &str| problem(server.client.delete(path).await);
    check(delete("/credentials/c").await, 409, "in-use", "used by db");
    check(delete("/repositories/r").await, 409, "in-use", "jobs write to it: j");
    check(delete("/hosts/h").await, 409, "in-use", "in scope: j");
    let validation: JobValidation = server.client.post("/jobs/validate", &job(json!(["bd"]), "r")).await.unwrap();
    assert!(validation.errors[0].contains("no VM \"bd\""), "{validation:?}");
    let validation: JobValidation = server.client.post("/jobs/j/validate", &()).await.unwrap();
    assert_eq!(validation, JobValidation::default());

    for path in ["/jobs/j", "/hosts/h", "/credentials/c", "/repositories/r"] {
        server.client.delete(path).await.unwrap();
    }
    let vms: Vec<Vm> = server.client.get("/vms").await.unwrap();
    assert_eq!(vms, []);
    let path = place.repository.display().to_string();
    let again = NewRepository { name: "r".into(), path };
    let _: Repository = server.client.post("/repositories", &again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_with_a_vm_of_the_same_name_need_the_hosts_name() {
    let (_place, _fake, server) = one_vm().await;
    let second = NewHost { name: "i".into(), qemu_dir: "/run/second".into(), fleecing_dir: None };
    let host: Host = server.client.post("/hosts", &second).await.unwrap();
    assert_eq!(host.vms, 2);
    let ambiguous = problem(server.client.get::<Vm>("/vms/db").await);
    assert_eq!((ambiguous.status, ambiguous.remedy.as_deref()), (409, Some("say which: h/db, i/db")));
    let vm: Vm = server.client.get("/vms/i%2Fdb").await.unwrap();
    assert_eq!((vm.host.as_str(), vm.name.as_str()), ("i", "db"));
    let body = json!({"name": "k", "vms": ["i/db"], "repository": "r"});
    let saved: SavedJob = server.client.post("/jobs", &body).await.unwrap();
    assert_eq!(saved.job.vms, ["i/db"]);
    assert!(!saved.warnings.is_empty(), "that VM has neither address nor credential");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_looked_at_anew_and_forgets_no_vm() {
    let (_place, fake, server) = one_vm().await;
    *fake.vms.lock().unwrap() = vec!["db".into(), "new".into()];
    let host: Host = server.client.post("/hosts/h/rescan", &()).await.unwrap();
    assert_eq!((host.vms, host.problem), (3, None));
    let vms: Vec<Vm> = server.client.get("/vms").await.unwrap();
    let state = |name: &str| vms.iter().find(|vm| vm.name == name).unwrap().state.clone();
    assert_eq!((state("db").as_str(), state("web").as_str()), ("running", "not found on its host"));
    assert_eq!(vms.iter().find(|vm| vm.name == "db").unwrap().credential.as_deref(), Some("c"));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_proxies_and_doctor_answer() {
    let (place, _fake, server) = one_vm().await;
    let status: ServerStatus = server.client.get("/status").await.unwrap();
    assert_eq!(Path::new(&status.state_dir), place.state.canonicalize().unwrap());
    let proxies: Vec<Proxy> = server.client.get("/proxies").await.unwrap();
    assert_eq!((proxies[0].name.as_str(), proxies[0].state.as_str()), ("backup-server", "online"));
    let findings: Vec<Finding> = server.client.get("/doctor").await.unwrap();
    assert!(findings.iter().all(|f| f.state == "ok" || f.state == "warning"), "{findings:#?}");
    std::fs::remove_dir(&place.repository).unwrap();
    let findings: Vec<Finding> = server.client.get("/doctor").await.unwrap();
    let broken = findings.iter().find(|f| f.subject == "repository r").unwrap();
    assert!(broken.state == "error" && broken.remedy.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_loopback_is_listened_on() {
    let place = Place::new();
    let mut config = lull_server::ServerConfig::new(
        place.state.clone(),
        "0.0.0.0:0".parse().unwrap(),
        Fake::embedded().local().serve,
    );
    config.ready = None;
    let error = lull_server::run(config, std::future::pending()).await.unwrap_err().to_string();
    assert!(error.contains("needs TLS") && error.contains("127.0.0.1"), "{error}");
    assert!(!place.state.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_document_is_the_one_in_docs() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let published: Value = server.client.get("/openapi.json").await.unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    if std::env::var_os("LULL_WRITE_OPENAPI").is_some() {
        let text = serde_json::to_string_pretty(&published).unwrap();
        std::fs::write(&file, format!("{text}\n")).unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: Value = serde_json::from_str(&text).unwrap();
    assert!(
        kept == published,
        "docs/openapi.json is not what the server publishes; run the test with LULL_WRITE_OPENAPI=1"
    );
    assert_eq!(published["security"], json!([{"bearer": []}]));
}

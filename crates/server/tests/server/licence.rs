//! The licence: what it admits in a choice, in a saved job and in the lists, and which files are refused.

use crate::fake::Fake;
use crate::harness::{Place, Server, clock_at, furnish, problem};
use lull_api::Problem;
use lull_api::infrastructure::{Finding, ProxyExplanation};
use lull_api::job::{GuestSettings, SavedJob};
use lull_api::licence::{FORMAT, LicenceFile, LicenceStatus, Terms};
use lull_api::proxy_tier::JobPreview;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An issuer that this server accepts.
fn issuer(place: &Place) -> Ed25519KeyPair {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let folder = place.state.join("licence-issuers");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("tests.pub"), hex(pair.public_key().as_ref())).unwrap();
    pair
}

fn socket(pair: &Ed25519KeyPair, edition: &str) -> LicenceFile {
    let licence = Terms {
        id: "T-1".into(),
        licensee: "Example".into(),
        kind: "socket".into(),
        edition: Some(edition.into()),
        sockets: Some(4),
        valid_from: "2026-01-01".into(),
        valid_until: "2026-12-31".into(),
        issuer: hex(pair.public_key().as_ref()),
    };
    let mut file = LicenceFile { lull_licence: FORMAT, licence, signature: String::new() };
    file.signature = hex(pair.sign(&file.signed_bytes()).as_ref());
    file
}

async fn install(server: &Server, file: &LicenceFile) -> LicenceStatus {
    server.client.post("/licence", file).await.unwrap()
}

async fn refused(server: &Server, file: &LicenceFile) -> Problem {
    problem(server.client.post::<LicenceStatus>("/licence", file).await)
}

async fn finding(server: &Server) -> Finding {
    let findings: Vec<Finding> = server.client.get("/doctor").await.unwrap();
    findings.into_iter().find(|finding| finding.subject == "licence").unwrap()
}

/// The backup server's own proxy far from VM `db`, and one in its network.
async fn two_proxies(now: &str) -> (Place, Vec<Fake>, Server) {
    let place = Place::new();
    let mut site = Fake::named("site-a", false);
    site.networks = vec!["192.0.2.0/24".into()];
    let fakes = vec![Fake::embedded(), site];
    let server = Server::start_at(&place.state, &fakes, clock_at(now)).await.unwrap();
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    (place, fakes, server)
}

const PREFER: &str = r#"{"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["site-a"]}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn under_socket_standard_the_backup_server_does_all_guest_interaction_itself() {
    let (place, fakes, server) = two_proxies("2026-06-01T00:00:00Z").await;
    let prefer: serde_json::Value = serde_json::from_str(PREFER).unwrap();
    let _: SavedJob = server.client.patch("/jobs/j", &prefer).await.unwrap();
    let preview: JobPreview = server.client.get("/jobs/j/preview").await.unwrap();
    assert_eq!(preview.vms[0].proxy.as_deref(), Some("site-a"), "the built-in licence is universal");

    let pair = issuer(&place);
    let status = install(&server, &socket(&pair, "standard")).await;
    assert_eq!((status.state.as_str(), status.admits_proxies, status.sockets), ("valid", false, Some(4)));
    assert_eq!(status.issuer.as_deref(), Some("tests"));
    assert!(status.meaning[0].contains("the backup server does all guest interaction itself"), "{status:?}");

    // Selection: an earlier preference does not count, and everybody says why.
    let explained: ProxyExplanation = server.client.get("/vms/db/proxy-explain?job=j").await.unwrap();
    assert_eq!(explained.chosen.as_deref(), Some("backup-server"));
    assert!(explained.summary.contains("do not count under the socket/standard licence"), "{}", explained.summary);
    let site = explained.candidates.iter().find(|candidate| candidate.name == "site-a").unwrap();
    assert!(site.reason.contains("only the backup server may do it"), "{}", site.reason);
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.tasks[0].proxy.as_ref().unwrap().chosen.as_deref(), Some("backup-server"));
    assert!(fakes[1].orders().is_empty());

    // Nor does another server make a backup without guest processing, foreseen or run.
    let disabled = json!({"guest": {"application_aware": "disabled", "guest_interaction_proxy": "automatic"}});
    let _: SavedJob = server.client.patch("/jobs/j", &disabled).await.unwrap();
    let own = async |state: &str| {
        let said = json!({"state": state});
        let _: serde_json::Value = server.client.patch("/proxies/backup-server", &said).await.unwrap();
    };
    own("disabled").await;
    let preview: JobPreview = server.client.get("/jobs/j/preview").await.unwrap();
    assert_eq!(preview.vms[0].proxy, None);
    assert!(preview.vms[0].reasons[1].contains("only the backup server may do it"), "{preview:?}");
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"));
    assert!(fakes[1].orders().is_empty());
    own("enabled").await;

    // Saving.
    let again = problem(server.client.patch::<SavedJob>("/jobs/j", &prefer).await);
    assert!(again.what.contains("servers cannot be chosen"), "{}", again.what);
    // Nothing of the kind is stored any more.
    assert!(again.remedy.unwrap().starts_with("leave --prefer out"));
    let automatic = json!({"guest": {"guest_interaction_proxy": "automatic"}});
    let _: SavedJob = server.client.patch("/jobs/j", &automatic).await.unwrap();
    let own = problem(server.client.patch::<serde_json::Value>("/jobs/j/vms/db/settings", &prefer).await);
    assert!(own.what.contains("servers cannot be chosen"), "{}", own.what);
    // Nothing of the kind is stored: there is nothing to take back.
    assert!(own.remedy.unwrap().starts_with("leave --prefer out"));
    let mut new = json!({"name": "n2", "vms": ["db"], "repository": "r"});
    new["guest"] = prefer["guest"].clone();
    let new = problem(server.client.post::<SavedJob>("/jobs", &new).await);
    assert!(new.what.contains("servers cannot be chosen"), "{}", new.what);
    assert!(new.remedy.unwrap().starts_with("leave --prefer out"));
    let servers: Vec<lull_api::managed::ManagedServer> = server.client.get("/managed-servers").await.unwrap();
    let licensed: Vec<bool> = servers.iter().map(|server| server.licensed).collect();
    assert_eq!(licensed, servers.iter().map(|server| server.is_backup_server).collect::<Vec<_>>());

    // With enterprise proxies count again, and without a licence too.
    assert!(install(&server, &socket(&pair, "enterprise")).await.admits_proxies);
    let explained: ProxyExplanation = server.client.get("/vms/db/proxy-explain").await.unwrap();
    assert_eq!(explained.chosen.as_deref(), Some("site-a"));
    install(&server, &socket(&pair, "standard")).await;
    server.client.delete("/licence").await.unwrap();
    assert_eq!(problem(server.client.delete("/licence").await).code, "no-licence");
    let status: LicenceStatus = server.client.get("/licence").await.unwrap();
    assert_eq!((status.state.as_str(), status.kind.as_str(), status.admits_proxies), ("built-in", "universal", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_licence_that_is_not_genuine_or_not_of_today_is_refused_and_changes_nothing() {
    let (place, _fakes, server) = two_proxies("2026-06-01T00:00:00Z").await;
    let pair = issuer(&place);
    let genuine = socket(&pair, "standard");
    let mut changed = genuine.clone();
    changed.licence.edition = Some("enterprise".into());
    let mut newer = genuine.clone();
    newer.lull_licence = 9;
    let stranger = socket(&Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap(), "standard");
    let mut damaged = genuine.clone();
    damaged.signature.truncate(100);
    for (file, code) in [
        (&changed, "licence-signature"),
        (&newer, "licence-format"),
        (&stranger, "licence-unknown-issuer"),
        (&damaged, "licence-damaged"),
    ] {
        let problem = refused(&server, file).await;
        assert_eq!((problem.status, problem.code.as_str()), (422, code));
        assert!(problem.remedy.is_some());
    }
    server.set_clock("2025-12-31T23:00:00Z");
    assert_eq!(refused(&server, &genuine).await.code, "licence-not-yet-valid");
    server.set_clock("2027-01-01T00:00:01Z");
    assert_eq!(refused(&server, &genuine).await.code, "licence-expired");
    let status: LicenceStatus = server.client.get("/licence").await.unwrap();
    assert_eq!(status.state, "built-in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_licence_outlives_a_restart_and_its_rule_outlives_its_last_day() {
    let (place, fakes, server) = two_proxies("2026-06-01T00:00:00Z").await;
    install(&server, &socket(&issuer(&place), "standard")).await;
    assert_eq!(finding(&server).await.state, "ok");
    server.kill().await;
    let server = Server::start_at(&place.state, &fakes, clock_at("2026-12-19T12:00:00Z")).await.unwrap();
    let status: LicenceStatus = server.client.get("/licence").await.unwrap();
    assert_eq!((status.state.as_str(), status.licensee.as_deref()), ("expires-soon", Some("Example")));
    let warned = finding(&server).await;
    assert!(warned.state == "warning" && warned.text.contains("in 12 days"), "{warned:?}");

    server.set_clock("2027-03-01T00:00:00Z");
    let expired = finding(&server).await;
    assert!(expired.state == "error" && expired.text.contains("backups go on"), "{expired:?}");
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    assert_eq!(session.tasks[0].proxy.as_ref().unwrap().chosen.as_deref(), Some("backup-server"), "its rule stays");
    server.kill().await;

    // The issuer is not accepted any more: that is said, and the built-in licence holds.
    std::fs::remove_file(place.state.join("licence-issuers/tests.pub")).unwrap();
    let server = Server::start_at(&place.state, &fakes, clock_at("2026-06-01T00:00:00Z")).await.unwrap();
    let status: LicenceStatus = server.client.get("/licence").await.unwrap();
    assert_eq!((status.state.as_str(), status.kind.as_str()), ("unusable", "universal"));
    assert!(finding(&server).await.text.contains("does not know who issued"));
}

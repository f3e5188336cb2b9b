//! How the work of jobs is shared out over proxies: previews, kept choices, and the load over time.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish, problem};
use lull_api::infrastructure::{Host, Proxy, ProxyExplanation, Repository, Vm};
use lull_api::job::{GuestSettings, JobValidation, SavedJob};
use lull_api::proxy_tier::{JobPreview, LoadReport};
use lull_api::session::Session;
use lull_engine::timeline::Step;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

const VMS: [&str; 7] = ["v1", "v2", "v3", "v4", "v5", "v6", "v7"];

/// The backup server's own proxy with two slots, and two proxies in the VMs' network with one and two.
fn fleet() -> Vec<Fake> {
    let mut fakes = vec![Fake::embedded(), Fake::named("site-a", false), Fake::named("site-b", false)];
    for (fake, slots) in fakes.iter_mut().zip([2, 1, 2]) {
        fake.slots = slots;
        *fake.vms.lock().unwrap() = VMS.map(str::to_string).to_vec();
        if !fake.is_backup_server {
            fake.networks = vec!["192.0.2.0/24".into()];
        }
        // What was given stays given.
        fake.set(|script| script.hang_after = Some(2));
    }
    fakes
}

async fn preview(server: &Server) -> JobPreview {
    server.client.get("/jobs/j/preview").await.unwrap()
}

fn proxies_of(preview: &JobPreview, turn: u32) -> BTreeMap<String, Option<String>> {
    preview.vms.iter().filter(|vm| vm.turn == turn).map(|vm| (vm.vm.clone(), vm.proxy.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_what_then_happens() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &VMS, GuestSettings::default()).await;
    // One VM is elsewhere: the backup server is as far from it as the proxies, and ranks last.
    let elsewhere = json!({"addresses": ["198.51.100.7"]});
    let _: Vm = server.client.patch("/vms/v7", &elsewhere).await.unwrap();

    let before = preview(&server).await;
    assert_eq!(before.vms.iter().map(|vm| vm.vm.as_str()).collect::<Vec<_>>(), VMS);
    let at_once = proxies_of(&before, 1);
    assert_eq!(at_once.len(), 3, "three slots are in the VMs' network: {before:#?}");
    assert_eq!((before.vms[0].tier, before.vms[0].channel.as_deref()), (Some(1), Some("SSH")));
    assert_eq!(before.vms[6].tier, Some(3));
    let share: Vec<(&str, u32, u32)> =
        before.proxies.iter().map(|share| (share.proxy.as_str(), share.tasks, share.at_once)).collect();
    assert_eq!(share, [("site-b", 4, 2), ("site-a", 3, 1), ("backup-server", 0, 0)], "shared out by slots");
    assert_eq!(preview(&server).await, before, "the same question has the same answer");
    assert!(fakes.iter().all(|fake| fake.orders().is_empty()), "nothing was run");

    let id = server.run("j").await.summary.id;
    let running = server.until(id, "the slots are taken", |session| {
        session.tasks.iter().filter(|task| task.state == "running").count() == at_once.len()
    });
    let chosen: BTreeMap<String, Option<String>> =
        running.await.tasks.into_iter().filter_map(|task| Some((task.vm, Some(task.proxy?.chosen?)))).collect();
    assert_eq!(chosen, at_once);
    assert_eq!(preview(&server).await, before, "what runs now does not count");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_of_a_choice_count_what_was_given_away_just_before_it() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["v1", "v2", "v3"], GuestSettings::default()).await;
    let id = server.run("j").await.summary.id;
    let running =
        server.until(id, "the slots are taken", |session| session.tasks.iter().all(|task| task.state == "running"));
    let session = running.await;
    let choices: Vec<(String, String)> = session
        .tasks
        .iter()
        .map(|task| task.proxy.as_ref().unwrap())
        .map(|p| (p.chosen.clone().unwrap(), p.summary.clone()))
        .collect();
    let near = "same network, not the backup server";
    let expected = [
        ("site-a", format!("{near}, over SSH; 0 of 1 slots in use")),
        ("site-b", format!("{near}, over SSH; 0 of 2 slots in use")),
        ("site-b", format!("{near}; site-a, as near, has no free slot")),
    ];
    assert_eq!(choices, expected.map(|(name, why)| (name.to_string(), why)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_holds_for_the_job_and_for_a_single_vm_and_is_checked_when_saved() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["v1", "v2"], GuestSettings::default()).await;
    let prefer =
        json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["site-b"], "fallback": "none"}});
    let saved: SavedJob = server.client.patch("/jobs/j", &prefer).await.unwrap();
    assert_eq!(saved.job.guest.preferred_servers, Some(vec!["site-b".to_string()]));
    assert_eq!((saved.job.guest.fallback.as_deref(), saved.warnings), (Some("none"), vec![]));
    let own = json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["site-a"]}});
    let _: serde_json::Value = server.client.patch("/jobs/j/vms/v2/settings", &own).await.unwrap();
    let both = proxies_of(&preview(&server).await, 1);
    assert_eq!(both["v1"].as_deref(), Some("site-b"));
    assert_eq!(both["v2"].as_deref(), Some("site-a"));

    let gone = json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["site-z"]}});
    let refused = problem(server.client.patch::<SavedJob>("/jobs/j", &gone).await);
    assert!(refused.what.contains("site-z") && refused.why.unwrap().contains("site-a"), "a name that is not there");
    let nobody = json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": []}});
    let refused = problem(server.client.patch::<SavedJob>("/jobs/j", &nobody).await);
    assert!(refused.what.contains("none is on the list"), "{}", refused.what);

    // A guest that neither preferred server can serve: without a fallback it is refused, with one it is said.
    let windows = json!({"guest_os": "windows"});
    let _: Vm = server.client.patch("/vms/v1", &windows).await.unwrap();
    let judged: JobValidation = server.client.post("/jobs/j/validate", &()).await.unwrap();
    assert!(judged.errors.iter().any(|error| error.contains("Microsoft Windows")), "{judged:?}");
    let seen = preview(&server).await;
    let v1 = &seen.vms[0];
    assert_eq!((v1.proxy.as_deref(), v1.turn), (None, 0));
    assert!(v1.reasons.iter().any(|reason| reason.starts_with("site-b: cannot: a Linux proxy")), "{v1:?}");
    assert!(seen.notes.iter().any(|note| note.contains("could not be saved as it is")), "{:?}", seen.notes);

    let back = json!({"guest": {"guest_interaction_proxy": "automatic"}});
    let _: Vm = server.client.patch("/vms/v1", &json!({"guest_os": "linux"})).await.unwrap();
    let saved: SavedJob = server.client.patch("/jobs/j", &back).await.unwrap();
    assert_eq!(saved.job.guest.guest_interaction_proxy.as_deref(), Some("automatic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_in_a_preview_is_told() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["v1"], GuestSettings::default()).await;
    let prefer = json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["site-a"]}});
    let _: SavedJob = server.client.patch("/jobs/j", &prefer).await.unwrap();
    fakes[1].silent.store(true, Ordering::SeqCst);
    let since = std::time::Instant::now();
    let seen = loop {
        let seen = preview(&server).await;
        if seen.vms[0].proxy.as_deref() != Some("site-a") {
            break seen;
        }
        assert!(since.elapsed() < crate::harness::PATIENCE, "it never counts as offline");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    assert_eq!(seen.vms[0].proxy.as_deref(), Some("backup-server"));
    assert!(seen.vms[0].why.contains("the backup server takes over"), "{seen:#?}");
    let state = |name: &str| seen.proxies.iter().find(|share| share.proxy == name).unwrap().state.clone();
    assert_eq!((state("site-a").as_str(), state("site-b").as_str()), ("offline", "online"));

    // Without guest processing nobody needs a way there.
    let disabled = json!({"guest": {"application_aware": "disabled"}});
    let _: SavedJob = server.client.patch("/jobs/j", &disabled).await.unwrap();
    let seen = preview(&server).await;
    assert_eq!((seen.vms[0].proxy.as_deref(), seen.vms[0].tier), (Some("backup-server"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_choice_of_a_task_is_kept_and_counted() {
    let (place, mut fakes) = (Place::new(), fleet());
    fakes.truncate(2);
    for fake in &fakes {
        fake.set(|script| script.hang_after = None);
    }
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["v1"], GuestSettings::default()).await;
    fakes[1].set(|script| script.die_at = Some(Step::Deploy));
    let session = server.finished(server.run("j").await.summary.id).await;
    let check = |task: &lull_api::session::Task| {
        assert_eq!(task.result.as_deref(), Some("success"), "{task:#?}");
        assert_eq!(task.proxy.as_ref().unwrap().chosen.as_deref(), Some("backup-server"));
        let [before] = task.earlier_choices.as_slice() else { panic!("{:#?}", task.earlier_choices) };
        assert_eq!((before.explanation.chosen.as_deref(), before.explanation.tier), (Some("site-a"), Some(1)));
        assert_eq!(before.ended.as_deref(), Some("handed-on"));
        assert!(before.ended_at.as_ref().unwrap() > &before.at);
    };
    check(&session.tasks[0]);

    let load: LoadReport = server.client.get("/proxies/load?bucket=hour").await.unwrap();
    let of = |name: &str| load.proxies.iter().find(|proxy| proxy.proxy == name).unwrap().total.clone();
    let (own, site) = (of("backup-server"), of("site-a"));
    assert_eq!((own.tasks, own.by_tier, own.failovers), (1, [0, 0, 0, 1], 0));
    assert_eq!((site.tasks, site.by_tier, site.failovers), (1, [1, 0, 0, 0], 1));
    assert!(own.busy_us > 0 && site.busy_us > 0, "{load:#?}");

    // All of it is on disk.
    server.kill().await;
    let server = Server::start(&place.state, &fakes).await;
    check(&server.session(session.summary.id).await.tasks[0]);
    let one: LoadReport = server.client.get("/proxies/load?proxy=site-a").await.unwrap();
    assert_eq!((one.proxies.len(), &one.proxies[0].total), (1, &site));
    let unknown = problem(server.client.get::<LoadReport>("/proxies/load?proxy=site-q").await);
    assert_eq!((unknown.status, unknown.code.as_str()), (422, "unknown-server"));
    for wrong in ["since=yesterday", "since=2999-01-01T00:00:00Z", "since=1999-01-01T00:00:00Z", "bucket=year", "x=1"] {
        assert_eq!(problem(server.client.get::<LoadReport>(&format!("/proxies/load?{wrong}")).await).status, 422);
    }
}

async fn set(server: &Server, proxy: &str, change: serde_json::Value) -> Proxy {
    server.client.patch(&format!("/proxies/{proxy}"), &change).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_proxy_finishes_its_tasks_and_a_disabled_one_is_out_of_use() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["v1"], GuestSettings::default()).await;
    // The only one in the VM's network besides site-b has a task that goes on.
    let id = server.run("j").await.summary.id;
    server.until(id, "a proxy has it", |session| session.tasks[0].state == "running").await;
    let busy = server.session(id).await.tasks[0].proxy.clone().unwrap().chosen.unwrap();
    let other = if busy == "site-a" { "site-b" } else { "site-a" };
    let drained = set(&server, &busy, json!({"state": "draining"})).await;
    assert_eq!((drained.state.as_str(), drained.running_tasks), ("draining", 1));
    assert_eq!(preview(&server).await.vms[0].proxy.as_deref(), Some(other));
    let why: ProxyExplanation = server.client.get("/vms/v1/proxy-explain").await.unwrap();
    let said = |why: &ProxyExplanation, name: &str| {
        why.candidates.iter().find(|candidate| candidate.name == name).unwrap().reason.clone()
    };
    assert!(said(&why, &busy).contains("finishes its tasks and takes no new ones"), "{why:?}");
    assert_eq!(server.session(id).await.tasks[0].state, "running", "its task goes on");

    set(&server, other, json!({"state": "disabled"})).await;
    let why: ProxyExplanation = server.client.get("/vms/v1/proxy-explain").await.unwrap();
    assert_eq!(why.chosen.as_deref(), Some("backup-server"));
    assert!(said(&why, other).contains("an administrator disabled it"), "{why:?}");
    // A job that prefers only what is disabled is told so when it is saved; draining passes.
    let prefer = json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": [busy, other]}});
    let saved: SavedJob = server.client.patch("/jobs/j", &prefer).await.unwrap();
    let warned = format!("preferred server {other} cannot serve any VM in scope");
    assert!(saved.warnings.len() == 1 && saved.warnings[0].contains(&warned), "{:?}", saved.warnings);

    // It is remembered, and ends when it is said.
    server.kill().await;
    let server = Server::start(&place.state, &fakes).await;
    let all: Vec<Proxy> = server.client.get("/proxies").await.unwrap();
    let state = |name: &str| all.iter().find(|proxy| proxy.name == name).unwrap().state.clone();
    assert_eq!((state(&busy).as_str(), state(other).as_str()), ("draining", "disabled"));
    assert_eq!(set(&server, other, json!({"state": "enabled"})).await.state, "online");
    let wrong = problem(server.client.patch::<Proxy>("/proxies/site-a", &json!({"state": "asleep"})).await);
    assert!(wrong.what.contains("must be enabled, draining or disabled"), "{}", wrong.what);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_sets_task_slots_and_takes_that_back() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &VMS, GuestSettings::default()).await;
    let _: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 0})).await.unwrap();
    let more = set(&server, "site-a", json!({"slots": 5})).await;
    assert_eq!((more.slots, more.slots_set), (5, Some(5)));
    let shares = preview(&server).await;
    let share = |name: &str| shares.proxies.iter().find(|share| share.proxy == name).unwrap().at_once;
    assert_eq!((share("site-a"), share("site-b")), (5, 2), "{shares:#?}");
    let auto = set(&server, "site-a", json!({"slots": 0})).await;
    assert_eq!((auto.slots, auto.slots_set), (1, None));
    assert_eq!(problem(server.client.patch::<Proxy>("/proxies/site-a", &json!({"slots": 100_000})).await).status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_hosts_and_repositories_are_kept() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["v1"], GuestSettings::default()).await;
    let host: Host = server.client.get("/hosts/h").await.unwrap();
    let repository: Repository = server.client.get("/repositories/r").await.unwrap();
    assert_eq!((host.max_tasks, repository.max_tasks), (4, 16), "the defaults");
    let host: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 2})).await.unwrap();
    let repository: Repository = server.client.patch("/repositories/r", &json!({"max_tasks": 0})).await.unwrap();
    assert_eq!((host.max_tasks, repository.max_tasks), (2, 0));
    server.kill().await;
    let server = Server::start(&place.state, &fakes).await;
    let hosts: Vec<Host> = server.client.get("/hosts").await.unwrap();
    assert_eq!(hosts[0].max_tasks, 2);
    assert_eq!(problem(server.client.patch::<Host>("/hosts/h", &json!({"max_tasks": 4_000_000})).await).status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_backups_back_and_says_so_once() {
    let (place, mut fakes) = (Place::new(), fleet());
    for fake in &mut fakes {
        fake.slots = 8;
    }
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &VMS, GuestSettings::default()).await;
    let _: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 2})).await.unwrap();
    let seen = preview(&server).await;
    assert_eq!(proxies_of(&seen, 1).len(), 2, "{seen:#?}");
    assert_eq!(seen.vms.iter().map(|vm| vm.turn).collect::<Vec<_>>(), [1, 1, 2, 2, 3, 3, 4]);
    assert!(seen.notes.iter().any(|note| note.contains("on hypervisor host h at most 2 backups")), "{:?}", seen.notes);

    let id = server.run("j").await.summary.id;
    let running = |session: &Session| session.tasks.iter().filter(|task| task.state == "running").count();
    server.until(id, "two run", |session| running(session) == 2).await;
    // Whatever makes the dispatcher look again.
    for _ in 0..5 {
        let _: Proxy = server.client.patch("/proxies/site-a", &json!({"slots": 9})).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let session = server.session(id).await;
    assert_eq!(running(&session), 2);
    let note = "waits: on hypervisor host h at most 2 backups run at once: lull host set h --max-tasks N changes it";
    for task in session.tasks.iter().filter(|task| task.state == "waiting") {
        assert_eq!(task.notes, [note], "once, and no more");
    }
    let _: Repository = server.client.patch("/repositories/r", &json!({"max_tasks": 3})).await.unwrap();
    let _: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 0})).await.unwrap();
    server.until(id, "three run", |session| running(session) == 3).await;
    let _: Repository = server.client.patch("/repositories/r", &json!({"max_tasks": 0})).await.unwrap();
    server.until(id, "all run", |session| running(session) == VMS.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_without_guest_processing_are_held_back_too() {
    let (place, mut fakes) = (Place::new(), fleet());
    fakes[0].slots = 8;
    let server = Server::start(&place.state, &fakes).await;
    let disabled = GuestSettings { application_aware: Some("disabled".into()), ..GuestSettings::default() };
    furnish(&server, &place, &VMS, disabled).await;
    let _: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 3})).await.unwrap();
    let id = server.run("j").await.summary.id;
    let running = |session: &Session| session.tasks.iter().filter(|task| task.state == "running").count();
    server.until(id, "three run", |session| running(session) == 3).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(running(&server.session(id).await), 3);
    let _: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 0})).await.unwrap();
    server.until(id, "all run", |session| running(session) == VMS.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_by_the_rules_of_a_job_that_does_not_have_the_vm_says_so() {
    let (place, fakes) = (Place::new(), fleet());
    let server = Server::start(&place.state, &fakes).await;
    furnish(&server, &place, &["v1"], GuestSettings::default()).await;
    let summary = async |vm: &str| {
        let path = format!("/vms/{vm}/proxy-explain?job=j");
        server.client.get::<ProxyExplanation>(&path).await.unwrap().summary
    };
    assert!(!summary("v1").await.contains("not in the scope"));
    assert!(summary("v2").await.contains("it is not in the scope of job j"));
}

//! Lines that break, proxies that die and come back, servers that restart: no task is lost, none is done twice.

use crate::catalog::{piece, points, taken_in};
use crate::fake::Fake;
use crate::harness::{Place, Server, furnish, kinds};
use crate::remote::{Machine, one_remote, said, seen, served_by, token};
use lull_api::infrastructure::{Host, HostChange, NewJoinToken, Repository, RepositoryChange, RestorePoint};
use lull_api::job::GuestSettings;
use lull_api::session::EventKind;
use lull_engine::timeline::Step;
use lull_proxy::membership::save;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncReadExt;

async fn restore_points(server: &Server) -> Vec<RestorePoint> {
    server.client.get("/restore-points").await.unwrap()
}

/// The line to a proxy breaks in mid-task, and is back before long.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_goes_on_while_the_line_is_broken_and_is_taken_up_again() {
    let (_place, server, own, machine) = one_remote().await;
    machine.fake.set(|script| {
        (script.remembers, script.pause_ms) = (true, 20);
        script.listing = vec![piece(b"/srv", &[(b"a", 1)]), piece(b"/srv/b", &[(b"c", 1)])];
    });
    let id = server.run("j").await.summary.id;
    said(&machine.fake, 6).await;
    let fake = machine.fake.clone();
    let state = machine.off().await;
    said(&fake, 12).await;
    let machine = Machine::back(state, &fake, &server).await;
    let session = server.finished(id).await;
    assert_eq!(
        (session.summary.result.as_deref(), served_by(&session)),
        (Some("success"), Some("near")),
        "{session:#?}"
    );
    assert_eq!((fake.orders().len(), own.orders().len(), restore_points(&server).await.len()), (1, 0, 1));
    assert_eq!((own.recoveries().len(), fake.recoveries().len()), (0, 0));
    // Each event was told to people once, and in order.
    let told = kinds(&server.events(id).await);
    for step in Step::ALL.map(|step| format!("{}…", step.name())) {
        assert!(told.iter().filter(|kind| **kind == step).count() <= 1, "{step}: {told:?}");
    }
    taken_in(&server).await;
    let (hits, ..) = crate::catalog::asked(&server, "/catalog/search?pattern=c").await;
    assert_eq!(points(&hits[0]), [session.tasks[0].restore_point.unwrap()]);
    drop(machine);
}

/// The same, and it stays away.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_does_not_return_loses_its_task_and_can_do_nothing_more_when_it_does() {
    let (_place, server, own, machine) = one_remote().await;
    machine.fake.set(|script| (script.remembers, script.pause_ms) = (true, 50));
    let id = server.run("j").await.summary.id;
    said(&machine.fake, 6).await;
    let fake = machine.fake.clone();
    let state = machine.off().await;
    own.set(|script| script.pause_ms = 50);
    server.until(id, "another has it", |session| served_by(session) == Some("backup-server")).await;
    // Back from the dead: what it has to say is not asked for.
    let machine = Machine::back(state, &fake, &server).await;
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert!(fake.attached.lock().unwrap().is_empty());
    assert_eq!((fake.orders().len(), own.orders().len(), restore_points(&server).await.len()), (1, 1, 1));
    assert!(
        own.recoveries()
            .iter()
            .all(|order| order.fence > fake.orders()[0].fence && order.fence < own.orders()[0].fence)
    );
    drop(machine);
}

/// A proxy that was killed and started again has lost its tasks, and that is known at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_comes_back_as_another_process_has_lost_its_task() {
    let (_place, server, own, machine) = one_remote().await;
    machine.fake.set(|script| (script.remembers, script.pause_ms) = (true, 50));
    let id = server.run("j").await.summary.id;
    said(&machine.fake, 6).await;
    let networks = machine.fake.networks.clone();
    let state = machine.off().await;
    let again = Fake { networks, ..Fake::named("near", false) };
    let _machine = Machine::back(state, &again, &server).await;
    let session = server.finished(id).await;
    let told = serde_json::to_string(&server.events(id).await).unwrap();
    assert!(told.contains("started anew and has lost the task"), "{told}");
    assert_eq!((session.summary.result.as_deref(), served_by(&session)), (Some("success"), Some("backup-server")));
    assert_eq!(own.recoveries().len() + again.recoveries().len(), 2);
}

/// The server is killed while a proxy has a task: the proxy goes on, and the next start hears the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_takes_the_tasks_of_its_proxies_up_again() {
    for after in [2, 7, 13, 21, 40] {
        let (place, server, own, machine) = one_remote().await;
        machine.fake.set(|script| {
            (script.remembers, script.pause_ms) = (true, 15);
            script.listing = vec![piece(b"/srv", &[(b"a", 1)]), piece(b"/srv/b", &[(b"c", 1)])];
        });
        let id = server.run("j").await.summary.id;
        said(&machine.fake, after.min(24)).await;
        let (fake, at) = (machine.fake.clone(), machine);
        server.kill().await;
        let state = at.off().await;
        if after == 40 {
            // It ends while nobody hears it.
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
        let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
        let _machine = Machine::back(state, &fake, &server).await;
        let session = server.finished(id).await;
        assert_eq!(session.summary.result.as_deref(), Some("success"), "killed after {after}: {session:#?}");
        assert_eq!((fake.orders().len(), own.orders().len()), (1, 0), "killed after {after}");
        let points_known = restore_points(&server).await;
        assert_eq!(points_known.len(), 1);
        let told = kinds(&server.events(id).await);
        for step in Step::ALL.map(|step| format!("{}…", step.name())) {
            assert!(told.iter().filter(|kind| **kind == step).count() <= 1, "killed after {after}: {step}: {told:?}");
        }
        taken_in(&server).await;
        let (hits, ..) = crate::catalog::asked(&server, "/catalog/search?pattern=c").await;
        assert_eq!(points(&hits[0]), [points_known[0].id], "killed after {after}");
    }
}

/// It is killed, and the proxy too: the task goes to another, and what waited goes on waiting.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_at_a_restart_is_worked_on_and_what_was_lost_goes_to_another() {
    let (place, own) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    furnish(&server, &place, &["db", "web"], GuestSettings::default()).await;
    let near = Fake { networks: vec!["192.0.2.0/24".into()], slots: 1, ..Fake::named("near", false) };
    near.set(|script| script.hang_after = Some(7));
    let machine = Machine::joined(&server, &near).await;
    let id = server.run("j").await.summary.id;
    said(&near, 7).await;
    server.kill().await;
    drop(machine.off().await);
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!((restore_points(&server).await.len(), own.orders().len(), near.orders().len()), (2, 2, 1));
}

/// Hundreds of tasks are open when the server is killed: each ends once.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_with_hundreds_of_open_tasks_ends_each_once() {
    let (place, own) = (Place::new(), Fake::embedded());
    let names: Vec<String> = (0..240).map(|n| format!("vm{n}")).collect();
    *own.vms.lock().unwrap() = names.clone();
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    let vms: Vec<&str> = names.iter().map(String::as_str).collect();
    furnish(&server, &place, &vms, GuestSettings::default()).await;
    let _: Host = server.client.patch("/hosts/h", &HostChange { max_tasks: Some(0) }).await.unwrap();
    let _: Repository = server.client.patch("/repositories/r", &RepositoryChange { max_tasks: Some(0) }).await.unwrap();
    let mut machines = Vec::new();
    for name in ["p1", "p2"] {
        let fake = Fake { networks: vec!["192.0.2.0/23".into()], slots: 40, ..Fake::named(name, false) };
        fake.set(|script| (script.remembers, script.pause_ms) = (true, 100));
        machines.push(Machine::joined(&server, &fake).await);
    }
    let id = server.run("j").await.summary.id;
    server.until(id, "many are at work", |s| s.tasks.iter().filter(|task| task.state == "running").count() > 60).await;
    server.kill().await;
    let mut off = Vec::new();
    for machine in machines {
        off.push((machine.fake.clone(), machine.off().await));
    }
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    let mut machines = Vec::new();
    for (fake, state) in off {
        machines.push(Machine::back(state, &fake, &server).await);
    }
    let session = server.finished(id).await;
    assert_eq!(
        session.summary.result.as_deref(),
        Some("success"),
        "{:#?}",
        session.tasks.iter().find(|t| t.result.as_deref() != Some("success"))
    );
    let fakes = machines.iter().map(|machine| &machine.fake).chain([&own]);
    let begun: usize = fakes.map(|fake| fake.world.begun.load(Ordering::SeqCst)).sum();
    let events = server.events(id).await;
    let notes: BTreeSet<String> = events
        .iter()
        .filter_map(|event| match &event.event {
            EventKind::Note { level, text } if level != "info" => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!((begun, restore_points(&server).await.len()), (240, 240), "none is lost, none done twice: {notes:#?}");
}

/// A proxy that takes the task and never asks for its lease has not begun: the next one takes it at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_accepts_and_never_answers_is_passed_over() {
    let (_place, server, own, machine) = one_remote().await;
    machine.fake.set(|script| script.never_asks = true);
    let id = server.run("j").await.summary.id;
    let session = server.finished(id).await;
    assert_eq!((session.summary.result.as_deref(), served_by(&session)), (Some("success"), Some("backup-server")));
    assert!(own.recoveries().is_empty(), "nothing was begun, so nothing is undone");
    let told = serde_json::to_string(&server.events(id).await).unwrap();
    assert!(told.contains("it did not ask for the task's lease"), "{told}");
}

/// Of the backup server's own proxy no lease is counted: what it may have begun is undone, and the task does not hang.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_proxy_that_accepts_and_never_answers_ends_the_task() {
    let (place, own) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    own.set(|script| script.never_asks = true);
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"), "{session:#?}");
    assert!(session.tasks[0].failure.clone().unwrap().text.contains("did not ask for the task's lease"));
    assert!(!own.recoveries().is_empty(), "it may have begun");
}

/// A relay between both sides that stops forwarding: a partition, with the connections left standing.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_noticed_and_a_short_one_costs_nothing() {
    let (place, own) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let near = Fake { networks: vec!["192.0.2.0/24".into()], ..Fake::named("near", false) };
    near.set(|script| (script.remembers, script.pause_ms) = (true, 30));
    let relay = Relay::to(server.ready.proxy_address.unwrap()).await;
    let state = tempfile::tempdir().unwrap();
    let made = token(&server, NewJoinToken::default()).await;
    let identity = crate::remote::try_join(&server, &made, "near").await.unwrap();
    save(state.path(), &identity.at(&relay.address), false).unwrap();
    let _machine = Machine::with(state, &near);
    seen(&server, "near", "online").await;
    let id = server.run("j").await.summary.id;
    said(&near, 6).await;
    relay.stopped.store(true, Ordering::SeqCst);
    said(&near, 14).await;
    relay.stopped.store(false, Ordering::SeqCst);
    let session = server.finished(id).await;
    assert_eq!((session.summary.result.as_deref(), served_by(&session)), (Some("success"), Some("near")));
    assert_eq!((near.orders().len(), own.orders().len()), (1, 0));
}

struct Relay {
    address: String,
    stopped: Arc<std::sync::atomic::AtomicBool>,
}

impl Relay {
    async fn to(target: std::net::SocketAddr) -> Relay {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay { address: listener.local_addr().unwrap().to_string(), stopped: Arc::default() };
        let stopped = relay.stopped.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let to = tokio::net::TcpStream::connect(target).await.unwrap();
                let ((from_r, from_w), (to_r, to_w)) = (from.into_split(), to.into_split());
                tokio::spawn(forward(from_r, to_w, stopped.clone()));
                tokio::spawn(forward(to_r, from_w, stopped.clone()));
            }
        });
        relay
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    stopped: Arc<std::sync::atomic::AtomicBool>,
) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        while stopped.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if tokio::io::AsyncWriteExt::write_all(&mut to, &bytes[..n]).await.is_err() {
            return;
        }
    }
}

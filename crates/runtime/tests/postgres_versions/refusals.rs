//! Servers that answer otherwise than hoped; the version plays no part.

use std::time::{Duration, Instant};

use lull_runtime::postgres::{Cluster, PgCause, PgError, PostmasterState, QuiesceOptions, Quiesced, quiesce};
use rustix::process::{Gid, Signal, Uid};

use crate::server::{Make, OWNER_ID, Server, as_owner, run, signal};
use crate::{ANY, GENEROUS, all_found, found};

/// A fresh server, started.
fn started(make: &Make<'_>) -> Server {
    let mut server = Server::make(ANY, 5432, make);
    server.start();
    server
}

#[test]
fn without_the_database_postgres_another_one_serves() {
    let server = started(&Make::default());
    server.sql("template1", "DROP DATABASE postgres");
    quiesce(&found(&server), &GENEROUS).unwrap();
    assert!(server.log().contains("database=template1 application_name=lull-runtime"), "{}", server.log());

    server.sql("template1", "CREATE DATABASE other");
    server.sql("other", "UPDATE pg_database SET datallowconn = false WHERE datname = 'template1'");
    let error = quiesce(&found(&server), &GENEROUS).unwrap_err();
    assert!(matches!(error.cause, PgCause::NoDatabase { .. }), "{error}");
}

#[test]
fn a_stopped_postmaster_costs_no_more_than_the_connect_timeout() {
    let server = started(&Make::default());
    let cluster = found(&server);
    signal(server.pid(), Signal::STOP);
    let start = Instant::now();
    let hurried = QuiesceOptions { connect_timeout_ms: 300, ..GENEROUS };
    let error = quiesce(&cluster, &hurried).unwrap_err();
    assert!(matches!(error.cause, PgCause::NoAnswer { elapsed_ms: 300, .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
    signal(server.pid(), Signal::CONT);
    quiesce(&cluster, &GENEROUS).unwrap();
}

#[test]
fn an_owner_without_a_role_is_refused_in_the_servers_words() {
    let server = started(&Make { superuser: Some("admin"), ..Make::default() });
    let error = quiesce(&found(&server), &GENEROUS).unwrap_err();
    assert!(
        matches!(&error.cause, PgCause::AuthenticationRefused { detail, .. } if detail.contains("\"nobody\" does not exist")),
        "{error}"
    );
    server.wait("the attempt in the log", || server.connections_logged() > 0);
    assert_eq!(server.connections_logged(), 1, "tried once");
}

#[test]
fn a_rejecting_pg_hba_is_refused_in_the_servers_words() {
    let server = started(&Make { hba: &["local all all reject"], ..Make::default() });
    let error = quiesce(&found(&server), &GENEROUS).unwrap_err();
    assert!(
        matches!(&error.cause, PgCause::AuthenticationRefused { detail, .. } if detail.contains("rejects")),
        "{error}"
    );
}

#[test]
fn a_scram_password_is_not_even_begun() {
    let server = started(&Make { hba: &["local all all scram-sha-256"], ..Make::default() });
    let error = quiesce(&found(&server), &GENEROUS).unwrap_err();
    assert!(
        matches!(&error.cause, PgCause::AuthenticationRefused { detail, .. } if detail.contains("scram-sha-256")),
        "{error}"
    );
}

#[test]
fn a_role_that_is_no_superuser_may_not_checkpoint() {
    let server = started(&Make { superuser: Some("admin"), ..Make::default() });
    let mut admin = server.session("postgres", "admin");
    admin.query("CREATE ROLE nobody LOGIN", Instant::now() + Duration::from_secs(20)).unwrap();
    let error = quiesce(&found(&server), &GENEROUS).unwrap_err();
    assert!(matches!(&error.cause, PgCause::NotPermitted { step, .. } if step == "CHECKPOINT"), "{error}");
}

#[test]
fn no_free_connection() {
    let config = ["max_connections = 3", "superuser_reserved_connections = 0", "max_wal_senders = 0"];
    let server = started(&Make { config: &config, ..Make::default() });
    let cluster = found(&server);
    let _taken: Vec<_> = (0..3).map(|_| server.session("template1", "nobody")).collect();
    let error = quiesce(&cluster, &GENEROUS).unwrap_err();
    assert!(matches!(&error.cause, PgCause::NotAccepting { sqlstate, .. } if sqlstate == "53300"), "{error}");
}

#[test]
fn a_cold_standby_is_found_but_takes_no_session() {
    let mut primary = started(&Make::default());
    primary.stop();
    let mut standby = primary.copy(5433);
    standby.follow(&primary);
    standby.configure(&["hot_standby = off"]);
    standby.start();
    let cluster = found(&standby);
    assert_eq!(cluster.state, PostmasterState::Standby);
    let error = quiesce(&cluster, &GENEROUS).unwrap_err();
    assert!(matches!(&error.cause, PgCause::NotAccepting { sqlstate, .. } if sqlstate == "57P03"), "{error}");
}

#[test]
fn settings_of_the_role_do_not_cut_the_checkpoint_short() {
    let server = started(&Make::default());
    server.sql("postgres", "ALTER ROLE nobody SET statement_timeout = 1");
    server.sql("postgres", "ALTER ROLE nobody SET search_path = public");
    quiesce(&found(&server), &GENEROUS).unwrap();
}

#[test]
fn without_root_the_owner_serves_itself_and_nobody_else() {
    let server = started(&Make::default());
    let cluster = found(&server);
    // The kernel keeps ids per thread: this one is another user's.
    let as_user = |id: u32, work: fn(Cluster) -> Result<Quiesced, PgError>| {
        let cluster = cluster.clone();
        let thread = std::thread::spawn(move || {
            rustix::thread::set_thread_groups(&[]).unwrap();
            let (gid, uid) = (Gid::from_raw(id), Uid::from_raw(id));
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work(cluster)
        });
        thread.join().unwrap()
    };
    as_user(OWNER_ID, |cluster| {
        let discovery = all_found();
        assert!(discovery.incomplete[0].starts_with("not run as root"), "{discovery:?}");
        assert!(discovery.clusters.contains(&cluster), "{discovery:?}");
        quiesce(&cluster, &GENEROUS)
    })
    .unwrap();
    let error = as_user(OWNER_ID - 1, |cluster| quiesce(&cluster, &GENEROUS)).unwrap_err();
    assert!(matches!(error.cause, PgCause::CannotBecomeOwner { .. }), "{error}");
}

#[test]
fn a_crash_during_the_checkpoint_is_a_lost_connection() {
    let server = started(&Make::default());
    let cluster = found(&server);
    signal(server.child("checkpointer"), Signal::STOP);
    let waiting = std::thread::spawn(move || quiesce(&cluster, &GENEROUS));
    let is_waiting = "SELECT count(*) FROM pg_stat_activity WHERE query = 'CHECKPOINT' AND state = 'active'";
    server.wait("the statement", || server.sql("postgres", is_waiting)[0][0].as_deref() == Some("1"));
    let backend = server.child("[local] CHECKPOINT").to_string();
    run(as_owner("/bin/kill", server.dir.path()).args(["-KILL", &backend]));
    let error = waiting.join().unwrap().unwrap_err();
    assert!(matches!(&error.cause, PgCause::ConnectionLost { step, .. } if step == "CHECKPOINT"), "{error}");
}

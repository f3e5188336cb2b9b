//! What must hold for every major version alike.

use std::path::Path;
use std::time::{Duration, Instant};

use lull_runtime::postgres::{Device, PgCause, Place, PlaceRole, PostmasterState, QuiesceOptions, quiesce};
use rustix::process::Signal;

use crate::server::{Make, OTHER_DISK, OWNER, OWNER_ID, Server, as_owner, folder_in, run, signal, st_dev};
use crate::{GENEROUS, all_found, found};

/// Each major version gets the same scenarios under a name of its own, so that one can be run alone.
macro_rules! for_each_version {
    ($($version:ident = $major:literal),*) => { $(
        mod $version {
            #[test]
            fn two_clusters_are_found_described_and_checkpointed() {
                super::two_clusters_are_found_described_and_checkpointed($major);
            }
            #[test]
            fn refusals_are_said_once_and_a_slow_checkpoint_is_given_up() {
                super::refusals_are_said_once_and_a_slow_checkpoint_is_given_up($major);
            }
            #[test]
            fn a_standby_makes_a_restartpoint_and_knows_its_timeline() {
                super::a_standby_makes_a_restartpoint_and_knows_its_timeline($major);
            }
        }
    )* };
}

for_each_version!(v10 = 10, v11 = 11, v12 = 12, v13 = 13, v14 = 14, v15 = 15, v16 = 16, v17 = 17, v18 = 18);

fn two_clusters_are_found_described_and_checkpointed(major: u32) {
    let other_disk = folder_in(Path::new(OTHER_DISK));
    let (wal_dir, tablespace_dir) = (other_disk.path().join("wal"), other_disk.path().join("space"));
    run(as_owner("/bin/mkdir", other_disk.path()).arg(&tablespace_dir));
    let mut spread = Server::make(
        major,
        5432,
        &Make {
            wal_dir: Some(&wal_dir),
            checksums: true,
            // The database that is logged in to admits the owner alone, by the socket's peer.
            hba: &["local postgres nobody peer", "local template1 all trust"],
            ..Make::default()
        },
    );
    let mut plain = Server::make(major, 5433, &Make::default());
    assert_ne!(st_dev(spread.dir.path()), st_dev(other_disk.path()), "two file systems are needed");
    spread.start();
    plain.start();
    spread.sql("template1", &format!("CREATE TABLESPACE fast LOCATION '{}'", tablespace_dir.display()));
    let oid = spread.sql("template1", "SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    let oid: u32 = oid[0][0].as_ref().unwrap().parse().unwrap();
    spread.sql("template1", "CREATE TABLE balance TABLESPACE fast AS SELECT generate_series(1, 1000) AS n");

    let start = Instant::now();
    let cluster = found(&spread);
    let discover_ms = start.elapsed().as_secs_f64() * 1e3;
    let expect_place = |role, path: &Path| {
        let (major, minor) = st_dev(path);
        Place { role, path: path.to_str().unwrap().to_owned(), device: Device { major, minor } }
    };
    let places = vec![
        expect_place(PlaceRole::Data, &spread.data),
        expect_place(PlaceRole::Wal, &wal_dir),
        expect_place(PlaceRole::Tablespace(oid), &tablespace_dir),
    ];
    assert_eq!(cluster.places, places);
    assert_eq!((cluster.major, cluster.port, cluster.owner.as_str()), (major, 5432, OWNER));
    assert_eq!((cluster.uid, cluster.gid, cluster.state), (OWNER_ID, OWNER_ID, PostmasterState::Ready));

    let (system_identifier, checkpoint_before) = spread.control_file();
    let connections_before = spread.connections_logged();
    let ids_before = thread_ids();
    let quiesced = quiesce(&cluster, &GENEROUS).unwrap();
    let (_, checkpoint_after) = spread.control_file();
    let facts = &quiesced.facts;
    assert!(checkpoint_after > checkpoint_before, "the control file knows a new checkpoint");
    assert_eq!(facts.checkpoint_position.0, checkpoint_after);
    assert_eq!(facts.system_identifier, system_identifier);
    assert_eq!((facts.server_version_num / 10_000, facts.timeline, facts.in_recovery), (major, 1, false));
    assert!(
        facts.wal_position.unwrap() > facts.checkpoint_position && facts.redo_position <= facts.checkpoint_position
    );
    assert_eq!((facts.fsync, facts.full_page_writes, facts.data_checksums), (true, true, true));
    assert_eq!(facts.synchronous_commit, "on");
    assert_eq!((quiesced.against_application, &quiesced.places), (vec![], &places));
    assert!(quiesced.checkpoint_ms.is_some());
    assert_eq!(spread.connections_logged(), connections_before + 1, "one login");
    assert_eq!(thread_ids(), ids_before, "this process is who it was");
    nothing_of_ours_is_left(&spread);

    let (_, checkpoint_before) = plain.control_file();
    let without = QuiesceOptions { checkpoint: false, ..GENEROUS };
    let quiesced = quiesce(&found(&plain), &without).unwrap();
    assert_eq!(plain.control_file().1, checkpoint_before, "no checkpoint was asked for");
    assert_eq!((quiesced.checkpoint_ms, quiesced.facts.data_checksums), (None, false));

    let (processes, quiesce_ms) = (std::fs::read_dir("/proc").unwrap().count(), quiesced.elapsed_ms);
    println!(
        "PostgreSQL {major}: discover {discover_ms:.1} ms ({processes} entries in /proc), quiesce without checkpoint {quiesce_ms} ms"
    );
    let on_the_wire = postcard::to_stdvec(&all_found()).unwrap();
    let back: lull_runtime::postgres::Discovery = postcard::from_bytes(&on_the_wire).unwrap();
    assert!(back.clusters.iter().any(|one| one.pid == spread.pid()));
}

fn refusals_are_said_once_and_a_slow_checkpoint_is_given_up(major: u32) {
    let mut server = Server::make(major, 5432, &Make { config: &["fsync = off"], ..Make::default() });
    server.start();
    let cluster = found(&server);

    let against = quiesce(&cluster, &GENEROUS).unwrap().against_application;
    assert!(matches!(against.as_slice(), [reason] if reason.starts_with("fsync is off")), "{against:?}");

    let checkpointer = server.child("checkpointer");
    signal(checkpointer, Signal::STOP);
    let hurried = QuiesceOptions { checkpoint_timeout_ms: 400, ..GENEROUS };
    let error = quiesce(&cluster, &hurried).unwrap_err();
    let PgCause::CheckpointTooSlow { elapsed_ms, cancel_confirmed, facts } = &error.cause else { panic!("{error}") };
    assert!((400..2_000).contains(elapsed_ms), "gave up after {elapsed_ms} ms");
    assert!(*cancel_confirmed && !facts.fsync);
    let expect =
        format!("PostgreSQL {major} on port 5432 ({}): its CHECKPOINT was not done after ", server.data.display());
    assert!(error.to_string().starts_with(&expect), "{error}");
    nothing_of_ours_is_left(&server);
    signal(checkpointer, Signal::CONT);
    quiesce(&cluster, &GENEROUS).unwrap();

    server.stop();
    let error = quiesce(&cluster, &GENEROUS).unwrap_err();
    assert!(matches!(error.cause, PgCause::NotRunning { .. }), "{error}");

    server.admit(&["local all all md5"]);
    server.start();
    let connections_before = server.connections_logged();
    let error = quiesce(&cluster, &GENEROUS).unwrap_err();
    assert!(matches!(error.cause, PgCause::NotThisCluster { .. }), "{error}");
    server.wait("that connection in the log", || server.connections_logged() == connections_before + 1);

    let cluster = found(&server);
    let error = quiesce(&cluster, &GENEROUS).unwrap_err();
    assert!(
        matches!(&error.cause, PgCause::AuthenticationRefused { detail, .. } if detail.contains("password")),
        "{error}"
    );
    server.wait("the attempt in the log", || server.connections_logged() > connections_before + 1);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.connections_logged(), connections_before + 2, "tried once:\n{}", server.log());
}

fn a_standby_makes_a_restartpoint_and_knows_its_timeline(major: u32) {
    let mut primary = Server::make(major, 5432, &Make::default());
    let mut standby = primary.copy(5433);
    standby.follow(&primary);
    primary.start();
    standby.start();
    assert_eq!(found(&standby).state, PostmasterState::Ready, "a hot standby takes connections");
    primary.sql("postgres", "CREATE TABLE balance AS SELECT generate_series(1, 1000) AS n");
    let at_primary = quiesce(&found(&primary), &GENEROUS).unwrap().facts;
    standby.wait("the primary's WAL", || {
        let position = at_primary.wal_position.unwrap();
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
        standby.sql("postgres", &replayed)[0][0].as_deref() == Some("t")
    });

    let at_standby = quiesce(&found(&standby), &GENEROUS).unwrap().facts;
    assert!(at_standby.in_recovery && !at_primary.in_recovery);
    assert_eq!(at_standby.system_identifier, at_primary.system_identifier);
    assert!(at_standby.wal_position >= at_primary.wal_position);
    assert_eq!(
        at_standby.checkpoint_position, at_primary.checkpoint_position,
        "the restartpoint is the primary's checkpoint"
    );
    assert_eq!(standby.control_file().1, at_standby.checkpoint_position.0);
    assert_eq!(at_standby.timeline, 1);

    let pg_ctl = standby.program().with_file_name("pg_ctl");
    run(as_owner(pg_ctl, standby.dir.path()).arg("promote").arg("-w").arg("-D").arg(&standby.data));
    let without = QuiesceOptions { checkpoint: false, ..GENEROUS };
    let promoted = quiesce(&found(&standby), &without).unwrap().facts;
    assert_eq!((promoted.timeline, promoted.in_recovery), (2, false));
}

/// The server ends a backend a moment after its client left.
fn nothing_of_ours_is_left(server: &Server) {
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lull-runtime'";
    server.wait("the end of our session", || server.sql("template1", ours)[0][0].as_deref() == Some("0"));
}

/// User, group and supplementary group ids of this thread.
fn thread_ids() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    status
        .lines()
        .filter(|line| ["Uid:", "Gid:", "Groups:", "CapEff:"].iter().any(|key| line.starts_with(key)))
        .map(str::to_owned)
        .collect()
}

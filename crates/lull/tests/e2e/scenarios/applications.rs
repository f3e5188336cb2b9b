//! PostgreSQL that refuses, is slow, or is down: the cluster is named, and the level is what was reached without it.

use crate::scenarios::hold::quiesce;
use crate::told::assert_says;
use crate::world::{World, assert_clean_receipt, task};
use serde_json::Value;

struct Case {
    what: &'static str,
    /// In the guest: brings the bad luck, takes it away.
    begin: &'static str,
    end: &'static str,
    flags: &'static [&'static str],
    says: &'static [&'static str],
}

const DATA: &str = "D=$(echo /var/lib/postgresql/*/main); B=$(echo /usr/lib/postgresql/*/bin);";
const AS_OWNER: &str = "setpriv --reuid=postgres --regid=postgres --init-groups";

const CASES: &[Case] = &[
    Case {
        what: "it lets nobody in",
        begin: "cp $D/pg_hba.conf /run/pg_hba.kept; echo 'local all all reject' >$D/pg_hba.conf; kill -HUP $(head -n1 $D/postmaster.pid); sleep 1",
        end: "cat /run/pg_hba.kept >$D/pg_hba.conf; rm /run/pg_hba.kept; kill -HUP $(head -n1 $D/postmaster.pid); sleep 1",
        flags: &[],
        says: &["postgresql", "/var/lib/postgresql", "pg_hba"],
    },
    Case {
        what: "its checkpoint is too slow",
        begin: "kill -STOP $(pgrep -f '[p]ostgres: checkpointer')",
        end: "kill -CONT $(pgrep -f '[p]ostgres: checkpointer')",
        flags: &["--checkpoint-timeout", "2s"],
        says: &["postgresql", "/var/lib/postgresql", "checkpoint", "timeout"],
    },
];

pub fn postgres(world: &mut World) {
    for case in CASES {
        world.guest.ssh(&format!("{DATA} {}", case.begin));
        let required = quiesce(world, case.flags, &["true"]);
        let tried = quiesce(world, &[&["--application-aware", "try"], case.flags].concat(), &["true"]);
        let session = world.session(world.newest_session());
        world.guest.ssh(&format!("{DATA} {}", case.end));
        assert_eq!(required.code, 125, "{}: {required:?}", case.what);
        assert_says(&required.words(), &[&["at an application"], case.says].concat());
        assert_eq!(tried.code, 0, "{}: {tried:?}", case.what);
        let verdict: Value = tried.json();
        assert_eq!(verdict["level"], "file-system", "{}: {verdict}", case.what);
        assert_says(&verdict["level_reasons"].to_string(), &["postgresql"]);
        assert_eq!(session.summary.result.as_deref(), Some("warning"), "{session:#?}");
        assert_clean_receipt(&session);
    }
    down(world);
}

/// A server that ought to run and does not cannot be brought to rest: it is named, and as the job says the level is no better
/// than that, or the hold fails.
fn down(world: &World) {
    // Known to the guest's packages, as on every Debian that was installed in the ordinary way.
    world.guest.ssh(&format!(
        "{DATA} E=/etc/postgresql/$(cat $D/PG_VERSION)/main; mkdir -p $E; echo auto >$E/start.conf; \
         echo \"data_directory = '$D'\" >$E/postgresql.conf; cd /; {AS_OWNER} $B/pg_ctl -s -m fast -D $D stop"
    ));
    let required = quiesce(world, &[], &["true"]);
    let outcome = quiesce(world, &["--application-aware", "try"], &["true"]);
    let data = world.guest.ssh(&format!("{DATA} echo $D"));
    world.guest.ssh(&format!(
        "{DATA} cd /; {AS_OWNER} $B/pg_ctl -s -w -l /var/log/postgresql/postgresql.log -D $D start >/dev/null 2>&1"
    ));
    world.guest.ssh("rm -r /etc/postgresql");
    assert_eq!(required.code, 125, "{required:?}");
    assert_says(&required.words(), &["at an application", "postgresql", &data, "ought to run and does not"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let verdict: Value = outcome.json();
    assert_eq!(verdict["level"], "file-system", "{verdict}");
    let session = world.session(world.newest_session());
    assert_says(&task(&session).level_reasons.join(" "), &["postgresql", &data, "was not running"]);
    // And it is found again.
    let verdict: Value = quiesce(world, &[], &["true"]).ok().json();
    assert_eq!(verdict["level"], "application", "{verdict}");
}

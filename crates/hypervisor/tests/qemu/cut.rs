//! The control connection breaks at a chosen command; a relay between us and QEMU breaks it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lull_hypervisor::{ErrorClass, HypervisorError, QemuHost};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::bed::{Bed, Style, copy};

#[derive(Clone, Copy, Debug)]
enum When {
    /// QEMU does not get the command.
    Before,
    /// QEMU gets the command, and nothing after it.
    After,
    /// QEMU gets everything; the answers are lost.
    AnswersLost,
}

type Plan = Arc<Mutex<Option<(When, &'static str)>>>;

struct Relay {
    host: QemuHost,
    plan: Plan,
}

impl Relay {
    fn start(bed: &Bed) -> Relay {
        let dir = bed.dir.path().join("relay");
        std::fs::create_dir(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("vm.qmp")).unwrap();
        let plan = Plan::default();
        let (upstream, plans) = (bed.host.dir().join("vm.qmp"), plan.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                pass(client, &upstream, &plans).await;
            }
        });
        Relay { host: QemuHost::new(dir), plan }
    }

    fn cut(&self, when: When, command: &'static str) {
        *self.plan.lock().unwrap() = Some((when, command));
    }

    /// Takes the socket away for good; a connection that exists ends as planned.
    fn remove(&self, bed: &Bed) {
        std::fs::remove_dir_all(bed.dir.path().join("relay")).unwrap();
    }
}

/// One client's connection, until it ends or is cut.
async fn pass(client: UnixStream, upstream: &PathBuf, plan: &Plan) {
    let (client_read, mut client_write) = client.into_split();
    let (server_read, mut server_write) = UnixStream::connect(upstream).await.unwrap().into_split();
    let answers = tokio::spawn(async move {
        let mut server_read = server_read;
        let _ = tokio::io::copy(&mut server_read, &mut client_write).await;
    });
    let mut lines = BufReader::new(client_read).lines();
    let mut cut_at_end = false;
    loop {
        let next =
            tokio::time::timeout(Duration::from_millis(if cut_at_end { 100 } else { 3_600_000 }), lines.next_line())
                .await;
        let Ok(Ok(Some(line))) = next else { break };
        let planned = plan.lock().unwrap().take_if(|(_, c)| line.contains(&format!("\"execute\":\"{c}\"")));
        match planned {
            Some((When::Before, _)) => break,
            Some((When::AnswersLost, _)) => {
                answers.abort();
                cut_at_end = true;
            }
            Some((When::After, _)) | None => {}
        }
        if server_write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            break;
        }
        if matches!(planned, Some((When::After, _))) {
            // Long enough for QEMU to have executed it when the connection ends.
            tokio::time::sleep(Duration::from_millis(100)).await;
            break;
        }
    }
    answers.abort();
    let _ = server_write.shutdown().await;
}

/// A whole backup of a guest that is not frozen; stops at the first error.
async fn back_up(host: &QemuHost, bed: &Bed) -> Result<(), (HypervisorError, Option<lull_hypervisor::PreparedBackup>)> {
    let vm = host.open("vm").await.map_err(|e| (e, None))?;
    let mut backup = vm.prepare(bed.order("rp1")).await.map_err(|e| (e, None))?;
    match backup.snapshot(false).await {
        Ok(_) => {}
        Err(e) => return Err((e, Some(backup))),
    }
    match copy(&mut backup).await {
        Ok(_) => {}
        Err(e) => return Err((e, Some(backup))),
    }
    backup.finish().await.map_err(|e| (e, None)).map(|_| ())
}

const CASES: [(When, &str); 13] = [
    (When::Before, "query-block"),
    (When::After, "blockdev-add"),
    (When::AnswersLost, "blockdev-add"),
    (When::Before, "object-add"),
    (When::After, "stop"),
    (When::After, "transaction"),
    (When::After, "qom-set"),
    (When::AnswersLost, "transaction"),
    (When::After, "cont"),
    (When::After, "blockdev-backup"),
    (When::AnswersLost, "blockdev-backup"),
    (When::Before, "query-jobs"),
    (When::AnswersLost, "job-dismiss"),
];

/// The connection comes back: the VM runs as soon as the error is returned, and the backup undoes itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_and_returns_is_undone_by_the_backup_itself() {
    let bed = Bed::start(&[Style::Blockdev, Style::ScsiRaw]).await;
    let relay = Relay::start(&bed);
    for (when, command) in CASES {
        relay.cut(when, command);
        let (error, backup) = back_up(&relay.host, &bed).await.expect_err(command);
        assert_eq!(error.class, ErrorClass::Gone, "{when:?} {command}: {error}");
        assert_eq!(bed.run_state().await, "running", "{when:?} {command}");
        if command == "stop" {
            assert!(error.cause.contains("was continued"), "{error}");
        }
        if let Some(backup) = backup {
            assert_eq!(backup.abandon().await.unwrap().remaining, Vec::<String>::new(), "{when:?} {command}");
        }
        println!("{when:?} {command}: {error}");
        bed.assert_as_before().await;
    }
}

/// The connection stays away: what the backup could not undo, a sweep with a fresh one does, and it continues a VM that stands still.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stays_away_leaves_the_rest_to_a_sweep() {
    for (when, command) in [
        (When::After, "stop"),
        (When::After, "qom-set"),
        (When::AnswersLost, "transaction"),
        (When::After, "blockdev-backup"),
    ] {
        let bed = Bed::start(&[Style::Blockdev, Style::Drive]).await;
        let relay = Relay::start(&bed);
        relay.cut(when, command);
        let removal = async {
            while relay.plan.lock().unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            relay.remove(&bed);
        };
        let (result, ()) = tokio::join!(back_up(&relay.host, &bed), removal);
        let (error, backup) = result.unwrap_err();
        assert_eq!(error.class, ErrorClass::Gone, "{error}");
        if command == "stop" {
            assert!(error.cause.contains("unknown"), "{error}");
            assert_eq!(bed.run_state().await, "paused");
        }
        assert_eq!(backup.unwrap().abandon().await.unwrap_err().class, ErrorClass::Gone);
        let swept = bed.sweep(&[]).await;
        assert_eq!(swept.remaining, Vec::<String>::new(), "{when:?} {command}");
        assert_eq!(
            swept.continued,
            command != "blockdev-backup" && !matches!(when, When::AnswersLost),
            "{when:?} {command}"
        );
        bed.assert_as_before().await;
        let again = bed.sweep(&[]).await;
        assert_eq!((again.removed, again.continued), (vec![], false), "a second sweep finds nothing");
    }
}

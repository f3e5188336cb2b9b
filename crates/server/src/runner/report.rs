//! What a proxy says, in the words of the state machine, the store and the people who follow. Pure: reads no store and
//! decides no state.

use super::book::Happening;
use crate::instant::us;
use crate::store::infrastructure::HostKeyRow;
use crate::store::restore_points::RestorePointRow;
use crate::store::sessions::{SessionKind, TaskOutcome, TaskRow};
use crate::store::writes::Write;
use jiff::Timestamp;
use lull_api::session::{EventKind, Receipt};
use lull_engine::consistency::{Assessment, ConsistencyLevel, Evidence, Reason, SnapshotEvidence, assess, level_name};
use lull_engine::failover::FailureClass;
use lull_engine::session::{
    Ending, FinalAccount, Hop, ProxyReport, TaskEvent, TaskFailure, TaskState, owed_after_finish,
};
use lull_engine::settings::ApplicationAware;
use lull_engine::timeline::Step;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::collections::BTreeSet;
use uuid::Uuid;

/// What one call to a proxy said so far.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Steps that it began.
    pub begun: BTreeSet<Step>,
    /// Its warnings.
    pub warnings: Vec<String>,
    /// When the snapshot was there.
    pub snapshot_at: Option<Timestamp>,
    /// The guest is at rest for a caller's command.
    pub hold_ready: bool,
    /// Fingerprint of the host key that was pinned by this call.
    pub pinned: Option<String>,
    /// The restore point's files, once they are verified.
    pub files: Option<v1::RestorePointFiles>,
}

/// What went out with the order, as far as the answers depend on it.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// The number of the dispatch.
    pub epoch: u64,
    /// The proxy was to work in the guest.
    pub guest: bool,
    /// The proxy was to work at the hypervisor.
    pub hypervisor: bool,
    /// Fingerprint of the pinned host key.
    pub pinned: Option<String>,
    /// The job's name.
    pub job_name: Option<String>,
    /// The restore point that the backup was to build on.
    pub parent: Option<Uuid>,
}

/// A step's name on the wire.
fn step(name: &str) -> Option<Step> {
    Step::ALL.into_iter().find(|step| step.name() == name)
}

/// One event short of the end.
pub fn happening(task: &TaskRow, sent: &Sent, heard: &mut Heard, event: Event, now: Timestamp) -> Happening {
    let report = |report| vec![TaskEvent::Report { epoch: sent.epoch, report }];
    let mut happening = Happening::default();
    match event {
        Event::StepStarted(started) => {
            if let Some(step) = step(&started.step) {
                heard.begun.insert(step);
                happening.events = report(ProxyReport::StepStarted { step });
            }
            happening.told.push(EventKind::StepStarted { step: started.step, detail: started.detail });
        }
        Event::StepEnded(ended) => {
            if let Some(step) = step(&ended.step) {
                if step == Step::Snapshot && ended.outcome == "ok" {
                    heard.snapshot_at = Some(now);
                }
                happening.events = report(ProxyReport::StepEnded { step });
            }
            let v1::StepEnded { step, outcome: state, detail, took_us } = ended;
            happening.told.push(EventKind::StepEnded { step, state, detail, took_us });
        }
        Event::Note(note) => {
            if note.level == "warning" {
                heard.warnings.push(note.text.clone());
            }
            happening.told.push(EventKind::Note { level: note.level, text: note.text });
        }
        Event::HostKeySeen(seen) => {
            let pinned = sent.pinned.as_deref().or(heard.pinned.as_deref());
            happening = host_key(task.vm, pinned, seen.clone());
            if pinned.is_none() {
                heard.pinned = seen.key.map(|key| key.fingerprint);
            }
        }
        Event::HoldReady(ready) => {
            heard.hold_ready = true;
            happening.told.push(EventKind::HoldReady { facts: ready.facts.into_iter().collect() });
        }
        Event::Frozen(frozen) => {
            happening.events = report(ProxyReport::Frozen { freeze_id: frozen.freeze_id });
            happening.told.push(EventKind::Frozen { file_systems: frozen.superblocks });
        }
        Event::Thawed(thawed) => {
            happening.events = report(ProxyReport::Thawed { freeze_id: thawed.freeze_id });
            happening.told.push(EventKind::Thawed { window_us: thawed.window_us, no_gap: thawed.no_gap });
        }
        Event::RestorePointDone(done) => happening = restore_point(task, sent, heard, done, now),
        Event::GuestLeftAlone(left) => {
            if left.untouched {
                happening.events = report(ProxyReport::GuestUntouched);
            }
            happening.refused = Some(left.refused).filter(|cause| !cause.is_empty());
        }
        // Progress is not stored, listings go to the catalog, and the end is told by [`finished`].
        Event::Progress(_)
        | Event::IndexFrame(_)
        | Event::IndexEnded(_)
        | Event::Finished(_)
        | Event::LeaseAsked(_) => {}
    }
    happening
}

/// A key is pinned only where none was; any other that is not the pinned one waits for a person.
pub fn host_key(vm: Uuid, pinned: Option<&str>, seen: v1::HostKeySeen) -> Happening {
    let v1::HostKey { algorithm, fingerprint, public_key } = seen.key.unwrap_or_default();
    let (level, text) = match pinned {
        Some(pinned) if pinned == fingerprint => {
            return Happening { writes: vec![Write::HostKeyFits { vm }], ..Default::default() };
        }
        Some(pinned) => ("warning", format!("the guest shows the host key {fingerprint}; the pinned one is {pinned}")),
        None => ("info", format!("first contact: the host key {fingerprint} is pinned from now on")),
    };
    let key = HostKeyRow { algorithm, fingerprint, public_key };
    Happening {
        told: vec![EventKind::Note { level: level.into(), text }],
        writes: vec![Write::HostKey { vm, pin: pinned.is_none(), key }],
        ..Default::default()
    }
}

/// The restore point is verified, and recorded at once: whatever becomes of the task, it is known.
fn restore_point(
    task: &TaskRow,
    sent: &Sent,
    heard: &mut Heard,
    done: v1::RestorePointDone,
    now: Timestamp,
) -> Happening {
    let (Some(backup), Some(files)) = (&task.work.backup, done.files) else { return Happening::default() };
    // Of evidence that is not understood the end tells.
    let Ok(Some(evidence)) = evidence(task, sent, &done.evidence_json, Some(&files)) else {
        return Happening::default();
    };
    let assessment = assess(&evidence);
    let incremental = files.kind == "incremental";
    let row = RestorePointRow {
        id: backup.restore_point.0,
        vm: task.vm,
        vm_name: task.vm_name.clone(),
        job: Some(task.work.job.0),
        job_name: sent.job_name.clone(),
        session: task.session,
        task: task.id,
        repository: backup.repository.0,
        created_us: us(heard.snapshot_at.unwrap_or(now)),
        kind: if incremental { "incremental" } else { "full" }.into(),
        parent: sent.parent.filter(|_| incremental),
        full_because: Some(files.full_because.clone()).filter(|why| !why.is_empty()),
        level: level_name(assessment.level).into(),
        level_reasons: level_reasons(&assessment),
        directory: files.directory.clone(),
        disks: files.disks.clone(),
        bytes: files.bytes,
        bitmap: files.bitmap.clone(),
        verified: None,
        removing: false,
    };
    heard.files = Some(files);
    let level_reasons = row.level_reasons.clone();
    let outcome = Some(TaskOutcome { level: Some(row.level.clone()), level_reasons, ..Default::default() });
    let recorded = TaskEvent::RestorePointRecorded { epoch: sent.epoch, restore_point: backup.restore_point };
    Happening { writes: vec![Write::RestorePoint(Box::new(row))], outcome, ..Happening::event(recorded) }
}

/// The proxy's account of the end. `state`: where the task stands.
pub fn finished(task: &TaskRow, state: &TaskState, sent: &Sent, heard: &Heard, end: v1::Finished) -> Happening {
    let evidence = evidence(task, sent, &end.evidence_json, heard.files.as_ref());
    let assessment = evidence.as_ref().ok().and_then(Option::as_ref).map(assess);
    let outcome = outcome(task, heard, &end, assessment.as_ref());
    let (ending, told) = ending(task, heard, &end, evidence.as_ref().err(), assessment.as_ref());

    let mut happening = Happening { told, ..Default::default() };
    let owed = owed_after_finish(state, &account(sent, &ending, end.receipt.as_ref()));
    let report = ProxyReport::Finished { ending, owed };
    happening.events.push(TaskEvent::Report { epoch: sent.epoch, report });
    happening.outcome = Some(outcome);
    happening.refused = Some(end.refused).filter(|cause| !cause.is_empty());
    happening
}

/// The evidence; `Ok(None)` where nothing was to be proved.
fn evidence(
    task: &TaskRow,
    sent: &Sent,
    json: &str,
    files: Option<&v1::RestorePointFiles>,
) -> Result<Option<Evidence>, String> {
    if json.is_empty() {
        // Of the guest nothing is proved; the snapshot there is.
        let atomic = files.map(|files| files.atomic);
        let because = task.work.left_alone.clone().unwrap_or_else(|| "guest processing is disabled".into());
        let left_alone = (!sent.guest).then_some(because);
        let snapshot =
            |atomic| Evidence { snapshot: SnapshotEvidence { taken: true, atomic }, left_alone, ..Default::default() };
        return Ok(atomic.map(snapshot));
    }
    serde_json::from_str(json).map(Some).map_err(|error| format!("the proxy's evidence was not understood ({error})"))
}

fn outcome(task: &TaskRow, heard: &Heard, end: &v1::Finished, assessment: Option<&Assessment>) -> TaskOutcome {
    // A level belongs to a snapshot: ours, or the one that the caller of a hold took.
    let assessment = assessment.filter(|_| match task.work.kind {
        SessionKind::Backup => heard.files.is_some(),
        SessionKind::Quiesce => matches!(end.outcome.as_str(), "success" | "warning"),
        SessionKind::Rehearse | SessionKind::Test => false,
    });
    TaskOutcome {
        level: assessment.map(|a| level_name(a.level).to_string()),
        level_reasons: assessment.map(level_reasons).unwrap_or_default(),
        receipt: end.receipt.clone().map(receipt),
        inventory: serde_json::from_str(&end.inventory_json).ok(),
    }
}

/// Why the level is not better, then what has a level of its own.
fn level_reasons(assessment: &Assessment) -> Vec<String> {
    let because = |reason: &Option<Reason>| reason.as_ref().map(|r| format!(", since {r}")).unwrap_or_default();
    let vm = assessment.reasons.iter().map(Reason::to_string);
    let applications = assessment
        .applications
        .iter()
        .map(|app| format!("{}: {}{}", app.name, level_name(app.level), because(&app.reason)));
    let file_systems = assessment.file_systems.iter().map(|fs| {
        let counts = if fs.counts { "" } else { " (does not count)" };
        format!("{}: {}{counts}{}", fs.mount_points.join(", "), level_name(fs.level), because(&fs.reason))
    });
    vm.chain(applications).chain(file_systems).collect()
}

fn receipt(receipt: v1::Receipt) -> Receipt {
    Receipt {
        guest_checked: receipt.guest_checked,
        hypervisor_checked: receipt.hypervisor_checked,
        left_in_guest: receipt.left_in_guest,
        left_in_hypervisor: receipt.left_in_hypervisor,
        rightly_remains: receipt.rightly_remains,
    }
}

/// How the task ended, and what people must be told about it first.
fn ending(
    task: &TaskRow,
    heard: &Heard,
    end: &v1::Finished,
    malformed: Option<&String>,
    assessment: Option<&Assessment>,
) -> (Ending, Vec<EventKind>) {
    let internal = |cause: String| {
        let failure = TaskFailure {
            step: heard.begun.last().copied(),
            hop: Hop::ServerToProxy,
            cause,
            remedy: "update the proxy and the backup server to the same version, and report this".into(),
            class: FailureClass::Internal,
        };
        (Ending::Failed { failure }, Vec::new())
    };
    match end.outcome.as_str() {
        "cancelled" => (Ending::Cancelled, Vec::new()),
        "failed" => match serde_json::from_str(&end.failure_json) {
            Ok(failure) => (Ending::Failed { failure }, Vec::new()),
            Err(error) => internal(format!("the proxy's failure was not understood ({error})")),
        },
        "success" | "warning" => {
            if let Some(malformed) = malformed {
                return internal(malformed.clone());
            }
            if task.work.backup.is_some() && heard.files.is_none() {
                return internal("the proxy reports success without a restore point".into());
            }
            let doubts = if task.work.kind == SessionKind::Backup {
                assessment.map(|a| doubts(task.work.settings.application_aware, a)).unwrap_or_default()
            } else {
                Vec::new()
            };
            let warning = |text: &String| EventKind::Note { level: "warning".into(), text: text.clone() };
            let told = doubts.iter().map(warning).collect();
            if end.outcome == "success" && doubts.is_empty() {
                return (Ending::Success, told);
            }
            (Ending::Warning { messages: heard.warnings.iter().cloned().chain(doubts).collect() }, told)
        }
        other => internal(format!("the proxy's outcome \"{other}\" was not understood")),
    }
}

/// What a restore point falls short of, where more was asked for.
fn doubts(asked: ApplicationAware, assessment: &Assessment) -> Vec<String> {
    if asked == ApplicationAware::Disabled {
        return Vec::new();
    }
    let mut doubts = Vec::new();
    if assessment.level < Some(ConsistencyLevel::FileSystem) {
        let reasons: Vec<String> = assessment.reasons.iter().map(Reason::to_string).collect();
        doubts.push(format!(
            "the restore point is only {}-consistent: {}",
            level_name(assessment.level),
            reasons.join("; ")
        ));
    }
    let lacking = assessment.applications.iter().filter(|app| app.level < Some(ConsistencyLevel::Application));
    for app in lacking {
        if let Some(reason) = app.reason.as_ref().filter(|reason| !matches!(reason, Reason::NotRunning)) {
            doubts.push(format!(
                "{} is only {}-consistent in the restore point, since {reason}",
                app.name,
                level_name(app.level)
            ));
        }
    }
    doubts
}

/// What the proxy says about what it left, and what follows from what it was not asked for.
fn account(sent: &Sent, ending: &Ending, receipt: Option<&v1::Receipt>) -> FinalAccount {
    let clean = |checked: bool, left: &[String]| checked && left.is_empty();
    // Who was refused at the door never got so far as to put anything there; to make sure would be a second attempt.
    let refused = matches!(ending, Ending::Failed { failure }
        if failure.class == FailureClass::RefusedCredential && failure.step <= Some(Step::Deploy));
    FinalAccount {
        guest_clean: !sent.guest || refused || receipt.is_some_and(|r| clean(r.guest_checked, &r.left_in_guest)),
        hypervisor_clean: !sent.hypervisor
            || receipt.is_some_and(|r| r.hypervisor_untouched || clean(r.hypervisor_checked, &r.left_in_hypervisor)),
        thaw_confirmed: !sent.guest || receipt.is_some_and(|r| r.thaw_confirmed),
    }
}

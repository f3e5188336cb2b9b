//! Objects as a server would answer them.

use lull_api::infrastructure::{Credential, Elevation, KnownAddress, ProxyCandidate, ProxyExplanation, Vm};
use lull_api::session::{EventKind, Failure, Receipt, Session, SessionEvent, SessionSummary, Step, Task};
use uuid::Uuid;

pub const TASK: Uuid = Uuid::from_u128(7);

pub fn vm() -> Vm {
    Vm {
        id: Uuid::from_u128(1),
        name: "shop".into(),
        host: "here".into(),
        guest_os: Some("linux".into()),
        addresses: vec!["10.0.0.5".into()],
        known_addresses: vec![KnownAddress { address: "10.0.0.5".into(), from: "by hand".into() }],
        address_problem: None,
        connect: None,
        credential: Some("root-key".into()),
        host_key: Some(format!("SHA256:{}", "a".repeat(43))),
        refused_host_key: None,
        state: "running".into(),
        disks: vec!["disk0".into()],
    }
}

pub fn credential() -> Credential {
    Credential {
        id: Uuid::from_u128(2),
        name: "app".into(),
        user: "backup".into(),
        login: "password".into(),
        elevation: Elevation::Sudo,
        used_by: vec![],
        refused_by: vec![],
        changed_at: "2026-03-01T12:00:00Z".into(),
    }
}

pub fn explanation() -> ProxyExplanation {
    ProxyExplanation {
        vm: "shop".into(),
        chosen: Some("backup-server".into()),
        tier: Some(4),
        summary: "the only proxy that is online".into(),
        candidates: vec![ProxyCandidate {
            name: "backup-server".into(),
            chosen: true,
            tier: Some(4),
            running_tasks: 0,
            reason: "chosen".into(),
        }],
        more: vec![],
    }
}

/// A session of this kind that is under way.
pub fn running(kind: &str) -> Session {
    Session {
        summary: SessionSummary {
            id: 12,
            kind: kind.into(),
            job: (kind == "backup").then(|| "nightly".into()),
            scheduled_for: None,
            retry: None,
            state: "running".into(),
            result: None,
            started_at: "2026-03-01T11:59:46Z".into(),
            ended_at: None,
            vms: vec!["shop".into()],
        },
        tasks: vec![Task {
            id: TASK,
            vm: "shop".into(),
            state: "running".into(),
            result: None,
            failure: None,
            proxy: None,
            earlier_choices: vec![],
            steps: vec![],
            level: None,
            level_reasons: vec![],
            freeze_window_us: None,
            restore_point: None,
            receipt: None,
            inventory: None,
            notes: vec![],
        }],
        notes: vec![],
        last_event: 0,
    }
}

/// The same once over.
pub fn finished(kind: &str, result: &str) -> Session {
    let mut session = running(kind);
    session.summary.state = "finished".into();
    session.summary.result = Some(result.into());
    session.summary.ended_at = Some("2026-03-01T12:00:00.2Z".into());
    session.last_event = 9;
    let task = &mut session.tasks[0];
    task.state = "finished".into();
    task.result = Some(result.into());
    task.proxy = Some(explanation());
    task.steps = vec![Step {
        step: "freeze".into(),
        state: "ok".into(),
        detail: "2 file systems".into(),
        started_at: "2026-03-01T11:59:58Z".into(),
        took_us: Some(2_100),
        done_bytes: None,
        total_bytes: None,
    }];
    task.level = Some("application".into());
    task.freeze_window_us = Some(3_400);
    task.receipt = Some(Receipt { guest_checked: true, hypervisor_checked: true, ..Receipt::default() });
    if result == "failed" {
        task.failure = Some(failure());
    }
    session
}

pub fn failure() -> Failure {
    Failure {
        step: "connect".into(),
        hop: "proxy to guest".into(),
        cause: "connection refused".into(),
        remedy: "see whether sshd runs in the guest".into(),
        text: "backup-server could not connect to 10.0.0.5:22: connection refused".into(),
    }
}

/// An event of the task.
pub fn event(event: EventKind) -> SessionEvent {
    SessionEvent { seq: 0, at: "2026-03-01T11:59:58Z".into(), task: Some(TASK), vm: Some("shop".into()), event }
}

pub fn step_started(step: &str) -> SessionEvent {
    event(EventKind::StepStarted { step: step.into(), detail: String::new() })
}

pub fn step_ended(step: &str) -> SessionEvent {
    event(EventKind::StepEnded { step: step.into(), state: "ok".into(), detail: "well".into(), took_us: 2_100 })
}

pub fn task_finished(result: &str) -> SessionEvent {
    event(EventKind::TaskFinished { result: result.into(), level: Some("application".into()), failure: None })
}

/// The last event of all.
pub fn session_finished(result: &str) -> SessionEvent {
    let mut last = event(EventKind::SessionFinished { result: result.into() });
    (last.task, last.vm) = (None, None);
    last
}

//! How a session of a job ended, as others are told. Read from what is recorded; knows nobody who is told.

use crate::instant::rfc3339;
use crate::rest::session_view;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::restore_points::RestorePointRow;
use lull_api::notify::{SessionReport, VmReport};
use lull_api::session::Task;
use lull_engine::session::TaskState;

/// The version of the document.
const FORMAT: u32 = 1;

/// The report on a session that is over.
///
/// # Errors
/// Why there is none, in words.
pub async fn of(server: &Server, session: i64) -> Result<SessionReport, String> {
    let view = session_view(server, session).await.map_err(|fault| fault.0.what)?;
    let unread = |error: StoreError| error.to_string();
    let rows = server.store.tasks(session).await.map_err(unread)?;
    let mut points = server.store.restore_points(None).await.map_err(unread)?;
    points.retain(|point| point.session == session);
    let vms = view.tasks.into_iter().map(|task| {
        let state = rows.iter().find(|row| row.id == task.id).map(|row| &row.state);
        let ended_at = match state {
            Some(TaskState::Finished { at, .. }) => Some(rfc3339(*at)),
            _ => None,
        };
        let point = points.iter().find(|point| Some(point.id) == task.restore_point);
        vm(task, ended_at, point)
    });
    Ok(SessionReport {
        format: FORMAT,
        session,
        job: view.summary.job.unwrap_or_default(),
        result: view.summary.result.unwrap_or_default(),
        started_at: view.summary.started_at,
        ended_at: view.summary.ended_at,
        vms: vms.collect(),
    })
}

fn vm(task: Task, ended_at: Option<String>, point: Option<&RestorePointRow>) -> VmReport {
    VmReport {
        vm: task.vm,
        result: task.result.unwrap_or_default(),
        level: task.level,
        level_reasons: task.level_reasons,
        failure: task.failure.map(|failure| failure.text),
        restore_point: task.restore_point,
        kind: point.map(|point| point.kind.clone()),
        bytes: point.map(|point| point.bytes),
        freeze_window_us: task.freeze_window_us,
        started_at: task.steps.first().map(|step| step.started_at.clone()),
        ended_at,
    }
}

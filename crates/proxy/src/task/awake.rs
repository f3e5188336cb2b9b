//! The end of a backup, with the guest awake: the copy and its verification, and beside them the listing of the guest's files.
//!
//! Neither waits for the other, but a backup that fails ends the listing, and the task ends when both have. Whatever becomes of the
//! listing, the backup is as good as without it. Knows nothing of what a listing holds.

use super::Run;
use crate::cancel::Cancel;
use crate::failure::{self, Stop};
use crate::guest_session::{GuestSession, IndexEnd};
use crate::order::{TaskSpec, Work};
use crate::reporter::{Reporter, StepOutcome};
use crate::snapshotter::{Proved, Snapshotter};
use lull_engine::consistency::{Reason, assess, level_name};
use lull_engine::settings::Indexing;
use lull_engine::timeline::{Progress, Step};
use lull_guest_wire::{IndexOrder, IndexScope};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::time::{Duration, Instant};

/// Progress of the copy is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

impl Run<'_> {
    /// Copies and verifies, and lists the guest's files as the settings say.
    pub(super) async fn copy_and_index(&mut self) -> Result<(), Stop> {
        let evidence = self.evidence();
        let assessment = assess(&evidence);
        let proved = Proved {
            vm_name: self.spec.vm_name.clone(),
            level: level_name(assessment.level).into(),
            reasons: assessment.reasons.iter().map(Reason::to_string).collect(),
            summary: assessment.to_string(),
        };
        let evidence_json = self.evidence_json(&evidence);
        let mut order = index_order(&self.spec).filter(|_| self.guest.is_some());
        let has_component = self.guest.as_ref().is_some_and(|guest| guest.has_component());
        if let (Some(_), Some(because), false) = (&order, &self.left_alone, has_component) {
            self.reporter.info(format!("the guest's files are not listed: {because}"));
            order = None;
        }
        let Run { guest, snapshotter, reporter, cancel, stop_index, .. } = self;
        let (reporter, cancel, stop_index) = (&*reporter, &*cancel, &*stop_index);
        let index = async {
            let mut progress = Progress::default();
            if let (Some(guest), Some(order)) = (guest, order) {
                index(guest, order, reporter, cancel, stop_index, &mut progress).await;
            }
            progress
        };
        let backup = async {
            let mut half = Half { reporter, cancel, progress: Progress::default() };
            let result = match snapshotter {
                Some(snapshotter) => half.backup(&mut **snapshotter, &proved).await.map(|files| {
                    let files = Some(files);
                    reporter.tell(Event::RestorePointDone(v1::RestorePointDone { files, evidence_json }));
                }),
                None => Ok(()),
            };
            if result.is_err() {
                stop_index.cancel(BACKUP_FAILED);
            }
            (result, half.progress)
        };
        // Both to their ends: the component must be known to have ended its walk.
        let (listed, (copied, halfway)) = tokio::join!(index, backup);
        for progress in [listed, halfway] {
            self.progress.begun.extend(progress.begun);
            self.progress.done.extend(progress.done);
        }
        copied
    }
}

/// Why a listing ends that nobody will look into.
const BACKUP_FAILED: &str = "there is no restore point to list the files of";

/// What the settings ask for. A restore point holds all disks of the VM, so all its file systems are listed.
fn index_order(spec: &TaskSpec) -> Option<IndexOrder> {
    let scope = match spec.settings.indexing_in_effect() {
        Indexing::Disabled => return None,
        Indexing::Everything => IndexScope::Everything,
        Indexing::EverythingExceptNoise => IndexScope::ExceptNoise,
        Indexing::Only { paths } => IndexScope::Only(paths.into_iter().map(String::into_bytes).collect()),
    };
    let order = IndexOrder { scope, cross_mounts: true, flag_ctime_after_us: None };
    matches!(spec.work, Work::Backup(_)).then_some(order)
}

/// The listing. What went wrong with it is told here, and nowhere else.
async fn index(
    guest: &mut GuestSession<'_>,
    order: IndexOrder,
    reporter: &Reporter,
    cancel: &Cancel,
    stop: &Cancel,
    progress: &mut Progress,
) {
    progress.begun.insert(Step::Index);
    let began = reporter.started(Step::Index, "");
    let end = guest.index(order, stop).await;
    let line = end.to_string();
    reporter.tell(Event::IndexEnded(end.clone().into()));
    for example in end.examples() {
        reporter.info(format!("could not be listed: {example}"));
    }
    let outcome = match &end {
        IndexEnd { stopped_because: None, .. } => {
            progress.done.insert(Step::Index);
            StepOutcome::Ok
        }
        IndexEnd { stopped_because: Some(why), .. } if why == BACKUP_FAILED => StepOutcome::Skipped,
        IndexEnd { stopped_because: Some(why), .. } => {
            reporter.warning(format!("the guest's files were not all listed: {why}"));
            if cancel.check().is_ok() { StepOutcome::Warning } else { StepOutcome::Cancelled }
        }
    };
    reporter.ended(Step::Index, outcome, line, began.elapsed());
}

/// The copy and its verification.
struct Half<'a> {
    reporter: &'a Reporter,
    cancel: &'a Cancel,
    progress: Progress,
}

impl Half<'_> {
    async fn backup(
        &mut self,
        snapshotter: &mut dyn Snapshotter,
        proved: &Proved,
    ) -> Result<v1::RestorePointFiles, Stop> {
        let began = self.begin(Step::Copy);
        let mut last: Option<Instant> = None;
        let reporter = self.reporter;
        let mut progress = |done_bytes, total_bytes| {
            if last.is_none_or(|last| last.elapsed() >= PROGRESS_EVERY) || done_bytes == total_bytes {
                last = Some(Instant::now());
                let step = Step::Copy.name().to_string();
                reporter.tell(Event::Progress(v1::Progress { step, done_bytes, total_bytes }));
            }
        };
        let result = snapshotter.copy(&mut progress, self.cancel.token()).await;
        let result = result.map_err(|e| match self.cancel.check() {
            Err(stop) => stop,
            Ok(()) => failure::of_hypervisor(Step::Copy, &e).into(),
        });
        self.end(Step::Copy, began, result, String::clone)?;
        let began = self.begin(Step::Verify);
        let result = snapshotter.finish(proved).await.map_err(|e| failure::of_hypervisor(Step::Verify, &e).into());
        self.end(Step::Verify, began, result, |files: &v1::RestorePointFiles| {
            format!("{} of {} MiB in {}", files.disks.join(", "), files.bytes >> 20, files.directory)
        })
    }

    fn begin(&mut self, step: Step) -> Instant {
        self.progress.begun.insert(step);
        self.reporter.started(step, "")
    }

    fn end<T>(
        &mut self,
        step: Step,
        began: Instant,
        result: Result<T, Stop>,
        line: impl FnOnce(&T) -> String,
    ) -> Result<T, Stop> {
        super::tell_end(self.reporter, &mut self.progress, step, began.elapsed(), result, line)
    }
}

//! The steps of a task in their order, what undoes what, and what still runs after a failure.
//! Knows neither proxies nor guests: only names and order.
//!
//! ```text
//! connect → deploy → inventory → pre-script → quiesce → freeze → snapshot → thaw → release → post-script
//!         → [index ‖ copy → verify] → remove → receipt
//! ```
//!
//! Two steps run at once only where the diagram says so. Index comes before copy in the order: whoever shows the step that was begun
//! last then shows the copy, and an index that goes on beyond it moves nothing back.
//!
//! A step that was *begun* counts as having taken effect: its answer may have been lost on the way.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// One step of a task; the order of the variants is the order in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Open the guest channel and log in.
    Connect,
    /// Put the runtime component into the guest.
    Deploy,
    /// Find OS, mounts and applications; prepare the hypervisor.
    Inventory,
    /// Run the pre-freeze script.
    PreScript,
    /// Quiesce applications.
    Quiesce,
    /// Freeze file systems.
    Freeze,
    /// Take the snapshot.
    Snapshot,
    /// Thaw file systems.
    Thaw,
    /// Release applications.
    Release,
    /// Run the post-thaw script.
    PostScript,
    /// List the guest's files.
    Index,
    /// Copy backup data to the repository.
    Copy,
    /// Verify what was written.
    Verify,
    /// Remove the runtime component.
    Remove,
    /// Look into the guest for anything left.
    Receipt,
}

impl Step {
    /// All steps in order.
    pub const ALL: [Self; 15] = [
        Self::Connect,
        Self::Deploy,
        Self::Inventory,
        Self::PreScript,
        Self::Quiesce,
        Self::Freeze,
        Self::Snapshot,
        Self::Thaw,
        Self::Release,
        Self::PostScript,
        Self::Index,
        Self::Copy,
        Self::Verify,
        Self::Remove,
        Self::Receipt,
    ];

    /// The name as in JSON, for example `pre-script`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Deploy => "deploy",
            Self::Inventory => "inventory",
            Self::PreScript => "pre-script",
            Self::Quiesce => "quiesce",
            Self::Freeze => "freeze",
            Self::Snapshot => "snapshot",
            Self::Thaw => "thaw",
            Self::Release => "release",
            Self::PostScript => "post-script",
            Self::Index => "index",
            Self::Copy => "copy",
            Self::Verify => "verify",
            Self::Remove => "remove",
            Self::Receipt => "receipt",
        }
    }

    /// What undoes the step; `None` where nothing remains to be undone.
    pub fn undone_by(self) -> Option<Undo> {
        match self {
            Self::Deploy => Some(Undo::Remove),
            Self::PreScript => Some(Undo::PostScript),
            Self::Quiesce => Some(Undo::Release),
            Self::Freeze => Some(Undo::Thaw),
            // Preparing the hypervisor belongs to the inventory, so that nothing is left to do inside the window.
            Self::Inventory | Self::Snapshot => Some(Undo::SweepHypervisor),
            Self::Copy | Self::Verify => Some(Undo::DiscardPartialFile),
            // A walk ends with the component; what was listed is the backup server's.
            Self::Index => None,
            Self::Connect | Self::Thaw | Self::Release | Self::PostScript | Self::Remove | Self::Receipt => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What still runs after a failure; the order of the variants is the order in which it runs. The guest comes first:
/// nothing about the hypervisor or the repository may delay a thaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// Thaw every file system that may be frozen.
    Thaw,
    /// Release the applications.
    Release,
    /// Run the post-thaw script, since the pre-freeze script ran.
    PostScript,
    /// Remove jobs, nodes, filters and bitmaps of this task from the hypervisor.
    SweepHypervisor,
    /// Remove the unfinished backup file.
    DiscardPartialFile,
    /// Remove the runtime component from the guest.
    Remove,
    /// Look into the guest for anything left.
    Receipt,
}

impl Undo {
    /// The step of the timeline that it is, where it is one.
    pub fn step(self) -> Option<Step> {
        match self {
            Self::Thaw => Some(Step::Thaw),
            Self::Release => Some(Step::Release),
            Self::PostScript => Some(Step::PostScript),
            Self::Remove => Some(Step::Remove),
            Self::Receipt => Some(Step::Receipt),
            Self::SweepHypervisor | Self::DiscardPartialFile => None,
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SweepHypervisor => "sweep hypervisor",
            Self::DiscardPartialFile => "discard partial file",
            Self::Thaw | Self::Release | Self::PostScript | Self::Remove | Self::Receipt => {
                self.step().map_or("", Step::name)
            }
        })
    }
}

/// What a task did so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Steps that were begun, whether or not they ended. A step that the settings leave out was not begun.
    pub begun: BTreeSet<Step>,
    /// Steps that ended well.
    pub done: BTreeSet<Step>,
    /// The hypervisor was swept after the last step that touched it.
    pub hypervisor_swept: bool,
    /// The backup file from its creation until its restore point is verified and recorded.
    pub partial_file: Option<String>,
}

impl Progress {
    /// A task that did everything before `failed` and began that step. `without` names steps that the settings leave
    /// out, for example the scripts.
    pub fn failed_at(failed: Step, without: &[Step]) -> Self {
        let up_to = |last: &dyn Fn(Step) -> bool| {
            Step::ALL.into_iter().filter(|step| last(*step) && !without.contains(step)).collect()
        };
        Self {
            begun: up_to(&|step| step <= failed),
            done: up_to(&|step| step < failed),
            hypervisor_swept: false,
            partial_file: None,
        }
    }
}

/// What still has to run when the task ends here, in order. After a complete task it is empty.
pub fn still_to_run(progress: &Progress) -> Vec<Undo> {
    let begun = |step| progress.begun.contains(&step);
    let done = |step| progress.done.contains(&step);
    let touched_hypervisor = begun(Step::Inventory) || begun(Step::Snapshot) || begun(Step::Copy);
    [
        (Undo::Thaw, begun(Step::Freeze) && !done(Step::Thaw)),
        (Undo::Release, begun(Step::Quiesce) && !done(Step::Release)),
        // Once: a post-thaw script that failed is not run again.
        (Undo::PostScript, begun(Step::PreScript) && !begun(Step::PostScript)),
        (Undo::SweepHypervisor, touched_hypervisor && !progress.hypervisor_swept),
        (Undo::DiscardPartialFile, progress.partial_file.is_some()),
        (Undo::Remove, begun(Step::Deploy) && !done(Step::Remove)),
        (Undo::Receipt, done(Step::Connect) && !done(Step::Receipt)),
    ]
    .into_iter()
    .filter_map(|(undo, owed)| owed.then_some(undo))
    .collect()
}

//! What a task can prove about its restore point, in the engine's terms.
//!
//! Pure: turns what the guest and the hypervisor said into evidence, and judges nothing. What was not said is written down
//! as unknown.

use lull_engine::consistency::{
    ApplicationEvidence, CallResult, Evidence, FileSystemEvidence, FreezeResult, QuiesceResult, Role, SnapshotEvidence,
    SuperblockId, WindowEvidence,
};
use lull_guest_wire::{
    Application, ApplicationQuiesced, ApplicationState, FileSystem, Freezable, FreezeId, Frozen, Inventory, Superblock,
    SuperblockThaw, ThawResult, Thawed,
};

/// `EINVAL` on Linux: what `FITHAW` says of a file system that is not frozen.
const EINVAL: i32 = 22;
/// `EBUSY` on Linux: what `FIFREEZE` says of somebody else's freeze.
const EBUSY: i32 = 16;
/// `EIO` on Linux: stands for an error whose number was not told.
const EIO: i32 = 5;

/// Everything that happened between *freeze* and *thaw*.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// The freeze that was sent. Once sent it counts as frozen, answered or not.
    pub sent: Option<FreezeId>,
    /// Its answer.
    pub frozen: Option<Frozen>,
    /// What a refused freeze said of each superblock.
    pub refused: Vec<SuperblockThaw>,
    /// The snapshot was sent after the answer.
    pub snapshot_after_freeze: bool,
    /// The snapshot had returned before the thaw was sent.
    pub snapshot_before_thaw: bool,
    /// The guest's word on the end.
    pub thawed: Option<Thawed>,
    /// From *freeze* sent to *thaw* answered, in microseconds.
    pub window_us: u64,
    /// From *thaw* sent to its answer, in microseconds.
    pub thaw_us: u64,
}

impl Window {
    /// Whether everything is proved: frozen, snapshot inside, thawed without a gap.
    pub fn is_whole(&self) -> bool {
        self.snapshot_after_freeze && self.snapshot_before_thaw && self.thawed.as_ref().is_some_and(|t| t.no_gap)
    }
}

/// All facts of one task.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// What the guest is.
    pub inventory: Option<&'a Inventory>,
    /// What became of each application; nothing where the settings leave them alone.
    pub quiesced: Option<&'a [ApplicationQuiesced]>,
    /// Mount points that the settings exclude.
    pub excluded: &'a [String],
    /// The freeze.
    pub window: Option<&'a Window>,
    /// The snapshot; atomic where the hypervisor alone made it so.
    pub snapshot: SnapshotEvidence,
    /// Why the guest was left alone before it was frozen, where it was.
    pub left_alone: Option<&'a str>,
}

/// The evidence that follows from the facts.
pub fn evidence(facts: &Facts<'_>) -> Evidence {
    let (file_systems, applications) = match facts.inventory {
        Some(inventory) => (file_systems(facts, inventory), applications(facts, inventory)),
        None => Default::default(),
    };
    Evidence {
        file_systems,
        applications,
        applications_searched: facts.inventory.is_some_and(|inventory| inventory.incomplete.is_empty()),
        window: facts.window.map(window).unwrap_or_default(),
        snapshot: SnapshotEvidence { atomic: facts.snapshot.atomic || frozen_at_once(facts), ..facts.snapshot },
        left_alone: facts.left_alone.map(str::to_string),
    }
}

/// Whether the freeze made one instant of several disks: without a gap, over everything that counts and everything that
/// could tear because it lies on several disks itself.
fn frozen_at_once(facts: &Facts<'_>) -> bool {
    let (Some(inventory), Some(window)) = (facts.inventory, facts.window) else { return false };
    let frozen = |fs: &FileSystem| {
        let result = freeze_result(window, fs.superblock);
        matches!(result, FreezeResult::Attempted { freeze: CallResult::Ok, thaw: CallResult::Ok })
    };
    let harmless = |fs: &FileSystem| {
        let counts = fs.is_root || inventory.applications.iter().any(|app| writes_to(app, fs));
        fs.read_only || (!counts && fs.disks.len() == 1)
    };
    window.is_whole() && inventory.file_systems.iter().all(|fs| frozen(fs) || harmless(fs))
}

fn writes_to(app: &Application, fs: &FileSystem) -> bool {
    app.places.iter().any(|place| place.superblock == fs.superblock)
}

fn window(window: &Window) -> WindowEvidence {
    WindowEvidence {
        frozen_id: window.frozen.as_ref().map(|frozen| frozen.freeze.0),
        acknowledged_before_snapshot: window.snapshot_after_freeze,
        snapshot_returned_before_thaw: window.snapshot_before_thaw,
        thawed_id: window.thawed.as_ref().map(|thawed| thawed.freeze.0),
        no_gap: window.thawed.as_ref().is_some_and(|thawed| thawed.no_gap),
    }
}

fn id(superblock: Superblock) -> SuperblockId {
    SuperblockId { major: superblock.major, minor: superblock.minor }
}

fn file_systems(facts: &Facts<'_>, inventory: &Inventory) -> Vec<FileSystemEvidence> {
    inventory.file_systems.iter().map(|fs| file_system(facts, inventory, fs)).collect()
}

fn file_system(facts: &Facts<'_>, inventory: &Inventory, fs: &FileSystem) -> FileSystemEvidence {
    let writers = inventory.applications.iter().filter(|app| writes_to(app, fs));
    let applications: Vec<String> = writers.map(|app| app.name.clone()).collect();
    FileSystemEvidence {
        mount_points: fs.mount_points.clone(),
        superblock: id(fs.superblock),
        fs_type: fs.fs_type.clone(),
        role: match (fs.is_root, applications.is_empty()) {
            (true, _) => Role::Root { applications },
            (false, false) => Role::ApplicationData { applications },
            (false, true) => Role::Other,
        },
        writable: !fs.read_only,
        freezable: fs.freezable == Freezable::Yes,
        excluded: fs.mount_points.iter().any(|mount_point| facts.excluded.contains(mount_point)),
        frozen: facts.window.map_or(FreezeResult::NotAttempted, |window| freeze_result(window, fs.superblock)),
        on_snapshot: fs.on_vm_disks,
    }
}

fn freeze_result(window: &Window, superblock: Superblock) -> FreezeResult {
    let told = window.thawed.as_ref().map_or(&window.refused, |thawed| &thawed.superblocks);
    let attempted = |freeze, thaw| FreezeResult::Attempted { freeze, thaw };
    if let Some(thaw) = told.iter().find(|thaw| thaw.superblock == superblock) {
        return match &thaw.result {
            ThawResult::NotFrozen => FreezeResult::NotAttempted,
            ThawResult::Thawed => attempted(CallResult::Ok, CallResult::Ok),
            ThawResult::WasThawed => attempted(CallResult::Ok, CallResult::Failed { errno: EINVAL }),
            ThawResult::SomebodyElse => attempted(CallResult::Failed { errno: EBUSY }, CallResult::Unknown),
            ThawResult::FreezeFailed(words) => attempted(failed(words), CallResult::Unknown),
            ThawResult::Failed(words) => attempted(CallResult::Ok, failed(words)),
        };
    }
    let acknowledged = window.frozen.iter().flat_map(|frozen| &frozen.superblocks).any(|(sb, _)| *sb == superblock);
    match (acknowledged, window.sent, &window.frozen) {
        (true, ..) => attempted(CallResult::Ok, CallResult::Unknown),
        // The answer was lost: nobody knows which ones it would have named.
        (false, Some(_), None) if window.refused.is_empty() => attempted(CallResult::Unknown, CallResult::Unknown),
        _ => FreezeResult::NotAttempted,
    }
}

/// The error number in the system's sentence: `Input/output error (os error 5)`.
fn failed(words: &str) -> CallResult {
    let number = words.rsplit_once("(os error ").and_then(|(_, rest)| rest.trim_end_matches(')').parse().ok());
    CallResult::Failed { errno: number.unwrap_or(EIO) }
}

fn applications(facts: &Facts<'_>, inventory: &Inventory) -> Vec<ApplicationEvidence> {
    let quiesce = |app: &lull_guest_wire::Application| {
        let told = facts.quiesced.map(|all| all.iter().find(|quiesced| quiesced.key == app.key));
        match (told, &app.state) {
            (_, ApplicationState::Down) => QuiesceResult::NotRunning,
            (None, _) => QuiesceResult::NotAttempted,
            (Some(None), ApplicationState::Unreachable(why)) => QuiesceResult::Failed { cause: why.clone() },
            (Some(None), ApplicationState::Runs) => QuiesceResult::NotAttempted,
            (Some(Some(quiesced)), _) => match &quiesced.result {
                Err(why) => QuiesceResult::Failed { cause: why.clone() },
                Ok(_) if !quiesced.caveats.is_empty() => QuiesceResult::Failed { cause: quiesced.caveats.join("; ") },
                Ok(_) => QuiesceResult::Quiesced,
            },
        }
    };
    let evidence = |app: &lull_guest_wire::Application| {
        let mut superblocks: Vec<SuperblockId> = app.places.iter().map(|place| id(place.superblock)).collect();
        superblocks.sort();
        superblocks.dedup();
        ApplicationEvidence { name: app.name.clone(), superblocks, quiesce: quiesce(app) }
    };
    inventory.applications.iter().map(evidence).collect()
}

/// Applications that could not be brought to rest, one sentence each.
pub fn application_failures(inventory: &Inventory, quiesced: &[ApplicationQuiesced]) -> Vec<String> {
    let facts = Facts { inventory: Some(inventory), quiesced: Some(quiesced), ..Facts::default() };
    let sentence = |app: ApplicationEvidence| match app.quiesce {
        QuiesceResult::Failed { cause } => Some(format!("{}: {cause}", app.name)),
        QuiesceResult::NotAttempted => Some(format!("{}: the guest said nothing of it", app.name)),
        QuiesceResult::NotRunning => Some(format!("{} ought to run and does not", app.name)),
        QuiesceResult::Quiesced => None,
    };
    applications(&facts, inventory).into_iter().filter_map(sentence).collect()
}

#[cfg(test)]
mod tests;

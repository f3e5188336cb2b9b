//! The messages: a closed set of commands down, replies and events up.
//!
//! postcard is not self-describing: variants and fields are only ever appended, and a change bumps
//! [`crate::PROTOCOL_VERSION`]. tests/past_versions.rs reads what past versions wrote. Knows nothing of how a command is carried out.

use crate::lease::Lease;
use crate::listing::{IndexOrder, IndexSummary, ListingFrame};
use serde::{Deserialize, Serialize};

/// Names one freeze. The proxy draws it; every later word about the freeze repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FreezeId(pub u64);

/// From the proxy. Replies carry the same `id`; ids only grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToRuntime {
    /// Number of the command, chosen by the proxy.
    pub id: u32,
    /// What to do.
    pub command: Command,
}

/// Everything that a runtime component can be asked for. Between the first `FIFREEZE` and the last `FITHAW` only
/// [`Command::Renew`], [`Command::Status`] and [`Command::Thaw`] are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Operating system, file systems, applications. Answer: [`Answer::Inventory`].
    Inventory,
    /// Run a script as root, from a file on a memory file system, with an empty stdin. Answer: [`Answer::Script`].
    Script(ScriptOrder),
    /// Kill the script that runs. Answer: [`Answer::Done`]; the script's own reply follows.
    CancelScript,
    /// Bring the applications of the last inventory to rest. Answer: [`Answer::Quiesced`].
    Quiesce(QuiesceOrder),
    /// Plan the mounts, `syncfs`, open everything, start the watchdog. Answer: [`Answer::Armed`].
    Arm(ArmOrder),
    /// Freeze what was armed. Answer: [`Answer::Frozen`], or a [`Refusal`] after everything was thawed again.
    Freeze(FreezeId),
    /// Hold the freeze for another lease. Answer: [`Answer::Renewed`], or a [`Refusal`] when it already ended.
    Renew(FreezeId),
    /// Answer: [`Answer::Status`].
    Status,
    /// Thaw. Answer: [`Answer::Thawed`], also when the watchdog thawed before.
    Thaw(FreezeId),
    /// Let the applications go again. Answer: [`Answer::Done`].
    Release,
    /// End: answer [`Answer::Done`], remove everything, exit.
    Bye,
    /// Walk the file systems and list what is there. [`FromRuntime::Listing`]s come, then the answer: [`Answer::Indexed`].
    Index(IndexOrder),
    /// End the walk. Answer: [`Answer::Done`]; the walk's own reply follows.
    CancelIndex,
}

/// Before or after the freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScriptStage {
    /// Pre-freeze script.
    PreFreeze,
    /// Post-thaw script; runs whenever the pre-freeze script ran.
    PostThaw,
}

/// A script to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptOrder {
    /// Which of the two.
    pub stage: ScriptStage,
    /// The script itself (with its `#!` line), at most [`SCRIPT_BYTES_MAX`].
    pub body: Vec<u8>,
    /// Killed, with its whole process group, after this time, in milliseconds.
    pub timeout_ms: u64,
    /// Environment added to the script's.
    pub environment: Vec<(String, String)>,
}

/// Longest script, in bytes.
pub const SCRIPT_BYTES_MAX: usize = 512 * 1024;
/// The last so many bytes of a script's output are kept.
pub const SCRIPT_OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Most list entries (file systems, applications, paths) in one message.
pub const LIST_MAX: usize = 4_096;

/// How to bring applications to rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuiesceOrder {
    /// `CHECKPOINT` before the freeze: shortens recovery, costs IO.
    pub checkpoint: bool,
    /// Longest time for a checkpoint, in milliseconds.
    pub checkpoint_timeout_ms: u64,
    /// Longest time to connect and to ask, in milliseconds.
    pub connect_timeout_ms: u64,
}

/// What to arm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmOrder {
    /// The freeze that will follow.
    pub freeze: FreezeId,
    /// Its bounds.
    pub lease: Lease,
    /// File systems mounted here are not frozen (exact mount points).
    pub exclude_mount_points: Vec<String>,
}

/// From the runtime component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRuntime {
    /// First message of all: the component runs, its file and folder are already removed.
    Hello(Hello),
    /// The answer to the command with this id.
    Reply {
        /// Number of the command.
        id: u32,
        /// Its answer, or why not.
        result: Result<Answer, Refusal>,
    },
    /// Something worth telling, at any time outside the freeze window.
    Event(Event),
    /// A part of what a walk found, between [`Command::Index`] and its answer.
    Listing(ListingFrame),
    /// Instead of [`FromRuntime::Hello`]: another task's component holds the guest. Nothing was done.
    Held(Held),
    /// A newer task's component came: everything of this one is thawed, ended and let go. The last message.
    Evicted,
}

/// Who holds the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Fence of its order; smaller than the newcomer's where it could not be made to go.
    pub fence: u64,
    /// In one sentence.
    pub message: String,
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of Lull that the component was built from.
    pub version: String,
    /// Its process in the guest.
    pub pid: u32,
    /// False where something of its files could not be removed; then it says which.
    pub leftovers: Vec<String>,
}

/// Answers to commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Command::Inventory`].
    Inventory(Inventory),
    /// To [`Command::Script`].
    Script(ScriptResult),
    /// To [`Command::Quiesce`]: one entry per application of the inventory.
    Quiesced(Vec<ApplicationQuiesced>),
    /// To [`Command::Arm`]: the watchdog confirmed.
    Armed(Armed),
    /// To [`Command::Freeze`].
    Frozen(Frozen),
    /// To [`Command::Renew`].
    Renewed {
        /// Until the guest thaws by itself, in milliseconds.
        remaining_ms: u64,
    },
    /// To [`Command::Status`].
    Status(Status),
    /// To [`Command::Thaw`].
    Thawed(Thawed),
    /// To commands that have nothing to say.
    Done,
    /// To [`Command::Index`], also when it was cancelled.
    Indexed(IndexSummary),
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind, for decisions.
    pub kind: RefusalKind,
    /// One sentence: what failed, on what, why.
    pub message: String,
    /// What became of each superblock, for freezes that failed half-way.
    pub superblocks: Vec<SuperblockThaw>,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Not accepted in this state (or while frozen).
    NotNow,
    /// The order itself is wrong.
    BadOrder,
    /// Another freezer holds the guest's lock, or a superblock is somebody else's freeze.
    SomebodyElse,
    /// A freeze failed; everything of ours was thawed.
    FreezeFailed,
    /// The lease ran out or the budget is used up; everything was thawed.
    Expired,
    /// The watchdog is gone; everything was thawed.
    WatchdogLost,
    /// Something else went wrong.
    Failed,
}

/// One file system instance, as `major:minor` in mountinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Superblock {
    /// Major number of its device.
    pub major: u32,
    /// Minor number of its device.
    pub minor: u32,
}

impl std::fmt::Display for Superblock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Its operating system.
    pub os: Os,
    /// Every superblock that lies on a block device, each once.
    pub file_systems: Vec<FileSystem>,
    /// Every application that we know and that runs or ought to.
    pub applications: Vec<Application>,
    /// Why there may be more applications than these, one sentence each; empty when the search was complete.
    pub incomplete: Vec<String>,
    /// What else could not be found out or is good to know, one sentence each.
    pub notes: Vec<String>,
}

/// The operating system of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Os {
    /// `PRETTY_NAME` of os-release.
    pub name: String,
    /// `ID` of os-release.
    pub id: String,
    /// `VERSION_ID` of os-release, may be empty.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Host name.
    pub host_name: String,
    /// `/etc/machine-id`, may be empty.
    pub machine_id: String,
}

/// One superblock and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Its identity.
    pub superblock: Superblock,
    /// As in mountinfo: `ext4`, `xfs`, `vfat`, …
    pub fs_type: String,
    /// Device as in mountinfo.
    pub source: String,
    /// Every place where it is mounted, bind mounts included; the first is used.
    pub mount_points: Vec<String>,
    /// Holds `/`.
    pub is_root: bool,
    /// Mounted read-only everywhere.
    pub read_only: bool,
    /// Whether it will be frozen.
    pub freezable: Freezable,
    /// Whole disks under it (`vda`, `sdb`), through partitions, LVM, RAID and loop.
    pub disks: Vec<String>,
    /// True where every disk is local to the VM (not iSCSI, NBD or another network device): in the VM's snapshot.
    pub on_vm_disks: bool,
    /// For a loop mount: the superblock that holds its image.
    pub inside: Option<Superblock>,
    /// Size and free space in bytes.
    pub size_bytes: u64,
    /// Free space in bytes.
    pub free_bytes: u64,
}

/// Whether a file system will be frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freezable {
    /// Yes.
    Yes,
    /// No: read-only, no freeze support, excluded. It gets `syncfs` where it can be written.
    No(String),
}

/// One application instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Stable within the guest: `postgresql:/var/lib/postgresql/15/main`.
    pub key: String,
    /// For people: `PostgreSQL 15 (/var/lib/postgresql/15/main, port 5432)`.
    pub name: String,
    /// Where everything it writes lies.
    pub places: Vec<ApplicationPlace>,
    /// Whether it can be brought to rest.
    pub state: ApplicationState,
}

/// Whether an application can be brought to rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApplicationState {
    /// It runs; trying will show.
    Runs,
    /// It runs, and why it cannot be brought to rest is known already.
    Unreachable(String),
    /// It ought to run and does not.
    Down,
}

/// One place that an application writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationPlace {
    /// `data`, `wal`, `tablespace NAME`.
    pub what: String,
    /// Absolute path in the guest.
    pub path: String,
    /// Where it lies.
    pub superblock: Superblock,
}

/// What became of one application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationQuiesced {
    /// As in [`Application::key`].
    pub key: String,
    /// Facts recorded (version, timeline, WAL position, …), or why it could not be brought to rest.
    pub result: Result<Vec<(String, String)>, String>,
    /// Reasons for which the level cannot be `application` although it answered (`fsync=off`, …).
    pub caveats: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// How a script ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptResult {
    /// Exit code, signal, or timeout.
    pub end: ScriptEnd,
    /// The last [`SCRIPT_OUTPUT_BYTES_MAX`] bytes of stdout and stderr, as they came.
    pub output: Vec<u8>,
    /// Bytes of output that were dropped before `output`.
    pub dropped_bytes: u64,
    /// How long it ran, in milliseconds.
    pub took_ms: u64,
}

/// How a script ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScriptEnd {
    /// With this exit code; 0 is success.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Killed after its timeout.
    TimedOut,
    /// Killed because the task was cancelled.
    Cancelled,
}

/// The plan that stands, and the watchdog that guards it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// In the order of freezing: innermost first.
    pub plan: Vec<Superblock>,
    /// Process of the watchdog.
    pub watchdog_pid: u32,
    /// What could not be done (oom score, cgroup, mlock), one sentence each; none of it breaks the promise.
    pub notes: Vec<String>,
}

/// Everything armed is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Which freeze.
    pub freeze: FreezeId,
    /// Each superblock with the microseconds that its `FIFREEZE` took, in order.
    pub superblocks: Vec<(Superblock, u64)>,
    /// Until the guest thaws by itself, in milliseconds.
    pub remaining_ms: u64,
}

/// What the component is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its phase.
    pub phase: Phase,
    /// The freeze that was armed last, if any.
    pub freeze: Option<FreezeId>,
    /// Until the guest thaws by itself, in milliseconds; 0 when not frozen.
    pub remaining_ms: u64,
}

/// Phases of the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing armed.
    Idle,
    /// A script runs.
    Script,
    /// Armed, nothing frozen.
    Armed,
    /// `FIFREEZE` under way.
    Freezing,
    /// Frozen.
    Frozen,
    /// `FITHAW` under way.
    Thawing,
    /// A walk runs.
    Indexing,
}

/// The end of a freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thawed {
    /// Which freeze.
    pub freeze: FreezeId,
    /// True only when everything armed was frozen, without a gap, from the [`Frozen`] answer until this thaw: every
    /// `FITHAW` of ours returned 0, and nobody thawed before.
    pub no_gap: bool,
    /// Why there was a gap, one sentence each.
    pub gaps: Vec<String>,
    /// Each superblock, in the order of thawing.
    pub superblocks: Vec<SuperblockThaw>,
    /// From the first `FIFREEZE` to the last `FITHAW`, in microseconds of the guest's clock.
    pub frozen_us: u64,
}

/// How the thaw of one superblock went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperblockThaw {
    /// Which one.
    pub superblock: Superblock,
    /// Its first mount point.
    pub mount_point: String,
    /// What happened.
    pub result: ThawResult,
}

/// How the thaw of one superblock went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThawResult {
    /// Never attempted.
    NotFrozen,
    /// `FITHAW` returned 0.
    Thawed,
    /// It was already thawed when `FITHAW` came: by the watchdog, or by somebody else.
    WasThawed,
    /// Somebody else's freeze (EBUSY): left alone.
    SomebodyElse,
    /// `FIFREEZE` failed with this error.
    FreezeFailed(String),
    /// `FITHAW` failed with this error.
    Failed(String),
}

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// For the session's log.
    Note(String),
}

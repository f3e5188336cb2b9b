//! Hosts, VMs, credentials, repositories and proxies, as the REST interface shows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerStatus {
    /// Version of Lull.
    pub version: String,
    /// When this server started.
    pub started_at: String,
    /// Where it keeps its state.
    pub state_dir: String,
    /// Tasks under way.
    pub running_tasks: u32,
}

/// A hypervisor host to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewHost {
    /// Unique name.
    pub name: String,
    /// Folder that holds the QMP sockets `VM.qmp`, absolute.
    pub qemu_dir: String,
    /// Local folder for fleecing images, absolute; default: `fleecing` in the server's state folder.
    #[serde(default)]
    pub fleecing_dir: Option<String>,
}

/// A hypervisor host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// `qemu`.
    pub kind: String,
    /// Folder of sockets.
    pub qemu_dir: String,
    /// Folder for fleecing images.
    pub fleecing_dir: String,
    /// VMs that it has.
    pub vms: u32,
    /// Backups that may run at once on its VMs; 0: no limit.
    #[serde(default)]
    pub max_tasks: u32,
    /// Whether its folder could be read at the last look.
    pub problem: Option<String>,
}

/// Changes to a hypervisor host: absent members stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// Backups that may run at once on its VMs; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tasks: Option<u32>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Id.
    pub id: Uuid,
    /// Name on its host; where two hosts have the same name, `HOST/VM` says which.
    pub name: String,
    /// Its host's name.
    pub host: String,
    /// `linux`, `windows` or nothing while unknown.
    pub guest_os: Option<String>,
    /// Addresses and DNS names of the guest, as an administrator said.
    pub addresses: Vec<String>,
    /// Addresses that count now, and who says so.
    #[serde(default)]
    pub known_addresses: Vec<KnownAddress>,
    /// Names that lead nowhere.
    #[serde(default)]
    pub address_problem: Option<String>,
    /// `HOST:PORT` to connect to, where that differs from the address.
    pub connect: Option<String>,
    /// Name of the credential for its guest.
    pub credential: Option<String>,
    /// Fingerprint of the pinned SSH host key.
    pub host_key: Option<String>,
    /// Fingerprint of another key that the guest showed last and that was refused; a person may accept it.
    pub refused_host_key: Option<String>,
    /// State in the hypervisor (`running`, `paused`, …), or why it is not known.
    pub state: String,
    /// Disks, as the hypervisor names them.
    pub disks: Vec<String>,
}

/// An address of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KnownAddress {
    /// The address.
    pub address: String,
    /// `by hand`, `DNS NAME`, or `guest agent`.
    pub from: String,
}

/// Changes to a VM: absent members stay as they are, an empty string removes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmChange {
    /// All addresses of the guest: IPv4, IPv6, or DNS names. Without any, those count that a guest agent says.
    #[serde(default)]
    pub addresses: Option<Vec<String>>,
    /// `HOST:PORT`.
    #[serde(default)]
    pub connect: Option<String>,
    /// Name of a credential.
    #[serde(default)]
    pub credential: Option<String>,
    /// `linux` or `windows`.
    #[serde(default)]
    pub guest_os: Option<String>,
}

/// A host key that a person accepts in place of the pinned one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptHostKey {
    /// `SHA256:…` of the key that the guest showed, to be sure which one is meant.
    pub fingerprint: String,
}

/// A credential to store, encrypted; its secrets are never given out again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCredential {
    /// Unique name.
    pub name: String,
    /// Account in the guest.
    pub user: String,
    /// Password of the account, or
    #[serde(default)]
    pub password: Option<String>,
    /// a private key (PEM or OpenSSH), with
    #[serde(default)]
    pub private_key: Option<String>,
    /// its passphrase.
    #[serde(default)]
    pub passphrase: Option<String>,
    /// How the account becomes root.
    #[serde(default)]
    pub elevation: Elevation,
    /// Password that the elevation asks for: for sudo default the account's, for su root's.
    #[serde(default)]
    pub elevation_password: Option<String>,
}

impl std::fmt::Debug for NewCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewCredential").field("name", &self.name).field("user", &self.user).finish_non_exhaustive()
    }
}

/// How an account becomes root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Elevation {
    /// It is root, or it will have to do without.
    #[default]
    None,
    /// `sudo`, asking for a password.
    Sudo,
    /// `sudo` without a password.
    SudoNopasswd,
    /// `su` with root's password.
    Su,
}

/// A credential, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Credential {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// Account in the guest.
    pub user: String,
    /// `password` or `private-key`.
    pub login: String,
    /// How the account becomes root.
    pub elevation: Elevation,
    /// VMs that use it.
    pub used_by: Vec<String>,
    /// VMs that refused it: it rests there until it is changed.
    pub refused_by: Vec<String>,
    /// When it was stored or changed.
    pub changed_at: String,
}

/// A repository to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRepository {
    /// Unique name.
    pub name: String,
    /// Folder that the hypervisor writes to, absolute.
    pub path: String,
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repository {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// Folder.
    pub path: String,
    /// Free space in bytes, where known.
    pub free_bytes: Option<u64>,
    /// Restore points in it.
    pub restore_points: u32,
    /// Backups that may be written into it at once; 0: no limit.
    #[serde(default)]
    pub max_tasks: u32,
    /// Why it cannot be used at the moment.
    pub problem: Option<String>,
}

/// Changes to a repository: absent members stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RepositoryChange {
    /// Backups that may be written into it at once; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tasks: Option<u32>,
}

/// What a scan of a repository found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepositoryScan {
    /// Ids of the restore points that were not known and now are.
    pub recorded: Vec<Uuid>,
    /// How many were known already.
    pub known: u32,
    /// Restore points that were not recorded, and why.
    pub left_out: Vec<ScanFinding>,
    /// Restore points that are known but gone, or whose chain is broken.
    pub missing: Vec<ScanFinding>,
    /// What else lies in the repository: no restore points.
    pub strangers: Vec<ScanFinding>,
    /// Strangers that are not named.
    pub more_strangers: u64,
    /// The repository holds more folders than a scan looks into.
    pub cut_short: bool,
}

/// Something in a repository, and what is the matter with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScanFinding {
    /// Where it lies.
    pub path: String,
    /// What is the matter.
    pub why: String,
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestorePoint {
    /// Id.
    pub id: Uuid,
    /// VM's name.
    pub vm: String,
    /// Job that made it.
    pub job: Option<String>,
    /// Session that made it.
    pub session: i64,
    /// Repository's name.
    pub repository: String,
    /// When the snapshot was taken.
    pub created_at: String,
    /// `full` or `incremental`.
    pub kind: String,
    /// The restore point that an incremental one builds on.
    #[serde(default)]
    pub parent: Option<Uuid>,
    /// Why a full one is full.
    #[serde(default)]
    pub full_because: Option<String>,
    /// `application`, `file-system` or `crash`.
    pub level: String,
    /// Why the level is not better; the file systems and applications with levels of their own.
    pub level_reasons: Vec<String>,
    /// Folder with its files.
    pub directory: String,
    /// Its disk images' file names.
    pub disks: Vec<String>,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was verified last, and the outcome.
    pub verified: Option<String>,
    /// Its removal has begun, and is gone on with by itself: files of it may be gone.
    #[serde(default)]
    pub removing: bool,
}

/// Outcome of `restore-point verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// True when every file is there and sound.
    pub ok: bool,
    /// What is known now.
    pub verdict: Verdict,
    /// What could not be checked, why, and what to do; nothing is recorded of it.
    #[serde(default)]
    pub not_checked: Vec<String>,
    /// One line per file, its own first, then those of the restore points that it builds on.
    pub findings: Vec<String>,
}

/// What a verification knows of a restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It can be restored.
    Sound,
    /// It cannot: it, or a restore point that it builds on, is damaged.
    Damaged,
    /// Not all of it could be looked at, and nothing that was is damaged.
    NotChecked,
}

/// A guest interaction proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proxy {
    /// Id of its managed server.
    pub id: Uuid,
    /// Name of its managed server.
    pub name: String,
    /// `linux` or `windows`.
    pub platform: String,
    /// Whether it is the backup server's own.
    pub is_backup_server: bool,
    /// `online`, `offline`, `draining`, `disabled`, `incompatible` or `revoked`.
    pub state: String,
    /// Why it gets no tasks or was turned away, with what to do.
    #[serde(default)]
    pub problem: Option<String>,
    /// When it was last heard of since the backup server started, if it was; RFC 3339.
    #[serde(default)]
    pub last_heard: Option<String>,
    /// Version of Lull that it runs.
    pub version: String,
    /// On-link networks.
    pub networks: Vec<String>,
    /// Guest channels that it has.
    pub channels: Vec<String>,
    /// Task slots.
    pub slots: u32,
    /// How many of them an administrator set; nothing: as many as the proxy says.
    #[serde(default)]
    pub slots_set: Option<u32>,
    /// Slots in use.
    pub running_tasks: u32,
    /// Whether the licence admits it as a guest interaction proxy.
    #[serde(default = "licensed")]
    pub licensed: bool,
}

fn licensed() -> bool {
    true
}

/// What an administrator says about a guest interaction proxy: absent members stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyChange {
    /// `enabled`, `draining` (it finishes its tasks and takes no new ones) or `disabled` (out of use).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Task slots; 0: as many as the proxy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
}

/// What a join token is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// Name of the managed server to be; absent: as the machine says.
    #[serde(default)]
    pub name: Option<String>,
    /// Instead: a managed server that joins again, by name or id. Its old keys end with the new join.
    #[serde(default)]
    pub again: Option<String>,
    /// Seconds for which it is good: 3600 unless told, at most a week.
    #[serde(default)]
    pub valid_for_s: Option<u64>,
}

/// A token with which one machine becomes a proxy. `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// To be given to `lull proxy join` on that machine.
    pub token: String,
    /// Until when it is good; RFC 3339.
    pub expires_at: String,
    /// Name of the managed server to be, where it was given.
    pub name: Option<String>,
    /// Port on which the backup server waits for proxies.
    pub port: u16,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("name", &self.name)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Which proxy would serve a VM, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyExplanation {
    /// VM's name.
    pub vm: String,
    /// Name of the chosen proxy; nothing where none can serve the VM.
    pub chosen: Option<String>,
    /// Tier 1 (best) to 4.
    pub tier: Option<u8>,
    /// One sentence.
    pub summary: String,
    /// The candidates, best first, each with the reason for or against it. What a task keeps of its choice holds the best ones.
    pub candidates: Vec<ProxyCandidate>,
    /// How many others there were, by reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<MoreCandidates>,
}

/// Candidates that are not listed one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoreCandidates {
    /// How many.
    pub servers: u32,
    /// The reason against each of them.
    pub reason: String,
}

/// One candidate of a choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyCandidate {
    /// Name of its managed server.
    pub name: String,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Tier 1 (best) to 4, where it is feasible.
    pub tier: Option<u8>,
    /// Tasks that it is running.
    pub running_tasks: u32,
    /// Reason for or against it.
    pub reason: String,
}

/// One finding of `lull doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// `ok`, `warning` or `error`.
    pub state: String,
    /// What was found.
    pub text: String,
    /// What to do.
    pub remedy: Option<String>,
}

/// Changes to a credential: absent members stay as they are. A password or a private key replaces the login there was.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialChange {
    /// New name.
    #[serde(default)]
    pub name: Option<String>,
    /// Account in the guest.
    #[serde(default)]
    pub user: Option<String>,
    /// Password of the account, or
    #[serde(default)]
    pub password: Option<String>,
    /// a private key (PEM or OpenSSH), with
    #[serde(default)]
    pub private_key: Option<String>,
    /// its passphrase.
    #[serde(default)]
    pub passphrase: Option<String>,
    /// How the account becomes root.
    #[serde(default)]
    pub elevation: Option<Elevation>,
    /// Password that the elevation asks for; an empty string removes it.
    #[serde(default)]
    pub elevation_password: Option<String>,
}

impl std::fmt::Debug for CredentialChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialChange").field("name", &self.name).field("user", &self.user).finish_non_exhaustive()
    }
}

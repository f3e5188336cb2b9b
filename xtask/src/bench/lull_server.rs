//! A backup server of a bench's own, driven over its REST interface, as an operator would drive it.
//!
//! Knows the API; knows nothing of what is measured.

use super::arguments::Arguments;
use super::running::{Running, output, tail_of_file};
use super::stage::{GUEST, Scene};
use super::testbed::checkout;
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use lull_api::Client;
use lull_api::infrastructure::{
    Credential, Elevation, Host, NewCredential, NewHost, NewRepository, Repository, RestorePoint, Vm, VmChange,
};
use lull_api::job::{GuestSettings, NewJob, SavedJob};
use lull_api::session::{EventKind, Session, SessionEvent, Task};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use tokio::process::Command;

/// How long a server may take to say where it listens.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to end: it sees to open tasks first.
const END_GRACE: Duration = Duration::from_secs(30);
/// Longest session.
const SESSION_LIMIT: Duration = Duration::from_secs(600);
/// Name of the job that backs the guest up.
const JOB: &str = "bench";

/// Logs in as root with the testbed's key.
pub const ROOT_KEY: &str = "root-key";
/// Logs in with a password and becomes root by `sudo`, which asks for it.
pub const SUDO_PASSWORD: &str = "sudo-password";

/// A running backup server.
pub struct LullServer {
    process: Running,
    /// Of its REST interface.
    pub client: Client,
    log: PathBuf,
    /// Restore points that are kept, the oldest first.
    chain: Vec<String>,
}

/// A session that is over, with its events.
pub struct Finished {
    /// The session.
    pub session: Session,
    /// All stored events, in order.
    pub events: Vec<SessionEvent>,
}

impl Finished {
    /// Its only task, if it did its work; what it warns of is said aloud.
    ///
    /// # Errors
    /// With the task's failure, or what else is wrong.
    pub fn succeeded(&self) -> Result<&Task> {
        let id = self.session.summary.id;
        let [task] = self.session.tasks.as_slice() else {
            bail!("session {id} has {} tasks, not one", self.session.tasks.len());
        };
        match (&task.failure, task.result.as_deref()) {
            (None, Some("success")) => Ok(task),
            (None, Some("warning")) => {
                eprintln!("session {id} ended with a warning: {}", task.notes.join("; "));
                Ok(task)
            }
            (Some(failure), _) => bail!("session {id}: {}", failure.text),
            (None, result) => {
                bail!("session {id} ended with {}: {}", result.unwrap_or("no result"), task.notes.join("; "))
            }
        }
    }
}

/// The program to measure: the one that was named, or what cargo builds now.
///
/// # Errors
/// When there is none, or cargo fails.
pub async fn binary(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(binary) = &arguments.lull {
        return binary.canonicalize().with_context(|| format!("the binary {}", binary.display()));
    }
    let checkout = checkout()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(&checkout).args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        "lull",
        "--profile",
        &arguments.profile,
    ]);
    output(&mut build, "building Lull").await?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout.join("target"), PathBuf::from);
    // Cargo's one exception: the profile dev builds into debug.
    let folder = if arguments.profile == "dev" { "debug" } else { &arguments.profile };
    let binary = checkout.join(target).join(folder).join("lull");
    eprintln!("Lull was built in the profile {}", arguments.profile);
    Ok(binary)
}

impl LullServer {
    /// Starts a server on a free port, with its state in the scene's folder. `proxies`: where it waits for proxies, or `none`.
    ///
    /// # Errors
    /// When it does not say where it listens within 30 s: with its last words.
    pub async fn start(binary: &Path, scene: &Scene, proxies: &str) -> Result<LullServer> {
        let log = scene.server_log();
        let words = std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(binary);
        command
            .args(["server", "--listen", "127.0.0.1:0", "--proxy-listen", proxies, "--state-dir"])
            .arg(scene.state());
        command.stdout(words.try_clone()?).stderr(words);
        let mut process = Running::start(&mut command, "the backup server", END_GRACE)?;
        let said = tokio::time::timeout(START_LIMIT, async {
            loop {
                process.still_runs(&log)?;
                let said = std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
                if let Some(address) = address_in(&said) {
                    return anyhow::Ok(address);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let address = said
            .await
            .with_context(|| format!("the backup server did not say where it listens: {}", tail_of_file(&log)))??;
        let file = scene.state().join("admin-token");
        let token = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(LullServer { process, client: Client::new(&address, &token)?, log, chain: Vec::new() })
    }

    /// Adds the scene's host, guest, credentials, repository and job.
    ///
    /// # Errors
    /// What the server says.
    pub async fn add_everything(&self, scene: &Scene) -> Result<()> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let key = scene.testbed.key();
        let key = std::fs::read_to_string(&key).with_context(|| format!("reading {}", key.display()))?;
        let host = NewHost {
            name: "here".to_string(),
            qemu_dir: path(scene.vms()),
            fleecing_dir: Some(path(scene.fleecing())),
        };
        let root = NewCredential { private_key: Some(key), ..credential(ROOT_KEY, "root", Elevation::None) };
        // An account of the testbed's guests: testbed/guest/accounts.sh.
        let sudo =
            NewCredential { password: Some("lull-test".into()), ..credential(SUDO_PASSWORD, "admin", Elevation::Sudo) };
        let repository = NewRepository { name: "local".to_string(), path: path(scene.repository()) };
        let job = NewJob {
            name: JOB.to_string(),
            vms: vec![GUEST.to_string()],
            repository: "local".to_string(),
            guest: GuestSettings::default(),
            ..NewJob::default()
        };
        let reach = VmChange {
            addresses: Some(vec!["127.0.0.1".to_string()]),
            connect: Some(format!("127.0.0.1:{}", scene.ssh_port()?)),
            credential: Some(ROOT_KEY.to_string()),
            guest_os: None,
        };
        self.client.post::<Host>("/hosts", &host).await?;
        self.client.post::<Credential>("/credentials", &root).await?;
        self.client.post::<Credential>("/credentials", &sudo).await?;
        self.client.patch::<Vm>(&format!("/vms/{GUEST}"), &reach).await?;
        self.client.post::<Repository>("/repositories", &repository).await?;
        self.client.post::<SavedJob>("/jobs", &job).await?;
        Ok(())
    }

    /// Lets the guest's tasks log in with another credential.
    ///
    /// # Errors
    /// What the server says.
    pub async fn use_credential(&self, name: &str) -> Result<()> {
        let change = VmChange { credential: Some(name.to_string()), ..VmChange::default() };
        self.client.patch::<Vm>(&format!("/vms/{GUEST}"), &change).await?;
        Ok(())
    }

    /// Runs the job `bench` to its end; see [`LullServer::run`].
    ///
    /// # Errors
    /// As there.
    pub async fn run_job(&self) -> Result<Finished> {
        self.run(JOB).await
    }

    /// Runs a job to its end.
    ///
    /// # Errors
    /// When it cannot be run or followed. That it failed is no error.
    pub async fn run(&self, job: &str) -> Result<Finished> {
        let session: Session = self.client.post(&format!("/jobs/{job}/run"), &()).await?;
        self.to_its_end(session).await
    }

    /// The most memory that the server ever had resident, in MiB: the kernel's own account.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn memory_mib(&self) -> Result<f64> {
        let file = format!("/proc/{}/status", self.process.id().context("the backup server has ended")?);
        let status = std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let kib: f64 = peak.context("the kernel does not tell VmHWM")?.trim().parse()?;
        Ok(kib / 1_024.0)
    }

    /// Runs *Test now* on the guest to its end.
    ///
    /// # Errors
    /// As [`LullServer::run_job`].
    pub async fn test_guest(&self) -> Result<Finished> {
        let session: Session = self.client.post(&format!("/vms/{GUEST}/test"), &()).await?;
        self.to_its_end(session).await
    }

    /// A restore point.
    ///
    /// # Errors
    /// What the server says.
    pub async fn restore_point(&self, id: &str) -> Result<RestorePoint> {
        Ok(self.client.get(&format!("/restore-points/{id}")).await?)
    }

    /// Keeps this restore point and what it builds on, and removes all others, as retention would: the newest is what the
    /// next backup builds on.
    ///
    /// # Errors
    /// What the server says.
    pub async fn keep_only(&mut self, id: String) -> Result<()> {
        if self.restore_point(&id).await?.parent.is_none() {
            // The newest first: what others build on cannot go.
            while let Some(former) = self.chain.pop() {
                self.client.delete(&format!("/restore-points/{former}")).await?;
            }
        }
        self.chain.push(id);
        Ok(())
    }

    /// The server's last words, for an error that needs them.
    pub fn last_words(&mut self) -> String {
        match self.process.still_runs(&self.log) {
            Ok(()) => format!("the backup server's last words: {}", tail_of_file(&self.log)),
            Err(error) => format!("{error:#}"),
        }
    }

    async fn to_its_end(&self, session: Session) -> Result<Finished> {
        let id = session.summary.id;
        let follow = async {
            let mut events = Vec::new();
            let mut stream = pin!(self.client.events(id, 0));
            while let Some(event) = stream.next().await {
                let event = event?;
                let last = matches!(event.event, EventKind::SessionFinished { .. });
                if event.seq != 0 {
                    events.push(event);
                }
                if last {
                    break;
                }
            }
            let session = self.client.get(&format!("/sessions/{id}")).await?;
            anyhow::Ok(Finished { session, events })
        };
        tokio::time::timeout(SESSION_LIMIT, follow)
            .await
            .with_context(|| format!("session {id} is not over after {} s", SESSION_LIMIT.as_secs()))?
            .with_context(|| format!("following session {id}"))
    }
}

fn credential(name: &str, user: &str, elevation: Elevation) -> NewCredential {
    NewCredential {
        name: name.to_string(),
        user: user.to_string(),
        password: None,
        private_key: None,
        passphrase: None,
        elevation,
        elevation_password: None,
    }
}

/// The address in what a starting server says: `… http://127.0.0.1:PORT …`, whole once something follows it.
fn address_in(said: &str) -> Option<String> {
    let from = &said[said.find("http://127.0.0.1:")?..];
    let end = from.char_indices().skip("http://127.0.0.1:".len()).find(|(_, c)| !c.is_ascii_digit())?.0;
    Some(from[..end].to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_where_it_listens() {
        let address = Some("http://127.0.0.1:7420".to_string());
        assert_eq!(address_in("lull 0.1.0 answers on http://127.0.0.1:7420\n"), address);
        assert_eq!(address_in("a\nb http://127.0.0.1:7420/ c"), address);
        assert_eq!(address_in("half a line: http://127.0.0.1:74"), None);
        assert_eq!(address_in("nothing yet"), None);
    }
}

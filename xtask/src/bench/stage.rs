//! What a bench stands on: a folder of its own, a guest of the testbed in it, a backup server that knows the guest.
//!
//! Dropping it ends the load, then the server, then the guests, and removes the folder.

use super::arguments::Arguments;
use super::lull_server::{self, LullServer};
use super::running::Running;
use super::testbed::Testbed;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the guest.
pub const GUEST: &str = "pg";
/// Longest path of a folder in which `vms/pg.qmp` and the like still fit a socket's 107 bytes.
const FOLDER_BYTES_MAX: usize = 85;

/// A guest under (or without) load and a backup server. Fields end in this order.
pub struct Stage {
    load: Option<Running>,
    /// The backup server; it knows the guest and has the job `bench`.
    pub server: LullServer,
    /// Folders, and the guests in them.
    pub scene: Scene,
}

impl Stage {
    /// Builds Lull where no binary is named, boots the guest, starts a server and makes the guest known to it.
    ///
    /// # Errors
    /// What the testbed, cargo or the server say.
    pub async fn set_up(arguments: &Arguments) -> Result<Stage> {
        let binary = lull_server::binary(arguments).await?;
        let scene = Scene::new(Testbed::of_this_checkout()?)?;
        let image = scene.testbed.image("pg").await?;
        scene.testbed.start(GUEST, &image, &scene.vms()).await?;
        let server = LullServer::start(&binary, &scene, "none").await?;
        server.add_everything(&scene).await?;
        Ok(Stage { load: None, server, scene })
    }

    /// Puts the guest under a pgbench write load for at most so long, and waits until it commits.
    ///
    /// # Errors
    /// When it does not start to commit.
    pub async fn put_under_load(&mut self, at_most: Duration) -> Result<()> {
        let scene = &self.scene;
        let mut load = scene.testbed.load(GUEST, &scene.vms(), at_most.as_secs(), &scene.load_log())?;
        let before = self.transactions().await?;
        while self.transactions().await? == before {
            load.still_runs(&scene.load_log())?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.load = Some(load);
        Ok(())
    }

    /// Fails when the load has ended: what is measured without it does not count.
    ///
    /// # Errors
    /// With the load's last words.
    pub fn load_goes_on(&mut self) -> Result<()> {
        self.load.as_mut().context("there is no load")?.still_runs(&self.scene.load_log())
    }

    /// Transactions that pgbench has committed so far.
    ///
    /// # Errors
    /// When PostgreSQL does not answer.
    pub async fn transactions(&self) -> Result<u64> {
        let answer = self.scene.psql("SELECT count(*) FROM pgbench_history").await?;
        answer.trim().parse().with_context(|| format!("PostgreSQL answered {answer:?}"))
    }
}

/// Folders of one bench. The guests in them are stopped and all is removed when the value is dropped.
pub struct Scene {
    /// The testbed's scripts.
    pub testbed: Testbed,
    folder: PathBuf,
}

impl Scene {
    /// Makes the folders: below the testbed's, or below /var/tmp where that path would be too long for sockets.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new(testbed: Testbed) -> Result<Scene> {
        let pid = std::process::id();
        let mut folder = testbed.folder().join(format!("bench/{pid}"));
        if folder.as_os_str().len() > FOLDER_BYTES_MAX {
            folder = PathBuf::from(format!("/var/tmp/lull-bench-{pid}"));
        }
        let scene = Scene { testbed, folder };
        for part in ["state", "repository", "fleecing", "vms", "clones", "peer/repository", "peer/fleecing"] {
            let part = scene.folder.join(part);
            std::fs::create_dir_all(&part).with_context(|| format!("creating {}", part.display()))?;
        }
        Ok(scene)
    }

    /// The server's state.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Lull's repository.
    pub fn repository(&self) -> PathBuf {
        self.folder.join("repository")
    }

    /// Lull's fleecing images.
    pub fn fleecing(&self) -> PathBuf {
        self.folder.join("fleecing")
    }

    /// The guests' sockets and disks.
    pub fn vms(&self) -> PathBuf {
        self.folder.join("vms")
    }

    /// Folders of hosts and proxies of a fleet.
    pub fn hosts(&self) -> PathBuf {
        self.folder.join("hosts")
    }

    /// Clones of restore points.
    pub fn clones(&self) -> PathBuf {
        self.folder.join("clones")
    }

    /// The peer's repository.
    pub fn peer_repository(&self) -> PathBuf {
        self.folder.join("peer/repository")
    }

    /// The peer's fleecing images.
    pub fn peer_fleecing(&self) -> PathBuf {
        self.folder.join("peer/fleecing")
    }

    /// What the server prints and logs.
    pub fn server_log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    fn load_log(&self) -> PathBuf {
        self.folder.join("load.log")
    }

    /// Where the guest's SSH is forwarded to, on 127.0.0.1.
    ///
    /// # Errors
    /// When the guest was not started.
    pub fn ssh_port(&self) -> Result<u16> {
        let file = self.vms().join(format!("{GUEST}.port"));
        let port = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        port.trim().parse().with_context(|| format!("{} holds {port:?}", file.display()))
    }

    /// Asks the guest's PostgreSQL over a login of its own.
    ///
    /// # Errors
    /// When the login or the query fails.
    pub async fn psql(&self, query: &str) -> Result<String> {
        let command = format!("cd / && runuser -u postgres -- psql -XAt -d pgbench -c '{query}'");
        self.testbed.ssh(GUEST, &self.vms(), &command).await
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.testbed.stop_all_now(&self.clones());
        self.testbed.stop_all_now(&self.vms());
        remove(&self.folder);
    }
}

/// Removes a folder, or says that it is left.
pub fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        eprintln!("{} is left behind: {error}", folder.display());
    }
}

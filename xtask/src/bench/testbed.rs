//! The scripts of the testbed, as the benches use them: build a guest, boot it, load it, look into it.
//!
//! Knows the scripts' command lines; knows nothing of Lull.

use super::running::{Running, captured, output};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// The checkout's testbed, and where its images and keys lie.
#[derive(Debug, Clone)]
pub struct Testbed {
    scripts: PathBuf,
    folder: PathBuf,
}

/// What `pg-check.sh` found.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PostgresCheck {
    /// Whether all balances agree, and `pg_amcheck` found nothing where it was asked.
    pub ok: bool,
    /// Committed transactions.
    #[serde(default)]
    pub transactions: u64,
    /// Why it could not be checked.
    #[serde(default)]
    pub error: Option<String>,
}

impl Testbed {
    /// The testbed of this checkout; its folder is `$LULL_TESTBED` or `.testbed`.
    ///
    /// # Errors
    /// When the current folder is not known.
    pub fn of_this_checkout() -> Result<Testbed> {
        let checkout = checkout()?;
        let folder = match std::env::var_os("LULL_TESTBED") {
            Some(folder) => std::path::absolute(folder).context("LULL_TESTBED")?,
            None => checkout.join(".testbed"),
        };
        Ok(Testbed { scripts: checkout.join("testbed"), folder })
    }

    /// Everything the testbed builds and runs lies below it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The private key that opens every guest.
    pub fn key(&self) -> PathBuf {
        self.folder.join("keys/id_test")
    }

    fn script(&self, name: &str) -> Command {
        self.std_script(name).into()
    }

    fn std_script(&self, name: &str) -> std::process::Command {
        let mut command = std::process::Command::new(self.scripts.join(name));
        command.env("LULL_TESTBED", &self.folder);
        command
    }

    /// Path of a variant's image, built where it is missing.
    ///
    /// # Errors
    /// What the script says.
    pub async fn image(&self, variant: &str) -> Result<PathBuf> {
        let printed = output(self.script("guest/build.sh").arg(variant), "building the guest").await?;
        Ok(PathBuf::from(printed.lines().last().context("building the guest printed no path")?))
    }

    /// Boots a guest and waits for a login.
    ///
    /// # Errors
    /// What the script says.
    pub async fn start(&self, name: &str, image: &Path, dir: &Path) -> Result<()> {
        let mut command = self.script("guest/vm.sh");
        command.args(["start", name, "--wait", "--image"]).arg(image).arg("--dir").arg(dir);
        // QEMU inherits nothing of ours: its own output goes to its log.
        output(&mut command, "booting the guest").await.map(drop)
    }

    /// Boots a restore point as an isolated clone, and waits for a login.
    ///
    /// # Errors
    /// What the script says.
    pub async fn boot_restore(&self, name: &str, image: &Path, dir: &Path) -> Result<()> {
        let mut command = self.script("guest/vm.sh");
        command.arg("boot-restore").arg(image).args(["--name", name, "--wait", "--dir"]).arg(dir);
        output(&mut command, "booting the clone").await.map(drop)
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// What the script says.
    pub async fn stop(&self, name: &str, dir: &Path) -> Result<()> {
        output(self.script("guest/vm.sh").args(["stop", name, "--dir"]).arg(dir), "stopping the guest").await.map(drop)
    }

    /// Pulls the plug of all guests in `dir`, without an async runtime: for the end.
    pub fn stop_all_now(&self, dir: &Path) {
        use std::os::unix::process::CommandExt;
        if !dir.exists() {
            return;
        }
        let mut command = self.std_script("guest/vm.sh");
        command.args(["stop", "--all", "--dir"]).arg(dir);
        match command.process_group(0).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("stopping guests: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => eprintln!("stopping guests: {error}"),
        }
    }

    /// Runs a command in a guest as root over a login of its own.
    ///
    /// # Errors
    /// When the login or the command fails.
    pub async fn ssh(&self, name: &str, dir: &Path, command: &str) -> Result<String> {
        let mut script = self.script("guest/vm.sh");
        output(script.args(["ssh", name, "--dir"]).arg(dir).args(["--", command]), "a command in the guest").await
    }

    /// A pgbench write load in a guest, for at most so many seconds, with its words in `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn load(&self, name: &str, dir: &Path, seconds: u64, log: &Path) -> Result<Running> {
        let words = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = self.script("load.sh");
        command.arg(name).arg("--dir").arg(dir).args(["--seconds", &seconds.to_string()]);
        command.stdout(words.try_clone()?).stderr(words);
        Running::start(&mut command, "the load", Duration::from_secs(2))
    }

    /// Compares pgbench's balances in a guest and has every table and index verified.
    ///
    /// # Errors
    /// When the script prints something else than its line of JSON. That PostgreSQL is unwell is no error.
    pub async fn check_postgres(&self, name: &str, dir: &Path) -> Result<PostgresCheck> {
        let mut command = self.script("pg-check.sh");
        command.arg(name).arg("--dir").arg(dir).arg("--amcheck");
        let (status, out, err) = captured(&mut command, "checking PostgreSQL").await?;
        let Some(line) = out.lines().last() else { bail!("checking PostgreSQL: {status}: {}", err.trim()) };
        serde_json::from_str(line).with_context(|| format!("checking PostgreSQL printed {line:?}"))
    }
}

/// Where this checkout lies.
///
/// # Errors
/// When the program was built in a folder without a parent.
pub fn checkout() -> Result<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the checkout")?;
    Ok(checkout.to_path_buf())
}

//! `lull doctor`: what is wrong, seen from here and by the server.

use crate::calls;
use crate::cli::Global;
use crate::connection;
use crate::exit::Exit;
use crate::render::infrastructure;
use crate::screen::Screen;
use crate::trouble::Result;
use lull_api::infrastructure::Finding;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

/// Looks, and shows what was found. Ends with 1 if something is wrong, with 6 if something is worth a look.
pub async fn run(global: &Global, screen: &Screen) -> Result<u8> {
    let mut findings = vec![
        finding("this program", "ok", format!("lull {}", env!("CARGO_PKG_VERSION")), None),
        state_dir(&connection::state_dir(global)),
        token_file(&connection::token_file(global)),
        qemu_img().await,
    ];
    findings.extend(server(global).await);
    screen.show(&findings, |findings, look| infrastructure::findings(findings, look))?;
    let has = |state: &str| findings.iter().any(|finding| finding.state == state);
    let exit = match (has("error"), has("warning")) {
        (true, _) => Exit::Failed,
        (false, true) => Exit::Warning,
        (false, false) => Exit::Ok,
    };
    Ok(exit as u8)
}

fn finding(subject: &str, state: &str, text: impl Into<String>, remedy: Option<&str>) -> Finding {
    Finding { subject: subject.into(), state: state.into(), text: text.into(), remedy: remedy.map(str::to_string) }
}

fn state_dir(path: &Path) -> Finding {
    let subject = "state folder";
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(folder) if !folder.is_dir() => {
            finding(subject, "error", format!("{shown} is no folder"), Some("name another one with --state-dir"))
        }
        Ok(folder) if folder.mode() & 0o077 != 0 => finding(
            subject,
            "error",
            format!(
                "{shown} is open to other accounts (mode {:o}); it holds the key to every secret",
                folder.mode() & 0o777
            ),
            Some(&format!("chmod 700 {shown}")),
        ),
        Ok(_) => finding(subject, "ok", format!("{shown}, mode 700"), None),
        Err(error) => finding(
            subject,
            "warning",
            format!("{shown}: {error}"),
            Some(
                "where the server runs on another machine this is as it should be; else start `lull server`, or name its folder with --state-dir",
            ),
        ),
    }
}

fn token_file(path: &Path) -> Finding {
    let subject = "token";
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(file) if file.mode() & 0o077 != 0 => finding(
            subject,
            "error",
            format!("{shown} can be read by other accounts (mode {:o})", file.mode() & 0o777),
            Some(&format!("chmod 600 {shown}")),
        ),
        Ok(_) => finding(subject, "ok", format!("{shown}, for this account only"), None),
        Err(error) => finding(
            subject,
            "error",
            format!("{shown}: {error}"),
            Some("start `lull server` once to make it, or name it with --token-file or LULL_TOKEN_FILE"),
        ),
    }
}

async fn qemu_img() -> Finding {
    let subject = "qemu-img";
    let missing = "apt-get install qemu-utils (the server needs it to verify restore points)";
    let command = tokio::process::Command::new("qemu-img").arg("--version").stdin(Stdio::null()).output().await;
    match command {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            finding(subject, "ok", text.lines().next().unwrap_or_default(), None)
        }
        Ok(output) => {
            finding(subject, "error", format!("`qemu-img --version` ended with {}", output.status), Some(missing))
        }
        Err(error) => finding(subject, "warning", format!("it cannot be started here: {error}"), Some(missing)),
    }
}

/// What the server says of itself; that it cannot be asked is a finding too.
async fn server(global: &Global) -> Vec<Finding> {
    match ask_server(global).await {
        Ok(findings) => findings,
        Err(trouble) => {
            let problem = trouble.problem.map(|problem| *problem);
            let (what, why, remedy) = problem.map_or((String::new(), None, None), |p| (p.what, p.why, p.remedy));
            let text = why.map_or(what.clone(), |why| format!("{what}: {why}"));
            vec![finding("server", "error", text, remedy.as_deref())]
        }
    }
}

async fn ask_server(global: &Global) -> Result<Vec<Finding>> {
    let client = connection::connect(global)?;
    let status = calls::status(&client).await?;
    let here = env!("CARGO_PKG_VERSION");
    let at = client.server();
    let tasks = status.running_tasks;
    let mut findings = vec![if status.version == here {
        finding(
            "server",
            "ok",
            format!("{at}, version {here}, since {}, {tasks} tasks running", status.started_at),
            None,
        )
    } else {
        finding(
            "server",
            "warning",
            format!("{at} has version {}, this program {here}", status.version),
            Some("use the same version on both sides"),
        )
    }];
    findings.extend(calls::doctor(&client).await?);
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn open_doors_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("admin-token");
        std::fs::write(&token, "t").unwrap();
        for (mode, state) in [(0o755, "error"), (0o700, "ok")] {
            set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(state_dir(folder.path()).state, state, "{mode:o}");
        }
        for (mode, state) in [(0o640, "error"), (0o600, "ok")] {
            set_permissions(&token, Permissions::from_mode(mode)).unwrap();
            assert_eq!(token_file(&token).state, state, "{mode:o}");
        }
        assert_eq!(token_file(&folder.path().join("none")).state, "error");
        assert_eq!(state_dir(&token).state, "error");
    }
}

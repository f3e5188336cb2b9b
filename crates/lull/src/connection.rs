//! Which server to talk to, and with which token.
//!
//! Knows the environment and the state folder; knows nothing of the calls.

use crate::cli::Global;
use crate::exit::Exit;
use crate::trouble::{Result, Trouble};
use lull_api::Client;
use std::io;
use std::path::{Path, PathBuf};

/// Where a server listens unless told otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7420";

/// A client for the server that the command line names.
pub fn connect(global: &Global) -> Result<Client> {
    let server = server_url(&global.server)?;
    let token = read_token(&token_file(global))?;
    Ok(Client::new(&server, &token)?)
}

/// File that holds the administrator's token: `--token-file`, `LULL_TOKEN_FILE`, or `admin-token` in the state folder. The variable is read
/// here, since `proxy join --token-file` is another token's.
pub fn token_file(global: &Global) -> PathBuf {
    let by_environment = || std::env::var_os("LULL_TOKEN_FILE").filter(|file| !file.is_empty()).map(PathBuf::from);
    global.token_file.clone().or_else(by_environment).unwrap_or_else(|| state_dir(global).join("admin-token"))
}

/// State folder: `--state-dir`, else `/var/lib/lull` for root, else `$XDG_STATE_HOME/lull`.
pub fn state_dir(global: &Global) -> PathBuf {
    global.state_dir.clone().unwrap_or_else(|| {
        default_state_dir(
            rustix::process::geteuid().is_root(),
            std::env::var_os("XDG_STATE_HOME").map(PathBuf::from),
            std::env::var_os("HOME").map(PathBuf::from),
        )
    })
}

fn default_state_dir(root: bool, xdg_state_home: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    if root {
        return PathBuf::from("/var/lib/lull");
    }
    xdg_state_home
        .filter(|path| path.is_absolute())
        .or_else(|| home.map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("lull")
}

/// `HOST:PORT` and `http(s)://HOST:PORT` both name a server.
fn server_url(given: &str) -> Result<String> {
    let url = if given.contains("://") { given.to_string() } else { format!("http://{given}") };
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match host.map(|host| host.trim_end_matches('/')) {
        Some(host) if !host.is_empty() && !host.contains(['/', ' ', '@', '?', '#']) => Ok(url),
        _ => Err(Trouble::usage(format!("`{given}` is no address of a server"))
            .remedy(format!("name it like {DEFAULT_SERVER} with --server or LULL_SERVER"))),
    }
}

fn read_token(file: &Path) -> Result<String> {
    let no_token = |why: String, remedy: &str| {
        let what = format!("no token to show to the server: {} could not be read", file.display());
        Err(Trouble::local(Exit::NotAuthenticated, "no-token", what).why(why).remedy(remedy))
    };
    match std::fs::read_to_string(file) {
        Ok(token) if token.trim().is_empty() => no_token("it is empty".into(), "start `lull server` once to make one"),
        Ok(token) if token.trim().chars().any(|c| !c.is_ascii_graphic()) => {
            no_token("it holds no token".into(), "name the right file with --token-file or LULL_TOKEN_FILE")
        }
        Ok(token) => Ok(token),
        Err(error) if error.kind() == io::ErrorKind::NotFound => no_token(
            "there is no such file".into(),
            "start `lull server` once to make it, or name it with --token-file, --state-dir or their variables",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => no_token(
            error.to_string(),
            "run as the account that runs the server, or name a token of your own with --token-file",
        ),
        Err(error) => no_token(error.to_string(), "name the right file with --token-file or LULL_TOKEN_FILE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_folder_follows_the_account() {
        let check = |root, xdg: Option<&str>, home: Option<&str>, expect: &str| {
            assert_eq!(default_state_dir(root, xdg.map(Into::into), home.map(Into::into)), PathBuf::from(expect));
        };
        check(true, Some("/x"), Some("/root"), "/var/lib/lull");
        check(false, Some("/x"), Some("/home/a"), "/x/lull");
        check(false, Some("relative"), Some("/home/a"), "/home/a/.local/state/lull");
        check(false, None, Some("/home/a"), "/home/a/.local/state/lull");
        check(false, None, None, "/var/lib/lull");
    }

    #[test]
    fn a_server_may_be_named_with_or_without_a_scheme() {
        assert_eq!(server_url("127.0.0.1:7420").unwrap(), "http://127.0.0.1:7420");
        assert_eq!(server_url("https://backup:7420/").unwrap(), "https://backup:7420/");
        for wrong in ["", "ftp://backup", "http://", "backup/api", "a b", "user@host:1"] {
            assert_eq!(server_url(wrong).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }
}

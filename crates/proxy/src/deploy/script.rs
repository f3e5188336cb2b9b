//! The shell scripts of the deployment, and what their lines mean. Pure text.
//!
//! Every script is one line for `/bin/sh`, safe under every login shell, and starts as few programs as it can: each costs
//! milliseconds in a busy guest.

use crate::channel::Script;

/// Where a component may go, best first: memory file systems, then what usually allows programs.
pub const FOLDERS: [&str; 9] =
    ["/run", "/dev/shm", "/tmp", "/var/tmp", "/root", "/var/lib", "/opt", "/usr/local", "/srv"];

/// Room beside the component itself, in bytes.
const SPARE_BYTES: usize = 64 * 1024;

/// One line of the script's report.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// `- FOLDER WHY`
    Refused { folder: String, why: String },
    /// `~ FOLDER`: something of an earlier task was removed.
    Swept(String),
    /// `i TEXT`
    Note(String),
    /// `+ FOLDER`
    Chosen(String),
    /// `=`: what follows is the component's.
    Started,
    /// None of these.
    Unknown,
}

pub(super) fn parse(line: &str) -> Line {
    let line = line.trim_end_matches(['\n', '\r']);
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    match kind {
        "-" => {
            let (folder, why) = rest.split_once(' ').unwrap_or((rest, "no reason given"));
            Line::Refused { folder: folder.into(), why: why.trim().into() }
        }
        "~" => Line::Swept(rest.into()),
        "i" => Line::Note(rest.into()),
        "+" => Line::Chosen(rest.into()),
        "=" => Line::Started,
        _ => Line::Unknown,
    }
}

/// Receives `bytes` bytes with this checksum on stdin and becomes them. `token` is 16 hexadecimal digits.
pub(super) fn deploy_script(token: &str, bytes: usize, sha256: &str) -> Script {
    let need = bytes + SPARE_BYTES;
    Script::new(
        "put the runtime component there",
        &format!(
            r#"umask 077; cd /; {sweep}
        f=;
        for d in {folders}; do
          w=$d/lull-{token};
          [ -d $d ] || {{ echo "- $d absent"; continue; }};
          set -- $(stat -f -c "%f %S" $d 2>/dev/null);
          if [ $# = 2 ] && [ $(($1 * $2)) -lt {need} ]; then echo "- $d no space ($(($1 * $2 / 1024)) KiB free, {need_kib} needed)"; continue; fi;
          if e=$(mkdir $w 2>&1); then :; else echo "- $d" ${{e##*: }}; continue; fi;
          if e=$({{ : >$w/p && chmod 700 $w/p && $w/p; }} 2>&1); then f=$w/lull-runtime; rm -f $w/p; break; fi;
          rm -rf $w;
          case $e in *denied*) echo "- $d noexec (programs are forbidden there)";; *) echo "- $d" ${{e##*: }};; esac;
        done;
        if [ -z "$f" ]; then exit 1; fi;
        echo "+ $w";
        if head -c {bytes} >$f; then :; else rm -rf $w; echo "- $d it could not be written"; exit 1; fi;
        s=$(sha256sum $f 2>/dev/null); s=${{s%% *}};
        if [ -z "$s" ]; then echo "i sha256sum is missing there: the connection alone vouches for the component"; s={sha256}; fi;
        if [ $s = {sha256} ]; then :; else rm -rf $w; echo "- $d what arrived is not what was sent (a full disk, or a shell profile that reads its input)"; exit 1; fi;
        chmod 700 $f && echo = && exec $f serve"#,
            sweep = sweep_text(),
            folders = FOLDERS.join(" "),
            need_kib = need / 1024,
        ),
    )
}

/// Removes what earlier tasks left: folders of ours, and a lock's folder that nobody holds. Idempotent.
pub fn sweep_script() -> Script {
    Script::new("remove what earlier tasks left", &sweep_text())
}

/// Our folders have 16 hexadecimal digits; `-O` sees to it that only root's are touched, and the link itself where
/// somebody put one.
fn sweep_text() -> String {
    let digits = "[0-9a-f]".repeat(16);
    let places = FOLDERS.map(|folder| format!("{folder}/lull-{digits}")).join(" ");
    format!(r#"for o in {places}; do if [ -O $o ]; then rm -rf $o && echo "~ $o"; fi; done;"#)
}

/// Removes the folder of one attempt.
pub(super) fn remove_script(token: &str) -> Script {
    let places = FOLDERS.map(|folder| format!("{folder}/lull-{token}")).join(" ");
    Script::new("remove what the failed deployment left", &format!("rm -rf {places}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(parse("- /run noexec (x)\n"), Line::Refused { folder: "/run".into(), why: "noexec (x)".into() });
        assert_eq!(parse("+ /dev/shm/lull-0\r\n"), Line::Chosen("/dev/shm/lull-0".into()));
        assert_eq!(parse("=\n"), Line::Started);
        assert_eq!(parse("Welcome to db1\n"), Line::Unknown);
    }

    #[test]
    fn the_scripts_are_safe_under_every_login_shell() {
        let script = deploy_script("00c0ffee00c0ffee", 1_500_000, &"a".repeat(64));
        assert!(script.text().contains("head -c 1500000"));
        sweep_script();
        remove_script("00c0ffee00c0ffee");
    }
}

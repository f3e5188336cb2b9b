//! The shell scripts of the deployment, and what their lines mean. Pure text.
//!
//! Every script is one line for `/bin/sh`, safe under every login shell, and starts as few programs as it can: each costs
//! milliseconds in a busy guest.

use crate::carried::Payload;
use crate::channel::Script;

/// Where a component may go, best first: memory file systems, then what usually allows programs.
pub const FOLDERS: [&str; 9] =
    ["/run", "/dev/shm", "/tmp", "/var/tmp", "/root", "/var/lib", "/opt", "/usr/local", "/srv"];

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
    /// `z`: there is no gzip.
    CannotUnpack,
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
        "z" => Line::CannotUnpack,
        "=" => Line::Started,
        _ => Line::Unknown,
    }
}

/// How the component travels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Transfer<'a> {
    /// As it is.
    Plain(&'a Payload),
    /// Packed by gzip.
    Packed(&'a Payload),
}

impl<'a> Transfer<'a> {
    /// What is sent.
    pub(super) fn payload(self) -> &'a Payload {
        match self {
            Transfer::Plain(payload) | Transfer::Packed(payload) => payload,
        }
    }
}

/// Receives the component on stdin, checks it, and becomes it, in the first of `folders` that takes it. `token` is 16
/// hexadecimal digits. A folder whose mount forbids programs is passed over; where something else forbids them (a mount above it,
/// a policy), the shell's last word says so and the caller tries the next ones: probing each folder would cost every task two
/// program starts.
pub(super) fn deploy_script(token: &str, folders: &[&str], transfer: Transfer<'_>) -> Script {
    let payload = transfer.payload();
    let (check, suffix, unpack) = match transfer {
        Transfer::Plain(_) => ("", "", ""),
        Transfer::Packed(_) => (
            "if command -v gzip >/dev/null; then :; else echo z; exit 1; fi;",
            ".gz",
            "if e=$(gzip -d $f.gz 2>&1); then :; else rm -rf $w; echo \"- $d it could not be unpacked:\" ${e##*: }; exit 1; fi;",
        ),
    };
    Script::new(
        "put the runtime component there",
        &format!(
            r#"umask 077; cd /; {check} {sweep}
        n=" ";
        while read -r a b c o x; do case ,$o, in *,noexec,*) n="$n$b ";; esac; done </proc/mounts;
        f=;
        for d in {folders}; do
          case $n in *" $d "*) echo "- $d noexec (programs are forbidden there)"; continue;; esac;
          w=$d/lull-{token};
          if e=$(mkdir $w 2>&1); then f=$w/lull-runtime; break; fi;
          echo "- $d" ${{e##*: }};
        done;
        if [ -z "$f" ]; then exit 1; fi;
        echo "+ $w";
        p=$f{suffix};
        if e=$({{ head -c {bytes} >$p && chmod 700 $p; }} 2>&1); then :; else rm -rf $w; echo "- $d" ${{e##*: }}; exit 1; fi;
        s=$(sha256sum $p 2>/dev/null); s=${{s%% *}};
        if [ -z "$s" ]; then echo "i sha256sum is missing there: the connection alone vouches for the component"; s={sha256}; fi;
        if [ $s = {sha256} ]; then :; else rm -rf $w; echo "- $d what arrived is not what was sent"; exit 1; fi;
        {unpack}
        echo = && exec $f serve"#,
            sweep = sweep_text(),
            folders = folders.join(" "),
            bytes = payload.bytes.len(),
            sha256 = payload.sha256,
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
        let payload = crate::carried::Image::new(vec![7; 1_500_000]).plain;
        for transfer in [Transfer::Plain(&payload), Transfer::Packed(&payload)] {
            let script = deploy_script("00c0ffee00c0ffee", &FOLDERS, transfer);
            assert!(script.text().contains("head -c 1500000"));
        }
        sweep_script();
        remove_script("00c0ffee00c0ffee");
    }
}

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

/// What a folder's name ends with: 16 hexadecimal digits, and the fence of the order where it has one.
pub(super) fn folder_suffix(token: &str, fence: u64) -> String {
    if fence == 0 { token.to_string() } else { format!("{token}.{fence}") }
}

/// Receives the component on stdin, checks it, and becomes it, in the first of `folders` that takes it, for an order of this
/// fence. `token` is 16 hexadecimal digits.
pub(super) fn deploy_script(token: &str, fence: u64, folders: &[&str], transfer: Transfer<'_>) -> Script {
    let token = &folder_suffix(token, fence);
    let (sweep, put) = (sweep_text(fence), put_text(token, &folders.join(" "), transfer));
    Script::new("put the runtime component there", &format!("{sweep} {put} echo = && exec $f serve"))
}

/// Receives the component on stdin and has it thaw what `words` say, shell words all; then it is gone. While a file system
/// is frozen nothing may be written there, so only memory file systems serve, and nothing is swept.
pub(super) fn thaw_script(token: &str, transfer: Transfer<'_>, words: &str) -> Script {
    let put = put_text(token, "$m", transfer);
    Script::new(
        "thaw with the component",
        &format!(
            r#"m=;
        while read -r a b c e; do case "$b $c" in "/run tmpfs"|"/dev/shm tmpfs") m="$m $b";; esac; done </proc/mounts;
        {put} echo =; $f thaw {words} 2>&1; rm -rf $w; exit 0"#
        ),
    )
}

/// Receives the component on stdin, into `$f`, in the first of `folders` that takes it. A folder whose mount forbids programs is
/// passed over; where something else forbids them (a mount above it, a policy), it shows when the component is started:
/// probing each folder would cost every task two program starts.
fn put_text(token: &str, folders: &str, transfer: Transfer<'_>) -> String {
    let payload = transfer.payload();
    let (check, suffix, unpack) = match transfer {
        Transfer::Plain(_) => ("", "", ""),
        Transfer::Packed(_) => (
            "if command -v gzip >/dev/null; then :; else echo z; exit 1; fi;",
            ".gz",
            "if e=$(gzip -d $f.gz 2>&1); then :; else rm -rf $w; echo \"- $d it could not be unpacked:\" ${e##*: }; exit 1; fi;",
        ),
    };
    format!(
        r#"umask 077; cd /; {check}
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
        {unpack}"#,
        bytes = payload.bytes.len(),
        sha256 = payload.sha256,
    )
}

/// Removes what earlier tasks left: folders of ours, but for those of newer orders than that of `fence`. Idempotent.
pub fn sweep_script(fence: u64) -> Script {
    Script::new("remove what earlier tasks left", &sweep_text(fence))
}

/// Our folders have 16 hexadecimal digits, and some a fence; `-O` sees to it that only root's are touched, and the link itself where
/// somebody put one. A newer order's component may be on its way in.
fn sweep_text(fence: u64) -> String {
    let digits = "[0-9a-f]".repeat(16);
    let places = FOLDERS.map(|folder| format!("{folder}/lull-{digits} {folder}/lull-{digits}.[0-9]*")).join(" ");
    let newer = match fence {
        0 => String::new(),
        fence => format!(r#"case $o in *.*) if [ "${{o##*.}}" -gt {fence} ]; then continue; fi;; esac;"#),
    };
    format!(r#"for o in {places}; do if [ -O $o ]; then {newer} rm -rf $o && echo "~ $o"; fi; done;"#)
}

/// Removes the folder of one attempt.
pub(super) fn remove_script(token: &str, fence: u64) -> Script {
    let suffix = folder_suffix(token, fence);
    let places = FOLDERS.map(|folder| format!("{folder}/lull-{suffix}")).join(" ");
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
            let script = deploy_script("00c0ffee00c0ffee", 17, &FOLDERS, transfer);
            assert!(script.text().contains("head -c 1500000") && script.text().contains("/lull-00c0ffee00c0ffee.17;"));
        }
        assert!(thaw_script("00c0ffee00c0ffee", Transfer::Plain(&payload), "/ /srv").text().contains("$f thaw / /srv"));
        sweep_script(0);
        sweep_script(17);
        remove_script("00c0ffee00c0ffee", 17);
    }
}

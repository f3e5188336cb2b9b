//! The shell scripts that look at a machine, and that change it. Pure text.
//!
//! Those that bring the program on their stdin are one line, safe under every login shell; all others come on the stdin of a plain
//! `/bin/sh`, and so does every secret: nothing of it is ever an argument, a variable of the environment or a file.

use super::unit::{PROGRAM, PROGRAM_FOLDER, STATE, STATE_PRIVATE, UNIT, UNIT_FILE};
use crate::channel::Script;

/// What each script on stdin begins with.
const HEAD: &str =
    "export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; umask 077; cd /\n";
/// The program, while it is not tried yet, and the one before it.
const PROGRAM_NEW: &str = "/usr/local/lib/lull/bin/lull.new";
const PROGRAM_BEFORE: &str = "/usr/local/lib/lull/bin/lull.before";

/// A shell that reads its script from stdin.
pub(super) fn shell(purpose: &'static str) -> Script {
    Script::new(purpose, "exec /bin/sh")
}

/// A whole script for [`shell`]: read to its end before it begins, with nothing on its own stdin.
fn whole(body: &str) -> String {
    format!("{HEAD}main() {{\n{body}\n}}\nmain </dev/null\nexit $?\n")
}

/// `text` as one word.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Looks; changes nothing. Lines `KEY VALUE`, see [`super::facts`].
pub(super) fn look(folders: &[String]) -> String {
    let folders: String = folders.iter().map(|f| format!("[ -d {0} ] && say folder {0}\n", quoted(f))).collect();
    whole(&format!(
        r#"say() {{ printf '%s %s\n' "$1" "$2"; }}
say os "$(uname -s)"
say arch "$(uname -m)"
say hostname "$(uname -n)"
say clock "$(date +%s)"
[ -r /etc/os-release ] && ( . /etc/os-release; say distribution "$PRETTY_NAME" )
if [ -d /run/systemd/system ] && command -v systemctl >/dev/null; then
  say systemd "$(systemctl --version | head -n 1 | cut -d' ' -f2)"
fi
for place in {PROGRAM_FOLDER} {STATE}{etc}; do
  at=$place
  while [ ! -d "$at" ]; do at=$(dirname "$at"); done
  say space "$place $(df -Pk "$at" | tail -n 1 | while read -r a b c free rest; do echo "$free"; done) $at"
  [ -w "$at" ] || say readonly "$at"
  case ,$(while read -r a mount c options x; do [ "$mount" = "$at" ] && echo "$options"; done </proc/mounts), in
    *,noexec,*) say noexec "$at";;
  esac
done
for path in {PROGRAM_FOLDER} {STATE} {UNIT_FILE}; do
  if [ -e $path ] || [ -L $path ]; then say ours "$path"; fi
done
if [ -f {STATE}/proxy/identity.json ]; then
  say joined "$(sed -n 's/^ *"name": "\(.*\)",*$/\1/p' {STATE}/proxy/identity.json | head -n 1)"
fi
for p in /proc/[0-9]*; do
  case "$(readlink $p/exe 2>/dev/null)" in {PROGRAM_FOLDER}/*) say running "${{p#/proc/}}";; esac
done
{folders}true"#,
        etc = " /etc/systemd/system"
    ))
}

/// Receives the program on stdin, into the first folder that lets it be started, has it tell its version and try the way to the backup
/// server, and removes it. Lines: `- FOLDER WHY`, `version CODE TEXT`, `probe CODE TEXT`. `token`: 16 hexadecimal digits; `server` and
/// `authority` need no quoting.
pub(super) fn trial(token: &str, bytes: usize, sha256: &str, server: &str, authority: &str) -> Script {
    Script::new(
        "try the program there",
        &format!(
            r#"umask 077; cd /;
            n=" ";
            while read -r a b c o x; do case ,$o, in *,noexec,*) n="$n$b ";; esac; done </proc/mounts;
            w=;
            for d in /var/tmp /tmp /root /run /dev/shm; do
              case $n in *" $d "*) echo "- $d noexec"; continue;; esac;
              w=$d/lull-{token};
              if e=$(mkdir $w 2>&1); then break; fi;
              w=; echo "- $d" ${{e##*: }};
            done;
            if [ -z "$w" ]; then exit 1; fi;
            if e=$({{ head -c {bytes} >$w/lull && chmod 700 $w/lull; }} 2>&1); then :; else rm -rf $w; echo "- $d" ${{e##*: }}; exit 1; fi;
            s=$(sha256sum $w/lull 2>/dev/null); s=${{s%% *}};
            if [ "${{s:-{sha256}}}" = {sha256} ]; then :; else rm -rf $w; echo "- $d what arrived is not what was sent"; exit 1; fi;
            v=$($w/lull --version 2>&1 </dev/null); echo version $? $v;
            p=$($w/lull proxy probe {server} --authority {authority} 2>&1 </dev/null); echo probe $? $p;
            rm -rf $w"#
        ),
    )
}

/// Receives the program on stdin, beside the one that is there, checks it and has it tell its version. Lines: `failed WHY`, `version CODE TEXT`.
pub(super) fn put_program(bytes: usize, sha256: &str) -> Script {
    Script::new(
        "put the program there",
        &format!(
            r#"umask 022; cd /; p={PROGRAM_NEW};
            if e=$({{ mkdir -p {PROGRAM_FOLDER}/bin && head -c {bytes} >$p && chmod 755 $p; }} 2>&1); then :; else rm -f $p; echo failed ${{e##*: }}; exit 1; fi;
            s=$(sha256sum $p 2>/dev/null); s=${{s%% *}};
            if [ "${{s:-{sha256}}}" = {sha256} ]; then :; else rm -f $p; echo failed what arrived is not what was sent; exit 1; fi;
            if command -v restorecon >/dev/null; then restorecon -R {PROGRAM_FOLDER}; fi;
            v=$($p --version 2>&1 </dev/null); c=$?; if [ $c -ne 0 ]; then rm -f $p; fi; echo version $c $v"#
        ),
    )
}

/// The new program takes the place of the old one, which is kept.
pub(super) fn swap_program() -> String {
    whole(&format!("[ ! -e {PROGRAM} ] || ln -f {PROGRAM} {PROGRAM_BEFORE} || return 1\nmv -f {PROGRAM_NEW} {PROGRAM}"))
}

/// The old program takes its place again.
pub(super) fn swap_back() -> String {
    whole(&format!("mv -f {PROGRAM_BEFORE} {PROGRAM} && {}", restart_lines()))
}

/// The old program goes.
pub(super) fn forget_before() -> String {
    whole(&format!("rm -f {PROGRAM_BEFORE} {PROGRAM_NEW}"))
}

/// Ends what runs, and makes the state folder with a new identity in it. The token is in this script and nowhere else.
pub(super) fn join(server: &str, token: &str) -> String {
    whole(&format!(
        "{stop}\nrm -rf {STATE} {STATE_PRIVATE} && mkdir -m 700 {STATE} || return 1\n\
         printf '%s\\n' {token} | {PROGRAM} --state-dir {STATE} proxy join {server} --token-stdin 2>&1",
        stop = stop_lines(),
        server = quoted(server),
        token = quoted(token),
    ))
}

/// Writes the unit, and has systemd start it now and at each boot.
pub(super) fn start_service(unit_file: &str) -> String {
    whole(&format!(
        "{{ printf '%s' {unit} >{UNIT_FILE}.new && chmod 644 {UNIT_FILE}.new && mv -f {UNIT_FILE}.new {UNIT_FILE}; }} 2>&1 || return 1\n\
         if command -v restorecon >/dev/null; then restorecon {UNIT_FILE}; fi\n\
         systemctl daemon-reload 2>&1 && systemctl enable {UNIT} 2>&1 && {}",
        restart_lines(),
        unit = quoted(unit_file),
    ))
}

/// Starts the unit anew; it must still run after some seconds.
pub(super) fn restart_service() -> String {
    whole(&restart_lines())
}

fn restart_lines() -> String {
    format!(
        "systemctl restart {UNIT} 2>&1 || {{ journalctl -u {UNIT} -n 5 --no-pager -o cat 2>&1; return 1; }}\n\
         for second in 1 2 3; do\n\
           sleep 1\n\
           systemctl --quiet is-active {UNIT} || {{ journalctl -u {UNIT} -n 5 --no-pager -o cat 2>&1; return 1; }}\n\
         done"
    )
}

/// Ends the proxy, however it was started.
/// Where there is no unit the watcher alone is asked to end: it hands that on, and a worker that hears it twice undoes nothing more.
fn stop_lines() -> String {
    format!(
        r#"if [ -d /run/systemd/system ] && [ -e {UNIT_FILE} ]; then systemctl stop {UNIT}; fi
ours() {{ for p in /proc/[0-9]*; do case "$(readlink $p/exe 2>/dev/null)" in {PROGRAM_FOLDER}/*) echo ${{p#/proc/}};; esac; done; }}
all=" $(ours | tr '\n' ' ')"
for p in $all; do
  case "$all" in *" $(sed -n 's/^PPid:[[:space:]]*//p' /proc/$p/status 2>/dev/null) "*) ;; *) kill $p 2>/dev/null ;; esac
done
n=0
while [ -n "$(ours)" ] && [ $n -lt 120 ]; do sleep 1; n=$((n + 1)); done
kill -9 $(ours) 2>/dev/null"#
    )
}

/// Removes all of it. What is still there then: lines `left PATH`.
pub(super) fn remove() -> String {
    whole(&format!(
        r#"{stop}
if [ -d /run/systemd/system ]; then
  [ ! -e {UNIT_FILE} ] || systemctl --quiet disable {UNIT}
  rm -rf {UNIT_FILE} {UNIT_FILE}.new {UNIT_FILE}.d
  systemctl daemon-reload
  systemctl reset-failed {UNIT} 2>/dev/null
fi
rm -rf {PROGRAM_FOLDER} {STATE} {STATE_PRIVATE}
rmdir /var/lib/private 2>/dev/null
for path in {UNIT_FILE} {PROGRAM_FOLDER} {STATE} {STATE_PRIVATE}; do
  if [ -e $path ] || [ -L $path ]; then echo "left $path"; fi
done
for p in $(ours); do echo "left process $p"; done
true"#,
        stop = stop_lines(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn every_script_is_one_that_a_shell_reads() {
        let hash = "a".repeat(64);
        let scripts = [
            look(&["/run/it's".into()]),
            swap_program(),
            swap_back(),
            forget_before(),
            join("backup.example:7421", "lull1-00"),
            start_service("[Unit]\nDescription=it's\n"),
            restart_service(),
            remove(),
            trial("00c0ffee00c0ffee", 9, &hash, "[::1]:7421", &hash).text().to_string(),
            put_program(9, &hash).text().to_string(),
        ];
        for script in scripts {
            let checked = Command::new("sh").args(["-n", "-c", &script]).output().unwrap();
            assert!(checked.status.success(), "{script}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }

    #[test]
    fn a_word_is_a_word_whatever_is_in_it() {
        let said =
            Command::new("sh").args(["-c", &format!("printf %s {}", quoted("a'b $(x) \\ \"c\""))]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "a'b $(x) \\ \"c\"");
    }

    #[test]
    fn a_look_tells_what_the_machine_is() {
        let said = Command::new("sh").args(["-c", &look(&["/proc".into(), "/not there".into()])]).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout);
        for line in ["os Linux\n", "folder /proc\n", "space /usr/local/lib/lull "] {
            assert!(said.contains(line), "{line}: {said}");
        }
        assert!(!said.contains("not there"), "{said}");
    }
}

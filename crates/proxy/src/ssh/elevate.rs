//! Becoming root through whatever shell the account has: the command to send, and what to make of the answers.
//!
//! Pure: bytes in, actions out; knows nothing of connections. The rule that shapes it: **a password is sent once, and only
//! to a prompt that was asked for**. A second prompt means refused, and the caller hangs up instead of answering.
//!
//! ```text
//!   Begun ── prompt ──► Asked ── sentinel ──► Elevated (all stdout after it is the script's)
//!     │                   └───── prompt ────► Refused
//!     └── sentinel (no password wanted) ────► Elevated
//! ```

use crate::access::Elevation;
use crate::channel::{ChannelError, Exit, FailureKind, Hop, Script, Tail};
use secrecy::SecretString;

/// Noise before the sentinel beyond this is an error, in bytes.
const NOISE_BYTES_MAX: usize = 1 << 20;

/// What the caller must do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Read on.
    Wait,
    /// Send the password and a line break; happens once.
    SendPassword,
    /// The script runs as root. These bytes of stdout came after the sentinel.
    Elevated(Vec<u8>),
    /// Hang up at once. Why, in words.
    Refused(String),
}

/// One attempt to become root.
pub struct Elevator {
    user: String,
    method: Method,
    sentinel: Vec<u8>,
    not_root: Vec<u8>,
    /// Recent stdout, as far as a sentinel could still begin in it.
    stdout: Vec<u8>,
    noise_bytes: usize,
    /// Stderr since the last prompt.
    stderr: Vec<u8>,
    asked: bool,
    /// The same password was accepted over the same connection.
    accepted_before: bool,
    tail: Tail,
}

enum Method {
    Root,
    Sudo { prompt: Vec<u8>, password: Option<SecretString> },
    Su { marker: Vec<u8>, begun: bool, password: SecretString },
}

impl Elevator {
    /// An attempt for `user` by `elevation`; `nonce` must be fresh and hexadecimal. Noise and stderr go to `tail`.
    pub fn new(user: &str, elevation: &Elevation, nonce: &str, tail: Tail) -> Self {
        let method = match elevation {
            Elevation::None => Method::Root,
            Elevation::Sudo(password) => {
                Method::Sudo { prompt: format!("lull-{nonce}-password:").into(), password: password.clone() }
            }
            Elevation::Su(password) => {
                Method::Su { marker: format!("su:{nonce}\n").into(), begun: false, password: password.clone() }
            }
        };
        Elevator {
            user: user.into(),
            method,
            sentinel: format!("begin:{nonce}\n").into(),
            not_root: format!("notroot:{nonce}\n").into(),
            stdout: Vec::new(),
            noise_bytes: 0,
            stderr: Vec::new(),
            asked: false,
            accepted_before: false,
            tail,
        }
    }

    /// The same password was accepted over the same connection before.
    pub fn accepted_before(mut self, accepted: bool) -> Self {
        self.accepted_before = accepted;
        self
    }

    /// The command for the login shell: it works alike in sh, bash, dash, zsh, csh and fish. The sentinel and the prompt
    /// do not occur in it verbatim, so that a shell that echoes its commands cannot fake them.
    pub fn command(&self, nonce: &str, script: &Script) -> String {
        // `-O`: whoever owns init is root; no process is started to find out.
        let script = format!(
            "if [ -O /proc/1 ]; then echo \"begin:\"{nonce}; else echo \"notroot:\"{nonce}; exit 97; fi; {}",
            script.text()
        );
        match &self.method {
            Method::Root => format!("exec /bin/sh -c '{script}'"),
            // -k: neither use nor leave a timestamp.
            Method::Sudo { password: Some(_), .. } => {
                format!("exec sudo -k -S -p 'lull-{nonce}-'password: /bin/sh -c '{script}'")
            }
            Method::Sudo { password: None, .. } => format!("exec sudo -n /bin/sh -c '{script}'"),
            Method::Su { .. } => format!(
                "exec /bin/sh -c 'echo \"su:\"{nonce} >&2; exec env LC_ALL=C LANGUAGE=C su -s /bin/sh -c \"$1\" root' sh '{script}'"
            ),
        }
    }

    /// The password that [`Action::SendPassword`] asks for.
    pub fn password(&self) -> Option<&SecretString> {
        match &self.method {
            Method::Root => None,
            Method::Sudo { password, .. } => password.as_ref(),
            Method::Su { password, .. } => Some(password),
        }
    }

    /// Takes stdout.
    pub fn stdout(&mut self, bytes: &[u8]) -> Action {
        self.stdout.extend_from_slice(bytes);
        if let Some(at) = find(&self.stdout, &self.sentinel) {
            let rest = self.stdout.split_off(at + self.sentinel.len());
            return Action::Elevated(rest);
        }
        if find(&self.stdout, &self.not_root).is_some() {
            return Action::Refused(match self.method {
                Method::Root => {
                    format!("{} is not root, and its credential says neither sudo nor su", self.user)
                }
                _ => format!("{} was let through by {}, but not to root", self.user, self.program()),
            });
        }
        self.noise_bytes += bytes.len();
        if self.noise_bytes > NOISE_BYTES_MAX {
            return Action::Refused(format!("the login shell of {} wrote {NOISE_BYTES_MAX} bytes of noise", self.user));
        }
        let keep = self.sentinel.len().max(self.not_root.len());
        let surplus = self.stdout.len().saturating_sub(keep);
        self.tail.push(&self.stdout[..surplus]);
        self.stdout.drain(..surplus);
        Action::Wait
    }

    /// Takes stderr, where the prompts are.
    pub fn stderr(&mut self, bytes: &[u8]) -> Action {
        self.tail.push(bytes);
        self.stderr.extend_from_slice(bytes);
        if let Method::Su { marker, begun: begun @ false, .. } = &mut self.method {
            match find(&self.stderr, marker) {
                Some(at) => {
                    *begun = true;
                    self.stderr.drain(..at + marker.len());
                }
                None => return self.forget(),
            }
        }
        let (prompt, has_password): (&[u8], bool) = match &self.method {
            Method::Root => return self.forget(),
            Method::Sudo { prompt, password } => (prompt, password.is_some()),
            Method::Su { .. } => (b"assword:", true),
        };
        let Some(at) = find(&self.stderr, prompt) else { return self.forget() };
        let end = at + prompt.len();
        self.stderr.drain(..end);
        if self.asked || !has_password {
            return Action::Refused(self.refusal());
        }
        self.asked = true;
        match find(&self.stderr, prompt) {
            Some(_) => Action::Refused(self.refusal()),
            None => Action::SendPassword,
        }
    }

    /// Keeps only what a prompt or marker could still begin in.
    fn forget(&mut self) -> Action {
        let surplus = self.stderr.len().saturating_sub(128);
        self.stderr.drain(..surplus);
        Action::Wait
    }

    fn program(&self) -> &'static str {
        match self.method {
            Method::Root => "the login shell",
            Method::Sudo { .. } => "sudo",
            Method::Su { .. } => "su",
        }
    }

    fn refusal(&self) -> String {
        format!("{} refused the password of {}", self.program(), self.whose())
    }

    fn whose(&self) -> &str {
        match self.method {
            Method::Su { .. } => "root",
            _ => &self.user,
        }
    }

    /// The error for a refusal that [`Action::Refused`] described. Tried once, final.
    pub fn refused(&self, guest: &str, why: &str) -> ChannelError {
        ChannelError::new(
            Hop::Elevation,
            FailureKind::Refused,
            format!("{why} on {guest}; it was tried once and is not tried again"),
            "correct the elevation of the credential, then test it with `lull vm test VM`",
        )
    }

    /// The error for an end without a sentinel.
    pub fn ended(&mut self, guest: &str, exit: &Exit) -> ChannelError {
        self.tail.push(&std::mem::take(&mut self.stdout));
        let said = match self.tail.text() {
            text if text.is_empty() => "it said nothing".to_string(),
            text => format!("it said: {text}"),
        };
        let program = self.program();
        match (&self.method, exit) {
            (_, Exit::Lost) if self.asked => {
                self.unanswered(&format!("{guest} closed the connection while {} became root; {said}", self.user))
            }
            (_, Exit::Lost) => ChannelError::new(
                Hop::Elevation,
                FailureKind::Unreachable,
                format!("{guest} closed the connection while {} became root; {said}", self.user),
                "see the guest's authentication log",
            ),
            (Method::Root, exit) => ChannelError::new(
                Hop::Exec,
                FailureKind::GuestSide,
                format!("the login shell of {} on {guest} did not run our command ({exit}); {said}", self.user),
                "give the account a shell that runs commands, without ForceCommand",
            ),
            (_, Exit::Code(126 | 127)) => ChannelError::new(
                Hop::Elevation,
                FailureKind::GuestSide,
                format!("{program} cannot be run on {guest} ({exit}); {said}"),
                format!("install {program}, or choose another elevation for the credential"),
            ),
            _ if self.asked => self.refused(guest, &format!("{} ({said})", self.refusal())),
            _ => self.refused(guest, &format!("{program} did not let {} become root ({exit}; {said})", self.user)),
        }
    }

    /// The error for an end of the connection that `broken` describes.
    pub fn broken(&self, broken: ChannelError) -> ChannelError {
        if self.asked { self.unanswered(&broken.what) } else { broken }
    }

    /// The password was sent and its answer stayed out. Once the same one was accepted over the same connection, that means
    /// no more than what it says.
    fn unanswered(&self, what: &str) -> ChannelError {
        match self.accepted_before {
            true => {
                ChannelError::new(Hop::Elevation, FailureKind::Unreachable, what, "see the guest's authentication log")
            }
            false => unanswered_because(what),
        }
    }

    /// The error for no sentinel in time.
    pub fn timed_out(&mut self, guest: &str, seconds: u64) -> ChannelError {
        self.tail.push(&std::mem::take(&mut self.stdout));
        let what = format!(
            "{} on {guest} neither became root nor was refused within {seconds} s; the last words: {}",
            self.user,
            self.tail.text()
        );
        if self.asked {
            return self.unanswered(&what);
        }
        ChannelError::new(
            Hop::Elevation,
            FailureKind::GuestSide,
            what,
            "log in by hand and see what the login shell or the elevation waits for",
        )
    }
}

/// The error for an attempt after one whose answer stayed out, or for giving up on that answer.
pub fn unanswered(user: &str, guest: &str) -> ChannelError {
    unanswered_because(&format!("{guest} did not say whether {user} may become root"))
}

fn unanswered_because(what: &str) -> ChannelError {
    ChannelError::new(
        Hop::Elevation,
        FailureKind::Unknown,
        format!("{what}; the password was sent once, its outcome is unknown, and it is not tried again"),
        "see the guest's authentication log, then set the credential again, or test it with `lull vm test VM`",
    )
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONCE: &str = "00c0ffee00c0ffee";

    fn elevator(elevation: Elevation) -> Elevator {
        Elevator::new("backup", &elevation, NONCE, Tail::default())
    }

    fn sudo() -> Elevator {
        elevator(Elevation::Sudo(Some("s3cret".into())))
    }

    #[test]
    fn noise_before_the_sentinel_is_dropped_and_nothing_after_it() {
        let mut root = elevator(Elevation::None);
        assert_eq!(root.stdout(b"Welcome!\nbeg"), Action::Wait);
        assert_eq!(root.stdout(b"in:00c0ffee00c0ffee\nhello"), Action::Elevated(b"hello".to_vec()));
    }

    #[test]
    fn sudo_is_answered_once_and_a_second_prompt_is_a_refusal() {
        let mut sudo = sudo();
        assert_eq!(sudo.stderr(b"We trust you have received the usual lecture\n"), Action::Wait);
        assert_eq!(sudo.stderr(b"lull-00c0ffee00c0ffee-password:"), Action::SendPassword);
        assert_eq!(sudo.stderr(b"Sorry, try again.\nlull-00c0ffee"), Action::Wait);
        let Action::Refused(why) = sudo.stderr(b"00c0ffee-password:") else { panic!() };
        assert_eq!(why, "sudo refused the password of backup");
    }

    #[test]
    fn a_prompt_without_a_password_to_give_is_a_refusal() {
        let mut sudo = elevator(Elevation::Sudo(None));
        assert!(matches!(sudo.stderr(b"lull-00c0ffee00c0ffee-password:"), Action::Refused(_)));
    }

    #[test]
    fn su_is_answered_only_after_its_own_beginning() {
        let mut su = elevator(Elevation::Su("s3cret".into()));
        assert_eq!(su.stderr(b"Password: is what a noisy profile says\n"), Action::Wait);
        assert_eq!(su.stderr(b"su:00c0ffee00c0ffee\nPassw"), Action::Wait);
        assert_eq!(su.stderr(b"ord: "), Action::SendPassword);
        assert!(matches!(su.stderr(b"\nPassword: "), Action::Refused(_)));
    }

    #[test]
    fn an_account_that_is_not_root_is_told_apart_from_a_broken_shell() {
        let mut root = elevator(Elevation::None);
        assert!(matches!(root.stdout(b"notroot:00c0ffee00c0ffee\n"), Action::Refused(_)));
        let mut root = elevator(Elevation::None);
        root.stdout(b"no shell here\n");
        let error = root.ended("db1", &Exit::Code(1));
        assert_eq!((error.hop, error.kind), (Hop::Exec, FailureKind::GuestSide));
        assert!(error.what.ends_with("it said: no shell here"), "{error}");
    }

    #[test]
    fn a_missing_sudo_is_the_guest_s_matter_and_a_wrong_password_the_credential_s() {
        let mut sudo = sudo();
        assert_eq!(sudo.ended("db1", &Exit::Code(127)).kind, FailureKind::GuestSide);
        sudo.stderr(b"lull-00c0ffee00c0ffee-password:");
        let error = sudo.ended("db1", &Exit::Code(1));
        assert_eq!(error.kind, FailureKind::Refused);
        assert!(error.what.contains("tried once"), "{error}");
    }

    #[test]
    fn a_password_whose_answer_stays_out_is_as_final_as_a_refused_one() {
        let kind = |asked: bool, accepted: bool| {
            let mut sudo = sudo().accepted_before(accepted);
            if asked {
                assert_eq!(sudo.stderr(b"lull-00c0ffee00c0ffee-password:"), Action::SendPassword);
            }
            let lost = sudo.ended("db1", &Exit::Lost);
            assert_eq!(lost.kind == FailureKind::Unknown, lost.what.contains("outcome is unknown"), "{lost}");
            (lost.kind, sudo.timed_out("db1", 60).kind)
        };
        assert_eq!(kind(false, false), (FailureKind::Unreachable, FailureKind::GuestSide));
        assert_eq!(kind(true, false), (FailureKind::Unknown, FailureKind::Unknown));
        assert_eq!(kind(true, true).0, FailureKind::Unreachable, "the password is known to be right");
    }

    #[test]
    fn neither_sentinel_nor_prompt_stands_in_the_command() {
        let script = Script::new("test", "echo hello");
        for elevation in [Elevation::None, Elevation::Sudo(Some("x".into())), Elevation::Su("x".into())] {
            let elevator = elevator(elevation);
            let command = elevator.command(NONCE, &script);
            for secret in [format!("begin:{NONCE}"), format!("su:{NONCE}"), format!("lull-{NONCE}-password:")] {
                assert!(!command.contains(&secret), "{command}");
            }
        }
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_the_outcome_is_the_same(cuts in proptest::collection::vec(0usize..80, 0..6)) {
            let stream = format!("lecture\nlull-{NONCE}-password:Sorry, try again.\nlull-{NONCE}-password:");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.sort();
            let mut sudo = sudo();
            let mut actions = Vec::new();
            let mut from = 0;
            for to in cuts.into_iter().chain([stream.len()]) {
                actions.push(sudo.stderr(&stream.as_bytes()[from..to]));
                from = to;
            }
            let sent = actions.iter().filter(|a| **a == Action::SendPassword).count();
            prop_assert!(sent <= 1);
            prop_assert!(matches!(actions.last(), Some(Action::Refused(_))) || actions.iter().any(|a| matches!(a, Action::Refused(_))));
        }
    }
}

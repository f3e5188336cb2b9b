//! Where a secret comes from: stdin, a file, or a question on the terminal. Never from an argument: arguments can be
//! read by every user of the machine and stay in the shell's history.
//!
//! Knows nothing of what the secret is for.

use crate::exit::Exit;
use crate::terminal;
use crate::trouble::{Result, Trouble};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest secret that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Where one secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The first line of stdin.
    Stdin,
    /// The first line of a file.
    File(PathBuf),
    /// A question on the terminal.
    Ask,
}

/// The source that the flags `--X-stdin` and `--X-file FILE` name, else a question.
pub fn source(stdin: bool, file: Option<&PathBuf>) -> Source {
    match (stdin, file) {
        (true, _) => Source::Stdin,
        (false, Some(file)) => Source::File(file.clone()),
        (false, None) => Source::Ask,
    }
}

/// Reads a secret. `what` as in `password of root`; `flag` as in `password`, for the hint.
pub fn read(source: &Source, what: &str, flag: &str) -> Result<String> {
    let secret = match source {
        Source::Stdin => {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(SECRET_BYTES_MAX).read_to_string(&mut text);
            read.map_err(|e| unreadable(what, "stdin", &e.to_string()))?;
            first_line(text)
        }
        Source::File(file) => first_line(read_file(file, what)?),
        Source::Ask => match terminal::ask_secret(&capitalized(what)) {
            Ok(Some(secret)) => secret,
            Ok(None) => {
                return Err(Trouble::usage(format!("the {what} is missing"))
                    .why("there is no terminal to ask on")
                    .remedy(format!("give it with --{flag}-stdin or --{flag}-file FILE")));
            }
            Err(error) => return Err(unreadable(what, "the terminal", &error.to_string())),
        },
    };
    if secret.is_empty() {
        return Err(Trouble::usage(format!("the {what} is empty")));
    }
    Ok(secret)
}

/// Reads a private key as it is. `Ok((key, encrypted))`.
pub fn read_key(file: &Path) -> Result<(String, bool)> {
    let key = read_file(file, "private key")?;
    if key.contains("PUBLIC KEY") || key.starts_with("ssh-") || key.starts_with("ecdsa-") {
        return Err(Trouble::usage(format!("{} holds a public key", file.display()))
            .remedy("name the file of the private key: the one without .pub"));
    }
    if !key.contains("PRIVATE KEY-----") {
        return Err(Trouble::usage(format!("{} holds no private key", file.display()))
            .why("there is no PEM block `… PRIVATE KEY` in it")
            .remedy("name a private key in PEM or OpenSSH format"));
    }
    let encrypted = is_encrypted(&key);
    Ok((key, encrypted))
}

/// Whether a private key (PEM or OpenSSH) wants a passphrase.
fn is_encrypted(key: &str) -> bool {
    /// Base64 of `openssh-key-v1\0` followed by the cipher name `none`, as far as it is whole characters.
    const OPENSSH_PLAIN: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbm";
    if key.contains("BEGIN OPENSSH PRIVATE KEY") {
        let body: String = key.lines().skip_while(|l| !l.contains("BEGIN OPENSSH")).skip(1).map(str::trim).collect();
        return !body.starts_with(OPENSSH_PLAIN);
    }
    key.contains("ENCRYPTED")
}

/// A secret was given as an argument: says why that is refused.
pub fn refuse_argument(flag: &str) -> Trouble {
    Trouble::usage(format!("a secret cannot be given as the value of --{flag}"))
        .why("every user of this machine can read the arguments of a program, and your shell may have written it to its history")
        .remedy(format!("change that secret, then give it with --{flag}-stdin, --{flag}-file FILE, or type it when asked"))
}

fn read_file(file: &Path, what: &str) -> Result<String> {
    let place = file.display().to_string();
    let open = std::fs::File::open(file).map_err(|e| unreadable(what, &place, &e.to_string()))?;
    let mut text = String::new();
    open.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(|e| unreadable(what, &place, &e.to_string()))?;
    Ok(text)
}

fn first_line(text: String) -> String {
    text.lines().next().unwrap_or_default().to_string()
}

fn unreadable(what: &str, place: &str, why: &str) -> Trouble {
    Trouble::local(Exit::Failed, "secret-unreadable", format!("the {what} could not be read from {place}")).why(why)
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_want_a_passphrase_are_seen() {
        let openssh =
            |body: &str| format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n");
        // Heads of keys made by `ssh-keygen -t ed25519`, without and with a passphrase.
        assert!(!is_encrypted(&openssh("b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW")));
        assert!(is_encrypted(&openssh("b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABDvR8nY")));
        assert!(is_encrypted("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        assert!(is_encrypted("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(!is_encrypted("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"));
    }

    #[test]
    fn a_secret_is_the_first_line_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "s3cret with blanks \r\nrest\n").unwrap();
        assert_eq!(read(&Source::File(file.clone()), "password", "password").unwrap(), "s3cret with blanks ");
        std::fs::write(&file, "\n").unwrap();
        assert_eq!(read(&Source::File(file), "password", "password").unwrap_err().exit, Exit::Usage);
    }
}

//! Proving who we are: a password or a private key, **tried once**.
//!
//! Which of password and keyboard-interactive the guest takes is asked first (with the method *none*, which is no attempt),
//! so that a password is sent in one of them and never in both. Once it was sent, no answer is as final as a refusal: PAM may
//! deny an account by hanging up. A key may be offered again: no account is locked by one. Knows nothing of how the connection came to be.

use super::connect::{Connection, Handler, lock};
use crate::access::{GuestAccess, Login};
use crate::channel::{ChannelError, FailureKind, Hop};
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse as Interactive};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, decode_secret_key};
use russh::{MethodKind, MethodSet};
use secrecy::{ExposeSecret, SecretString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LOGIN_LIMIT: Duration = Duration::from_secs(60);

/// The credential's private key, decrypted; nothing for passwords. Needs no connection, so it is read before one is made.
pub(super) fn private_key(access: &GuestAccess) -> Result<Option<Arc<PrivateKey>>, ChannelError> {
    let Login::PrivateKey { pem, passphrase } = &access.login else { return Ok(None) };
    let passphrase = passphrase.as_ref().map(|p| p.expose_secret());
    let unusable = |why: &str, remedy: &str| {
        ChannelError::new(
            Hop::Login,
            FailureKind::Refused,
            format!("the private key of credential {} cannot be used: {why}", access.credential),
            remedy,
        )
    };
    match decode_secret_key(pem.expose_secret(), passphrase) {
        Ok(key) if !key.is_encrypted() => Ok(Some(Arc::new(key))),
        Ok(_) | Err(russh::keys::Error::KeyIsEncrypted) => Err(unusable(
            "it is encrypted, and the credential has no passphrase",
            "add the passphrase to the credential",
        )),
        Err(e) if passphrase.is_some() => {
            let why = format!("it does not open with the credential's passphrase ({e})");
            Err(unusable(&why, "correct the passphrase of the credential"))
        }
        Err(e) => Err(unusable(
            &e.to_string(),
            "give the credential a private key in OpenSSH or PKCS#8 format (`ssh-keygen -p` and `puttygen -O private-openssh` write it)",
        )),
    }
}

/// Logs in, once.
pub(super) async fn login(
    connection: &mut Connection,
    access: &GuestAccess,
    key: Option<Arc<PrivateKey>>,
    guest: &str,
) -> Result<(), ChannelError> {
    let handle = &mut connection.handle;
    let sent = AtomicBool::new(false);
    let attempt = async {
        match (&access.login, key) {
            (Login::Password(password), _) => with_password(handle, access, password, guest, &sent).await,
            (Login::PrivateKey { .. }, Some(key)) => with_key(handle, access, key, guest).await,
            (Login::PrivateKey { .. }, None) => Err(refused(access, guest, "its private key was not read")),
        }
    };
    match tokio::time::timeout(LOGIN_LIMIT, attempt).await {
        Ok(Err(error)) if error.kind == FailureKind::Unreachable => {
            // sshd says goodbye instead of *no* when its MaxAuthTries is used up by our one attempt.
            let goodbye = lock(&connection.seen).goodbye.take();
            let error = match goodbye {
                Some(words) if words.to_lowercase().contains("auth") => return Err(refused(access, guest, &words)),
                Some(words) => ChannelError { what: format!("{} ({words})", error.what), ..error },
                None => error,
            };
            Err(if sent.into_inner() { unanswered(access, &error.what) } else { error })
        }
        Ok(result) => result,
        Err(_) if sent.load(Ordering::SeqCst) => {
            let what =
                format!("{guest} did not decide on the login of {} within {} s", access.user, LOGIN_LIMIT.as_secs());
            Err(unanswered(access, &what))
        }
        Err(_) => Err(ChannelError::new(
            Hop::Login,
            FailureKind::Unreachable,
            format!("{guest} did not decide on the login of {} within {} s", access.user, LOGIN_LIMIT.as_secs()),
            "see the guest's authentication log: a directory service that does not answer is the usual reason",
        )),
    }
}

async fn with_key(
    handle: &mut Handle<Handler>,
    access: &GuestAccess,
    key: Arc<PrivateKey>,
    guest: &str,
) -> Result<(), ChannelError> {
    let hash = match key.algorithm().is_rsa() {
        true => handle.best_supported_rsa_hash().await.map_err(|e| lost(access, guest, &e.to_string()))?.flatten(),
        false => None,
    };
    // An old sshd that announces nothing still knows SHA-256 since 2014; SHA-1 is not offered.
    let hash = hash.or(Some(russh::keys::HashAlg::Sha256));
    let key = PrivateKeyWithHashAlg::new(key, hash);
    let result = handle.authenticate_publickey(&access.user, key).await;
    judge(handle, result, access, guest, "the key")
}

async fn with_password(
    handle: &mut Handle<Handler>,
    access: &GuestAccess,
    password: &SecretString,
    guest: &str,
    sent: &AtomicBool,
) -> Result<(), ChannelError> {
    let methods = match handle.authenticate_none(&access.user).await {
        Ok(AuthResult::Success) => return Ok(()),
        Ok(AuthResult::Failure { remaining_methods, .. }) => remaining_methods,
        Err(e) => return Err(lost(access, guest, &e.to_string())),
    };
    if methods.contains(&MethodKind::Password) {
        sent.store(true, Ordering::SeqCst);
        let result = handle.authenticate_password(&access.user, password.expose_secret()).await;
        return judge(handle, result, access, guest, "the password");
    }
    if methods.contains(&MethodKind::KeyboardInteractive) {
        return interactive(handle, access, password, guest, sent).await;
    }
    if handle.is_closed() {
        return Err(lost(access, guest, "it closed the connection"));
    }
    let offered = methods.iter().map(String::from).collect::<Vec<_>>().join(", ");
    Err(ChannelError::new(
        Hop::Login,
        FailureKind::Refused,
        format!("{guest} takes no password from {} (it takes: {offered}); none was sent", access.user),
        "give the credential a private key, or allow PasswordAuthentication in the guest's sshd",
    ))
}

/// One question without echo is the password; anything else is not for us to answer.
async fn interactive(
    handle: &mut Handle<Handler>,
    access: &GuestAccess,
    password: &SecretString,
    guest: &str,
    sent: &AtomicBool,
) -> Result<(), ChannelError> {
    let mut answered = false;
    let mut response = handle.authenticate_keyboard_interactive_start(&access.user, None).await;
    loop {
        let prompts = match response {
            Ok(Interactive::Success) => return Ok(()),
            Ok(Interactive::Failure { remaining_methods, partial_success }) => {
                let result = Ok(AuthResult::Failure { remaining_methods, partial_success });
                return judge(handle, result, access, guest, "the password");
            }
            Ok(Interactive::InfoRequest { prompts, .. }) => prompts,
            Err(e) => return Err(lost(access, guest, &e.to_string())),
        };
        let answers = match prompts.as_slice() {
            [] => vec![],
            [one] if !one.echo && !answered => {
                answered = true;
                sent.store(true, Ordering::SeqCst);
                vec![password.expose_secret().to_string()]
            }
            others => {
                let asked = others.iter().map(|p| p.prompt.trim()).collect::<Vec<_>>().join(", ");
                return Err(refused(access, guest, &format!("it asks for more than one password: {asked}")));
            }
        };
        response = handle.authenticate_keyboard_interactive_respond(answers).await;
    }
}

fn judge(
    handle: &Handle<Handler>,
    result: Result<AuthResult, russh::Error>,
    access: &GuestAccess,
    guest: &str,
    what: &str,
) -> Result<(), ChannelError> {
    match result {
        Ok(AuthResult::Success) => Ok(()),
        Ok(AuthResult::Failure { remaining_methods, partial_success: true }) => {
            let next = remaining_methods.iter().map(String::from).collect::<Vec<_>>().join(", ");
            Err(refused(access, guest, &format!("{what} was accepted, but {next} is wanted too")))
        }
        Ok(AuthResult::Failure { remaining_methods, .. }) if lost_without_answer(handle, &remaining_methods) => {
            Err(lost(access, guest, "it closed the connection"))
        }
        Ok(AuthResult::Failure { .. }) => Err(refused(access, guest, &format!("{what} was not accepted"))),
        Err(e) => Err(lost(access, guest, &e.to_string())),
    }
}

/// The library reports a connection that broke as a failure without methods.
fn lost_without_answer(handle: &Handle<Handler>, remaining: &MethodSet) -> bool {
    remaining.is_empty() && handle.is_closed()
}

fn refused(access: &GuestAccess, guest: &str, why: &str) -> ChannelError {
    ChannelError::new(
        Hop::Login,
        FailureKind::Refused,
        format!("{guest} refuses the login of {}: {why}; it was tried once and is not tried again", access.user),
        format!("correct credential {}, then test it with `lull vm test {}`", access.credential, access.vm_name),
    )
}

fn lost(access: &GuestAccess, guest: &str, why: &str) -> ChannelError {
    ChannelError::new(
        Hop::Login,
        FailureKind::Unreachable,
        format!("{guest} broke off during the login of {}: {why}", access.user),
        "see the guest's authentication log",
    )
}

/// The password was sent and its answer stayed out.
fn unanswered(access: &GuestAccess, what: &str) -> ChannelError {
    ChannelError::new(
        Hop::Login,
        FailureKind::Unknown,
        format!("{what}; the password was sent once, its outcome is unknown, and it is not tried again"),
        format!(
            "see the guest's authentication log (an account that is locked or expired ends like this); then set credential {} again, or test it with `lull vm test {}`",
            access.credential, access.vm_name
        ),
    )
}

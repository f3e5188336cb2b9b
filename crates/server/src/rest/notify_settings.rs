//! Whom a job tells of its sessions, between the REST interface and the store. The secret and the address go in; of the address
//! scheme and host come out.

use super::answer::{Answer, bad_value};
use crate::notify::{command, webhook};
use crate::server::Server;
use crate::store::jobs::StoredJob;
use crate::store::notifications::{Notify, Webhook};
use lull_api::notify::{Notify as Shown, NotifySettings};
use secrecy::SecretString;

/// Longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 1_024;

/// Applies what is given; what is absent stays.
pub fn apply(server: &Server, job: &mut StoredJob, given: NotifySettings) -> Answer<()> {
    let NotifySettings { url, secret, on, command: name, .. } = given;
    let mut notify = job.notify.clone();
    if let Some(url) = url {
        notify.webhook = match url.as_str() {
            "" => None,
            text => {
                let uri = webhook::checked(text).map_err(|rule| bad_value("notify.url", format!("must {rule}")))?;
                let address = server.secrets.seal(job.job.id.0, webhook::ADDRESS_FIELD, &SecretString::from(url))?;
                Some(Webhook { shown: webhook::shown(&uri), address })
            }
        };
    }
    if let Some(name) = name {
        notify.command = Some(name).filter(|name| !name.is_empty());
        if let Some(name) = &notify.command {
            command::checked(&server.state_dir, name).map_err(|why| bad_value("notify.command", why))?;
        }
    }
    if let Some(secret) = secret {
        if secret.len() > SECRET_BYTES_MAX {
            return Err(bad_value("notify.secret", format!("must have at most {SECRET_BYTES_MAX} bytes")));
        }
        let secret = Some(SecretString::from(secret)).filter(|secret| !is_empty(secret));
        let seal = |secret| server.secrets.seal(job.job.id.0, webhook::SECRET_FIELD, &secret);
        notify.secret = secret.map(seal).transpose()?;
    }
    match on.as_deref() {
        None => {}
        Some("always") => notify.only_problems = false,
        Some("problems") => notify.only_problems = true,
        Some(_) => return Err(bad_value("notify.on", "must be always or problems")),
    }
    if notify.secret.is_some() && notify.webhook.is_none() {
        return Err(bad_value("notify.secret", "it signs what is posted, and there is no notify.url"));
    }
    job.notify = notify;
    Ok(())
}

fn is_empty(secret: &SecretString) -> bool {
    secrecy::ExposeSecret::expose_secret(secret).is_empty()
}

/// Who is told, without what is secret.
pub fn shown(notify: &Notify) -> Shown {
    Shown {
        url: notify.webhook.as_ref().map(|webhook| webhook.shown.clone()),
        has_secret: notify.secret.is_some(),
        on: if notify.only_problems { "problems" } else { "always" }.into(),
        command: notify.command.clone(),
    }
}

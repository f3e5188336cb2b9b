//! Credentials: secrets go in and never come out.

use super::answer::{Answer, Fault, bad_value};
use super::body::Body;
use super::names::{CREDENTIAL, Place, VmIndex, bounded, checked, find, listed};
use crate::instant::{from_us, rfc3339, us};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::credentials::CredentialRow;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use lull_api::Problem;
use lull_api::infrastructure::{Credential, CredentialChange, Elevation, NewCredential};
use secrecy::SecretString;
use std::sync::Arc;
use uuid::Uuid;

/// Longest password or passphrase, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Longest private key, in bytes.
const KEY_BYTES_MAX: usize = 64 << 10;

/// All credentials, without their secrets.
#[utoipa::path(get, path = "/credentials", tag = "credentials", responses((status = 200, body = Vec<Credential>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Answer<Json<Vec<Credential>>> {
    let mut all = Vec::new();
    for row in server.store.credentials().await? {
        all.push(shown(&server, row).await?);
    }
    Ok(Json(all))
}

/// Stores a credential, encrypted.
#[utoipa::path(post, path = "/credentials", tag = "credentials", request_body = NewCredential,
    responses((status = 201, body = Credential)))]
pub async fn add(
    State(server): State<Arc<Server>>,
    Body(new): Body<NewCredential>,
) -> Answer<(StatusCode, Json<Credential>)> {
    let row = CredentialRow {
        id: Uuid::now_v7(),
        name: checked("name", new.name)?,
        user: bounded("user", new.user, 256)?,
        elevation: String::new(),
        revision: 0,
        password: None,
        private_key: None,
        passphrase: None,
        elevation_password: None,
        changed_us: 0,
    };
    let change = CredentialChange {
        name: None,
        user: None,
        password: new.password,
        private_key: new.private_key,
        passphrase: new.passphrase,
        elevation: Some(new.elevation),
        elevation_password: new.elevation_password,
    };
    let row = changed(&server, row, change)?;
    server.store.add_credential(&row).await?;
    Ok((StatusCode::CREATED, Json(shown(&server, row).await?)))
}

/// One credential, without its secrets.
#[utoipa::path(get, path = "/credentials/{credential}", tag = "credentials",
    params(("credential" = String, Path, description = "name or id")), responses((status = 200, body = Credential)))]
pub async fn get(State(server): State<Arc<Server>>, Path(credential): Path<String>) -> Answer<Json<Credential>> {
    let row = named(&server, &credential).await?;
    Ok(Json(shown(&server, row).await?))
}

/// Changes a credential; it may be tried again everywhere.
#[utoipa::path(patch, path = "/credentials/{credential}", tag = "credentials",
    params(("credential" = String, Path, description = "name or id")), request_body = CredentialChange,
    responses((status = 200, body = Credential)))]
pub async fn change(
    State(server): State<Arc<Server>>,
    Path(credential): Path<String>,
    Body(change): Body<CredentialChange>,
) -> Answer<Json<Credential>> {
    let row = named(&server, &credential).await?;
    let row = changed(&server, row, change)?;
    server.store.update_credential(&row).await?;
    Ok(Json(shown(&server, row).await?))
}

/// Removes a credential; refused while a VM uses it, in any job or in one.
#[utoipa::path(delete, path = "/credentials/{credential}", tag = "credentials",
    params(("credential" = String, Path, description = "name or id")), responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>, Path(credential): Path<String>) -> Answer<StatusCode> {
    let row = named(&server, &credential).await?;
    let in_jobs = used_in_jobs(&server, row.id).await?;
    if !in_jobs.is_empty() {
        let what = format!("credential {} is used by {}", row.name, listed(&in_jobs));
        let remedy = "give these VMs another: lull job vm-settings JOB VM --credential NAME, or --clear credential";
        return Err(Problem::new(409, "in-use", what).remedy(remedy).into());
    }
    match server.store.remove_credential(row.id).await {
        Err(StoreError::InUse { .. }) => {
            let users = listed(&used_by(&server, row.id).await?);
            let what = format!("credential {} is used by {users}", row.name);
            Err(Problem::new(409, "in-use", what)
                .remedy("give these VMs another: lull vm set VM --credential NAME")
                .into())
        }
        done => Ok(done.map(|()| StatusCode::NO_CONTENT)?),
    }
}

/// A person says that a refused credential may be tried again everywhere.
#[utoipa::path(post, path = "/credentials/{credential}/release", tag = "credentials",
    params(("credential" = String, Path, description = "name or id")), responses((status = 200, body = Credential)))]
pub async fn release(State(server): State<Arc<Server>>, Path(credential): Path<String>) -> Answer<Json<Credential>> {
    let row = named(&server, &credential).await?;
    server.store.release_credential(row.id).await?;
    Ok(Json(shown(&server, row).await?))
}

async fn named(server: &Server, wanted: &str) -> Answer<CredentialRow> {
    find(CREDENTIAL, Place::Path, wanted, server.store.credentials().await?, |c| (c.id, c.name.clone()))
}

/// The credential as the change leaves it: its next revision, its secrets sealed.
fn changed(server: &Server, mut row: CredentialRow, change: CredentialChange) -> Answer<CredentialRow> {
    let seal = |field: &'static str, secret: String, bytes_max: usize| -> Result<Option<Vec<u8>>, Fault> {
        if secret.len() > bytes_max || secret.contains('\0') {
            return Err(bad_value(field, format!("must have at most {bytes_max} bytes, none of them zero")));
        }
        if secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(server.secrets.seal(row.id, field, &SecretString::from(secret))?))
    };
    if change.password.is_some() && change.private_key.is_some() {
        return Err(bad_value("password", "give either a password or a private key, not both"));
    }
    let passphrase = change.passphrase.map(|secret| seal("passphrase", secret, PASSWORD_BYTES_MAX)).transpose()?;
    let elevation_password =
        change.elevation_password.map(|secret| seal("elevation_password", secret, PASSWORD_BYTES_MAX)).transpose()?;
    if let Some(password) = change.password {
        row.password = seal("password", password, PASSWORD_BYTES_MAX)?;
        (row.private_key, row.passphrase) = (None, None);
    } else if let Some(key) = change.private_key {
        if !key.contains("PRIVATE KEY-----") {
            return Err(bad_value("private_key", "must be a private key in PEM or OpenSSH format"));
        }
        row.private_key = seal("private_key", key, KEY_BYTES_MAX)?;
        (row.password, row.passphrase) = (None, None);
    }
    if let Some(name) = change.name {
        row.name = checked("name", name)?;
    }
    if let Some(user) = change.user {
        row.user = bounded("user", user, 256)?;
    }
    if let Some(elevation) = change.elevation {
        row.elevation = elevation_name(elevation).into();
    }
    row.passphrase = passphrase.unwrap_or(row.passphrase);
    row.elevation_password = elevation_password.unwrap_or(row.elevation_password);
    check_whole(&row)?;
    row.revision += 1;
    row.changed_us = us(Timestamp::now());
    Ok(row)
}

/// Whether it has what a login and its elevation need.
fn check_whole(row: &CredentialRow) -> Result<(), Fault> {
    if row.password.is_none() && row.private_key.is_none() {
        return Err(bad_value("password", "a credential needs a password or a private key"));
    }
    if row.passphrase.is_some() && row.private_key.is_none() {
        return Err(bad_value("passphrase", "it belongs to a private key, and there is none"));
    }
    let asks = row.elevation_password.is_none();
    match row.elevation.as_str() {
        "su" if asks => Err(bad_value("elevation_password", "su asks for root's password")),
        "sudo" if asks && row.password.is_none() => Err(bad_value(
            "elevation_password",
            "sudo asks for the account's password; where it asks for none, use sudo-nopasswd",
        )),
        _ => Ok(()),
    }
}

fn elevation_name(elevation: Elevation) -> &'static str {
    match elevation {
        Elevation::None => "none",
        Elevation::Sudo => "sudo",
        Elevation::SudoNopasswd => "sudo-nopasswd",
        Elevation::Su => "su",
    }
}

async fn used_by(server: &Server, credential: Uuid) -> Answer<Vec<String>> {
    let vms = server.store.vms().await?;
    Ok(vms.iter().filter(|vm| vm.credential == Some(credential)).map(|vm| vm.name.clone()).collect())
}

/// The VMs that have it in single jobs only.
async fn used_in_jobs(server: &Server, credential: Uuid) -> Answer<Vec<String>> {
    let vms = server.store.vms().await?;
    let index = VmIndex::new(&vms);
    let jobs = server.store.jobs().await?;
    let users = jobs.iter().flat_map(|job| {
        let over = job.job.overrides.iter();
        let using = over.filter(|(_, over)| over.credential.is_some_and(|id| id.0 == credential));
        using.map(|(vm, _)| {
            let vm = index.shortest_name(vm.0).unwrap_or_else(|| vm.to_string());
            format!("{vm} in job {}", job.job.name)
        })
    });
    Ok(users.collect())
}

async fn shown(server: &Server, row: CredentialRow) -> Answer<Credential> {
    let refusals = server.store.refusals().await?;
    let here = refusals.iter().filter(|r| r.credential.0 == row.id && r.revision == row.revision);
    let elevations = [Elevation::None, Elevation::Sudo, Elevation::SudoNopasswd, Elevation::Su];
    let elevation = elevations.into_iter().find(|e| elevation_name(*e) == row.elevation).unwrap_or_default();
    Ok(Credential {
        id: row.id,
        name: row.name,
        user: row.user,
        login: if row.private_key.is_some() { "private-key" } else { "password" }.into(),
        elevation,
        used_by: used_by(server, row.id).await?,
        refused_by: here.map(|refusal| refusal.vm_name.clone()).collect(),
        changed_at: from_us(row.changed_us).map(rfc3339).unwrap_or_default(),
    })
}

//! The calls of the REST interface that the commands use: one function per endpoint, so that paths stand in one place.
//!
//! Knows paths and types; knows nothing of what is done with the answers.

use lull_api::Client;
use lull_api::catalog::CatalogTable;
use lull_api::client::ClientError;
use lull_api::infrastructure::{
    AcceptHostKey, Credential, CredentialChange, Finding, Host, HostChange, JoinToken, NewCredential, NewHost,
    NewJoinToken, NewRepository, Proxy, ProxyChange, ProxyExplanation, Repository, RepositoryChange, RepositoryScan,
    RestorePoint, ServerStatus, Verification, Vm, VmChange,
};
use lull_api::job::{Job, JobChange, NewJob, SavedJob};
use lull_api::licence::{LicenceFile, LicenceStatus};
use lull_api::managed::{AskHostKey, MachineCheck, ManagedServer, NewManagedServer, ServerWork, ShownHostKey};
use lull_api::proxy_tier::{JobPreview, LoadReport};
use lull_api::session::{HoldEnd, QuiesceRequest, Session, SessionSummary};
use lull_api::vm_settings::{SavedVmSettings, VmSettings, VmSettingsChange};

type Answer<T> = Result<T, ClientError>;

/// `text` as one segment of a path or as a value in a query: everything but letters, digits and `-._~` is escaped, so
/// that `HOST/VM` stays one segment.
pub fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => escaped.push(byte as char),
            // A path of dots only would be resolved away before it is sent.
            b'.' if text.bytes().any(|b| b != b'.') => escaped.push('.'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

pub async fn status(client: &Client) -> Answer<ServerStatus> {
    client.get("/status").await
}

pub async fn doctor(client: &Client) -> Answer<Vec<Finding>> {
    client.get("/doctor").await
}

pub async fn licence(client: &Client) -> Answer<LicenceStatus> {
    client.get("/licence").await
}

pub async fn install_licence(client: &Client, file: &LicenceFile) -> Answer<LicenceStatus> {
    client.post("/licence", file).await
}

pub async fn remove_licence(client: &Client) -> Answer<()> {
    client.delete("/licence").await
}

pub async fn hosts(client: &Client) -> Answer<Vec<Host>> {
    client.get("/hosts").await
}

pub async fn host(client: &Client, name: &str) -> Answer<Host> {
    client.get(&format!("/hosts/{}", segment(name))).await
}

pub async fn add_host(client: &Client, host: &NewHost) -> Answer<Host> {
    client.post("/hosts", host).await
}

pub async fn remove_host(client: &Client, host: &str) -> Answer<()> {
    client.delete(&format!("/hosts/{}", segment(host))).await
}

pub async fn change_host(client: &Client, host: &str, change: &HostChange) -> Answer<Host> {
    client.patch(&format!("/hosts/{}", segment(host)), change).await
}

pub async fn rescan_host(client: &Client, host: &str) -> Answer<Host> {
    client.post(&format!("/hosts/{}/rescan", segment(host)), &()).await
}

pub async fn vms(client: &Client) -> Answer<Vec<Vm>> {
    client.get("/vms").await
}

pub async fn vm(client: &Client, vm: &str) -> Answer<Vm> {
    client.get(&format!("/vms/{}", segment(vm))).await
}

pub async fn change_vm(client: &Client, vm: &str, change: &VmChange) -> Answer<Vm> {
    client.patch(&format!("/vms/{}", segment(vm)), change).await
}

pub async fn accept_host_key(client: &Client, vm: &str, fingerprint: String) -> Answer<Vm> {
    client.post(&format!("/vms/{}/accept-host-key", segment(vm)), &AcceptHostKey { fingerprint }).await
}

pub async fn test_vm(client: &Client, vm: &str) -> Answer<Session> {
    client.post(&format!("/vms/{}/test", segment(vm)), &()).await
}

pub async fn rehearse(client: &Client, vm: &str, request: &QuiesceRequest) -> Answer<Session> {
    client.post(&format!("/vms/{}/rehearse", segment(vm)), request).await
}

pub async fn quiesce(client: &Client, vm: &str, request: &QuiesceRequest) -> Answer<Session> {
    client.post(&format!("/vms/{}/quiesce", segment(vm)), request).await
}

pub async fn explain_proxy(client: &Client, vm: &str, job: Option<&str>) -> Answer<ProxyExplanation> {
    let query = job.map(|job| format!("?job={}", segment(job))).unwrap_or_default();
    client.get(&format!("/vms/{}/proxy-explain{query}", segment(vm))).await
}

pub async fn managed_servers(client: &Client) -> Answer<Vec<ManagedServer>> {
    client.get("/managed-servers").await
}

pub async fn managed_server(client: &Client, name: &str) -> Answer<ManagedServer> {
    client.get(&format!("/managed-servers/{}", segment(name))).await
}

pub async fn machine_host_key(client: &Client, ask: &AskHostKey) -> Answer<ShownHostKey> {
    client.post("/managed-servers/host-key", ask).await
}

/// Takes as long as the program needs to get there.
pub async fn check_machine(client: &Client, new: &NewManagedServer) -> Answer<MachineCheck> {
    client.post_and_wait("/managed-servers/check", new).await
}

/// See [`check_machine`].
pub async fn check_managed_server(client: &Client, name: &str, work: &ServerWork) -> Answer<MachineCheck> {
    client.post_and_wait(&format!("/managed-servers/{}/check", segment(name)), work).await
}

pub async fn proxies(client: &Client) -> Answer<Vec<Proxy>> {
    client.get("/proxies").await
}

pub async fn change_proxy(client: &Client, name: &str, change: &ProxyChange) -> Answer<Proxy> {
    client.patch(&format!("/proxies/{}", segment(name)), change).await
}

pub async fn credentials(client: &Client) -> Answer<Vec<Credential>> {
    client.get("/credentials").await
}

pub async fn credential(client: &Client, name: &str) -> Answer<Credential> {
    client.get(&format!("/credentials/{}", segment(name))).await
}

pub async fn add_credential(client: &Client, credential: &NewCredential) -> Answer<Credential> {
    client.post("/credentials", credential).await
}

pub async fn change_credential(client: &Client, name: &str, change: &CredentialChange) -> Answer<Credential> {
    client.patch(&format!("/credentials/{}", segment(name)), change).await
}

pub async fn release_credential(client: &Client, name: &str) -> Answer<Credential> {
    client.post(&format!("/credentials/{}/release", segment(name)), &()).await
}

pub async fn remove_credential(client: &Client, name: &str) -> Answer<()> {
    client.delete(&format!("/credentials/{}", segment(name))).await
}

pub async fn repositories(client: &Client) -> Answer<Vec<Repository>> {
    client.get("/repositories").await
}

pub async fn repository(client: &Client, name: &str) -> Answer<Repository> {
    client.get(&format!("/repositories/{}", segment(name))).await
}

pub async fn add_repository(client: &Client, repository: &NewRepository) -> Answer<Repository> {
    client.post("/repositories", repository).await
}

pub async fn remove_repository(client: &Client, name: &str) -> Answer<()> {
    client.delete(&format!("/repositories/{}", segment(name))).await
}

pub async fn change_repository(client: &Client, name: &str, change: &RepositoryChange) -> Answer<Repository> {
    client.patch(&format!("/repositories/{}", segment(name)), change).await
}

pub async fn scan_repository(client: &Client, name: &str) -> Answer<RepositoryScan> {
    client.post_and_wait(&format!("/repositories/{}/scan", segment(name)), &()).await
}

pub async fn make_join_token(client: &Client, new: &NewJoinToken) -> Answer<JoinToken> {
    client.post("/proxies/tokens", new).await
}

pub async fn revoke_proxy(client: &Client, name: &str) -> Answer<Proxy> {
    client.post(&format!("/proxies/{}/revoke", segment(name)), &()).await
}

pub async fn remove_proxy(client: &Client, name: &str) -> Answer<()> {
    client.delete(&format!("/proxies/{}", segment(name))).await
}

pub async fn jobs(client: &Client) -> Answer<Vec<Job>> {
    client.get("/jobs").await
}

pub async fn job(client: &Client, name: &str) -> Answer<Job> {
    client.get(&format!("/jobs/{}", segment(name))).await
}

pub async fn create_job(client: &Client, job: &NewJob) -> Answer<SavedJob> {
    client.post("/jobs", job).await
}

pub async fn change_job(client: &Client, name: &str, change: &JobChange) -> Answer<SavedJob> {
    client.patch(&format!("/jobs/{}", segment(name)), change).await
}

pub async fn remove_job(client: &Client, name: &str) -> Answer<()> {
    client.delete(&format!("/jobs/{}", segment(name))).await
}

pub async fn vm_settings(client: &Client, job: &str, vm: &str) -> Answer<VmSettings> {
    client.get(&format!("/jobs/{}/vms/{}/settings", segment(job), segment(vm))).await
}

pub async fn change_vm_settings(
    client: &Client,
    job: &str,
    vm: &str,
    change: &VmSettingsChange,
) -> Answer<SavedVmSettings> {
    client.patch(&format!("/jobs/{}/vms/{}/settings", segment(job), segment(vm)), change).await
}

pub async fn clear_vm_settings(client: &Client, job: &str, vm: &str) -> Answer<SavedVmSettings> {
    client.delete_and_read(&format!("/jobs/{}/vms/{}/settings", segment(job), segment(vm))).await
}

pub async fn preview_job(client: &Client, name: &str) -> Answer<JobPreview> {
    client.get(&format!("/jobs/{}/preview", segment(name))).await
}

pub async fn proxy_load(client: &Client, proxy: Option<&str>, since: &str, bucket: Option<&str>) -> Answer<LoadReport> {
    let proxy = proxy.map(|proxy| format!("&proxy={}", segment(proxy))).unwrap_or_default();
    let bucket = bucket.map(|bucket| format!("&bucket={bucket}")).unwrap_or_default();
    client.get(&format!("/proxies/load?since={}{proxy}{bucket}", segment(since))).await
}

pub async fn run_job(client: &Client, name: &str) -> Answer<Session> {
    client.post(&format!("/jobs/{}/run", segment(name)), &()).await
}

pub async fn sessions(client: &Client, job: Option<&str>, limit: u32) -> Answer<Vec<SessionSummary>> {
    let job = job.map(|job| format!("&job={}", segment(job))).unwrap_or_default();
    client.get(&format!("/sessions?limit={limit}{job}")).await
}

pub async fn session(client: &Client, id: i64) -> Answer<Session> {
    client.get(&format!("/sessions/{id}")).await
}

pub async fn cancel_session(client: &Client, id: i64) -> Answer<Session> {
    client.post(&format!("/sessions/{id}/cancel"), &()).await
}

pub async fn renew_hold(client: &Client, id: i64) -> Answer<()> {
    client.post(&format!("/sessions/{id}/renew"), &()).await
}

pub async fn end_hold(client: &Client, id: i64, end: &HoldEnd) -> Answer<()> {
    client.post(&format!("/sessions/{id}/end"), end).await
}

pub async fn restore_points(client: &Client, vm: Option<&str>) -> Answer<Vec<RestorePoint>> {
    let query = vm.map(|vm| format!("?vm={}", segment(vm))).unwrap_or_default();
    client.get(&format!("/restore-points{query}")).await
}

pub async fn restore_point(client: &Client, id: &str) -> Answer<RestorePoint> {
    client.get(&format!("/restore-points/{}", segment(id))).await
}

pub async fn verify_restore_point(client: &Client, id: &str) -> Answer<Verification> {
    client.post_and_wait(&format!("/restore-points/{}/verify", segment(id)), &()).await
}

pub async fn remove_restore_point(client: &Client, id: &str) -> Answer<()> {
    client.delete(&format!("/restore-points/{}", segment(id))).await
}

pub async fn catalog(client: &Client, vm: Option<&str>) -> Answer<Vec<CatalogTable>> {
    let query = vm.map(|vm| format!("?vm={}", segment(vm))).unwrap_or_default();
    client.get(&format!("/catalog{query}")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment() {
        for (name, expect) in [
            ("pg-demo", "pg-demo"),
            ("host1/pg demo", "host1%2Fpg%20demo"),
            ("a?b#c&d=e%", "a%3Fb%23c%26d%3De%25"),
            ("..", "%2E%2E"),
            ("a..b", "a..b"),
            ("grün", "gr%C3%BCn"),
        ] {
            assert_eq!(segment(name), expect);
        }
    }
}

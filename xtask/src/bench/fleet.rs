//! `fleet`: one backup server, as it is installed, two hundred proxies that join and dial it over TLS, two thousand guests in memory. How
//! long a dispatch takes under load beside that of a task alone, how many tasks the server gets through, and how much memory it needs.
//!
//! A dispatch lasts from the choice of a proxy to the first step of its work, both by the server's clock: the order is put together and
//! sent, the proxy asks for its lease, the lease is stored and granted, and the proxy's first word is stored.

mod site;

use super::arguments::Arguments;
use super::figure::{Figure, Goal};
use super::lull_server::{self, Finished, LullServer};
use super::stage::Scene;
use super::statistics::{median, quantile};
use super::testbed::Testbed;
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use jiff::Timestamp;
use lull_api::Client;
use lull_api::infrastructure::{
    Credential, Elevation, Host, JoinToken, NewCredential, NewHost, NewJoinToken, NewRepository, Proxy, Repository,
    RepositoryChange, Vm, VmChange,
};
use lull_api::job::{GuestSettings, NewJob, SavedJob};
use lull_api::session::EventKind;
use lull_proxy::desk::{Desk, ProxyConfig};
use lull_proxy::membership::{self, Membership, NewKey};
use lull_proxy::{dial, join, service};
use rustix::process::{Resource, getrlimit, setrlimit};
use site::{Pace, Site};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Each with a hypervisor host.
const SITES: usize = 50;
const PROXIES_PER_SITE: usize = 4;
const VMS_PER_HOST: usize = 40;
const PROXIES: usize = SITES * PROXIES_PER_SITE;
const VMS: usize = SITES * VMS_PER_HOST;
/// Tasks of a proxy at once. The default limit of a hypervisor host is 4.
const SLOTS: u32 = 2;
/// Tasks that run alone, one after another.
const ALONE: usize = 100;
/// Requests to the server at once while the fleet is made known.
const AT_ONCE: usize = 8;
const FLEET_LIMIT: Duration = Duration::from_secs(120);
const MEMORY_MIB_MAX: f64 = 300.0;
/// p99 of a dispatch under load over that of a task alone.
const RATIO_MAX: f64 = 3.0;

/// # Errors
/// When the fleet does not come together, or a task does not succeed.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let binary = lull_server::binary(arguments).await?;
    let scene = Scene::new(Testbed::of_this_checkout()?)?;
    let server = LullServer::start(&binary, &scene, "127.0.0.1:0").await?;
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: files.maximum, ..files })?;

    let vms = add_fleet(&server.client, &scene).await?;
    let pace = Arc::new(Pace::default());
    // Dropped, they hang up.
    let _proxies = join_all(&server.client, &scene, &pace).await?;
    let idle_mib = server.memory_mib()?;

    eprintln!("{ALONE} tasks, one at a time");
    add_job(&server.client, "alone", &vms[..1]).await?;
    let mut alone = Vec::new();
    for _ in 0..ALONE {
        alone.extend(dispatches(&server.run("alone").await?)?);
    }
    add_job(&server.client, "fleet", &vms).await?;
    eprintln!("{VMS} tasks whose copies take 10 to 30 s");
    pace.set(Duration::from_secs(10), Duration::from_secs(30));
    let begun = Instant::now();
    let loaded = dispatches(&server.run("fleet").await?)?;
    eprintln!("took {:.0} s; dispatches p99 {:.0} ms", begun.elapsed().as_secs_f64(), quantile(&loaded, 0.99));
    eprintln!("{VMS} tasks whose copies take no time");
    pace.set(Duration::ZERO, Duration::ZERO);
    let begun = Instant::now();
    dispatches(&server.run("fleet").await?)?;
    let took = begun.elapsed();

    let (p99, p99_alone) = (quantile(&loaded, 0.99), quantile(&alone, 0.99));
    Ok(vec![
        Figure::new("dispatch under load, p99", "ms", p99).beside(p99_alone).goal(Goal::RatioAtMost(RATIO_MAX), true),
        Figure::new("dispatch under load, median", "ms", median(&loaded)).beside(median(&alone)),
        Figure::new("tasks each second, guests that take no time", "tasks", VMS as f64 / took.as_secs_f64()),
        Figure::new("memory of the server, proxies connected", "MiB", idle_mib),
        Figure::new("memory of the server, most", "MiB", server.memory_mib()?)
            .goal(Goal::ValueAtMost(MEMORY_MIB_MAX), true),
    ])
}

/// Hosts with VMs, a repository, a credential. VMs are not running: their sockets are plain files, and the hosts' lists say so.
async fn add_fleet(client: &Client, scene: &Scene) -> Result<Vec<String>> {
    let credential = NewCredential {
        name: "fleet".into(),
        user: "root".into(),
        password: Some("in memory".into()),
        private_key: None,
        passphrase: None,
        elevation: Elevation::None,
        elevation_password: None,
    };
    client.post::<Credential>("/credentials", &credential).await?;
    let path = scene.repository().to_string_lossy().into_owned();
    client.post::<Repository>("/repositories", &NewRepository { name: "local".into(), path }).await?;
    client.patch::<Repository>("/repositories/local", &RepositoryChange { max_tasks: Some(0) }).await?;
    let mut vms = Vec::with_capacity(VMS);
    for host in 0..SITES {
        let folder = scene.hosts().join(format!("host{host:03}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let named: Vec<String> = (0..VMS_PER_HOST).map(|vm| format!("vm{:04}", host * VMS_PER_HOST + vm)).collect();
        for name in &named {
            std::fs::write(folder.join(format!("{name}.qmp")), "")?;
        }
        let qemu_dir = folder.to_string_lossy().into_owned();
        client
            .post::<Host>("/hosts", &NewHost { name: format!("host{host:03}"), qemu_dir, fleecing_dir: None })
            .await?;
        vms.extend(named);
    }
    let changes = vms.iter().enumerate().map(|(n, name)| async move {
        let host = n / VMS_PER_HOST;
        let address = format!("10.{host}.0.{}", 10 + n % VMS_PER_HOST);
        let change = VmChange {
            addresses: Some(vec![address]),
            connect: None,
            credential: Some("fleet".into()),
            guest_os: None,
        };
        client.patch::<Vm>(&format!("/vms/{name}"), &change).await
    });
    let mut changed = futures::stream::iter(changes).buffer_unordered(AT_ONCE);
    while let Some(changed) = changed.next().await {
        changed?;
    }
    drop(changed);
    Ok(vms)
}

/// All proxies, joined, connected and online.
async fn join_all(client: &Client, scene: &Scene, pace: &Arc<Pace>) -> Result<JoinSet<()>> {
    let begun = Instant::now();
    let mut proxies = JoinSet::new();
    for n in 0..PROXIES {
        let name = format!("proxy{n:03}");
        let token: JoinToken = client
            .post("/proxies/tokens", &NewJoinToken { name: Some(name.clone()), ..NewJoinToken::default() })
            .await?;
        let folder = scene.hosts().join(&name);
        let key = NewKey::make()?;
        let identity = join::join(
            &format!("127.0.0.1:{}", token.port),
            &token.token.parse()?,
            &join::Name::Machine(name.clone()),
            &key,
        )
        .await?;
        membership::save(&folder, &identity, false)?;
        let membership = Arc::new(Membership::open(&folder)?);
        let desk = Desk::new(ProxyConfig { slots: SLOTS, membership: Some(membership.clone()) });
        let network = format!("10.{}.0.0/16", n / PROXIES_PER_SITE).parse()?;
        let site = Arc::new(Site { network, pace: pace.clone() });
        proxies.spawn(async move {
            let dismissed = dial::stay_connected(&membership, |io| service::serve_on(io, &desk, site.clone())).await;
            eprintln!("a proxy was turned away: {}", dismissed.why);
        });
    }
    loop {
        let known: Vec<Proxy> = client.get("/proxies").await?;
        let online = known.iter().filter(|proxy| proxy.state == "online").count();
        // And the backup server's own.
        if online == PROXIES + 1 {
            eprintln!("{PROXIES} proxies joined and came online in {:.1} s", begun.elapsed().as_secs_f64());
            return Ok(proxies);
        }
        ensure!(begun.elapsed() < FLEET_LIMIT, "only {online} of {} proxies came online", PROXIES + 1);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn add_job(client: &Client, name: &str, vms: &[String]) -> Result<()> {
    let job = NewJob {
        name: name.into(),
        vms: vms.to_vec(),
        repository: "local".into(),
        guest: GuestSettings::default(),
        ..NewJob::default()
    };
    client.post::<SavedJob>("/jobs", &job).await?;
    Ok(())
}

/// How long each task's dispatch took, in milliseconds. Every task must have succeeded.
fn dispatches(finished: &Finished) -> Result<Vec<f64>> {
    let mut chosen: BTreeMap<Uuid, Timestamp> = BTreeMap::new();
    let mut took_ms: BTreeMap<Uuid, f64> = BTreeMap::new();
    for event in &finished.events {
        let (Some(task), Ok(at)) = (event.task, event.at.parse::<Timestamp>()) else { continue };
        match &event.event {
            EventKind::ProxyChosen { .. } => {
                chosen.insert(task, at);
            }
            EventKind::StepStarted { .. } => {
                let since = *chosen.get(&task).context("a task began that no proxy was chosen for")?;
                took_ms.entry(task).or_insert(at.duration_since(since).as_secs_f64() * 1_000.0);
            }
            EventKind::TaskFinished { result, failure, .. } if result != "success" => {
                bail!("a task ended with {result}: {}", failure.as_ref().map_or("", |failure| &failure.text));
            }
            _ => {}
        }
    }
    ensure!(took_ms.len() == finished.session.tasks.len(), "{} tasks began", took_ms.len());
    Ok(took_ms.into_values().collect())
}

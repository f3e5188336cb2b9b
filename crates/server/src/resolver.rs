//! DNS names of guests: looked up at the edge, remembered for a minute, and never waited for longer than two seconds. Knows no VMs.

use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How long things may take and count.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// An answer is used for so long without asking again, a failure too.
    fresh: Duration,
    /// An answer that could not be renewed still counts for so long: a name server that is down must not keep a guest from being backed up.
    kept: Duration,
    /// Whoever needs addresses waits so long for those that are not known yet; the lookups go on without him.
    wait: Duration,
    /// Longest lookup.
    lookup: Duration,
}

const PACE: Pace = Pace {
    fresh: Duration::from_secs(60),
    kept: Duration::from_secs(3_600),
    wait: Duration::from_secs(2),
    lookup: Duration::from_secs(10),
};
/// Lookups at a time.
const AT_A_TIME: usize = 16;
/// Addresses of one name that count.
const ADDRESSES_MAX: usize = 64;

type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// Its addresses.
    To(Vec<IpAddr>),
    /// Why they are not known.
    Not(String),
}

#[derive(Default)]
struct Known {
    addresses: Vec<IpAddr>,
    answered: Option<Instant>,
    problem: Option<String>,
    /// When it was asked last; `None` while a lookup is under way.
    asked: Option<Instant>,
}

/// Looks names up and remembers what came.
#[derive(Clone)]
pub struct Resolver {
    known: Arc<Mutex<BTreeMap<String, Known>>>,
    lookup: Lookup,
    pace: Pace,
    at_a_time: Arc<Semaphore>,
}

impl Resolver {
    /// By the system's own means: its hosts file, its name servers.
    pub fn system() -> Self {
        let lookup: Lookup = Arc::new(|name| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((name, 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        });
        Resolver::with(lookup, PACE)
    }

    fn with(lookup: Lookup, pace: Pace) -> Self {
        Resolver { known: Arc::default(), lookup, pace, at_a_time: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Sees to it that these names are known, and forgets all others.
    pub async fn freshen(&self, names: BTreeSet<String>) {
        let mut lookups = Vec::new();
        {
            let mut known = self.lock();
            known.retain(|name, _| names.contains(name));
            for name in names {
                let old = match known.get_mut(&name) {
                    // Being looked up by somebody else, or looked up just now.
                    Some(old) if old.asked.is_none_or(|at| at.elapsed() < self.pace.fresh) => continue,
                    Some(old) => old,
                    None => known.entry(name.clone()).or_default(),
                };
                old.asked = None;
                lookups.push(tokio::spawn(self.clone().look_up(name)));
            }
        }
        if !lookups.is_empty() {
            let all = futures::future::join_all(lookups);
            // Past this, what was known before counts.
            let _ = tokio::time::timeout(self.pace.wait, all).await;
        }
    }

    async fn look_up(self, name: String) {
        // The semaphore is never closed.
        let _turn = self.at_a_time.acquire().await;
        let found = tokio::time::timeout(self.pace.lookup, (self.lookup)(name.clone())).await;
        let found = match found {
            Err(_) => Err(format!("no answer within {} s", self.pace.lookup.as_secs_f32())),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(addresses)) if addresses.is_empty() => Err("it has no address".to_string()),
            Ok(Ok(addresses)) => Ok(addresses),
        };
        let mut known = self.lock();
        let Some(entry) = known.get_mut(&name) else { return };
        entry.asked = Some(Instant::now());
        match found {
            Ok(mut addresses) => {
                let mut seen = BTreeSet::new();
                addresses.retain(|address| seen.insert(*address));
                addresses.truncate(ADDRESSES_MAX);
                (entry.addresses, entry.answered, entry.problem) = (addresses, Some(Instant::now()), None);
            }
            Err(problem) => entry.problem = Some(problem),
        }
    }

    /// What is known of a name now, without asking anybody.
    pub fn get(&self, name: &str) -> Resolved {
        let known = self.lock();
        let Some(entry) = known.get(name) else { return Resolved::Not("it was not looked up yet".into()) };
        let counts = entry.answered.is_some_and(|at| at.elapsed() < self.pace.kept);
        match (counts, &entry.problem) {
            (true, _) => Resolved::To(entry.addresses.clone()),
            (false, Some(problem)) => Resolved::Not(problem.clone()),
            (false, None) => Resolved::Not("it is being looked up".into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn address() -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }

    fn pace() -> Pace {
        Pace { fresh: Duration::from_secs(1), kept: Duration::from_secs(4), ..PACE }
    }

    /// A name server that answers this address, counts, and can be switched off.
    fn server() -> (Resolver, Arc<AtomicUsize>, Arc<AtomicBool>) {
        let (asked, down) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, is_down) = (asked.clone(), down.clone());
        let lookup: Lookup = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            let is_down = is_down.load(Ordering::SeqCst);
            Box::pin(async move {
                if is_down { Err(io::Error::other("the name server is down")) } else { Ok(vec![address(), address()]) }
            })
        });
        (Resolver::with(lookup, pace()), asked, down)
    }

    #[tokio::test]
    async fn an_answer_counts_for_a_while_and_is_kept_while_the_name_server_is_down() {
        let (resolver, asked, down) = server();
        let db = names(&["db.example"]);
        assert!(matches!(resolver.get("db.example"), Resolved::Not(_)));
        for _ in 0..3 {
            resolver.freshen(db.clone()).await;
            assert_eq!(resolver.get("db.example"), Resolved::To(vec![address()]));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        down.store(true, Ordering::SeqCst);
        tokio::time::sleep(pace().fresh).await;
        resolver.freshen(db.clone()).await;
        assert_eq!((asked.load(Ordering::SeqCst), resolver.get("db.example")), (2, Resolved::To(vec![address()])));
        tokio::time::sleep(pace().kept).await;
        assert_eq!(resolver.get("db.example"), Resolved::Not("the name server is down".into()));
        // What nobody asks for any more is forgotten.
        resolver.freshen(BTreeSet::new()).await;
        assert!(resolver.lock().is_empty());
    }

    #[tokio::test]
    async fn a_name_server_that_never_answers_is_not_waited_for_long_and_by_nobody_twice() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let lookup: Lookup = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Box::pin(std::future::pending())
        });
        let (wait, limit) = (Duration::from_millis(50), Duration::from_secs(1));
        let resolver = Resolver::with(lookup, Pace { wait, lookup: limit, ..PACE });
        let since = Instant::now();
        let many: BTreeSet<String> = (0..100).map(|n| format!("vm{n:02}.example")).collect();
        resolver.freshen(many.clone()).await;
        assert!(since.elapsed() >= wait && since.elapsed() < limit, "{:?}", since.elapsed());
        assert_eq!(asked.load(Ordering::SeqCst), AT_A_TIME, "so many at a time");
        // They are under way.
        resolver.freshen(many.clone()).await;
        assert_eq!(asked.load(Ordering::SeqCst), AT_A_TIME);
        assert_eq!(resolver.get("vm01.example"), Resolved::Not("it is being looked up".into()));
        let gave_up = || many.iter().any(|name| resolver.get(name) == Resolved::Not("no answer within 1 s".into()));
        while !gave_up() {
            assert!(since.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

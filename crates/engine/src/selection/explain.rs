//! The choice with its reasons: who was chosen, and what stands against every other server. Chooses nothing itself.

use super::{Rank, Rejection, Request, Tier, choose, feasible, feasible_as_fallback, feasible_without_guest, rank};
use crate::failover::RememberedFailure;
use crate::ids::{ServerId, VmId};
use crate::infrastructure::{ChannelKind, ManagedServer};
use crate::licence::Licence;
use crate::settings::ProxyPolicy;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The server that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Its id.
    pub server: ServerId,
    /// Its name.
    pub name: String,
    /// How near it is to the VM.
    pub tier: Tier,
    /// How it will reach the guest.
    pub channel: ChannelKind,
    /// Tasks it runs now, this one not among them.
    pub running_tasks: u32,
    /// Tasks it may run at once; where all are taken, the task waits for one.
    pub slots: u32,
    /// It failed with this VM lately, and still nobody else is better.
    pub recently_failed: bool,
}

/// Why a server that could serve the VM was not chosen: the first difference in rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Behind {
    /// It failed with this VM lately.
    RecentlyFailed {
        /// When.
        at: Timestamp,
        /// The cause in words.
        cause: String,
    },
    /// It is not in the VM's network, unlike the chosen one.
    OtherNetwork,
    /// It is the backup server, unlike the chosen one.
    BackupServer,
    /// It runs more tasks than the chosen one.
    MoreTasks {
        /// How many it runs.
        running: u32,
        /// How many the chosen one runs.
        chosen_runs: u32,
    },
    /// Equal in everything; the smaller id decides.
    OrderOfIds,
}

/// What was found about a server that was not chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Judgement {
    /// It could serve the VM too.
    Feasible {
        /// Its place in the order.
        rank: Rank,
        /// Why it is not the first.
        behind: Behind,
    },
    /// It cannot serve the VM.
    Rejected {
        /// Why not.
        reason: Rejection,
    },
}

/// A server that was not chosen, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its id.
    pub server: ServerId,
    /// Its name.
    pub name: String,
    /// What was found.
    pub judgement: Judgement,
}

/// Something about the whole choice that a person should know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Note {
    /// None of the preferred servers can serve the VM; the backup server took over.
    BackupServerTookOver,
    /// The job prefers servers, but the licence leaves only the backup server.
    LicenceLeavesNoChoice {
        /// The licence in force.
        licence: Licence,
    },
}

/// A choice that explains itself. `Display` renders it for people, one server a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// The server that was chosen, or `None` where none can serve the VM.
    pub chosen: Option<Chosen>,
    /// Every other server: feasible ones by rank, then rejected ones by name.
    pub others: Vec<Verdict>,
    /// What else a person should know.
    pub note: Option<Note>,
    /// Failures with this VM that still count, of servers that could serve it.
    #[serde(default)]
    pub failures: Vec<RememberedFailure>,
}

impl Decision {
    /// The failure with this VM that is remembered of a server that could serve it, in a sentence.
    pub fn failure_of(&self, server: ServerId) -> Option<String> {
        let failure = self.failures.iter().find(|failure| failure.server == server)?;
        Some(failed_lately(failure.at, &failure.cause))
    }

    /// How many servers could still take over if the chosen one failed.
    pub fn next_in_line(&self) -> usize {
        self.others.iter().filter(|verdict| matches!(verdict.judgement, Judgement::Feasible { .. })).count()
    }
}

/// Chooses a guest interaction proxy for a VM and says why that one and not another.
pub fn select(request: &Request) -> Decision {
    let best = choose(request);
    // Once the backup server stands in, it is judged as the fallback, the others still by the job's policy.
    let stood_in = best.is_some_and(|(index, _)| feasible(&request.servers[index], request).is_err());
    let chosen = best.and_then(|(index, rank)| {
        let server = &request.servers[index];
        let channel = feasible(server, request).or_else(|_| feasible_as_fallback(server, request)).ok()?;
        Some(Chosen {
            server: server.id,
            name: server.name.clone(),
            tier: rank.tier(),
            channel,
            running_tasks: server.running_tasks,
            slots: server.slots,
            recently_failed: rank.recently_failed,
        })
    });

    let mut feasible_others = Vec::new();
    let mut rejected = Vec::new();
    for (index, server) in request.servers.iter().enumerate() {
        if best.is_some_and(|(chosen, _)| chosen == index) {
            continue;
        }
        let judged = match feasible(server, request) {
            // As fallback the backup server has its own reason, or is one more feasible server behind the chosen.
            Err(Rejection::NotPreferred) if server.is_backup_server => match feasible_as_fallback(server, request) {
                Ok(_) if !stood_in => Err(Rejection::OnlyFallback),
                judged => judged,
            },
            judged => judged,
        };
        match (judged, best) {
            (Ok(_), Some((_, best))) => {
                let rank = rank(server, request);
                let behind = behind(&rank, &best, server, request);
                feasible_others.push((rank, verdict(server, Judgement::Feasible { rank, behind })));
            }
            (Err(reason), _) => rejected.push(verdict(server, Judgement::Rejected { reason })),
            // `choose` takes any server that is feasible, so there is a best one.
            (Ok(_), None) => {}
        }
    }
    feasible_others.sort_by_key(|(rank, _)| *rank);
    rejected.sort_by(|a, b| (&a.name, a.server).cmp(&(&b.name, b.server)));

    let prefers = matches!(request.policy, ProxyPolicy::Prefer { .. });
    let note = if prefers && !request.licence.admits_proxies() {
        Some(Note::LicenceLeavesNoChoice { licence: request.licence })
    } else {
        stood_in.then_some(Note::BackupServerTookOver)
    };
    let able = chosen.iter().map(|chosen| chosen.server).chain(feasible_others.iter().map(|(rank, _)| rank.id));
    let failures =
        able.filter_map(|server| request.failures.recent(request.vm.id, server, request.now).cloned()).collect();
    Decision {
        vm: request.vm.id,
        vm_name: request.vm.name.clone(),
        chosen,
        others: feasible_others.into_iter().map(|(_, verdict)| verdict).chain(rejected).collect(),
        note,
        failures,
    }
}

/// What stands against every server where a backup that leaves the guest alone finds nobody to make it.
pub fn nobody_without_guest(request: &Request) -> Decision {
    let rejection = |server| feasible_without_guest(server, request).err();
    let against = |server| Some(verdict(server, Judgement::Rejected { reason: rejection(server)? }));
    let mut others: Vec<Verdict> = request.servers.iter().filter_map(against).collect();
    others.sort_by(|a, b| (&a.name, a.server).cmp(&(&b.name, b.server)));
    let (vm, vm_name) = (request.vm.id, request.vm.name.clone());
    Decision { vm, vm_name, chosen: None, others, note: None, failures: Vec::new() }
}

fn verdict(server: &ManagedServer, judgement: Judgement) -> Verdict {
    Verdict { server: server.id, name: server.name.clone(), judgement }
}

fn behind(rank: &Rank, best: &Rank, server: &ManagedServer, request: &Request) -> Behind {
    if rank.recently_failed
        && !best.recently_failed
        && let Some(failure) = request.failures.recent(request.vm.id, server.id, request.now)
    {
        return Behind::RecentlyFailed { at: failure.at, cause: failure.cause.clone() };
    }
    if rank.other_network != best.other_network {
        Behind::OtherNetwork
    } else if rank.is_backup_server != best.is_backup_server {
        Behind::BackupServer
    } else if rank.running_tasks != best.running_tasks {
        Behind::MoreTasks { running: rank.running_tasks, chosen_runs: best.running_tasks }
    } else {
        Behind::OrderOfIds
    }
}

fn failed_lately(at: Timestamp, cause: &str) -> String {
    format!("it failed with this VM at {at:.0} ({cause}) and ranks last for 15 minutes")
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RecentlyFailed { at, cause } => {
                write!(f, "{}", failed_lately(*at, cause))
            }
            Self::OtherNetwork => f.write_str("it is not in the VM's network"),
            Self::BackupServer => f.write_str("it is the backup server, which comes after proxies as near"),
            Self::MoreTasks { running, chosen_runs } => {
                write!(f, "it runs {running} tasks, the chosen one {chosen_runs}")
            }
            Self::OrderOfIds => f.write_str("it is as good; the smaller id decides"),
        }
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feasible { rank, behind } => {
                write!(f, "could serve it (tier {}), but {behind}", rank.tier().number())
            }
            Self::Rejected { reason } => write!(f, "cannot: {reason}"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackupServerTookOver => {
                f.write_str("none of the preferred servers can serve it: the backup server takes over")
            }
            Self::LicenceLeavesNoChoice { licence } => {
                write!(f, "the job's preferred servers do not count under the {licence} licence")
            }
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.chosen {
            Some(chosen) => {
                write!(
                    f,
                    "{}: {} over {} ({}; {} of {} slots in use)",
                    self.vm_name, chosen.name, chosen.channel, chosen.tier, chosen.running_tasks, chosen.slots
                )?;
                if chosen.recently_failed {
                    f.write_str(", although it failed with this VM lately")?;
                }
            }
            None => write!(f, "{}: no server can serve it", self.vm_name)?,
        }
        if let Some(note) = &self.note {
            write!(f, "\n  {note}")?;
        }
        for other in &self.others {
            write!(f, "\n  {}: {}", other.name, other.judgement)?;
        }
        Ok(())
    }
}

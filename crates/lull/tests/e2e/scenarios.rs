//! All scenarios by name, the hardest first.

mod applications;
mod cancel;
mod history;
mod hold;
mod hops;
mod hypervisor;
mod input;
mod killed;
mod login;
mod matrix;
mod proxies;
mod qmp;
mod repository;
mod room;
mod scripts;
mod whole_job;

use crate::world::World;

/// Plays one piece of bad luck and asserts what became of it; panics where it is not as it should be.
pub struct Scenario {
    pub name: &'static str,
    pub play: fn(&mut World),
}

/// Scenarios that share a guest; for a runner of tests it is one test.
pub struct Group {
    pub test: &'static str,
    /// Which of the testbed's images the guest boots.
    pub image: &'static str,
    pub scenarios: &'static [Scenario],
}

pub const GROUPS: &[Group] = &[
    Group { test: "the_whole_product_on_a_real_guest", image: "pg", scenarios: ALL },
    Group { test: "history_on_a_real_guest", image: "pg", scenarios: HISTORY },
    Group { test: "proxies_of_their_own_on_a_real_guest", image: "pg", scenarios: PROXIES },
    Group { test: "kill_matrix_on_a_real_guest", image: "pg", scenarios: MATRIX },
    Group { test: "a_whole_job_on_a_guest_with_systemd", image: "systemd", scenarios: SYSTEMD },
    Group { test: "a_whole_job_on_a_guest_with_lvm_xfs_and_esp", image: "full", scenarios: FULL },
];

const PROXIES: &[Scenario] = &[
    Scenario { name: "proxy killed while the guest is frozen", play: proxies::killed_while_frozen },
    Scenario { name: "proxy that stands still", play: proxies::stands_still },
    Scenario { name: "server killed while a proxy has the task", play: proxies::server_killed_in_mid_task },
    Scenario { name: "proxy revoked in mid-task", play: proxies::revoked_in_mid_task },
    Scenario { name: "line cut for a while", play: proxies::line_cut_for_a_while },
    Scenario { name: "slow line", play: proxies::slow_line },
    Scenario { name: "freeze window far from the server", play: proxies::window_far_from_the_server },
];
const MATRIX: &[Scenario] = &[Scenario { name: "kill matrix", play: matrix::play }];
const SYSTEMD: &[Scenario] = &[Scenario { name: "whole job, systemd", play: whole_job::systemd }];
const FULL: &[Scenario] = &[Scenario { name: "whole job, LVM, XFS and ESP", play: whole_job::full }];

const HISTORY: &[Scenario] = &[
    Scenario { name: "files found again in every version", play: history::found_again },
    Scenario { name: "server killed in ingest", play: history::server_killed_in_ingest },
    Scenario { name: "clock of the guest set back", play: history::clock_of_the_guest_set_back },
    Scenario { name: "guest reboots in mid-walk", play: history::guest_reboots_in_mid_walk },
    Scenario { name: "guest reboots in mid-copy", play: history::guest_reboots_in_mid_copy },
    Scenario { name: "repository away between two runs", play: history::repository_away_between_two_runs },
    Scenario { name: "two jobs on one VM at once", play: history::two_jobs_at_once },
    Scenario { name: "runs by itself and keeps one", play: history::runs_by_itself_and_keeps_one },
];

/// In the order in which they are played.
const ALL: &[Scenario] = &[
    Scenario { name: "server killed while the guest is frozen", play: killed::while_frozen },
    Scenario { name: "server stopped while the guest is frozen", play: killed::stopped_while_frozen },
    Scenario { name: "server killed while data is copied", play: killed::while_copying },
    Scenario { name: "a file created while frozen appears after the thaw", play: hold::file_created_while_frozen },
    Scenario { name: "exit codes of quiesce", play: hold::exit_codes },
    Scenario { name: "a command longer than the budget", play: hold::longer_than_the_budget },
    Scenario { name: "the caller of quiesce killed", play: hold::caller_killed },
    Scenario { name: "wrong password, sudo refused, su refused", play: login::refused },
    Scenario { name: "changed host key", play: login::changed_host_key },
    Scenario { name: "port closed, silent, no route", play: hops::unreachable },
    Scenario { name: "frozen by somebody else", play: hold::frozen_by_somebody_else },
    Scenario { name: "scripts that fail, hang or print binary", play: scripts::bad_scripts },
    Scenario { name: "PostgreSQL refusing, slow or down", play: applications::postgres },
    Scenario { name: "repository full under write load", play: repository::full },
    Scenario { name: "repository slow under write load", play: repository::slow },
    Scenario { name: "repository gone", play: repository::gone },
    Scenario { name: "VM paused, in another backup, socket taken", play: hypervisor::busy },
    Scenario { name: "QMP connection cut", play: qmp::cut },
    Scenario { name: "leftovers in the hypervisor", play: hypervisor::leftovers },
    Scenario { name: "backup after backup", play: hypervisor::backup_after_backup },
    Scenario { name: "cancelled at each step", play: cancel::at_each_step },
    Scenario { name: "no folder for programs, no room", play: room::none },
    Scenario { name: "unknown names and malformed input", play: input::wrong },
];

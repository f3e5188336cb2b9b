//! Backups that leave their guest alone: who makes them.

use super::{Queue, check, with_slots};
use crate::world::{at_ms, backup_server, failure, server_id, task_id};
use lull_engine::infrastructure::{ManagedServer, ServerState};
use lull_engine::licence::{Edition, Licence};
use lull_engine::selection::nobody_without_guest;
use lull_engine::settings::{Fallback, ProxyPolicy};

/// A backup of a VM whose guest is left alone.
fn left_alone(servers: Vec<ManagedServer>) -> Queue {
    let mut queue = Queue::new(servers).waits(1, 1, 1, 0);
    queue.entries[0].in_guest = false;
    queue.entries[0].credential = None;
    queue
}

#[test]
fn a_backup_that_leaves_its_guest_alone_is_the_backup_servers_even_where_a_proxy_is_nearer() {
    let queue = left_alone(vec![backup_server(), with_slots(1, 4)]);
    check(&queue, &[(1, 0)], &[]);
    assert_eq!(queue.plan().assignments[0].tier, None);
    // Neither the guest's failures nor what the job prefers for guests changes that.
    let mut queue = left_alone(vec![backup_server(), with_slots(1, 4)]);
    queue.failures = vec![failure(queue.entries[0].vm.id, server_id(0), at_ms(-1))].into();
    queue.entries[0].policy = ProxyPolicy::Prefer { servers: vec![server_id(1)], fallback: Fallback::None };
    check(&queue, &[(1, 0)], &[]);
}

#[test]
fn without_the_backup_server_a_proxy_that_the_job_and_the_licence_admit_makes_the_snapshot() {
    let disabled = ManagedServer { state: ServerState::Disabled, ..backup_server() };
    let mut queue = left_alone(vec![disabled, with_slots(1, 4), with_slots(2, 4)]);
    check(&queue, &[(1, 1)], &[]);
    queue.entries[0].policy = ProxyPolicy::Prefer { servers: vec![server_id(2)], fallback: Fallback::None };
    check(&queue, &[(1, 2)], &[]);
    queue.licence = Licence::Socket { edition: Edition::Standard };
    assert_eq!(queue.plan().unservable, [task_id(1)]);
    let said = nobody_without_guest(&queue.request(&queue.entries[0], &queue.servers)).to_string();
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines[..2], ["vm-1: no server can serve it", "backup: cannot: an administrator disabled it"]);
    assert!(lines[2].starts_with("lin-1: cannot: the socket licence"), "{said}");
}

#[test]
fn a_proxy_makes_the_snapshot_after_a_minute_without_a_slot_of_the_backup_server() {
    let full = ManagedServer { running_tasks: 4, ..backup_server() };
    let mut queue = left_alone(vec![full, with_slots(1, 4)]);
    check(&queue, &[], &[1]);
    queue.entries[0].waiting_since = at_ms(-60_000);
    check(&queue, &[(1, 1)], &[]);
}

//! From the start of a task to a runtime component that answers, against one OpenSSH login that runs `true` on the same
//! guest. Paired and interleaved; prints medians, and as its last line JSON.
//!
//! `cargo bench -p lull-proxy --features testbed --bench runtime_ready [-- PAIRS]`

#[path = "../tests/support/guest.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod guest;

use guest::Guest;
use lull_guest_wire::Command;
use lull_proxy::access::{Elevation, GuestAccess};
use lull_proxy::channel::GuestChannel;
use lull_proxy::{carried, deploy, ssh};
use std::time::{Duration, Instant};

/// The goal of the specification: this many times the login.
const GOAL: f64 = 1.5;

/// Milliseconds to connect and to deploy, and what the component still does is not counted.
async fn ready(access: &GuestAccess) -> (f64, f64) {
    let started = Instant::now();
    let channel = ssh::connect(access).await.unwrap();
    let connected = started.elapsed();
    let mut deployed = deploy::deploy(&channel, &carried::linux_x86_64().unwrap()).await.unwrap();
    let ready = started.elapsed();
    deployed.client.call(Command::Bye, Duration::from_secs(5)).await.unwrap();
    channel.close().await;
    (connected.as_secs_f64() * 1e3, ready.as_secs_f64() * 1e3)
}

fn login(guest: &Guest) -> f64 {
    let started = Instant::now();
    guest.ssh("true");
    started.elapsed().as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let pairs = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(15);
    let guest = Guest::boot("pg", "ready");
    let sudo = guest.access("admin", None, Elevation::Sudo(Some("lull-test".into())));
    let (mut logins, mut connects, mut roots, mut sudos) = (vec![], vec![], vec![], vec![]);
    for _ in 0..pairs {
        logins.push(login(&guest));
        let (connected, ready_ms) = ready(&guest.root()).await;
        connects.push(connected);
        roots.push(ready_ms);
        sudos.push(ready(&sudo).await.1);
    }
    let (login, root, sudo) = (median(logins), median(roots), median(sudos));
    println!("OpenSSH login running true: {login:.0} ms; our login alone: {:.0} ms", median(connects));
    println!(
        "runtime ready as root: {root:.0} ms ({:.2}x); with sudo: {sudo:.0} ms ({:.2}x)",
        root / login,
        sudo / login
    );
    let figure = |name: &str, value: f64| {
        let ratio = value / login;
        let met = ratio <= GOAL;
        serde_json::json!({ "name": name, "unit": "ms", "value": value, "peer": login, "ratio": ratio, "goal": GOAL, "met": met })
    };
    println!("{}", serde_json::json!([figure("runtime-ready-root", root), figure("runtime-ready-sudo", sudo)]));
}

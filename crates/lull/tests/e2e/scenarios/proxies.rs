//! Proxies that are programs of their own: killed, revoked, cut off, far away; and a server that dies while one has the task. Each joins
//! through a relay of the testbed's, which is the line between both.

use crate::program::{lull, signal, testbed, wait_for};
use crate::scenarios::hold::Hold;
use crate::world::{JOB, World, assert_clean_receipt, task};
use lull_api::infrastructure::{JoinToken, Proxy};
use lull_api::session::{EventKind, Session};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Milliseconds that the line takes each way, in the scenario that is far away.
const FAR_MS: u64 = 100;

/// A relay, and a proxy behind it. Both end with it.
struct Branch {
    relay: Child,
    control: PathBuf,
    proxy: Child,
}

/// Its name.
const NAME: &str = "branch";

impl Branch {
    /// A proxy over a line like this, online.
    fn open(world: &World, line: &[&str]) -> Branch {
        let name = NAME;
        let control = world.folder.join(format!("{name}.line"));
        let mut relay = Command::new("python3")
            .arg(testbed("relay.py"))
            .args(["127.0.0.1:0", world.proxy_address(), "--control"])
            .arg(&control)
            .args(line)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(relay.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let address = said.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{said}"));
        let token: JoinToken = world.lull(&["proxy", "token", "--name", name]).ok().json();
        let file = world.folder.join(format!("{name}.token"));
        std::fs::write(&file, token.token).unwrap();
        let of_proxy = |arguments: &[&str]| {
            let mut command = lull();
            command.arg("--state-dir").arg(world.folder.join(name)).arg("proxy").args(arguments);
            command
        };
        let joined = of_proxy(&["join", address, "--token-file"]).arg(&file).output();
        let joined = joined.unwrap();
        assert!(joined.status.success(), "{joined:?}");
        let log = std::fs::File::create(world.folder.join(format!("{name}.log"))).unwrap();
        let proxy = of_proxy(&["run"]).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let branch = Branch { relay, control, proxy };
        wait_for(60, "it is online", || {
            let proxies: Vec<Proxy> = world.lull(&["proxy", "list"]).ok().json();
            proxies.into_iter().find(|proxy| proxy.name == name && proxy.state == "online")
        });
        branch
    }

    /// Ends both, and takes the proxy out of the infrastructure.
    fn close(self, world: &World) {
        drop(self);
        world.lull(&["proxy", "revoke", NAME]).ok();
        wait_for(120, "it has no tasks", || (world.lull(&["proxy", "remove", NAME]).code == 0).then_some(()));
        std::fs::remove_dir_all(world.folder.join(NAME)).unwrap();
    }

    /// Tells the relay how the line is from now on.
    fn line(&self, command: &str) {
        use std::io::Write;
        let mut control = std::os::unix::net::UnixStream::connect(&self.control).unwrap();
        writeln!(control, "{command}").unwrap();
        let mut answer = String::new();
        BufReader::new(control).read_line(&mut answer).unwrap();
        assert!(answer.starts_with('{'), "{answer}");
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        for child in [&mut self.proxy, &mut self.relay] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Names of the proxies that had the task, in their order.
fn served(world: &World, session: i64) -> Vec<String> {
    let events: Vec<lull_api::session::SessionEvent> = {
        let outcome = world.lull(&["session", "follow", &session.to_string()]);
        outcome.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let chosen = |event: &lull_api::session::SessionEvent| match &event.event {
        EventKind::ProxyChosen { explanation } => explanation.chosen.clone(),
        _ => None,
    };
    events.iter().filter_map(chosen).collect()
}

fn assert_succeeded(session: &Session) {
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(task(session).level.as_deref(), Some("application"));
    assert_clean_receipt(session);
}

/// It dies with the guest at rest: the guest thaws by itself, and the backup server's own proxy does the task anew.
pub fn killed_while_frozen(world: &mut World) {
    let branch = Branch::open(world, &[]);
    let pulse = world.guest.pulse();
    let hold = Hold::begin(world, &["--freeze-budget", "60s", "--lease", "5s"]);
    pulse.assert_frozen();
    let fault = Instant::now();
    signal(&branch.proxy, Signal::KILL);
    let thawed = pulse.thaw_after(fault);
    println!("   proxy SIGKILLed while the guest was frozen: a write got through after {} ms", thawed.as_millis());
    assert!(thawed <= Duration::from_secs(7), "{thawed:?}");
    let of_hold = hold.session;
    assert_eq!(served(world, of_hold).first().map(String::as_str), Some(NAME));
    assert_ne!(hold.end().code, 0, "COMMAND was not inside the quiet moment to its end");
    let session = world.finished(of_hold);
    assert_ne!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    branch.close(world);
    let session = world.run_job(JOB);
    assert_succeeded(&session);
    assert_eq!(served(world, session.summary.id), ["backup-server"]);
}

/// Its worker is stopped in mid-copy, with the VM's monitor in its hands: the watcher kills it, and the next proxy does the task.
pub fn stands_still(world: &mut World) {
    world.make_job("slow", &["--full-every", "1", "--copy-limit", "16MiB"]);
    let branch = Branch::open(world, &[]);
    let (id, events) = world.start_job("slow");
    events.until_step("copy");
    let parent = branch.proxy.id();
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let worker: i32 = children.split_whitespace().next().expect("it has a worker").parse().unwrap();
    kill_process(Pid::from_raw(worker).unwrap(), Signal::STOP).unwrap();
    let since = Instant::now();
    let session = world.finished(id);
    println!("   a stopped worker's task ended elsewhere after {:.1} s", since.elapsed().as_secs_f64());
    assert_succeeded(&session);
    assert_eq!(served(world, id), [NAME, "backup-server"]);
    drop(events);
    branch.close(world);
    world.lull(&["job", "remove", "slow"]).ok();
}

/// The proxy goes on, finishes, and tells the next server.
pub fn server_killed_in_mid_task(world: &mut World) {
    world.make_job("slow", &["--full-every", "1", "--copy-limit", "64MiB"]);
    let branch = Branch::open(world, &[]);
    let (id, events) = world.start_job("slow");
    events.until_step("copy");
    drop(events);
    world.kill_server();
    std::thread::sleep(Duration::from_secs(2));
    world.start_server();
    let session = world.finished(id);
    assert_succeeded(&session);
    assert_eq!(served(world, id), [NAME], "no other began it");
    let point = task(&session).restore_point.unwrap();
    world.lull(&["restore-point", "verify", &point.to_string()]).ok();
    branch.close(world);
    world.lull(&["job", "remove", "slow"]).ok();
}

/// It loses the task at once, undoes it by itself, and the next one does it.
pub fn revoked_in_mid_task(world: &mut World) {
    world.make_job("slow", &["--full-every", "1", "--copy-limit", "32MiB"]);
    let branch = Branch::open(world, &[]);
    let (id, events) = world.start_job("slow");
    events.until_step("copy");
    world.lull(&["proxy", "revoke", NAME]).ok();
    let session = world.finished(id);
    assert_succeeded(&session);
    assert_eq!(served(world, id), [NAME, "backup-server"]);
    drop(events);
    branch.close(world);
    world.lull(&["job", "remove", "slow"]).ok();
}

/// A partition of ten seconds, connections left standing, then closed: the task goes on and is told afterwards.
pub fn line_cut_for_a_while(world: &mut World) {
    world.make_job("slow", &["--full-every", "1", "--copy-limit", "32MiB"]);
    let branch = Branch::open(world, &[]);
    let (id, events) = world.start_job("slow");
    events.until_step("copy");
    branch.line("freeze");
    std::thread::sleep(Duration::from_secs(15));
    branch.line("close");
    branch.line("forward");
    let session = world.finished(id);
    assert_succeeded(&session);
    assert_eq!(served(world, id), [NAME]);
    drop(events);
    branch.close(world);
    world.lull(&["job", "remove", "slow"]).ok();
}

/// 1 Mbit/s and 300 ms each way: everything takes longer, and nothing is taken for dead.
pub fn slow_line(world: &mut World) {
    let branch = Branch::open(world, &["--delay-ms", "300", "--rate-bit-s", "1000000"]);
    let began = Instant::now();
    let session = world.run_job(JOB);
    assert_succeeded(&session);
    assert_eq!(served(world, session.summary.id), [NAME]);
    println!("   a whole job over 1 Mbit/s and 300 ms: {:.1} s", began.elapsed().as_secs_f64());
    branch.close(world);
}

/// The window never crosses the line. A round trip would take 200 ms; the figures are for docs/performance.md.
pub fn window_far_from_the_server(world: &mut World) {
    let windows = |line: &[&str]| {
        let branch = Branch::open(world, line);
        let mut windows: Vec<u64> = (0..5)
            .map(|_| {
                let session = world.run_job(JOB);
                assert_succeeded(&session);
                assert_eq!(served(world, session.summary.id), [NAME]);
                task(&session).freeze_window_us.expect("it was frozen")
            })
            .collect();
        branch.close(world);
        windows.sort_unstable();
        windows
    };
    let near = windows(&[]);
    let far = windows(&["--delay-ms", &FAR_MS.to_string()]);
    let (near_us, far_us) = (near[near.len() / 2], far[far.len() / 2]);
    println!("   freeze window, median of 5: {near_us} us beside the server, {far_us} us with {FAR_MS} ms each way");
    println!("   all: {near:?} and {far:?}");
    assert!(far_us < near_us + 1_000 * FAR_MS, "the window crossed the line: {near_us} and {far_us} us");
}

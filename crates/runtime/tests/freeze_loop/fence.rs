//! Components of several tasks in one guest: the newest order's stays, the others go and leave nothing.

use crate::bed::Bed;
use crate::client::Component;
use crate::deploy::{command_with_fence, start, start_with_fence};
use lull_guest_wire::*;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What a component says that is not let in, until it ends; within a time.
fn turned_away(mut command: std::process::Command) -> Vec<FromRuntime> {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = Vec::new();
    process.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert!(!process.wait().unwrap().success());
    let mut said = said.as_slice();
    std::iter::from_fn(|| frame::read(&mut said).ok()).collect()
}

fn frozen(bed: &Bed, fence: u64) -> Component {
    let mut component = start_with_fence(bed, fence);
    component.arm(1, 30_000, 60_000);
    component.freeze(1);
    component
}

#[test]
fn a_newer_task_has_the_older_ones_component_thaw_and_go() {
    let bed = Bed::new();
    let mut old = frozen(&bed, 7);
    let hanging = bed.create_files_that_hang("old");
    let began = Instant::now();
    let mut new = start_with_fence(&bed, 8);
    let took = began.elapsed();
    for (place, when) in &hanging {
        when.recv_timeout(Duration::from_secs(2)).unwrap_or_else(|_| panic!("{place} is still frozen"));
    }
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(old.last_words().last(), Some(&FromRuntime::Evicted), "it says so");
    new.status();
    assert!(new.notes.iter().any(|note| note.contains("was asked to go")), "{:?}", new.notes);
    new.arm(2, 5_000, 30_000);
    new.freeze(2);
    assert!(new.thaw(2).no_gap);
    new.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn an_older_task_is_turned_away_and_disturbs_nothing() {
    let bed = Bed::new();
    let mut holder = frozen(&bed, 8);
    for fence in [1, 7] {
        let said = turned_away(command_with_fence(&bed, fence));
        let [FromRuntime::Held(held)] = said.as_slice() else { panic!("{said:?}") };
        assert!(held.fence == 8 && held.message.contains("newer task"), "{held:?}");
    }
    holder.renew(1).unwrap();
    assert!(holder.thaw(1).no_gap, "the freeze that was in its way went on");
    holder.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn a_second_component_of_one_task_takes_the_place_of_the_first() {
    let bed = Bed::new();
    let mut lost = start_with_fence(&bed, 8);
    let second = start_with_fence(&bed, 8);
    assert_eq!(lost.last_words(), [FromRuntime::Evicted]);
    second.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn a_component_without_a_fence_neither_goes_nor_makes_others_go() {
    let bed = Bed::new();
    let mut without = start(&bed);
    let mut with = start_with_fence(&bed, 8);
    let mut another = start(&bed);
    for component in [&mut without, &mut with, &mut another] {
        component.status();
    }
    [without, with, another].into_iter().for_each(Component::bye);
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn the_script_of_an_evicted_task_ends_with_all_that_it_started() {
    let bed = Bed::new();
    let mut old = start_with_fence(&bed, 7);
    let script = ScriptOrder {
        stage: ScriptStage::PreFreeze,
        body: b"#!/bin/sh\nsetsid sleep 1000 & sleep 1000\n".to_vec(),
        timeout_ms: 600_000,
        environment: vec![],
    };
    old.send(Command::Script(script));
    std::thread::sleep(Duration::from_millis(500));
    let before = bed.processes();
    assert!(before.iter().any(|(_, name)| name == "sleep"), "{before:?}");
    start_with_fence(&bed, 8).bye();
    assert_eq!(old.last_words().last(), Some(&FromRuntime::Evicted));
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

/// Whoever is not root can call a program as he likes: it neither holds the guest nor can it have anybody go.
#[test]
fn a_program_of_an_ordinary_user_holds_nothing() {
    let bed = Bed::new();
    let mut command = command_with_fence(&bed, 1_000_000);
    let folder = std::path::Path::new(command.get_program()).parent().unwrap().to_path_buf();
    let folder = bed.path(folder.to_str().unwrap());
    crate::bed::run(&format!("chmod 755 {0} {0}/lull-runtime", folder.display()));
    // SAFETY: two system calls between fork and exec, after the one that enters the host.
    unsafe {
        command.pre_exec(|| match (libc::setgid(65_534), libc::setuid(65_534)) {
            (0, 0) => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    let squatter = Component::over_pipes(command);
    let holder = start_with_fence(&bed, 8);
    // SAFETY: no pointers; it asks whether the user may signal the process, in a child that ends at once.
    let may_signal = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::setuid(65_534);
            libc::_exit((libc::kill(holder.hello.pid as i32, libc::SIGUSR2) == 0) as i32);
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        libc::WEXITSTATUS(status)
    };
    assert_eq!(may_signal, 0);
    holder.bye();
    squatter.bye();
    std::fs::remove_dir_all(folder).unwrap();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

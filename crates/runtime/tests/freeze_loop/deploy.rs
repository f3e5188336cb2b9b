//! Puts the component into a test host as a proxy would, and starts it there.

use crate::bed::{self, Bed};
use crate::client::Component;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

static DEPLOYMENTS: AtomicU32 = AtomicU32::new(0);

/// A component at work in the host.
pub fn start(bed: &Bed) -> Component {
    let path = deploy(bed);
    let mut command = bed.command(&path);
    command.args(serve_arguments());
    Component::over_pipes(command)
}

/// The same for an order with this fence.
pub fn start_with_fence(bed: &Bed, fence: u64) -> Component {
    Component::over_pipes(command_with_fence(bed, fence))
}

/// What starts it.
pub fn command_with_fence(bed: &Bed, fence: u64) -> std::process::Command {
    let mut command = bed.command(&deploy_into(bed, &format!(".{fence}")));
    command.args(serve_arguments());
    command
}

/// Its path in the host.
pub fn deploy(bed: &Bed) -> String {
    deploy_into(bed, "")
}

fn deploy_into(bed: &Bed, ending: &str) -> String {
    let folder = format!("/run/lull-{:06}{ending}", DEPLOYMENTS.fetch_add(1, Ordering::SeqCst));
    let outside = bed.path(&folder);
    std::fs::create_dir(&outside).unwrap();
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o700)).unwrap();
    let file = outside.join("lull-runtime");
    // By another process: a descriptor open for writing here could be inherited by another test's fork, and the file be busy.
    bed::run(&format!("cp {} {}", bed::component().display(), file.display()));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
    format!("{folder}/lull-runtime")
}

/// The arguments that keep this machine's own file systems out of every plan.
pub fn serve_arguments() -> Vec<String> {
    let machine = bed::machine_superblocks();
    let guards = machine.iter().flat_map(|superblock| ["--never-freeze".to_string(), superblock.to_string()]);
    std::iter::once("serve".to_string()).chain(guards).collect()
}

//! Logins and elevations that are refused are tried once; a host key that changed is accepted by a person only.

use crate::told::assert_says;
use crate::world::{JOB, VM, World, assert_clean_receipt, sentence};

/// A credential that the guest refuses.
struct Refusal {
    /// Flags of `credential add`, but for the passwords.
    account: &'static [&'static str],
    password: &'static str,
    /// For sudo or su, where it is another one.
    elevation: Option<&'static str>,
    /// What the guest's log counts.
    counted: &'static str,
    says: &'static [&'static str],
}

const REFUSALS: &[Refusal] = &[
    Refusal {
        account: &["--user", "admin", "--sudo"],
        password: "not-this",
        elevation: None,
        counted: "Failed password for admin",
        says: &[
            "at the guest's login",
            "127.0.0.1",
            "admin",
            "password",
            "tried once",
            "not tried again",
            "correct credential",
        ],
    },
    Refusal {
        account: &["--user", "plain", "--sudo"],
        password: "lull-test",
        elevation: None,
        counted: "plain : .*\\(NOT in sudoers\\|not in sudoers\\)",
        says: &["at the elevation", "plain", "sudo", "tried once", "not tried again"],
    },
    Refusal {
        account: &["--user", "admin", "--sudo"],
        password: "lull-test",
        elevation: Some("not-this"),
        counted: "sudo.*authentication failure.*user=admin",
        says: &["at the elevation", "admin", "sudo", "tried once", "not tried again"],
    },
    Refusal {
        account: &["--user", "plain", "--su"],
        password: "lull-test",
        elevation: Some("not-this"),
        counted: "FAILED SU (to root) plain",
        says: &["at the elevation", "password of root", "su refused", "tried once", "not tried again"],
    },
];

pub fn refused(world: &mut World) {
    let (password, elevation) = (world.folder.join("password"), world.folder.join("elevation"));
    for refusal in REFUSALS {
        std::fs::write(&password, refusal.password).unwrap();
        let (password, elevation_file) = (password.display().to_string(), elevation.display().to_string());
        let mut add = vec!["credential", "add", "refused"];
        add.extend(refusal.account);
        add.extend(["--password-file", &password]);
        if let Some(secret) = refusal.elevation {
            std::fs::write(&elevation, secret).unwrap();
            add.extend(["--elevation-password-file", &elevation_file]);
        }
        world.lull(&add).ok();
        world.lull(&["vm", "set", VM, "--credential", "refused"]).ok();
        let logins = || world.guest.log_count(&format!("Accepted password for {} from", refusal.account[1]));
        let before = (world.guest.log_count(refusal.counted), logins());
        let session = world.run_job(JOB);
        assert_says(&sentence(&session), refusal.says);
        let once = (world.guest.log_count(refusal.counted), logins());
        let at_login = usize::from(!refusal.says[0].contains("login"));
        assert_eq!((once.0 - before.0, once.1 - before.1), (1, at_login), "exactly one attempt: {:?}", refusal.account);
        // It rests: the job and the test do not even connect.
        for again in [&["job", "run", JOB][..], &["vm", "test", VM]] {
            let session = world.lull(again).json();
            assert_says(&sentence(&session), &["refused", "was not tried", refusal.account[1]]);
        }
        assert_eq!((world.guest.log_count(refusal.counted), logins()), once, "tried again: {:?}", refusal.account);
        world.lull(&["vm", "set", VM, "--credential", "root-key"]).ok();
        world.lull(&["credential", "remove", "refused"]).ok();
    }
    cured_by_a_correction(world);
}

/// A credential that was corrected may be tried again.
fn cured_by_a_correction(world: &mut World) {
    let file = world.folder.join("password");
    let path = file.display().to_string();
    std::fs::write(&file, "not-this").unwrap();
    world.lull(&["credential", "add", "app", "--user", "admin", "--sudo", "--password-file", &path]).ok();
    world.lull(&["vm", "set", VM, "--credential", "app"]).ok();
    assert_eq!(world.lull(&["vm", "test", VM]).code, 1);
    std::fs::write(&file, "lull-test").unwrap();
    world.lull(&["credential", "set", "app", "--password-file", &path]).ok();
    world.lull(&["vm", "test", VM]).ok();
    world.lull(&["vm", "set", VM, "--credential", "root-key"]).ok();
    world.lull(&["credential", "remove", "app"]).ok();
}

pub fn changed_host_key(world: &mut World) {
    let fingerprint = || {
        let line = world.guest.ssh("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
        line.split_whitespace().find(|word| word.starts_with("SHA256:")).unwrap().to_string()
    };
    let pinned = fingerprint();
    assert_says(world.vm().host_key.as_deref().unwrap(), &[&pinned]);
    world.guest.ssh(
        "cd /etc/ssh && rm ssh_host_ed25519_key* && ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key && \
         kill -HUP $(cat /run/sshd.pid) && sleep 1",
    );
    let shown = fingerprint();
    assert_ne!(pinned, shown);
    let session = world.run_job(JOB);
    assert_says(
        &sentence(&session),
        &["between proxy and guest", "host key", &pinned, &shown, "lull vm accept-host-key", VM],
    );
    // Nobody but a person accepts it: not a second run, nor the command without a person or a fingerprint.
    assert_says(&sentence(&world.run_job(JOB)), &["host key"]);
    let unattended = world.lull(&["vm", "accept-host-key", VM]);
    assert_ne!(unattended.code, 0, "{unattended:?}");
    assert_says(&unattended.words(), &[&pinned, &shown]);
    world.lull(&["vm", "accept-host-key", VM, "--fingerprint", &shown]).ok();
    let session: lull_api::session::Session = world.lull(&["vm", "test", VM]).ok().json();
    assert_clean_receipt(&session);
}

//! A real guest for one test: built (or found) and booted by the testbed's scripts, stopped when the test ends.
//!
//! Knows the accounts that testbed/guest/accounts.sh makes.

use lull_proxy::access::{Elevation, Endpoint, GuestAccess, HostKey, Login};
use std::path::PathBuf;
use std::process::Command;

pub struct Guest {
    name: String,
    folder: PathBuf,
    pub port: u16,
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testbed/guest").join(name)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

fn testbed_folder() -> PathBuf {
    std::env::var_os("LULL_TESTBED").map_or_else(|| script("../../.testbed"), PathBuf::from)
}

impl Guest {
    /// Boots a guest of this variant (`pg`, `full`, `systemd`).
    pub fn boot(variant: &str, what_for: &str) -> Guest {
        let built = run(Command::new(script("build.sh")).arg(variant));
        let image = built.lines().last().expect("build.sh prints the image's path");
        let name = format!("proxy-{what_for}-{}", std::process::id());
        // Short, since sockets lie in it.
        let folder = std::env::temp_dir().join(&name);
        let mut start = Command::new(script("vm.sh"));
        start.args(["start", &name, "--image", image, "--wait", "--dir"]).arg(&folder);
        // First of all a guest that will be stopped, whatever comes next.
        let mut guest = Guest { name, folder, port: 0 };
        run(&mut start);
        let port = std::fs::read_to_string(guest.folder.join(format!("{}.port", guest.name))).unwrap();
        guest.port = port.trim().parse().unwrap();
        guest
    }

    /// The folder of its sockets: a QEMU host.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// Its name: that of the VM on that host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command as root by another way than ours, and returns what it printed.
    pub fn ssh(&self, command: &str) -> String {
        run(Command::new(script("vm.sh")).args(["ssh", &self.name, "--dir"]).arg(&self.folder).arg("--").arg(command))
    }

    /// Lines of the guest's log that hold `pattern`.
    pub fn log_count(&self, pattern: &str) -> usize {
        let command =
            format!("(cat /var/log/syslog 2>/dev/null || journalctl --no-pager) | grep -c -- '{pattern}'; true");
        self.ssh(&command).parse().unwrap()
    }

    /// By `user`'s password, or by the testbed's key where there is none.
    pub fn access(&self, user: &str, password: Option<&str>, elevation: Elevation) -> GuestAccess {
        let key = || std::fs::read_to_string(testbed_folder().join("keys/id_test")).unwrap();
        let login = match password {
            Some(password) => Login::Password(password.into()),
            None => Login::PrivateKey { pem: key().into(), passphrase: None },
        };
        GuestAccess {
            vm_name: self.name.clone(),
            endpoints: vec![Endpoint { host: "127.0.0.1".into(), port: self.port }],
            credential: format!("{user}-credential"),
            user: user.into(),
            login,
            elevation,
            host_keys: Vec::<HostKey>::new(),
        }
    }

    /// The same for a call to a proxy.
    pub fn target(&self) -> lull_proxy_wire::v1::GuestTarget {
        use lull_proxy_wire::v1;
        let pem = std::fs::read_to_string(testbed_folder().join("keys/id_test")).unwrap();
        let key = v1::PrivateKey { pem, passphrase: String::new() };
        v1::GuestTarget {
            endpoints: vec![v1::Endpoint { host: "127.0.0.1".into(), port: self.port.into() }],
            credential: Some(v1::Credential {
                name: "root-key".into(),
                user: "root".into(),
                login: Some(v1::credential::Login::PrivateKey(key)),
                ..Default::default()
            }),
            host_keys: vec![],
        }
    }

    /// The guest's VM on its QEMU host.
    pub fn hypervisor(&self, fleecing: &std::path::Path) -> lull_proxy_wire::v1::HypervisorTarget {
        use lull_proxy_wire::v1;
        let qemu = v1::QemuTarget {
            sockets_dir: self.folder.display().to_string(),
            vm: self.name.clone(),
            fleecing_dir: fleecing.display().to_string(),
        };
        v1::HypervisorTarget { kind: Some(v1::hypervisor_target::Kind::Qemu(qemu)) }
    }

    /// As root with the testbed's key.
    pub fn root(&self) -> GuestAccess {
        self.access("root", None, Elevation::None)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = Command::new(script("vm.sh")).args(["stop", &self.name, "--dir"]).arg(&self.folder).output();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

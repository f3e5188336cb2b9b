//! The SSH channel against OpenSSH's own server on this machine's loopback: keys, banners, limits and login shells.
//!
//! The server has a configuration of its own, no sftp subsystem, and lets in whoever runs the test, by key; only root can
//! run it. Nothing is deployed here, and nothing is frozen.

#[path = "support/contract.rs"]
mod contract;

use lull_proxy::access::{Elevation, Endpoint, GuestAccess, Login};
use lull_proxy::channel::{ExecOutput, Exit, FailureKind, GuestChannel, Hop, Limits, Script};
use lull_proxy::guest_session::{Connector, SshConnector};
use lull_proxy::ssh;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// An sshd that lives as long as this value.
struct Sshd {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

fn keygen(folder: &Path, name: &str, kind: &str, passphrase: &str) {
    let path = folder.join(name);
    let _ = std::fs::remove_file(&path);
    let status =
        Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", passphrase, "-f"]).arg(path).status().unwrap();
    assert!(status.success());
}

impl Sshd {
    /// With the host key `host` and these lines of configuration.
    fn start(extra: &str) -> Sshd {
        let folder = tempfile::tempdir().unwrap();
        keygen(folder.path(), "host", "ed25519", "");
        Sshd::in_folder(folder, extra)
    }

    fn in_folder(folder: tempfile::TempDir, extra: &str) -> Sshd {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = folder.path().display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nAuthorizedKeysFile {at}/authorized\nLogLevel VERBOSE\n{extra}\n"
        );
        std::fs::write(folder.path().join("config"), config).unwrap();
        // sshd's privilege separation wants this folder.
        let _ = std::fs::create_dir_all("/run/sshd");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(folder.path().join("config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Sshd { child, folder, port }
    }

    /// Makes a key that may log in.
    fn access(&self, kind: &str, passphrase: &str) -> GuestAccess {
        keygen(self.folder.path(), "user", kind, passphrase);
        let file = |name: &str| self.folder.path().join(name);
        std::fs::copy(file("user.pub"), file("authorized")).unwrap();
        let pem = std::fs::read_to_string(file("user")).unwrap();
        let passphrase = (!passphrase.is_empty()).then(|| passphrase.to_string().into());
        GuestAccess {
            vm_name: "local".into(),
            endpoints: vec![Endpoint { host: "127.0.0.1".into(), port: self.port }],
            credential: "local-key".into(),
            user: "root".into(),
            login: Login::PrivateKey { pem: pem.into(), passphrase },
            elevation: Elevation::None,
            host_keys: vec![],
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn hello(access: &GuestAccess) -> ExecOutput {
    let channel = ssh::connect(access).await.unwrap_or_else(|e| panic!("{e}; {}", e.remedy));
    let output = channel.exec_elevated(&Script::new("test", "echo hello"), b"", Limits::default()).await;
    channel.close().await;
    output.unwrap_or_else(|e| panic!("{e}; {}", e.remedy))
}

#[tokio::test(flavor = "multi_thread")]
async fn openssh_keeps_the_contract_without_sftp_and_behind_a_banner() {
    let banner = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(banner.path(), "SSH-2.0-not really\n".repeat(200)).unwrap();
    let sshd = Sshd::start(&format!("Banner {}", banner.path().display()));
    let channel = ssh::connect(&sshd.access("ed25519", "")).await.unwrap();
    contract::holds(&channel).await;
    channel.close().await;
    assert!(!sshd.log().contains("sftp"), "no sftp was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_open_with_their_passphrase_and_with_no_other() {
    let sshd = Sshd::start("");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        assert_eq!(hello(&sshd.access(kind, "open sesame")).await.stdout, b"hello\n", "{kind}");
    }
    let mut wrong = sshd.access("ed25519", "open sesame");
    for passphrase in [Some("wrong"), None] {
        let Login::PrivateKey { pem, .. } = wrong.login.clone() else { panic!() };
        wrong.login = Login::PrivateKey { pem, passphrase: passphrase.map(|p| p.to_string().into()) };
        let error = ssh::connect(&wrong).await.err().expect("the key stays shut");
        assert_eq!((error.hop, error.kind), (Hop::Login, FailureKind::Refused), "{error}");
        assert!(error.what.contains("passphrase"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_known_there_is_refused_and_offered_once() {
    let sshd = Sshd::start("");
    let access = sshd.access("ed25519", "");
    std::fs::write(sshd.folder.path().join("authorized"), "").unwrap();
    let error = ssh::connect(&access).await.err().expect("refused");
    assert_eq!((error.hop, error.kind), (Hop::Login, FailureKind::Refused), "{error}");
    assert_eq!(sshd.log().matches("Failed publickey for root").count(), 1, "{}", sshd.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pinned_key_is_asked_for_and_a_changed_one_refused_before_any_login() {
    let folder = tempfile::tempdir().unwrap();
    keygen(folder.path(), "host", "rsa", "");
    keygen(folder.path(), "second", "ed25519", "");
    let second = folder.path().join("second").display().to_string();
    let sshd = Sshd::in_folder(folder, &format!("HostKey {second}"));
    let mut access = sshd.access("ed25519", "");
    let first = ssh::connect(&access).await.unwrap();
    assert_eq!(first.host_key().key.algorithm, "ssh-ed25519", "the best one at first contact");
    let mut rsa = first.host_key().key.clone();
    first.close().await;
    let fingerprint = Command::new("ssh-keygen").args(["-l", "-f"]).arg(sshd.folder.path().join("host.pub")).output();
    let fingerprint = String::from_utf8(fingerprint.unwrap().stdout).unwrap();
    (rsa.algorithm, rsa.fingerprint) = ("ssh-rsa".into(), fingerprint.split(' ').nth(1).unwrap().into());
    access.host_keys = vec![rsa];
    assert!(
        !ssh::connect(&access).await.unwrap().host_key().first_contact,
        "the pinned one although a better one is there"
    );

    access.host_keys[0].fingerprint = "SHA256:of-yesterday".into();
    let logins = sshd.log().matches("Accepted publickey").count();
    let error = ssh::connect(&access).await.err().expect("changed");
    assert_eq!(error.kind, FailureKind::HostKey);
    assert!(error.remedy.contains("lull vm accept-host-key local"), "{}", error.remedy);
    assert_eq!(sshd.log().matches("Accepted publickey").count(), logins, "nobody logged in");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_at_a_time_is_enough_and_none_is_named() {
    let one = Sshd::start("MaxSessions 1");
    let channel = ssh::connect(&one.access("ed25519", "")).await.unwrap();
    for _ in 0..3 {
        channel.exec_elevated(&Script::new("test", "true"), b"", Limits::default()).await.unwrap();
    }
    channel.close().await;
    let none = Sshd::start("MaxSessions 0");
    let channel = ssh::connect(&none.access("ed25519", "")).await.unwrap();
    let error = channel.exec_elevated(&Script::new("test", "true"), b"", Limits::default()).await.unwrap_err();
    assert_eq!((error.hop, error.kind), (Hop::Exec, FailureKind::GuestSide), "{error}");
    assert!(error.remedy.contains("MaxSessions"), "{}", error.remedy);
}

/// The server's own way to give an account another shell; the command goes through that shell unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn every_login_shell_runs_our_command_noisy_or_not() {
    for shell in ["sh", "bash", "dash", "zsh", "fish", "tcsh", "csh"] {
        let path =
            ["/bin", "/usr/bin"].iter().map(|folder| format!("{folder}/{shell}")).find(|p| Path::new(p).exists());
        let path = path.unwrap_or_else(|| panic!("{shell} is missing: testbed/install.sh installs it"));
        for noise in ["", "echo no newline at the end: | tr -d '\\n'; echo words >&2; "] {
            let sshd = Sshd::start(&format!("ForceCommand {noise}exec {path} -c \"$SSH_ORIGINAL_COMMAND\""));
            let output = hello(&sshd.access("ed25519", "")).await;
            assert_eq!((output.exit, output.stdout.as_slice()), (Exit::Code(0), &b"hello\n"[..]), "{shell}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_runs_nothing_is_named_with_its_words() {
    let sshd = Sshd::start("ForceCommand echo This account is not available.; exit 1");
    let channel = ssh::connect(&sshd.access("ed25519", "")).await.unwrap();
    let error = channel.open_elevated(&Script::new("test", "true")).await.unwrap_err();
    assert_eq!((error.hop, error.kind), (Hop::Exec, FailureKind::GuestSide));
    assert!(error.what.contains("This account is not available"), "{error}");
}

/// A guest that lets everybody in and tells how a command ended before it sends what the command wrote, as OpenSSH does when
/// the command is quicker than its pipes.
struct Hasty;

impl russh::server::Handler for Hasty {
    type Error = russh::Error;

    async fn auth_password(&mut self, _: &str, _: &str) -> Result<russh::server::Auth, russh::Error> {
        Ok(russh::server::Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: russh::Channel<russh::server::Msg>,
        reply: russh::server::ChannelOpenHandle,
        _: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: russh::ChannelId,
        command: &[u8],
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let wrote = Command::new("sh").arg("-c").arg(String::from_utf8(command.to_vec()).unwrap()).output().unwrap();
        session.channel_success(channel)?;
        session.exit_status_request(channel, wrote.status.code().unwrap().try_into().unwrap())?;
        session.data(channel, wrote.stdout)?;
        session.close(channel)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_that_comes_before_the_output_counts() {
    let ([key, _], listener) = loopback().await;
    let access = account_at(&listener);
    let config = russh::server::Config { keys: vec![key], ..Default::default() };
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        russh::server::run_stream(Arc::new(config), socket, Hasty).await.unwrap().await
    });
    let channel = ssh::connect(&access).await.unwrap_or_else(|e| panic!("{e}"));
    let output = channel.exec_elevated(&Script::new("test", "echo hello; exit 7"), b"", Limits::default()).await;
    let output = output.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((output.exit, output.stdout.as_slice()), (Exit::Code(7), &b"hello\n"[..]));
    channel.close().await;
}

/// A guest that hangs up on a password (as sshd does when PAM denies the account) or refuses it, and counts them.
struct Door {
    passwords: Arc<AtomicU32>,
    hangs_up: bool,
}

impl russh::server::Handler for Door {
    type Error = russh::Error;

    async fn auth_password(&mut self, _: &str, _: &str) -> Result<russh::server::Auth, russh::Error> {
        self.passwords.fetch_add(1, Ordering::SeqCst);
        if self.hangs_up { Err(russh::Error::Disconnect) } else { Ok(russh::server::Auth::reject()) }
    }
}

/// Two host keys, and a listener for a server of ours.
async fn loopback() -> ([russh::keys::PrivateKey; 2], tokio::net::TcpListener) {
    let folder = tempfile::tempdir().unwrap();
    let key = |name| {
        keygen(folder.path(), name, "ed25519", "");
        russh::keys::load_secret_key(folder.path().join(name), None).unwrap()
    };
    ([key("first"), key("other")], tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
}

/// Two addresses of one guest, and an account with a password.
fn account_at(listener: &tokio::net::TcpListener) -> GuestAccess {
    let endpoint = Endpoint { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    GuestAccess {
        vm_name: "local".into(),
        endpoints: vec![endpoint.clone(), endpoint],
        credential: "local-password".into(),
        user: "backup".into(),
        login: Login::Password("s3cret".into()),
        elevation: Elevation::None,
        host_keys: vec![],
    }
}

/// How to reach a [`Door`], and how many passwords came to it. After `same` connections its host key is another one.
async fn door(hangs_up: bool, same: usize) -> (GuestAccess, Arc<AtomicU32>) {
    let (keys, listener) = loopback().await;
    let access = account_at(&listener);
    let passwords = Arc::new(AtomicU32::new(0));
    let counted = passwords.clone();
    tokio::spawn(async move {
        for n in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            let keys = vec![keys[usize::from(n >= same)].clone()];
            let config = russh::server::Config { keys, auth_rejection_time_initial: None, ..Default::default() };
            let door = Door { passwords: counted.clone(), hangs_up };
            tokio::spawn(async move {
                if let Ok(session) = russh::server::run_stream(Arc::new(config), socket, door).await {
                    let _ = session.await;
                }
            });
        }
    });
    (access, passwords)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_whose_answer_stays_out_is_sent_once() {
    let (access, passwords) = door(true, usize::MAX).await;
    let error = ssh::connect(&access).await.err().expect("it hangs up");
    assert_eq!(passwords.load(Ordering::SeqCst), 1, "{error}");
    assert_eq!((error.hop, error.kind), (Hop::Login, FailureKind::Unknown), "{error}");
    assert!(error.what.contains("sent once") && error.what.contains("outcome is unknown"), "{error}");
    assert!(error.accepted_key.is_some_and(|seen| seen.first_contact), "it is pinned at contact");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_first_contact_holds_although_its_login_was_refused() {
    let (access, passwords) = door(false, 1).await;
    let connector = SshConnector::new(access);
    let error = connector.connect().await.err().expect("refused");
    assert_eq!(error.kind, FailureKind::Refused, "{error}");
    let first = error.accepted_key.expect("it is pinned at contact").key.fingerprint;
    let error = connector.connect().await.err().expect("somebody else answers");
    assert_eq!(error.kind, FailureKind::HostKey, "{error}");
    assert!(error.what.contains(&first), "{error}");
    assert_eq!(passwords.load(Ordering::SeqCst), 1, "the other one gets no password");
}

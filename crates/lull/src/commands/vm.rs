//! `lull vm`: how to reach the guests of VMs; testing and rehearsing.

use super::job::WatchArgs;
use super::settings::GuestArgs;
use crate::calls;
use crate::exit::Exit;
use crate::follow;
use crate::render::infrastructure;
use crate::screen::Screen;
use crate::terminal;
use crate::trouble::{Result, Trouble};
use clap::{Args, Subcommand};
use lull_api::Client;
use lull_api::infrastructure::VmChange;
use lull_api::session::QuiesceRequest;
use std::net::IpAddr;

const SET_EXAMPLES: &str = "\
Examples:
  lull vm set shop --address 10.0.0.5 --credential root-key
  lull vm set shop --address shop.example                           a DNS name, resolved when a proxy is chosen
  lull vm set shop --address 127.0.0.1 --connect 127.0.0.1:2222     a forwarded port
  lull vm set shop --credential ''                                  takes the credential away";

/// What can be done with VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List the VMs of all hosts.
    List,
    /// Show a VM.
    Show {
        /// The VM, by name or HOST/VM.
        vm: String,
    },
    /// Say how to reach a VM's guest; what is not given stays as it is.
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
    /// Connect to the guest along every hop, and name the one that fails.
    ///
    /// Proxy, network, login, elevation, channel, applications found. Nothing is frozen.
    Test {
        /// The VM, by name or HOST/VM.
        vm: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Accept a changed SSH host key of a guest.
    ///
    /// Without --fingerprint the guest is asked for its key (nothing secret is sent), both fingerprints are shown, and
    /// you decide on the terminal.
    #[command(after_help = "Example:\n  lull vm accept-host-key shop --fingerprint SHA256:Gq0…")]
    AcceptHostKey {
        /// The VM, by name or HOST/VM.
        vm: String,
        /// Fingerprint of the new key, as the guest's console shows it.
        #[arg(long, value_name = "SHA256:…", value_parser = fingerprint)]
        fingerprint: Option<String>,
    },
    /// The whole quiesce and thaw without a snapshot, with measured times.
    Rehearse {
        /// The VM, by name or HOST/VM.
        vm: String,
        #[command(flatten)]
        guest: Box<GuestArgs>,
        #[command(flatten)]
        watch: WatchArgs,
    },
}

/// What `vm set` takes.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The VM, by name or HOST/VM.
    vm: String,
    /// All addresses or DNS names of the guest, in place of those before; they decide which proxies are in its network. '' takes them away:
    /// then those count that the guest agent says.
    #[arg(long, value_name = "IP|NAME", value_delimiter = ',', value_parser = address)]
    address: Vec<String>,
    /// Where to connect to, if that is not the first address and port 22; '' takes it away.
    #[arg(long, value_name = "HOST:PORT", value_parser = connect)]
    connect: Option<String>,
    /// Credential to log in with; '' takes it away.
    #[arg(long, value_name = "NAME")]
    credential: Option<String>,
    /// Operating system of the guest.
    #[arg(long, value_name = "OS", value_parser = ["linux", "windows"])]
    os: Option<String>,
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: VmCommand) -> Result<Exit> {
    match command {
        VmCommand::List => screen.show(&calls::vms(&client).await?, |vms, look| infrastructure::vms(vms, look))?,
        VmCommand::Show { vm } => screen.show(&calls::vm(&client, &vm).await?, infrastructure::vm)?,
        VmCommand::Set(args) => {
            let change = change(&args)?;
            screen.show(&calls::change_vm(&client, &args.vm, &change).await?, infrastructure::vm)?;
        }
        VmCommand::Test { vm, watch } => {
            let started = calls::test_vm(&client, &vm).await?;
            return follow::started(&client, screen, started, &watch).await;
        }
        VmCommand::Rehearse { vm, guest, watch } => {
            let request = QuiesceRequest { guest: guest.settings()? };
            let started = calls::rehearse(&client, &vm, &request).await?;
            return follow::started(&client, screen, started, &watch).await;
        }
        VmCommand::AcceptHostKey { vm, fingerprint } => {
            let fingerprint = match fingerprint {
                Some(fingerprint) => fingerprint,
                None => ask_for_key(&client, screen, &vm).await?,
            };
            let vm = calls::accept_host_key(&client, &vm, fingerprint).await?;
            screen.show(&vm, infrastructure::vm)?;
        }
    }
    Ok(Exit::Ok)
}

fn change(args: &SetArgs) -> Result<VmChange> {
    let change = VmChange {
        addresses: (!args.address.is_empty()).then(|| args.address.clone()),
        connect: args.connect.clone(),
        credential: args.credential.clone(),
        guest_os: args.os.clone(),
    };
    if change == VmChange::default() {
        return Err(
            Trouble::usage("nothing to change was given").remedy("`lull help vm set` lists what can be changed")
        );
    }
    Ok(change)
}

/// Asks the guest for its key, shows both fingerprints, and asks a person. Returns the fingerprint to accept.
async fn ask_for_key(client: &Client, screen: &Screen, vm: &str) -> Result<String> {
    let test = calls::test_vm(client, vm).await?;
    let test = follow::quietly(client, screen, test).await?;
    let known = calls::vm(client, vm).await?;
    let Some(shown) = known.refused_host_key else {
        let pinned = known.host_key.as_deref().unwrap_or("none yet");
        return Err(Trouble::local(Exit::Refused, "no-changed-key", format!("{vm} did not show another host key"))
            .why(format!("the pinned key is {pinned}, and the test (session {}) did not fail for it", test.summary.id))
            .remedy(format!("see what the test says: `lull session show {}`", test.summary.id)));
    };
    let pinned = known.host_key.as_deref().unwrap_or("none");
    let question = format!(
        "{vm} shows another host key than the pinned one.\n  pinned: {pinned}\n  now:    {shown}\n\
         Compare with the guest's console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\nAccept the new key? [yes/no]"
    );
    match terminal::ask_line(&question) {
        Ok(Some(answer)) if answer.trim() == "yes" => Ok(shown),
        Ok(Some(_)) => Err(Trouble::local(Exit::Failed, "not-accepted", "the new host key was not accepted")
            .why("only `yes` accepts it")),
        Ok(None) | Err(_) => Err(Trouble::usage("a person has to accept a changed host key")
            .why(format!("there is no terminal to ask on; pinned is {pinned}, the guest shows {shown}"))
            .remedy(format!(
                "compare with the guest's console, then `lull vm accept-host-key {vm} --fingerprint {shown}`"
            ))),
    }
}

pub(super) fn fingerprint(text: &str) -> std::result::Result<String, String> {
    let hash = text.strip_prefix("SHA256:").ok_or("a fingerprint begins with SHA256:")?;
    if hash.len() != 43 || !hash.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/') {
        return Err("a SHA256 fingerprint has 43 characters after SHA256:".into());
    }
    Ok(text.to_string())
}

/// An address, a DNS name, or nothing at all.
fn address(text: &str) -> std::result::Result<String, String> {
    let last_part = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && last_part.bytes().any(|b| b.is_ascii_alphabetic());
    if text.is_empty() || text.parse::<IpAddr>().is_ok() || is_name {
        Ok(text.to_string())
    } else {
        Err(format!("`{text}` is neither an IPv4 or IPv6 address nor a DNS name"))
    }
}

fn connect(text: &str) -> std::result::Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let (host, port) = text.rsplit_once(':').ok_or("write HOST:PORT")?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !bracketed) || host.contains([' ', '/', '@']) {
        return Err("write HOST:PORT, an IPv6 address in brackets".into());
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(text.to_string()),
        _ => Err(format!("`{port}` is no port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_connect_is_a_host_and_a_port() {
        for right in ["", "127.0.0.1:2222", "[::1]:22", "guest.example:22"] {
            assert_eq!(connect(right).as_deref(), Ok(right));
        }
        for wrong in ["guest", ":22", "guest:", "guest:0", "guest:99999", "::1:22", "a b:22", "root@guest:22"] {
            assert!(connect(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_guest_has_addresses_or_dns_names() {
        for right in ["", "10.0.0.5", "fd00::5", "shop", "shop.example"] {
            assert_eq!(address(right).as_deref(), Ok(right));
        }
        for wrong in ["999.1.1.1", "10.0.0", "a b", "10.0.0.5:22", "[fd00::5]"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fingerprints_are_checked_before_anything_is_sent() {
        assert!(fingerprint(&format!("SHA256:{}", "a".repeat(43))).is_ok());
        for wrong in ["", "SHA256:", "MD5:aa:bb", "SHA256:short"] {
            assert!(fingerprint(wrong).is_err(), "{wrong}");
        }
    }
}

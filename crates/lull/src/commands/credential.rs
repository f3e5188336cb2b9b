//! `lull credential`: accounts in guests. Secrets come from stdin, files or the terminal, never from arguments.

use super::removed;
use crate::calls;
use crate::exit::Exit;
use crate::render::infrastructure;
use crate::screen::Screen;
use crate::secrets::{self, Source};
use crate::trouble::{Result, Trouble};
use clap::{Args, Subcommand};
use lull_api::Client;
use lull_api::infrastructure::{CredentialChange, Elevation, NewCredential};
use std::path::PathBuf;

const ADD_EXAMPLES: &str = "\
Examples:
  lull credential add root-key --user root --key ~/.ssh/backup
  lull credential add app --user backup --sudo                           asks for the password
  pass show guests/app | lull credential add app --user backup --password-stdin --sudo
  lull credential add app --user backup --key ./id --su --elevation-password-file ./root-password

Secrets are never given as arguments: every user of the machine could read them.";

/// What can be done with credentials.
#[derive(Debug, Subcommand)]
pub enum CredentialCommand {
    /// Store an account of guests, encrypted.
    #[command(after_help = ADD_EXAMPLES)]
    Add(AddArgs),
    /// List the credentials, without their secrets.
    List,
    /// Show one credential, without its secrets.
    Show {
        /// Name of the credential.
        name: String,
    },
    /// Change a credential; what is not given stays as it is. It may be tried again where it was refused.
    #[command(after_help = "Example:\n  lull credential set app --password-file ./new-password")]
    Set(SetArgs),
    /// Let a credential that was refused be tried again, unchanged.
    Release {
        /// Name of the credential.
        name: String,
    },
    /// Remove a credential that no VM uses any more.
    Remove {
        /// Name of the credential.
        name: String,
    },
}

/// What `credential add` takes.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Name of the credential, unique.
    name: String,
    /// Account in the guest.
    #[arg(long)]
    user: String,
    #[command(flatten)]
    secrets: SecretArgs,
}

/// What `credential set` takes.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Name of the credential.
    name: String,
    /// New name.
    #[arg(long, value_name = "NAME")]
    rename: Option<String>,
    /// Account in the guest.
    #[arg(long)]
    user: Option<String>,
    /// Ask for a new password on the terminal.
    #[arg(long, conflicts_with_all = ["password_stdin", "password_file", "key"])]
    ask_password: bool,
    /// The account is root or does without.
    #[arg(long, conflicts_with_all = ["sudo", "sudo_nopasswd", "su"])]
    no_elevation: bool,
    #[command(flatten)]
    secrets: SecretArgs,
}

/// Login and elevation.
#[derive(Debug, Args)]
#[command(next_help_heading = "Login and elevation")]
pub(super) struct SecretArgs {
    /// Read the password from stdin (its first line).
    #[arg(long, conflicts_with_all = ["password_file", "key"])]
    password_stdin: bool,
    /// Read the password from a file (its first line).
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    password_file: Option<PathBuf>,
    /// Log in with this private key (PEM or OpenSSH) in place of a password.
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Read the key's passphrase from stdin.
    #[arg(long, requires = "key", conflicts_with = "passphrase_file")]
    passphrase_stdin: bool,
    /// Read the key's passphrase from a file.
    #[arg(long, value_name = "FILE", requires = "key")]
    passphrase_file: Option<PathBuf>,
    /// Become root by sudo, which asks for a password (default: the account's).
    #[arg(long, conflicts_with_all = ["sudo_nopasswd", "su"])]
    sudo: bool,
    /// Become root by sudo, which asks for nothing.
    #[arg(long, conflicts_with = "su")]
    sudo_nopasswd: bool,
    /// Become root by su with root's password.
    #[arg(long)]
    su: bool,
    /// Read the password for sudo or su from stdin.
    #[arg(long, conflicts_with = "elevation_password_file")]
    elevation_password_stdin: bool,
    /// Read the password for sudo or su from a file.
    #[arg(long, value_name = "FILE")]
    elevation_password_file: Option<PathBuf>,
    /// Refused, with the reason.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "")]
    password: Option<String>,
    /// Refused, with the reason.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "")]
    passphrase: Option<String>,
    /// Refused, with the reason.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "")]
    elevation_password: Option<String>,
}

/// Secrets, read.
pub(super) struct Secrets {
    pub(super) password: Option<String>,
    pub(super) private_key: Option<String>,
    pub(super) passphrase: Option<String>,
    pub(super) elevation_password: Option<String>,
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: CredentialCommand) -> Result<Exit> {
    match command {
        CredentialCommand::Add(args) => {
            let credential = new_credential(args)?;
            screen.show(&calls::add_credential(&client, &credential).await?, infrastructure::credential)?;
        }
        CredentialCommand::Set(args) => {
            let name = args.name.clone();
            let change = credential_change(args)?;
            screen.show(&calls::change_credential(&client, &name, &change).await?, infrastructure::credential)?;
        }
        CredentialCommand::List => {
            screen.show(&calls::credentials(&client).await?, |all, look| infrastructure::credentials(all, look))?;
        }
        CredentialCommand::Release { name } => {
            screen.show(&calls::release_credential(&client, &name).await?, infrastructure::credential)?;
        }
        CredentialCommand::Show { name } => {
            screen.show(&calls::credential(&client, &name).await?, infrastructure::credential)?;
        }
        CredentialCommand::Remove { name } => {
            calls::remove_credential(&client, &name).await?;
            return removed(screen, "credential", &name);
        }
    }
    Ok(Exit::Ok)
}

fn new_credential(args: AddArgs) -> Result<NewCredential> {
    let elevation = args.secrets.elevation().unwrap_or_default();
    // With a password there is one for sudo already; su wants root's, and sudo after a key wants the account's.
    let asks = elevation == Elevation::Su || (elevation == Elevation::Sudo && args.secrets.key.is_some());
    let secrets = args.secrets.read(&args.user, args.secrets.key.is_none(), asks)?;
    Ok(NewCredential {
        name: args.name,
        user: args.user,
        password: secrets.password,
        private_key: secrets.private_key,
        passphrase: secrets.passphrase,
        elevation,
        elevation_password: secrets.elevation_password,
    })
}

fn credential_change(args: SetArgs) -> Result<CredentialChange> {
    let user = args.user.as_deref().unwrap_or(&args.name);
    let elevation = if args.no_elevation { Some(Elevation::None) } else { args.secrets.elevation() };
    let secrets = args.secrets.read(user, args.ask_password, elevation == Some(Elevation::Su))?;
    let change = CredentialChange {
        name: args.rename,
        user: args.user,
        password: secrets.password,
        private_key: secrets.private_key,
        passphrase: secrets.passphrase,
        elevation,
        elevation_password: secrets.elevation_password,
    };
    if change == CredentialChange::default() {
        return Err(Trouble::usage("nothing to change was given").remedy(
            "`lull help credential set` lists what can be changed; `lull credential release` lets it be tried again",
        ));
    }
    Ok(change)
}

impl SecretArgs {
    pub(super) fn elevation(&self) -> Option<Elevation> {
        match (self.sudo, self.sudo_nopasswd, self.su) {
            (true, ..) => Some(Elevation::Sudo),
            (_, true, _) => Some(Elevation::SudoNopasswd),
            (.., true) => Some(Elevation::Su),
            _ => None,
        }
    }

    /// Reads what the flags name; a password is asked for where `ask_password` says so and no flag names it.
    pub(super) fn read(&self, user: &str, ask_password: bool, ask_elevation: bool) -> Result<Secrets> {
        self.refuse_arguments()?;
        let named = |source: &Source| *source != Source::Ask;
        let source = secrets::source(self.password_stdin, self.password_file.as_ref());
        let password = if named(&source) || ask_password {
            Some(secrets::read(&source, &format!("password of {user}"), "password")?)
        } else {
            None
        };
        let source = secrets::source(self.passphrase_stdin, self.passphrase_file.as_ref());
        let (private_key, passphrase) = match &self.key {
            None => (None, None),
            Some(file) => {
                let (key, encrypted) = secrets::read_key(file)?;
                let what = format!("passphrase of {}", file.display());
                let passphrase =
                    if encrypted || named(&source) { Some(secrets::read(&source, &what, "passphrase")?) } else { None };
                (Some(key), passphrase)
            }
        };
        let source = secrets::source(self.elevation_password_stdin, self.elevation_password_file.as_ref());
        let elevation_password = if named(&source) || ask_elevation {
            let what =
                if self.su { "password of root, for su".to_string() } else { format!("password of {user}, for sudo") };
            Some(secrets::read(&source, &what, "elevation-password")?)
        } else {
            None
        };
        Ok(Secrets { password, private_key, passphrase, elevation_password })
    }

    fn refuse_arguments(&self) -> Result<()> {
        let given = [
            ("password", self.password.is_some()),
            ("passphrase", self.passphrase.is_some()),
            ("elevation-password", self.elevation_password.is_some()),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            return Err(secrets::refuse_argument(flag));
        }
        let stdin = [self.password_stdin, self.passphrase_stdin, self.elevation_password_stdin];
        if stdin.iter().filter(|&&used| used).count() > 1 {
            return Err(Trouble::usage("only one secret can come from stdin").remedy("give the others by files"));
        }
        let elevates = self.sudo || self.su;
        let has_password = self.elevation_password_stdin || self.elevation_password_file.is_some();
        if self.sudo_nopasswd && has_password && !elevates {
            return Err(Trouble::usage("--sudo-nopasswd asks for no password").remedy("leave it out, or use --sudo"));
        }
        Ok(())
    }
}

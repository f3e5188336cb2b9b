//! `lull license`: what is licensed. The command is spelled as in the documents it is bought with; everything else says *licence*.

use crate::calls;
use crate::exit::Exit;
use crate::render::licence;
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use clap::Subcommand;
use lull_api::Client;
use lull_api::licence::LicenceFile;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A licence is a small file; nothing longer is one.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What can be done with the licence.
#[derive(Debug, Subcommand)]
pub enum LicenseCommand {
    /// Show the licence in force, and what follows from it.
    Show,
    /// Install a licence file in place of the one before.
    ///
    /// It is checked first: signature, issuer, dates. One that is refused changes nothing.
    #[command(after_help = "Example:\n  lull license install example.lic")]
    Install {
        /// The licence file.
        file: PathBuf,
    },
    /// Remove the installed licence: the built-in universal one holds again.
    Remove,
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: LicenseCommand) -> Result<Exit> {
    match command {
        LicenseCommand::Show => screen.show(&calls::licence(&client).await?, licence::status)?,
        LicenseCommand::Install { file } => {
            let file = read(&file)?;
            screen.show(&calls::install_licence(&client, &file).await?, licence::status)?;
        }
        LicenseCommand::Remove => {
            calls::remove_licence(&client).await?;
            let said =
                |_: &serde_json::Value, _: &_| "Removed the licence: the built-in universal one holds again.\n".into();
            screen.show(&serde_json::json!({"removed": "licence"}), said)?;
        }
    }
    Ok(Exit::Ok)
}

fn read(path: &Path) -> Result<LicenceFile> {
    let shown = path.display();
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| {
        Trouble::local(Exit::Failed, "licence-unreadable", format!("the licence {shown} could not be read"))
            .why(error.to_string())
    })?;
    serde_json::from_str(&text).map_err(|error| {
        Trouble::local(Exit::Refused, "licence-damaged", format!("{shown} is no licence, or damaged"))
            .why(error.to_string())
            .remedy("get the file again from where it came, unchanged")
    })
}

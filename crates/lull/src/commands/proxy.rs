//! `lull proxy`: guest interaction proxies and the choice between them.

use crate::calls;
use crate::exit::Exit;
use crate::render::proxy;
use crate::screen::Screen;
use crate::trouble::Result;
use clap::Subcommand;
use lull_api::Client;

/// What can be asked about proxies.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// List the guest interaction proxies.
    List,
    /// Which proxy would serve a VM now, and what speaks for or against each.
    #[command(after_help = "Example:\n  lull proxy explain shop --job nightly")]
    Explain {
        /// The VM, by name or HOST/VM.
        vm: String,
        /// By the rules of this job [default: automatic selection].
        #[arg(long, value_name = "JOB")]
        job: Option<String>,
    },
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: ProxyCommand) -> Result<Exit> {
    match command {
        ProxyCommand::List => {
            screen.show(&calls::proxies(&client).await?, |proxies, look| proxy::list(proxies, look))?
        }
        ProxyCommand::Explain { vm, job } => {
            let explanation = calls::explain_proxy(&client, &vm, job.as_deref()).await?;
            screen.show(&explanation, proxy::explanation)?;
        }
    }
    Ok(Exit::Ok)
}

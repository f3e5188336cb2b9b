//! `lull proxy enable`, `disable`, `drain` and `slots`: what an administrator says about a guest interaction proxy.

use crate::calls;
use crate::exit::Exit;
use crate::render::proxy;
use crate::screen::Screen;
use crate::trouble::Result;
use clap::Subcommand;
use lull_api::Client;
use lull_api::infrastructure::ProxyChange;

/// What can be said.
#[derive(Debug, Subcommand)]
pub enum DutyCommand {
    /// Take a proxy out of use: it gets no more tasks, and no job counts on it; those that it has go on.
    Disable {
        /// Name of its managed server.
        name: String,
    },
    /// Put a proxy to use again, after `disable` or `drain`.
    Enable {
        /// Name of its managed server.
        name: String,
    },
    /// Have a proxy finish its tasks and take no new ones, before it is updated or switched off.
    Drain {
        /// Name of its managed server.
        name: String,
    },
    /// Set how many tasks a proxy works on at once.
    #[command(after_help = "Examples:\n  lull proxy slots site-a 8\n  lull proxy slots site-a auto")]
    Slots {
        /// Name of its managed server.
        name: String,
        /// How many, or `auto` for as many as the proxy says: its processor cores, at least 2.
        #[arg(value_name = "N|auto", value_parser = slots)]
        slots: u32,
    },
}

/// Runs it.
pub async fn run(client: &Client, screen: &Screen, command: DutyCommand) -> Result<Exit> {
    let state = |state: &str| ProxyChange { state: Some(state.into()), slots: None };
    let (name, change) = match command {
        DutyCommand::Disable { name } => (name, state("disabled")),
        DutyCommand::Enable { name } => (name, state("enabled")),
        DutyCommand::Drain { name } => (name, state("draining")),
        DutyCommand::Slots { name, slots } => (name, ProxyChange { state: None, slots: Some(slots) }),
    };
    let changed = calls::change_proxy(client, &name, &change).await?;
    screen.show(&changed, |proxy, look| proxy::list(std::slice::from_ref(proxy), look))?;
    Ok(Exit::Ok)
}

/// 0 is what the interface takes for `auto`.
fn slots(text: &str) -> std::result::Result<u32, String> {
    match (text, text.parse::<u32>()) {
        ("auto", _) => Ok(0),
        (_, Ok(slots @ 1..)) => Ok(slots),
        _ => Err(format!("`{text}` is neither a number of tasks nor `auto`")),
    }
}

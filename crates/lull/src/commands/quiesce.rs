//! `lull quiesce VM -- COMMAND`: any backup tool inside the quiet moment.
//!
//! ```text
//!   ask for the hold ─► wait for HoldReady ─► COMMAND runs, renewing ─► end the hold ─► wait for the session's end
//!        │                    │                       │                                        │
//!        └── refused ─────────┴── failed ─► 125       └── thawed early ─► 124 ◄── a gap, or unknown ┘
//! ```
//!
//! Renewals come from the one loop that waits for COMMAND ([`hold`]): a client that is stopped, killed or cut off stops
//! renewing, and the guest thaws by its lease. Knows nothing of what COMMAND does.

mod hold;
mod verdict;

use crate::calls;
use crate::cli::Global;
use crate::commands::settings::GuestArgs;
use crate::connection;
use crate::exit::Exit;
use crate::render::event;
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use clap::Args;
use futures::{Stream, StreamExt};
use hold::Hold;
use lull_api::Client;
use lull_api::client::ClientError;
use lull_api::session::{EventKind, QuiesceRequest, Session, SessionEvent};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::pin::Pin;
use verdict::Verdict;

const EXAMPLES: &str = "\
Examples:
  lull quiesce shop -- zfs snapshot tank/vms@nightly
  lull quiesce shop --freeze-budget 10s -- sh -c 'lvcreate -s -n shop-snap -L 5G vg/shop && echo $LULL_VM'

COMMAND runs here, as you, while the guest is at rest. In its environment: LULL_VM, the VM's name, and LULL_FREEZE_ID, \
the number of this freeze. Make it short: the guest's writes wait for it, at most as long as the freeze budget. Its exit code is passed on; the codes 123 to 127 say that \
something was wrong with the quiet moment itself (`lull exit-codes`). Progress goes to stderr, stdout is COMMAND's. With \
--json COMMAND's stdout goes to stderr too, and one document on stdout tells how it went.

Ctrl-C reaches COMMAND, and the guest thaws at once. If this program is stopped or killed, the guest thaws by itself when \
its lease runs out.";

/// What `lull quiesce` takes.
///
/// Applications and file systems of the guest come to rest, COMMAND runs on this machine, the guest wakes up again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "lull quiesce [OPTIONS] VM -- COMMAND [ARGS]...")]
pub struct QuiesceArgs {
    /// The VM, by name or HOST/VM.
    vm: String,
    #[command(flatten)]
    guest: Box<GuestArgs>,
    /// The command with its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The events of the session.
type Events<'a> = Pin<Box<dyn Stream<Item = std::result::Result<SessionEvent, ClientError>> + Send + 'a>>;

/// Runs it; the exit code is COMMAND's, or one of 123 to 127.
pub async fn run(global: &Global, screen: &Screen, args: QuiesceArgs) -> Result<u8> {
    // A wrong command line is said as such; everything after it means that the guest was not brought to rest.
    let request = QuiesceRequest { guest: args.guest.settings()? };
    if request.guest.application_aware.as_deref() == Some("disabled") {
        return Err(Trouble::usage("without guest processing there is no quiet moment for COMMAND")
            .remedy("leave --application-aware out, or use `--application-aware try`"));
    }
    let client = connection::connect(global).map_err(not_quiesced)?;
    let session = calls::quiesce(&client, &args.vm, &request).await.map_err(|e| not_quiesced(e.into()))?;
    let id = session.summary.id;
    let mut events: Events<'_> = Box::pin(client.events(id, 0));
    let facts = wait_until_ready(&client, screen, id, &mut events).await?;
    let hold = Hold { client: &client, screen, session: id };
    let mut ran = hold.run_command(&args.command, facts, &mut events).await;
    hold.end(&mut ran).await;
    let session = wait_for_the_end(&client, screen, id, &mut events, ran.no_gap).await;
    let verdict = Verdict::of(&args.vm, id, &ran, session);
    verdict.tell(screen)?;
    Ok(verdict.exit_code)
}

/// What is known at the end: the session, and whether the guest was frozen without a gap.
struct Ending {
    session: Option<Session>,
    no_gap: Option<bool>,
}

async fn wait_until_ready(
    client: &Client,
    screen: &Screen,
    id: i64,
    events: &mut Events<'_>,
) -> Result<BTreeMap<String, String>> {
    let mut interrupted = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c(), if !interrupted => {
                interrupted = true;
                screen.remark("Interrupted: the session is being cancelled, the guest returns to where it was.");
                match calls::cancel_session(client, id).await {
                    // A refusal means that the session is over already; its last event says so.
                    Ok(_) | Err(ClientError::Problem(_)) => continue,
                    Err(error) => return Err(not_quiesced(error.into())),
                }
            }
        };
        match event.transpose().map_err(|e| not_quiesced(e.into()))? {
            Some(event) => {
                say(screen, &event);
                match event.event {
                    // Once cancelled, COMMAND is not run even if the guest came to rest a moment before.
                    EventKind::HoldReady { facts } if !interrupted => return Ok(facts),
                    EventKind::SessionFinished { .. } => break,
                    _ => {}
                }
            }
            None => break,
        }
    }
    Err(why_not_quiesced(client, id).await)
}

/// The session ended before the guest was at rest: says why.
async fn why_not_quiesced(client: &Client, id: i64) -> Trouble {
    let what = |vm: &str| format!("{vm} was not brought to rest, COMMAND was not run");
    let session = match calls::session(client, id).await {
        Ok(session) => session,
        Err(error) => return not_quiesced(error.into()),
    };
    let vm = session.summary.vms.first().map_or("the guest", String::as_str);
    let trouble = Trouble::local(Exit::NotQuiesced, "not-quiesced", what(vm));
    match session.tasks.into_iter().find_map(|task| task.failure) {
        Some(failure) => trouble.why(failure.text).remedy(failure.remedy),
        None => trouble
            .why(format!("the session ended: {}", session.summary.result.as_deref().unwrap_or("without a result")))
            .remedy(format!("`lull session show {id}` shows its steps")),
    }
}

async fn wait_for_the_end(
    client: &Client,
    screen: &Screen,
    id: i64,
    events: &mut Events<'_>,
    mut no_gap: Option<bool>,
) -> Ending {
    loop {
        match events.next().await {
            Some(Ok(event)) => {
                say(screen, &event);
                match event.event {
                    EventKind::Thawed { no_gap: whole, .. } => no_gap = Some(whole && no_gap != Some(false)),
                    EventKind::SessionFinished { .. } => break,
                    _ => {}
                }
            }
            Some(Err(error)) => {
                screen.complain(&error.into());
                break;
            }
            None => break,
        }
    }
    Ending { session: calls::session(client, id).await.ok(), no_gap }
}

fn not_quiesced(trouble: Trouble) -> Trouble {
    Trouble { exit: Exit::NotQuiesced, ..trouble }
}

fn say(screen: &Screen, event: &SessionEvent) {
    if let Some(line) = event::line(event, &screen.look()) {
        screen.remark(&line);
    }
}

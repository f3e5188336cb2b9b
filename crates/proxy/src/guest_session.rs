//! One task's work inside one guest, step by step: connect, deploy, inventory, scripts ([`script`]), quiesce,
//! freeze and thaw ([`window`]), the thaw ladder ([`ladder`]), the listing of files ([`index`]), remove, receipt.
//!
//! Each method is one step of the timeline and says in one line what came of it. Knows nothing of hypervisors and nothing
//! of the order of the steps: [`crate::task`] does.

mod index;
mod ladder;
mod script;
mod window;

pub use index::IndexEnd;
pub use window::{Inside, Pulse};

use crate::access::{Elevation, GuestAccess, HostKey};
use crate::cancel::{Cancel, EVICTED, LEASE_RAN_OUT};
use crate::carried::Image;
use crate::channel::{ChannelError, FailureKind, GuestChannel, Hop};
use crate::deploy;
use crate::evidence::{Window, application_failures};
use crate::failure::{self, Stop};
use crate::receipt;
use crate::reporter::{Reporter, counted};
use crate::runtime_client::{CallError, RuntimeClient};
use crate::ssh::{self, HostKeySeen};
use async_trait::async_trait;
use lull_engine::session::TaskFailure;
use lull_engine::settings::GuestProcessing;
use lull_engine::timeline::Step;
use lull_guest_wire::{
    Answer, Application, ApplicationQuiesced, ApplicationState, Armed, Command, FreezeId, Hello, Inventory,
    QuiesceOrder,
};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

const INVENTORY_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_TO_APPLICATION_MS: u64 = 10_000;
const RELEASE_LIMIT: Duration = Duration::from_secs(30);
const BYE_LIMIT: Duration = Duration::from_secs(10);

/// Opens ways into one guest.
#[async_trait]
pub trait Connector: Send + Sync {
    /// Connects and logs in.
    async fn connect(&self) -> Result<(Box<dyn GuestChannel>, Option<HostKeySeen>), ChannelError>;
    /// What a person types to thaw these file systems.
    fn thaw_command(&self, mount_points: &[String]) -> String;
    /// What a login leaves in the guest and rightly so.
    fn rightly_remains(&self) -> Vec<String>;
}

/// Connects over SSH.
pub struct SshConnector {
    access: GuestAccess,
    /// The key that this task met where none was pinned: whatever answers later must show the same one.
    met: Mutex<Option<HostKey>>,
}

impl SshConnector {
    /// By this way.
    pub fn new(access: GuestAccess) -> Self {
        SshConnector { access, met: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HostKey>> {
        self.met.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[async_trait]
impl Connector for SshConnector {
    async fn connect(&self) -> Result<(Box<dyn GuestChannel>, Option<HostKeySeen>), ChannelError> {
        let mut access = self.access.clone();
        if access.host_keys.is_empty() {
            access.host_keys.extend(self.lock().clone());
        }
        let result = ssh::connect(&access).await;
        let seen = match &result {
            Ok(channel) => Some(channel.host_key().clone()),
            Err(error) => error.accepted_key.as_deref().cloned(),
        };
        if let Some(seen) = &seen {
            self.lock().get_or_insert_with(|| seen.key.clone());
        }
        Ok((Box::new(result?), seen))
    }

    fn thaw_command(&self, mount_points: &[String]) -> String {
        let sudo = if matches!(self.access.elevation, Elevation::None) { "" } else { "sudo " };
        let each = mount_points.iter().map(|mount_point| format!("{sudo}fsfreeze --unfreeze {}", quoted(mount_point)));
        let each = each.collect::<Vec<_>>().join("; ");
        let endpoint = self.access.endpoints.first();
        let (host, port) = endpoint.map_or(("GUEST", 22), |e| (e.host.as_str(), e.port));
        format!("ssh -p {port} {}@{host} {}", self.access.user, quoted(&each))
    }

    fn rightly_remains(&self) -> Vec<String> {
        let mut remains = vec![
            format!("entries of the logins of {} in the authentication log", self.access.user),
            format!("entries of the logins of {} in wtmp and lastlog", self.access.user),
        ];
        match self.access.elevation {
            Elevation::None => {}
            Elevation::Sudo(_) => remains.push("entries of sudo in the authentication log (no timestamp)".into()),
            Elevation::Su(_) => remains.push("entries of su in the authentication log".into()),
        }
        remains
    }
}

/// One word for a shell, quoted where it must be.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_string();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// One guest in the hands of one task.
pub struct GuestSession<'a> {
    connector: &'a dyn Connector,
    image: &'a Image,
    reporter: Reporter,
    cancel: Cancel,
    vm_name: String,
    /// Of the order, 0 without one: newer ones than this are not ours.
    fence: u64,
    channel: Option<Box<dyn GuestChannel>>,
    component: Option<(RuntimeClient, Hello)>,
    armed: Option<(FreezeId, Armed)>,
    /// A command that was given up: the component is still at it, until then at most.
    given_up: Option<(u32, Instant)>,
    /// Why the credential must not be tried again.
    refused: Option<ChannelError>,
    /// What the guest is.
    pub inventory: Option<Inventory>,
    /// What became of its applications.
    pub quiesced: Option<Vec<ApplicationQuiesced>>,
    /// The freeze.
    pub window: Window,
}

impl<'a> GuestSession<'a> {
    /// Nothing is connected yet.
    pub fn new(
        connector: &'a dyn Connector,
        image: &'a Image,
        vm_name: &str,
        reporter: Reporter,
        cancel: Cancel,
    ) -> Self {
        GuestSession {
            connector,
            image,
            reporter,
            cancel,
            vm_name: vm_name.into(),
            fence: 0,
            channel: None,
            component: None,
            armed: None,
            given_up: None,
            refused: None,
            inventory: None,
            quiesced: None,
            window: Window::default(),
        }
    }

    /// For an order with this fence.
    pub fn of_fence(mut self, fence: u64) -> Self {
        self.fence = fence;
        self
    }

    /// Goes on over a connection that is there.
    pub fn over(mut self, channel: Box<dyn GuestChannel>) -> Self {
        self.channel = Some(channel);
        self
    }

    /// Connects and logs in.
    pub async fn connect(&mut self) -> Result<String, Stop> {
        self.cancel.enter().await?;
        let connected = self.cancel.or(self.connector.connect()).await?;
        let (channel, seen) = connected.map_err(|e| self.failed(Step::Connect, e))?;
        tell_accepted(&self.reporter, seen.as_ref());
        let line = channel.describe();
        self.channel = Some(channel);
        Ok(line)
    }

    /// Puts the component there and starts it.
    pub async fn deploy(&mut self) -> Result<String, Stop> {
        let (image, cancel, fence) = (self.image, self.cancel.clone(), self.fence);
        cancel.enter().await?;
        let channel = self.channel(Step::Deploy)?;
        let deployed = cancel.or(deploy::deploy(channel, image, fence)).await?;
        let mut deployed = deployed.map_err(|e| self.failed(Step::Deploy, e))?;
        deployed.client.on_eviction(cancel);
        for folder in &deployed.swept {
            self.reporter.info(format!("removed {folder}, which an earlier task had left"));
        }
        for note in deployed.notes {
            self.reporter.warning(note);
        }
        let line = format!("{} as process {}", deployed.folder, deployed.hello.pid);
        self.component = Some((deployed.client, deployed.hello));
        Ok(line)
    }

    fn failed(&mut self, step: Step, error: ChannelError) -> Stop {
        self.note(&error);
        self.unless_evicted(failure::of_channel(step, &error))
    }

    /// Why a step ended: its failure, or the newer task that took the guest.
    fn unless_evicted(&self, failure: TaskFailure) -> Stop {
        if self.cancel.is_evicted() { Stop::Cancelled(EVICTED.into()) } else { failure.into() }
    }

    /// Remembers what must not be tried again, and tells of the host keys.
    fn note(&mut self, error: &ChannelError) {
        tell_keys(&self.reporter, error);
        if error.kind == FailureKind::Evicted {
            self.cancel.evict();
        }
        if error.kind.ends_attempts() && self.refused.is_none() {
            self.refused = Some(error.clone());
        }
    }

    /// An error where nothing more may be done in the guest: it refused the credential, or is a newer task's.
    fn may_go_on(&self) -> Result<(), ChannelError> {
        if self.cancel.is_evicted() {
            let (kind, remedy) = (FailureKind::Evicted, "see what became of the newer task");
            return Err(ChannelError::new(Hop::Runtime, kind, EVICTED, remedy));
        }
        self.refused.clone().map_or(Ok(()), Err)
    }

    /// The same for what is no thaw: after the lease's end nothing else is begun, since it is the next proxy's to do.
    fn may_begin(&self) -> Result<(), ChannelError> {
        self.may_go_on()?;
        if self.cancel.is_over() {
            let remedy = "see what became of the task: who has it next does what is owed";
            return Err(ChannelError::new(Hop::Runtime, FailureKind::Evicted, LEASE_RAN_OUT, remedy));
        }
        Ok(())
    }

    /// A new connection, unless nothing more may be done in the guest.
    async fn another_login(&mut self) -> Result<Box<dyn GuestChannel>, ChannelError> {
        self.may_go_on()?;
        match self.connector.connect().await {
            Ok((channel, seen)) => {
                tell_accepted(&self.reporter, seen.as_ref());
                Ok(channel)
            }
            Err(error) => {
                self.note(&error);
                Err(error)
            }
        }
    }

    /// Why the guest must not be tried again with this credential: it refused the login or the elevation, or left the answer
    /// open.
    pub fn refused(&self) -> Option<&ChannelError> {
        self.refused.as_ref()
    }

    /// Looks at the guest.
    pub async fn take_inventory(&mut self) -> Result<String, Stop> {
        let answer = self.call(Step::Inventory, "the inventory failed", Command::Inventory, INVENTORY_LIMIT).await?;
        let Answer::Inventory(inventory) = answer else { return Err(self.wrong(Step::Inventory, &answer)) };
        for note in &inventory.notes {
            self.reporter.info(note);
        }
        for why in &inventory.incomplete {
            self.reporter.warning(format!("an application may have been missed: {why}"));
        }
        let line = format!(
            "{}, {}, {}",
            inventory.os.name,
            counted(inventory.file_systems.len(), "file system"),
            match inventory.applications.as_slice() {
                [] => "no known applications".to_string(),
                apps => apps.iter().map(shown).collect::<Vec<_>>().join(", "),
            }
        );
        self.inventory = Some(inventory);
        Ok(line)
    }

    /// Brings the applications to rest; the failures, one sentence each.
    pub async fn quiesce(&mut self, settings: &GuestProcessing) -> Result<(String, Vec<String>), Stop> {
        let checkpoint = settings.checkpoint;
        let order = QuiesceOrder {
            checkpoint: checkpoint.enabled,
            checkpoint_timeout_ms: checkpoint.timeout_ms,
            connect_timeout_ms: CONNECT_TO_APPLICATION_MS,
        };
        let count = self.inventory.as_ref().map_or(0, |inventory| inventory.applications.len()).max(1) as u64;
        let limit = Duration::from_millis((checkpoint.timeout_ms + CONNECT_TO_APPLICATION_MS) * count + 15_000);
        let answer =
            self.call(Step::Quiesce, "the applications were not asked", Command::Quiesce(order), limit).await?;
        let Answer::Quiesced(quiesced) = answer else { return Err(self.wrong(Step::Quiesce, &answer)) };
        let failures = match &self.inventory {
            Some(inventory) => application_failures(inventory, &quiesced),
            None => Vec::new(),
        };
        let line = match quiesced.as_slice() {
            [] => "none that runs".to_string(),
            all => {
                let at_rest = all.iter().filter(|app| app.result.is_ok() && app.caveats.is_empty()).count();
                let took_ms = all.iter().map(|app| app.took_ms).max().unwrap_or(0);
                format!("{at_rest} of {} at rest, the slowest in {took_ms} ms", all.len())
            }
        };
        self.quiesced = Some(quiesced);
        Ok((line, failures))
    }

    /// Lets the applications go again.
    pub async fn release(&mut self) -> Result<String, Stop> {
        self.settle().await;
        let Some((client, _)) = &mut self.component else {
            return Ok("they were let go when the component ended".into());
        };
        match client.call(Command::Release, RELEASE_LIMIT).await {
            Ok(_) => Ok(String::new()),
            Err(e) => {
                let failure = failure::of_call(Step::Release, "the applications were not told to go on", &e);
                Err(self.give_up(&e, failure))
            }
        }
    }

    /// Ends the component and sees it go.
    pub async fn remove(&mut self) -> Result<String, Stop> {
        let Some((mut client, hello)) = self.component.take() else { return Ok("it was gone already".into()) };
        let said = client.call(Command::Bye, BYE_LIMIT).await;
        for note in client.take_notes() {
            self.reporter.info(note);
        }
        match said {
            Ok(_) => Ok(format!("process {} ended in order", hello.pid)),
            // The channel closes with the client: the component sees it and ends.
            Err(e) => Ok(format!("process {} did not say goodbye ({e}); its channel was closed", hello.pid)),
        }
    }

    /// A fresh look into the guest, over the same connection or a new one.
    pub async fn look(&mut self) -> Result<receipt::GuestLook, ChannelError> {
        self.may_begin()?;
        if let Some(channel) = &self.channel {
            match receipt::look(channel.as_ref()).await {
                Err(error) => self.note(&error),
                Ok(look) => return self.own(look),
            }
        }
        let channel = self.another_login().await?;
        let look = receipt::look(channel.as_ref()).await;
        self.channel = Some(channel);
        look.inspect_err(|error| self.note(error)).and_then(|look| self.own(look))
    }

    /// What was found, unless it is a newer task's.
    fn own(&self, look: receipt::GuestLook) -> Result<receipt::GuestLook, ChannelError> {
        if look.has_newer(self.fence) {
            self.cancel.evict();
        }
        self.may_go_on().map(|()| look)
    }

    /// What the logins left, rightly.
    pub fn rightly_remains(&self) -> Vec<String> {
        self.connector.rightly_remains()
    }

    /// Whether a component answers.
    pub fn has_component(&self) -> bool {
        self.component.is_some()
    }

    /// A new component where the last one was lost: for what must run after it.
    pub async fn redeploy(&mut self) -> Result<(), ChannelError> {
        self.may_begin()?;
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.another_login().await?,
        };
        let (channel, deployed) = match deploy::deploy(channel.as_ref(), self.image, self.fence).await {
            Ok(deployed) => (channel, Ok(deployed)),
            Err(error) => {
                self.note(&error);
                let channel = self.another_login().await?;
                let deployed = deploy::deploy(channel.as_ref(), self.image, self.fence).await;
                (channel, deployed)
            }
        };
        self.channel = Some(channel);
        let mut deployed = deployed.inspect_err(|error| self.note(error))?;
        deployed.client.on_eviction(self.cancel.clone());
        self.component = Some((deployed.client, deployed.hello));
        Ok(())
    }

    /// Ends the connection.
    pub async fn close(&mut self) {
        self.component = None;
        if let Some(channel) = self.channel.take() {
            channel.close().await;
        }
    }

    fn channel(&self, step: Step) -> Result<&dyn GuestChannel, Stop> {
        self.channel.as_deref().ok_or_else(|| lost(step))
    }

    fn client(&mut self, step: Step) -> Result<&mut RuntimeClient, Stop> {
        self.component.as_mut().map(|(client, _)| client).ok_or_else(|| lost(step))
    }

    /// A command that may be given up when the task is cancelled: its answer is, not its sending.
    async fn call(&mut self, step: Step, what: &str, command: Command, limit: Duration) -> Result<Answer, Stop> {
        let cancel = self.cancel.clone();
        cancel.check()?;
        let client = self.client(step)?;
        let id = match client.send(command).await {
            Ok(id) => id,
            Err(e) => return Err(self.give_up(&e, failure::of_call(step, what, &e))),
        };
        let until = Instant::now() + limit;
        let client = self.client(step)?;
        let answer = match cancel.or(client.answer_within(id, limit)).await {
            Ok(answer) => answer,
            Err(stop) => {
                self.given_up = Some((id, until));
                return Err(stop);
            }
        };
        let notes = client.take_notes();
        for note in notes {
            self.reporter.info(note);
        }
        answer.map_err(|e| self.give_up(&e, failure::of_call(step, what, &e)))
    }

    /// A component that was lost is not asked again: what must still run gets a new one.
    fn give_up(&mut self, error: &CallError, failure: TaskFailure) -> Stop {
        if error.ends_component() {
            self.component = None;
        }
        self.unless_evicted(failure)
    }

    /// Waits for the end of a command that was given up: the component does one thing at a time.
    async fn settle(&mut self) {
        if let (Some((id, until)), Some((client, _))) = (self.given_up.take(), &mut self.component) {
            let _ = client.answer_within(id, until.saturating_duration_since(Instant::now())).await;
        }
    }

    fn wrong(&self, step: Step, answer: &Answer) -> Stop {
        let error = CallError::Protocol(format!("{answer:?}").chars().take(200).collect());
        failure::of_call(step, "the component answered something else", &error).into()
    }
}

fn shown(app: &Application) -> String {
    match app.state {
        ApplicationState::Down => format!("{}, which does not run", app.name),
        ApplicationState::Runs | ApplicationState::Unreachable(_) => app.name.clone(),
    }
}

fn lost(step: Step) -> Stop {
    let error = CallError::Lost("it ended before".into());
    failure::of_call(step, "there is no component to talk to", &error).into()
}

/// Tells of the key that the guest was let pass with.
pub(crate) fn tell_accepted(reporter: &Reporter, seen: Option<&HostKeySeen>) {
    if let Some(HostKeySeen { key, first_contact }) = seen.cloned() {
        reporter.tell(Event::HostKeySeen(v1::HostKeySeen { key: Some(key.into()), first_contact }));
    }
}

/// Tells of the keys that a failure met: the accepted one is pinned at first contact although the login failed, the refused
/// one a person may accept.
pub(crate) fn tell_keys(reporter: &Reporter, error: &ChannelError) {
    tell_accepted(reporter, error.accepted_key.as_deref());
    if let Some(key) = error.refused_key.as_deref().cloned() {
        reporter.tell(Event::HostKeySeen(v1::HostKeySeen { key: Some(key.into()), first_contact: false }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Endpoint, Login};

    #[test]
    fn the_command_for_a_person_survives_any_mount_point() {
        let access = GuestAccess {
            vm_name: "db".into(),
            endpoints: vec![Endpoint { host: "192.0.2.7".into(), port: 22 }],
            credential: "c".into(),
            user: "ops".into(),
            login: Login::Password("secret".into()),
            elevation: Elevation::Sudo(None),
            host_keys: vec![],
        };
        let check = |mount_point: &str, expect: &str| {
            assert_eq!(SshConnector::new(access.clone()).thaw_command(&[mount_point.into()]), expect);
        };
        check("/", "ssh -p 22 ops@192.0.2.7 'sudo fsfreeze --unfreeze /'");
        check("/my data", r"ssh -p 22 ops@192.0.2.7 'sudo fsfreeze --unfreeze '\''/my data'\'''");
    }
}

//! *Test now*: connects along every hop and says how far it came. Nothing is frozen, nothing stays.
//!
//! Knows nothing of tasks; a refused login here is as final as in one.

use crate::cancel::Cancel;
use crate::carried::Image;
use crate::failure::{self, Stop};
use crate::guest_session::{Connector, GuestSession};
use crate::order::QemuSpec;
use crate::reporter::{Reporter, StepOutcome};
use lull_engine::timeline::Step;
use lull_hypervisor::QemuHost;
use lull_proxy_wire::v1;

/// Tests the way into the guest, and the hypervisor where it is named.
pub async fn run(
    vm_name: &str,
    connector: Option<&dyn Connector>,
    image: &Image,
    qemu: Option<&QemuSpec>,
    reporter: Reporter,
    cancel: Cancel,
) -> v1::Finished {
    let mut finished = v1::Finished::default();
    let mut result = Ok(());
    if let Some(connector) = connector {
        let mut guest = GuestSession::new(connector, image, vm_name, reporter.clone(), cancel.clone());
        result = hops(&mut guest, &reporter).await;
        let inventory = guest.inventory.take();
        finished.inventory_json = inventory.and_then(|i| serde_json::to_string(&i).ok()).unwrap_or_default();
        if guest.has_component() {
            let began = reporter.started(Step::Remove, "");
            let line = guest.remove().await.unwrap_or_default();
            reporter.ended(Step::Remove, StepOutcome::Ok, line, began.elapsed());
            if let Ok(look) = guest.look().await {
                let receipt = v1::Receipt {
                    guest_checked: true,
                    left_in_guest: look.left(),
                    rightly_remains: guest.rightly_remains(),
                    ..Default::default()
                };
                finished.receipt = Some(receipt);
            }
        }
        finished.refused = guest.refused().map(ToString::to_string).unwrap_or_default();
        guest.close().await;
    }
    if let (Ok(()), Some(qemu)) = (&result, qemu) {
        result = hypervisor(qemu, &reporter).await;
    }
    finished.outcome = match &result {
        Ok(()) if reporter.has_warnings() => "warning",
        Ok(()) => "success",
        Err(Stop::Cancelled(_)) => "cancelled",
        Err(Stop::Failed(_)) => "failed",
    }
    .into();
    if let Err(Stop::Failed(failure)) = &result {
        finished.failure_json = serde_json::to_string(failure).unwrap_or_default();
    }
    finished
}

async fn hops(guest: &mut GuestSession<'_>, reporter: &Reporter) -> Result<(), Stop> {
    for step in [Step::Connect, Step::Deploy, Step::Inventory] {
        let began = reporter.started(step, "");
        let result = match step {
            Step::Connect => guest.connect().await,
            Step::Deploy => guest.deploy().await,
            _ => guest.take_inventory().await,
        };
        tell(reporter, step, began, &result);
        result?;
    }
    Ok(())
}

async fn hypervisor(qemu: &QemuSpec, reporter: &Reporter) -> Result<(), Stop> {
    let began = reporter.started(Step::Snapshot, "the hypervisor only; nothing is taken");
    let facts = async { QemuHost::new(&qemu.sockets_dir).open(&qemu.vm).await?.facts().await };
    let result = match facts.await {
        Ok(facts) => Ok(format!("QEMU {}, {}", facts.qemu_version, facts.run_state)),
        Err(e) => Err(failure::of_hypervisor(Step::Snapshot, &e).into()),
    };
    tell(reporter, Step::Snapshot, began, &result);
    result.map(drop)
}

fn tell(reporter: &Reporter, step: Step, began: std::time::Instant, result: &Result<String, Stop>) {
    let (outcome, line) = match result {
        Ok(line) => (StepOutcome::Ok, line.clone()),
        Err(Stop::Cancelled(reason)) => (StepOutcome::Cancelled, reason.clone()),
        Err(Stop::Failed(failure)) => (StepOutcome::Failed, format!("{}; {}", failure.cause, failure.remedy)),
    };
    reporter.ended(step, outcome, line, began.elapsed());
}

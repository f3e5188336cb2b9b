//! A session as a tree: its tasks, each with the proxy chosen, the steps with their times, and what came of it.

use super::text::{columns, list, one_line, pad, printable, wrap};
use super::{Look, Tone, proxy, units};
use lull_api::session::{Failure, Receipt, Session, SessionSummary, Step, Task};

/// Columns of step names and of times.
const NAME_COLUMNS: usize = 14;
const TIME_COLUMNS: usize = 11;

/// The whole tree. With `why`, every candidate of the proxy choice and what was found in the guest are in it too.
pub fn tree(session: &Session, look: &Look, why: bool) -> String {
    let mut text = headline(&session.summary, look) + "\n";
    for note in &session.notes {
        text.push_str(&format!("{} {}\n", look.paint(Tone::Faint, "note:"), one_line(note)));
    }
    for (n, task) in session.tasks.iter().enumerate() {
        let last = n + 1 == session.tasks.len() && session.notes.is_empty();
        text.push_str(&task_tree(task, look, why, last));
    }
    for (n, note) in session.notes.iter().enumerate() {
        Leaf::fact("note", note.clone()).draw(&mut text, "", n + 1 == session.notes.len(), look);
    }
    text
}

/// `Session 12  backup of job nightly  success  2026-03-01 11:59:46, 14.2 s`.
pub fn headline(summary: &SessionSummary, look: &Look) -> String {
    let state = summary.result.as_deref().unwrap_or(&summary.state);
    let took = units::between_us(&summary.started_at, summary.ended_at.as_deref(), look)
        .map(|us| format!(", {}", units::duration(us)))
        .unwrap_or_default();
    format!(
        "{}  {}  {}  {}",
        look.paint(Tone::Title, &format!("Session {}", summary.id)),
        purpose(summary),
        look.paint_state(state),
        look.paint(Tone::Faint, &format!("{}{took}", units::time(&summary.started_at, look))),
    )
}

/// `backup of job nightly, scheduled`, `backup of job nightly, retry 1 of 3 of session 12`, `quiesce of pg-demo`.
pub fn purpose(summary: &SessionSummary) -> String {
    let by = match (&summary.retry, &summary.scheduled_for) {
        (Some(retry), _) => format!(", retry {} of {} of session {}", retry.attempt, retry.times, retry.session),
        (None, Some(_)) => ", scheduled".into(),
        (None, None) => String::new(),
    };
    match &summary.job {
        Some(job) => one_line(&format!("{} of job {job}{by}", summary.kind)),
        None => one_line(&format!("{} of {}", summary.kind, list(&summary.vms))),
    }
}

/// One task with everything below it.
pub fn task_tree(task: &Task, look: &Look, why: bool, last: bool) -> String {
    let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
    let mut text = format!("{branch}{}\n", task_head(task, look));
    let leaves = leaves(task, look, why);
    for (n, leaf) in leaves.iter().enumerate() {
        leaf.draw(&mut text, below, n + 1 == leaves.len(), look);
    }
    text
}

/// `pg-demo  success`.
pub fn task_head(task: &Task, look: &Look) -> String {
    let state = task.result.as_deref().unwrap_or(&task.state);
    format!("{}  {}", look.paint(Tone::Title, &one_line(&task.vm)), look.paint_state(state))
}

/// One step as one line without a branch before it, cut to the look's width less `indent`.
pub fn step_line(step: &Step, look: &Look, indent: usize) -> String {
    let leaf = Leaf::of_step(step, look);
    let room = look.width.map(|width| width.saturating_sub(indent + leaf.head_columns()));
    let text = room.map_or_else(|| one_line(&leaf.text), |room| super::text::cut(&leaf.text, room));
    format!("{}{text}", leaf.head(look))
}

fn leaves(task: &Task, look: &Look, why: bool) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for choice in &task.earlier_choices {
        let end = match choice.ended.as_deref() {
            Some("handed-on") => "; another proxy had to take over",
            Some("failed") => "; it failed there",
            Some("not-begun") => "; the backup server stopped before it began",
            _ => "",
        };
        let at = units::clock(&choice.at, look);
        let mut leaf = Leaf::fact("proxy before", format!("{} (at {at}){end}", proxy::summary(&choice.explanation)));
        if why {
            leaf.under = proxy::against(&choice.explanation, look, None);
        }
        leaves.push(leaf);
    }
    if let Some(choice) = &task.proxy {
        let mut leaf = Leaf::fact("proxy", proxy::summary(choice));
        if why {
            leaf.under = proxy::against(choice, look, None);
        }
        leaves.push(leaf);
    }
    leaves.extend(task.steps.iter().map(|step| Leaf::of_step(step, look)));
    if let Some(failure) = &task.failure {
        leaves.push(Leaf::of_failure(failure));
    }
    if let Some(window_us) = task.freeze_window_us {
        let mut leaf = Leaf::fact("freeze window", "from freeze sent to thaw answered".into());
        leaf.took = units::duration(window_us);
        leaves.push(leaf);
    }
    if let Some(level) = &task.level {
        let mut leaf = Leaf::fact("level", one_line(level));
        leaf.tone = Some(super::tone_of(level));
        leaf.under = task.level_reasons.clone();
        leaves.push(leaf);
    }
    if let Some(id) = task.restore_point {
        leaves.push(Leaf::fact("restore point", id.to_string()));
    }
    if let (true, Some(inventory)) = (why, &task.inventory) {
        leaves.push(Leaf::fact("inventory", serde_json::to_string_pretty(inventory).unwrap_or_default()));
    }
    let mut notes = task.notes.clone();
    notes.dedup();
    leaves.extend(notes.into_iter().map(|note| Leaf::fact("note", note)));
    if let Some(receipt) = &task.receipt {
        leaves.push(Leaf::of_receipt(receipt));
    }
    leaves
}

/// One line of the tree (with what is below it).
struct Leaf {
    mark: &'static str,
    mark_tone: Tone,
    name: String,
    took: String,
    text: String,
    tone: Option<Tone>,
    under: Vec<String>,
}

impl Leaf {
    fn fact(name: &str, text: String) -> Leaf {
        Leaf {
            mark: "·",
            mark_tone: Tone::Faint,
            name: name.into(),
            took: String::new(),
            text,
            tone: None,
            under: vec![],
        }
    }

    fn of_step(step: &Step, look: &Look) -> Leaf {
        let (mark, mark_tone) = match step.state.as_str() {
            "ok" => ("✓", Tone::Good),
            "warning" => ("!", Tone::Warning),
            "failed" => ("✗", Tone::Bad),
            "skipped" => ("-", Tone::Faint),
            "cancelled" => ("⊘", Tone::Warning),
            _ => ("●", Tone::Busy),
        };
        // Only one that runs goes on.
        let so_far = || units::between_us(&step.started_at, None, look).filter(|_| step.state == "running");
        let took_us = step.took_us.or_else(so_far);
        let text = match (step.state.as_str(), step.done_bytes, step.total_bytes) {
            ("running", Some(done), Some(total)) => format!("{}  {}", progress(done, total), step.detail),
            _ => step.detail.clone(),
        };
        Leaf {
            mark,
            mark_tone,
            name: one_line(&step.step),
            took: took_us.map(units::duration).unwrap_or_default(),
            text,
            tone: None,
            under: vec![],
        }
    }

    fn of_failure(failure: &Failure) -> Leaf {
        let text = if failure.text.is_empty() { failure.cause.clone() } else { failure.text.clone() };
        let remedy =
            (!failure.remedy.is_empty() && !text.contains(&failure.remedy)).then(|| format!("do: {}", failure.remedy));
        Leaf {
            mark: "✗",
            mark_tone: Tone::Bad,
            tone: Some(Tone::Bad),
            under: remedy.into_iter().collect(),
            ..Leaf::fact("failure", text)
        }
    }

    fn of_receipt(receipt: &Receipt) -> Leaf {
        let left = !receipt.left_in_guest.is_empty() || !receipt.left_in_hypervisor.is_empty();
        let (mark, mark_tone) = match (receipt_is_clean(receipt), left || !receipt.guest_checked) {
            (true, _) => ("✓", Tone::Good),
            (false, true) => ("!", Tone::Warning),
            // A test or a quiesce has no business in the hypervisor, and no look into it.
            (false, false) => ("·", Tone::Faint),
        };
        let tone = (mark_tone == Tone::Warning).then_some(Tone::Warning);
        Leaf { mark, mark_tone, tone, ..Leaf::fact("receipt", receipt_text(receipt)) }
    }

    fn head_columns(&self) -> usize {
        2 + NAME_COLUMNS.max(columns(&self.name)) + TIME_COLUMNS + 2
    }

    fn head(&self, look: &Look) -> String {
        format!(
            "{} {}{}  ",
            look.paint(self.mark_tone, self.mark),
            pad(&self.name, NAME_COLUMNS),
            look.paint(
                Tone::Faint,
                &format!("{}{}", " ".repeat(TIME_COLUMNS.saturating_sub(columns(&self.took))), self.took)
            ),
        )
    }

    fn draw(&self, text: &mut String, below: &str, last: bool, look: &Look) {
        let (branch, bar) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let indent = self.head_columns();
        let room = look.width.map(|width| width.saturating_sub(columns(below) + 3 + indent));
        let own = wrap(&self.text, room).into_iter().map(|line| match self.tone {
            Some(tone) => look.paint(tone, &line),
            None => line,
        });
        let under = self.under.iter().flat_map(|item| hanging(item, room));
        let mut lines: Vec<String> = own.chain(under).collect();
        if lines.is_empty() {
            lines.push(String::new());
        }
        for (n, line) in lines.iter().enumerate() {
            let head = if n == 0 { self.head(look) } else { " ".repeat(indent) };
            let before = if n == 0 { branch } else { bar };
            let line = format!("{below}{before}{head}{line}");
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

/// An item below a leaf: two columns further in, its own continuation lines four.
fn hanging(item: &str, room: Option<usize>) -> Vec<String> {
    // Lines that carry colours of ours were made printable by whoever coloured them and are not wrapped again.
    if item.contains('\x1b') {
        return vec![format!("  {item}")];
    }
    let lines = wrap(item, room.map(|room| room.saturating_sub(4)));
    lines.iter().enumerate().map(|(n, line)| format!("{}{line}", if n == 0 { "  " } else { "    " })).collect()
}

/// `42 %, 1.2 GiB of 2.9 GiB`.
pub fn progress(done: u64, total: u64) -> String {
    let percent = if total == 0 { 100 } else { (u128::from(done) * 100 / u128::from(total)).min(100) };
    format!("{percent} %, {} of {}", units::bytes(done), units::bytes(total))
}

/// Whether the receipt proves that nothing stayed behind.
pub fn receipt_is_clean(receipt: &Receipt) -> bool {
    receipt.guest_checked
        && receipt.hypervisor_checked
        && receipt.left_in_guest.is_empty()
        && receipt.left_in_hypervisor.is_empty()
}

/// What a receipt says, in one sentence.
pub fn receipt_text(receipt: &Receipt) -> String {
    let part = |place: &str, checked: bool, left: &[String]| match (checked, left) {
        (false, _) => format!("the {place} was not looked at"),
        (true, []) => format!("nothing left in {place}"),
        (true, left) => format!("LEFT in {place}: {}", list(left)),
    };
    let mut text = if receipt_is_clean(receipt) {
        "nothing left in guest and hypervisor".to_string()
    } else {
        let guest = part("guest", receipt.guest_checked, &receipt.left_in_guest);
        format!("{guest}; {}", part("hypervisor", receipt.hypervisor_checked, &receipt.left_in_hypervisor))
    };
    if !receipt.rightly_remains.is_empty() {
        text.push_str(&format!("; rightly remain: {}", receipt.rightly_remains.join(", ")));
    }
    printable(&text)
}

#[cfg(test)]
mod tests;

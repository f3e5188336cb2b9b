//! A session's tree on a terminal, growing: a spinner at each running step, a bar where bytes are copied. The tree of a
//! task that is over is printed for good above the running ones.
//!
//! Knows how lines are redrawn; what stands in them is made by [`crate::render`].

use crate::render::{Look, proxy, session as tree, text, units};
use crate::trouble::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use lull_api::session::{Session, Step, Task};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;
use uuid::Uuid;

/// Columns before a step in the tree.
const INDENT: usize = 6;
const BRANCH: &str = "   ├─ ";
/// How often spinners turn.
const TICK: Duration = Duration::from_millis(100);

/// The live part of the screen. Dropping it wipes that part.
pub struct Live {
    lines: MultiProgress,
    tasks: BTreeMap<Uuid, LiveTask>,
}

struct LiveTask {
    head: ProgressBar,
    proxy: Option<ProgressBar>,
    steps: Vec<StepLine>,
}

/// One step.
struct StepLine {
    line: ProgressBar,
    drawn: Drawn,
}

/// How a step was drawn last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drawn {
    Nothing,
    Spinner,
    Bar,
    Finished,
}

impl Live {
    /// Shows what happened so far.
    pub fn new(session: &Session, look: Look) -> Result<Live> {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        lines.println(tree::headline(&session.summary, &look))?;
        let mut live = Live { lines, tasks: BTreeMap::new() };
        for task in &session.tasks {
            live.update(task, task.state == "finished", &look)?;
        }
        Ok(live)
    }

    /// Shows what an event changed; `finished` when it ended the task.
    pub fn show(&mut self, task: Option<&Task>, finished: bool, look: Look) -> Result<()> {
        task.map_or(Ok(()), |task| self.update(task, finished, &look))
    }

    fn update(&mut self, task: &Task, finished: bool, look: &Look) -> Result<()> {
        if finished {
            if let Some(done) = self.tasks.remove(&task.id) {
                done.wipe(&self.lines);
            }
            self.lines.println(tree::task_tree(task, look, false, true).trim_end())?;
            return Ok(());
        }
        let lines = &self.lines;
        let shown = self.tasks.entry(task.id).or_insert_with(|| LiveTask {
            head: lines.add(text_line()),
            proxy: None,
            steps: vec![],
        });
        shown.head.set_message(format!("└─ {}", tree::task_head(task, look)));
        if let Some(choice) = &task.proxy {
            let line = shown.proxy.get_or_insert_with(|| lines.insert_after(&shown.head, text_line()));
            let room = look.width.map_or(usize::MAX, |width| width.saturating_sub(INDENT + 8));
            line.set_message(format!("{BRANCH}· proxy {}", text::cut(&proxy::summary(choice), room)));
        }
        for (n, step) in task.steps.iter().enumerate() {
            if n == shown.steps.len() {
                let last = shown.steps.last().map(|step| &step.line);
                let before = last.or(shown.proxy.as_ref()).unwrap_or(&shown.head).clone();
                let step = StepLine::new(step, look);
                lines.insert_after(&before, step.line.clone());
                shown.steps.push(step);
            }
            shown.steps[n].draw(step, look);
        }
        Ok(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Errors here mean that nobody looks any more.
        let _ = self.lines.clear();
    }
}

impl LiveTask {
    fn wipe(self, lines: &MultiProgress) {
        for line in self.steps.into_iter().map(|step| step.line).chain(self.proxy).chain([self.head]) {
            line.finish_and_clear();
            lines.remove(&line);
        }
    }
}

fn text_line() -> ProgressBar {
    ProgressBar::new(0).with_style(style("{wide_msg}"))
}

impl StepLine {
    fn new(step: &Step, look: &Look) -> StepLine {
        let elapsed_us = units::between_us(&step.started_at, None, look).unwrap_or(0);
        let line = ProgressBar::new(1).with_elapsed(Duration::from_micros(elapsed_us));
        StepLine { line, drawn: Drawn::Nothing }
    }

    fn draw(&mut self, step: &Step, look: &Look) {
        let drawn = match (step.state.as_str(), step.done_bytes, step.total_bytes) {
            ("running", Some(done), Some(total)) => {
                self.line.set_length(total);
                self.line.set_position(done.min(total));
                Drawn::Bar
            }
            ("running", ..) => Drawn::Spinner,
            _ => Drawn::Finished,
        };
        let changed = drawn != self.drawn;
        self.drawn = drawn;
        match drawn {
            Drawn::Finished if !changed => return,
            Drawn::Finished => {
                self.line.set_style(style("{wide_msg}"));
                self.line.finish_with_message(format!("{BRANCH}{}", tree::step_line(step, look, INDENT)));
                return;
            }
            Drawn::Bar if changed => self.line.set_style(bar_style()),
            Drawn::Spinner if changed => self.line.set_style(spinner_style()),
            _ => {}
        }
        if changed {
            self.line.enable_steady_tick(TICK);
        }
        self.line.set_prefix(text::pad(&text::one_line(&step.step), 14));
        self.line.set_message(text::one_line(&step.detail));
    }
}

fn spinner_style() -> ProgressStyle {
    style(&format!("{BRANCH}{{spinner:.cyan}} {{prefix}}{{took}}  {{wide_msg}}"))
}

fn bar_style() -> ProgressStyle {
    style(&format!(
        "{BRANCH}{{spinner:.cyan}} {{prefix}}{{took}}  {{wide_bar:.cyan/dim}} {{binary_bytes}} of \
         {{binary_total_bytes}}  {{binary_bytes_per_sec}}  {{eta}} left"
    ))
    .progress_chars("━━─")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates above are constants that every live test parses")
        .with_key("took", |state: &ProgressState, out: &mut dyn Write| {
            let took = units::duration(u64::try_from(state.elapsed().as_micros()).unwrap_or(u64::MAX));
            // Writing to a string cannot fail.
            let _ = write!(out, "{took:>11}");
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_understood() {
        spinner_style();
        bar_style();
        text_line();
    }
}

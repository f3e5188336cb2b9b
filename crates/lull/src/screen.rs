//! Where a command's results go: text or JSON to stdout, remarks to stderr.
//!
//! Knows the terminal; knows nothing of what is shown.

use crate::render::Look;
use crate::terminal;
use crate::trouble::{self, Result, Trouble};
use serde::Serialize;
use std::io::{self, Write};

/// The place where results are shown.
pub struct Screen {
    /// `--json`: one JSON document (or JSON lines) instead of text.
    pub json: bool,
    width: Option<usize>,
    color: bool,
}

impl Screen {
    /// Looks at stdout once.
    pub fn detect(json: bool) -> Self {
        let width = terminal::width();
        Screen { json, width, color: width.is_some() && terminal::wants_color() }
    }

    /// How text should look at the moment.
    pub fn look(&self) -> Look {
        Look { width: self.width, color: self.color, now: jiff::Timestamp::now(), zone: jiff::tz::TimeZone::system() }
    }

    /// Whether lines on it can be redrawn.
    pub fn is_live(&self) -> bool {
        !self.json && self.width.is_some() && !terminal::is_dumb()
    }

    /// Shows a value: as JSON, or as the text that `render` makes of it.
    pub fn show<T: Serialize + ?Sized>(&self, value: &T, render: impl FnOnce(&T, &Look) -> String) -> Result<()> {
        if self.json { self.json_line(value) } else { self.text(&render(value, &self.look())) }
    }

    /// One JSON document on one line.
    pub fn json_line<T: Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        let mut line = serde_json::to_string(value)
            .map_err(|e| Trouble::local(crate::exit::Exit::Failed, "output-failed", "no JSON").why(e.to_string()))?;
        line.push('\n');
        self.text(&line)
    }

    /// Text to stdout, as it is.
    pub fn text(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// A remark for people; goes to stderr, and nowhere with `--json`. Whether anybody reads it changes nothing.
    pub fn remark(&self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Says what went wrong, on stderr: three lines, or a JSON document.
    pub fn complain(&self, trouble: &Trouble) {
        let Some(problem) = &trouble.problem else { return };
        let text = match serde_json::to_string(problem) {
            Ok(json) if self.json => json + "\n",
            _ => trouble::text(problem),
        };
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

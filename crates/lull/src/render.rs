//! Text for people, made of what the server answered. Everything here is pure: the width, the colours, the time and the
//! time zone are arguments, so that every look has a test.

pub mod catalog;
pub mod event;
pub mod infrastructure;
pub mod job;
pub mod licence;
pub mod managed;
pub mod proxy;
pub mod proxy_tier;
pub mod session;
pub mod session_list;
pub mod table;
pub mod text;
pub mod units;
pub mod vm_settings;

/// How text should look.
#[derive(Debug, Clone)]
pub struct Look {
    /// Columns of the terminal; `None` where nothing is wrapped.
    pub width: Option<usize>,
    /// Whether to use colours.
    pub color: bool,
    /// The time.
    pub now: jiff::Timestamp,
    /// Time zone in which times are shown.
    pub zone: jiff::tz::TimeZone,
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Not as it should be.
    Bad,
    /// Under way.
    Busy,
    /// Less important.
    Faint,
    /// A title.
    Title,
}

impl Look {
    /// `text` in the colour of its meaning.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_string();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Busy => "36",
            Tone::Faint => "2",
            Tone::Title => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// `text` in the colour of a result or state.
    pub fn paint_state(&self, state: &str) -> String {
        self.paint(tone_of(state), &text::printable(state))
    }
}

/// The meaning of a result or state word of the API.
pub fn tone_of(state: &str) -> Tone {
    match state {
        "success" | "ok" | "online" | "application" => Tone::Good,
        "warning" | "draining" | "file-system" | "recovering" | "cancelled" | "skipped" => Tone::Warning,
        "failed" | "error" | "offline" | "crash" => Tone::Bad,
        "running" | "waiting" => Tone::Busy,
        _ => Tone::Faint,
    }
}

#[cfg(test)]
impl Look {
    /// Without colours, at 2026-03-01 12:00:00 UTC.
    pub fn plain(width: Option<usize>) -> Look {
        Look { width, color: false, now: "2026-03-01T12:00:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC }
    }
}

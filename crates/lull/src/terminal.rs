//! What the terminal is: whether there is one, how wide, whether it wants colours; and reading a secret from it.
//!
//! Knows nothing of what is shown.

use rustix::termios::{self, LocalModes, OptionalActions};
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};

/// Columns of the terminal behind stdout; `None` where stdout is no terminal.
pub fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let columns = termios::tcgetwinsize(&stdout).map(|size| usize::from(size.ws_col)).unwrap_or(0);
    Some(if columns == 0 { 80 } else { columns })
}

/// Whether a terminal can move its cursor.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Whether to use colours on a terminal: not with `NO_COLOR`, not on a dumb one.
pub fn wants_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && !is_dumb()
}

/// Asks on the controlling terminal, without echo. `Ok(None)` where there is none.
pub fn ask_secret(question: &str) -> io::Result<Option<String>> {
    ask(question, false)
}

/// Asks on the controlling terminal. `Ok(None)` where there is none.
pub fn ask_line(question: &str) -> io::Result<Option<String>> {
    ask(question, true)
}

fn ask(question: &str, echo: bool) -> io::Result<Option<String>> {
    let Ok(mut tty) = OpenOptions::new().read(true).write(true).open("/dev/tty") else { return Ok(None) };
    write!(tty, "{question}: ")?;
    let before = termios::tcgetattr(&tty)?;
    let mut quiet = before.clone();
    if !echo {
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
    }
    termios::tcsetattr(&tty, OptionalActions::Flush, &quiet)?;
    let mut line = String::new();
    let read = BufReader::new(&tty).read_line(&mut line);
    termios::tcsetattr(&tty, OptionalActions::Now, &before)?;
    read?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(Some(line.strip_suffix('\r').unwrap_or(line).to_string()))
}

/// Whether Ctrl-C on the terminal reaches this program's whole process group, and so its children, by itself.
pub fn is_foreground() -> bool {
    let Ok(tty) = OpenOptions::new().read(true).open("/dev/tty") else { return false };
    termios::tcgetpgrp(&tty).is_ok_and(|group| group == rustix::process::getpgrp())
}

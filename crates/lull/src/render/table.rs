//! Tables and fact sheets without frames, so that they read well and `awk` still works on them.

use super::text::{columns, one_line, pad, printable, wrap};
use super::{Look, Tone, tone_of};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

/// Rows under titles. Cells that are state words take their colour. Without rows, `nothing` is said instead.
pub fn table(look: &Look, titles: &[&str], rows: Vec<Vec<String>>, nothing: &str) -> String {
    if rows.is_empty() {
        return format!("{nothing}\n");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if look.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    match look.width {
        Some(width) => {
            let width = u16::try_from(width).unwrap_or(u16::MAX);
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width)
        }
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.set_header(titles.iter().map(|title| Cell::new(title.to_uppercase()).fg(Color::DarkGrey)));
    for row in rows {
        table.add_row(row.iter().map(|text| cell(text)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn cell(text: &str) -> Cell {
    let cell = Cell::new(one_line(text));
    match tone_of(text) {
        Tone::Good => cell.fg(Color::Green),
        Tone::Warning => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Busy => cell.fg(Color::Cyan),
        Tone::Faint | Tone::Title => cell,
    }
}

/// One object: a name and its value per line, values aligned and wrapped. Empty values are left out.
pub fn facts(look: &Look, facts: &[(&str, String)]) -> String {
    let facts: Vec<_> = facts.iter().filter(|(_, value)| !value.is_empty()).collect();
    let indent = facts.iter().map(|(name, _)| columns(name)).max().unwrap_or(0) + 2;
    let mut text = String::new();
    for (name, value) in facts {
        let name = look.paint(Tone::Faint, &pad(name, indent));
        let value = printable(value);
        for (n, line) in wrap(&value, look.width.map(|width| width.saturating_sub(indent))).iter().enumerate() {
            let head = if n == 0 { name.clone() } else { " ".repeat(indent) };
            let line = if value == *line { look_of(look, line) } else { line.clone() };
            text.push_str(&format!("{head}{line}\n"));
        }
    }
    text
}

fn look_of(look: &Look, value: &str) -> String {
    match tone_of(value) {
        Tone::Faint => value.to_string(),
        tone => look.paint(tone, value),
    }
}

/// `-` for what is not there.
pub fn or_dash(value: Option<&str>) -> String {
    match value {
        Some(value) if !value.is_empty() => value.to_string(),
        _ => "-".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![
            vec!["1".into(), "success".into(), "all of it\x1b[2J is well and good in here".into()],
            vec!["12".into(), "failed".into(), "-".into()],
        ]
    }

    #[test]
    fn without_a_terminal_nothing_is_wrapped_or_coloured() {
        assert_eq!(
            table(&Look::plain(None), &["id", "result", "text"], rows(), "none"),
            "\
ID  RESULT   TEXT
1   success  all of it?[2J is well and good in here
12  failed   -
"
        );
        assert_eq!(table(&Look::plain(None), &["id"], vec![], "There is none."), "There is none.\n");
    }

    #[test]
    fn on_a_terminal_columns_fit_and_states_have_colours() {
        let text = table(&Look::plain(Some(36)), &["id", "result", "text"], rows(), "none");
        assert!(text.lines().all(|line| columns(line) <= 36), "{text}");
        let mut look = Look::plain(Some(80));
        look.color = true;
        let text = table(&look, &["id", "result", "text"], rows(), "none");
        assert!(text.contains("\x1b[38;5;10msuccess") || text.contains("\x1b[32msuccess"), "{text:?}");
    }

    #[test]
    fn facts_are_aligned() {
        let sheet = [("name", "pg-demo".to_string()), ("addresses", String::new()), ("os", "linux\nx".to_string())];
        assert_eq!(facts(&Look::plain(None), &sheet), "name  pg-demo\nos    linux\n      x\n");
    }
}

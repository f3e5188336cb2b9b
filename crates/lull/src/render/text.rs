//! Text that came from elsewhere (guests, scripts, hypervisors), made fit for a terminal; wrapping and padding.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// `text` without anything that a terminal would obey: line ends stay, tabs become blanks, every other control character
/// becomes `?`. A guest's banner or a script's output must not be able to move the cursor or to retitle a window.
pub fn printable(text: &str) -> String {
    let unwanted = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.trim_end_matches(['\n', '\r'])
        .replace("\r\n", "\n")
        .chars()
        .map(|c| match c {
            '\n' => '\n',
            '\t' => ' ',
            c if unwanted(c) => '?',
            c => c,
        })
        .collect()
}

/// As [`printable`], on one line.
pub fn one_line(text: &str) -> String {
    printable(text).replace('\n', " ")
}

/// Columns that `text` takes.
pub fn columns(text: &str) -> usize {
    text.width()
}

/// `text` with blanks up to `width` columns.
pub fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}

/// Lines of at most `width` columns, broken at blanks where possible; never fewer than 10 columns.
pub fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let text = printable(text);
    let Some(width) = width.map(|width| width.max(10)) else { return text.lines().map(str::to_string).collect() };
    text.lines().flat_map(|line| wrap_line(line, width)).collect()
}

fn wrap_line(line: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in line.split(' ') {
        let word_columns = columns(word);
        let at_start = used == 0;
        if !at_start && used + 1 + word_columns > width {
            lines.push(String::new());
            used = 0;
        } else if !at_start {
            push(&mut lines, ' ');
            used += 1;
        }
        for c in word.chars() {
            let c_columns = c.width().unwrap_or(0);
            if used + c_columns > width {
                lines.push(String::new());
                used = 0;
            }
            push(&mut lines, c);
            used += c_columns;
        }
    }
    lines
}

fn push(lines: &mut [String], c: char) {
    if let Some(last) = lines.last_mut() {
        last.push(c);
    }
}

/// `text` cut to `width` columns, with `…` where something is missing.
pub fn cut(text: &str, width: usize) -> String {
    let text = one_line(text);
    if columns(&text) <= width {
        return text;
    }
    let mut short = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        short.push(c);
    }
    short + "…"
}

/// `a, b and c`.
pub fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_guest_cannot_command_the_terminal() {
        assert_eq!(printable("a\x1b]0;owned\x07b\r\nc\td\u{202e}e\n"), "a?]0;owned?b\nc d?e");
    }

    #[test]
    fn lines_break_at_blanks_and_long_words_anywhere() {
        assert_eq!(wrap("one two three", Some(10)), ["one two", "three"]);
        assert_eq!(wrap("abcdefghijklmno p", Some(10)), ["abcdefghij", "klmno p"]);
        assert_eq!(wrap("one two three", None), ["one two three"]);
        assert_eq!(cut("one two three", 8), "one two…");
        assert_eq!(cut("one", 8), "one");
    }

    #[test]
    fn lists_read_like_sentences() {
        let list = |items: &[&str]| super::list(&items.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        assert_eq!(list(&[]), "");
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }

    proptest! {
        #[test]
        fn wrapped_text_fits_and_loses_nothing_but_blanks(text in "\\PC{0,200}", width in 10usize..100) {
            let lines = wrap(&text, Some(width));
            for line in &lines {
                prop_assert!(columns(line) <= width, "{line:?}");
            }
            let solid = |s: &str| s.chars().filter(|c| *c != ' ').collect::<String>();
            prop_assert_eq!(solid(&lines.concat()), solid(&printable(&text)));
        }

        #[test]
        fn what_is_printable_holds_no_control_character(text in any::<String>()) {
            prop_assert!(printable(&text).chars().all(|c| c == '\n' || !c.is_control()));
        }

        #[test]
        fn what_is_cut_fits(text in any::<String>(), width in 1usize..80) {
            prop_assert!(columns(&cut(&text, width)) <= width);
        }
    }
}

//! Does every test that docs/specification.md names exist? Knows the shape of names, nothing of what a test shows.

use std::collections::BTreeSet;

/// The names of all functions in a Rust source.
pub fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let line = line.trim_start();
        let rest = ["fn ", "async fn ", "pub fn "].iter().find_map(|start| line.strip_prefix(start))?;
        rest.split(|c: char| !is_word(c)).next()
    })
}

/// Names in `code` style in the table rows of a document that look like tests (three words or more) but are none.
pub fn without_test(text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut gone = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        for name in line.split('`').skip(1).step_by(2) {
            let is_test_name = name.matches('_').count() >= 2 && name.chars().all(is_word);
            if is_test_name && !tests.contains(name) {
                gone.push(format!("line {}: no test named {name}", number + 1));
            }
        }
    }
    gone
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_without_its_test_is_named_with_its_line() {
        let tests = functions("    async fn it_is_kept() {\nfn and_this_too() {}").map(String::from).collect();
        assert!(without_test("| promise | `it_is_kept`, `and_this_too` |", &tests).is_empty());
        assert_eq!(without_test("\n| p | `it_was_kept_once` |", &tests), ["line 2: no test named it_was_kept_once"]);
        assert!(without_test("| p | `kill_matrix`, `each_version.rs`, `lull quiesce` |", &tests).is_empty());
    }
}

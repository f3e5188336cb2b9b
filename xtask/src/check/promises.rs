//! Does every test that docs/specification.md names exist? Knows how tests and scenarios are written down, nothing of what
//! they show.

use std::collections::BTreeSet;

/// The names of all tests in a Rust source: functions with a test attribute (inside `proptest!` they have one too), and the
/// functions and names in a table of scenarios (`play: module::function`, `test: "name"`).
pub fn tests(text: &str) -> impl Iterator<Item = &str> {
    let mut attributed = false;
    text.lines().flat_map(move |line| {
        let line = line.trim_start();
        let is_test = attributed;
        // Other attributes and comments may stand between the test attribute and its function.
        attributed = ["#[test]", "#[tokio::test]", "#[tokio::test("].iter().any(|start| line.starts_with(start))
            || (attributed && (line.starts_with("#[") || line.starts_with("//")));
        let function = is_test.then(|| function(line)).flatten();
        function.into_iter().chain(scenario(line, "play: ")).chain(scenario(line, "test: \""))
    })
}

fn function(line: &str) -> Option<&str> {
    let rest = ["fn ", "async fn ", "pub fn "].iter().find_map(|start| line.strip_prefix(start))?;
    rest.split(|c: char| !is_word(c)).next()
}

/// What a table of scenarios names there: the last part of a path.
fn scenario<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(before)?;
    let path = rest.split(|c: char| !is_word(c) && c != ':').next()?;
    path.rsplit("::").next().filter(|name| !name.is_empty())
}

/// Names in `code` style in the last column of a document's tables that are one word, and so should be a test, but are none.
pub fn without_test(text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut gone = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        let held_by = line.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        for name in held_by.split('`').skip(1).step_by(2) {
            if name.chars().all(is_word) && !tests.contains(name) {
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
mod unit {
    use super::*;

    fn known(text: &str) -> Vec<&str> {
        tests(text).collect()
    }

    #[test]
    fn only_what_is_run_as_a_test_is_one() {
        let source = "fn helper() {}\n    #[tokio::test(flavor = \"multi_thread\")]\n    async fn it_is_kept() {\n\
                      #[test]\n#[cfg(unix)]\n// Why.\nfn and_this_too() {}\nfn helper_below() {}\n";
        assert_eq!(known(source), ["it_is_kept", "and_this_too"]);
        assert_eq!(known("proptest! {\n    #[test]\n    fn for_all(x in 0..9u8) {\n"), ["for_all"]);
        assert_eq!(known("#[test]\nconst X: u8 = 1;\nfn no_test() {}"), Vec::<&str>::new());
    }

    #[test]
    fn scenarios_in_a_table_are_tests() {
        let table = "    Scenario { name: \"server killed\", play: killed::while_frozen },\n    Group { test: \"whole_job\", x: 1 },";
        assert_eq!(known(table), ["while_frozen", "whole_job"]);
    }

    #[test]
    fn a_promise_without_its_test_is_named_with_its_line() {
        let tests = ["it_is_kept", "kill_matrix"].map(String::from).into_iter().collect();
        assert!(without_test("| `some_field` holds | `it_is_kept`, `kill_matrix` |", &tests).is_empty());
        assert_eq!(without_test("\n| p | `it_was_kept_once` |", &tests), ["line 2: no test named it_was_kept_once"]);
        assert_eq!(without_test("| p | `matrix` |", &tests), ["line 1: no test named matrix"]);
        assert!(without_test("| p | *suite*: `each_version.rs`, `lull quiesce` |", &tests).is_empty());
    }
}

//! The form of source files: each opens with what it does and does not know, and none is long.
//!
//! Pure: a file's name and text in, sentences out.

use std::path::Path;

/// A file of more lines has a second responsibility.
const LINES_MAX: usize = 600;

/// One sentence for each breach.
pub fn violations(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let name = file.display();
    if !text.starts_with("//!") {
        found.push(format!("{name}: does not open with //! (what it does, and what it does not know)"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        found.push(format!("{name}: {lines} lines; at most {LINES_MAX}"));
    }
    if matches!(file.file_name().and_then(|n| n.to_str()), Some("mod.rs" | "utils.rs" | "common.rs" | "helpers.rs")) {
        found.push(format!("{name}: a file is named after what it does (x.rs beside x/, no utils, common or helpers)"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_says_what_it_is_passes() {
        assert!(violations(Path::new("crates/a/src/lib.rs"), "//! Does a.\nfn main() {}\n").is_empty());
    }

    #[test]
    fn silence_length_and_grab_bags_are_found() {
        let long = "fn a() {}\n".repeat(LINES_MAX + 1);
        assert_eq!(
            violations(Path::new("crates/a/src/utils.rs"), &long),
            [
                "crates/a/src/utils.rs: does not open with //! (what it does, and what it does not know)",
                "crates/a/src/utils.rs: 601 lines; at most 600",
                "crates/a/src/utils.rs: a file is named after what it does (x.rs beside x/, no utils, common or helpers)",
            ]
        );
    }
}

//! Every test target that plain `cargo test` does not run stands in the table of suites.
//!
//! Such a target has `required-features` in its Cargo.toml; one that the table forgets would never run. Pure: cargo's metadata and
//! the table's text in, sentences out.

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    #[serde(rename = "required-features", default)]
    required_features: Vec<String>,
}

/// One sentence for each test target of `metadata` with required features that no line of `table` names as `PACKAGE TARGET`.
///
/// # Errors
/// When `metadata` is not the output of `cargo metadata`.
pub fn forgotten(metadata: &str, table: &str) -> Result<Vec<String>> {
    let metadata: Metadata = serde_json::from_str(metadata).context("reading cargo's metadata")?;
    let lines: Vec<Vec<&str>> =
        table.lines().filter(|line| line.starts_with("suite ")).map(|line| line.split_whitespace().collect()).collect();
    let mut found = Vec::new();
    for package in metadata.packages.iter().filter(|package| metadata.workspace_members.contains(&package.id)) {
        for target in &package.targets {
            let gated = target.kind.iter().any(|kind| kind == "test") && !target.required_features.is_empty();
            let words = [package.name.as_str(), target.name.as_str()];
            if gated && !lines.iter().any(|line| line.windows(2).any(|pair| pair == words)) {
                found.push(format!(
                    "{}: no line of testbed/suites.sh runs its test target {}; add: suite NAME NEEDS '...' rust_target {} {}",
                    package.name, target.name, package.name, target.name
                ));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{"workspace_members": ["p 1"], "packages": [
        {"id": "p 1", "name": "lull-proxy", "targets": [
            {"name": "service", "kind": ["test"]},
            {"name": "real_guest", "kind": ["test"], "required-features": ["testbed"]},
            {"name": "bench", "kind": ["bench"], "required-features": ["testbed"]}]},
        {"id": "f 1", "name": "foreign", "targets": [{"name": "t", "kind": ["test"], "required-features": ["x"]}]}]}"#;

    #[test]
    fn a_listed_target_passes() {
        let table = "suite channel root 'real guests' rust_target lull-proxy real_guest -- --skip slow\n";
        assert_eq!(forgotten(METADATA, table).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_forgotten_target_is_named_with_the_line_to_add() {
        let table = "# rust_target lull-proxy real_guest\nsuite unit - 'all' unit_tests\n";
        assert_eq!(
            forgotten(METADATA, table).unwrap(),
            ["lull-proxy: no line of testbed/suites.sh runs its test target real_guest; \
              add: suite NAME NEEDS '...' rust_target lull-proxy real_guest"]
        );
    }
}

//! The dependency rule: which crate of ours may know which, and which may link no async runtime.
//!
//! Pure: a graph of packages in, sentences out. Dev-dependencies are free: a test may look anywhere.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Every crate of ours that other rules speak about, with those of ours that it may depend on. A crate that is not listed breaks
/// the rule: its place has to be decided first.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("lull-engine", &[]),
    ("lull-guest-wire", &[]),
    ("lull-proxy-wire", &[]),
    ("lull-api", &[]),
    ("lull-catalog", &["lull-guest-wire"]),
    ("lull-runtime", &["lull-guest-wire"]),
    ("lull-hypervisor", &["lull-engine"]),
    ("lull-proxy", &["lull-engine", "lull-guest-wire", "lull-proxy-wire", "lull-hypervisor"]),
    ("lull-server", &["lull-engine", "lull-proxy-wire", "lull-api", "lull-catalog", "lull-hypervisor"]),
    ("lull", &["lull-server", "lull-proxy", "lull-api"]),
];

/// Crates that may depend on anything, and on which nothing may depend.
const ON_TOP: &[&str] = &["lull-sim", "xtask"];

/// Crates that link no async runtime, not even through another crate.
const SYNCHRONOUS: &[&str] = &["lull-engine", "lull-guest-wire", "lull-runtime", "lull-catalog"];
const ASYNC_RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "async-executor", "glommio", "monoio"];

/// Packages by name, with the names of those they link or run while building.
#[derive(Debug, Default)]
pub struct Graph {
    dependencies: BTreeMap<String, BTreeSet<String>>,
    ours: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` for a normal dependency, else "dev" or "build".
    kind: Option<String>,
}

impl Graph {
    /// Reads the output of `cargo metadata --format-version 1`.
    ///
    /// # Errors
    /// When it is not that, or names a package that it does not describe.
    pub fn from_metadata(json: &str) -> Result<Graph> {
        let metadata: Metadata = serde_json::from_str(json).context("reading cargo's metadata")?;
        let names: BTreeMap<&str, &str> =
            metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
        let name = |id: &str| {
            names
                .get(id)
                .map(|name| (*name).to_string())
                .with_context(|| format!("cargo's metadata lacks package {id}"))
        };
        let mut graph = Graph::default();
        for node in &metadata.resolve.nodes {
            // Two versions of a foreign package share a name: what either links counts.
            let linked = graph.dependencies.entry(name(&node.id)?).or_default();
            for dependency in &node.deps {
                if dependency.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev")) {
                    linked.insert(name(&dependency.pkg)?);
                }
            }
        }
        for id in &metadata.workspace_members {
            graph.ours.insert(name(id)?);
        }
        Ok(graph)
    }

    /// Names of the workspace's own packages.
    pub fn ours(&self) -> impl Iterator<Item = &str> {
        self.ours.iter().map(String::as_str)
    }

    fn links(&self, package: &str) -> impl Iterator<Item = &str> {
        self.dependencies.get(package).into_iter().flatten().map(String::as_str)
    }

    /// The shortest chain from `package` to a package that `is_goal`, both included.
    fn chain(&self, package: &str, is_goal: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let mut seen = BTreeSet::from([package.to_string()]);
        let mut chains = std::collections::VecDeque::from([vec![package.to_string()]]);
        while let Some(chain) = chains.pop_front() {
            let end = chain.last()?;
            if is_goal(end) {
                return Some(chain);
            }
            for next in self.links(end) {
                if seen.insert(next.to_string()) {
                    chains.push_back(chain.iter().cloned().chain([next.to_string()]).collect());
                }
            }
        }
        None
    }
}

/// One sentence for each breach of the dependency rule.
pub fn violations(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for package in graph.ours() {
        if ON_TOP.contains(&package) {
            continue;
        }
        let Some((_, allowed)) = MAY_KNOW.iter().find(|(name, _)| *name == package) else {
            found.push(format!(
                "{package}: no place in the dependency rule; add it to xtask/src/check/layers.rs and ARCHITECTURE.md"
            ));
            continue;
        };
        for dependency in graph.links(package).filter(|name| graph.ours.contains(*name)) {
            if !allowed.contains(&dependency) {
                let allowed = if allowed.is_empty() { "nothing of ours".to_string() } else { allowed.join(", ") };
                found.push(format!("{package} depends on {dependency}; it may depend on {allowed}"));
            }
        }
    }
    for package in SYNCHRONOUS {
        if let Some(chain) = graph.chain(package, |name| ASYNC_RUNTIMES.contains(&name)) {
            found.push(format!("{package} must link no async runtime, but does: {}", chain.join(" → ")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        for (package, dependencies) in edges {
            graph.ours.extend((package.starts_with("lull") || *package == "xtask").then(|| (*package).to_string()));
            graph.dependencies.insert((*package).to_string(), dependencies.iter().map(|d| (*d).to_string()).collect());
        }
        graph
    }

    fn check(edges: &[(&str, &[&str])], expected: &[&str]) {
        assert_eq!(violations(&graph(edges)), expected);
    }

    #[test]
    fn the_allowed_directions_pass() {
        check(
            &[
                ("lull-engine", &["serde"]),
                ("lull-guest-wire", &[]),
                ("lull-runtime", &["lull-guest-wire"]),
                ("lull-hypervisor", &["lull-engine", "tokio"]),
                ("xtask", &["lull-engine", "lull-hypervisor"]),
            ],
            &[],
        );
    }

    #[test]
    fn a_wrong_direction_is_named_with_what_is_allowed() {
        check(
            &[("lull-engine", &["lull-api"]), ("lull-api", &[]), ("lull-runtime", &["lull-engine"])],
            &[
                "lull-engine depends on lull-api; it may depend on nothing of ours",
                "lull-runtime depends on lull-engine; it may depend on lull-guest-wire",
            ],
        );
    }

    #[test]
    fn nothing_depends_on_the_top() {
        check(
            &[("lull-engine", &["xtask"]), ("xtask", &[])],
            &["lull-engine depends on xtask; it may depend on nothing of ours"],
        );
    }

    #[test]
    fn a_crate_without_a_place_is_refused() {
        check(
            &[("lull-stray", &[])],
            &["lull-stray: no place in the dependency rule; add it to xtask/src/check/layers.rs and ARCHITECTURE.md"],
        );
    }

    #[test]
    fn an_async_runtime_is_found_behind_another_crate() {
        check(
            &[("lull-runtime", &["clever"]), ("clever", &["tokio"]), ("tokio", &[])],
            &["lull-runtime must link no async runtime, but does: lull-runtime → clever → tokio"],
        );
    }

    #[test]
    fn dev_dependencies_are_free_and_build_dependencies_are_not() {
        let metadata = r#"{
            "packages": [{"id": "e 1", "name": "lull-engine"}, {"id": "a 1", "name": "lull-api"}, {"id": "x 1", "name": "xtask"}],
            "workspace_members": ["e 1", "a 1", "x 1"],
            "resolve": {"nodes": [
                {"id": "e 1", "deps": [
                    {"pkg": "x 1", "dep_kinds": [{"kind": "dev"}]},
                    {"pkg": "a 1", "dep_kinds": [{"kind": "dev"}, {"kind": "build"}]}]},
                {"id": "a 1", "deps": []},
                {"id": "x 1", "deps": []}]}
        }"#;
        let found = violations(&Graph::from_metadata(metadata).unwrap());
        assert_eq!(found, ["lull-engine depends on lull-api; it may depend on nothing of ours"]);
    }
}

//! `cargo xtask check`: holds the rules that no compiler holds.
//!
//! Gathers what the rules look at (cargo's metadata, the files git knows) and prints what breaks them. The rules themselves are
//! pure and lie in the modules below; this one knows only where their input comes from.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

mod documents;
mod layers;
mod promises;
mod sources;
mod suites;

/// Runs all checks over this checkout.
///
/// # Errors
/// When a rule is broken (each finding was printed), or when cargo, git or a file cannot be read.
pub fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the checkout")?;
    let mut findings = Vec::new();

    let metadata = cargo_metadata(root)?;
    let graph = layers::Graph::from_metadata(&metadata)?;
    findings.extend(layers::violations(&graph));
    findings.extend(suites::forgotten(&metadata, &read(root, Path::new("testbed/suites.sh"))?)?);

    let files = tracked_files(root)?;
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "md")) {
        let text = read(root, file)?;
        findings.extend(documents::missing_paths(file, &text, |path| root.join(path).exists()));
    }
    let mut tests = BTreeSet::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs")) {
        let text = read(root, file)?;
        findings.extend(sources::violations(file, &text));
        tests.extend(promises::tests(&text).map(String::from));
    }
    let specification = Path::new("docs/specification.md");
    let gone = promises::without_test(&read(root, specification)?, &tests);
    findings.extend(gone.into_iter().map(|finding| format!("{}: {finding}", specification.display())));

    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    println!(
        "layers: {} packages of ours keep the dependency rule; {} files checked",
        graph.ours().count(),
        files.len()
    );
    Ok(())
}

fn cargo_metadata(root: &Path) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    output(Command::new(cargo).current_dir(root).args(["metadata", "--format-version", "1", "--all-features"]))
}

/// Files that git tracks or would track, and that are there, relative to the checkout. Where there is no git (an unpacked archive), all files
/// outside hidden and build folders.
fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    if !root.join(".git").exists() {
        let mut files = Vec::new();
        walk(root, root, &mut files)?;
        return Ok(files);
    }
    let listed = output(Command::new("git").current_dir(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    Ok(listed.split_terminator('\0').map(PathBuf::from).filter(|file| root.join(file).is_file()).collect())
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') || name == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            walk(root, &entry.path(), files)?;
        } else {
            files.push(entry.path().strip_prefix(root)?.to_path_buf());
        }
    }
    Ok(())
}

fn read(root: &Path, file: &Path) -> Result<String> {
    std::fs::read_to_string(root.join(file)).with_context(|| format!("reading {}", file.display()))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {command:?}"))
}

//! Builds the runtime component that the proxy carries, with a nested cargo in a target folder of its own.
//!
//! The folder is shared by all profiles (`<target>/runtime-build`), so the component is built once. What the outer cargo
//! was told about flags, wrappers and profiles does not reach the nested one: the component is the same in a debug build, under
//! clippy and in a release. `LULL_RUNTIME_LINUX` names a prebuilt file instead.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

const PREBUILT: &str = "LULL_RUNTIME_LINUX";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Static, so that nothing is needed from the guest's libraries.
const FLAGS_VARIABLE: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    for path in [
        "../runtime/src",
        "../runtime/Cargo.toml",
        "../guest-wire/src",
        "../guest-wire/Cargo.toml",
        "../../Cargo.lock",
        // Profiles and what the crates inherit.
        "../../Cargo.toml",
        "build.rs",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rustc-check-cfg=cfg(carries_linux_x86_64)");
    let file = match std::env::var_os(PREBUILT) {
        Some(prebuilt) => {
            let prebuilt = PathBuf::from(prebuilt).canonicalize().map_err(|e| format!("{PREBUILT}: {e}"))?;
            println!("cargo::rerun-if-changed={}", prebuilt.display());
            Some(prebuilt)
        }
        None if std::env::var("HOST")? == TARGET => Some(build()?),
        None => {
            println!(
                "cargo::warning=no runtime component for {TARGET} is carried: this host does not build it; set {PREBUILT}"
            );
            None
        }
    };
    if let Some(file) = file {
        println!("cargo::rustc-cfg=carries_linux_x86_64");
        println!("cargo::rustc-env=LULL_CARRIED_LINUX_X86_64={}", file.display());
        let packed = PathBuf::from(std::env::var("OUT_DIR")?).join("lull-runtime.gz");
        pack(&file, &packed)?;
        println!("cargo::rustc-env=LULL_CARRIED_LINUX_X86_64_GZIP={}", packed.display());
    }
    Ok(())
}

/// What goes over the wire is packed: half the bytes to decrypt in the guest, where that is the slowest part.
fn pack(file: &Path, packed: &Path) -> Result<(), Failure> {
    let mut encoder = flate2::write::GzEncoder::new(std::fs::File::create(packed)?, flate2::Compression::best());
    encoder.write_all(&std::fs::read(file)?)?;
    encoder.finish()?;
    Ok(())
}

fn build() -> Result<PathBuf, Failure> {
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../runtime/Cargo.toml").canonicalize()?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    let folder = target_folder(&out_dir).ok_or("OUT_DIR lies in no target folder of cargo")?.join("runtime-build");
    let mut cargo = Command::new(std::env::var("CARGO")?);
    cargo.args(["build", "--locked", "--profile", "runtime", "--target", TARGET, "--manifest-path"]);
    cargo.arg(&manifest).arg("--target-dir").arg(&folder);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let outer =
            matches!(name.as_str(), "RUSTC_WORKSPACE_WRAPPER" | "RUSTC_WRAPPER" | "CLIPPY_ARGS" | "CARGO_TARGET_DIR")
                || name.ends_with("RUSTFLAGS")
                || ["CARGO_PROFILE_", "CARGO_FEATURE_", "CARGO_CFG_"].iter().any(|prefix| name.starts_with(prefix));
        if outer {
            cargo.env_remove(name);
        }
    }
    cargo.env(FLAGS_VARIABLE, "-C target-feature=+crt-static");
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the runtime component was not built ({status}); cargo's lines above say why").into());
    }
    // A copy of our own: a later build of another checkout in the same folder must not change what this one carries.
    let built = folder.join(TARGET).join("runtime/lull-runtime");
    let carried = out_dir.join("lull-runtime");
    std::fs::copy(&built, &carried).map_err(|e| format!("{}: {e}", built.display()))?;
    drop_unwind_tables(&carried)?;
    Ok(carried)
}

/// The component aborts when it panics, so nobody reads these tables of the standard library and of libc: a tenth of what travels.
fn drop_unwind_tables(file: &Path) -> Result<(), Failure> {
    let mut objcopy = Command::new("objcopy");
    for section in [".eh_frame", ".eh_frame_hdr", ".gcc_except_table", ".comment"] {
        objcopy.args(["--remove-section", section]);
    }
    let status = objcopy.arg(file).status().map_err(|e| format!("objcopy, which comes with the linker: {e}"))?;
    if !status.success() {
        return Err(format!("objcopy {} failed ({status})", file.display()).into());
    }
    Ok(())
}

/// `<target>/[<triple>/]<profile>/build/<package>/out` is what cargo's `OUT_DIR` looks like.
fn target_folder(out_dir: &Path) -> Option<PathBuf> {
    let build = out_dir.ancestors().nth(2).filter(|folder| folder.ends_with("build"))?;
    let above = build.ancestors().nth(2)?;
    let with_triple = std::env::var("TARGET").is_ok_and(|triple| above.ends_with(triple));
    Some(if with_triple { above.parent()? } else { above }.to_path_buf())
}

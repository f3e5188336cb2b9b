//! Compiles the protocol with a compiler written in Rust: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/proxy.proto"], ["proto"])?;
    // These hold secrets: lib.rs prints them without.
    let secret = ["Credential", "PrivateKey", "Elevation", "InstallProxy"].map(|name| format!("lull.proxy.v1.{name}"));
    let mut config = tonic_prost_build::Config::new();
    config.skip_debug(secret);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}

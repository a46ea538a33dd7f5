//! Compiles `proto/helios/v1/*.proto` with protox, so that no protoc is needed: messages, client and server stubs, and
//! the descriptor set that the reflection service serves. Does nothing without the feature `grpc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "grpc")]
    generate()?;
    Ok(())
}

#[cfg(feature = "grpc")]
fn generate() -> Result<(), Box<dyn Error>> {
    use prost::Message as _;

    const FILES: [&str; 5] = [
        "helios/v1/types.proto",
        "helios/v1/discovery.proto",
        "helios/v1/management.proto",
        "helios/v1/report.proto",
        "helios/v1/peer.proto",
    ];
    let files = protox::compile(FILES, ["proto"])?;
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    std::fs::write(std::path::Path::new(&out).join("helios.v1.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}

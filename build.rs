//! Compiles the protos without `protoc` and keeps their descriptors for reflection.
use std::{env, fs, path::PathBuf};

const PROTOS: &[&str] = &["ranking_service", "event_service", "catalog_service", "explain_service", "model_service"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // tonic-prost-build does not print this itself.
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");

    let files: Vec<String> = PROTOS.iter().map(|name| format!("lodestone/v1/{name}.proto")).collect();
    let descriptors = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost_encode(&descriptors))?;
    tonic_prost_build::configure().build_client(true).build_server(true).compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}

//! Compiles the protos without `protoc`, and writes their descriptors for the reflection service.
use std::{env, fs, path::PathBuf};

/// The files of the services; protox finds the files that they import.
const PROTOS: &[&str] = &[
    "ranking_service",
    "event_service",
    "catalog_service",
    "rule_service",
    "serving_config_service",
    "synonym_service",
    "explain_service",
    "loyalty_service",
    "incentive_service",
    "model_service",
];

#[expect(clippy::disallowed_methods, reason = "cargo passes OUT_DIR through the environment")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // tonic-prost-build does not print these lines for descriptors that are compiled already.
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");

    let files: Vec<String> = PROTOS.iter().map(|name| format!("lodestone/v1/{name}.proto")).collect();
    let descriptors = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let mut config = tonic_prost_build::Config::new();
    // The codec finds the descriptor of a message by its name.
    config.enable_type_names();
    tonic_prost_build::configure()
        .codec_path("crate::server::codec::BoundedCodec")
        .build_client(true)
        .build_server(true)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

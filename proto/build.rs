//! Compiles `proto/hodei/v1/*.proto` without a system protoc and keeps the descriptor set for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 8] = [
    "hodei/v1/cluster.proto",
    "hodei/v1/common.proto",
    "hodei/v1/job.proto",
    "hodei/v1/log.proto",
    "hodei/v1/peer.proto",
    "hodei/v1/scheduler.proto",
    "hodei/v1/secret.proto",
    "hodei/v1/worker.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(FILES)?;
    let set = compiler.file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("hodei_descriptor.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".hodei.v1.LogBatch.data")
        .bytes(".hodei.v1.RaftMessage.payload")
        .btree_map(".")
        // What carries secrets is never shown by accident.
        .skip_debug(["hodei.v1.EnrollResponse", "hodei.v1.PutSecretRequest", "hodei.v1.SecretValue"])
        .compile_fds(set)?;
    Ok(())
}

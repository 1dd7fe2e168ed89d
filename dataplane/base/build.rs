//! Generates the gRPC code from `proto/*.proto`.

fn main() -> std::io::Result<()> {
    let files = ["role", "cloud", "cluster", "node", "storage"].map(|f| format!("proto/{f}.proto"));
    for f in &files {
        println!("cargo:rerun-if-changed={f}");
    }
    tonic_prost_build::configure().compile_protos(&files, &["proto".to_owned()])
}

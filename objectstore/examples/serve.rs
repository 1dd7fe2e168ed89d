//! S3 on a folder: `cargo run --release --example serve -- DIR ADDR ACCESS_KEY SECRET_KEY`. What `karri walrus serve` does,
//! for trying the crate alone.

#![allow(clippy::print_stdout, reason = "a command-line tool")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    karri_base::observe::init_logs();
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, listen, access, secret] = args.as_slice() else {
        return Err("want DIR ADDR ACCESS_KEY SECRET_KEY".into());
    };
    let handle = karri_objectstore::standalone(dir.as_ref(), listen.parse()?, access, secret, "us-east-1")?;
    println!("listening on {}", handle.local_addr());
    // Until standard input ends.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    handle.shutdown();
    Ok(())
}

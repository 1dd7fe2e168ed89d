//! The raw path: what socket and disk allow with nothing in between. A thread a connection copies between its socket and
//! a file a name, O_DIRECT, a MiB at a time; a PUT is answered after fdatasync. It knows just enough HTTP for
//! the load, trusts it, and checks no signature: a bound to measure against, not a server.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const STEP: usize = 1 << 20;
/// What O_DIRECT wants of addresses, offsets and lengths.
const ALIGN: usize = 4096;

/// Serves until the process ends.
///
/// # Errors
/// The listener's.
pub fn serve(listen: SocketAddr, folder: &Path) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    for stream in listener.incoming() {
        let folder = folder.to_owned();
        std::thread::spawn(move || stream.and_then(|stream| connection(stream, &folder)));
    }
    Ok(())
}

/// A MiB whose address suits O_DIRECT.
struct Aligned {
    bytes: Vec<u8>,
    from: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; STEP + ALIGN];
        let from = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, from }
    }

    fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + len]
    }
}

fn connection(mut stream: TcpStream, folder: &Path) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    let mut buffer = Aligned::new();
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let file = file_of(folder, target);
        match method {
            "PUT" if length > 0 => {
                let file = open(&file, true)?;
                copy(length, &mut buffer, |bytes, at| {
                    reader.read_exact(bytes)?;
                    file.write_all_at(bytes, at)
                })?;
                file.sync_data()?;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            }
            "PUT" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?,
            _ => {
                let file = open(&file, false)?;
                let length = file.metadata()?.len() as usize;
                stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())?;
                copy(length, &mut buffer, |bytes, at| {
                    file.read_exact_at(bytes, at)?;
                    stream.write_all(bytes)
                })?;
            }
        }
    }
}

fn copy(length: usize, buffer: &mut Aligned, mut step: impl FnMut(&mut [u8], u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let len = STEP.min(length - at);
        step(buffer.get(len), at as u64)?;
        at += len;
    }
    Ok(())
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    OpenOptions::new().read(true).write(write).create(write).truncate(false).custom_flags(direct).open(path)
}

fn file_of(folder: &Path, target: &str) -> PathBuf {
    folder.join(format!("raw-{}", target.trim_start_matches('/').replace(['/', '%', '?'], "-")))
}

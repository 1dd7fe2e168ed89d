//! A blocking S3 client over one TCP connection, as plain as can be.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use http::Method;
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::Payload;
use karri_base::clock::{Clock, SystemClock};
use karri_base::config::AccessKey;

pub const ACCESS: &str = "AKIATESTTESTTESTTEST";
pub const SECRET: &str = "a secret of forty characters, more or less";

pub struct Client {
    s3: S3,
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.text());
        self
    }
    pub fn all(&self, element: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        text.split(&open).skip(1).map(|s| s.split(&close).next().unwrap().to_owned()).collect()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let key = AccessKey { access_key_id: ACCESS.into(), secret_access_key: SECRET.into() };
        let s3 = S3::new(&format!("http://{address}"), key, "us-east-1").unwrap();
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { s3, stream: BufReader::new(stream), address })
    }

    pub fn put(&mut self, target: &str, body: &[u8]) -> std::io::Result<Answer> {
        self.send(Method::PUT, target, &[], body)
    }
    pub fn get(&mut self, target: &str) -> std::io::Result<Answer> {
        self.send(Method::GET, target, &[], b"")
    }
    pub fn delete(&mut self, target: &str) -> std::io::Result<Answer> {
        self.send(Method::DELETE, target, &[], b"")
    }

    /// `target` is `bucket/key?name=value&...`, none of it encoded.
    pub fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        self.write(method.clone(), target, headers, body, body)?;
        self.read(method == Method::HEAD)
    }

    /// Sends a head for `body`, and then `sent`.
    pub fn write(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        sent: &[u8],
    ) -> std::io::Result<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (bucket, key) = path.split_once('/').map_or((path, None), |(b, k)| (b, Some(k)));
        let query: Vec<_> =
            query.split('&').filter(|q| !q.is_empty()).map(|q| q.split_once('=').unwrap_or((q, ""))).collect();
        let now = SystemClock.now();
        let parts = self.s3.request(method, bucket, key, &query, headers, Payload::Bytes(body), now).unwrap();
        let target = parts.uri.path_and_query().unwrap();
        let mut head = format!("{} {target} HTTP/1.1\r\n", parts.method);
        for (name, value) in &parts.headers {
            head += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        if !parts.headers.contains_key("host") {
            head += &format!("host: {}\r\n", self.address);
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(sent)
    }

    /// More of a body.
    pub fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The first byte of the answer, which is there then and still to be read.
    pub fn peek(&mut self) -> u8 {
        self.stream.fill_buf().unwrap()[0]
    }

    pub fn read(&mut self, head_only: bool) -> std::io::Result<Answer> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let gone = || std::io::Error::other("the server closed the connection");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(gone)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(gone());
            }
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        let chunked = answer.header("transfer-encoding") == "chunked";
        assert!(!chunked, "answers have lengths: {:?}", answer.headers);
        if !head_only && status != 204 && status != 304 {
            let length = answer.header("content-length").parse().unwrap_or(0);
            answer.body = vec![0; length];
            self.stream.read_exact(&mut answer.body)?;
        }
        Ok(answer)
    }
}

//! What runs inside the pods of the cluster lab. The only file of its images.
//!
//! - `lab-pod echo`: HTTP on TCP port 8080 answers any path with
//!   `{"pod": "web-1", "client": "10.10.0.50:41234"}`; UDP port 8080 answers
//!   each datagram with `web-1 10.10.0.50:41234 TEXT`. The pod's name is its
//!   host name. TCP port 8081 sends back what it gets.
//! - `lab-pod pause`: holds a pod's namespaces and does nothing.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const PORT: u16 = 8080;
const STREAM_PORT: u16 = 8081;
/// A client that says nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let task = match env::args().nth(1).as_deref() {
        Some("echo") => echo,
        Some("pause") => pause,
        _ => {
            eprintln!("usage: lab-pod echo|pause");
            return ExitCode::from(2);
        }
    };
    match task() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-pod: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pause() -> io::Result<()> {
    loop {
        thread::park();
    }
}

fn echo() -> io::Result<()> {
    let name = env::var("HOSTNAME").unwrap_or_default();
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let (listener, socket) = (TcpListener::bind(any(PORT))?, UdpSocket::bind(any(PORT))?);
    let streams = TcpListener::bind(any(STREAM_PORT))?;
    let pod = name.clone();
    thread::spawn(move || datagrams(&socket, &pod));
    thread::spawn(move || {
        for stream in streams.incoming().flatten() {
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    for stream in listener.incoming() {
        // An error here is a connection that ended before it was accepted.
        let Ok(stream) = stream else { continue };
        let pod = name.clone();
        thread::spawn(move || answer(&stream, &pod));
    }
    Ok(())
}

/// One request, one answer, end of connection.
fn answer(mut stream: &TcpStream, pod: &str) -> io::Result<()> {
    let client = plain(stream.peer_addr()?);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            break;
        }
    }
    let body = format!("{{\"pod\": \"{pod}\", \"client\": \"{client}\"}}\n");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn datagrams(socket: &UdpSocket, pod: &str) {
    let mut buffer = vec![0; 65_536];
    loop {
        // An error here is an ICMP message about an earlier answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut reply = format!("{pod} {} ", plain(client)).into_bytes();
        reply.extend_from_slice(buffer.get(..length).unwrap_or_default());
        let _ = socket.send_to(&reply, client);
    }
}

/// An IPv4 client as IPv4, though the socket speaks both families.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

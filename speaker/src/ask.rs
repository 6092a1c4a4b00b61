//! Short questions by HTTP to other processes of the node.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take, from the same node.
const PATIENCE: Duration = Duration::from_millis(500);

/// The first `most` bytes of the answer, head and all. `TimedOut` where somebody
/// holds the port and says nothing.
pub(crate) async fn get(at: SocketAddr, path: &str, most: u64) -> io::Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(at).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(most).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let timed_out = |_| Err(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(PATIENCE, ask)
        .await
        .unwrap_or_else(timed_out)
}

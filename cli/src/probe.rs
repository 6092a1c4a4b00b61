//! `bellrock probe`: asks the process behind a health socket how it is. Made
//! for exec probes: an image with one program has no curl.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::table;

/// Longer than a healthy process takes, shorter than a probe may.
const PATIENCE: Duration = Duration::from_millis(900);

/// Options of `bellrock probe`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The socket that the process was given with --health-socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// What to ask: /healthz, /readyz or /metrics
    path: String,
}

/// Prints the answer; the exit code says whether it was a good one.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut stream = UnixStream::connect(&args.socket)
        .with_context(|| format!("connect to {}", args.socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let path = &args.path;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: bellrock\r\nConnection: close\r\n\r\n"
    )
    .context("ask")?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .context("read the answer")?;
    let (status, body) = parse(&text).context("not an answer in HTTP")?;
    table::say(body)?;
    Ok(if status == 200 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Status and body of an answer.
fn parse(text: &str) -> Option<(u16, &str)> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_decides_and_the_body_is_shown() {
        let ready = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";
        assert_eq!(parse(ready), Some((200, "ready\n")));
        let not = "HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting\n";
        assert_eq!(parse(not), Some((503, "waiting\n")));
        for bad in [
            "",
            "HTTP/1.1 20",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}

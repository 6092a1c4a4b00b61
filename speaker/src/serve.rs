//! `/healthz`, `/readyz` and `/metrics`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::UnixListener;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::ask;
use crate::status::View;

/// Within so many bytes of a speaker's metrics is one of its own.
const METRICS: u64 = 64 * 1024;

type Viewed = channel::Receiver<View>;

fn router(view: Viewed) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(view)
}

/// Listens on a Unix socket, in the place of one that was left there.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => UnixListener::bind(path),
    }
}

/// Serves on the Unix socket until `stop`. Unlike the port, which the speaker
/// of a node that is about to be replaced may still hold, the socket is this
/// process's own: what it says of health and readiness is about no other.
pub(crate) async fn serve_socket(listener: UnixListener, view: Viewed, stop: CancellationToken) {
    let server =
        axum::serve(listener, router(view)).with_graceful_shutdown(stop.clone().cancelled_owned());
    if let Err(error) = server.await {
        tracing::warn!(%error, "the health socket ended");
    }
    stop.cancelled().await;
}

/// Serves until `stop`. A port that is taken is tried again: the speaker's
/// work does not depend on it. `beside` hears whether a speaker has it, as the
/// one that this one replaces does for a while.
pub(crate) async fn serve(
    listen: SocketAddr,
    view: Viewed,
    beside: channel::Sender<bool>,
    stop: CancellationToken,
) {
    let listener = loop {
        match tokio::net::TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%listen, %error, "cannot serve health and metrics; trying again");
                beside.send_replace(is_speaker(listen).await);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    };
    beside.send_replace(false);
    let server = axum::serve(listener, router(view)).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::warn!(%error, "health and metrics ended");
    }
}

/// Whether the process that has the port is a speaker, or one that does not say:
/// a speaker that hangs may come to itself again.
async fn is_speaker(listen: SocketAddr) -> bool {
    let mut at = listen;
    match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => at.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => at.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    match ask::get(at, "/metrics", METRICS).await {
        Ok(answer) => answer.contains("\n# HELP bellrock_speaker_"),
        Err(error) => error.kind() == io::ErrorKind::TimedOut,
    }
}

async fn ready(State(view): State<Viewed>) -> (StatusCode, String) {
    let view = view.borrow();
    match view.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics(State(view): State<Viewed>) -> impl IntoResponse {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = view.borrow().metrics();
    match text {
        Ok(text) => ([(CONTENT_TYPE, TEXT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A speaker's server on a port that somebody holds, and what it hears.
    fn second(at: SocketAddr, heard: bool) -> (channel::Receiver<bool>, CancellationToken) {
        let (beside, another) = channel::channel(heard);
        let (stop, view) = (
            CancellationToken::new(),
            channel::channel(View::starting("n1")).1,
        );
        tokio::spawn(serve(at, view, beside, stop.clone()));
        (another, stop)
    }

    async fn hears(another: &mut channel::Receiver<bool>, expected: bool) {
        let heard = another.wait_for(|heard| *heard == expected);
        let heard = tokio::time::timeout(Duration::from_secs(20), heard).await;
        heard.expect("in time").expect("it serves on");
    }

    #[tokio::test]
    async fn a_speaker_at_the_port_is_known_for_one_until_it_ends() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let (mut first, ended) = second(at, true);
        hears(&mut first, false).await;
        // On all addresses, as by default.
        let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port());
        let (mut another, _stop) = second(all, false);
        hears(&mut another, true).await;
        ended.cancel();
        hears(&mut another, false).await;
        let answer = ask::get(at, "/healthz", METRICS).await.unwrap();
        assert!(answer.ends_with("ok\n"), "{answer}");
    }

    #[tokio::test]
    async fn another_program_at_the_port_is_no_speaker_unless_it_does_not_say() {
        let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = held.local_addr().unwrap();
        // Nobody accepts: the kernel does.
        let (mut another, stop) = second(at, false);
        hears(&mut another, true).await;
        stop.cancel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = held.accept().await {
                let metrics = "# HELP node_load1 1m load average.\n";
                let answer = format!("HTTP/1.0 200 OK\r\n\r\n{metrics}");
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let (mut another, _stop) = second(at, true);
        hears(&mut another, false).await;
    }
}

//! `/healthz`, `/readyz` and `/metrics`.

use std::io;
use std::net::SocketAddr;
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

use crate::status::View;

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
/// work does not depend on it.
pub(crate) async fn serve(listen: SocketAddr, view: Viewed, stop: CancellationToken) {
    let listener = loop {
        match tokio::net::TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%listen, %error, "cannot serve health and metrics; trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    };
    let server = axum::serve(listener, router(view)).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::warn!(%error, "health and metrics ended");
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

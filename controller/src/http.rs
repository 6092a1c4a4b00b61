//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the controller waits for before it is ready; `None` when it is.
pub(crate) type Waiting = Option<String>;

#[derive(Clone)]
struct Served {
    metrics: Arc<Metrics>,
    waiting: watch::Receiver<Waiting>,
}

/// Serves until `stop`. A port that is taken is tried again: allocation does not depend on it.
pub(crate) async fn serve(
    listen: SocketAddr,
    metrics: Arc<Metrics>,
    waiting: watch::Receiver<Waiting>,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(text))
        .with_state(Served { metrics, waiting });
    let listener = loop {
        match tokio::net::TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%listen, %error, "cannot listen for health and metrics; trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::warn!(%error, "health and metrics have ended");
    }
}

async fn ready(State(served): State<Served>) -> (StatusCode, String) {
    match &*served.waiting.borrow() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn text(State(served): State<Served>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match served.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

//! The server inside the lab's pods: it says which pod answered and whom.
//!
//! - HTTP on 8080: any path answers `{"pod": "web-1", "client": "10.10.0.50:41234"}`.
//!   `GET /ready` is the readiness probe; `POST /unready` and `POST /ready`
//!   switch what it answers.
//! - UDP on 8080 answers each datagram with `web-1 10.10.0.50:41234 TEXT`.
//! - TCP on 8081 sends back what it gets, for connections that live long.
//!
//! On `SIGTERM` it goes on serving for the drain time, then ends.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, Uri};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UdpSocket};

/// The echo server's flags.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name to answer with
    #[arg(long)]
    pub name: String,
    /// TCP port that speaks HTTP (repeatable)
    #[arg(long, value_name = "PORT", default_values_t = [8080])]
    pub http: Vec<u16>,
    /// UDP port (repeatable)
    #[arg(long, value_name = "PORT", default_values_t = [8080])]
    pub udp: Vec<u16>,
    /// TCP port that sends back what it gets (repeatable)
    #[arg(long, value_name = "PORT", default_values_t = [8081])]
    pub tcp: Vec<u16>,
    /// Seconds to go on serving after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub drain: f32,
    /// Start as not ready
    #[arg(long)]
    pub unready: bool,
}

#[derive(Debug)]
struct Pod {
    name: String,
    ready: AtomicBool,
}

/// Serves until `SIGTERM` and the drain time after it.
pub fn run(args: Args) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(args))
}

async fn serve(args: Args) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let pod = Arc::new(Pod {
        name: args.name,
        ready: AtomicBool::new(!args.unready),
    });
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    for &port in &args.http {
        let listener = TcpListener::bind(any(port))
            .await
            .with_context(|| format!("listen on TCP port {port}"))?;
        let app = Router::new()
            .route("/ready", get(readiness).post(become_ready))
            .route("/unready", post(become_unready))
            .fallback(answer)
            .with_state(Arc::clone(&pod))
            .into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
    }
    for &port in &args.udp {
        let socket = UdpSocket::bind(any(port))
            .await
            .with_context(|| format!("listen on UDP port {port}"))?;
        tokio::spawn(datagrams(socket, Arc::clone(&pod)));
    }
    for &port in &args.tcp {
        let listener = TcpListener::bind(any(port))
            .await
            .with_context(|| format!("listen on TCP port {port}"))?;
        tokio::spawn(streams(listener));
    }
    terminate.recv().await;
    tokio::time::sleep(Duration::from_secs_f32(args.drain)).await;
    Ok(())
}

async fn answer(
    State(pod): State<Arc<Pod>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    uri: Uri,
) -> Json<Value> {
    let client = plain(client).to_string();
    Json(json!({"pod": pod.name, "client": client, "path": uri.path()}))
}

async fn readiness(State(pod): State<Arc<Pod>>) -> StatusCode {
    if pod.ready.load(Ordering::Relaxed) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn become_ready(State(pod): State<Arc<Pod>>) {
    pod.ready.store(true, Ordering::Relaxed);
}

async fn become_unready(State(pod): State<Arc<Pod>>) {
    pod.ready.store(false, Ordering::Relaxed);
}

async fn datagrams(socket: UdpSocket, pod: Arc<Pod>) {
    let mut buffer = vec![0; 65_536];
    loop {
        // An error here is an ICMP message about an earlier answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let mut reply = format!("{} {} ", pod.name, plain(client)).into_bytes();
        reply.extend_from_slice(buffer.get(..length).unwrap_or_default());
        let _ = socket.send_to(&reply, client).await;
    }
}

async fn streams(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await
        });
    }
}

/// An IPv4 client as IPv4, though the socket speaks both families.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

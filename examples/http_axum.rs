//! An axum service on handed listeners. It differs from any other axum service by one function, `listeners`.
//!
//! ```sh
//! portpool exec api-server -- cargo run --example http_axum
//! curl http://localhost:9000/
//! ```

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::routing::get;
use axum::serve::IncomingStream;
use axum::{Json, Router};
use listenfd::ListenFd;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How long requests in flight may go on after SIGTERM.
const DRAIN: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("http_axum: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let terminated = terminated()?;
    let (stop, stopped) = tokio::sync::watch::channel(());
    let mut servers = JoinSet::new();
    for listener in listeners()? {
        let app = Router::new()
            .fallback(get(answer))
            .into_make_service_with_connect_info::<LocalPort>();
        let mut stopped = stopped.clone();
        let stopped = async move { _ = stopped.changed().await };
        servers.spawn(
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped)
                .into_future(),
        );
    }
    terminated.await;
    drop(stop);
    // A client that keeps its connection open must not keep the service: after DRAIN it is cut off.
    let _ = tokio::time::timeout(DRAIN, servers.join_all()).await;
    Ok(())
}

/// The listeners in LISTEN_FDS. They come blocking, as most programs want them; tokio wants them otherwise.
fn listeners() -> Result<Vec<TcpListener>, Box<dyn Error>> {
    let mut handed = ListenFd::from_env();
    if handed.len() == 0 {
        return Err("no listener in LISTEN_FDS: run it under `portpool exec POOL --`".into());
    }
    let mut listeners = Vec::new();
    for index in 0..handed.len() {
        let listener = handed
            .take_tcp_listener(index)?
            .ok_or("a listener was handed twice")?;
        listener.set_nonblocking(true)?;
        listeners.push(TcpListener::from_std(listener)?);
    }
    Ok(listeners)
}

/// The port a connection came in on. The listener's own may differ: the agent may serve a port from elsewhere.
#[derive(Clone)]
struct LocalPort(Option<u16>);

impl Connected<IncomingStream<'_, TcpListener>> for LocalPort {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.io().local_addr().ok().map(|address| address.port()))
    }
}

async fn answer(ConnectInfo(LocalPort(port)): ConnectInfo<LocalPort>) -> Json<Value> {
    let instance = std::env::var("PORTPOOL_INSTANCE")
        .ok()
        .and_then(|n| n.parse::<u32>().ok());
    Json(
        json!({"service": "http_axum", "port": port, "pid": std::process::id(), "instance": instance}),
    )
}

/// Resolves at SIGTERM, which is caught from the call on.
#[cfg(unix)]
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move { _ = signals.recv().await })
}

#[cfg(not(unix))]
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async { _ = tokio::signal::ctrl_c().await })
}

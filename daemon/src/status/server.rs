//! The HTTP server for status and metrics. It answers `GET` and `HEAD` of a few paths, and keeps no state.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::exposition::{self, Format};
use super::report::{Audience, MirrorReport, Report};
use crate::shared::ServerState;

/// Maximum number of connections of one listener. More wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last. A scraper opens another one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum size of a request's head, in bytes. This is the least that hyper allows.
const MAX_HEAD: usize = 8 << 10;
/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The page.
const PAGE: &str = include_str!("page.html");

/// A socket that accepts streams.
pub(super) trait Listen: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Accepts the next connection.
    fn accept_stream(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept_stream(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(socket, _)| socket)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn accept_stream(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(socket, _)| socket)
    }
}

/// Answers requests on a socket until dropped.
pub(super) async fn serve(listener: impl Listen, audience: Audience, shared: Arc<ServerState>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { continue };
        while connections.try_join_next().is_some() {}
        match listener.accept_stream().await {
            Ok(socket) => {
                connections.spawn(connection(socket, audience, Arc::clone(&shared), place));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for status or metrics");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    audience: Audience,
    shared: Arc<ServerState>,
    _place: OwnedSemaphorePermit,
) {
    let respond = service_fn(|request: Request<Incoming>| {
        let response = respond(&shared, audience, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), respond);
    let _ = timeout(CONNECTION_TIMEOUT, serving).await;
}

fn respond(shared: &ServerState, audience: Audience, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/" => page(),
        "/status.json" => json(StatusCode::OK, &Report::of(shared, audience)),
        "/ready" => ready(&Report::of(shared, Audience::Operator)),
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            metrics(shared, Format::accepted(accept.unwrap_or_default()))
        }
        _ => plain(StatusCode::NOT_FOUND, "there are /, /status.json, /ready and /metrics here\n"),
    }
}

fn metrics(shared: &ServerState, format: Format) -> Response<Full<Bytes>> {
    let settings = shared.settings();
    shared.metrics.retain(|name| settings.registry.find(name).is_some());
    let report = Report::of(shared, Audience::Operator);
    answer(StatusCode::OK, format.content_type(), exposition::metrics(&shared.metrics, &report, format))
}

/// What `/ready` answers.
#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    draining: bool,
    repositories: Vec<ReadyRepository<'a>>,
}

#[derive(Serialize)]
struct ReadyRepository<'a> {
    name: &'a str,
    generation: Option<u64>,
    age: Option<i64>,
}

fn ready(report: &Report) -> Response<Full<Bytes>> {
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let of = |mirror: &MirrorReport| (mirror.generation, mirror.age);
    let repositories = report.mirrors.iter().map(|mirror| {
        let (generation, age) = of(mirror);
        ReadyRepository { name: &mirror.name, generation, age }
    });
    json(status, &Ready { ready: report.ready, draining: report.draining, repositories: repositories.collect() })
}

fn page() -> Response<Full<Bytes>> {
    /// The page may run its own script and have its own style, and load nothing but the status.
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let hash = |tag: &str| {
            let content =
                PAGE.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
            BASE64_STANDARD.encode(Sha256::digest(content.map_or("", |(content, _)| content)))
        };
        let (script, style) = (hash("script"), hash("style"));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; img-src \
             data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    });
    let mut page = answer(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    page
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    // These types always have a JSON form.
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    answer(status, "application/json", text)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", text)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

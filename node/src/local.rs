//! The local API: the daemon's socket, and the client that speaks to it.
//!
//! Spec: `protocol/spec/api.md`, "Calls".

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use kith_protocol::api::{
    CALL_PATH, DATA_BYTES_MAX, EVENT_BYTES_MAX, Event, Failure, FailureKind, REQUEST_BYTES_MAX,
    Request,
};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// Name of the socket in the home folder.
const SOCKET: &str = "api.sock";
/// Events under way between a call and its reader; a slow reader slows the call.
const EVENTS_MAX: usize = 64;

/// An event and the raw bytes behind it (empty unless it is [`Event::Data`]).
pub type Told = (Event, Bytes);
/// Where a call tells its events.
pub type Teller = mpsc::Sender<Told>;
/// The bytes behind a request line.
pub type Input = std::pin::Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// What answers calls: a node, in this process.
pub trait Service: Send + Sync + 'static {
    /// Answers one call. Dropping the future cancels it. [`Event::Done`] and [`Event::Failed`] are added by the caller from the result.
    fn call(
        self: Arc<Self>,
        request: Request,
        input: Input,
        tell: Teller,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;
}

/// A call under way, seen by its reader.
pub struct Call {
    events: mpsc::Receiver<io::Result<Told>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Call {
    /// The next event; `None` once it ended well.
    ///
    /// # Errors
    /// The [`Failure`] the call ended with, or that the daemon went away.
    pub async fn next(&mut self) -> Result<Option<Told>, Failure> {
        match self.events.recv().await {
            Some(Ok((Event::Done, _))) => Ok(None),
            Some(Ok((Event::Failed(failure), _))) => Err(failure),
            Some(Ok(told)) => Ok(Some(told)),
            Some(Err(error)) => {
                Err(Failure::new(FailureKind::Failed, "speak with the daemon").because(&error))
            }
            None => Err(Failure::new(
                FailureKind::Failed,
                "speak with the daemon: it went away in the middle of the answer",
            )
            .hint("see whether it still runs with `kith status`; what was acknowledged is safe")),
        }
    }
}

/// No bytes behind the request.
pub fn no_input() -> Input {
    Box::pin(stream::empty())
}

/// Calls a service in this process.
pub fn call_here(service: Arc<dyn Service>, request: Request, input: Input) -> Call {
    let (to_reader, events) = mpsc::channel(EVENTS_MAX);
    let (tell, mut told) = mpsc::channel::<Told>(EVENTS_MAX);
    let task = tokio::spawn(async move {
        let answer = service.call(request, input, tell);
        tokio::pin!(answer);
        let outcome = loop {
            tokio::select! {
                biased;
                Some(event) = told.recv() => {
                    if to_reader.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                outcome = &mut answer => break outcome,
            }
        };
        while let Ok(event) = told.try_recv() {
            if to_reader.send(Ok(event)).await.is_err() {
                return;
            }
        }
        let last = match outcome {
            Ok(()) => Event::Done,
            Err(failure) => Event::Failed(failure),
        };
        let _ = to_reader.send(Ok((last, Bytes::new()))).await;
    });
    Call { events, task }
}

/// The folder, held open, and a path of the socket in it that fits a socket address whatever the folder's own path.
fn socket_path(home: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let folder = rustix::fs::open(
        home,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
    Ok((folder, path))
}

/// Serves calls on the home's socket until `stop` comes, then lets those under way end. The caller holds the home's lock.
///
/// # Errors
/// If the socket cannot be made.
pub async fn serve(
    home: &Path,
    service: Arc<dyn Service>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (folder, path) = socket_path(home)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The home folder is 0700, so nobody reaches the socket between these two steps.
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    drop(folder);
    let router = Router::new()
        .route(CALL_PATH, post(answer))
        .with_state(service);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
}

/// Removes the socket, at an orderly end.
pub fn remove_socket(home: &Path) {
    let _ = std::fs::remove_file(home.join(SOCKET));
}

async fn answer(State(service): State<Arc<dyn Service>>, body: Body) -> Response {
    let mut chunks = body
        .into_data_stream()
        .map(|chunk| chunk.map_err(io::Error::other));
    let request = match read_request(&mut chunks).await {
        Ok(parsed) => parsed,
        Err(why) => {
            let mut response = Response::new(Body::from(why));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        }
    };
    let (request, rest) = request;
    // A body that nobody reads is let go, so that a client that goes away is noticed.
    let input: Input = if matches!(request, Request::PutStream { .. }) {
        Box::pin(stream::iter([Ok(rest)]).chain(chunks))
    } else {
        drop(chunks);
        no_input()
    };
    let call = call_here(service, request, input);
    let lines = stream::unfold(Some(call), |call| async move {
        let mut call = call?;
        let (event, data) = call.events.recv().await?.ok()?;
        let last = matches!(event, Event::Done | Event::Failed(_));
        let mut line = serde_json::to_vec(&event).ok()?;
        line.push(b'\n');
        let both = stream::iter([Ok::<_, io::Error>(Bytes::from(line)), Ok(data)]);
        Some((both, if last { None } else { Some(call) }))
    });
    Response::new(Body::from_stream(lines.flatten()))
}

async fn read_request(
    chunks: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin),
) -> Result<(Request, Bytes), &'static str> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let request = serde_json::from_slice(&line)
                .map_err(|_| "the request is not one of this version's")?;
            return Ok((request, buffer.freeze()));
        }
        if buffer.len() > REQUEST_BYTES_MAX {
            return Err("the request line is too long");
        }
        match chunks.next().await {
            Some(Ok(chunk)) => buffer.extend_from_slice(&chunk),
            _ => return Err("the request line does not end"),
        }
    }
}

/// Whether a daemon answers on the home's socket, and if so a connection to it.
///
/// # Errors
/// If there is a socket but it cannot be used.
pub async fn connect(home: &Path) -> io::Result<Option<Connection>> {
    let (folder, path) = match socket_path(home) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        // Nobody listens: the socket is left over from a process that was killed.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    drop(folder);
    Ok(Some(Connection { stream }))
}

/// A connection to the daemon, good for one call.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Makes the call.
    pub fn call(self, request: Request, input: Input) -> Call {
        let (to_reader, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(async move {
            if let Err(error) = call_there(self.stream, &request, input, &to_reader).await {
                let _ = to_reader.send(Err(error)).await;
            }
        });
        Call { events, task }
    }
}

async fn call_there(
    stream: UnixStream,
    request: &Request,
    input: Input,
    events: &mpsc::Sender<io::Result<Told>>,
) -> io::Result<()> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let body = StreamBody::new(
        stream::iter([Ok(Bytes::from(line))])
            .chain(input)
            .map(|chunk| chunk.map(Frame::data)),
    );
    let request = hyper::Request::post(CALL_PATH)
        .header(hyper::header::HOST, "kith")
        .body(BodyExt::boxed_unsync(body))
        .map_err(io::Error::other)?;
    let response = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let text = body.collect().await.map_err(io::Error::other)?.to_bytes();
        return Err(io::Error::other(format!(
            "the daemon refused: {}",
            String::from_utf8_lossy(&text)
        )));
    }
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        if let Ok(data) = frame.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some(told) = take_event(&mut buffer)? {
            if events.send(Ok(told)).await.is_err() {
                return Ok(());
            }
        }
    }
    connection.abort();
    Ok(())
}

/// Takes one whole event off the front of the buffer, if it is there.
fn take_event(buffer: &mut BytesMut) -> io::Result<Option<Told>> {
    let Some(end) = buffer
        .iter()
        .take(EVENT_BYTES_MAX)
        .position(|byte| *byte == b'\n')
    else {
        if buffer.len() >= EVENT_BYTES_MAX {
            return Err(io::Error::other("an event line is too long"));
        }
        return Ok(None);
    };
    let line = buffer.get(..end).unwrap_or_default();
    let event: Event = serde_json::from_slice(line)?;
    let len = match event {
        Event::Data { len } => usize::try_from(len).unwrap_or(usize::MAX),
        _ => 0,
    };
    if len > DATA_BYTES_MAX {
        return Err(io::Error::other("an event carries too many bytes"));
    }
    if buffer.len() < end + 1 + len {
        return Ok(None);
    }
    drop(buffer.split_to(end + 1));
    Ok(Some((event, buffer.split_to(len).freeze())))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Service for Echo {
        fn call(
            self: Arc<Self>,
            request: Request,
            mut input: Input,
            tell: Teller,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> {
            Box::pin(async move {
                if matches!(request, Request::Status) {
                    return Err(Failure::new(FailureKind::NotFound, "find it"));
                }
                while let Some(chunk) = input.next().await {
                    let chunk = chunk.map_err(|error| {
                        Failure::new(FailureKind::Failed, "read").because(&error)
                    })?;
                    let len = chunk.len() as u64;
                    if len > 0 {
                        let _ = tell.send((Event::Data { len }, chunk)).await;
                    }
                }
                Ok(())
            })
        }
    }

    async fn echoed(mut call: Call) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some((_, data)) = call.next().await? {
            all.extend_from_slice(&data);
        }
        Ok(all)
    }

    fn put_stream() -> Request {
        Request::PutStream { to: "/x".into() }
    }

    #[tokio::test]
    async fn calls_stream_both_ways_over_a_socket_with_a_long_path() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("a".repeat(200));
        std::fs::create_dir(&home).unwrap();
        assert!(connect(&home).await.unwrap().is_none());
        let server = {
            let home = home.clone();
            tokio::spawn(async move { serve(&home, Arc::new(Echo), std::future::pending()).await })
        };
        let connection = loop {
            match connect(&home).await.unwrap() {
                Some(connection) => break connection,
                None => tokio::task::yield_now().await,
            }
        };
        let mut sent = Vec::new();
        let chunks: Vec<io::Result<Bytes>> = (0..100u8)
            .map(|n| {
                let chunk = vec![n; 50_000];
                sent.extend_from_slice(&chunk);
                Ok(Bytes::from(chunk))
            })
            .collect();
        let call = connection.call(put_stream(), Box::pin(stream::iter(chunks)));
        assert!(echoed(call).await.unwrap() == sent);

        let connection = connect(&home).await.unwrap().unwrap();
        let failure = echoed(connection.call(Request::Status, no_input()))
            .await
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound);
        server.abort();
        let _ = server.await;
        // The socket is left behind, as after a kill; nobody answers there.
        assert!(connect(&home).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn calls_work_in_one_process() {
        let call = call_here(
            Arc::new(Echo),
            put_stream(),
            Box::pin(stream::iter([Ok(Bytes::from_static(b"abc"))])),
        );
        assert_eq!(echoed(call).await.unwrap(), b"abc");
    }
}

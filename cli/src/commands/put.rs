//! `kith put`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use futures::stream;
use kith_node::config::Home;
use kith_node::local::{Input, no_input};
use kith_protocol::api::{Event, Failure, FailureKind, Name, Request, What};
use tokio::io::AsyncReadExt;

use super::tree_path;
use crate::args::PutArgs;
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

/// Bytes read from standard input at once.
const READ_BYTES: usize = 256 << 10;

pub(crate) async fn run(
    home: &Home,
    args: PutArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    if args.sources.iter().any(|source| source == OsStr::new("-")) {
        let Some(to) = args.to.filter(|_| args.sources.len() == 1) else {
            return Err(Failure::new(FailureKind::Usage, "store standard input")
                .hint("give it alone, and a place in the tree: kith put - --to /notes/today.txt")
                .into());
        };
        let request = Request::PutStream { to: tree_path(&to) };
        let cids = store(home, request, stdin(), output).await?;
        return wait(home, args.wait.is_some(), cids, output).await;
    }
    let mut sources = Vec::new();
    for source in &args.sources {
        let path = std::path::absolute(source).map_err(|error| {
            Failure::new(
                FailureKind::Usage,
                format!("store {}", source.to_string_lossy()),
            )
            .because(&error)
        })?;
        sources.push(Name(path.as_os_str().as_bytes().to_vec()));
    }
    if args.public {
        let profile = args.profile;
        let request = Request::PutPublic { sources, profile };
        return store(home, request, no_input(), output).await.map(drop);
    }
    let to = args.to.as_deref().map(tree_path);
    let request = Request::Put {
        sources,
        to,
        contents: false,
    };
    let cids = store(home, request, no_input(), output).await?;
    wait(home, args.wait.is_some(), cids, output).await
}

/// Waits until as many devices hold these as should.
async fn wait(
    home: &Home,
    waits: bool,
    cids: Vec<String>,
    output: &mut Output,
) -> Result<(), CommandError> {
    if !waits {
        return Ok(());
    }
    let what = cids.into_iter().map(What::Cid).collect();
    let mut call = session::call(home, Request::AwaitHolders { what }, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        if let Event::Progress { bytes, total, .. } = event {
            output.progress_of(
                bytes,
                total.unwrap_or(bytes),
                "packs kept as often as they should be",
            );
        }
    }
    Ok(())
}

async fn store(
    home: &Home,
    request: Request,
    input: Input,
    output: &mut Output,
) -> Result<Vec<String>, CommandError> {
    let mut cids = Vec::new();
    let mut call = session::call(home, request, input).await?;
    while let Some((event, _)) = call.next().await? {
        match event {
            Event::Progress {
                bytes,
                total,
                files,
            } => output.progress(bytes, total, files),
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            Event::Published { .. } => published(&event, output)?,
            Event::Put(put) => {
                let (cid, said) = (
                    put.cid.clone(),
                    format!("{} as {}, {}", put.path.lossy(), put.cid, human(put.size)),
                );
                output.result(&Event::Put(put), || format!("{cid}\n"))?;
                cids.push(cid);
                tracing::info!("stored {said}");
            }
            _ => {}
        }
    }
    Ok(cids)
}

fn stdin() -> Input {
    Box::pin(stream::unfold(
        Some(tokio::io::stdin()),
        |stdin| async move {
            let mut stdin = stdin?;
            let mut buffer = vec![0; READ_BYTES];
            match stdin.read(&mut buffer).await {
                Ok(0) => None,
                Ok(len) => {
                    buffer.truncate(len);
                    Some((Ok(Bytes::from(buffer)), Some(stdin)))
                }
                Err(error) => Some((Err::<Bytes, io::Error>(error), None)),
            }
        },
    ))
}

/// Tells of something that anybody may have.
pub(super) fn published(event: &Event, output: &mut Output) -> Result<(), CommandError> {
    let (Event::Published {
        cid, name, size, ..
    }
    | Event::Unpublished {
        cid, name, size, ..
    }) = event
    else {
        return Ok(());
    };
    let text = format!("{cid}  {}  {}\n", name.lossy(), human(*size));
    output.result(event, || text)?;
    Ok(())
}

/// `kith published`.
pub(crate) async fn list(home: &Home, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call(home, Request::Published, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        published(&event, output)?;
    }
    Ok(())
}

/// `kith unpublish`.
pub(crate) async fn unpublish(
    home: &Home,
    cids: Vec<String>,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut call = session::call(home, Request::Unpublish { cids }, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        published(&event, output)?;
    }
    Ok(())
}

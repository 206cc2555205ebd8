//! `kith get` and `kith cat`.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Event, Failure, FailureKind, Name, Request, What};

use super::{os, what};
use crate::args::{CatArgs, Dht, GetArgs};
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn run(
    home: &Home,
    args: GetArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let what = what(&args.what);
    if matches!(what, What::Path(_)) && !args.peer.is_empty() {
        return Err(Failure::new(FailureKind::Usage, "get a path from a peer")
            .hint("a public object is named by its CID: kith get CID --peer ADDR")
            .into());
    }
    let dest = match args.output {
        Some(path) => path,
        None => default_dest(&what)?,
    };
    let dest = std::path::absolute(&dest).map_err(|error| {
        Failure::new(
            FailureKind::Usage,
            format!("restore into {}", dest.display()),
        )
        .because(&error)
    })?;
    let dest = Name(dest.as_os_str().as_bytes().to_vec());
    let force = args.force;
    let request = match what {
        What::Cid(cid) if !args.peer.is_empty() => Request::GetPublic {
            cid,
            peers: args.peer,
            dht: args.dht.map(|dht| {
                match dht {
                    Dht::Lan => "lan",
                    Dht::Wan => "wan",
                }
                .to_owned()
            }),
            dest,
            force,
        },
        what => Request::Get {
            what,
            dest,
            force,
            wait: args.wait,
        },
    };
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match event {
            Event::Progress {
                bytes,
                total,
                files,
            } => output.progress(bytes, total, files),
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            Event::Got {
                ref dest,
                size,
                files,
                ..
            } => {
                let text = format!("{} ({files} files, {})\n", dest.lossy(), human(size));
                output.result(&event, || text)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn default_dest(what: &What) -> Result<PathBuf, Failure> {
    match what {
        What::Cid(cid) => Ok(PathBuf::from(cid)),
        What::Path(path) => {
            let base = path
                .0
                .split(|byte| *byte == b'/')
                .rfind(|part| !part.is_empty());
            base.map(|base| PathBuf::from(os(base.to_vec())))
                .ok_or_else(|| {
                    Failure::new(FailureKind::Usage, "restore the whole tree")
                        .hint("say where to: kith get / -o DEST")
                })
        }
    }
}

pub(crate) async fn cat(
    home: &Home,
    args: CatArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = Request::Cat {
        what: what(&args.what),
        offset: args.offset,
        length: args.length,
        wait: args.wait,
    };
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, data)) = call.next().await? {
        if matches!(event, Event::Data { .. }) {
            output.raw(&data)?;
        }
    }
    Ok(())
}

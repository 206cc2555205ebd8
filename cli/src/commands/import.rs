//! `kith import`.

use std::ffi::OsStr;
use std::path::Path;

use kith_node::config::Home;
use kith_node::join::Joined;
use kith_node::local::no_input;
use kith_protocol::api::{Event, Request};

use super::export::absolute;
use super::join::typed_words;
use super::{host_name, tree_path};
use crate::args::ImportArgs;
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn run(
    home: &Home,
    args: ImportArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let to = tree_path(args.to.as_deref().unwrap_or(OsStr::new("/")));
    let Some(file) = args.car else {
        let request = Request::Put {
            sources: vec![absolute(&args.folder.unwrap_or_default())?],
            to: Some(to),
            contents: true,
        };
        return call(home, request, output).await;
    };
    if args.words {
        become_device(home, &file, args.name, output).await?;
    }
    let request = Request::Import {
        file: absolute(&file)?,
        to,
        public: args.public,
    };
    call(home, request, output).await
}

/// Makes this machine a device of the mesh that the file is a backup of.
async fn become_device(
    home: &Home,
    file: &Path,
    name: Option<String>,
    output: &mut Output,
) -> Result<(), CommandError> {
    let name = name.unwrap_or_else(host_name);
    let (_, words) = typed_words().await?;
    let (place, path, called) = (home.clone(), file.to_owned(), name.clone());
    let made = tokio::task::spawn_blocking(move || {
        kith_node::backup::by_backup(&place, &words, &path, &called)
    });
    let Joined {
        mesh, device, role, ..
    } = made.await.map_err(std::io::Error::other)??;
    let value = serde_json::json!({
        "event": "joined",
        "mesh": mesh.to_string(),
        "device": device.to_string(),
        "name": name,
        "role": role,
    });
    output.result(&value, || {
        format!("mesh    {mesh}\ndevice  {device} ({name}, {role})\n")
    })?;
    output.say("Bringing back what the file holds. Should this be interrupted, run it again without --words.");
    Ok(())
}

async fn call(home: &Home, request: Request, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Progress {
                bytes,
                total,
                files,
            } => output.progress(*bytes, *total, *files),
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            Event::Put(put) => {
                let text = format!("{}  {} ({})\n", put.cid, put.path.lossy(), human(put.size));
                output.result(&event, || text)?;
            }
            Event::Imported {
                file,
                blocks,
                known,
                entries,
                ..
            } => {
                let text = format!(
                    "{} ({blocks} new blocks, {known} that were here, {entries} entries)\n",
                    file.lossy()
                );
                output.result(&event, || text)?;
            }
            _ => {}
        }
    }
    Ok(())
}

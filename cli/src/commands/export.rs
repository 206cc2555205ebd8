//! `kith export`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Event, Failure, FailureKind, Name, Request, What};

use super::what;
use crate::args::ExportArgs;
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn run(
    home: &Home,
    args: ExportArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = match args.car {
        Some(file) => Request::Export {
            what: args.what.as_deref().map(what),
            file: absolute(&file)?,
            current: args.current,
            public: args.public.then_some(args.profile),
            force: args.force,
            wait: args.wait,
        },
        None => Request::Get {
            what: What::Path(Name(b"/".to_vec())),
            dest: absolute(&args.what.map(PathBuf::from).unwrap_or_default())?,
            force: args.force,
            wait: args.wait,
        },
    };
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Progress {
                bytes,
                total,
                files,
            } => output.progress(*bytes, *total, *files),
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            Event::Got {
                dest, size, files, ..
            } => {
                let text = format!("{} ({files} files, {})\n", dest.lossy(), human(*size));
                output.result(&event, || text)?;
            }
            Event::Exported {
                cid,
                file,
                size,
                blocks,
                ..
            } => {
                let text = format!(
                    "{cid}  {} ({blocks} blocks, {})\n",
                    file.lossy(),
                    human(*size)
                );
                output.result(&event, || text)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A path of this machine, as the daemon needs it.
pub(super) fn absolute(path: &Path) -> Result<Name, CommandError> {
    let absolute = std::path::absolute(path).map_err(|error| {
        Failure::new(FailureKind::Usage, format!("use {}", path.display())).because(&error)
    })?;
    Ok(Name(absolute.as_os_str().as_bytes().to_vec()))
}

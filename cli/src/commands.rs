//! One module per verb.

mod device;
mod doctor;
mod export;
mod gc;
mod get;
mod import;
mod init;
mod join;
mod keeping;
mod pair;
mod pin;
mod put;
mod sim;
mod status;
mod store;
mod tree;
mod up;
mod verify;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use kith_protocol::api::{Name, What};

use crate::args::{Cli, Command, DeviceCommand, StoreCommand};
use crate::failure::CommandError;
use crate::output::Output;
use crate::session;

/// Runs what was typed.
pub(crate) async fn run(cli: Cli, output: &mut Output) -> Result<(), CommandError> {
    let global = cli.global;
    match cli.command {
        Command::Demo(args) => return crate::demo::run(args, output).await,
        Command::Sim(command) => return sim::run(command, output),
        _ => {}
    }
    let home = session::home(&global)?;
    match cli.command {
        Command::Init(args) => init::run(home, args, output).await,
        Command::Up(args) => up::run(home, args, output).await,
        Command::Stop => up::stop(&home, output).await,
        Command::Pair(args) => pair::run(&home, args, global.yes, output).await,
        Command::Join(args) => join::run(home, args, output).await,
        Command::Put(args) => put::run(&home, args, output).await,
        Command::Get(args) => get::run(&home, args, output).await,
        Command::Cat(args) => get::cat(&home, args, output).await,
        Command::Export(args) => export::run(&home, args, output).await,
        Command::Import(args) => import::run(&home, args, output).await,
        Command::Ls(args) => tree::ls(&home, args, output).await,
        Command::Mkdir(args) => tree::mkdir(&home, args, output).await,
        Command::Mv(args) => tree::mv(&home, args, output).await,
        Command::Rm(args) => tree::rm(&home, args, output).await,
        Command::History(args) => tree::history(&home, args, output).await,
        Command::Restore(args) => tree::restore(&home, args, output).await,
        Command::Pin(args) => pin::pin(&home, args, output).await,
        Command::Unpin(args) => pin::unpin(&home, args, output).await,
        Command::Pins => pin::pins(&home, output).await,
        Command::Published => put::list(&home, output).await,
        Command::Unpublish(args) => put::unpublish(&home, args.cids, output).await,
        Command::Retention(args) => pin::retention(&home, args, output).await,
        Command::Status => status::run(&home, output).await,
        Command::Verify(args) => verify::run(&home, args, output).await,
        Command::Gc(args) => gc::run(&home, args, output).await,
        Command::Store(StoreCommand::Rebuild) => store::rebuild(home, output).await,
        Command::Devices => device::list(&home, output).await,
        Command::Policy(command) => keeping::policy(&home, command, output).await,
        Command::Quota => keeping::quota(&home, output).await,
        Command::Where(args) => keeping::holders(&home, &args.what, output).await,
        Command::Why(args) => keeping::why(&home, &args.what, output).await,
        Command::Device(DeviceCommand::Set(args)) => device::set(&home, args, output).await,
        Command::Device(DeviceCommand::Drain { name }) => {
            device::leave(&home, name, "drains", output).await
        }
        Command::Device(DeviceCommand::Lost { name }) => {
            device::leave(&home, name, "lost", output).await
        }
        Command::Device(DeviceCommand::Stay { name }) => {
            device::leave(&home, name, "stays", output).await
        }
        Command::Doctor => doctor::run(&home, output).await,
        Command::Device(DeviceCommand::Remove { name, words, force }) => {
            let how = device::How {
                words,
                force,
                yes: global.yes,
            };
            device::remove(&home, name, how, output).await
        }
        Command::Demo(_) | Command::Sim(_) => Ok(()),
    }
}

/// A path in the tree as typed; a leading `/` may be left out.
fn tree_path(typed: &OsStr) -> Name {
    let bytes = typed.as_bytes();
    if bytes.starts_with(b"/") {
        Name(bytes.to_vec())
    } else {
        Name([b"/", bytes].concat())
    }
}

/// What is meant by `CID|PATH`: a CID if it parses as one, unless it begins with `/`.
fn what(typed: &OsStr) -> What {
    match typed.to_str() {
        Some(text) if !text.starts_with('/') && text.parse::<kith_object::id::Cid>().is_ok() => {
            What::Cid(text.to_owned())
        }
        _ => What::Path(tree_path(typed)),
    }
}

fn os(bytes: Vec<u8>) -> OsString {
    OsString::from_vec(bytes)
}

/// What the machine calls itself.
fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_str()
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or("device")
        .to_owned()
}

/// Asks a person yes or no on the terminal.
async fn ask(question: String) -> std::io::Result<bool> {
    tokio::task::spawn_blocking(move || {
        use std::io::{BufRead, Write};
        let mut err = std::io::stderr();
        write!(err, "{question} [y/N] ")?;
        err.flush()?;
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
    })
    .await
    .map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_parses_as_cid_is_one_unless_it_begins_with_a_slash() {
        let cid = kith_object::id::Cid::of_block(b"x").to_string();
        assert_eq!(what(OsStr::new(&cid)), What::Cid(cid.clone()));
        assert_eq!(
            what(OsStr::new(&format!("/{cid}"))),
            What::Path(Name::from(format!("/{cid}").as_str()))
        );
        assert_eq!(
            what(OsStr::new("photos/lake.jpg")),
            What::Path(Name::from("/photos/lake.jpg"))
        );
    }
}

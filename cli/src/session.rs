//! A way to the device's node: its daemon if one answers, else the node opened in this process.

use std::path::PathBuf;
use std::sync::Arc;

use kith_node::config::{Home, HomeError};
use kith_node::local::{self, Call, Input, Service};
use kith_node::run::{Node, NodeError};
use kith_protocol::api::{Failure, FailureKind, Request};

use crate::args::Global;
use crate::failure::CommandError;

/// The data folder that is meant: flag or environment, else where the XDG rules put it.
pub(crate) fn home(global: &Global) -> Result<Home, CommandError> {
    if let Some(path) = &global.home {
        let path = std::path::absolute(path).map_err(|error| {
            Failure::new(FailureKind::Failed, "find the data folder").because(&error)
        })?;
        return Ok(Home::at(path));
    }
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let data = data.or_else(|| std::env::home_dir().map(|home| home.join(".local/share")));
    data.map(|data| Home::at(data.join("kith"))).ok_or_else(|| {
        Failure::new(
            FailureKind::Usage,
            "find the data folder: neither KITH_HOME, XDG_DATA_HOME nor HOME is set",
        )
        .hint("say where it is with --home DIR")
        .into()
    })
}

/// Makes one call: of the daemon if one answers, else of the node opened here.
pub(crate) async fn call(
    home: &Home,
    request: Request,
    input: Input,
) -> Result<Call, CommandError> {
    let connect = || async {
        local::connect(home.path()).await.map_err(|error| {
            Failure::new(
                FailureKind::Failed,
                format!("reach the daemon of {}", home.path().display()),
            )
            .because(&error)
        })
    };
    if let Some(connection) = connect().await? {
        return Ok(connection.call(request, input));
    }
    match Node::open(home.clone()).await {
        Ok(node) => {
            let service: Arc<dyn Service> = node;
            Ok(local::call_here(service, request, input))
        }
        // It was just starting.
        Err(NodeError::InUse { .. }) if let Some(connection) = connect().await? => {
            Ok(connection.call(request, input))
        }
        Err(error) => Err(node_failure(home, &error).into()),
    }
}

/// Makes one call of the daemon; commands that need it fail without.
pub(crate) async fn call_daemon(home: &Home, request: Request) -> Result<Call, CommandError> {
    if !home.exists() {
        return Err(missing(home).into());
    }
    match local::connect(home.path()).await {
        Ok(Some(connection)) => Ok(connection.call(request, local::no_input())),
        Ok(None) => Err(CommandError::NoDaemon),
        Err(error) => Err(Failure::new(
            FailureKind::Failed,
            format!("reach the daemon of {}", home.path().display()),
        )
        .because(&error)
        .into()),
    }
}

fn missing(home: &Home) -> Failure {
    Failure::new(FailureKind::NotFound, format!("there is no Kith device in {}", home.path().display()))
        .hint("make a new mesh with `kith init`, join one with `kith join`, or say where the device is with --home DIR")
}

/// Why a node could not be opened, for a person.
pub(crate) fn node_failure(home: &Home, error: &NodeError) -> Failure {
    match error {
        NodeError::Home(HomeError::Missing { .. }) => missing(home),
        NodeError::Home(HomeError::Exists { .. }) => {
            Failure::new(FailureKind::Exists, format!("there is a Kith device in {} already", home.path().display()))
                .hint("choose another folder with --home DIR")
        }
        NodeError::Home(error @ HomeError::Damaged { .. }) => Failure::new(FailureKind::Corrupt, error.to_string())
            .hint("restore the file from a backup, or move the folder away and join the mesh again; other members still hold what they held"),
        NodeError::NoGenesis => Failure::new(FailureKind::Corrupt, format!("open the device in {}", home.path().display()))
            .because(error)
            .hint("move the folder away and join the mesh again; other members still hold what they held"),
        NodeError::InUse { .. } => Failure::new(FailureKind::Exists, error.to_string())
            .hint("wait until it ends, or end a daemon with `kith stop`"),
        other => Failure::new(FailureKind::Failed, format!("open the device in {}", home.path().display())).because(other),
    }
}

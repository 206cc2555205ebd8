//! `kith store`.

use kith_node::config::Home;
use kith_node::run::Node;
use kith_protocol::api::Event;

use crate::failure::CommandError;
use crate::output::Output;
use crate::session::node_failure;

pub(crate) async fn rebuild(home: Home, output: &mut Output) -> Result<(), CommandError> {
    let (told, mut hear) = tokio::sync::mpsc::unbounded_channel();
    let rebuild = Node::rebuild(home.clone(), move |done, all| {
        let _ = told.send((done, all));
    });
    tokio::pin!(rebuild);
    let (packs, blocks) = loop {
        tokio::select! {
            done = &mut rebuild => break done.map_err(|error| node_failure(&home, &error))?,
            Some((done, all)) = hear.recv() => output.progress_of(done, all, "packs"),
        }
    };
    let text = format!("{packs} packs, {blocks} blocks in the index\n");
    output.result(&Event::Rebuilt { packs, blocks }, || text)?;
    Ok(())
}

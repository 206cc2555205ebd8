//! `kith doctor`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Event, Peer, Reach, Request};

use crate::failure::CommandError;
use crate::output::Output;
use crate::session;

pub(crate) async fn run(home: &Home, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call(home, Request::Doctor, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Reach(reach) => output.result(&event, || reach_text(reach))?,
            Event::Peer(peer) => output.result(&event, || peer_text(peer))?,
            _ => {}
        }
    }
    Ok(())
}

fn reach_text(reach: &Reach) -> String {
    reach.says.iter().map(|line| format!("{line}\n")).collect()
}

fn peer_text(peer: &Peer) -> String {
    let mut text = format!("{}  {}\n", peer.name, peer.state);
    for link in &peer.links {
        let way = if link.dialled { "to" } else { "from" };
        let round_trip = link
            .round_trip_us
            .map(|us| format!(", round trip {}.{} ms", us / 1000, us % 1000 / 100));
        text.push_str(&format!(
            "  {way} {}{}\n",
            link.addr,
            round_trip.unwrap_or_default()
        ));
    }
    if let Some(why) = &peer.why {
        text.push_str(&format!("  {why}\n"));
    }
    if peer.state == "away" {
        for addr in &peer.addrs {
            text.push_str(&format!("  known at {addr}\n"));
        }
    }
    text
}

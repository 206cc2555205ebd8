//! `kith status`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Event, Keeping, Request, Status};

use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn run(home: &Home, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call(home, Request::Status, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        if let Event::Status(status) = &event {
            output.result(&event, || text(status))?;
        }
    }
    Ok(())
}

/// Used, quota and free, in a line.
fn room(status: &Status) -> String {
    let mut text = format!("{} used", human(status.disk_bytes));
    if status.cached_bytes > 0 {
        let most = status.cache_bytes.map(human);
        let most = most.map_or(String::new(), |most| format!(", {most} at most"));
        let cached = human(status.cached_bytes);
        text.push_str(&format!(" ({cached} of it cache{most})"));
    }
    match status.quota_bytes {
        Some(quota) => text.push_str(&format!(" of a quota of {}", human(quota))),
        None => text.push_str(", no quota"),
    }
    if let Some(free) = status.free_bytes {
        let floor = human(status.floor_bytes);
        text.push_str(&format!(", {} free, {floor} of it stays free", human(free)));
    }
    text
}

/// How well packs are kept, in a line.
fn keeping(keeping: &Keeping) -> String {
    let mut text = format!(
        "{}: {} of {} packs have {} copies",
        keeping.verdict, keeping.healthy, keeping.packs, keeping.copies
    );
    let mut more = |count: u64, what: &str| {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    };
    more(keeping.at_risk, "have fewer");
    more(keeping.unheard, "are with devices that have not told yet");
    more(keeping.lost, "no device holds");
    more(keeping.wanted, "are to come here");
    more(keeping.out_of_reach, "of these from devices that are away");
    more(
        keeping.surplus,
        "lie here besides, until others have proved that they keep them",
    );
    more(
        keeping.disproved,
        "copies that devices say they hold are not there",
    );
    more(
        keeping.distrusted,
        "devices so often have not what they say that nothing of them counts",
    );
    if keeping.no_room {
        text.push_str("; this disk has no room for more");
    }
    text
}

fn text(status: &Status) -> String {
    let mut text = format!(
        "mesh       {}\ndevice     {} ({}, {})\n",
        status.mesh, status.name, status.role, status.device
    );
    text.push_str(if status.online {
        "daemon     running\n"
    } else {
        "daemon     not running\n"
    });
    for addr in &status.addrs {
        text.push_str(&format!("door       {addr}\n"));
    }
    for addr in &status.inside {
        text.push_str(&format!("inside     {addr}\n"));
    }
    if status.online {
        text.push_str(&format!("reach      {}\n", status.reach_says));
    }
    text.push_str(&format!(
        "devices    {}, {} connected\ntree       {} versions, {} names with several current ones\nstore      {} blocks, {} on disk\nentries    {}\n",
        status.devices, status.connected, status.versions, status.conflicts, status.blocks, human(status.disk_bytes), status.entries
    ));
    text.push_str(&format!("room       {}\n", room(status)));
    text.push_str(&format!("keeping    {}\n", keeping(&status.keeping)));
    if status.dying_packs > 0 {
        text.push_str(&format!(
            "garbage    {} packs, {}, are on their way out; see `kith gc --dry-run`\n",
            status.dying_packs,
            human(status.dying_bytes)
        ));
    }
    if status.damaged > 0 {
        text.push_str(&format!(
            "damage     {} files found damaged since the start; see `kith verify`\n",
            status.damaged
        ));
    }
    if status.lost > 0 || status.healed > 0 {
        text.push_str(&format!(
            "lost       {} blocks are nowhere on this disk; {} came back from other devices since the start\n",
            status.lost, status.healed
        ));
    }
    if status.durability == "relaxed" {
        text.push_str(
            "durability relaxed: a power cut may take the last seconds of what was acknowledged\n",
        );
    }
    if let Some(why) = &status.read_only {
        text.push_str(&format!("read-only  {why}\n"));
    }
    if status.bulk.packs > 0 {
        text.push_str(&format!(
            "packs      {} came whole, {} in all, {} of it for nothing\n",
            status.bulk.packs,
            human(status.bulk.received),
            human(status.bulk.wasted)
        ));
    }
    for traffic in &status.traffic {
        text.push_str(&format!(
            "traffic    {}: {} received, {} sent\n",
            traffic.name,
            human(traffic.received),
            human(traffic.sent)
        ));
    }
    text
}

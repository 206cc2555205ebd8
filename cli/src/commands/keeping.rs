//! `kith policy`, `kith quota`, `kith where` and `kith why`.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Event, PolicyWish, Quota, Request};

use super::what;
use crate::args::PolicyCommand;
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn policy(
    home: &Home,
    command: PolicyCommand,
    output: &mut Output,
) -> Result<(), CommandError> {
    let set = match command {
        PolicyCommand::Show => None,
        PolicyCommand::Set(args) => Some(PolicyWish {
            space: args.space,
            redundancy: match (args.replicas, args.erasure) {
                (Some(copies), _) => copies.to_string(),
                (None, Some(shards)) => shards,
                (None, None) => "auto".to_owned(),
            },
            min_sites: args.min_sites,
            sites: args.sites,
        }),
    };
    let mut call = session::call(home, Request::Policy { set }, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        if let Event::Policy { .. } = &event {
            output.result(&event, || policy_text(&event))?;
        }
    }
    Ok(())
}

fn policy_text(event: &Event) -> String {
    let Event::Policy {
        space,
        redundancy,
        effective,
        copies,
        min_sites,
        sites,
        unmet,
    } = event
    else {
        return String::new();
    };
    let mut text = format!("space       {space}\nredundancy  {redundancy}");
    if let Some(effective) = effective {
        text.push_str(&format!(
            ", now {effective}: {copies} whole copies of each pack"
        ));
    }
    let at = if sites.is_empty() {
        "all".to_owned()
    } else {
        sites.join(", ")
    };
    text.push_str(&format!("\nsites       {at}, {min_sites} at least\n"));
    if let Some(unmet) = unmet {
        text.push_str(&format!("unmet       {unmet}\n"));
    }
    text
}

/// What each device takes of the room there is.
pub(crate) async fn quota(home: &Home, output: &mut Output) -> Result<(), CommandError> {
    let mut all: Vec<Quota> = Vec::new();
    let mut call = session::call(home, Request::Quota, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        if let Event::Quota(quota) = &event {
            all.push(quota.clone());
            output.result(&event, String::new)?;
        }
    }
    let line = |name: &str, cells: [String; 4]| {
        let [wrote, takes, holds, gives] = cells;
        format!("{name:20} {wrote:>10} {takes:>10} {holds:>10} {gives:>10}\n")
    };
    let sum = |of: fn(&Quota) -> u64| human(all.iter().map(of).fold(0, u64::saturating_add));
    let titles = ["wrote", "takes", "holds", "gives"].map(str::to_owned);
    told(output, &line("", titles))?;
    for quota in &all {
        let name = if quota.removed {
            format!("{} (removed)", quota.name)
        } else {
            quota.name.clone()
        };
        let cells = [quota.wrote, quota.takes, quota.held, quota.gives].map(human);
        told(output, &line(&name, cells))?;
    }
    let sums = [
        sum(|of| of.wrote),
        sum(|of| of.takes),
        sum(|of| of.held),
        sum(|of| of.gives),
    ];
    told(output, &line("all", sums))?;
    Ok(())
}

/// Text for people; programs have had it event by event.
fn told(output: &mut Output, text: &str) -> std::io::Result<()> {
    if output.is_json() {
        return Ok(());
    }
    output.raw(text.as_bytes())
}

/// In which packs an object lies; programs are told each.
async fn places(
    home: &Home,
    typed: &OsStr,
    output: &mut Output,
    mut each: impl FnMut(&Event),
) -> Result<(), CommandError> {
    let request = Request::Where { what: what(typed) };
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        if let Event::Where { .. } = &event {
            each(&event);
            output.result(&event, String::new)?;
        }
    }
    Ok(())
}

/// Which devices hold an object.
pub(crate) async fn holders(
    home: &Home,
    typed: &OsStr,
    output: &mut Output,
) -> Result<(), CommandError> {
    let (mut packs, mut holders, mut nowhere) = (0_u64, BTreeMap::new(), Vec::new());
    places(home, typed, output, |event| {
        let Event::Where {
            pack,
            blocks,
            held,
            waits,
            ..
        } = event
        else {
            return;
        };
        match pack {
            Some(_) => packs += 1,
            None => nowhere.push(format!("{blocks} blocks: {}\n", waits.join("; "))),
        }
        for holder in held {
            *holders.entry(holder.clone()).or_insert(0_u64) += 1;
        }
    })
    .await?;
    for (name, holds) in holders {
        let share = if holds == packs {
            "all of it".to_owned()
        } else {
            format!("{holds} of {packs} packs")
        };
        told(output, &format!("{name:20} {share}\n"))?;
    }
    for text in nowhere {
        told(output, &text)?;
    }
    Ok(())
}

/// What is being waited for.
pub(crate) async fn why(
    home: &Home,
    typed: &OsStr,
    output: &mut Output,
) -> Result<(), CommandError> {
    let (mut packs, mut reasons) = (0_u64, BTreeMap::new());
    places(home, typed, output, |event| {
        if let Event::Where { waits, .. } = event {
            packs += 1;
            for wait in waits {
                *reasons.entry(wait.clone()).or_insert(0_u64) += 1;
            }
        }
    })
    .await?;
    if reasons.is_empty() {
        told(
            output,
            "nothing is being waited for: as many devices hold all of it as should\n",
        )?;
    }
    for (reason, count) in reasons {
        told(output, &format!("{count} of {packs} packs: {reason}\n"))?;
    }
    Ok(())
}

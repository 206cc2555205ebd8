//! Tells how this device is reached and how it reaches the others, in plain words.

use std::collections::BTreeMap;

use kith_core::device::Device;
use kith_object::id::DeviceId;
use kith_protocol::api::{self, Event, Failure};

use super::super::{Node, held};
use super::describe::device_name;
use super::told;
use crate::local::Teller;
use crate::net::ways::{Proof, Reach, Router};

/// What of the device's knowledge goes into it.
struct Others {
    names: BTreeMap<DeviceId, String>,
    addrs: BTreeMap<DeviceId, Vec<String>>,
    /// Whether any of them is connected.
    met: bool,
}

impl Others {
    fn of(device: &Device) -> Self {
        let me = device.id();
        let others = device.access().members.keys().filter(|id| **id != me);
        Self {
            names: others.map(|id| (*id, device_name(device, id))).collect(),
            addrs: device
                .book()
                .iter()
                .map(|(id, addrs)| (*id, addrs))
                .collect(),
            met: !device.peers().is_empty(),
        }
    }

    fn name(&self, device: &DeviceId) -> String {
        self.names
            .get(device)
            .cloned()
            .unwrap_or_else(|| device.to_string())
    }
}

impl Node {
    pub(super) async fn doctor(&self, tell: &Teller) -> Result<(), Failure> {
        let others = self.look(Others::of).await?;
        let reach = self.net_reach().await;
        let told_reach = describe(reach.as_ref(), &others);
        told(tell, Event::Reach(told_reach)).await?;
        let reach = reach.unwrap_or_default();
        for id in others.names.keys() {
            told(tell, Event::Peer(peer(id, &reach, &others))).await?;
        }
        Ok(())
    }

    /// How this device is reached by those in other networks.
    pub(super) async fn reach(&self) -> Result<api::Reach, Failure> {
        let others = self.look(Others::of).await?;
        Ok(describe(self.net_reach().await.as_ref(), &others))
    }

    async fn net_reach(&self) -> Option<Reach> {
        let inside = held(&self.inside).clone()?;
        inside.reach().await.ok()
    }
}

fn describe(reach: Option<&Reach>, others: &Others) -> api::Reach {
    let Some(reach) = reach else {
        return api::Reach {
            verdict: "offline".to_owned(),
            says: vec!["nobody reaches this device: no daemon runs; start `kith up`".to_owned()],
            public: Vec::new(),
            closed: Vec::new(),
            relays: Vec::new(),
            relaying: false,
            router: router(Router::NotAsked).to_owned(),
        };
    };
    let relays: Vec<String> = reach.relays.iter().map(|id| others.name(id)).collect();
    let verdict = if !reach.public.is_empty() {
        "public"
    } else if !relays.is_empty() {
        "relayed"
    } else {
        "local"
    };
    api::Reach {
        verdict: verdict.to_owned(),
        says: says(reach, &relays, others),
        public: reach
            .public
            .iter()
            .map(|(addr, by)| (addr.clone(), proof(*by).to_owned()))
            .collect(),
        closed: reach.closed.clone(),
        relays,
        relaying: reach.relaying,
        router: router(reach.router).to_owned(),
    }
}

fn says(reach: &Reach, relays: &[String], others: &Others) -> Vec<String> {
    let mut says = Vec::new();
    if let Some((addr, by)) = reach.public.first() {
        let how = match by {
            Proof::Dialled => "a device in another network has dialled it",
            Proof::Tried => "another device has tried it",
            Proof::Router => "the router passes it on",
        };
        says.push(format!(
            "devices everywhere reach this one at {addr}: {how}"
        ));
        if reach.relaying {
            says.push("it relays between devices that cannot reach each other".to_owned());
        }
        return says;
    }
    match relays {
        [] if others.names.is_empty() => {
            says.push("this is the only device of the mesh; let another in with `kith pair`".to_owned());
        }
        [] if !others.met => says.push(
            "no other device is connected, so nobody can tell whether this one is reached from other networks"
                .to_owned(),
        ),
        [] => says.push(
            "devices in the same network reach this one; from other networks no address of it is known to work, and no device that is reachable relays to it"
                .to_owned(),
        ),
        relays => says.push(format!(
            "a router or firewall stands before this device: others reach it through {}, which sees only sealed bytes, and directly where both routers let them",
            relays.join(" and ")
        )),
    }
    if !reach.closed.is_empty() {
        says.push(format!(
            "tried from outside in vain: {}; have the router forward that port to this device, and it is reached directly",
            reach.closed.join(", ")
        ));
    }
    match reach.router {
        Router::Silent => says.push(
            "no router answers when it is asked for a port (UPnP): it may be switched off there".to_owned(),
        ),
        Router::NotPublic => says.push(
            "the router has no public address itself: the provider shares one among customers, and no port can be forwarded"
                .to_owned(),
        ),
        Router::NotAsked | Router::Asked | Router::Mapped => {}
    }
    if relays.is_empty() && others.met {
        says.push(
            "one device that is reachable from everywhere, as a rented server or a home server with a forwarded port, lets all others meet".to_owned(),
        );
    }
    says
}

fn peer(id: &DeviceId, reach: &Reach, others: &Others) -> api::Peer {
    let links: Vec<api::PeerLink> = reach
        .links
        .iter()
        .filter(|link| link.device == *id)
        .map(|link| api::PeerLink {
            addr: link.addr.clone(),
            relayed: link.relayed,
            dialled: link.dialled,
            round_trip_us: link
                .round_trip
                .and_then(|time| u64::try_from(time.as_micros()).ok()),
        })
        .collect();
    let state = if links.iter().any(|link| !link.relayed) {
        "direct"
    } else if links.is_empty() {
        "away"
    } else {
        "relayed"
    };
    let addrs = others.addrs.get(id).cloned().unwrap_or_default();
    let failed = reach.failed.iter().find(|(device, _)| device == id);
    let refused = reach.refused.iter().find(|(device, _)| device == id);
    let why = match (state, failed, refused) {
        ("direct", _, _) => None,
        ("relayed", _, _) => Some("neither router lets the other device through".to_owned()),
        (_, _, Some((_, left))) => Some(format!(
            "it broke the rules of the exchange and is kept out for {} s more",
            left.as_secs()
        )),
        (_, Some((_, why)), _) => Some(format!("the last try failed: {why}")),
        _ if addrs.is_empty() => Some("no address of it is known yet".to_owned()),
        _ => Some("it was not tried since the start".to_owned()),
    };
    api::Peer {
        device: id.to_string(),
        name: others.name(id),
        state: state.to_owned(),
        links,
        addrs,
        why,
    }
}

fn proof(proof: Proof) -> &'static str {
    match proof {
        Proof::Dialled => "dialled",
        Proof::Tried => "tried",
        Proof::Router => "router",
    }
}

fn router(router: Router) -> &'static str {
    match router {
        Router::NotAsked => "not-asked",
        Router::Asked => "asked",
        Router::Silent => "silent",
        Router::NotPublic => "not-public",
        Router::Mapped => "mapped",
    }
}

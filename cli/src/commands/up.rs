//! `kith up` and `kith stop`.

use std::num::NonZeroU64;

use kith_node::config::Home;
use kith_node::net::rate::Rates;
use kith_node::net::wide::Scope;
use kith_node::run::{Node, UpOptions};
use kith_protocol::api::Request;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Dht, UpArgs};
use crate::failure::CommandError;
use crate::output::Output;
use crate::session::{self, node_failure};

pub(crate) async fn run(home: Home, args: UpArgs, output: &mut Output) -> Result<(), CommandError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let options = UpOptions {
        listen: args.listen,
        quota: args.quota.map(|quota| quota.0),
        cache: args.cache_size.map(|size| size.0),
        keep_free: args.keep_free,
        durability: args.durability,
        lan: !args.no_lan,
        public: args.public,
        dht: args.dht.map(|dht| match dht {
            Dht::Lan => Scope::Lan,
            Dht::Wan => Scope::Wan,
        }),
        dht_peers: args.dht_peer,
        public_addrs: args.public_addr,
        rates: Rates {
            upload: args.max_upload.0.and_then(NonZeroU64::new),
            download: args.max_download.0.and_then(NonZeroU64::new),
        },
        connections_max: args.max_connections,
        relay: !args.no_relay,
        router: !args.no_upnp,
        capacity: args.capacity,
        keep_rate: args.keep_rate.0.and_then(NonZeroU64::new),
    };
    let daemon = tokio::select! {
        up = Node::up(home.clone(), options) => up.map_err(|error| node_failure(&home, &error))?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    let ready = daemon.ready();
    let value = serde_json::json!({
        "event": "ready",
        "device": ready.device.to_string(),
        "addrs": ready.addrs,
        "inside": ready.inside,
        "public": ready.public,
    });
    output.result(&value, || {
        let addrs: String = ready
            .addrs
            .iter()
            .map(|addr| format!("door    {addr}\n"))
            .collect();
        let public = ready.public.iter();
        let public: String = public.map(|addr| format!("public  {addr}\n")).collect();
        format!("device  {} is up\n{addrs}{public}", ready.device)
    })?;
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        ended = daemon.ended() => ended,
    };
    daemon.shut_down().await;
    ended.map_err(|error| node_failure(&home, &error).into())
}

pub(crate) async fn stop(home: &Home, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call_daemon(home, Request::Stop).await?;
    while call.next().await?.is_some() {}
    output.result(&serde_json::json!({ "event": "stopped" }), String::new)?;
    Ok(())
}

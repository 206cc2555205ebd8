//! Many devices, bad weather, one seed: the very machine that ships, with simulated disk, network and time around it.
//!
//! Spec: `protocol/spec/simulation.md`, "World".

pub mod check;
pub mod dht;
pub mod disk;
pub mod file;
pub mod gossip;
pub mod network;
pub mod plan;
pub mod report;
pub mod scenario;
pub mod schedule;
pub mod sizing;
pub mod swarm;
pub mod trace;
pub mod world;

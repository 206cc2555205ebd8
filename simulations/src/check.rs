//! What must hold at the end of a run.
//!
//! Spec: `protocol/spec/simulation.md`, "Checks".

use kith_crdt::access::Access;

use crate::world::World;

/// All that is wrong; empty if nothing is.
pub fn agreement(world: &World) -> Vec<String> {
    let mut failures = Vec::new();
    let mut first: Option<(usize, String, Access, [u8; 32])> = None;
    for (place, device) in world.honest() {
        let (digest, entries) = device.digest();
        let digest = format!("{entries} entries, {}", hex(&digest));
        let (access, tree) = (device.access().clone(), device.tree().fingerprint());
        match &first {
            None => first = Some((place, digest, access, tree)),
            Some((other, other_digest, other_access, other_tree)) => {
                if *other_digest != digest {
                    failures.push(format!(
                        "d{other} and d{place} count different entries: {other_digest} and {digest}"
                    ));
                }
                if *other_access != access {
                    failures.push(format!("d{other} and d{place} differ in who has access"));
                }
                if *other_tree != tree {
                    failures.push(format!("d{other} and d{place} show different trees"));
                }
            }
        }
        for promise in world.owed() {
            if device.tree().link_of(&promise.cid).is_none() {
                failures.push(format!(
                    "d{place} has lost {}, which was acknowledged",
                    promise.cid
                ));
            }
        }
    }
    let found = failures.into_iter().map(|failure| world.now_that(failure));
    world.failures.iter().cloned().chain(found).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

//! The jobs of promises on one store: proving that a pack is here, and giving one up.
//!
//! Each is a plain function that may block on the disk, as those of `collect`.
//!
//! Spec: `protocol/spec/promises.md`, "Keeping a promise" and "Giving up".

use kith_object::disk::Disk;
use kith_object::id::{Cid, PackId};
use kith_object::index::Index;
use kith_object::store::{Keep, Store, StoreError};
use kith_protocol::promise::{Challenge, Proof, Prover, Refused};

use crate::promises::{GaveUp, GiveUp, Vouch};

/// Read of a pack at a time.
const STEP_BYTES: usize = 256 << 10;

/// Proves that a pack is here to stay. The promise has to last before the proof goes to anybody.
///
/// # Errors
/// Why there is no proof.
pub fn vouch<D: Disk, I: Index>(store: &Store<D, I>, vouch: &Vouch) -> Result<Proof, Refused> {
    let pack = vouch.promised.pack;
    let proofs = prove(store, &pack, [vouch.challenge])?;
    let proof = proofs.first().copied().ok_or(Refused::Damaged)?;
    // It may have become a cached one, or damaged and set aside, while it was read.
    if is_here(store, &pack) {
        Ok(proof)
    } else {
        Err(Refused::Lacking)
    }
}

/// Gives a copy up, if the proofs hold and nothing here relies on it. `is_needed` says of a block that this device has to keep it, whatever others do.
///
/// # Errors
/// [`StoreError`]; then it may or may not be given up.
pub fn give_up<D: Disk, I: Index>(
    store: &Store<D, I>,
    give_up: &GiveUp,
    is_needed: &dyn Fn(&Cid) -> bool,
) -> Result<GaveUp, StoreError> {
    let pack = give_up.pack;
    if !is_here(store, &pack) {
        return Ok(GaveUp::Stays);
    }
    let challenges = give_up.proofs.iter().map(|(challenge, _)| *challenge);
    // A damaged copy tells nothing of the others: scrub deals with it, and they have it whole.
    let Ok(expected) = prove(store, &pack, challenges) else {
        return Ok(GaveUp::Stays);
    };
    let compared = give_up.proofs.iter().zip(expected);
    let wrong = compared.filter(|((_, proof), expected)| proof != expected);
    let wrong: Vec<_> = wrong.map(|((of, _), _)| of.holder).collect();
    if !wrong.is_empty() {
        return Ok(GaveUp::False(wrong));
    }
    if give_up.proofs.is_empty() && !cfg!(planted = "drop-without-promise") {
        return Ok(GaveUp::Stays);
    }
    let blocks = store.pack_blocks(&pack)?;
    if blocks.iter().any(|block| is_needed(&block.cid)) || !store.let_go(&pack)? {
        return Ok(GaveUp::Stays);
    }
    if give_up.at_once {
        store.evict(&pack)?;
    }
    Ok(GaveUp::Gone)
}

fn is_here<D: Disk, I: Index>(store: &Store<D, I>, pack: &PackId) -> bool {
    let known = store.pack_info(pack);
    known.is_ok_and(|info| info.is_some()) && store.keep_of(pack) == Keep::Kept
}

/// Reads a pack once; answers the proofs if it is what its name says.
fn prove<D: Disk, I: Index>(
    store: &Store<D, I>,
    pack: &PackId,
    challenges: impl IntoIterator<Item = Challenge>,
) -> Result<Vec<Proof>, Refused> {
    let info = store.pack_info(pack).ok().flatten();
    let bytes = info.ok_or(Refused::Lacking)?.bytes;
    let mut prover = Prover::new(challenges);
    let mut at = 0;
    while at < bytes {
        let len = usize::try_from(bytes - at).map_or(STEP_BYTES, |left| left.min(STEP_BYTES));
        // What cannot be read is no better than what is not what it should be.
        let read = store.read_pack(pack, at, len).map_err(|_| Refused::Damaged);
        let read = read?.ok_or(Refused::Lacking)?;
        prover.update(&read);
        at += read.len() as u64;
    }
    prover.finish(pack).ok_or(Refused::Damaged)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kith_object::disk::SimDisk;
    use kith_object::id::{DeviceId, SpaceId};
    use kith_object::index::MemIndex;
    use kith_object::pack::Class;
    use kith_object::store::StoreConfig;
    use kith_object::time::Time;
    use kith_protocol::promise::Promised;

    use super::*;

    type SimStore = Store<SimDisk, Arc<MemIndex>>;

    fn store() -> (SimDisk, SimStore, PackId) {
        let disk = SimDisk::new();
        let config = StoreConfig::new(SpaceId([9; 32]));
        let (store, _) = Store::open(disk.clone(), Arc::default(), config).unwrap();
        for n in 0..40_u8 {
            let block = vec![n; 20_000];
            store
                .put(Class::Bulk, &Cid::of_block(&block), &block)
                .unwrap();
        }
        store.close_packs().unwrap();
        let (pack, _) = store.packs().unwrap()[0];
        (disk, store, pack)
    }

    fn challenge(n: u8) -> Challenge {
        Challenge {
            nonce: [n; 16],
            holder: DeviceId([n; 32]),
            asker: DeviceId([9; 32]),
        }
    }

    fn asked(pack: PackId, n: u8) -> Vouch {
        let until = Time(1);
        Vouch {
            promised: Promised { pack, until },
            challenge: challenge(n),
        }
    }

    #[test]
    fn a_copy_goes_on_proofs_of_the_same_bytes_alone() {
        let (_, here, pack) = store();
        let (_, there, same) = store();
        assert_eq!(pack, same);
        let good = |n| (challenge(n), vouch(&there, &asked(pack, n)).unwrap());
        let giving = |proofs| GiveUp {
            pack,
            proofs,
            at_once: false,
        };
        let nobody = |_: &Cid| false;
        let first = Cid::of_block(&vec![3; 20_000]);
        let stays = |give: &GiveUp, needed: &dyn Fn(&Cid) -> bool| {
            let how = give_up(&here, give, needed).unwrap();
            assert_eq!(here.keep_of(&pack), Keep::Kept);
            how
        };
        assert_eq!(stays(&giving(Vec::new()), &nobody), GaveUp::Stays);
        // Made for another nonce, or by another device.
        let wrong = (challenge(2), good(3).1);
        let both = giving(vec![good(1), wrong]);
        assert_eq!(
            stays(&both, &nobody),
            GaveUp::False(vec![DeviceId([2; 32])])
        );
        let both = giving(vec![good(1), good(2)]);
        assert_eq!(stays(&both, &|cid| *cid == first), GaveUp::Stays, "pinned");
        let lease = here.lease_all();
        assert_eq!(stays(&both, &nobody), GaveUp::Stays, "relied on");
        drop(lease);
        assert_eq!(give_up(&here, &both, &nobody).unwrap(), GaveUp::Gone);
        assert_eq!(here.keep_of(&pack), Keep::Cached);
        // It proves nothing any more.
        assert_eq!(vouch(&here, &asked(pack, 1)), Err(Refused::Lacking));
        assert_eq!(give_up(&here, &both, &nobody).unwrap(), GaveUp::Stays);
        here.keep(&pack).unwrap();
        let at_once = GiveUp {
            at_once: true,
            ..both
        };
        assert_eq!(give_up(&here, &at_once, &nobody).unwrap(), GaveUp::Gone);
        assert_eq!(here.get(&first).unwrap(), None);
        assert_eq!(vouch(&here, &asked(pack, 1)), Err(Refused::Lacking));
    }

    #[test]
    fn a_damaged_pack_proves_nothing_of_itself_or_of_others() {
        let (disk, here, pack) = store();
        let (_, there, _) = store();
        let proof = vouch(&there, &asked(pack, 1)).unwrap();
        let names = Disk::list(&disk).unwrap();
        let name = names.iter().find(|name| name.ends_with(".pack")).unwrap();
        disk.flip(name, 80_000);
        assert_eq!(vouch(&here, &asked(pack, 1)), Err(Refused::Damaged));
        let giving = GiveUp {
            pack,
            proofs: vec![(challenge(1), proof)],
            at_once: true,
        };
        let how = give_up(&here, &giving, &|_| false).unwrap();
        assert_eq!(how, GaveUp::Stays, "the other may have it, or not");
        assert_eq!(here.keep_of(&pack), Keep::Kept);
    }

    #[test]
    fn killed_at_any_write_a_copy_is_kept_or_cached_and_never_half_gone() {
        for after in 0..12 {
            let (disk, here, pack) = store();
            let (_, there, _) = store();
            let giving = GiveUp {
                pack,
                proofs: vec![(challenge(1), vouch(&there, &asked(pack, 1)).unwrap())],
                at_once: after % 2 == 0,
            };
            disk.fail_after(after, kith_object::disk::Fault::Die);
            let how = give_up(&here, &giving, &|_| false);
            drop(here);
            let mut rng = kith_object::key::Rng::from_seed([1; 32]);
            disk.crash(kith_object::disk::Crash::Kill, &mut rng);
            let config = StoreConfig::new(SpaceId([9; 32]));
            let (here, _) = Store::open(disk, Arc::new(MemIndex::new()), config).unwrap();
            let packs = here.packs().unwrap();
            for (left, _) in &packs {
                here.check_pack(left).unwrap();
            }
            let is_gone = packs.is_empty();
            assert!(!is_gone || giving.at_once, "write {after}: {how:?}");
            if matches!(how, Ok(GaveUp::Gone)) {
                assert!(
                    is_gone || here.keep_of(&pack) == Keep::Cached,
                    "write {after}"
                );
            }
        }
    }
}

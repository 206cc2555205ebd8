//! The jobs of promises on one store: proving that a pack is here, and giving one up.
//!
//! Each is a plain function that may block on the disk, as those of `collect`.
//!
//! Spec: `protocol/spec/promises.md`, "Keeping a promise" and "Giving up".

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kith_object::disk::Disk;
use kith_object::id::{Cid, DeviceId, PackId};
use kith_object::index::Index;
use kith_object::pack::Class;
use kith_object::store::{Keep, Store, StoreError};
use kith_protocol::promise::{
    BLOCKS_MAX, Bits, BlocksProver, Challenge, Digest, Proof, Prover, Refused,
};

use crate::keeper::ShardsKept;
use crate::promises::{GaveUp, GiveUp, Giving, PACKS_MAX, Replaced, Vouch, Vouched, Wish};
use crate::shards::{self, MakeError};

/// Read of a pack at a time.
const STEP_BYTES: usize = 256 << 10;

/// Proves that a pack is here to stay, or which of some blocks are. The promise has to last before the proof goes to anybody.
///
/// # Errors
/// Why there is no proof.
pub fn vouch<D: Disk, I: Index>(store: &Store<D, I>, vouch: &Vouch) -> Result<Vouched, Refused> {
    let pack = match &vouch.wish {
        Wish::Pack(pack) => *pack,
        Wish::Blocks(digests) => return Ok(vouch_blocks(store, digests, &vouch.challenge)),
    };
    let proofs = prove(store, &pack, [vouch.challenge])?;
    let proof = proofs.first().copied().ok_or(Refused::Damaged)?;
    // It may have become a cached one, or damaged and set aside, while it was read.
    if !is_here(store, &pack) {
        return Err(Refused::Lacking);
    }
    Ok(Vouched {
        proof,
        packs: vec![pack],
        has: Bits::default(),
    })
}

/// Proves which blocks are in packs that are here to stay. What cannot be read is not here.
fn vouch_blocks<D: Disk, I: Index>(
    store: &Store<D, I>,
    digests: &[Digest],
    challenge: &Challenge,
) -> Vouched {
    let mut prover = BlocksProver::new(challenge);
    let mut packs = BTreeSet::new();
    let mut has = Bits::none_of(digests.len());
    for (at, digest) in digests.iter().enumerate() {
        let may_be_in = |pack: &PackId| packs.len() < PACKS_MAX || packs.contains(pack);
        let found = store.read_live(&Cid::from_digest(*digest), &may_be_in);
        if let Ok(Some((pack, block))) = found {
            packs.insert(pack);
            has.insert(at);
            prover.update(&block);
        }
    }
    Vouched {
        proof: prover.finish(),
        packs: packs.into_iter().collect(),
        has,
    }
}

/// The blocks of a pack that lie in no other here that stays; none if it is not to be given up by these: they are too many, or not all are private.
///
/// # Errors
/// [`StoreError`].
pub fn list<D: Disk, I: Index>(
    store: &Store<D, I>,
    pack: &PackId,
) -> Result<Option<Vec<Digest>>, StoreError> {
    if !is_here(store, pack) {
        return Ok(None);
    }
    let mut list = BTreeSet::new();
    for block in store.pack_blocks(pack)? {
        let Some(digest) = block.cid.digest() else {
            return Ok(None);
        };
        if !store.lies_live_besides(&block.cid, pack)? {
            list.insert(digest);
        }
        if list.len() > BLOCKS_MAX {
            return Ok(None);
        }
    }
    Ok(Some(list.into_iter().collect()))
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
    if let Giving::Replaced(replaced) = &give_up.how {
        return drop_replaced(store, give_up, replaced, is_needed);
    }
    if give_up.how == Giving::Spent {
        return drop_spent(store, &pack);
    }
    let challenges = give_up.proofs.iter().map(|(challenge, _)| *challenge);
    let expected = match &give_up.how {
        Giving::Coded(shards) => match prove_shards(store, shards, challenges) {
            Err(MakeError::Misnamed(_)) => return Ok(GaveUp::Misnamed),
            expected => expected.ok(),
        },
        _ => prove(store, &pack, challenges).ok(),
    };
    // A damaged copy tells nothing of the others: scrub deals with it, and they have it whole.
    let Some(expected) = expected else {
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
    if give_up.how == Giving::AtOnce {
        store.evict(&pack)?;
    }
    Ok(GaveUp::Gone)
}

/// Drops parity of what nobody holds any more.
fn drop_spent<D: Disk, I: Index>(store: &Store<D, I>, pack: &PackId) -> Result<GaveUp, StoreError> {
    let info = store.pack_info(pack)?;
    if info.is_none_or(|info| info.class != Class::Parity) || !store.let_go(pack)? {
        return Ok(GaveUp::Stays);
    }
    store.evict(pack)?;
    Ok(GaveUp::Gone)
}

/// Drops a pack that was replaced, if each of its blocks lies in another here that stays, or with all who should keep it.
fn drop_replaced<D: Disk, I: Index>(
    store: &Store<D, I>,
    give_up: &GiveUp,
    replaced: &Replaced,
    is_needed: &dyn Fn(&Cid) -> bool,
) -> Result<GaveUp, StoreError> {
    let pack = give_up.pack;
    let answers: Vec<_> = give_up.proofs.iter().zip(&replaced.has).collect();
    let new = |((challenge, _), _): &(&(Challenge, Proof), &Bits)| BlocksProver::new(challenge);
    let mut provers: Vec<BlocksProver> = answers.iter().map(new).collect();
    let mut elsewhere: BTreeMap<Digest, BTreeSet<DeviceId>> = BTreeMap::new();
    for (at, digest) in replaced.digests.iter().enumerate() {
        let block = match store.get(&Cid::from_digest(*digest)) {
            Ok(Some(block)) => block,
            // A damaged copy tells nothing of the others.
            Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(GaveUp::Stays),
            Err(error) => return Err(error),
        };
        let with = elsewhere.entry(*digest).or_default();
        for (((challenge, _), has), prover) in answers.iter().zip(&mut provers) {
            if has.contains(at) {
                prover.update(&block);
                with.insert(challenge.holder);
            }
        }
    }
    let compared = answers.iter().zip(&provers);
    let wrong = compared.filter(|(((_, proof), _), prover)| prover.finish() != *proof);
    let wrong: Vec<_> = wrong.map(|(((of, _), _), _)| of.holder).collect();
    if !wrong.is_empty() {
        return Ok(GaveUp::False(wrong));
    }
    let is_kept = |cid: &Cid| {
        let with = cid.digest().and_then(|digest| elsewhere.get(&digest));
        let by_all = |with: &BTreeSet<DeviceId>| {
            let mut kept = replaced.kept.iter();
            kept.any(|of| !of.devices.is_empty() && of.devices.iter().all(|by| with.contains(by)))
        };
        with.is_some_and(by_all) && !is_needed(cid)
    };
    for block in store.pack_blocks(&pack)? {
        if !is_kept(&block.cid) && !store.lies_live_besides(&block.cid, &pack)? {
            return Ok(GaveUp::Stays);
        }
    }
    if !store.mark_retired(&pack) {
        return Ok(GaveUp::Stays);
    }
    let dropped = store.drop_retired(&pack, &is_kept)?;
    Ok(dropped.map_or(GaveUp::Stays, |_| GaveUp::Gone))
}

/// Makes the shards of a pack that lies here, and of them the proofs that those should have given who keep one; whoever is to keep none proves nothing. What of them nobody else keeps has to be here.
fn prove_shards<D: Disk, I: Index>(
    store: &Store<D, I>,
    of: &ShardsKept,
    challenges: impl Iterator<Item = Challenge>,
) -> Result<Vec<Proof>, MakeError> {
    let mut left: BTreeMap<PackId, Bytes> = shards::all_of(store, &of.coding)?
        .into_iter()
        .map(|shard| (shard.id, shard.bytes))
        .collect();
    let mut proofs = Vec::new();
    for challenge in challenges {
        let kept = of
            .kept
            .iter()
            .find(|kept| kept.devices == [challenge.holder]);
        let id = kept.map_or(of.coding.pack, |kept| kept.pack);
        let shard = left.remove(&id).ok_or(MakeError::Lacking(id))?;
        let mut prover = Prover::new([challenge]);
        prover.update(&shard);
        let made = prover.finish(&id).ok_or(MakeError::Misnamed(id))?;
        proofs.extend(made);
    }
    match left.keys().find(|id| !is_here(store, id)) {
        Some(lacking) => Err(MakeError::Lacking(*lacking)),
        None => Ok(proofs),
    }
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

    use kith_object::coding::Coding;
    use kith_object::disk::SimDisk;
    use kith_object::id::{DeviceId, SpaceId};
    use kith_object::index::MemIndex;
    use kith_object::store::{StoreConfig, Verified};
    use kith_object::time::Time;

    use super::*;
    use crate::keeper::KeptBy;

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
        Vouch {
            wish: Wish::Pack(pack),
            until: Time(1),
            challenge: challenge(n),
        }
    }

    fn proof(store: &SimStore, pack: PackId, n: u8) -> Proof {
        vouch(store, &asked(pack, n)).unwrap().proof
    }

    #[test]
    fn a_copy_goes_on_proofs_of_the_same_bytes_alone() {
        let (_, here, pack) = store();
        let (_, there, same) = store();
        assert_eq!(pack, same);
        let good = |n| (challenge(n), proof(&there, pack, n));
        let giving = |proofs| GiveUp {
            pack,
            proofs,
            how: Giving::Slowly,
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
            how: Giving::AtOnce,
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
        let sound = proof(&there, pack, 1);
        let names = Disk::list(&disk).unwrap();
        let name = names.iter().find(|name| name.ends_with(".pack")).unwrap();
        disk.flip(name, 80_000);
        assert_eq!(vouch(&here, &asked(pack, 1)), Err(Refused::Damaged));
        let giving = GiveUp {
            pack,
            proofs: vec![(challenge(1), sound)],
            how: Giving::AtOnce,
        };
        let how = give_up(&here, &giving, &|_| false).unwrap();
        assert_eq!(how, GaveUp::Stays, "the other may have it, or not");
        assert_eq!(here.keep_of(&pack), Keep::Kept);
    }

    /// A pack of these blocks.
    fn pack_of(store: &SimStore, blocks: &[&[u8]]) -> PackId {
        for block in blocks {
            store
                .put_verified(Class::Bulk, Verified::of(block))
                .unwrap();
        }
        let before: Vec<PackId> = store.packs().unwrap().iter().map(|of| of.0).collect();
        store.close_packs().unwrap();
        let mut packs = store.packs().unwrap().into_iter().map(|of| of.0);
        packs.find(|pack| !before.contains(pack)).unwrap()
    }

    /// Two devices with an old pack of three blocks, of which the second has merged it.
    fn merged() -> ((SimDisk, SimStore), SimStore, PackId) {
        let ((disk, here, _), (_, there, _)) = (store(), store());
        let blocks: [&[u8]; 3] = [b"one", b"two", b"three"];
        let old = pack_of(&here, &blocks);
        pack_of(&there, &[b"one", b"two", b"three", b"four"]);
        ((disk, here), there, old)
    }

    fn kept(devices: &[u8]) -> KeptBy {
        KeptBy {
            pack: PackId([1; 32]),
            devices: devices.iter().map(|n| challenge(*n).holder).collect(),
        }
    }

    /// What comes of asking that device.
    fn answer(there: &SimStore, digests: &[Digest], n: u8) -> ((Challenge, Proof), Bits) {
        let asked = Vouch {
            wish: Wish::Blocks(digests.into()),
            until: Time(1),
            challenge: challenge(n),
        };
        let Vouched { proof, has, .. } = vouch(there, &asked).unwrap();
        ((challenge(n), proof), has)
    }

    fn giving(
        pack: PackId,
        digests: &[Digest],
        answers: Vec<((Challenge, Proof), Bits)>,
        kept: Vec<KeptBy>,
    ) -> GiveUp {
        let (proofs, has) = answers.into_iter().unzip();
        let digests = digests.into();
        GiveUp {
            pack,
            proofs,
            how: Giving::Replaced(Replaced { digests, has, kept }),
        }
    }

    #[test]
    fn what_was_replaced_goes_once_all_who_keep_its_blocks_have_proved_them() {
        let ((_, here), there, old) = merged();
        let digests = list(&here, &old).unwrap().unwrap();
        assert_eq!(digests.len(), 3);
        let nobody = |_: &Cid| false;
        let stays = |give: &GiveUp, needed: &dyn Fn(&Cid) -> bool, why: &str| {
            let how = give_up(&here, give, needed).unwrap();
            assert!(is_here(&here, &old), "{why}");
            how
        };
        let good = |n| answer(&there, &digests, n);
        let both = || giving(old, &digests, vec![good(1), good(2)], vec![kept(&[1, 2])]);
        let one = giving(old, &digests, vec![good(1)], vec![kept(&[1, 2])]);
        assert_eq!(stays(&one, &nobody, "one is missing"), GaveUp::Stays);
        let none = giving(old, &digests, vec![], vec![kept(&[])]);
        assert_eq!(stays(&none, &nobody, "nobody keeps it"), GaveUp::Stays);
        let none = giving(old, &digests, vec![good(1), good(2)], vec![]);
        assert_eq!(stays(&none, &nobody, "nor anything"), GaveUp::Stays);
        // The second proof is made for another device.
        let mut forged = good(2);
        forged.0.1 = good(3).0.1;
        let forged = giving(old, &digests, vec![good(1), forged], vec![kept(&[1, 2])]);
        let wrong = GaveUp::False(vec![challenge(2).holder]);
        assert_eq!(stays(&forged, &nobody, "forged"), wrong);
        // It says that it has a block more than it proves, or fewer than there are.
        let (_, lacks, _) = store();
        pack_of(&lacks, &[b"one", b"three"]);
        let mut boasts = answer(&lacks, &digests, 2);
        let least = giving(
            old,
            &digests,
            vec![good(1), boasts.clone()],
            vec![kept(&[1, 2])],
        );
        assert_eq!(stays(&least, &nobody, "one has less"), GaveUp::Stays);
        (0..3).for_each(|at| boasts.1.insert(at));
        let boasts = giving(old, &digests, vec![good(1), boasts], vec![kept(&[1, 2])]);
        assert_eq!(stays(&boasts, &nobody, "it boasts"), wrong);
        // A block that nobody was asked for.
        let few = &digests[..2];
        let few = giving(old, few, vec![answer(&there, few, 1)], vec![kept(&[1])]);
        assert_eq!(stays(&few, &nobody, "not asked for"), GaveUp::Stays);
        let pinned = |cid: &Cid| *cid == Cid::of_block(b"two");
        assert_eq!(stays(&both(), &pinned, "pinned"), GaveUp::Stays);
        let lease = here.lease_all();
        assert_eq!(stays(&both(), &nobody, "relied on"), GaveUp::Stays);
        drop(lease);
        assert_eq!(give_up(&here, &both(), &nobody).unwrap(), GaveUp::Gone);
        assert_eq!(here.get(&Cid::of_block(b"one")).unwrap(), None);
        assert!(!is_here(&here, &old));
        assert_eq!(give_up(&here, &both(), &nobody).unwrap(), GaveUp::Stays);
        assert_eq!(list(&here, &old).unwrap(), None);
    }

    #[test]
    fn blocks_that_lie_here_in_another_pack_are_not_asked_for() {
        let ((disk, here), there, old) = merged();
        let other = pack_of_again(&here, &[b"two", b"five"]);
        assert_ne!(other, old);
        let digests = list(&here, &old).unwrap().unwrap();
        let two = Cid::of_block(b"two");
        assert!(digests.len() == 2 && !digests.contains(&two.digest().unwrap()));
        let giving = giving(
            old,
            &digests,
            vec![answer(&there, &digests, 1)],
            vec![kept(&[1])],
        );
        // Unless that one rots before it comes to it: then the block is copied.
        let place = here.index().locations(&two).unwrap();
        let place = place.iter().find(|place| place.pack == other).unwrap();
        disk.flip(&format!("{other}.pack"), u64::from(place.offset) * 8);
        let how = give_up(&here, &giving, &|_| false).unwrap();
        assert_eq!(how, GaveUp::Gone);
        assert_eq!(&here.get(&two).unwrap().unwrap()[..], b"two");
        assert_eq!(here.get(&Cid::of_block(b"one")).unwrap(), None);
    }

    /// The same where some of the blocks are here already.
    fn pack_of_again(store: &SimStore, blocks: &[&[u8]]) -> PackId {
        let (_, other, _) = self::store();
        let pack = pack_of(&other, blocks);
        let bytes = other.pack_info(&pack).unwrap().unwrap().bytes;
        let whole = other.read_pack(&pack, 0, bytes as usize);
        let mut part = store.part(pack, bytes, Keep::Kept).unwrap().unwrap();
        store.append(&mut part, &whole.unwrap().unwrap()).unwrap();
        store.adopt(part).unwrap();
        pack
    }

    #[test]
    fn what_rots_or_is_cached_is_not_promised() {
        let ((_, here), _, old) = merged();
        let digests = list(&here, &old).unwrap().unwrap();
        let (disk, there, _) = store();
        let pack = pack_of(&there, &[b"one", b"two", b"three"]);
        let asked = Vouch {
            wish: Wish::Blocks(digests.clone().into()),
            until: Time(1),
            challenge: challenge(1),
        };
        let all = vouch(&there, &asked).unwrap();
        assert_eq!(all.packs, [pack]);
        assert!((0..3).all(|at| all.has.contains(at)));
        let place = there.index().locations(&Cid::of_block(b"two")).unwrap();
        disk.flip(&format!("{pack}.pack"), u64::from(place[0].offset) * 8);
        let some = vouch(&there, &asked).unwrap();
        let had = (0..3).filter(|at| some.has.contains(*at)).count();
        assert_eq!(had, 2);
        assert!(there.let_go(&pack).unwrap());
        let none = vouch(&there, &asked).unwrap();
        assert_eq!((none.packs, none.has), (Vec::new(), Bits::none_of(3)));
    }

    #[test]
    fn killed_at_any_write_what_was_replaced_is_here_or_gone() {
        for after in 0..12 {
            let ((disk, here), there, old) = merged();
            let digests = list(&here, &old).unwrap().unwrap();
            let giving = giving(
                old,
                &digests,
                vec![answer(&there, &digests, 1)],
                vec![kept(&[1])],
            );
            disk.fail_after(after, kith_object::disk::Fault::Die);
            let how = give_up(&here, &giving, &|_| false);
            drop(here);
            let mut rng = kith_object::key::Rng::from_seed([1; 32]);
            disk.crash(kith_object::disk::Crash::Kill, &mut rng);
            let config = StoreConfig::new(SpaceId([9; 32]));
            let (here, _) = Store::open(disk, Arc::new(MemIndex::new()), config).unwrap();
            for (left, _) in here.packs().unwrap() {
                here.check_pack(&left).unwrap();
            }
            let is_gone = !is_here(&here, &old);
            assert!(!matches!(how, Ok(GaveUp::Gone)) || is_gone, "write {after}");
            assert_eq!(here.packs().unwrap().len(), 2 - usize::from(is_gone));
        }
    }

    #[test]
    fn killed_at_any_write_a_copy_is_kept_or_cached_and_never_half_gone() {
        for after in 0..12 {
            let (disk, here, pack) = store();
            let (_, there, _) = store();
            let giving = GiveUp {
                pack,
                proofs: vec![(challenge(1), proof(&there, pack, 1))],
                how: [Giving::AtOnce, Giving::Slowly][after as usize % 2].clone(),
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
            assert!(
                !is_gone || giving.how == Giving::AtOnce,
                "write {after}: {how:?}"
            );
            if matches!(how, Ok(GaveUp::Gone)) {
                assert!(
                    is_gone || here.keep_of(&pack) == Keep::Cached,
                    "write {after}"
                );
            }
        }
    }

    /// A pack coded 4+2: its holder, who holds the first shard, and the other five with one each.
    fn coded() -> (SimDisk, SimStore, Vec<SimStore>, Coding) {
        let (disk, here, pack) = store();
        let whole = shards::read(&here, &pack).unwrap();
        let (coding, shards) = kith_object::coding::code(&whole, 4, 2).unwrap();
        shards::cut(&here, &coding, 0).unwrap();
        let others = shards[1..].iter().map(|shard| {
            let config = StoreConfig::new(SpaceId([9; 32]));
            let (store, _) = Store::open(SimDisk::new(), Arc::default(), config).unwrap();
            shards::take_in(&store, &shard.id, &shard.bytes).unwrap();
            store
        });
        let others = others.collect();
        (disk, here, others, coding)
    }

    /// What all of the others prove of their shards.
    fn give_up_coded(others: &[SimStore], coding: &Coding) -> GiveUp {
        let (mut kept, mut proofs) = (Vec::new(), Vec::new());
        for ((id, other), n) in coding.ids().skip(1).zip(others).zip(1..) {
            proofs.push((challenge(n), proof(other, id, n)));
            kept.push(KeptBy {
                pack: id,
                devices: vec![challenge(n).holder],
            });
        }
        let coding = coding.clone();
        GiveUp {
            pack: coding.pack,
            proofs,
            how: Giving::Coded(ShardsKept { coding, kept }),
        }
    }

    #[test]
    fn a_pack_goes_once_all_its_shards_are_proved() {
        let nobody = |_: &Cid| false;
        let (_, here, others, coding) = coded();
        let pack = coding.pack;
        let good = give_up_coded(&others, &coding);
        let stays = |giving: &GiveUp, needed: &dyn Fn(&Cid) -> bool| {
            let how = give_up(&here, giving, needed).unwrap();
            assert_eq!(here.keep_of(&pack), Keep::Kept);
            how
        };
        let changed = |change: &dyn Fn(&mut GiveUp, &mut ShardsKept)| {
            let mut giving = good.clone();
            let Giving::Coded(mut shards) = giving.how.clone() else {
                unreachable!()
            };
            change(&mut giving, &mut shards);
            giving.how = Giving::Coded(shards);
            giving
        };
        // One did not prove its own, or proved that of another.
        let less = changed(&|giving, _| giving.proofs.truncate(4));
        assert_eq!(stays(&less, &nobody), GaveUp::Stays);
        let wrong = changed(&|giving, _| giving.proofs[2].1 = giving.proofs[3].1);
        let false_one = vec![challenge(3).holder];
        assert_eq!(stays(&wrong, &nobody), GaveUp::False(false_one));
        let none = changed(&|giving, shards| {
            giving.proofs.clear();
            shards.kept.clear();
        });
        assert_eq!(stays(&none, &nobody), GaveUp::Stays);
        // Somebody who is to keep nothing proves nothing.
        let stranger = changed(&|giving, _| giving.proofs[4].0.holder = DeviceId([77; 32]));
        assert_eq!(stays(&stranger, &nobody), GaveUp::Stays);
        // The one who said which shards there are lied.
        let lie = changed(&|_, shards| shards.coding.parity[1] = PackId([7; 32]));
        assert_eq!(stays(&lie, &nobody), GaveUp::Misnamed);
        let lie = changed(&|_, shards| shards.coding.data[3].len += 1);
        assert_eq!(stays(&lie, &nobody), GaveUp::Misnamed);
        let first = Cid::of_block(&vec![3; 20_000]);
        assert_eq!(stays(&good, &|cid| *cid == first), GaveUp::Stays, "pinned");
        // The shard that this device should hold itself is not here.
        let own = coding.data[0].id;
        assert!(here.let_go(&own).unwrap());
        assert_eq!(stays(&good, &nobody), GaveUp::Stays);
        here.keep(&own).unwrap();
        assert_eq!(give_up(&here, &good, &nobody).unwrap(), GaveUp::Gone);
        assert_eq!(here.keep_of(&pack), Keep::Cached);
        assert_eq!(here.keep_of(&own), Keep::Kept);
    }

    #[test]
    fn a_damaged_pack_goes_on_nobodys_proofs_of_its_shards() {
        let (disk, here, others, coding) = coded();
        let good = give_up_coded(&others, &coding);
        disk.flip(&format!("{}.pack", coding.pack), 80_000);
        let how = give_up(&here, &good, &|_| false).unwrap();
        assert_eq!(how, GaveUp::Stays);
        assert_eq!(here.keep_of(&coding.pack), Keep::Kept);
    }

    #[test]
    fn parity_alone_goes_when_what_it_is_of_is_nowhere() {
        let (_, _, others, coding) = coded();
        let spent = |store: &SimStore, pack: PackId| {
            let giving = GiveUp {
                pack,
                proofs: Vec::new(),
                how: Giving::Spent,
            };
            give_up(store, &giving, &|_| false).unwrap()
        };
        let (data, parity) = (coding.data[3].id, coding.parity[0]);
        assert_eq!(spent(&others[2], data), GaveUp::Stays, "it is none");
        assert!(is_here(&others[2], &data));
        let lease = others[3].lease_all();
        assert_eq!(spent(&others[3], parity), GaveUp::Stays, "relied on");
        drop(lease);
        assert_eq!(spent(&others[3], parity), GaveUp::Gone);
        assert_eq!(others[3].pack_info(&parity).unwrap(), None);
        assert_eq!(spent(&others[3], parity), GaveUp::Stays);
    }

    #[test]
    fn killed_at_any_write_shards_are_made_whole_or_not_at_all() {
        for after in 0..16 {
            let (disk, here, _, coding) = coded();
            disk.fail_after(after, kith_object::disk::Fault::Die);
            let made = shards::cut(&here, &coding, 4);
            drop(here);
            let mut rng = kith_object::key::Rng::from_seed([1; 32]);
            disk.crash(kith_object::disk::Crash::Kill, &mut rng);
            let config = StoreConfig::new(SpaceId([9; 32]));
            let (here, _) = Store::open(disk, Arc::new(MemIndex::new()), config).unwrap();
            for (left, _) in here.packs().unwrap() {
                here.check_pack(&left).unwrap();
            }
            assert!(is_here(&here, &coding.pack) && is_here(&here, &coding.data[0].id));
            let is_made = is_here(&here, &coding.parity[0]);
            assert!(made.is_err() || is_made, "write {after}");
            // It is made when it is tried again.
            shards::cut(&here, &coding, 4).unwrap();
            here.check_pack(&coding.parity[0]).unwrap();
        }
    }
}

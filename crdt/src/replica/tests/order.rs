//! The order in which entries come, and how often, is invisible: forged, backdated, forked and hostile ones among them.

use std::collections::BTreeSet;

use kith_object::id::EntryId;
use kith_object::key::Rng;
use kith_object::time::Hlc;
use zeroize::Zeroizing;

use super::mesh::{Home, Mesh};
use crate::access::{Opened, Removal, Role, Sealed};
use crate::catalogue::{CatalogueRecord, Seen};
use crate::chain::{Codec, DocumentKind, Entry, Plain, SealKind};
use crate::epoch::{EpochRecord, HolderPart, MemberPart};
use crate::replica::Replica;

/// All that ever happened in a small mesh, and the devices it happened on.
struct History {
    entries: Vec<Entry>,
    homes: Vec<Home>,
    lost: Home,
}

fn history() -> History {
    let (mut mesh, mut first) = Mesh::new(200);
    let mut all: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut second = mesh.join_admin(&mut first, "second");
    let mut third = mesh.join(&mut first, Role::Member, "third");
    let mut fourth = mesh.join(&mut first, Role::Member, "fourth");
    let mut blind = mesh.join(&mut first, Role::Blind, "shelf");
    for home in [&mut second, &mut third, &mut fourth] {
        home.pull(&first);
    }
    mesh.write(&mut fourth, "fourth early");
    first.pull(&fourth);
    // A partition: first and third here, second and fourth there.
    for round in 0..3 {
        mesh.write(&mut first, &format!("first {round}"));
        mesh.write(&mut third, &format!("third {round}"));
        third.pull(&first);
        mesh.write(&mut second, &format!("second {round}"));
        mesh.write(&mut fourth, &format!("fourth {round}"));
        second.pull(&fourth);
    }
    let now = mesh.tick();
    let seen = blind
        .replica
        .catalogue(
            &blind.keys,
            now,
            &mut mesh.rng,
            &[CatalogueRecord::Seen(Seen {
                entry: first.order[0],
                in_full: false,
            })],
        )
        .unwrap();
    blind.keep(seen);
    mesh.mint(&mut second);
    mesh.write(&mut second, "after the partition's renewal");
    // Forks: the fourth's folder was copied, and the copy writes on, on a chain of its own and on the old one.
    let fork = mesh.forge_names(&fourth, &fourth.keys.clone(), "forked", |header| {
        let tip = fourth
            .order
            .iter()
            .rev()
            .map(|id| &fourth.log[id])
            .find(|entry| entry.header().author == fourth.id())
            .unwrap();
        (header.nonce, header.seq, header.previous) =
            (tip.header().nonce, tip.header().seq, tip.header().previous);
        let previous = header.previous;
        header
            .dependencies
            .retain(|id| *id != tip.id() && *id != previous);
    });
    all.insert(fork.encode());
    second.feed(&fork);
    // Here the fourth is removed, its last words unheard; there the fifth is admitted meanwhile, and writes.
    mesh.remove(&mut first, fourth.id());
    mesh.write(&mut first, "after the removal");
    let mut fifth = mesh.join(&mut second, Role::Member, "fifth");
    mesh.write(&mut fifth, "fifth");
    second.pull(&fifth);
    // The removed one goes on, with and without having heard of it, and one member builds upon that.
    mesh.write(&mut fourth, "unheard");
    third.pull(&fourth);
    mesh.write(&mut third, "upon the unheard");
    fourth.pull(&first);
    let late = mesh.forge_names(&fourth, &fourth.keys.clone(), "late", |_| {});
    let backdated = mesh.forge_names(&fourth, &fourth.keys.clone(), "backdated", |header| {
        header.hlc = Hlc(1)
    });
    for entry in [&late, &backdated] {
        all.insert(entry.encode());
        third.feed(entry);
    }
    mesh.write(&mut third, "upon the late");
    // A stranger signs, and a member builds upon that.
    let stranger = mesh.keys();
    let forged = mesh.forge_names(&third, &stranger, "forged", |_| {});
    let accomplice = mesh.forge_names(&third, &third.keys.clone(), "accomplice", |header| {
        header.dependencies = vec![forged.id()];
        header.hlc = Hlc(header.hlc.0 + 5);
    });
    all.extend([forged.encode(), accomplice.encode()]);
    // What says nothing, and what builds upon that.
    let mut header = mesh.header(
        &third,
        third.id(),
        DocumentKind::Names,
        *third.replica.access().epoch_heads.first().unwrap(),
    );
    header.dependencies.clear();
    let part = (
        SealKind::Change,
        Plain {
            codec: Codec::Change,
            body: Zeroizing::new(b"junk".to_vec()),
        },
    );
    let junk = mesh.forge(&third, &third.keys.clone(), header, vec![part]);
    third.feed(&junk);
    let on_junk = mesh.forge_names(&third, &third.keys.clone(), "on junk", |header| {
        header.dependencies = vec![junk.id()]
    });
    all.extend([junk.encode(), on_junk.encode()]);
    // A member admits a stranger and removes an admin; an admin opens an epoch for itself alone.
    let puppet = Some(Sealed::Member(Mesh::newcomer(
        &stranger,
        Role::Member,
        "puppet",
    )));
    let coup = Some(Sealed::Removal(Removal {
        device: first.id(),
        frontier: vec![],
    }));
    for sealed in [puppet, coup] {
        let entry = mesh.forge_access(&third, &third.keys.clone(), sealed, None, |_| {});
        all.insert(entry.encode());
    }
    let record = EpochRecord {
        holder: HolderPart::generate(&mut mesh.rng).commitment(),
        member: MemberPart::generate(None, &mut mesh.rng).commitment(),
        parents: second
            .replica
            .access()
            .epoch_heads
            .iter()
            .copied()
            .collect(),
    };
    let selfish = Opened {
        epoch: Some(record),
        ..Opened::default()
    };
    let entry = mesh.forge_access(&second, &second.keys.clone(), None, Some(selfish), |_| {});
    all.insert(entry.encode());
    second.feed(&entry);
    // The second, stolen, removes the third; the root removes the second, having seen the partition but not that.
    first.pull(&second);
    let stolen = mesh.remove(&mut second, third.id());
    all.extend(stolen.iter().map(Entry::encode));
    mesh.remove_by_root(&mut first, second.id());
    mesh.write(&mut first, "after the second");
    first.pull(&third);
    mesh.write(&mut first, "all together");
    let own = fifth.id();
    fifth.pull(&first);
    mesh.remove(&mut fifth, own);
    third.pull(&fifth);
    third.pull(&first);
    mesh.write(&mut third, "without the fifth");
    for home in [&first, &second, &third, &fourth, &fifth, &blind] {
        all.extend(home.log.values().map(Entry::encode));
    }
    let entries = all
        .iter()
        .map(|bytes| Entry::decode(bytes).unwrap())
        .collect();
    History {
        entries,
        homes: vec![first, third, blind],
        lost: fourth,
    }
}

fn shuffle(entries: &[Entry], rng: &mut Rng) -> Vec<Entry> {
    let mut list: Vec<Entry> = entries.to_vec();
    // One in four comes twice.
    let again: Vec<Entry> = entries
        .iter()
        .filter(|_| rng.below(4) == 0)
        .cloned()
        .collect();
    list.extend(again);
    for at in (1..list.len()).rev() {
        let other = usize::try_from(rng.below(at as u64 + 1)).unwrap();
        list.swap(at, other);
    }
    list
}

fn fed(home: &Home, order: Vec<Entry>) -> Home {
    let mut fresh = Home::new(
        &home.keys,
        Replica::open(home.replica.space(), Some(&home.keys)),
    );
    for entry in order {
        let _ = fresh.replica.insert(entry);
        if fresh.order.len().is_multiple_of(7) {
            fresh.collect();
        }
    }
    fresh.drain();
    fresh
}

/// What the log holds, without what was thrown out of the replica later: had it come later, it would not be there.
fn kept(home: &Home) -> BTreeSet<EntryId> {
    let stands = |id: &&EntryId| home.replica.find(id).is_some_and(|node| !node.thrown_out);
    home.log.keys().filter(stands).copied().collect()
}

#[test]
fn order_of_arrival_is_invisible() {
    let history = history();
    let mut rng = Rng::from_seed([77; 32]);
    let reference: Vec<Home> = history
        .homes
        .iter()
        .map(|home| fed(home, history.entries.clone()))
        .collect();
    let [member, other, blind] = reference.as_slice() else {
        panic!("three homes")
    };
    assert!(
        member.texts().contains("all together") && member.texts().contains("without the fifth")
    );
    for gone in [
        "late",
        "backdated",
        "unheard",
        "fourth 0",
        "forked",
        "forged",
        "accomplice",
        "on junk",
    ] {
        assert!(!member.reads(gone), "{gone}");
    }
    for kept in [
        "fourth early",
        "second 2",
        "upon the unheard",
        "upon the late",
        "after the removal",
        "fifth",
        "third 2",
    ] {
        assert!(member.reads(kept), "{kept}");
    }
    assert!(member.versions == other.versions && blind.versions.is_empty());
    for home in [other, blind] {
        assert!(member.digest == home.digest && member.replica.access() == home.replica.access());
        assert!(member.packs == home.packs);
    }
    assert!(!member.replica.access().belongs(&history.lost.id()));
    let each = [(member, 500), (other, 100), (blind, 400)];
    for (reference, rounds) in each {
        for round in 0..rounds {
            let again = fed(reference, shuffle(&history.entries, &mut rng));
            assert!(
                again.digest == reference.digest,
                "digest differs in round {round}"
            );
            assert!(
                again.versions == reference.versions,
                "versions differ in round {round}"
            );
            assert!(
                again.packs == reference.packs,
                "packs differ in round {round}"
            );
            assert_eq!(
                again.replica.access(),
                reference.replica.access(),
                "round {round}"
            );
            assert_eq!(
                again.replica.seal_state(),
                reference.replica.seal_state(),
                "round {round}"
            );
            assert_eq!(kept(&again), kept(reference), "round {round}");
        }
    }
    // The removed device, however it is fed, reads nothing that came after.
    let lost = fed(&history.lost, shuffle(&history.entries, &mut rng));
    for secret in [
        "after the removal",
        "after the second",
        "all together",
        "without the fifth",
    ] {
        assert!(!lost.reads(secret));
    }
}

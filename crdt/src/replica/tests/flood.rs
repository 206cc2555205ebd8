//! Floods by those who belong or belonged: bounded, and still all come to the same.

use kith_object::key::Rng;

use super::mesh::{Home, Mesh};
use crate::access::{Removal, Role, Sealed};
use crate::chain::{DocumentKind, Entry};
use crate::replica::{AuthorError, Replica, VOID_ENTRIES_MAX};

fn shuffle(entries: &[Entry], rng: &mut Rng) -> Vec<Entry> {
    let mut list = entries.to_vec();
    for at in (1..list.len()).rev() {
        let other = usize::try_from(rng.below(at as u64 + 1)).unwrap();
        list.swap(at, other);
    }
    list
}

fn fresh(home: &Home) -> Home {
    Home::new(
        &home.keys,
        Replica::open(home.replica.space(), Some(&home.keys)),
    )
}

/// Offers what there is, as others do who have it, until nothing of it is taken any more.
fn offer(home: &mut Home, entries: &[Entry]) {
    loop {
        let stands = |home: &Home| {
            let stats = home.replica.stats();
            (stats.entries, stats.pending)
        };
        let before = stands(home);
        for entry in entries {
            let _ = home.replica.insert(entry.clone());
        }
        home.collect();
        if stands(home) == before {
            break;
        }
    }
}

/// What its digest covers, as a walk hands it over: in the order of the keys.
fn covered(home: &Home) -> Vec<Entry> {
    home.digest
        .iter()
        .map(|(_, id)| home.log[id].clone())
        .collect()
}

/// Anti-entropy between all of them, until nobody has news.
fn exchange(homes: &mut [Home]) {
    for round in 0.. {
        let before: Vec<usize> = homes.iter().map(|home| home.log.len()).collect();
        for one in 0..homes.len() {
            for other in 0..homes.len() {
                let entries = covered(&homes[one]);
                offer(&mut homes[other], &entries);
            }
        }
        if homes.iter().map(|home| home.log.len()).eq(before) {
            return;
        }
        assert!(round < 50, "devices never come to rest");
    }
}

fn same(one: &Home, other: &Home, why: &str) {
    one.replica.check_invariants();
    assert!(one.digest == other.digest, "{why}: digests differ");
    assert!(one.versions == other.versions, "{why}: versions differ");
    assert_eq!(one.replica.access(), other.replica.access(), "{why}");
    let keyed = one.replica.seal_state() == other.replica.seal_state();
    assert!(keyed, "{why}: they seal under different epochs");
}

/// Entries of `access` that say nothing, in parallel chains, some of them longer than one.
fn flood(mesh: &mut Mesh, flooder: &mut Home, count: usize) -> Vec<Entry> {
    let keys = flooder.keys.clone();
    let puppet = mesh.keys();
    let mut list: Vec<Entry> = Vec::new();
    for number in 0..count {
        let sealed = Sealed::Member(Mesh::newcomer(&puppet, Role::Member, "puppet"));
        let before = list.last().filter(|_| number % 3 == 2).cloned();
        let entry = mesh.forge_access(flooder, &keys, Some(sealed), None, |header| {
            if let Some(before) = &before {
                header.nonce = before.header().nonce;
                header.seq = before.header().seq + 1;
                header.previous = before.id();
                header.hlc.0 = before.header().hlc.0 + 1;
                header.access_heads = before.header().access_heads.clone();
                header.dependencies = before.header().dependencies.clone();
            }
        });
        list.push(entry);
    }
    list
}

#[test]
fn flood_of_access_entries_is_bounded_and_its_order_invisible() {
    let (mut mesh, mut first) = Mesh::new(150);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    let mut third = mesh.join(&mut first, Role::Member, "third");
    let mut bad = mesh.join(&mut first, Role::Member, "bad");
    mesh.write(&mut bad, "early");
    for home in [&mut first, &mut second, &mut third] {
        home.pull(&bad);
    }
    mesh.write(&mut second, "on early");
    let litter = flood(&mut mesh, &mut bad, 150);
    // Two devices get different parts of it, and both write upon what they have.
    second.feed_all(&litter[..60]);
    third.feed_all(&litter[75..135]);
    mesh.write(&mut second, "second");
    mesh.write(&mut third, "third");
    let mut all: Vec<Entry> = litter.clone();
    for home in [&first, &second, &third, &bad] {
        for entry in home.log.values() {
            if !all.iter().any(|other| other.id() == entry.id()) {
                all.push(entry.clone());
            }
        }
    }
    let mut rng = Rng::from_seed([151; 32]);
    let mut reference = fresh(&first);
    offer(&mut reference, &all);
    assert!(!reference.replica.access().belongs(&bad.id()));
    assert!(reference.reads("second") && reference.reads("third") && reference.reads("on early"));
    assert!(!reference.reads("early"), "it is as if it had left");
    for round in 0..100 {
        let mut again = fresh(&first);
        offer(&mut again, &shuffle(&all, &mut rng));
        same(&again, &reference, &format!("round {round}"));
    }
    // Devices that each got some of it first, and then only what others' digests cover.
    for round in 0..30 {
        let mut homes = [fresh(&first), fresh(&second), fresh(&third)];
        for home in &mut homes {
            let order = shuffle(&all, &mut rng);
            let some = usize::try_from(rng.below(order.len() as u64)).unwrap();
            offer(home, &order[..some]);
        }
        // Each of what honest devices wrote has one who has it.
        homes[0].pull(&second);
        homes[1].pull(&third);
        exchange(&mut homes);
        let [one, two, three] = &homes;
        same(one, two, &format!("exchange {round}"));
        same(one, three, &format!("exchange {round}"));
    }
    // A thousand more: what one keeps grows with the logarithm.
    let more = flood(&mut mesh, &mut bad, 1000);
    let before = reference.replica.stats().entries;
    offer(&mut reference, &more);
    let grown = reference.replica.stats().entries - before;
    assert!(grown < 400, "{grown} of a thousand were kept");
    // An admin says what of it counts.
    mesh.remove(&mut reference, bad.id());
    assert!(reference.reads("early"));
    let mut newcomer = mesh.join(&mut reference, Role::Member, "newcomer");
    exchange(std::slice::from_mut(&mut newcomer));
    assert_eq!(newcomer.texts(), reference.texts());
}

#[test]
fn blind_holder_that_leaves_a_hundred_times_has_left() {
    let (mut mesh, mut first) = Mesh::new(152);
    let blind = mesh.join(&mut first, Role::Blind, "shelf");
    let keys = blind.keys.clone();
    let mut all: Vec<Entry> = first.log.values().cloned().collect();
    for _ in 0..100 {
        let own = Sealed::Removal(Removal {
            device: keys.id(),
            frontier: Vec::new(),
        });
        all.push(mesh.forge_access(&blind, &keys, Some(own), None, |_| {}));
    }
    let mut rng = Rng::from_seed([153; 32]);
    let mut reference = fresh(&first);
    offer(&mut reference, &all);
    assert!(!reference.replica.access().belongs(&keys.id()));
    for round in 0..100 {
        let mut again = fresh(&first);
        offer(&mut again, &shuffle(&all, &mut rng));
        assert!(again.digest == reference.digest, "round {round}");
        assert!(!again.replica.access().belongs(&keys.id()));
    }
}

#[test]
fn flood_after_a_removal_is_bounded_and_hides_nothing_that_others_wrote() {
    let (mut mesh, mut first) = Mesh::new(154);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    let mut bad = mesh.join(&mut first, Role::Member, "bad");
    mesh.write(&mut bad, "early");
    first.pull(&bad);
    second.pull(&bad);
    mesh.remove(&mut first, bad.id());
    let keys = bad.keys.clone();
    let mut litter = Vec::new();
    for number in 0..150 {
        litter.push(mesh.forge_names(&bad, &keys, &format!("late {number}"), |_| {}));
    }
    // The second has not heard of the removal, and writes upon the last of it.
    second.feed_all(&litter[100..]);
    mesh.write(&mut second, "upon it");
    // Whoever has heard keeps no more than there is room for.
    first.feed_all(&litter[..100]);
    let kept = litter
        .iter()
        .filter(|entry| first.replica.contains(&entry.id()));
    assert_eq!(kept.count(), VOID_ENTRIES_MAX);
    let upon: Vec<Entry> = covered(&second);
    offer(&mut first, &upon);
    assert!(first.reads("upon it") && first.reads("early") && !first.reads("late 120"));
    // Read back from the log, where nothing waits, it is the same.
    let mut restored = fresh(&first);
    for id in &first.order {
        let _ = restored.replica.restore(first.log[id].clone());
    }
    restored.order = first.order.clone();
    restored.log = first.log.clone();
    restored.drain();
    same(&restored, &first, "restored");
    let mut all = litter.clone();
    for home in [&first, &second, &bad] {
        for entry in home.log.values() {
            if !all.iter().any(|other| other.id() == entry.id()) {
                all.push(entry.clone());
            }
        }
    }
    let mut rng = Rng::from_seed([155; 32]);
    for round in 0..150 {
        let mut again = fresh(&first);
        offer(&mut again, &shuffle(&all, &mut rng));
        same(&again, &first, &format!("round {round}"));
    }
    assert!(!first.replica.heads(DocumentKind::Names).is_empty());
}

#[test]
fn many_entries_restored_at_once_come_to_the_same() {
    let (mut mesh, mut first) = Mesh::new(156);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    for number in 0..40 {
        mesh.write(&mut second, &format!("{number}"));
        mesh.join(&mut first, Role::Member, "one of many");
    }
    first.pull(&second);
    mesh.remove(&mut first, second.id());
    let mut rng = Rng::from_seed([157; 32]);
    for _ in 0..50 {
        let mut again = fresh(&first);
        let order: Vec<Entry> = first.order.iter().map(|id| first.log[id].clone()).collect();
        let mut left = order.as_slice();
        while !left.is_empty() {
            let some = 1 + usize::try_from(rng.below(left.len() as u64)).unwrap();
            let (batch, rest) = left.split_at(some);
            again.replica.restore_all(batch.to_vec());
            left = rest;
        }
        (again.order, again.log) = (first.order.clone(), first.log.clone());
        again.drain();
        same(&again, &first, "restored");
    }
}

#[test]
fn honest_member_opens_no_epoch_that_would_be_one_too_many() {
    let (mut mesh, mut first) = Mesh::new(158);
    let mut member = mesh.join(&mut first, Role::Member, "member");
    let now = mesh.tick();
    let mut opened = 0;
    let refused = loop {
        match member.replica.mint_epoch(&member.keys, now, &mut mesh.rng) {
            Ok(entries) => {
                member.keep(entries);
                opened += 1;
            }
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AuthorError::Spent);
    assert!(opened > 50 && member.replica.access().belongs(&member.id()));
    mesh.write(&mut member, "it still writes");
    first.pull(&member);
    assert!(first.reads("it still writes") && first.replica.access().belongs(&member.id()));
    // It may leave, too.
    let own = member.id();
    mesh.remove(&mut member, own);
}

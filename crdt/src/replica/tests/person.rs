//! What a person with a few devices does.

use std::collections::BTreeSet;

use kith_object::id::PackId;

use super::mesh::{Home, Mesh};
use crate::access::Role;
use crate::catalogue::{Born, CatalogueRecord};
use crate::chain::DocumentKind;
use crate::replica::{AuthorError, Inserted, NotReady, Replica, SealState};

fn born(byte: u8) -> CatalogueRecord {
    CatalogueRecord::Born(Born {
        pack: PackId([byte; 32]),
        class: 1,
        blocks: 2,
        bytes: 3,
    })
}

#[test]
fn first_device_writes_and_reads() {
    let (mut mesh, mut first) = Mesh::new(1);
    assert!(matches!(first.replica.seal_state(), SealState::Ready(_)));
    mesh.write(&mut first, "one");
    mesh.write(&mut first, "two");
    assert!(first.reads("one") && first.reads("two"));
    assert_eq!(first.replica.heads(DocumentKind::Names).len(), 1);
    assert_eq!(first.replica.access().members.len(), 1);
    assert_eq!(first.replica.dedup_secrets().len(), 1);
}

#[test]
fn newcomer_reads_all_that_was_written_before() {
    let (mut mesh, mut first) = Mesh::new(2);
    mesh.write(&mut first, "before");
    mesh.mint(&mut first);
    mesh.write(&mut first, "between");
    let mut second = mesh.join(&mut first, Role::Member, "second");
    assert_eq!(second.texts(), first.texts());
    mesh.write(&mut second, "after");
    first.pull(&second);
    assert!(first.reads("after"));
    assert_eq!(first.digest, second.digest);
    assert_eq!(first.replica.access(), second.replica.access());
    assert_eq!(
        first.replica.dedup_secrets()[0],
        second.replica.dedup_secrets()[0]
    );
}

#[test]
fn blind_holder_agrees_and_reads_no_names() {
    let (mut mesh, mut first) = Mesh::new(3);
    mesh.write(&mut first, "hidden");
    let mut blind = mesh.join(&mut first, Role::Blind, "shelf");
    assert!(blind.texts().is_empty());
    let now = mesh.tick();
    let entries = blind
        .replica
        .catalogue(&blind.keys, now, &mut mesh.rng, &[born(1)])
        .unwrap();
    blind.keep(entries);
    first.pull(&blind);
    assert_eq!(first.packs.values().next(), Some(&born(1).encode()));
    assert_eq!(first.digest, blind.digest);
    assert_eq!(first.replica.access(), blind.replica.access());
    let denied = mesh.try_write(&mut blind, "no");
    assert_eq!(denied.unwrap_err(), AuthorError::NotAllowed);
    assert!(blind.replica.dedup_secrets().is_empty());
}

#[test]
fn removed_device_reads_nothing_later_and_writes_nothing_later() {
    let (mut mesh, mut first) = Mesh::new(4);
    let mut lost = mesh.join(&mut first, Role::Member, "lost");
    mesh.write(&mut lost, "mine");
    first.pull(&lost);
    let old = first.replica.dedup_secrets();
    mesh.remove(&mut first, lost.id());
    mesh.write(&mut first, "secret");
    assert_ne!(first.replica.dedup_secrets()[0], old[0]);
    // A client that ignores politeness: it gets every entry, and still has its keys.
    lost.pull(&first);
    assert!(first.reads("mine") && !lost.reads("secret"));
    assert!(
        !lost
            .replica
            .dedup_secrets()
            .contains(&first.replica.dedup_secrets()[0])
    );
    assert_eq!(
        mesh.try_write(&mut lost, "again").unwrap_err(),
        AuthorError::NotAllowed
    );
    // It forges instead, with all it knows, before and after it heard of its removal.
    let forged = mesh.forge_names(&lost, &lost.keys.clone(), "forged", |_| {});
    assert_eq!(first.feed(&forged), Inserted::Taken);
    assert!(!first.replica.counts(&forged.id()) && !first.reads("forged"));
    assert!(!first.replica.in_digest(&forged.id()));
    assert!(first.reads("mine"), "what it wrote before stays");
    let newcomer = Mesh::newcomer(&lost.keys, Role::Member, "lost again");
    let now = mesh.tick();
    let denied = first
        .replica
        .admit(&first.keys, now, &mut mesh.rng, &newcomer);
    assert_eq!(denied.unwrap_err(), AuthorError::Removed);
}

#[test]
fn what_a_device_wrote_unseen_before_its_removal_does_not_count_and_stays() {
    let (mut mesh, mut first) = Mesh::new(5);
    let mut lost = mesh.join(&mut first, Role::Member, "lost");
    let seen = mesh.write(&mut lost, "seen");
    first.feed_all(&seen);
    let unseen = mesh.write(&mut lost, "unseen");
    let mut third = mesh.join(&mut first, Role::Member, "third");
    third.feed_all(&unseen);
    assert!(third.reads("unseen"));
    mesh.remove(&mut first, lost.id());
    third.pull(&first);
    first.pull(&third);
    for home in [&first, &third] {
        assert!(home.reads("seen") && !home.reads("unseen"));
        assert!(home.log.contains_key(&unseen[0].id()));
    }
    assert_eq!(first.digest, third.digest);
}

#[test]
fn removal_of_a_remover_brings_back_what_its_removal_voided() {
    let (mut mesh, mut first) = Mesh::new(6);
    let mut second = mesh.join_admin(&mut first, "second");
    let mut third = mesh.join(&mut first, Role::Member, "third");
    mesh.write(&mut third, "of the third");
    first.pull(&third);
    second.pull(&first);
    // The second admin is stolen: it removes the third. The root, who never saw that, removes the second.
    let stolen = mesh.remove(&mut second, third.id());
    mesh.remove_by_root(&mut first, second.id());
    assert!(first.reads("of the third"));
    first.feed_all(&stolen);
    third.pull(&first);
    for home in [&first, &third] {
        assert!(home.reads("of the third"));
        assert!(home.replica.access().is_member(&third.id()));
        assert!(!home.replica.access().belongs(&second.id()));
    }
    // One that saw the theft first changes its mind when the root's removal comes.
    let keys = mesh.keys();
    let mut onlooker = Home::new(
        &keys,
        Replica::open(first.replica.space(), Some(&third.keys)),
    );
    onlooker.pull(&second);
    assert!(!onlooker.replica.access().belongs(&third.id()));
    assert!(
        !onlooker.reads("of the third")
            || onlooker.replica.access().removed.contains_key(&third.id())
    );
    onlooker.pull(&first);
    assert!(onlooker.reads("of the third") && onlooker.replica.access().is_member(&third.id()));
    assert_eq!(onlooker.digest, first.digest);
    assert_eq!(onlooker.versions, first.versions);
}

#[test]
fn device_ends_its_own_membership_and_others_open_the_epoch() {
    let (mut mesh, mut first) = Mesh::new(7);
    let mut leaver = mesh.join(&mut first, Role::Member, "leaver");
    mesh.write(&mut leaver, "left behind");
    let own = leaver.id();
    mesh.remove(&mut leaver, own);
    first.pull(&leaver);
    assert!(!first.replica.access().belongs(&own) && first.reads("left behind"));
    assert_eq!(
        first.replica.seal_state(),
        SealState::NeedsEpoch(NotReady::Recipients)
    );
    let entries = mesh.write(&mut first, "alone");
    assert_eq!(entries.len(), 2, "an epoch was opened first");
    leaver.pull(&first);
    assert!(!leaver.reads("alone"));
    assert_eq!(first.replica.dedup_secrets().len(), 2);
}

#[test]
fn renewal_carries_the_dedup_secret_on() {
    let (mut mesh, mut first) = Mesh::new(8);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    mesh.mint(&mut second);
    first.pull(&second);
    mesh.mint(&mut first);
    assert_eq!(first.replica.dedup_secrets().len(), 1);
    // Removing a blind holder changes nothing for members either.
    let blind = mesh.join(&mut first, Role::Blind, "shelf");
    mesh.remove(&mut first, blind.id());
    assert_eq!(first.replica.dedup_secrets().len(), 1);
    assert!(matches!(first.replica.seal_state(), SealState::Ready(_)));
}

#[test]
fn two_removals_at_once_end_in_keys_that_neither_removed_device_has() {
    let (mut mesh, mut first) = Mesh::new(9);
    let mut second = mesh.join_admin(&mut first, "second");
    let mut one = mesh.join(&mut first, Role::Member, "one");
    let mut other = mesh.join(&mut first, Role::Member, "other");
    second.pull(&first);
    mesh.remove(&mut first, one.id());
    mesh.remove(&mut second, other.id());
    first.pull(&second);
    second.pull(&first);
    assert_eq!(first.replica.access().epoch_heads.len(), 2);
    assert!(
        matches!(first.replica.seal_state(), SealState::NeedsEpoch(_)),
        "each head leaks to one of them"
    );
    mesh.write(&mut first, "secret");
    for lost in [&mut one, &mut other] {
        lost.pull(&first);
        assert!(!lost.reads("secret"));
        assert!(
            !lost
                .replica
                .dedup_secrets()
                .contains(&first.replica.dedup_secrets()[0])
        );
    }
    second.pull(&first);
    assert!(second.reads("secret"));
    assert_eq!(first.replica.access(), second.replica.access());
}

#[test]
fn two_members_that_open_an_epoch_at_once_go_on_without_a_third() {
    let (mut mesh, mut first) = Mesh::new(10);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    mesh.mint(&mut first);
    mesh.mint(&mut second);
    first.pull(&second);
    second.pull(&first);
    assert_eq!(first.replica.access().epoch_heads.len(), 2);
    assert_eq!(first.replica.seal_state(), second.replica.seal_state());
    assert_eq!(mesh.write(&mut first, "on").len(), 1);
    second.pull(&first);
    assert!(second.reads("on"));
}

#[test]
fn words_alone_bring_everything_back() {
    let (mut mesh, mut first) = Mesh::new(11);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    mesh.write(&mut second, "kept");
    first.pull(&second);
    mesh.remove(&mut first, second.id());
    mesh.write(&mut first, "kept too");
    let blind = mesh.join(&mut first, Role::Blind, "shelf");
    // All member devices burn; the shelf and the words remain.
    let keys = mesh.keys();
    let recovery = mesh.root.recovery.clone();
    let replica = Replica::open_with_recovery(blind.replica.space(), Some(&keys), recovery);
    let mut phoenix = Home::new(&keys, replica);
    phoenix.pull(&blind);
    assert_eq!(
        phoenix.texts(),
        BTreeSet::from(["kept".to_owned(), "kept too".to_owned()])
    );
    let newcomer = Mesh::newcomer(&keys, Role::Admin, "phoenix");
    let now = mesh.tick();
    let entries = phoenix
        .replica
        .admit_by_root(&mesh.root, now, &mut mesh.rng, &newcomer)
        .unwrap();
    phoenix.keep(entries);
    mesh.remove_by_root(&mut phoenix, first.id());
    mesh.write(&mut phoenix, "new life");
    assert!(phoenix.reads("new life"));
    first.pull(&phoenix);
    assert!(!first.reads("new life"));
}

#[test]
fn restart_from_the_log_changes_nothing() {
    let (mut mesh, mut first) = Mesh::new(12);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    for round in 0..5 {
        mesh.write(&mut first, &format!("first {round}"));
        mesh.write(&mut second, &format!("second {round}"));
        second.pull(&first);
    }
    mesh.remove(&mut first, second.id());
    first.pull(&second);
    let mut again = Home::new(
        &first.keys,
        Replica::open(first.replica.space(), Some(&first.keys)),
    );
    for id in &first.order {
        assert_eq!(
            again.replica.restore(first.log[id].clone()),
            Inserted::Taken
        );
        again.log.insert(*id, first.log[id].clone());
        again.order.push(*id);
    }
    assert!(again.replica.take_accepted().is_empty());
    again.drain();
    assert_eq!(again.digest, first.digest);
    assert_eq!(again.versions, first.versions);
    assert_eq!(again.replica.access(), first.replica.access());
    // A new start begins a new chain, and builds upon the old one.
    let entries = mesh.write(&mut again, "after");
    assert_eq!(entries[0].header().seq, 0);
    first.pull(&again);
    assert!(first.reads("after"));
}

#[test]
fn restored_backup_forks_and_both_branches_count() {
    let (mut mesh, mut first) = Mesh::new(13);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    let mut clone = Home::new(
        &second.keys,
        Replica::open(second.replica.space(), Some(&second.keys)),
    );
    clone.pull(&second);
    mesh.write(&mut second, "here");
    mesh.write(&mut clone, "there");
    first.pull(&second);
    first.pull(&clone);
    assert!(first.reads("here") && first.reads("there"));
    // A clone of the running memory writes on with the same nonce: two entries in one place of one chain.
    let fork = mesh.forge_names(&second, &second.keys.clone(), "same place", |header| {
        let tip = second.replica.heads(DocumentKind::Names)[0];
        let tip = &second.log[&tip];
        header.nonce = tip.header().nonce;
        header.dependencies.clear();
        header.seq = 0;
    });
    assert_eq!(first.feed(&fork), Inserted::Taken);
    assert!(first.reads("same place") && first.reads("here"));
}

#[test]
fn many_records_are_split_over_entries_and_come_back_in_order() {
    let (mut mesh, mut first) = Mesh::new(14);
    let records: Vec<Vec<u8>> = (0u32..12_000)
        .map(|n| [n.to_be_bytes().as_slice(), &[7; 120]].concat())
        .collect();
    let now = mesh.tick();
    let entries = first
        .replica
        .names(&first.keys, now, &mut mesh.rng, records.clone())
        .unwrap();
    assert!(entries.len() > 2);
    let entries = first.keep(entries);
    let mut found = Vec::new();
    for entry in &entries {
        found.extend(
            first
                .versions
                .range((entry.id(), 0)..=(entry.id(), u32::MAX))
                .map(|(_, record)| record.clone()),
        );
    }
    assert!(found == records);
    let second = mesh.join(&mut first, Role::Member, "second");
    assert!(second.versions == first.versions);
    let now = mesh.tick();
    let too_long = first
        .replica
        .names(&first.keys, now, &mut mesh.rng, vec![vec![0; 70_000]]);
    assert_eq!(too_long.unwrap_err(), AuthorError::Record);
}

#[test]
fn keys_that_come_late_open_what_came_before_them() {
    let (mut mesh, mut first) = Mesh::new(15);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    // The third is admitted while the second opens an epoch that does not know of it.
    let mut third = mesh.join(&mut first, Role::Member, "third");
    mesh.mint(&mut second);
    mesh.write(&mut second, "one");
    mesh.write(&mut second, "two");
    third.pull(&second);
    assert!(!third.reads("one"));
    assert_eq!(third.replica.stats().unread, 2);
    first.pull(&second);
    mesh.write(&mut first, "three");
    third.pull(&first);
    assert_eq!(third.texts(), first.texts());
    assert_eq!(third.replica.stats().unread, 0);
    assert_eq!(third.digest, first.digest);
}

#[test]
fn pairing_gives_keys_before_the_entries() {
    let (mut mesh, mut first) = Mesh::new(16);
    mesh.write(&mut first, "old");
    let keys = mesh.keys();
    let (epoch, holder, member) = first.replica.epoch_parts().unwrap();
    let mut joiner = Home::new(&keys, Replica::open(first.replica.space(), Some(&keys)));
    joiner
        .replica
        .learn(epoch, &holder.to_bytes(), Some(&member.unwrap().to_bytes()));
    for id in first.replica.access_entries() {
        assert_eq!(joiner.feed(&first.log[&id]), Inserted::Taken);
    }
    assert_eq!(joiner.replica.access(), first.replica.access());
    joiner.pull(&first);
    assert!(joiner.reads("old"));
    // Wrong keys are not taken for right ones.
    let mut fooled = Replica::open(first.replica.space(), Some(&keys));
    fooled.learn(epoch, &[1; 64], Some(&[2; 64]));
    for id in &first.order {
        fooled.insert(first.log[id].clone());
    }
    assert!(fooled.dedup_secrets().is_empty());
}

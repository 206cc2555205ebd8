//! What enemies try: strangers, members, stolen admins, removed devices.

use std::collections::BTreeSet;

use kith_object::id::EpochId;
use kith_object::key::{AgreeKey, DeviceKeys};
use kith_object::time::Hlc;
use zeroize::Zeroizing;

use super::mesh::{Home, Mesh};
use crate::access::{Member, Opened, Removal, Role, Sealed};
use crate::chain::{Codec, DocumentKind, Entry, Plain, SealKind, push_record};
use crate::document;
use crate::epoch::{Envelope, EpochRecord, HolderPart, KeyPart, MemberPart};
use crate::replica::{AuthorError, Inserted, NotReady, Replica, SealState};

fn admission(device: &DeviceKeys, role: Role) -> Option<Sealed> {
    Some(Sealed::Member(Mesh::newcomer(device, role, "sock puppet")))
}

fn removal(home: &Home, device: &Home) -> Option<Sealed> {
    let frontier = home.replica.heads(DocumentKind::Access);
    Some(Sealed::Removal(Removal {
        device: device.id(),
        frontier,
    }))
}

/// The records of an epoch that follows the heads, sealed to these alone.
fn epoch_for(mesh: &mut Mesh, home: &Home, to: &[AgreeKey]) -> Opened {
    let (holder, member) = (
        HolderPart::generate(&mut mesh.rng),
        MemberPart::generate(None, &mut mesh.rng),
    );
    let parents = home.replica.access().epoch_heads.iter().copied().collect();
    let record = EpochRecord {
        holder: holder.commitment(),
        member: member.commitment(),
        parents,
    };
    let space = home.replica.space();
    let id = record.id(&space);
    let mut envelopes = Vec::new();
    for key in BTreeSet::from_iter(to) {
        for (part, keys) in [
            (KeyPart::Holder, holder.to_bytes()),
            (KeyPart::Member, member.to_bytes()),
        ] {
            envelopes.push(Envelope::seal(&space, id, *key, part, &keys).unwrap());
        }
    }
    Opened {
        epoch: Some(record),
        envelopes,
        ..Opened::default()
    }
}

#[test]
fn stranger_is_refused_whatever_it_signs() {
    let (mut mesh, mut first) = Mesh::new(101);
    let stranger = mesh.keys();
    let forged = mesh.forge_names(&first, &stranger, "x", |_| {});
    assert_eq!(
        first.feed(&forged),
        Inserted::Rejected("author was not admitted to this document")
    );
    let itself = mesh.forge_access(
        &first,
        &stranger,
        admission(&stranger, Role::Admin),
        None,
        |_| {},
    );
    assert!(matches!(first.feed(&itself), Inserted::Rejected(_)));
    // And so is what builds upon it, even if a member signs it.
    let on_top = mesh.forge_names(&first, &first.keys.clone(), "y", |header| {
        header.dependencies.clear();
        header.access_heads = vec![itself.id()];
    });
    assert!(matches!(first.feed(&on_top), Inserted::Rejected(_)));
    assert!(first.texts().is_empty());
}

#[test]
fn signature_payload_and_space_must_be_right() {
    let (mut mesh, mut first) = Mesh::new(102);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    let entry = mesh.write(&mut second, "true").remove(0);
    let bytes = entry.encode();
    for at in [20, 60, 100, 150, 200, 220, bytes.len() - 1] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        if let Ok(bad) = Entry::decode(&bad) {
            assert!(
                matches!(
                    first.replica.insert(bad),
                    Inserted::Rejected(_) | Inserted::Pending { .. }
                ),
                "byte {at}"
            );
        }
    }
    let signature_at = entry.header().encode().len() + 2;
    let mut bad = bytes.clone();
    bad[signature_at] ^= 1;
    let outcome = first.replica.insert(Entry::decode(&bad).unwrap());
    assert_eq!(outcome, Inserted::Rejected("signature does not hold"));
    assert_eq!(
        first.replica.insert(entry.without_payload()),
        Inserted::Rejected("without its payload")
    );
    // None of this stands in the way of the true one.
    assert_eq!(first.feed(&entry), Inserted::Taken);
    assert!(first.reads("true"));
    let (_, mut other) = Mesh::new(103);
    assert_eq!(other.feed(&entry), Inserted::Rejected("of another space"));
}

#[test]
fn headers_that_lie_about_their_chain_are_refused() {
    let (mut mesh, mut first) = Mesh::new(104);
    let one = mesh.write(&mut first, "one").remove(0);
    let two = mesh.write(&mut first, "two").remove(0);
    let keys = first.keys.clone();
    let follow = |header: &mut crate::chain::Header| {
        header.nonce = two.header().nonce;
        header.seq = 2;
        header.previous = two.id();
        header.dependencies.clear();
        header.hlc = Hlc(two.header().hlc.0 + 1);
    };
    let good = mesh.forge_names(&first, &keys, "good", follow);
    let heads = first.replica.heads(DocumentKind::Access);
    type Spoil<'a> = Box<dyn Fn(&mut crate::chain::Header) + 'a>;
    let spoilers: Vec<(&str, Spoil<'_>)> = vec![
        (
            "stamp does not rise along the chain",
            Box::new(|header| header.hlc = two.header().hlc),
        ),
        ("is out of sequence", Box::new(|header| header.seq = 3)),
        (
            "follows an entry of another chain",
            Box::new(|header| header.nonce.0[0] ^= 1),
        ),
        (
            "depends on an entry of another document",
            Box::new(|header| header.dependencies = heads.clone()),
        ),
        (
            "names a head of access that is none",
            Box::new(|header| header.access_heads = vec![one.id()]),
        ),
        (
            "sealed under an epoch that nobody opened",
            Box::new(|header| header.epoch = EpochId([9; 32])),
        ),
    ];
    for (why, spoil) in &spoilers {
        let mut header = good.header().clone();
        spoil(&mut header);
        // Sealed under whatever key: the header alone is to blame.
        let epoch = std::mem::replace(&mut header.epoch, good.header().epoch);
        let part = (
            SealKind::Change,
            Plain {
                codec: Codec::Records,
                body: Zeroizing::new(vec![]),
            },
        );
        let mut entry = mesh.forge(&first, &keys, header, vec![part]);
        if epoch != entry.header().epoch {
            let mut header = entry.header().clone();
            header.epoch = epoch;
            let signature = keys.sign("kith entry 1", &header.id().0);
            let mut bytes = header.encode();
            bytes.extend_from_slice(&64u16.to_le_bytes());
            bytes.extend_from_slice(&signature);
            bytes.push(1);
            bytes.extend_from_slice(entry.payload().unwrap());
            entry = Entry::decode(&bytes).unwrap();
        }
        let mut other = Home::new(&keys, Replica::open(first.replica.space(), Some(&keys)));
        other.pull(&first);
        assert_eq!(other.feed(&entry), Inserted::Rejected(why));
    }
    assert_eq!(first.feed(&good), Inserted::Taken);
}

#[test]
fn member_makes_nobody_anything() {
    let (mut mesh, mut first) = Mesh::new(105);
    let member = mesh.join(&mut first, Role::Member, "member");
    let other = mesh.join(&mut first, Role::Member, "other");
    let keys = member.keys.clone();
    let mut puppet = Home::new(&mesh.keys(), Replica::open(first.replica.space(), None));
    let access = first.replica.access().clone();
    let attempts = [
        mesh.forge_access(
            &first,
            &keys,
            admission(&puppet.keys.clone(), Role::Member),
            None,
            |_| {},
        ),
        mesh.forge_access(&first, &keys, admission(&keys, Role::Admin), None, |_| {}),
        {
            let open = epoch_for(&mut mesh, &first, &[keys.agree_public()]);
            mesh.forge_access(&first, &keys, removal(&first, &other), Some(open), |_| {})
        },
    ];
    for entry in &attempts {
        assert_eq!(first.feed(entry), Inserted::Taken);
        assert!(
            first.replica.counts(&entry.id()),
            "it counts, since blind holders look at headers, and says nothing"
        );
    }
    assert_eq!(first.replica.access(), &access);
    puppet.pull(&first);
    let wish = mesh.forge_names(&first, &puppet.keys.clone(), "puppet", |_| {});
    assert!(matches!(first.feed(&wish), Inserted::Rejected(_)));
    assert!(matches!(first.replica.seal_state(), SealState::Ready(_)));
}

#[test]
fn admin_neither_makes_nor_removes_admins() {
    let (mut mesh, mut first) = Mesh::new(106);
    let mut second = mesh.join_admin(&mut first, "second");
    let member = mesh.join(&mut first, Role::Member, "member");
    second.pull(&first);
    let now = mesh.tick();
    let refused = second
        .replica
        .remove(&second.keys, now, &mut mesh.rng, first.id());
    assert_eq!(refused.unwrap_err(), AuthorError::NotAllowed);
    let open = epoch_for(&mut mesh, &second, &[second.keys.agree_public()]);
    let coup = mesh.forge_access(
        &second,
        &second.keys.clone(),
        removal(&second, &first),
        Some(open),
        |_| {},
    );
    let crown = mesh.forge_access(
        &second,
        &second.keys.clone(),
        admission(&member.keys, Role::Admin),
        None,
        |_| {},
    );
    let ours = mesh.forge_access(
        &second,
        &second.keys.clone(),
        {
            let root = Member {
                device: mesh.root.sign.id(),
                ..Mesh::newcomer(&member.keys, Role::Member, "root")
            };
            Some(Sealed::Member(root))
        },
        None,
        |_| {},
    );
    for entry in [&coup, &crown, &ours] {
        assert_eq!(first.feed(entry), Inserted::Taken);
    }
    assert_eq!(first.replica.access().role(&first.id()), Some(Role::Admin));
    assert_eq!(
        first.replica.access().role(&member.id()),
        Some(Role::Member)
    );
    assert_eq!(first.replica.access().members.len(), 3);
}

#[test]
fn two_who_remove_one_another_do_not_deadlock_the_fold() {
    let (mut mesh, mut first) = Mesh::new(107);
    let mut second = mesh.join(&mut first, Role::Member, "second");
    // The root makes the second an admin; the first, not knowing, removes it as a member; the second, not knowing, tries
    // to remove the first.
    let promotion = {
        let newcomer = Mesh::newcomer(&second.keys, Role::Admin, "second");
        let now = mesh.tick();
        second
            .replica
            .admit_by_root(&mesh.root, now, &mut mesh.rng, &newcomer)
            .unwrap()
    };
    second.keep(promotion);
    mesh.remove(&mut first, second.id());
    let open = epoch_for(&mut mesh, &second, &[second.keys.agree_public()]);
    let back = mesh.forge_access(
        &second,
        &second.keys.clone(),
        removal(&second, &first),
        Some(open),
        |_| {},
    );
    second.feed(&back);
    first.pull(&second);
    second.pull(&first);
    assert_eq!(first.replica.access(), second.replica.access());
    assert_eq!(first.digest, second.digest);
    // The root's word, at once with an admin's, stands; an admin removes no admin.
    assert_eq!(first.replica.access().role(&second.id()), Some(Role::Admin));
    assert_eq!(first.replica.access().role(&first.id()), Some(Role::Admin));
    // But after a removal that the root saw, even the root does not bring a key back.
    let third = mesh.join(&mut first, Role::Member, "third");
    mesh.remove(&mut first, third.id());
    let newcomer = Mesh::newcomer(&third.keys, Role::Admin, "third");
    let now = mesh.tick();
    let again = first
        .replica
        .admit_by_root(&mesh.root, now, &mut mesh.rng, &newcomer);
    assert_eq!(again.unwrap_err(), AuthorError::Removed);
    let root = DeviceKeys::from_bytes(&{
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(mesh.root.sign.seed().expose());
        bytes
    });
    let forced = mesh.forge_access(
        &first,
        &root,
        admission(&third.keys, Role::Admin),
        None,
        |_| {},
    );
    assert_eq!(first.feed(&forced), Inserted::Taken);
    assert!(!first.replica.access().belongs(&third.id()));
}

#[test]
fn backdating_brings_nothing_in() {
    let (mut mesh, mut first) = Mesh::new(108);
    let mut lost = mesh.join(&mut first, Role::Member, "lost");
    mesh.write(&mut lost, "before");
    first.pull(&lost);
    mesh.remove(&mut first, lost.id());
    // It writes as if it knew of nothing, at an early stamp, at every place of its old chain, and on a new one.
    let keys = lost.keys.clone();
    let tip = lost.replica.heads(DocumentKind::Names)[0];
    let (nonce, seq, hlc) = {
        let header = lost.log[&tip].header();
        (header.nonce, header.seq, header.hlc)
    };
    let attempts = [
        mesh.forge_names(&lost, &keys, "new chain", |header| header.hlc = Hlc(1)),
        mesh.forge_names(&lost, &keys, "same place", |header| {
            (header.nonce, header.seq, header.hlc) = (nonce, seq, hlc);
            header.dependencies.clear();
        }),
        mesh.forge_names(&lost, &keys, "next place", |header| {
            (header.nonce, header.seq, header.hlc) = (nonce, seq + 1, Hlc(hlc.0 + 1));
            header.previous = tip;
            header.dependencies.clear();
        }),
    ];
    for entry in &attempts {
        assert_eq!(first.feed(entry), Inserted::Taken);
        assert!(!first.replica.counts(&entry.id()));
    }
    // An accomplice that names them as its own past keeps them in the digest, and makes none of them count.
    let mut accomplice = mesh.join(&mut first, Role::Member, "accomplice");
    accomplice.feed_all(&attempts);
    let tops = vec![attempts[0].id()];
    let on_top = mesh.forge_names(&accomplice, &accomplice.keys.clone(), "on top", |header| {
        header.dependencies = tops.clone();
    });
    assert_eq!(first.feed(&on_top), Inserted::Taken);
    assert!(first.replica.counts(&on_top.id()) && first.replica.in_digest(&attempts[0].id()));
    assert!(!first.reads("new chain") && !first.reads("same place") && !first.reads("next place"));
    assert!(first.reads("before"));
    // A stolen admin cannot widen what another removal left.
    let thief = mesh.join_admin(&mut first, "thief");
    let open = epoch_for(&mut mesh, &thief, &[keys.agree_public()]);
    let wide = Removal {
        device: lost.id(),
        frontier: {
            let mut list = vec![attempts[0].id(), attempts[2].id()];
            list.sort();
            list
        },
    };
    let widened = mesh.forge_access(
        &thief,
        &thief.keys.clone(),
        Some(Sealed::Removal(wide)),
        Some(open),
        |_| {},
    );
    assert_eq!(first.feed(&widened), Inserted::Taken);
    assert!(!first.reads("new chain") && first.reads("before"));
}

#[test]
fn entry_of_a_leaver_after_it_left_does_not_count_whatever_fork_it_writes() {
    let (mut mesh, mut first) = Mesh::new(109);
    let leaver = mesh.join(&mut first, Role::Member, "leaver");
    let keys = leaver.keys.clone();
    let text = mesh.forge_names(&leaver, &keys, "kept", |_| {});
    first.feed(&text);
    let leave = |mesh: &mut Mesh, home: &Home, frontier: Vec<_>| {
        let own = Some(Sealed::Removal(Removal {
            device: keys.id(),
            frontier,
        }));
        mesh.forge_access(home, &keys, own, None, |_| {})
    };
    let one = leave(&mut mesh, &leaver, vec![text.id()]);
    let other = leave(&mut mesh, &leaver, vec![]);
    assert_eq!(first.feed(&one), Inserted::Taken);
    assert!(first.reads("kept"));
    assert_eq!(first.feed(&other), Inserted::Taken);
    // Both ends of membership count, neither voids the other, and the intersection of their frontiers is empty.
    assert!(first.replica.counts(&one.id()) && first.replica.counts(&other.id()));
    assert!(!first.reads("kept") && !first.replica.access().belongs(&keys.id()));
    let late = mesh.forge_names(&leaver, &keys, "late", |_| {});
    first.feed(&late);
    assert!(!first.replica.counts(&late.id()));
}

#[test]
fn epoch_that_leaks_or_cheats_is_never_sealed_under() {
    let (mut mesh, mut first) = Mesh::new(110);
    let mut bad = mesh.join(&mut first, Role::Member, "bad");
    let outsider = mesh.keys();
    let recovery = first.replica.access().recovery.unwrap();
    let all = [first.keys.agree_public(), bad.keys.agree_public(), recovery];
    let good = first.replica.seal_state();
    assert!(matches!(good, SealState::Ready(_)));
    let mut wide = all.to_vec();
    wide.push(outsider.agree_public());
    // Sealed to an outsider too; to nobody but itself; with envelopes that do not hold what the epoch commits to.
    let leaks = epoch_for(&mut mesh, &first, &wide);
    let selfish = epoch_for(&mut mesh, &first, &[bad.keys.agree_public()]);
    let mut hollow = epoch_for(&mut mesh, &first, &all);
    for envelope in &mut hollow.envelopes {
        *envelope = envelope.falsely(&first.replica.space(), &[7; 64], &mut mesh.rng);
    }
    for (round, open) in [leaks, selfish, hollow].into_iter().enumerate() {
        let entry = mesh.forge_access(&bad, &bad.keys.clone(), None, Some(open), |_| {});
        first.feed(&entry);
        bad.feed(&entry);
        // The epoch before it is still sealed to those who belong: no answer is needed.
        assert_eq!(first.replica.seal_state(), good, "round {round}");
        assert_eq!(mesh.write(&mut first, &format!("{round}")).len(), 1);
        bad.pull(&first);
    }
    // Without links to earlier keys: a newcomer could not read the past.
    let open = epoch_for(&mut mesh, &bad, &all);
    let entry = mesh.forge_access(&bad, &bad.keys.clone(), None, Some(open), |_| {});
    first.feed(&entry);
    assert_eq!(first.replica.seal_state(), good);
    assert_eq!(mesh.write(&mut first, "three").len(), 1);
    let newcomer = mesh.join(&mut first, Role::Member, "newcomer");
    assert_eq!(newcomer.texts(), first.texts());
    // Once the good one is sealed to the wrong devices, there is no way back: one child follows all the bad ones.
    let leaver = newcomer.id();
    let mut newcomer = newcomer;
    let left = mesh.remove(&mut newcomer, leaver);
    first.feed_all(&left);
    assert!(matches!(
        first.replica.seal_state(),
        SealState::NeedsEpoch(_)
    ));
    assert_eq!(mesh.write(&mut first, "four").len(), 2);
    assert_eq!(mesh.write(&mut first, "five").len(), 1);
}

#[test]
fn what_a_thief_voids_by_leaving_an_admin_brings_back() {
    let mut rng = kith_object::key::Rng::from_seed([9; 32]);
    let (mut mesh, mut first) = Mesh::new(126);
    let mut victim = mesh.join(&mut first, Role::Member, "victim");
    mesh.write(&mut victim, "one");
    mesh.write(&mut victim, "two");
    first.pull(&victim);
    let keys = victim.keys.clone();
    let nothing = |mesh: &mut Mesh, home: &Home| {
        let own = Sealed::Removal(Removal {
            device: keys.id(),
            frontier: Vec::new(),
        });
        mesh.forge_access(home, &keys, Some(own), None, |_| {})
    };
    // Twice, side by side.
    let ends = [nothing(&mut mesh, &victim), nothing(&mut mesh, &victim)];
    first.feed_all(&ends);
    assert!(first.texts().is_empty() && !first.replica.access().belongs(&keys.id()));
    // What it writes with the knowledge of having left is not brought back.
    let mut thief = Home::new(&keys, Replica::open(first.replica.space(), Some(&keys)));
    thief.pull(&first);
    let late = mesh.forge_names(&thief, &keys, "late", |_| {});
    first.feed(&late);
    let removal = mesh.remove(&mut first, keys.id());
    assert_eq!(first.texts(), ["one", "two"].map(str::to_owned).into());
    assert!(!first.replica.access().belongs(&keys.id()));
    // Leaving once more changes nothing, and nor does removing it again.
    let again = nothing(&mut mesh, &victim);
    first.feed(&again);
    assert_eq!(first.texts().len(), 2);
    let now = mesh.tick();
    let refused = first
        .replica
        .remove(&first.keys, now, &mut mesh.rng, keys.id());
    assert_eq!(refused.unwrap_err(), AuthorError::UnknownDevice);
    mesh.write(&mut first, "after");
    assert!(!removal.is_empty());
    let all: Vec<Entry> = first.log.values().cloned().collect();
    let space = first.replica.space();
    for round in 0..1000 {
        let mut order = all.clone();
        for at in (1..order.len()).rev() {
            let other = usize::try_from(rng.below(at as u64 + 1)).unwrap();
            order.swap(at, other);
        }
        let mut fresh = Home::new(&first.keys, Replica::open(space, Some(&first.keys)));
        for entry in order {
            let _ = fresh.replica.insert(entry);
        }
        fresh.drain();
        assert!(fresh.digest == first.digest, "digest in round {round}");
        assert_eq!(fresh.versions, first.versions, "round {round}");
        assert_eq!(fresh.replica.access(), first.replica.access());
    }
}

#[test]
fn only_the_words_outrank_an_admin_that_left() {
    let (mut mesh, mut first) = Mesh::new(127);
    let mut second = mesh.join_admin(&mut first, "second");
    mesh.write(&mut second, "kept");
    first.pull(&second);
    let own = Sealed::Removal(Removal {
        device: second.id(),
        frontier: Vec::new(),
    });
    let end = mesh.forge_access(&second, &second.keys.clone(), Some(own), None, |_| {});
    first.feed(&end);
    assert!(!first.reads("kept"));
    let now = mesh.tick();
    let refused = first
        .replica
        .remove(&first.keys, now, &mut mesh.rng, second.id());
    assert_eq!(refused.unwrap_err(), AuthorError::NotAllowed);
    mesh.remove_by_root(&mut first, second.id());
    assert!(first.reads("kept") && !first.replica.access().belongs(&second.id()));
}

/// An epoch like the heads' best child, but for the envelopes that `spoil` names.
fn false_epoch(
    mesh: &mut Mesh,
    home: &Home,
    to: &[AgreeKey],
    spoil: &dyn Fn(&Envelope) -> bool,
) -> Opened {
    let mut open = epoch_for(mesh, home, to);
    for envelope in open.envelopes.iter_mut().filter(|envelope| spoil(envelope)) {
        *envelope = envelope.falsely(&home.replica.space(), &[7; 64], &mut mesh.rng);
    }
    open
}

#[test]
fn false_envelope_to_the_words_or_to_another_is_seen_by_all_who_have_the_part() {
    for seed in 0..24u8 {
        let (mut mesh, mut first) = Mesh::new(120 + seed / 8);
        let mut other = mesh.join(&mut first, Role::Member, "other");
        let mut blind = mesh.join(&mut first, Role::Blind, "shelf");
        let bad = mesh.join(&mut first, Role::Member, "bad");
        for home in [&mut other, &mut blind] {
            home.pull(&first);
        }
        let recovery = first.replica.access().recovery.unwrap();
        let all = [
            first.keys.agree_public(),
            other.keys.agree_public(),
            blind.keys.agree_public(),
            bad.keys.agree_public(),
            recovery,
        ];
        let victim = [recovery, all[0], all[1], all[2]][usize::from(seed % 4)];
        let part = if seed % 8 < 4 {
            KeyPart::Holder
        } else {
            KeyPart::Member
        };
        let mut open = false_epoch(&mut mesh, &bad, &all, &|envelope| {
            (envelope.recipient, envelope.part) == (victim, part)
        });
        // The blind one is sent no member part.
        open.envelopes
            .retain(|envelope| (envelope.recipient, envelope.part) != (all[2], KeyPart::Member));
        let head = open.epoch.as_ref().unwrap().id(&first.replica.space());
        let links = bad.replica.access().epoch_heads.clone();
        assert_eq!(links.len(), 1);
        let before = first.replica.seal_state();
        let entry = mesh.forge_access(&bad, &bad.keys.clone(), None, Some(open), |_| {});
        for home in [&mut first, &mut other, &mut blind] {
            assert_eq!(home.feed(&entry), Inserted::Taken);
            assert!(home.replica.access().epoch_heads.contains(&head));
        }
        for home in [&first, &other] {
            assert_eq!(home.replica.seal_state(), before, "{victim:?} {part:?}");
        }
        mesh.write(&mut first, "kept");
        other.pull(&first);
        assert!(other.reads("kept"));
        let mut words = Home::new(
            &mesh.keys(),
            Replica::open_with_recovery(first.replica.space(), None, mesh.root.recovery.clone()),
        );
        words.pull(&first);
        assert!(words.reads("kept"), "the words open what was written");
    }
}

/// Links to what came before, by one who has the keys: so that nothing but its envelopes is wrong with an epoch.
#[test]
fn only_the_envelope_is_false() {
    let (mut mesh, mut first) = Mesh::new(124);
    let mut bad = mesh.join(&mut first, Role::Member, "bad");
    let good = first.replica.seal_state();
    for round in 0..30 {
        // As the program would open one, with one envelope spoilt afterwards.
        let now = mesh.tick();
        let mut twin = Home::new(
            &bad.keys,
            Replica::open(bad.replica.space(), Some(&bad.keys)),
        );
        twin.pull(&bad);
        let honest = twin
            .replica
            .mint_epoch(&bad.keys, now, &mut mesh.rng)
            .unwrap()
            .remove(0);
        let parts = honest.parts().unwrap();
        let body = parts[0].open(honest.header(), 0, 1, None).unwrap().body;
        let mut open = Opened::decode(&body, &bad.replica.space()).unwrap();
        let recovery = first.replica.access().recovery.unwrap();
        for envelope in &mut open.envelopes {
            if envelope.recipient == recovery && envelope.part == KeyPart::Member {
                *envelope = envelope.falsely(&bad.replica.space(), &[7; 64], &mut mesh.rng);
            }
        }
        let head = open.epoch.as_ref().unwrap().id(&bad.replica.space());
        let entry = mesh.forge_access(&bad, &bad.keys.clone(), None, Some(open), |_| {});
        assert_eq!(first.feed(&entry), Inserted::Taken);
        bad.feed(&entry);
        assert!(first.replica.ring.member(&head).is_some());
        assert_eq!(first.replica.seal_state(), good, "round {round}");
        // However many it opens, and whatever it writes under them, nobody answers with one of its own.
        if round % 2 == 0 {
            let under = mesh.forge_names(&bad, &bad.keys.clone(), "under it", |header| {
                header.epoch = head;
            });
            assert_eq!(first.feed(&under), Inserted::Taken);
            assert!(first.replica.counts(&under.id()));
        }
        assert_eq!(mesh.write(&mut first, &format!("{round}")).len(), 1);
        bad.pull(&first);
    }
    // The keys of the last good one went to its admission's device: removing it takes one epoch, and that is good.
    mesh.remove(&mut first, bad.id());
    assert_eq!(mesh.write(&mut first, "after").len(), 1);
    let mut words = Home::new(
        &mesh.keys(),
        Replica::open_with_recovery(first.replica.space(), None, mesh.root.recovery.clone()),
    );
    words.pull(&first);
    assert!(words.texts().is_superset(&first.texts()) && words.reads("29"));
}

#[test]
fn false_envelope_in_an_admission_is_answered_by_one_epoch() {
    let (mut mesh, mut first) = Mesh::new(125);
    let mut other = mesh.join(&mut first, Role::Member, "other");
    let thief = mesh.join_admin(&mut first, "thief");
    other.pull(&first);
    let newcomer = mesh.keys();
    let SealState::Ready(epoch) = first.replica.seal_state() else {
        panic!("the first can seal");
    };
    let envelopes = [KeyPart::Holder, KeyPart::Member]
        .map(|part| {
            let sealed = Envelope::seal(
                &first.replica.space(),
                epoch,
                newcomer.agree_public(),
                part,
                &[7; 64],
            );
            sealed.unwrap()
        })
        .to_vec();
    let open = Opened {
        envelopes,
        ..Opened::default()
    };
    let entry = mesh.forge_access(
        &thief,
        &thief.keys.clone(),
        admission(&newcomer, Role::Member),
        Some(open),
        |_| {},
    );
    let mut fresh = Home::new(
        &newcomer,
        Replica::open(first.replica.space(), Some(&newcomer)),
    );
    fresh.pull(&first);
    for home in [&mut first, &mut other, &mut fresh] {
        home.feed(&entry);
    }
    for home in [&first, &other] {
        let state = home.replica.seal_state();
        assert_eq!(state, SealState::NeedsEpoch(NotReady::False));
    }
    // It has not read its own admission, which is sealed under the keys it was denied.
    let state = fresh.replica.seal_state();
    assert_eq!(state, SealState::NeedsEpoch(NotReady::NotMember));
    assert_eq!(mesh.write(&mut first, "one").len(), 2);
    assert_eq!(mesh.write(&mut first, "two").len(), 1);
    for home in [&mut other, &mut fresh] {
        home.pull(&first);
        assert_eq!(home.replica.seal_state(), first.replica.seal_state());
        assert_eq!(home.texts(), first.texts());
    }
}

#[test]
fn blind_holder_opens_no_epoch_and_writes_no_names() {
    let (mut mesh, mut first) = Mesh::new(111);
    let blind = mesh.join(&mut first, Role::Blind, "shelf");
    let before = first.replica.access().epoch_heads.clone();
    let open = epoch_for(&mut mesh, &first, &[blind.keys.agree_public()]);
    let entry = mesh.forge_access(&first, &blind.keys.clone(), None, Some(open), |_| {});
    assert!(matches!(first.feed(&entry), Inserted::Rejected(_)));
    assert_eq!(first.replica.access().epoch_heads, before);
    // Nor a megabyte of nothing where it may say that it leaves.
    let epoch = *before.first().unwrap();
    let header = mesh.header(&first, blind.id(), DocumentKind::Access, epoch);
    let long = (
        SealKind::Holder,
        Plain {
            codec: Codec::Records,
            body: Zeroizing::new(vec![0; 200_000]),
        },
    );
    let entry = mesh.forge(&first, &blind.keys.clone(), header, vec![long]);
    assert!(matches!(first.feed(&entry), Inserted::Rejected(_)));
    // Without the keys, who it is cannot be known yet; it falls once it is.
    let onlooker = DeviceKeys::generate(&mut mesh.rng);
    let mut late = Home::new(
        &onlooker,
        Replica::open(first.replica.space(), Some(&onlooker)),
    );
    late.pull(&first);
    assert_eq!(late.feed(&entry), Inserted::Taken);
    assert!(!late.replica.counts(&entry.id()));
    let (epoch, holder, member) = first.replica.epoch_parts().unwrap();
    let member = member.unwrap().to_bytes();
    late.replica.learn(epoch, &holder.to_bytes(), Some(&member));
    late.drain();
    assert!(
        !late.replica.contains(&entry.id()) || late.replica.find(&entry.id()).unwrap().thrown_out
    );
    let names = mesh.forge_names(&first, &blind.keys.clone(), "x", |_| {});
    assert!(matches!(first.feed(&names), Inserted::Rejected(_)));
}

#[test]
fn second_certificate_with_another_key_gets_nobody_the_next_keys() {
    let (mut mesh, mut first) = Mesh::new(112);
    let victim = mesh.join(&mut first, Role::Member, "victim");
    let thief = mesh.join_admin(&mut first, "thief");
    let false_key = mesh.keys();
    let swapped = Member {
        agree: false_key.agree_public(),
        ..Mesh::newcomer(&victim.keys, Role::Member, "victim")
    };
    let entry = mesh.forge_access(
        &thief,
        &thief.keys.clone(),
        Some(Sealed::Member(swapped)),
        None,
        |_| {},
    );
    first.feed(&entry);
    assert_eq!(first.replica.access().members[&victim.id()].agree, None);
    mesh.remove_by_root(&mut first, thief.id());
    mesh.write(&mut first, "secret");
    let spy = DeviceKeys::from_bytes(&{
        let mut bytes = *victim.keys.to_bytes();
        bytes[32..].copy_from_slice(&false_key.to_bytes()[32..]);
        bytes
    });
    let mut spy = Home::new(&spy, Replica::open(first.replica.space(), Some(&spy)));
    spy.pull(&first);
    assert!(!spy.reads("secret"));
    // The root's word settles it.
    let newcomer = Mesh::newcomer(&victim.keys, Role::Member, "victim");
    let now = mesh.tick();
    let entries = first
        .replica
        .admit_by_root(&mesh.root, now, &mut mesh.rng, &newcomer)
        .unwrap();
    first.keep(entries);
    mesh.write(&mut first, "for the victim");
    let mut victim = victim;
    victim.pull(&first);
    assert!(victim.reads("for the victim") && victim.reads("secret"));
}

#[test]
fn unknown_record_of_an_admin_stops_writing_and_of_a_member_does_not() {
    let (mut mesh, mut first) = Mesh::new(113);
    let member = mesh.join(&mut first, Role::Member, "member");
    let unknown = |mesh: &mut Mesh, home: &Home, signer: &DeviceKeys| {
        let header = mesh.header(home, signer.id(), DocumentKind::Access, EpochId::default());
        let mut body = Vec::new();
        push_record(&mut body, 900, b"from the future");
        let part = (
            SealKind::Open,
            Plain {
                codec: Codec::Records,
                body: Zeroizing::new(body),
            },
        );
        mesh.forge(home, signer, header, vec![part])
    };
    let entry = unknown(&mut mesh, &first, &member.keys);
    first.feed(&entry);
    mesh.write(&mut first, "still");
    let admin = mesh.join_admin(&mut first, "admin");
    let entry = unknown(&mut mesh, &admin, &admin.keys);
    first.feed(&entry);
    assert!(first.replica.access().outdated);
    assert_eq!(
        mesh.try_write(&mut first, "no").unwrap_err(),
        AuthorError::Outdated
    );
}

#[test]
fn payload_that_is_no_clean_change_counts_and_says_nothing() {
    let (mut mesh, mut first) = Mesh::new(114);
    let member = mesh.join(&mut first, Role::Member, "member");
    let keys = member.keys.clone();
    mesh.write(&mut first, "kept");
    let epoch = *first.replica.access().epoch_heads.first().unwrap();
    let mut bodies = vec![
        (Codec::Change, b"garbage".to_vec()),
        (Codec::Records, vec![]),
    ];
    let probe = mesh.header(&first, keys.id(), DocumentKind::Names, epoch);
    let mut place = Mesh::place(&first, &probe);
    place.start_op += 1;
    bodies.push((
        Codec::Change,
        document::author(&place, &[b"op".to_vec()]).unwrap(),
    ));
    place.start_op -= 1;
    place.nonce.0[0] ^= 1;
    bodies.push((
        Codec::Change,
        document::author(&place, &[b"actor".to_vec()]).unwrap(),
    ));
    let mut junk = Vec::new();
    for (codec, body) in bodies {
        let mut header = probe.clone();
        header.hlc = Hlc(header.hlc.0 + 1);
        let part = (
            SealKind::Change,
            Plain {
                codec,
                body: Zeroizing::new(body),
            },
        );
        let entry = mesh.forge(&first, &keys, header, vec![part]);
        assert_eq!(first.feed(&entry), Inserted::Taken);
        assert!(first.replica.counts(&entry.id()));
        junk.push(entry);
    }
    assert_eq!(first.texts().len(), 1);
    assert_eq!(first.replica.stats().unfit, junk.len());
    // Nobody honest builds upon it; who does says nothing either.
    assert!(
        !first
            .replica
            .heads(DocumentKind::Names)
            .contains(&junk[0].id())
    );
    let on_top = mesh.forge_names(&first, &keys, "on junk", |header| {
        header.dependencies = vec![junk[0].id()]
    });
    first.feed(&on_top);
    assert!(first.replica.counts(&on_top.id()) && !first.reads("on junk"));
    mesh.write(&mut first, "goes on");
    assert!(first.reads("goes on"));
}

#[test]
fn member_that_litters_access_with_heads_stops_nobody() {
    let (mut mesh, mut first) = Mesh::new(116);
    let litterer = mesh.join(&mut first, Role::Member, "litterer");
    let recovery = first.replica.access().recovery.unwrap();
    let all = [
        first.keys.agree_public(),
        litterer.keys.agree_public(),
        recovery,
    ];
    for round in 0..40 {
        // Half of them open epochs, all side by side.
        let open = (round % 2 == 0).then(|| epoch_for(&mut mesh, &litterer, &all));
        let sealed = open
            .is_none()
            .then(|| admission(&litterer.keys, Role::Admin))
            .flatten();
        let entry = mesh.forge_access(&litterer, &litterer.keys.clone(), sealed, open, |_| {});
        assert_eq!(first.feed(&entry), Inserted::Taken);
    }
    assert!(first.replica.heads(DocumentKind::Access).len() >= 40);
    mesh.write(&mut first, "still");
    let newcomer = mesh.join(&mut first, Role::Member, "newcomer");
    assert_eq!(newcomer.texts(), first.texts());
    mesh.remove(&mut first, litterer.id());
    mesh.write(&mut first, "quiet");
    assert!(matches!(first.replica.seal_state(), SealState::Ready(_)));
    let mut newcomer = newcomer;
    newcomer.pull(&first);
    assert!(newcomer.reads("quiet"));
}

/// It leaves keys behind that it chose itself, sent to exactly those who remain.
#[test]
fn keys_chosen_by_a_device_that_leaves_are_not_used() {
    for leaves_itself in [true, false] {
        let (mut mesh, mut first) = Mesh::new(118);
        let mut member = mesh.join(&mut first, Role::Member, "member");
        let recovery = first.replica.access().recovery.unwrap();
        let others = [first.keys.agree_public(), recovery];
        let open = epoch_for(&mut mesh, &member, &others);
        let entry = mesh.forge_access(&member, &member.keys.clone(), None, Some(open), |_| {});
        member.feed(&entry);
        assert_eq!(first.feed(&entry), Inserted::Taken);
        let chosen = first.replica.access().epoch_heads.clone();
        if leaves_itself {
            let id = member.id();
            let left = mesh.remove(&mut member, id);
            first.feed_all(&left);
            assert!(matches!(
                first.replica.seal_state(),
                SealState::NeedsEpoch(_)
            ));
        } else {
            mesh.remove(&mut first, member.id());
        }
        mesh.write(&mut first, "after");
        let SealState::Ready(epoch) = first.replica.seal_state() else {
            panic!("the one who remains can write");
        };
        assert!(!chosen.contains(&epoch));
    }
}

#[test]
fn epoch_without_parents_is_for_genesis_alone() {
    let (mut mesh, mut first) = Mesh::new(117);
    let member = mesh.join(&mut first, Role::Member, "member");
    let before = first.replica.access().epoch_heads.clone();
    let mut open = epoch_for(&mut mesh, &first, &[]);
    if let Some(record) = &mut open.epoch {
        record.parents.clear();
    }
    let alone = mesh.forge_access(
        &first,
        &member.keys.clone(),
        None,
        Some(open.clone()),
        |_| {},
    );
    open.genesis = first.replica.genesis().cloned();
    let posing = mesh.forge_access(&first, &member.keys.clone(), None, Some(open), |_| {});
    for entry in [&alone, &posing] {
        assert_eq!(first.feed(entry), Inserted::Taken);
        assert_eq!(first.replica.access().epoch_heads, before);
    }
}

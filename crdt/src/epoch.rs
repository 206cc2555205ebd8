//! Epochs: the lifetimes of a space's keys, who has them, and how one leads to those before it.
//!
//! Spec: `protocol/spec/epoch.md`, "Epoch".

mod keys;
mod record;
mod ring;

pub use keys::{HolderPart, MemberPart, PART_LEN};
pub use record::{ENVELOPES_MAX, Envelope, EpochRecord, KeyPart, LINKS_MAX, Link, PARENTS_MAX};
pub use ring::KeyRing;

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::id::SpaceId;
    use kith_object::key::{AgreeSecret, Rng};

    struct Epoch {
        record: EpochRecord,
        holder: HolderPart,
        member: MemberPart,
    }

    fn epoch(parents: &[&Epoch], space: &SpaceId, rng: &mut Rng) -> Epoch {
        let (holder, member) = (HolderPart::generate(rng), MemberPart::generate(None, rng));
        let mut parents: Vec<_> = parents
            .iter()
            .map(|parent| parent.record.id(space))
            .collect();
        parents.sort_unstable();
        let record = EpochRecord {
            holder: holder.commitment(),
            member: member.commitment(),
            parents,
        };
        Epoch {
            record,
            holder,
            member,
        }
    }

    fn links(from: &Epoch, to: &Epoch, space: &SpaceId, rng: &mut Rng) -> [Link; 2] {
        let (id, earlier) = (from.record.id(space), to.record.id(space));
        [
            Link::seal(
                space,
                (id, &from.holder.key),
                (earlier, &to.holder.to_bytes()),
                KeyPart::Holder,
                rng,
            ),
            Link::seal(
                space,
                (id, &from.member.change),
                (earlier, &to.member.to_bytes()),
                KeyPart::Member,
                rng,
            ),
        ]
    }

    #[test]
    fn last_key_opens_all_before_it_in_whatever_order_things_come() {
        let mut rng = Rng::from_seed([1; 32]);
        let space = SpaceId([2; 32]);
        let first = epoch(&[], &space, &mut rng);
        let second = epoch(&[&first], &space, &mut rng);
        let third = epoch(&[&second], &space, &mut rng);
        let secret = AgreeSecret::from_bytes(rng.bytes());
        let to_second = links(&third, &second, &space, &mut rng);
        let to_first = links(&second, &first, &space, &mut rng);
        let envelope = |part, keys: &[u8; PART_LEN]| {
            Envelope::seal(&space, third.record.id(&space), secret.public(), part, keys).unwrap()
        };
        let for_holder = envelope(KeyPart::Holder, &third.holder.to_bytes());
        let for_member = envelope(KeyPart::Member, &third.member.to_bytes());
        assert_eq!(
            for_member,
            envelope(KeyPart::Member, &third.member.to_bytes()),
            "whoever has the part makes the same envelope"
        );
        type Step<'a> = Box<dyn Fn(&mut KeyRing) + 'a>;
        let mut steps: Vec<Step<'_>> = Vec::new();
        for epoch in [&first, &second, &third] {
            steps.push(Box::new(|ring| ring.add_record(&epoch.record)));
        }
        for link in to_second.iter().chain(&to_first) {
            steps.push(Box::new(move |ring| ring.add_link(link)));
        }
        for envelope in [&for_holder, &for_member] {
            steps.push(Box::new(move |ring| ring.add_envelope(envelope)));
        }
        for _ in 0..200 {
            for at in (1..steps.len()).rev() {
                let other = usize::try_from(rng.below(at as u64 + 1)).unwrap();
                steps.swap(at, other);
            }
            let mut ring = KeyRing::new(space, vec![secret.clone()]);
            for step in &steps {
                step(&mut ring);
            }
            for epoch in [&first, &second, &third] {
                let id = epoch.record.id(&space);
                assert_eq!(ring.holder(&id), Some(&epoch.holder));
                assert_eq!(ring.member(&id), Some(&epoch.member));
            }
            for part in [KeyPart::Holder, KeyPart::Member] {
                assert_eq!(ring.reached([third.record.id(&space)], part).len(), 3);
            }
        }
    }

    #[test]
    fn holder_part_leads_to_no_member_part_and_earlier_keys_to_no_later_ones() {
        let mut rng = Rng::from_seed([3; 32]);
        let space = SpaceId([4; 32]);
        let first = epoch(&[], &space, &mut rng);
        let second = epoch(&[&first], &space, &mut rng);
        let (one, two) = (first.record.id(&space), second.record.id(&space));
        let back = links(&second, &first, &space, &mut rng);
        let mut blind = KeyRing::new(space, Vec::new());
        let mut removed = KeyRing::new(space, Vec::new());
        for ring in [&mut blind, &mut removed] {
            ring.add_record(&first.record);
            ring.add_record(&second.record);
            back.iter().for_each(|link| ring.add_link(link));
        }
        blind.give(two, KeyPart::Holder, &second.holder.to_bytes());
        assert!(
            blind.holder(&one).is_some()
                && blind.member(&one).is_none()
                && blind.member(&two).is_none()
        );
        removed.give(one, KeyPart::Holder, &first.holder.to_bytes());
        removed.give(one, KeyPart::Member, &first.member.to_bytes());
        assert!(removed.holder(&two).is_none() && removed.member(&two).is_none());
        // Together they have what each has.
        removed.give(two, KeyPart::Holder, &second.holder.to_bytes());
        assert!(removed.member(&two).is_none());
    }

    #[test]
    fn keys_that_an_epoch_does_not_commit_to_are_not_taken() {
        let mut rng = Rng::from_seed([5; 32]);
        let space = SpaceId([6; 32]);
        let first = epoch(&[], &space, &mut rng);
        let liar = epoch(&[&first], &space, &mut rng);
        let (one, other) = (first.record.id(&space), liar.record.id(&space));
        let mut ring = KeyRing::new(space, Vec::new());
        ring.add_record(&first.record);
        ring.add_record(&liar.record);
        ring.give(one, KeyPart::Holder, &liar.holder.to_bytes());
        ring.give(one, KeyPart::Member, &first.holder.to_bytes());
        assert!(ring.holder(&one).is_none() && ring.member(&one).is_none());
        let false_link = Link::seal(
            &space,
            (other, &liar.holder.key),
            (one, &[9; 64]),
            KeyPart::Holder,
            &mut rng,
        );
        ring.add_link(&false_link);
        ring.give(other, KeyPart::Holder, &liar.holder.to_bytes());
        assert!(ring.holder(&other).is_some() && ring.holder(&one).is_none());
        assert_eq!(
            ring.reached([other], KeyPart::Holder).len(),
            1,
            "a false link leads nowhere"
        );
        ring.give(one, KeyPart::Holder, &first.holder.to_bytes());
        assert!(ring.holder(&one).is_some());
    }
}

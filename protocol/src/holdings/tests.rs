//! Several machines, connected as the tests want; liars; vectors.

use data_encoding::HEXLOWER;
use kith_object::key::Rng;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const SPACE: SpaceId = SpaceId([9; 32]);
const START: Time = Time(1_700_000_000_000);

fn keys(n: u8) -> DeviceKeys {
    DeviceKeys::generate(&mut Rng::from_seed([n; 32]))
}

fn tag(n: u64) -> HoldingTag {
    HoldingTag(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn tags(range: std::ops::Range<u64>) -> Vec<HoldingTag> {
    range.map(tag).collect()
}

/// Machines that hand over frames at once, each in order.
struct Mesh {
    now: Time,
    machines: BTreeMap<DeviceId, Holdings>,
    links: BTreeSet<(DeviceId, DeviceId)>,
    bytes: usize,
    news: BTreeMap<DeviceId, usize>,
}

impl Mesh {
    fn new(count: u8) -> (Self, Vec<DeviceId>) {
        let ids: Vec<DeviceId> = (1..=count).map(|n| keys(n).id()).collect();
        let members: BTreeSet<DeviceId> = ids.iter().copied().collect();
        let machines = (1..=count).map(|n| {
            let mut machine = Holdings::new(keys(n), SPACE);
            machine.handle(START, Input::Members(members.clone()));
            (keys(n).id(), machine)
        });
        let mesh = Self {
            now: START,
            machines: machines.collect(),
            links: BTreeSet::new(),
            bytes: 0,
            news: BTreeMap::new(),
        };
        (mesh, ids)
    }

    fn feed(&mut self, device: DeviceId, input: Input) {
        let now = self.now;
        self.machines.get_mut(&device).unwrap().handle(now, input);
        self.settle();
    }

    fn connect(&mut self, one: DeviceId, other: DeviceId) {
        self.links.insert((one, other));
        self.links.insert((other, one));
        self.feed(one, Input::PeerUp(other));
        self.feed(other, Input::PeerUp(one));
    }

    fn part(&mut self, one: DeviceId, other: DeviceId) {
        self.links.remove(&(one, other));
        self.links.remove(&(other, one));
        self.feed(one, Input::PeerDown(other));
        self.feed(other, Input::PeerDown(one));
    }

    fn settle(&mut self) {
        loop {
            let mut frames = Vec::new();
            for (device, machine) in &mut self.machines {
                machine.check_invariants();
                while let Some(effect) = machine.poll_effect() {
                    match effect {
                        Effect::Send { peer, bytes } => frames.push((*device, peer, bytes)),
                        Effect::News { .. } => *self.news.entry(*device).or_default() += 1,
                        Effect::Disconnect { reason, .. } => panic!("{reason}"),
                    }
                }
            }
            if frames.is_empty() {
                return;
            }
            for (from, to, bytes) in frames {
                let len = bytes.len();
                self.bytes += len;
                let now = self.now;
                let sender = self.machines.get_mut(&from).unwrap();
                sender.handle(now, Input::Flushed { peer: to, len });
                if self.links.contains(&(from, to)) {
                    let receiver = self.machines.get_mut(&to).unwrap();
                    receiver.handle(now, Input::Frame { peer: from, bytes });
                }
            }
        }
    }

    /// Lets time pass, waking whoever is due.
    fn pass(&mut self, span: Span) {
        let until = self.now + span;
        loop {
            let due = self
                .machines
                .values()
                .filter_map(Holdings::next_wakeup)
                .min();
            let Some(due) = due.filter(|due| *due <= until) else {
                break;
            };
            self.now = self.now.max(due);
            let now = self.now;
            for machine in self.machines.values_mut() {
                if machine.next_wakeup().is_some_and(|due| due <= now) {
                    machine.handle(now, Input::Wake);
                }
            }
            self.settle();
        }
        self.now = until;
    }

    fn sees(&self, who: DeviceId, whose: DeviceId) -> Vec<HoldingTag> {
        let set = self.machines[&who].of(&whose);
        set.map(|set| set.iter().collect()).unwrap_or_default()
    }
}

fn sorted(mut tags: Vec<HoldingTag>) -> Vec<HoldingTag> {
    tags.sort_unstable();
    tags
}

#[test]
fn what_one_holds_is_known_to_all_within_seconds() {
    let (mut mesh, ids) = Mesh::new(4);
    for (at, one) in ids.iter().enumerate() {
        for other in &ids[..at] {
            mesh.connect(*one, *other);
        }
    }
    for (n, device) in (0_u64..).zip(&ids) {
        mesh.feed(*device, Input::Own(tags(n * 1000..n * 1000 + 300)));
    }
    mesh.pass(Span::from_secs(3));
    for one in &ids {
        for (n, other) in (0_u64..).zip(&ids) {
            assert_eq!(
                mesh.sees(*one, *other),
                sorted(tags(n * 1000..n * 1000 + 300))
            );
        }
    }
    // One more of 300, one less: a bucket each, not the set.
    let before = mesh.bytes;
    let (added, removed) = (vec![tag(77_777)], vec![tag(5)]);
    mesh.feed(ids[0], Input::Changed { added, removed });
    mesh.pass(Span::from_secs(3));
    let seen = mesh.sees(ids[3], ids[0]);
    assert!(seen.contains(&tag(77_777)) && !seen.contains(&tag(5)) && seen.len() == 300);
    let each = (mesh.bytes - before) / 3;
    assert!(each < 1500, "{each} bytes to each for one change");
}

#[test]
fn who_was_away_learns_it_from_anybody() {
    let (mut mesh, ids) = Mesh::new(3);
    let [laptop, server, phone] = ids[..] else {
        panic!("three")
    };
    mesh.connect(laptop, server);
    mesh.feed(laptop, Input::Own(tags(0..5000)));
    mesh.pass(Span::from_secs(3));
    let heard = mesh.machines[&server].heard(&laptop).unwrap();
    mesh.part(laptop, server);
    mesh.pass(Span::from_secs(7 * 86_400));
    mesh.connect(phone, server);
    assert_eq!(mesh.sees(phone, laptop), sorted(tags(0..5000)));
    assert_eq!(
        mesh.machines[&phone].heard(&laptop),
        Some(heard),
        "a week ago"
    );
    // Nothing is said again where both know the same.
    let before = mesh.bytes;
    mesh.pass(Span::from_secs(600));
    assert!(mesh.bytes - before < 1000, "{}", mesh.bytes - before);
}

#[test]
fn a_sign_of_life_comes_every_hour_and_moves_no_tags() {
    let (mut mesh, ids) = Mesh::new(2);
    mesh.connect(ids[0], ids[1]);
    mesh.feed(ids[0], Input::Own(tags(0..100_000)));
    mesh.pass(Span::from_secs(3));
    let before = mesh.bytes;
    mesh.pass(Span::from_secs(86_400));
    let heard = mesh.machines[&ids[1]].heard(&ids[0]).unwrap();
    assert!(mesh.now.since(heard) <= ANEW);
    assert!(
        mesh.bytes - before < 150_000,
        "{} bytes a day",
        mesh.bytes - before
    );
}

#[test]
fn a_restored_backup_outdoes_what_it_said_before() {
    let (mut mesh, ids) = Mesh::new(2);
    mesh.connect(ids[0], ids[1]);
    mesh.feed(ids[0], Input::Own(tags(0..50)));
    mesh.pass(Span::from_secs(3));
    mesh.part(ids[0], ids[1]);
    // It comes back with less, and a clock that is a year behind.
    let mut back = Holdings::new(keys(1), SPACE);
    let past = Time(START.0 - 31_536_000_000);
    back.handle(past, Input::Members(ids.iter().copied().collect()));
    back.handle(past, Input::Own(tags(0..20)));
    back.handle(past + Span::from_secs(3), Input::Wake);
    while back.poll_effect().is_some() {}
    mesh.machines.insert(ids[0], back);
    mesh.connect(ids[0], ids[1]);
    mesh.pass(Span::from_secs(60));
    assert_eq!(mesh.sees(ids[1], ids[0]), sorted(tags(0..20)));
}

#[test]
fn what_is_known_outlasts_a_restart_and_is_signed() {
    let (mut mesh, ids) = Mesh::new(2);
    mesh.connect(ids[0], ids[1]);
    mesh.feed(ids[0], Input::Own(tags(0..3000)));
    mesh.pass(Span::from_secs(3));
    let kept = mesh.machines[&ids[1]].encode();
    let reopened = |kept: &[u8]| {
        let mut machine = Holdings::new(keys(2), SPACE);
        machine.handle(mesh.now, Input::Members(ids.iter().copied().collect()));
        machine.recall(kept);
        machine.check_invariants();
        machine.of(&ids[0]).map_or(0, TagSet::len)
    };
    assert_eq!(reopened(&kept), 3000);
    for place in (0..kept.len()).step_by(97) {
        let mut altered = kept.clone();
        altered[place] ^= 1;
        // The time it was heard is this device's own word.
        let own_word = (12..20).contains(&place);
        assert!(own_word || reopened(&altered) == 0, "byte {place}");
    }
    assert_eq!(reopened(&kept[..kept.len() - 1]), 0);
    assert_eq!(reopened(b""), 0);
}

#[test]
fn removed_devices_are_forgotten_and_strangers_never_known() {
    let (mut mesh, ids) = Mesh::new(2);
    mesh.connect(ids[0], ids[1]);
    mesh.feed(ids[0], Input::Own(tags(0..10)));
    mesh.pass(Span::from_secs(3));
    mesh.feed(ids[1], Input::Members([ids[1]].into()));
    assert!(mesh.machines[&ids[1]].of(&ids[0]).is_none());
    let stranger = Head::sign(&keys(7), &SPACE, START.0, &TagSet::of(tags(0..3)));
    let bytes = Message::Head(stranger).encode().into();
    mesh.feed(
        ids[1],
        Input::Frame {
            peer: ids[0],
            bytes,
        },
    );
    mesh.pass(Span::from_secs(60));
    assert!(mesh.machines[&ids[1]].of(&keys(7).id()).is_none());
}

/// A machine with a peer that lies about another device.
fn lied_to(give: impl Fn(&DeviceKeys) -> Give) -> (Holdings, Vec<Effect>) {
    let (liar, other) = (keys(1), keys(2));
    let mut machine = Holdings::new(keys(3), SPACE);
    let members = [liar.id(), other.id(), keys(3).id()].into();
    machine.handle(START, Input::Members(members));
    machine.handle(START, Input::PeerUp(liar.id()));
    let peer = liar.id();
    let stamps = Message::Stamps(vec![(other.id(), START.0)]).encode();
    let bytes = stamps.into();
    machine.handle(START, Input::Frame { peer, bytes });
    let bytes = Message::Give(give(&other)).encode().into();
    machine.handle(START, Input::Frame { peer, bytes });
    machine.check_invariants();
    let effects = std::iter::from_fn(|| machine.poll_effect()).collect();
    (machine, effects)
}

#[test]
fn holdings_that_their_device_did_not_sign_are_refused() {
    let other = keys(2).id();
    let set = TagSet::of(tags(0..40));
    let honest = |keys: &DeviceKeys| Give {
        head: Head::sign(keys, &SPACE, START.0, &TagSet::of(tags(0..40))),
        next: None,
        buckets: all_buckets(&TagSet::of(tags(0..40))),
    };
    let (machine, _) = lied_to(honest);
    assert_eq!(machine.of(&other), Some(&set));
    let cuts = |effects: &[Effect]| {
        let is_cut = |effect: &Effect| matches!(effect, Effect::Disconnect { .. });
        effects.iter().any(is_cut)
    };
    type Lie = fn(&mut Give, &DeviceKeys);
    let lies: [(&str, Lie); 6] = [
        ("a tag more", |give, _| {
            let (at, tags) = give.buckets.last_mut().unwrap();
            let last = tags.last().unwrap().0;
            assert_eq!(*at, 7);
            tags.push(HoldingTag(last + 1));
        }),
        ("a bucket less", |give, _| drop(give.buckets.pop())),
        ("another place", |give, _| {
            give.buckets.pop();
            give.buckets.last_mut().unwrap().0 = 7;
        }),
        ("signed for another mesh", |give, keys| {
            let set = TagSet::of(tags(0..40));
            give.head = Head::sign(keys, &SpaceId([1; 32]), START.0, &set);
        }),
        ("signed by another", |give, keys_of| {
            let set = TagSet::of(tags(0..40));
            give.head = Head::sign(&keys(1), &SPACE, START.0, &set);
            give.head.device = keys_of.id();
        }),
        ("a set that is not what the root says", |give, keys| {
            let set = TagSet::of(tags(1..41));
            give.head = Head::sign(keys, &SPACE, START.0, &set);
        }),
    ];
    for (name, lie) in lies {
        let (machine, effects) = lied_to(|keys| {
            let mut give = honest(keys);
            lie(&mut give, keys);
            give
        });
        assert!(machine.of(&other).is_none(), "{name}");
        assert!(cuts(&effects), "{name}");
    }
}

#[test]
fn who_asks_without_end_gets_no_more_than_its_share() {
    let (mut mesh, ids) = Mesh::new(2);
    mesh.connect(ids[0], ids[1]);
    mesh.feed(ids[0], Input::Own(tags(0..60_000)));
    mesh.pass(Span::from_secs(3));
    let machine = mesh.machines.get_mut(&ids[0]).unwrap();
    let ask = Message::Ask {
        device: ids[0],
        depth: 0,
        hashes: Vec::new(),
        from: 0,
    };
    let bytes = Bytes::from(ask.encode());
    let (mut given, mut unflushed) = (0, 0);
    for round in 0..10_000_u64 {
        let now = mesh.now + Span::from_ms(round);
        let (peer, bytes) = (ids[1], bytes.clone());
        machine.handle(now, Input::Frame { peer, bytes });
        while let Some(effect) = machine.poll_effect() {
            if let Effect::Send { bytes, .. } = effect {
                given += 1;
                unflushed += bytes.len();
            }
        }
        machine.check_invariants();
        // It reads now and then.
        if round % 1000 == 999 {
            let (peer, len) = (ids[1], unflushed);
            machine.handle(now, Input::Flushed { peer, len });
            unflushed = 0;
        }
    }
    assert!((10..=60).contains(&given), "{given}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever changes, whoever is cut off meanwhile: in the end all know what each holds.
    #[test]
    fn all_know_the_newest_in_the_end(
        steps in prop::collection::vec((0usize..4, 0usize..4, 0u64..400, 0u64..200, any::<bool>()), 1..40),
    ) {
        let (mut mesh, ids) = Mesh::new(4);
        for (at, device) in ids.iter().enumerate() {
            mesh.feed(*device, Input::Own(tags(0..at as u64 * 40)));
        }
        for (one, other, from, len, up) in steps {
            if one != other {
                let (one, other) = (ids[one], ids[other]);
                if up && !mesh.links.contains(&(one, other)) {
                    mesh.connect(one, other);
                } else if !up && mesh.links.contains(&(one, other)) {
                    mesh.part(one, other);
                }
            } else if up {
                let added = tags(from..from + len);
                mesh.feed(ids[one], Input::Changed { added, removed: Vec::new() });
            } else {
                let removed = tags(from..from + len);
                mesh.feed(ids[one], Input::Changed { added: Vec::new(), removed });
            }
            mesh.pass(Span::from_secs(1));
        }
        // A line of devices is enough.
        for pair in ids.windows(2) {
            if !mesh.links.contains(&(pair[0], pair[1])) {
                mesh.connect(pair[0], pair[1]);
            }
        }
        mesh.pass(Span::from_secs(300));
        for one in &ids {
            for other in &ids {
                prop_assert_eq!(mesh.sees(*one, *other), mesh.sees(*other, *other));
            }
        }
    }

    #[test]
    fn frames_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 1u8..6) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(message.encode(), bytes.clone());
        }
        let mut framed = bytes;
        if let Some(first) = framed.first_mut() {
            *first = kind;
        }
        if let Ok(message) = Message::decode(&framed) {
            prop_assert_eq!(message.encode(), framed);
        }
    }
}

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/vectors/holdings.json"
);

fn cases() -> Vec<Value> {
    let keys = keys(7);
    let mut cases = Vec::new();
    for len in [0, 1, 3, 40] {
        let set = TagSet::of(tags(0..len));
        cases.push(json!({
            "name": format!("a set of {len}"),
            "kind": "set",
            "expect": "ok",
            "tags": set.iter().map(|tag| format!("{:016x}", tag.0)).collect::<Vec<_>>(),
            "depth": set.depth(),
            "root": HEXLOWER.encode(&set.root()),
        }));
    }
    let mut message = |name: &str, bytes: Vec<u8>| {
        let read = Message::decode(&bytes);
        let said = read
            .as_ref()
            .map_or_else(ToString::to_string, |_| "ok".into());
        let signed = match read {
            Ok(Message::Head(head) | Message::Give(Give { head, .. })) => {
                Value::from(head.is_signed(&SPACE))
            }
            _ => Value::Null,
        };
        cases.push(json!({
            "name": name,
            "kind": "message",
            "expect": said,
            "space": HEXLOWER.encode(&SPACE.0),
            "signed": signed,
            "bytes": HEXLOWER.encode(&bytes),
        }));
    };
    let set = TagSet::of(tags(0..3));
    let head = Head::sign(&keys, &SPACE, START.0, &set);
    let give = Message::Give(Give {
        head: head.clone(),
        next: None,
        buckets: all_buckets(&set),
    })
    .encode();
    let head = Message::Head(head).encode();
    message("a head", head.clone());
    message("a give", give.clone());
    message("a summary", Message::Summary([3; 16]).encode());
    let stamps = Message::Stamps(vec![(DeviceId([1; 32]), 5), (DeviceId([2; 32]), 4)]).encode();
    message("stamps", stamps.clone());
    let ask = Message::Ask {
        device: keys.id(),
        depth: set.depth(),
        hashes: set.hashes().to_vec(),
        from: 1,
    }
    .encode();
    message("an ask", ask.clone());
    let altered = |bytes: &[u8], place: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        bytes[place] = byte;
        bytes
    };
    message("nothing", Vec::new());
    message("no known kind", vec![9]);
    message("signature altered", altered(&head, 145, head[145] ^ 1));
    message("stamp of years to come", altered(&head, 40, 0x40));
    message("reserved bits", altered(&head, 46, 1));
    message("depth out of range", altered(&head, 45, 13));
    message("a byte behind", [&head[..], &[0]].concat());
    message("cut short", head[..head.len() - 1].to_vec());
    message("devices not in order", altered(&stamps, 5, 3));
    message("hashes that are not of that depth", altered(&ask, 33, 3));
    message(
        "goes on where it has been",
        altered(&altered(&give, 147, 0), 146, 0),
    );
    message("a bucket that is none", altered(&give, 150, 9));
    cases
}

#[test]
fn vectors_hold() {
    let today = cases();
    if std::env::var_os("KITH_BLESS").is_some() {
        std::fs::write(FILE, format!("{:#}\n", Value::from(today.clone()))).unwrap();
    }
    let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
    assert_eq!(kept, today);
}

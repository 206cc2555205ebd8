//! A few devices, joined by nothing but this file.

use kith_crdt::names::TreePath;
use kith_crdt::replica::Resealed;
use kith_object::key::Words;
use kith_object::object::ObjectLink;
use kith_object::seal::BlockKey;
use kith_object::tree::FileKind;

use super::*;

/// Devices, what is on their disks, and who is connected.
struct Mesh {
    root: RootKeys,
    now: Time,
    devices: Vec<Device>,
    logs: Vec<Vec<(EntryId, Bytes)>>,
    links: BTreeSet<(usize, usize)>,
    done: BTreeMap<u64, Result<(), CommandError>>,
    settled: BTreeSet<usize>,
    next: u64,
}

fn newcomer(keys: &DeviceKeys, role: Role, name: &str) -> Newcomer {
    Newcomer {
        device: keys.id(),
        agree: keys.agree_public(),
        role,
        name: name.to_owned(),
    }
}

fn setup(keys: &DeviceKeys, space: SpaceId, unsettled: bool) -> Setup {
    Setup {
        keys: keys.clone(),
        space,
        seed: keys.id().0,
        spread_entries: true,
        connections: 64,
        unsettled,
        anti_entropy: true,
        resealed: Resealed::default(),
    }
}

impl Mesh {
    /// One mesh with these roles, the first an admin; all know each other's admission and nobody is connected.
    fn new(roles: &[Role]) -> Self {
        let mut rng = Rng::from_seed([7; 32]);
        let now = Time(1_000_000);
        let root = Words::generate(&mut rng).root();
        let keys: Vec<DeviceKeys> = roles
            .iter()
            .map(|_| DeviceKeys::generate(&mut rng))
            .collect();
        let (mut replica, mut entries) =
            Replica::create(&root, &keys[0], "d0", now, &mut rng).unwrap();
        for (place, role) in roles.iter().enumerate().skip(1) {
            let newcomer = newcomer(&keys[place], *role, &format!("d{place}"));
            let admitted = if *role == Role::Admin {
                replica.admit_by_root(&root, now, &mut rng, &newcomer)
            } else {
                replica.admit(&keys[0], now, &mut rng, &newcomer)
            };
            entries.extend(admitted.unwrap());
        }
        let log: Vec<(EntryId, Bytes)> = entries
            .iter()
            .map(|entry| (entry.id(), Bytes::from(entry.encode())))
            .collect();
        let bytes: Vec<Bytes> = log.iter().map(|(_, bytes)| bytes.clone()).collect();
        let devices = keys
            .iter()
            .map(|keys| Device::open(now, setup(keys, replica.space(), false), &bytes))
            .collect();
        let mut mesh = Self {
            root,
            now,
            devices,
            logs: vec![log; roles.len()],
            links: BTreeSet::new(),
            done: BTreeMap::new(),
            settled: BTreeSet::new(),
            next: 1,
        };
        mesh.run();
        mesh
    }

    fn id(&self, place: usize) -> DeviceId {
        self.devices[place].id()
    }

    fn place(&self, id: &DeviceId) -> usize {
        let found = self.devices.iter().position(|device| device.id() == *id);
        found.unwrap()
    }

    fn connect(&mut self, one: usize, other: usize) {
        self.links.extend([(one, other), (other, one)]);
        let ids = (self.id(one), self.id(other));
        self.handle(one, Input::Connected(ids.1));
        self.handle(other, Input::Connected(ids.0));
        self.settle_down();
    }

    fn disconnect(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            if self.links.remove(&(from, to)) {
                let gone = self.id(to);
                self.handle(from, Input::Disconnected(gone));
            }
        }
        self.run();
    }

    fn handle(&mut self, place: usize, input: Input) {
        let now = self.now;
        self.devices[place].handle(now, input);
        self.devices[place].check_invariants();
    }

    fn command(&mut self, place: usize, command: Command) -> Result<(), CommandError> {
        let request = self.next;
        self.next += 1;
        self.handle(place, Input::Command { request, command });
        self.run();
        self.done.remove(&request).unwrap()
    }

    fn remove(&mut self, by: usize, out: usize, force: bool) -> Result<(), CommandError> {
        let removal = Removal {
            device: self.id(out),
            root: None,
            force,
        };
        self.command(by, Command::Remove(removal))
    }

    fn write(&mut self, place: usize, name: &str) -> Result<(), CommandError> {
        let link = ObjectLink {
            digest: derive("kith test 1", name.as_bytes()),
            key: BlockKey::new([3; 32]),
            size: 9,
        };
        let secret = self.devices[place].replica().dedup_secrets().remove(0);
        self.write_sealed(place, name, link, secret)
    }

    fn write_sealed(
        &mut self,
        place: usize,
        name: &str,
        link: ObjectLink,
        secret: Secret,
    ) -> Result<(), CommandError> {
        let changes = vec![Change::File {
            path: TreePath::parse(name.as_bytes()).unwrap(),
            kind: FileKind::File,
            link,
            mtime_ms: 0,
            mode: 0o644,
        }];
        self.command(
            place,
            Command::Change {
                changes,
                sealed_under: Some(secret),
            },
        )
    }

    fn sees(&self, place: usize, name: &str) -> bool {
        let path = TreePath::parse(name.as_bytes()).unwrap();
        self.devices[place].tree().resolve(&path).is_some()
    }

    /// Does all there is to do now.
    fn run(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for place in 0..self.devices.len() {
                while let Some(effect) = self.devices[place].poll_effect() {
                    busy = true;
                    self.perform(place, effect);
                }
            }
        }
    }

    /// Lets a minute go by.
    fn settle_down(&mut self) {
        let until = self.now + Span::from_secs(60);
        self.run();
        loop {
            let due = self.devices.iter().filter_map(Device::next_wakeup).min();
            let Some(due) = due.filter(|due| *due <= until) else {
                break;
            };
            self.now = self.now.max(due);
            for place in 0..self.devices.len() {
                let at = self.devices[place].next_wakeup();
                if at.is_some_and(|at| at <= self.now) {
                    self.handle(place, Input::Wake);
                }
            }
            self.run();
        }
        self.now = until;
    }

    fn perform(&mut self, place: usize, effect: Effect) {
        let me = self.id(place);
        match effect {
            Effect::Append { number, id, entry } => {
                self.logs[place].push((id, entry));
                self.handle(place, Input::Appended(number));
            }
            Effect::LoadEntries { token, ids } => {
                let entries = self.logs[place]
                    .iter()
                    .filter(|(id, _)| ids.contains(id))
                    .cloned()
                    .collect();
                self.handle(place, Input::LoadedEntries { token, entries });
            }
            Effect::Send {
                peer,
                channel,
                message,
            } => {
                let bytes = message.into_bytes();
                let len = bytes.len();
                self.handle(place, Input::Flushed { peer, channel, len });
                let to = self.place(&peer);
                if self.links.contains(&(place, to)) {
                    self.handle(
                        to,
                        Input::Received {
                            peer: me,
                            channel,
                            bytes,
                        },
                    );
                }
            }
            Effect::Publish(bytes) => {
                for to in 0..self.devices.len() {
                    if self.links.contains(&(place, to)) {
                        let published = Input::Published {
                            from: me,
                            message: Bytes::new(),
                            bytes: bytes.clone(),
                        };
                        self.handle(to, published);
                    }
                }
            }
            Effect::Disconnect { peer, .. } => {
                let other = self.place(&peer);
                self.disconnect(place, other);
            }
            Effect::Done { request, outcome } => {
                self.done.insert(request, outcome);
            }
            Effect::Settled => {
                self.settled.insert(place);
            }
            _ => {}
        }
    }
}

#[test]
fn device_that_is_behind_removes_only_when_forced() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member, Role::Member]);
    // The third writes, the second hears of it, the first does not.
    mesh.connect(1, 2);
    mesh.write(2, "/late").unwrap();
    mesh.settle_down();
    assert!(mesh.sees(1, "/late"));
    mesh.disconnect(1, 2);
    assert!(matches!(
        mesh.remove(0, 2, false),
        Err(CommandError::Behind)
    ));
    assert!(mesh.devices[0].access().is_member(&mesh.id(2)));
    // Once it has agreed with the second, all of that counts.
    mesh.connect(0, 1);
    mesh.remove(0, 2, false).unwrap();
    mesh.settle_down();
    assert!(mesh.sees(0, "/late") && mesh.sees(1, "/late"));
    assert_eq!(mesh.devices[0].digest(), mesh.devices[1].digest());
    assert!(!mesh.devices[1].access().is_member(&mesh.id(2)));
}

#[test]
fn agreement_of_long_ago_does_not_count_but_force_does() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member, Role::Member]);
    mesh.connect(0, 1);
    mesh.disconnect(0, 1);
    for _ in 0..20 {
        mesh.settle_down();
    }
    assert!(matches!(
        mesh.remove(0, 2, false),
        Err(CommandError::Behind)
    ));
    mesh.remove(0, 2, true).unwrap();
    // With only itself and the lost one left there is nobody to ask.
    mesh.remove(0, 1, false).unwrap();
}

#[test]
fn who_came_by_the_words_seals_nothing_before_it_agrees_with_another() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member, Role::Admin]);
    let bytes: Vec<Bytes> = mesh.logs[2]
        .iter()
        .map(|(_, bytes)| bytes.clone())
        .collect();
    let keys = mesh.devices[2].keys.clone();
    let space = mesh.devices[2].replica().space();
    mesh.devices[2] = Device::open(mesh.now, setup(&keys, space, true), &bytes);
    // The first removes the second; the third, fresh from an older door, does not know.
    mesh.remove(0, 1, true).unwrap();
    assert!(matches!(
        mesh.write(2, "/early"),
        Err(CommandError::Unsettled)
    ));
    assert!(matches!(
        mesh.command(2, Command::Born(Vec::new())),
        Err(CommandError::Unsettled)
    ));
    assert!(!mesh.settled.contains(&2));
    mesh.connect(0, 2);
    assert!(mesh.settled.contains(&2));
    mesh.write(2, "/early").unwrap();
    mesh.settle_down();
    assert!(mesh.sees(0, "/early"));
}

#[test]
fn last_device_by_the_words_may_remove_the_lost_ones_and_go_on() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Admin]);
    let bytes: Vec<Bytes> = mesh.logs[1]
        .iter()
        .map(|(_, bytes)| bytes.clone())
        .collect();
    let keys = mesh.devices[1].keys.clone();
    let space = mesh.devices[1].replica().space();
    mesh.devices[1] = Device::open(mesh.now, setup(&keys, space, true), &bytes);
    assert!(matches!(mesh.write(1, "/a"), Err(CommandError::Unsettled)));
    let words = Box::new(RootKeys::clone(&mesh.root));
    let device = mesh.id(0);
    let removal = |root| Removal {
        device,
        root,
        force: true,
    };
    // An admin goes by the words only.
    assert!(matches!(
        mesh.command(1, Command::Remove(removal(None))),
        Err(CommandError::Author(AuthorError::NotAllowed))
    ));
    mesh.command(1, Command::Remove(removal(Some(words))))
        .unwrap();
    mesh.write(1, "/a").unwrap();
    assert!(mesh.sees(1, "/a"));
}

#[test]
fn stolen_admin_is_removed_by_the_words() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Admin, Role::Member]);
    mesh.connect(0, 1);
    mesh.connect(0, 2);
    let removal = Removal {
        device: mesh.id(1),
        root: Some(Box::new(RootKeys::clone(&mesh.root))),
        force: false,
    };
    assert!(!format!("{removal:?}").contains("RootKeys"));
    mesh.command(0, Command::Remove(removal)).unwrap();
    mesh.settle_down();
    assert!(mesh.devices[2].access().removed.contains_key(&mesh.id(1)));
    assert!(!mesh.links.contains(&(0, 1)), "it is cut off");
    mesh.write(2, "/after").unwrap();
    mesh.settle_down();
    assert!(mesh.sees(0, "/after"));
    assert!(!mesh.sees(1, "/after"));
}

#[test]
fn entries_that_cannot_be_read_come_again_from_whoever_has_them() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member, Role::Member]);
    for name in ["/a", "/b", "/c"] {
        mesh.write(0, name).unwrap();
    }
    // The third device has them; the second will have what it is given.
    mesh.connect(0, 2);
    mesh.disconnect(0, 2);
    let before = mesh.devices[0].digest();
    let lost = std::mem::take(&mut mesh.logs[0]);
    let ids: Vec<EntryId> = lost.iter().map(|(id, _)| *id).collect();
    mesh.handle(0, Input::Unreadable(ids.clone()));
    mesh.run();
    // Of access all is in memory; the rest is no longer said to be here.
    let access = mesh.devices[0].replica().access_entries();
    let again: BTreeSet<EntryId> = mesh.logs[0].iter().map(|(id, _)| *id).collect();
    assert_eq!(again, access.into_iter().collect());
    assert_eq!(mesh.devices[0].unreadable().count(), 3);
    assert_eq!(mesh.devices[0].digest().1, before.1 - 3);
    // What only looks like one of them is not taken for it.
    let name = *mesh.devices[0].unreadable().next().unwrap();
    let (_, bytes) = lost.iter().find(|(id, _)| *id == name).unwrap();
    let mut forged = bytes.to_vec();
    let entry = Entry::decode(bytes).unwrap();
    let signed = forged
        .windows(64)
        .position(|part| part == entry.signature())
        .unwrap();
    forged[signed] ^= 1;
    let other = mesh.id(2);
    mesh.devices[0].deliver(other, &Bytes::from(forged));
    mesh.run();
    assert_eq!(mesh.devices[0].unreadable().count(), 3);
    // The second cannot give them; the third can.
    mesh.connect(0, 1);
    assert_eq!(mesh.devices[0].unreadable().count(), 3);
    mesh.connect(0, 2);
    assert_eq!(mesh.devices[0].unreadable().count(), 0);
    assert_eq!(mesh.devices[0].digest(), before);
    let again: BTreeSet<EntryId> = mesh.logs[0].iter().map(|(id, _)| *id).collect();
    assert_eq!(again, ids.into_iter().collect());
    for name in ["/a", "/b", "/c"] {
        assert!(mesh.sees(0, name) && mesh.sees(1, name), "{name}");
    }
}

#[test]
fn objects_sealed_before_a_removal_are_not_named_after_it() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member, Role::Member]);
    mesh.connect(0, 1);
    let secret = mesh.devices[0].replica().dedup_secrets().remove(0);
    let link = ObjectLink {
        digest: [9; 32],
        key: BlockKey::new([3; 32]),
        size: 9,
    };
    mesh.remove(0, 2, false).unwrap();
    mesh.settle_down();
    // Both the device that removed it and one that heard of it.
    for place in 0..2 {
        let stale = mesh.write_sealed(place, "/stale", link.clone(), secret.clone());
        assert!(matches!(stale, Err(CommandError::KeysChanged)), "{place}");
        assert!(!mesh.sees(place, "/stale"));
        mesh.write(place, &format!("/fresh-{place}")).unwrap();
    }
}

fn days(all: u32) -> Retention {
    Retention {
        all,
        daily: 100,
        monthly: Retention::FOREVER,
    }
}

#[test]
fn retention_set_by_an_admin_holds_on_all_devices() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member, Role::Blind]);
    mesh.connect(0, 1);
    mesh.connect(1, 2);
    for device in &mesh.devices {
        assert_eq!(device.retention(), Retention::default());
    }
    mesh.command(0, Command::SetRetention(days(7))).unwrap();
    mesh.settle_down();
    mesh.command(0, Command::SetRetention(days(9))).unwrap();
    mesh.settle_down();
    for place in 0..3 {
        assert_eq!(mesh.devices[place].retention(), days(9), "{place}");
    }
    let refused = mesh.command(1, Command::SetRetention(days(1)));
    assert!(matches!(refused, Err(CommandError::NotAdmin)));
    let refused = mesh.command(0, Command::SetRetention(days(0)));
    assert!(matches!(refused, Err(CommandError::NoDays)));
    // A member that does not ask its own program.
    let member = &mut mesh.devices[1];
    let records = [CatalogueRecord::Retention(days(1))];
    member
        .author(|replica, keys, now, rng| replica.catalogue(keys, now, rng, &records))
        .unwrap();
    mesh.settle_down();
    assert_eq!(mesh.devices[0].digest(), mesh.devices[1].digest());
    for place in 0..3 {
        assert_eq!(mesh.devices[place].retention(), days(9), "{place}");
    }
    // And a device that wakes from its log.
    let log: Vec<Bytes> = mesh.logs[2]
        .iter()
        .map(|(_, bytes)| bytes.clone())
        .collect();
    let keys = mesh.devices[2].keys.clone();
    let space = mesh.devices[2].replica().space();
    let again = Device::open(mesh.now, setup(&keys, space, false), &log);
    assert_eq!(again.retention(), days(9));
}

#[test]
fn removal_of_an_admin_leaves_the_retention_it_set_and_voids_what_came_later() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Admin]);
    mesh.connect(0, 1);
    mesh.command(0, Command::SetRetention(days(5))).unwrap();
    mesh.settle_down();
    mesh.command(1, Command::SetRetention(days(700))).unwrap();
    mesh.settle_down();
    mesh.disconnect(0, 1);
    // Stolen: its next setting reaches the first only by the entries themselves.
    mesh.command(1, Command::SetRetention(days(1))).unwrap();
    let stolen: Vec<Bytes> = mesh.logs[1]
        .iter()
        .map(|(_, bytes)| bytes.clone())
        .collect();
    let removal = |mesh: &Mesh| Removal {
        device: mesh.id(1),
        root: Some(Box::new(RootKeys::clone(&mesh.root))),
        force: true,
    };
    let before: Vec<Bytes> = mesh.logs[0]
        .iter()
        .map(|(_, bytes)| bytes.clone())
        .collect();
    let remove = Command::Remove(removal(&mesh));
    mesh.command(0, remove).unwrap();
    assert_eq!(mesh.devices[0].retention(), days(700), "it still counts");
    mesh.command(0, Command::Gather(stolen.clone())).unwrap();
    assert_eq!(mesh.devices[0].retention(), days(700), "voided");
    // The same entries in the other order: what held for a while is taken back.
    let after: Vec<Bytes> = mesh.logs[0][before.len()..]
        .iter()
        .map(|(_, bytes)| bytes.clone())
        .collect();
    let keys = mesh.devices[0].keys.clone();
    let space = mesh.devices[0].replica().space();
    mesh.devices[0] = Device::open(mesh.now, setup(&keys, space, false), &before);
    mesh.logs[0].truncate(before.len());
    mesh.command(0, Command::Gather(stolen)).unwrap();
    assert_eq!(mesh.devices[0].retention(), days(1));
    mesh.command(0, Command::Gather(after)).unwrap();
    assert_eq!(mesh.devices[0].retention(), days(700));
}

#[test]
fn setting_that_does_not_come_to_hold_is_said_to_be_outrun() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Admin]);
    // The second's clock is a year ahead; the first follows no such stamp.
    let year = Span::from_secs(365 * 86_400);
    let ahead = mesh.now + year;
    let keys = mesh.devices[1].keys.clone();
    let records = [CatalogueRecord::Retention(days(3))];
    mesh.devices[1]
        .author(|replica, _, _, rng| replica.catalogue(&keys, ahead, rng, &records))
        .unwrap();
    mesh.connect(0, 1);
    assert_eq!(mesh.devices[0].retention(), days(3));
    let outrun = mesh.command(0, Command::SetRetention(days(4)));
    assert!(matches!(outrun, Err(CommandError::Outrun)));
    mesh.command(1, Command::SetRetention(days(5))).unwrap();
    mesh.settle_down();
    assert_eq!(mesh.devices[0].retention(), days(5));
}

/// What a device wants done of that kind, since the last time.
fn effects_of<T>(device: &mut Device, pick: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
    let effects: Vec<Effect> = std::iter::from_fn(|| device.poll_effect()).collect();
    effects.iter().filter_map(pick).collect()
}

#[test]
fn address_records_are_kept_only_under_the_key_of_a_device_that_belongs() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member]);
    let (keys, now) = (mesh.devices[1].keys.clone(), mesh.now);
    let stranger = DeviceKeys::generate(&mut Rng::from_seed([99; 32]));
    let said = |keys: &DeviceKeys, at| {
        let record = AddressRecord::sign(keys, at, &["there".to_owned()]).unwrap();
        Bytes::copy_from_slice(record.bytes())
    };
    let key = |mesh: &Mesh, device: DeviceId| {
        let key = mesh.devices[0].key_of(&Subject::Device(device));
        key.unwrap().0
    };
    let (own, others) = (key(&mesh, keys.id()), key(&mesh, mesh.id(0)));
    let far = now + Span::from_secs(3600);
    for (key, record, kept) in [
        (own, said(&keys, now), true),
        (others, said(&keys, now), false),
        ([0; 32], said(&keys, now), false),
        (key(&mesh, stranger.id()), said(&stranger, now), false),
        (own, said(&keys, far), false),
        (own, Bytes::from_static(b"something"), false),
    ] {
        mesh.handle(0, Input::Offered { key, record });
        let found = effects_of(&mut mesh.devices[0], |effect| {
            matches!(effect, Effect::KeepRecord { .. }).then_some(())
        });
        assert_eq!(found.len(), usize::from(kept));
    }
}

#[test]
fn device_that_is_not_reached_is_looked_for_and_found() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member, Role::Member]);
    mesh.connect(0, 2);
    let (keys, away) = (mesh.devices[1].keys.clone(), mesh.id(1));
    effects_of(&mut mesh.devices[0], |_| Some(()));
    let mut sought = Vec::new();
    for _ in 0..5 {
        mesh.handle(0, Input::Unreachable(away));
        sought.extend(effects_of(&mut mesh.devices[0], |effect| match effect {
            Effect::FindRecord(key) => Some(*key),
            _ => None,
        }));
    }
    let key = mesh.devices[0].key_of(&Subject::Device(away)).unwrap().0;
    assert_eq!(sought, [key], "once");
    let record = |at, addr: &str| {
        let record = AddressRecord::sign(&keys, at, &[addr.to_owned()]).unwrap();
        Bytes::copy_from_slice(record.bytes())
    };
    let dials = |mesh: &mut Mesh, record: Bytes, key| {
        mesh.handle(0, Input::Record { key, record });
        effects_of(&mut mesh.devices[0], |effect| match effect {
            Effect::Dial { device, addrs } if *device == away => Some(addrs.clone()),
            _ => None,
        })
    };
    let (now, second) = (mesh.now, Span::from_secs(1));
    // In another's place, and too old.
    assert!(dials(&mut mesh, record(now, "/wrong"), [1; 32]).is_empty());
    let old = Time(now.0.saturating_sub(8 * 24 * 3600 * 1000));
    if old > Time(0) {
        assert!(dials(&mut mesh, record(old, "/old"), key).is_empty());
    }
    assert_eq!(dials(&mut mesh, record(now, "/new"), key), [["/new"]]);
    let earlier = Time(now.0 - second.0);
    assert!(dials(&mut mesh, record(earlier, "/late"), key).is_empty());
}

#[test]
fn what_is_put_and_held_is_announced_once_somebody_is_there() {
    let mut mesh = Mesh::new(&[Role::Admin, Role::Member]);
    mesh.write(0, "/file").unwrap();
    let pack = Subject::Pack(PackId([4; 32]));
    let provided = |mesh: &mut Mesh| {
        effects_of(&mut mesh.devices[0], |effect| match effect {
            Effect::Provide(key) => Some(*key),
            _ => None,
        })
    };
    mesh.handle(
        0,
        Input::Holds {
            subjects: [pack].into(),
            kept: Vec::new(),
        },
    );
    assert!(provided(&mut mesh).is_empty(), "nobody is there");
    let other = mesh.id(1);
    mesh.handle(0, Input::Connected(other));
    let mut said = provided(&mut mesh);
    // Both within a day.
    for _ in 0..24 {
        mesh.now = mesh.now + Span::from_secs(3600);
        mesh.handle(0, Input::Wake);
        said.extend(provided(&mut mesh));
    }
    let key = mesh.devices[0].key_of(&pack).unwrap().0;
    assert!(said.contains(&key));
    let all: BTreeSet<[u8; 32]> = said.iter().copied().collect();
    assert_eq!(all.len(), 2, "the pack and the root of the file");
}

//! A few devices that hand one another their entries.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{DeviceId, EntryId, EpochId};
use kith_object::key::{DeviceKeys, Rng, RootKeys, Words};
use kith_object::time::{Hlc, Span, Time};
use zeroize::Zeroizing;

use crate::access::{Member, Opened, Role, Sealed};
use crate::chain::{Codec, DocumentKind, Draft, Entry, Header, Nonce, Plain, SealKeys, SealKind};
use crate::document::{self, Place};
use crate::replica::{AuthorError, Inserted, Reading, RecordChange, Replica};

/// What a device keeps beside its replica: its log, and what the replica told it.
pub(super) struct Home {
    pub(super) keys: DeviceKeys,
    pub(super) replica: Replica,
    pub(super) log: BTreeMap<EntryId, Entry>,
    pub(super) order: Vec<EntryId>,
    pub(super) versions: BTreeMap<(EntryId, u32), Vec<u8>>,
    pub(super) packs: BTreeMap<(EntryId, u32), Vec<u8>>,
    pub(super) digest: BTreeSet<(Hlc, EntryId)>,
}

impl Home {
    pub(super) fn new(keys: &DeviceKeys, replica: Replica) -> Self {
        Self {
            keys: keys.clone(),
            replica,
            log: BTreeMap::new(),
            order: Vec::new(),
            versions: BTreeMap::new(),
            packs: BTreeMap::new(),
            digest: BTreeSet::new(),
        }
    }

    pub(super) fn id(&self) -> DeviceId {
        self.keys.id()
    }

    pub(super) fn keep(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        for entry in &entries {
            self.store(entry);
        }
        self.drain();
        entries
    }

    fn store(&mut self, entry: &Entry) {
        assert!(
            self.log.insert(entry.id(), entry.clone()).is_none(),
            "an entry was handed out twice"
        );
        self.order.push(entry.id());
    }

    pub(super) fn feed(&mut self, entry: &Entry) -> Inserted {
        // What travels is bytes.
        let entry = Entry::decode(&entry.encode()).unwrap();
        let outcome = self.replica.insert(entry);
        self.drain();
        outcome
    }

    pub(super) fn feed_all(&mut self, entries: &[Entry]) {
        for entry in entries {
            let _ = self.feed(entry);
        }
    }

    /// Takes over all that another device has.
    pub(super) fn pull(&mut self, other: &Home) {
        for id in &other.order {
            let _ = self.feed(&other.log[id]);
        }
    }

    pub(super) fn drain(&mut self) {
        self.collect();
        self.replica.check_invariants();
    }

    /// Takes over what the replica has to say, as a device does after each batch.
    pub(super) fn collect(&mut self) {
        loop {
            for entry in self.replica.take_accepted() {
                self.store(&entry);
            }
            let replay = self.replica.take_replay();
            if replay.is_empty() {
                break;
            }
            for id in replay {
                assert_eq!(self.replica.insert(self.log[&id].clone()), Inserted::Known);
            }
        }
        for change in self.replica.take_digest_changes() {
            let key = (change.hlc, change.id);
            let fits = if change.added {
                self.digest.insert(key)
            } else {
                self.digest.remove(&key)
            };
            assert!(fits, "an entry entered or left the digest twice");
        }
        let versions = self.replica.take_version_changes();
        apply(&mut self.versions, versions);
        let packs = self.replica.take_catalogue_changes();
        apply(&mut self.packs, packs);
    }

    pub(super) fn texts(&self) -> BTreeSet<String> {
        self.versions
            .values()
            .map(|record| String::from_utf8_lossy(record).into_owned())
            .collect()
    }

    pub(super) fn reads(&self, text: &str) -> bool {
        self.texts().contains(text)
    }
}

fn apply(held: &mut BTreeMap<(EntryId, u32), Vec<u8>>, changes: Vec<RecordChange>) {
    for change in changes {
        match change {
            RecordChange::Added {
                entry,
                index,
                record,
                ..
            } => {
                assert!(
                    held.insert((entry, index), record).is_none(),
                    "a record came twice"
                );
            }
            RecordChange::Removed { entry } => {
                let before = held.len();
                held.retain(|(other, _), _| *other != entry);
                assert!(held.len() < before, "nothing was taken back");
            }
        }
    }
}

/// A person's mesh in the making.
pub(super) struct Mesh {
    pub(super) root: RootKeys,
    pub(super) rng: Rng,
    pub(super) now: Time,
}

impl Mesh {
    pub(super) fn new(seed: u8) -> (Self, Home) {
        let mut rng = Rng::from_seed([seed; 32]);
        let root = Words::generate(&mut rng).root();
        let keys = DeviceKeys::generate(&mut rng);
        let now = Time(1_700_000_000_000);
        let (replica, entries) = Replica::create(&root, &keys, "first", now, &mut rng).unwrap();
        let mut home = Home::new(&keys, replica);
        home.keep(entries);
        (Self { root, rng, now }, home)
    }

    pub(super) fn tick(&mut self) -> Time {
        self.now = self.now + Span::from_ms(1);
        self.now
    }

    pub(super) fn keys(&mut self) -> DeviceKeys {
        DeviceKeys::generate(&mut self.rng)
    }

    pub(super) fn newcomer(keys: &DeviceKeys, role: Role, name: &str) -> Member {
        Member {
            device: keys.id(),
            agree: keys.agree_public(),
            role,
            name: name.to_owned(),
        }
    }

    /// Admits a fresh device and brings it up to date.
    pub(super) fn join(&mut self, admin: &mut Home, role: Role, name: &str) -> Home {
        let keys = self.keys();
        let newcomer = Self::newcomer(&keys, role, name);
        let now = self.tick();
        let entries = admin
            .replica
            .admit(&admin.keys, now, &mut self.rng, &newcomer)
            .unwrap();
        admin.keep(entries);
        let mut home = Home::new(&keys, Replica::open(admin.replica.space(), Some(&keys)));
        home.pull(admin);
        home
    }

    pub(super) fn join_admin(&mut self, home: &mut Home, name: &str) -> Home {
        let keys = self.keys();
        let newcomer = Self::newcomer(&keys, Role::Admin, name);
        let now = self.tick();
        let entries = home
            .replica
            .admit_by_root(&self.root, now, &mut self.rng, &newcomer)
            .unwrap();
        home.keep(entries);
        let mut fresh = Home::new(&keys, Replica::open(home.replica.space(), Some(&keys)));
        fresh.pull(home);
        fresh
    }

    pub(super) fn write(&mut self, home: &mut Home, text: &str) -> Vec<Entry> {
        self.try_write(home, text).unwrap()
    }

    pub(super) fn try_write(
        &mut self,
        home: &mut Home,
        text: &str,
    ) -> Result<Vec<Entry>, AuthorError> {
        let now = self.tick();
        let entries = home.replica.names(
            &home.keys,
            now,
            &mut self.rng,
            vec![text.as_bytes().to_vec()],
        )?;
        Ok(home.keep(entries))
    }

    pub(super) fn remove(&mut self, home: &mut Home, device: DeviceId) -> Vec<Entry> {
        let now = self.tick();
        let entries = home
            .replica
            .remove(&home.keys, now, &mut self.rng, device)
            .unwrap();
        home.keep(entries)
    }

    pub(super) fn remove_by_root(&mut self, home: &mut Home, device: DeviceId) -> Vec<Entry> {
        let now = self.tick();
        let entries = home
            .replica
            .remove_by_root(&self.root, now, &mut self.rng, device)
            .unwrap();
        home.keep(entries)
    }

    pub(super) fn mint(&mut self, home: &mut Home) -> Vec<Entry> {
        let now = self.tick();
        let entries = home
            .replica
            .mint_epoch(&home.keys, now, &mut self.rng)
            .unwrap();
        home.keep(entries)
    }

    /// Signs whatever header and parts an enemy wants, with keys that it has.
    pub(super) fn forge(
        &mut self,
        home: &Home,
        signer: &DeviceKeys,
        header: Header,
        parts: Vec<(SealKind, Plain)>,
    ) -> Entry {
        let ring = &home.replica.ring;
        let keys = SealKeys {
            holder: ring.holder(&header.epoch).map(|part| &part.key),
            change: ring.member(&header.epoch).map(|part| &part.change),
        };
        Draft { header, parts }
            .seal(keys, signer.sign_key(), &mut self.rng)
            .unwrap()
    }

    /// A header as an honest device would write it at the start of a new chain, to be spoiled.
    pub(super) fn header(
        &mut self,
        home: &Home,
        author: DeviceId,
        document: DocumentKind,
        epoch: EpochId,
    ) -> Header {
        let mut access_heads = home.replica.heads(DocumentKind::Access);
        access_heads.sort_unstable();
        let dependencies = match document {
            DocumentKind::Access => {
                let mut fed: Vec<EntryId> = home
                    .replica
                    .nodes
                    .iter()
                    .filter(|node| {
                        node.document == document && matches!(node.reading, Reading::Fed { .. })
                    })
                    .map(|node| node.id)
                    .collect();
                fed.sort_unstable();
                fed
            }
            _ => {
                let mut heads = home.replica.heads(document);
                heads.sort_unstable();
                heads
            }
        };
        Header {
            space: home.replica.space(),
            document,
            author,
            nonce: Nonce(self.rng.bytes()),
            seq: 0,
            previous: EntryId::default(),
            hlc: Hlc::new(self.tick(), 0),
            epoch,
            payload_len: 0,
            payload_root: [0; 32],
            access_heads,
            dependencies,
        }
    }

    /// Where the change of an entry with that header must stand.
    pub(super) fn place(home: &Home, header: &Header) -> Place {
        let mut dependencies = Vec::new();
        let (mut op_max, mut seq) = (0, 1);
        let before = (header.seq > 0).then_some(header.previous);
        for id in header.dependencies.iter().chain(&before) {
            let Some(node) = home.replica.find(id) else {
                continue;
            };
            if let Reading::Fed {
                hash,
                op_max: theirs,
                seq: place,
            } = node.reading
            {
                dependencies.push(hash);
                op_max = op_max.max(theirs);
                if Some(*id) == before {
                    seq = place + 1;
                }
            }
        }
        dependencies.sort_unstable();
        Place {
            nonce: header.nonce,
            entry_seq: header.seq,
            seq,
            start_op: op_max + 1,
            dependencies,
        }
    }

    /// A well-formed entry of `names` that an enemy signs: only its header decides whether it counts.
    pub(super) fn forge_names(
        &mut self,
        home: &Home,
        signer: &DeviceKeys,
        text: &str,
        spoil: impl Fn(&mut Header),
    ) -> Entry {
        let ring = &home.replica.ring;
        let epoch = ring
            .epochs()
            .map(|(epoch, _)| *epoch)
            .filter(|epoch| ring.member(epoch).is_some())
            .last();
        let mut header = self.header(
            home,
            signer.id(),
            DocumentKind::Names,
            epoch.unwrap_or_default(),
        );
        spoil(&mut header);
        let body =
            document::author(&Self::place(home, &header), &[text.as_bytes().to_vec()]).unwrap();
        let part = (
            SealKind::Change,
            Plain {
                codec: Codec::Change,
                body: Zeroizing::new(body),
            },
        );
        self.forge(home, signer, header, vec![part])
    }

    /// A well-formed entry of `access` with this record and this open part, signed by whoever wants it in force.
    pub(super) fn forge_access(
        &mut self,
        home: &Home,
        signer: &DeviceKeys,
        sealed: Option<Sealed>,
        open: Option<Opened>,
        spoil: impl Fn(&mut Header),
    ) -> Entry {
        let ring = &home.replica.ring;
        let held = ring
            .epochs()
            .map(|(epoch, _)| *epoch)
            .filter(|epoch| ring.holder(epoch).is_some())
            .last();
        let epoch = sealed.as_ref().and(held).unwrap_or_default();
        let mut header = self.header(home, signer.id(), DocumentKind::Access, epoch);
        spoil(&mut header);
        let place = Self::place(home, &header);
        let mut parts = Vec::new();
        if let Some(sealed) = sealed {
            let body = document::author(&place, &[sealed.encode()]).unwrap();
            parts.push((
                SealKind::Holder,
                Plain {
                    codec: Codec::Change,
                    body: Zeroizing::new(body),
                },
            ));
        }
        if let Some(open) = open {
            parts.push((
                SealKind::Open,
                Plain {
                    codec: Codec::Records,
                    body: Zeroizing::new(open.encode()),
                },
            ));
        }
        self.forge(home, signer, header, parts)
    }
}

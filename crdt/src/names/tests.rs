//! Laws of the tree: it follows from the set, nothing counted is out of sight, and a plan does what it says.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{Cid, DeviceId, EntryId, InodeId};
use kith_object::key::Rng;
use kith_object::object::ObjectLink;
use kith_object::seal::BlockKey;
use kith_object::time::Hlc;
use kith_object::tree::FileKind;
use proptest::prelude::*;

use super::view::Unit;
use super::*;

/// A link to made-up bytes.
fn link(content: u8) -> ObjectLink {
    ObjectLink {
        digest: [content; 32],
        key: BlockKey::new([content; 32]),
        size: u64::from(content),
    }
}

fn path(text: &str) -> TreePath {
    text.parse().unwrap()
}

fn file(at: &str, content: u8) -> Change {
    Change::File {
        path: path(at),
        kind: FileKind::File,
        link: link(content),
        mtime_ms: u64::from(content) * 1000,
        mode: 0o644,
    }
}

fn folder(at: &str) -> Change {
    Change::Folder {
        path: path(at),
        link: None,
        mtime_ms: 7,
        mode: 0o755,
    }
}

fn shift(from: &str, to: &str) -> Change {
    Change::Move {
        from: path(from),
        to: path(to),
    }
}

fn remove(at: &str) -> Change {
    Change::Remove {
        path: path(at),
        recursive: true,
    }
}

type Versions = Vec<(VersionInfo, Record)>;

/// A device: its tree, its clock, and what it wrote.
struct Device {
    id: u8,
    tree: Tree,
    rng: Rng,
    clock: u64,
    entries: u32,
}

impl Device {
    fn new(id: u8) -> Self {
        Self {
            id,
            tree: Tree::new(),
            rng: Rng::from_seed([id; 32]),
            clock: 0,
            entries: 0,
        }
    }

    /// Plans, writes an entry, applies it.
    fn write(&mut self, changes: &[Change]) -> Result<Versions, PlanError> {
        let records = self.tree.plan(changes, &mut self.rng)?;
        self.clock += 1;
        let mut entry = [self.id; 32];
        entry[1..5].copy_from_slice(&self.entries.to_be_bytes());
        // An id that says nothing about order, as real ones.
        let entry = EntryId(*blake3::hash(&entry).as_bytes());
        self.entries += 1;
        let written: Versions = (0..)
            .zip(records)
            .map(|(index, record)| {
                let bytes = record.encode().unwrap();
                let info = VersionInfo {
                    id: VersionId { entry, index },
                    author: DeviceId([self.id; 32]),
                    hlc: Hlc(self.clock),
                };
                (info, Record::decode(&bytes).unwrap())
            })
            .collect();
        self.tree.apply_all(written.clone());
        Ok(written)
    }

    fn did(&mut self, changes: &[Change]) -> Versions {
        self.write(changes).unwrap()
    }

    fn hear(&mut self, versions: &Versions) {
        for (info, _) in versions {
            self.clock = self.clock.max(info.hlc.0);
        }
        self.tree.apply_all(versions.clone());
    }
}

/// All paths that show, with what they show.
fn all(tree: &Tree) -> BTreeMap<String, Listed> {
    let mut found = BTreeMap::new();
    let mut open = vec![TreePath::root()];
    while let Some(at) = open.pop() {
        for listed in tree.list(&at).unwrap() {
            let here = at.child(&listed.name).unwrap();
            assert_eq!(tree.resolve(&here).as_ref(), Some(&listed));
            if listed.kind == FileKind::Folder {
                open.push(here.clone());
            }
            found.insert(here.to_string(), listed);
        }
    }
    found
}

fn names(tree: &Tree) -> Vec<String> {
    all(tree).into_keys().collect()
}

fn content(tree: &Tree, at: &str) -> Option<u8> {
    let listed = tree.resolve(&path(at))?;
    listed.link.map(|link| link.digest[0])
}

/// Two devices that both know what the first wrote.
fn two(changes: &[Change]) -> (Device, Device) {
    let (mut a, mut b) = (Device::new(1), Device::new(2));
    b.hear(&a.did(changes));
    (a, b)
}

/// Each hears what the other did meanwhile; then they agree.
fn meet(a: &mut Device, b: &mut Device, by_a: &Versions, by_b: &Versions) {
    b.hear(by_a);
    a.hear(by_b);
    a.tree.check_invariants();
    b.tree.check_invariants();
    assert_eq!(a.tree.fingerprint(), b.tree.fingerprint());
}

#[test]
fn what_is_put_is_listed_and_found() {
    let mut a = Device::new(1);
    a.did(&[
        file("/docs/2024/a.txt", 1),
        file("/docs/b.txt", 2),
        folder("/empty"),
    ]);
    assert_eq!(
        names(&a.tree),
        [
            "/docs",
            "/docs/2024",
            "/docs/2024/a.txt",
            "/docs/b.txt",
            "/empty"
        ]
    );
    let listed = a.tree.resolve(&path("/docs/b.txt")).unwrap();
    assert_eq!(
        (listed.kind, listed.size, listed.mtime_ms, listed.mode),
        (FileKind::File, 2, 2000, 0o644)
    );
    assert!(!listed.conflict);
    assert_eq!(listed.version.unwrap().author, DeviceId([1; 32]));
    assert_eq!(a.tree.link_of(&Cid::from_digest([2; 32])), Some(link(2)));
    assert_eq!(a.tree.link_of(&Cid::from_digest([3; 32])), None);
    assert_eq!(a.tree.list(&path("/docs/b.txt")), None);
    assert_eq!(a.tree.resolve(&path("/docs/b.txt/c")), None);
    assert_eq!(
        a.tree.resolve(&TreePath::root()).unwrap().kind,
        FileKind::Folder
    );
    a.tree.check_invariants();
}

#[test]
fn same_again_gives_no_record() {
    let mut a = Device::new(1);
    a.did(&[file("/a", 1), folder("/f")]);
    assert_eq!(a.did(&[file("/a", 1), folder("/f")]), []);
    assert_eq!(a.did(&[file("/a", 2)]).len(), 1);
}

#[test]
fn later_changes_of_a_list_see_the_earlier_and_one_record_comes_of_them() {
    let mut a = Device::new(1);
    a.did(&[file("/old", 1)]);
    let written = a.did(&[
        file("/old", 2),
        file("/old", 3),
        shift("/old", "/new/name"),
        file("/gone", 4),
        remove("/gone"),
        file("/old", 5),
    ]);
    assert_eq!(names(&a.tree), ["/new", "/new/name", "/old"]);
    assert_eq!(content(&a.tree, "/new/name"), Some(3));
    assert_eq!(content(&a.tree, "/old"), Some(5));
    assert_eq!(
        written.len(),
        3,
        "the file, the folder made for it, the new file"
    );
    assert_eq!(a.tree.history(&path("/new/name")).len(), 2);
    a.tree.check_invariants();
}

#[test]
fn a_change_that_cannot_be_done_undoes_the_list() {
    let mut a = Device::new(1);
    a.did(&[file("/f/a", 1), folder("/g")]);
    let before = a.tree.fingerprint();
    let cases = [
        (remove("/no"), PlanError::NotFound { path: path("/no") }),
        (
            shift("/no", "/x"),
            PlanError::NotFound { path: path("/no") },
        ),
        (shift("/f", "/g"), PlanError::Exists { path: path("/g") }),
        (
            shift("/f", "/f/in"),
            PlanError::IntoItself {
                from: path("/f"),
                to: path("/f/in"),
            },
        ),
        (file("/f", 1), PlanError::IsAFolder { path: path("/f") }),
        (
            file("/f/a/b", 1),
            PlanError::NotAFolder { path: path("/f/a") },
        ),
        (folder("/f/a"), PlanError::NotAFolder { path: path("/f/a") }),
        (
            Change::Remove {
                path: path("/f"),
                recursive: false,
            },
            PlanError::NotEmpty { path: path("/f") },
        ),
        (remove("/"), PlanError::IsRoot),
        (shift("/", "/x"), PlanError::IsRoot),
        (file("/", 1), PlanError::IsRoot),
        (
            Change::Restore {
                path: path("/x"),
                version: VersionId::default(),
            },
            PlanError::NoSuchVersion {
                version: VersionId::default(),
            },
        ),
    ];
    for (change, error) in cases {
        assert_eq!(a.write(&[file("/new", 9), change]), Err(error));
        assert_eq!(a.tree.fingerprint(), before);
        a.tree.check_invariants();
    }
}

#[test]
fn concurrent_edits_both_show_until_one_is_written_over_both() {
    let (mut a, mut b) = two(&[file("/f/n", 1)]);
    let (by_a, by_b) = (a.did(&[file("/f/n", 2)]), b.did(&[file("/f/n", 3)]));
    meet(&mut a, &mut b, &by_a, &by_b);
    let shown = a.tree.list(&path("/f")).unwrap();
    assert_eq!(shown.len(), 2);
    assert!(shown.iter().all(|listed| listed.conflict));
    assert_eq!(shown[0].name, b"n");
    assert!(shown[1].name.starts_with(b"n~") && shown[1].name.len() == 10);
    let contents: BTreeSet<u8> = shown
        .iter()
        .map(|listed| listed.link.as_ref().unwrap().digest[0])
        .collect();
    assert_eq!(contents, BTreeSet::from([2, 3]));
    assert_eq!(a.tree.conflicts(), [path("/f/n")]);

    let settled = b.did(&[file("/f/n", 4)]);
    assert_eq!(settled[0].1.replaces.len(), 2);
    meet(&mut a, &mut b, &Versions::new(), &settled);
    assert_eq!(names(&a.tree), ["/f", "/f/n"]);
    assert_eq!(a.tree.history(&path("/f/n")).len(), 4);
    assert_eq!(a.tree.conflicts(), []);
}

#[test]
fn a_losing_version_can_be_removed_moved_or_written_alone() {
    let (mut a, mut b) = two(&[file("/n", 1)]);
    let (by_a, by_b) = (a.did(&[file("/n", 2)]), b.did(&[file("/n", 3)]));
    meet(&mut a, &mut b, &by_a, &by_b);
    let loser = names(&a.tree)[1].clone();
    let (kept, lost) = (
        content(&a.tree, "/n").unwrap(),
        content(&a.tree, &loser).unwrap(),
    );

    let mut c = Device::new(3);
    for versions in [a.tree.versions().collect(), by_a, by_b] {
        c.hear(&versions);
    }
    c.did(&[remove(&loser)]);
    assert_eq!(names(&c.tree), ["/n"]);
    assert_eq!(content(&c.tree, "/n"), Some(kept));
    assert!(!c.tree.resolve(&path("/n")).unwrap().conflict);
    c.tree.check_invariants();

    b.did(&[shift(&loser, "/other")]);
    assert_eq!(names(&b.tree), ["/n", "/other"]);
    assert_eq!(
        (content(&b.tree, "/n"), content(&b.tree, "/other")),
        (Some(kept), Some(lost))
    );
    b.tree.check_invariants();

    a.did(&[file(&loser, 9)]);
    assert_eq!(names(&a.tree), ["/n", loser.as_str()]);
    assert_eq!(
        (content(&a.tree, "/n"), content(&a.tree, &loser)),
        (Some(kept), Some(9))
    );
    a.tree.check_invariants();
}

#[test]
fn removing_the_winner_leaves_the_other_version() {
    let (mut a, mut b) = two(&[file("/n", 1)]);
    let (by_a, by_b) = (a.did(&[file("/n", 2)]), b.did(&[file("/n", 3)]));
    meet(&mut a, &mut b, &by_a, &by_b);
    let lost = content(&a.tree, &names(&a.tree)[1]);
    a.did(&[remove("/n")]);
    assert_eq!(names(&a.tree), ["/n"]);
    assert_eq!(content(&a.tree, "/n"), lost);
    a.did(&[remove("/n")]);
    assert_eq!(names(&a.tree), [""; 0]);
    a.tree.check_invariants();
}

#[test]
fn an_edit_beats_a_removal() {
    let (mut a, mut b) = two(&[file("/n", 1)]);
    let (by_a, by_b) = (a.did(&[file("/n", 2)]), b.did(&[remove("/n")]));
    meet(&mut a, &mut b, &by_a, &by_b);
    assert_eq!(content(&b.tree, "/n"), Some(2));
    assert!(!b.tree.resolve(&path("/n")).unwrap().conflict);
    let later = b.did(&[file("/n", 3)]);
    assert_eq!(later[0].1.replaces.len(), 2, "the edit and the removal");
}

#[test]
fn a_removed_folder_lives_while_something_new_is_in_it() {
    let (mut a, mut b) = two(&[file("/f/g/old", 1)]);
    let (by_a, by_b) = (a.did(&[file("/f/g/new", 2)]), b.did(&[remove("/f")]));
    meet(&mut a, &mut b, &by_a, &by_b);
    assert_eq!(names(&a.tree), ["/f", "/f/g", "/f/g/new"]);
    let by_b = b.did(&[remove("/f")]);
    meet(&mut a, &mut b, &Versions::new(), &by_b);
    assert_eq!(names(&a.tree), [""; 0]);
}

#[test]
fn folders_of_one_name_show_as_one() {
    let (mut a, mut b) = two(&[]);
    let by_a = a.did(&[file("/f/sub/x", 1), file("/f/same", 2)]);
    let by_b = b.did(&[file("/f/sub/y", 3), file("/f/same", 4)]);
    meet(&mut a, &mut b, &by_a, &by_b);
    let shown = names(&a.tree);
    assert_eq!(shown.len(), 6);
    assert!(
        shown.contains(&"/f/sub/x".into())
            && shown.contains(&"/f/sub/y".into())
            && shown.contains(&"/f/same".into())
    );
    assert!(shown.iter().any(|name| name.starts_with("/f/same~")));

    let moved = a.did(&[shift("/f", "/g"), file("/g/sub/z", 5)]);
    meet(&mut a, &mut b, &moved, &Versions::new());
    assert_eq!(names(&b.tree).len(), 7);
    assert!(names(&b.tree).iter().all(|name| name.starts_with("/g")));
    b.did(&[remove("/g/sub"), remove("/g")]);
    assert_eq!(names(&b.tree), [""; 0]);
    b.tree.check_invariants();
}

#[test]
fn of_clashing_files_the_oldest_keeps_the_name() {
    let (mut a, mut b) = two(&[]);
    b.clock += 5;
    let (by_a, by_b) = (a.did(&[file("/n", 1)]), b.did(&[file("/n", 2)]));
    meet(&mut a, &mut b, &by_a, &by_b);
    assert_eq!(
        content(&a.tree, "/n"),
        Some(1),
        "written when its device's clock stood lower"
    );
    let other = names(&a.tree)
        .into_iter()
        .find(|name| name.starts_with("/n~"))
        .unwrap();
    assert_eq!(content(&a.tree, &other), Some(2));
    assert!(
        !a.tree.resolve(&path(&other)).unwrap().conflict,
        "two files, each with one version"
    );
    let by_a = a.did(&[file(&other, 3), shift("/n", "/m")]);
    meet(&mut a, &mut b, &by_a, &Versions::new());
    assert_eq!(
        (content(&b.tree, "/m"), content(&b.tree, "/n")),
        (Some(1), Some(3))
    );
}

#[test]
fn names_with_suffix_never_hide_plain_ones_however_long() {
    for len in [1, 242, 243, 244, 245, 246, 247, 250, 254, 255] {
        for fill in ["n", "ü", "語", "😀"] {
            let mut name = fill.repeat(len / fill.len());
            name.push_str(&"-".repeat(len - name.len()));
            let at = format!("/{name}");
            let (mut a, mut b) = two(&[]);
            let (by_a, by_b) = (a.did(&[file(&at, 1)]), b.did(&[file(&at, 2)]));
            meet(&mut a, &mut b, &by_a, &by_b);
            let other = names(&a.tree)
                .into_iter()
                .find(|shown| *shown != at)
                .unwrap();
            assert!(other.len() <= 256 && !other.contains('\u{fffd}'));
            // Someone takes the very name that the younger shows by: the plain claim is the stronger.
            let squat: Vec<u8> = other.as_bytes()[1..].to_vec();
            let mut squatter = by_b[0].1.clone();
            squatter.inode = InodeId([9; 16]);
            squatter.name = squat;
            squatter.link = Some(link(3));
            let info = VersionInfo {
                id: VersionId {
                    entry: EntryId([9; 32]),
                    index: 0,
                },
                author: DeviceId([9; 32]),
                hlc: Hlc(99),
            };
            meet(
                &mut a,
                &mut b,
                &vec![(info, squatter.clone())],
                &vec![(info, squatter)],
            );
            assert_eq!(content(&a.tree, &other), Some(3));
            assert_eq!(names(&a.tree).len(), 3);
        }
    }
}

#[test]
fn moves_into_each_other_leave_both_in_sight() {
    let (mut a, mut b) = two(&[file("/x/in-x", 1), file("/y/in-y", 2)]);
    let (by_a, by_b) = (a.did(&[shift("/x", "/y/x")]), b.did(&[shift("/y", "/x/y")]));
    meet(&mut a, &mut b, &by_a, &by_b);
    let shown = names(&a.tree);
    assert_eq!(shown.len(), 4, "{shown:?}");
    // The later move gave way: both say the same, and either can be moved on.
    let top = shown[0].clone();
    let moved = a.did(&[shift(&top, "/z")]);
    meet(&mut a, &mut b, &moved, &Versions::new());
    assert!(names(&b.tree).contains(&"/z".into()));
    assert_eq!(names(&b.tree).len(), 4);
}

#[test]
fn what_stands_in_a_folder_that_does_not_count_shows_in_a_lost_one() {
    let (mut a, mut b) = two(&[]);
    let made = a.did(&[folder("/f")]);
    b.hear(&made);
    let put = b.did(&[file("/f/a", 1), file("/f/g/b", 2)]);
    a.hear(&put);
    a.tree.void(&made[0].0.id.entry);
    a.tree.check_invariants();
    let shown = names(&a.tree);
    assert_eq!(shown.len(), 4);
    assert!(shown[0].starts_with("/lost~"));
    assert_eq!(a.tree.resolve(&path(&shown[0])).unwrap().version, None);
    a.did(&[shift(&shown[0], "/found"), file("/found/c", 3)]);
    assert_eq!(
        names(&a.tree),
        ["/found", "/found/a", "/found/c", "/found/g", "/found/g/b"]
    );
    a.tree.check_invariants();
    a.tree.apply_all(made);
    a.tree.check_invariants();
    assert_eq!(names(&a.tree).len(), 5);
}

#[test]
fn history_knows_what_was_removed_and_restore_brings_it_back() {
    let mut a = Device::new(1);
    a.did(&[file("/f/g/a", 1), file("/f/b", 2)]);
    a.did(&[file("/f/g/a", 3)]);
    a.did(&[remove("/f/b")]);
    a.did(&[remove("/f")]);
    assert_eq!(names(&a.tree), [""; 0]);
    let past = a.tree.history(&path("/f/g/a"));
    assert_eq!(
        past.iter().map(|item| item.deleted).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(past[1].path, Some(path("/f/g/a")));
    assert!(past[0].current && !past[1].current);

    a.did(&[Change::Restore {
        path: path("/back"),
        version: past[2].version.id,
    }]);
    assert_eq!(content(&a.tree, "/back"), Some(1));
    assert_eq!(a.tree.history(&path("/back")).len(), 4);
    a.did(&[remove("/back")]);

    let folder = a
        .tree
        .history(&path("/f"))
        .into_iter()
        .find(|item| !item.deleted)
        .unwrap();
    a.did(&[Change::Restore {
        path: path("/f2"),
        version: folder.version.id,
    }]);
    assert_eq!(
        names(&a.tree),
        ["/f2", "/f2/g"],
        "the file was brought back and removed again on its own"
    );
    a.tree.check_invariants();
}

#[test]
fn a_folder_comes_back_with_what_went_with_it_and_no_more() {
    let mut a = Device::new(1);
    a.did(&[file("/f/g/a", 1), file("/f/b", 2), file("/f/c", 3)]);
    a.did(&[remove("/f/c")]);
    a.did(&[remove("/f")]);
    let gone = a.tree.history(&path("/f"));
    a.did(&[Change::Restore {
        path: path("/f"),
        version: gone[1].version.id,
    }]);
    assert_eq!(names(&a.tree), ["/f", "/f/b", "/f/g", "/f/g/a"]);
    assert_eq!(content(&a.tree, "/f/g/a"), Some(1));
    a.tree.check_invariants();
    let error = a.write(&[Change::Restore {
        path: path("/elsewhere"),
        version: gone[1].version.id,
    }]);
    assert_eq!(error, Err(PlanError::StillThere { path: path("/f") }));
}

#[test]
fn versions_of_an_entry_that_counts_no_more_are_gone_and_what_they_replaced_is_back() {
    let (mut a, mut b) = two(&[file("/n", 1)]);
    let by_b = b.did(&[file("/n", 2), file("/m", 3)]);
    a.hear(&by_b);
    a.tree.void(&by_b[0].0.id.entry);
    assert_eq!(names(&a.tree), ["/n"]);
    assert_eq!(content(&a.tree, "/n"), Some(1));
    assert_eq!(a.tree.link_of(&Cid::from_digest([3; 32])), None);
    a.tree.check_invariants();
    a.tree.apply_all(by_b);
    a.tree.check_invariants();
    assert_eq!(content(&a.tree, "/n"), Some(2));
}

#[test]
fn names_that_are_not_utf8_are_kept() {
    let mut a = Device::new(1);
    let odd = TreePath::parse(b"/\xff\xfe/\x01").unwrap();
    a.did(&[Change::File {
        path: odd.clone(),
        kind: FileKind::Symlink,
        link: link(1),
        mtime_ms: 0,
        mode: 0o100_777,
    }]);
    let listed = a.tree.resolve(&odd).unwrap();
    assert_eq!(
        (listed.name.as_slice(), listed.kind, listed.mode),
        (&b"\x01"[..], FileKind::Symlink, 0o777)
    );
}

// Laws.

/// A world of devices that change and meet at random.
fn world(seed: [u8; 32], steps: u64) -> (Vec<Device>, Versions) {
    let mut rng = Rng::from_seed(seed);
    let mut devices: Vec<Device> = (1..=3).map(Device::new).collect();
    let mut log = Versions::new();
    let mut known = vec![0; devices.len()];
    for _ in 0..steps {
        let who = usize::try_from(rng.below(3)).unwrap();
        let device = &mut devices[who];
        if rng.below(3) == 0 {
            // Catches up with a random part of what it has not heard, entry by entry in the order of writing.
            let upto = known[who]
                + usize::try_from(rng.below((log.len() - known[who]) as u64 + 1)).unwrap();
            let news = log[known[who]..upto].to_vec();
            known[who] = upto;
            device.hear(&news);
            continue;
        }
        let changes: Vec<Change> = (0..=rng.below(3))
            .map(|_| change(&device.tree, &mut rng))
            .collect();
        log.extend(checked_write(device, &changes));
    }
    (devices, log)
}

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> Option<&'a T> {
    from.get(usize::try_from(rng.below(from.len() as u64)).unwrap())
}

/// Something that could be asked for: mostly possible.
fn change(tree: &Tree, rng: &mut Rng) -> Change {
    let mut here: Vec<TreePath> = names(tree).iter().map(|name| path(name)).collect();
    here.push(TreePath::root());
    let known = pick(rng, &here).unwrap().clone();
    let near = pick(rng, &here).unwrap();
    let fresh = near
        .child(&[b'a' + u8::try_from(rng.below(4)).unwrap()])
        .unwrap_or_else(|_| near.clone());
    let place = if rng.below(2) == 0 {
        known.clone()
    } else {
        fresh.clone()
    };
    match rng.below(10) {
        0..=2 => Change::File {
            path: place,
            kind: if rng.below(5) == 0 {
                FileKind::Symlink
            } else {
                FileKind::File
            },
            link: link(u8::try_from(rng.below(200)).unwrap()),
            mtime_ms: rng.below(3),
            mode: 0o644,
        },
        3..=4 => Change::Folder {
            path: place,
            link: (rng.below(3) == 0).then(|| link(200)),
            mtime_ms: rng.below(3),
            mode: 0o755,
        },
        5..=7 => Change::Move {
            from: known,
            to: fresh,
        },
        8 => Change::Remove {
            path: known,
            recursive: rng.below(2) == 0,
        },
        _ => {
            let past = tree.history(&known);
            Change::Restore {
                version: pick(rng, &past)
                    .map(|item| item.version.id)
                    .unwrap_or_default(),
                path: place,
            }
        }
    }
}

type Shown = (FileKind, Option<ObjectLink>, u64, u32);

/// Panics unless that shows at the path. Where the change itself settles a clash above, a suffix goes: then it has to show somewhere.
fn assert_shows(tree: &Tree, at: &TreePath, expected: &Shown) {
    let content = |listed: Listed| (listed.kind, listed.link, listed.mtime_ms, listed.mode);
    let shown = tree.resolve(at).map(content);
    if shown.is_none() && at.to_string().contains('~') {
        assert!(
            all(tree)
                .into_values()
                .map(content)
                .any(|shown| shown == *expected)
        );
    } else {
        assert_eq!(shown.as_ref(), Some(expected), "at {at}");
    }
}

/// All current versions that are no removals.
fn live(tree: &Tree) -> BTreeSet<VersionId> {
    let heads = tree.rows.all_inodes().flat_map(|inode| tree.live(inode));
    heads.map(|head| tree.rows.info(head).id).collect()
}

/// Writes, one by one, what can be done of the changes, and checks that each does what it says.
fn checked_write(device: &mut Device, changes: &[Change]) -> Versions {
    let mut log = Versions::new();
    for change in changes {
        let before = device.tree.fingerprint();
        let (versions, shown) = (device.tree.version_count(), all(&device.tree));
        let current = live(&device.tree);
        let moving: Vec<InodeId> = match change {
            Change::Move { from, .. } => match device.tree.find(from) {
                Some((_, Unit::Folder(inodes))) => inodes
                    .iter()
                    .map(|inode| device.tree.rows.at(*inode).id)
                    .collect(),
                Some((_, Unit::File(inode))) => vec![device.tree.rows.at(inode).id],
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let here = |at: &TreePath| shown.get(&at.to_string()).cloned();
        let Ok(written) = device.write(std::slice::from_ref(change)) else {
            assert_eq!(
                device.tree.fingerprint(),
                before,
                "what cannot be done changes nothing"
            );
            assert_eq!(device.tree.version_count(), versions);
            continue;
        };
        assert_eq!(device.tree.version_count(), versions + written.len());
        match change {
            Change::File {
                path,
                kind,
                link,
                mtime_ms,
                mode,
            } => assert_shows(
                &device.tree,
                path,
                &(*kind, Some(link.clone()), *mtime_ms, *mode),
            ),
            Change::Folder {
                path,
                link,
                mtime_ms,
                mode,
            } => {
                let folder = (FileKind::Folder, link.clone(), *mtime_ms, *mode);
                assert_shows(&device.tree, path, &folder);
            }
            Change::Move { from, to } if from != to => {
                let was = here(from).unwrap();
                // Where the move itself settles a clash, a folder above may lose its suffix.
                let is_moved = |version: VersionInfo| {
                    let record = written
                        .iter()
                        .find(|(info, _)| *info == version)
                        .map(|(_, record)| record);
                    let made = |record: &Record| {
                        moving.is_empty()
                            && record.replaces.is_empty()
                            && record.kind != FileKind::Folder
                    };
                    record.is_some_and(|record| moving.contains(&record.inode) || made(record))
                };
                let settled = || {
                    all(&device.tree)
                        .into_iter()
                        .find(|(_, listed)| listed.version.is_some_and(is_moved))
                };
                let to = if to.to_string().contains('~') {
                    path(&settled().unwrap().0)
                } else {
                    to.clone()
                };
                let now = device.tree.resolve(&to).unwrap();
                let what = |listed: &Listed| (listed.kind, listed.link.clone(), listed.mtime_ms);
                assert_eq!(what(&was), what(&now), "{change:?} as {to}");
                if was.kind == FileKind::Folder {
                    let inside = |tree: &BTreeMap<String, Listed>, at: &TreePath| -> Vec<String> {
                        let begin = format!("{at}/");
                        tree.keys()
                            .filter_map(|name| name.strip_prefix(&begin).map(str::to_owned))
                            .collect()
                    };
                    assert_eq!(
                        inside(&shown, from),
                        inside(&all(&device.tree), &to),
                        "a folder takes along what is in it"
                    );
                }
            }
            Change::Move { .. } => assert_eq!(written, []),
            Change::Remove { path, .. } => {
                let was = here(path).unwrap();
                if let (Some(now), Some(version)) = (device.tree.resolve(path), was.version) {
                    assert_ne!(
                        now.version.map(|version| version.id),
                        Some(version.id),
                        "gone, though another may take the name"
                    );
                }
                let left = live(&device.tree);
                assert!(left.len() < current.len());
            }
            Change::Restore { path, version } => {
                let (_, record) = device.tree.version(*version).unwrap();
                let restored = (
                    record.kind,
                    record.link.clone(),
                    record.mtime_ms,
                    record.mode,
                );
                if record.kind == FileKind::Folder {
                    assert_eq!(device.tree.resolve(path).unwrap().kind, FileKind::Folder);
                } else {
                    assert_shows(&device.tree, path, &restored);
                }
            }
        }
        log.extend(written);
    }
    log
}

/// Records as no honest device writes them: any parents and replacements; if mixed, any kinds, and files that others stand in.
fn hostile(rng: &mut Rng, count: u32, mixed: bool) -> Versions {
    let inode = |rng: &mut Rng| InodeId([1 + u8::try_from(rng.below(6)).unwrap(); 16]);
    let version = |rng: &mut Rng| VersionId {
        entry: EntryId([u8::try_from(rng.below(8)).unwrap(); 32]),
        index: u32::try_from(rng.below(6)).unwrap(),
    };
    let mut versions = Versions::new();
    for _ in 0..count {
        let id = version(rng);
        let of = inode(rng);
        let parent = match rng.below(4) {
            0 => ROOT,
            _ if mixed => inode(rng),
            _ => *pick(rng, &[2, 3, 5, 6].map(|folder| InodeId([folder; 16]))).unwrap(),
        };
        let number = if mixed {
            rng.below(3)
        } else {
            u64::from(of.0[0])
        };
        let kind = [
            FileKind::Folder,
            FileKind::File,
            FileKind::Folder,
            FileKind::Folder,
            FileKind::Symlink,
            FileKind::Folder,
            FileKind::Folder,
        ][usize::try_from(number).unwrap()];
        let deleted = rng.below(4) == 0;
        let mut replaces: Vec<VersionId> = (0..rng.below(3)).map(|_| version(rng)).collect();
        replaces.sort();
        replaces.dedup();
        let record = Record {
            inode: of,
            replaces,
            parent,
            name: vec![b'a' + u8::try_from(rng.below(3)).unwrap()],
            kind,
            link: (!deleted && kind != FileKind::Folder)
                .then(|| link(u8::try_from(rng.below(5)).unwrap())),
            mtime_ms: 0,
            mode: 0o700,
            deleted,
        };
        let info = VersionInfo {
            id,
            author: DeviceId([id.entry.0[0]; 32]),
            hlc: Hlc(u64::from(id.entry.0[0]) / 2),
        };
        if record.check().is_ok() && versions.iter().all(|(other, _)| other.id != id) {
            versions.push((info, record));
        }
    }
    versions
}

fn shuffled(versions: &Versions, rng: &mut Rng) -> Versions {
    let mut shuffled = versions.clone();
    for index in (1..shuffled.len()).rev() {
        shuffled.swap(index, usize::try_from(rng.below(index as u64 + 1)).unwrap());
    }
    let twice: Versions = shuffled
        .iter()
        .filter(|_| rng.below(4) == 0)
        .cloned()
        .collect();
    shuffled.extend(twice);
    shuffled
}

/// The tree of a set, fed one by one or in pieces.
fn fed(versions: Versions, rng: &mut Rng) -> Tree {
    let mut tree = Tree::new();
    let mut rest = versions.as_slice();
    while !rest.is_empty() {
        let (piece, later) =
            rest.split_at(1 + usize::try_from(rng.below(rest.len().min(4) as u64)).unwrap());
        tree.apply_all(piece.iter().cloned());
        rest = later;
    }
    tree
}

fn seeded(seed: u64) -> [u8; 32] {
    *blake3::hash(&seed.to_le_bytes()).as_bytes()
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: 64,
        // A seed says it all, and a smaller one is no simpler.
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn devices_that_heard_all_agree_and_see_all(seed: u64) {
        let (mut devices, log) = world(seeded(seed), 40);
        for device in &mut devices {
            device.tree.check_invariants();
            device.hear(&log);
            device.tree.check_invariants();
        }
        let fingerprints: BTreeSet<[u8; 32]> = devices.iter().map(|device| device.tree.fingerprint()).collect();
        prop_assert_eq!(fingerprints.len(), 1);
    }

    #[test]
    fn order_and_duplicates_are_invisible(seed: u64) {
        let (_, log) = world(seeded(seed), 30);
        let mut rng = Rng::from_seed(seeded(seed));
        let whole = fed(log.clone(), &mut rng);
        for _ in 0..8 {
            let other = fed(shuffled(&log, &mut rng), &mut rng);
            prop_assert_eq!(other.fingerprint(), whole.fingerprint());
            prop_assert_eq!(other.version_count(), log.len());
            other.check_invariants();
        }
    }

    #[test]
    fn hostile_records_break_no_law(seed: u64, count in 1_u32..40) {
        let mut rng = Rng::from_seed(seeded(seed));
        let versions = hostile(&mut rng, count, true);
        let whole = fed(versions.clone(), &mut rng);
        whole.check_invariants();
        for _ in 0..4 {
            let mut other = fed(shuffled(&versions, &mut rng), &mut rng);
            prop_assert_eq!(other.fingerprint(), whole.fingerprint());
            // Entries come and go: what is left is as if it had never been.
            let entries: BTreeSet<EntryId> = versions.iter().map(|(info, _)| info.id.entry).collect();
            let voided: Vec<EntryId> = entries.into_iter().filter(|_| rng.below(2) == 0).collect();
            other.void_all(voided.iter().copied());
            other.check_invariants();
            let left: Versions = versions.iter().filter(|(info, _)| !voided.contains(&info.id.entry)).cloned().collect();
            prop_assert_eq!(other.fingerprint(), fed(left, &mut rng).fingerprint());
            other.apply_all(shuffled(&versions, &mut rng));
            prop_assert_eq!(other.fingerprint(), whole.fingerprint());
            other.void_all(versions.iter().map(|(info, _)| info.id.entry));
            prop_assert_eq!(other.fingerprint(), Tree::new().fingerprint());
            prop_assert!(other.is_blank());
        }
    }

    #[test]
    fn plans_upon_hostile_records_break_no_law(seed: u64, count in 1_u32..40) {
        let mut rng = Rng::from_seed(seeded(seed));
        let mut device = Device::new(1);
        device.clock = 1000;
        device.tree.apply_all(hostile(&mut rng, count, true));
        for _ in 0..12 {
            let before = (device.tree.fingerprint(), device.tree.version_count());
            let list: Vec<Change> = (0..=rng.below(4)).map(|_| change(&device.tree, &mut rng)).collect();
            match device.write(&list) {
                Ok(written) => prop_assert_eq!(device.tree.version_count(), before.1 + written.len()),
                Err(_) => prop_assert_eq!((device.tree.fingerprint(), device.tree.version_count()), before),
            }
            device.tree.check_invariants();
        }
    }

    #[test]
    fn plans_do_what_they_say_whatever_is_there(seed: u64, count in 1_u32..40) {
        let mut rng = Rng::from_seed(seeded(seed));
        let mut device = Device::new(1);
        device.clock = 1000;
        device.tree.apply_all(hostile(&mut rng, count, false));
        for _ in 0..12 {
            let change = change(&device.tree, &mut rng);
            checked_write(&mut device, &[change]);
            device.tree.check_invariants();
        }
    }
}

// A plain file system to compare with.

/// Paths; a file has content, a folder none.
type Model = BTreeMap<TreePath, Option<u8>>;

fn model_folders(model: &mut Model, at: &TreePath) -> Option<()> {
    let mut above = TreePath::root();
    for name in at.parent()?.names() {
        above = above.child(name).unwrap();
        if model.entry(above.clone()).or_insert(None).is_some() {
            return None;
        }
    }
    Some(())
}

/// Does a change as any file system would; `None` if it cannot be done.
fn model_change(model: &mut Model, change: &Change) -> Option<()> {
    match change {
        Change::File { path, link, .. } => {
            model_folders(model, path)?;
            if model.get(path) == Some(&None) {
                return None;
            }
            model.insert(path.clone(), Some(link.digest[0]));
        }
        Change::Folder { path, .. } => {
            model_folders(model, path)?;
            if model.entry(path.clone()).or_insert(None).is_some() {
                return None;
            }
        }
        Change::Move { from, to } => {
            model.get(from)?;
            if from == to {
                return Some(());
            }
            if model.contains_key(to) || to.starts_with(from) || to.is_root() {
                return None;
            }
            model_folders(model, to)?;
            let moved: Model = model
                .extract_if(.., |path, _| path.starts_with(from))
                .collect();
            for (path, content) in moved {
                let rest = path.to_bytes().split_off(from.to_bytes().len());
                let path = [to.to_bytes(), rest].concat();
                model.insert(TreePath::parse(&path).unwrap(), content);
            }
        }
        Change::Remove { path, recursive } => {
            model.get(path)?;
            let inside = model.keys().filter(|other| other.starts_with(path)).count();
            if inside > 1 && !recursive {
                return None;
            }
            model.retain(|other, _| !other.starts_with(path));
        }
        Change::Restore { .. } => unreachable!("the model has no past"),
    }
    Some(())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn one_device_alone_has_a_plain_file_system(seed: u64) {
        let mut rng = Rng::from_seed(seeded(seed));
        let mut device = Device::new(1);
        let mut model = Model::new();
        for _ in 0..30 {
            let list: Vec<Change> = (0..=rng.below(4))
                .map(|_| change(&device.tree, &mut rng))
                .filter(|change| !matches!(change, Change::Restore { .. }))
                .collect();
            let mut wanted = model.clone();
            let possible = list.iter().try_for_each(|change| model_change(&mut wanted, change));
            let written = device.write(&list);
            prop_assert_eq!(written.is_ok(), possible.is_some(), "{:?} {:?}", list, written);
            if possible.is_some() {
                model = wanted;
            }
            let shown: Model = all(&device.tree)
                .into_iter()
                .map(|(name, listed)| {
                    let content = listed.link.map(|link| link.digest[0]).filter(|_| listed.kind != FileKind::Folder);
                    (path(&name), content)
                })
                .collect();
            prop_assert_eq!(&shown, &model);
            device.tree.check_invariants();
        }
    }
}

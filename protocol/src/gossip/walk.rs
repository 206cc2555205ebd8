//! The walk: two devices compare their trees, part by part, until each knows what the other has and it lacks.
//!
//! A step is answered from the tree as it is now; nothing is remembered between steps, so that nothing can be made to grow.
//!
//! Spec: `protocol/spec/gossip.md`, "Walk".

use super::digest::{Key, Label, Path, RadixTree, Subtree};

/// Nibbles that name a single key in a walk: its stamp and half of its id.
pub const LEAF_NIBBLES: u8 = 48;
/// Nibbles by which a single key is fetched: its stamp and 32 bits of its id. Should it meet two keys, both come.
const FETCH_NIBBLES: u8 = 24;
/// Keys listed one by one rather than by hashes: as dear as one level of hashes, and it saves the levels below.
const LEAVES_MAX: u64 = 32;
/// A child with so few keys is listed by its keys, which are hardly longer than its hash.
const LEAVES_FEW: u64 = 2;
/// Items of an opening beyond which nothing more is opened: with 16 children a level, about ten levels.
const OPENING_ITEMS_MAX: usize = 160;
/// Fewest items of an opening, if there are so many keys.
const OPENING_ITEMS_MIN: usize = 64;
/// Items spent on the parts that differ, shared among them.
const SPLIT_ITEMS: usize = 256;
/// Fewest items spent on each: one level of the tree.
const SPLIT_ITEMS_MIN: usize = 16;
/// Most bytes an item takes: two for the path's lengths, its nibbles, and a magnitude and a label where it has fewer than [`LEAF_NIBBLES`].
const ITEM_BYTES_MAX: usize = 2 + 24 + 17;
/// Most bytes a section takes besides its items.
const SECTION_BYTES_MAX: usize = 2 + 24 + 2;

/// What a device says of one part of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// Two keys or more begin so.
    Node {
        /// Shorter than [`LEAF_NIBBLES`].
        path: Path,
        /// How many binary digits their number has.
        magnitude: u8,
        /// First half of the hash over them.
        label: Label,
    },
    /// A key begins so; the path has just [`LEAF_NIBBLES`].
    Leaf(Path),
}

impl Item {
    /// The part of the tree.
    pub fn path(&self) -> Path {
        match self {
            Self::Node { path, .. } | Self::Leaf(path) => *path,
        }
    }

    /// Tells of a subtree under its slot, or under a longer path that holds all of it.
    fn of(subtree: &Subtree<'_>, path: Path) -> Self {
        if subtree.count() == 1 || path.nibbles() >= LEAF_NIBBLES {
            Self::Leaf(subtree.path().cut(LEAF_NIBBLES))
        } else {
            Self::Node {
                path,
                magnitude: magnitude(subtree.count()),
                label: subtree.label(),
            }
        }
    }
}

/// How many binary digits a number has.
fn magnitude(count: u64) -> u8 {
    u8::try_from(u64::BITS - count.leading_zeros()).expect("at most 64")
}

/// All that a device has under one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The path, shorter than [`LEAF_NIBBLES`].
    pub prefix: Path,
    /// In order, none within another. Where none stands, the device has no key.
    pub items: Vec<Item>,
}

/// One step of a walk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// Parts that differ, or (in an opening) the whole.
    pub sections: Vec<Section>,
    /// Parts that the other has nothing of, as far as it said.
    pub offers: Vec<Item>,
    /// Parts whose entries are asked for.
    pub fetches: Vec<Path>,
}

impl Step {
    /// Whether the other is to answer with a step, be it an empty one.
    pub fn asks(&self) -> bool {
        !(self.sections.is_empty() && self.offers.is_empty())
    }
}

/// An answer to a step.
#[derive(Debug, Default)]
pub struct Answer {
    /// What to say.
    pub step: Step,
    /// Whether something was left out for want of room; another walk will find it.
    pub cut_short: bool,
}

/// The first step of a walk: the whole tree, the finer the newer.
pub fn opening(tree: &RadixTree) -> Step {
    let mut items = Vec::new();
    if let Some(top) = tree.under(&Path::ALL) {
        // Down the newest side first, since that is where devices differ.
        let mut parts = vec![top];
        if top.count() > LEAVES_MAX {
            while let Some(newest) = parts.last().copied()
                && parts.len() < OPENING_ITEMS_MAX
                && newest.count() > LEAVES_FEW
            {
                parts.pop();
                parts.extend(newest.children());
            }
            split(&mut parts, OPENING_ITEMS_MIN);
        }
        list(tree, &parts, &mut items);
    }
    Step {
        sections: vec![Section {
            prefix: Path::ALL,
            items,
        }],
        ..Step::default()
    }
}

/// Answers a step, in at most about `room` bytes.
///
/// `wanted` may turn down what the other has and this device lacks, because it is on its way already.
pub fn answer(
    tree: &RadixTree,
    theirs: &Step,
    room: usize,
    mut wanted: impl FnMut(&Path) -> bool,
) -> Answer {
    let mut left = room;
    let mut fetches = Vec::new();
    let mut offers = Vec::new();
    let mut differing = Vec::new();
    let mut cut_short = false;
    let listed = theirs.sections.iter().flat_map(|section| &section.items);
    for item in listed.chain(&theirs.offers) {
        let path = item.path();
        match (item, tree.under(&path)) {
            (_, None) => {
                if wanted(&path) {
                    let path = match item {
                        Item::Node { .. } => path,
                        Item::Leaf(_) => path.cut(FETCH_NIBBLES),
                    };
                    cut_short |= !put(&mut fetches, path, ITEM_BYTES_MAX, &mut left);
                }
            }
            (Item::Leaf(_), Some(_)) => {}
            (Item::Node { label, .. }, Some(mine)) => {
                if mine.label() != *label {
                    differing.push(mine);
                }
            }
        }
    }
    for section in &theirs.sections {
        if let Some(mine) = tree.under(&section.prefix) {
            // What they fetch by this very step need not be offered.
            let fetched = within(&theirs.fetches, &section.prefix);
            let listed = section.items.iter().map(Item::path);
            let covered = disjoint(listed.chain(fetched.iter().copied()).collect(), |path| {
                *path
            });
            cut_short |= !gaps(&mine, &covered, &mut offers, &mut left);
        }
    }
    let share = SPLIT_ITEMS
        .min(left / ITEM_BYTES_MAX)
        .checked_div(differing.len())
        .unwrap_or_default()
        .max(SPLIT_ITEMS_MIN);
    let mut sections = Vec::new();
    for mine in disjoint(differing, Subtree::slot) {
        let mut parts = vec![mine];
        if mine.count() > LEAVES_MAX {
            split(&mut parts, share);
        }
        let mut items = Vec::new();
        list(tree, &parts, &mut items);
        let bytes = SECTION_BYTES_MAX + ITEM_BYTES_MAX * items.len();
        let section = Section {
            prefix: mine.slot(),
            items,
        };
        if !put(&mut sections, section, bytes, &mut left) {
            cut_short = true;
            break;
        }
    }
    Answer {
        step: Step {
            sections,
            offers: disjoint(offers, Item::path),
            fetches: disjoint(fetches, |path| *path),
        },
        cut_short,
    }
}

/// Puts something on a list if there is room for it.
fn put<T>(list: &mut Vec<T>, thing: T, bytes: usize, left: &mut usize) -> bool {
    let Some(rest) = left.checked_sub(bytes) else {
        return false;
    };
    *left = rest;
    list.push(thing);
    true
}

/// Those of sorted, disjoint paths that overlap with one.
fn within<'a>(paths: &'a [Path], prefix: &Path) -> &'a [Path] {
    let from = paths.partition_point(|path| path < prefix && !path.begins(prefix));
    let rest = paths.get(from..).unwrap_or_default();
    let len = rest.partition_point(|path| path.overlaps(prefix));
    rest.get(..len).unwrap_or_default()
}

/// Sorts by path, and keeps of what overlaps only the widest.
pub(super) fn disjoint<T>(mut things: Vec<T>, path: impl Fn(&T) -> Path) -> Vec<T> {
    things.sort_by_key(&path);
    let mut last: Option<Path> = None;
    things.retain(|thing| {
        let path = path(thing);
        let within = last.is_some_and(|last| last.begins(&path));
        if !within {
            last = Some(path);
        }
        !within
    });
    things
}

/// Opens the fullest parts until there are `target`, or all have few keys.
fn split(parts: &mut Vec<Subtree<'_>>, target: usize) {
    while parts.len() < target {
        let fullest = parts
            .iter()
            .enumerate()
            .max_by_key(|(_, part)| part.count())
            .filter(|(_, part)| part.count() > LEAVES_FEW)
            .map(|(at, part)| (at, part.children().collect::<Vec<_>>()));
        let Some((at, children)) = fullest else {
            return;
        };
        parts.splice(at..=at, children);
    }
}

/// Writes parts down: as they are, or key by key where that is as short.
fn list(tree: &RadixTree, parts: &[Subtree<'_>], items: &mut Vec<Item>) {
    let alone = parts.len() == 1;
    for part in parts {
        let few = if alone { LEAVES_MAX } else { LEAVES_FEW };
        if part.count() <= few {
            let keys = tree.keys(&part.path(), None, usize::MAX);
            let skipped = usize::from(cfg!(planted = "walk-skips-a-key"));
            items.extend(
                keys.iter()
                    .skip(skipped)
                    .map(|key: &Key| Item::Leaf(Path::of(key, LEAF_NIBBLES))),
            );
        } else {
            items.push(Item::of(part, part.slot()));
        }
    }
    // Two keys that share their first 48 nibbles are told of as one, and fetched as one.
    items.dedup();
}

/// Offers what is under none of the paths; false if there was no room.
fn gaps(mine: &Subtree<'_>, covered: &[Path], offers: &mut Vec<Item>, left: &mut usize) -> bool {
    let path = mine.path();
    let after = covered.partition_point(|cover| *cover <= path);
    let before = after.checked_sub(1).and_then(|at| covered.get(at));
    if before.is_some_and(|cover| cover.begins(&path)) {
        return true;
    }
    if covered.get(after).is_some_and(|cover| path.begins(cover)) {
        return mine
            .children()
            .all(|child| gaps(&child, covered, offers, left));
    }
    // The slot may reach over what is covered, though no key of this device's stands there: then the path is made longer.
    let apart = before
        .into_iter()
        .chain(covered.get(after))
        .map(|cover| cover.shared(&path) + 1)
        .max()
        .unwrap_or_default();
    let offered = path.cut(apart.max(mine.slot().nibbles()));
    put(offers, Item::of(mine, offered), ITEM_BYTES_MAX, left)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::digest::TreeId;
    use super::super::message::{self, Message};
    use super::*;

    /// Room of a frame.
    const ROOM: usize = message::STEP_BYTES_MAX - 64;

    fn key(ms: u64, seed: u64) -> Key {
        Key {
            hlc: ms << 16,
            id: *blake3::hash(&seed.to_le_bytes()).as_bytes(),
        }
    }

    fn tree_of<'a>(keys: impl IntoIterator<Item = &'a Key>) -> RadixTree {
        let mut tree = RadixTree::new(TreeId::default());
        for key in keys {
            tree.insert(*key);
        }
        tree
    }

    fn frame(step: &Step) -> Bytes {
        let tree = TreeId::default();
        let message = Message::Step {
            tree,
            opening: true,
            number: 1,
            step: step.clone(),
        };
        message.encode().into()
    }

    /// What a walk cost.
    #[derive(Debug, Default)]
    struct Cost {
        bytes: usize,
        frames: usize,
        entries: u64,
        walks: usize,
    }

    /// Walks until both trees are the same; entries arrive at once when they are fetched.
    fn converge(a: &mut RadixTree, b: &mut RadixTree, room: usize) -> Cost {
        let mut cost = Cost::default();
        while a.root() != b.root() {
            cost.walks += 1;
            assert!(cost.walks < 100, "walks make progress");
            let mut step = opening(a);
            let mut asked = [BTreeSet::new(), BTreeSet::new()];
            let mut speaker = 0;
            loop {
                let bytes = frame(&step);
                assert!(bytes.len() <= room.max(8 << 10), "{} bytes", bytes.len());
                assert!(
                    matches!(Message::decode(&bytes), Ok(Message::Step { step: read, .. }) if read == step)
                );
                cost.bytes += bytes.len();
                cost.frames += 1;
                asked[speaker].extend(step.fetches.iter().copied());
                if !step.asks() {
                    break;
                }
                assert!(cost.frames < 1000, "a walk ends");
                speaker = 1 - speaker;
                let mine = if speaker == 0 { &*a } else { &*b };
                let going = &asked[speaker];
                step = answer(mine, &step, room, |path| {
                    !going.iter().any(|other| other.overlaps(path))
                })
                .step;
            }
            let moved = [(&asked[0], &*b), (&asked[1], &*a)].map(|(asked, from)| {
                let keys = asked
                    .iter()
                    .flat_map(|path| from.keys(path, None, usize::MAX));
                keys.collect::<Vec<_>>()
            });
            for (tree, keys) in [&mut *a, &mut *b].into_iter().zip(moved) {
                for key in keys {
                    cost.entries += u64::from(tree.insert(key));
                }
            }
        }
        cost
    }

    fn random_sets() -> impl Strategy<Value = (Vec<Key>, Vec<Key>)> {
        let one = (0_u64..400, 0_u64..4, 0_u8..10).prop_map(|(ms, seed, whose)| {
            let mut key = key(ms * ms, seed);
            if seed == 3 {
                // Alike as far as a walk can tell keys apart, but for the last nibbles.
                key.id = [9; 32];
                key.id[15] = whose;
            }
            (key, whose)
        });
        proptest::collection::vec(one, 0..300).prop_map(|all| {
            let pick = |skip: u8| {
                all.iter()
                    .filter(|(_, whose)| *whose != skip)
                    .map(|(key, _)| *key)
                    .collect()
            };
            (pick(0), pick(1))
        })
    }

    proptest! {
        #[test]
        fn both_end_with_the_union((a, b) in random_sets()) {
            let union: BTreeSet<Key> = a.iter().chain(&b).copied().collect();
            let (mut a, mut b) = (tree_of(&a), tree_of(&b));
            let missing = 2 * union.len() - usize::try_from(a.len() + b.len()).unwrap();
            let cost = converge(&mut a, &mut b, ROOM);
            prop_assert_eq!(a.keys(&Path::ALL, None, usize::MAX), union.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(cost.entries, u64::try_from(missing).unwrap());
            prop_assert!(cost.walks <= 1, "{:?}", cost);
        }

        #[test]
        fn small_frames_only_take_longer((a, b) in random_sets()) {
            let (mut a, mut b) = (tree_of(&a), tree_of(&b));
            converge(&mut a, &mut b, 2 << 10);
            prop_assert_eq!(a.root(), b.root());
        }
    }

    /// A year of keys, then some of each device alone.
    fn recent(common: u64, own: u64, span_ms: u64) -> (RadixTree, RadixTree) {
        const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;
        const START_MS: u64 = 1_700_000_000_000;
        let (mut a, mut b) = (RadixTree::default(), RadixTree::default());
        for n in 0..common {
            let key = key(START_MS + n * (YEAR_MS / common), n);
            a.insert(key);
            b.insert(key);
        }
        for n in 0..own {
            a.insert(key(
                START_MS + YEAR_MS + n * span_ms / own,
                u64::MAX - 2 * n,
            ));
            b.insert(key(
                START_MS + YEAR_MS + n * span_ms / own + 7,
                u64::MAX - 2 * n - 1,
            ));
        }
        (a, b)
    }

    /// Budget: 1 M keys, 1,000 recent differences, under 64 KB and 5 round trips. The frames weigh the same for fewer keys but for a level or so.
    /// `KITH_LARGE=1` measures the million.
    #[test]
    fn recent_differences_are_cheap() {
        let common = if std::env::var_os("KITH_LARGE").is_some() {
            1_000_000
        } else {
            100_000
        };
        for (name, span_ms) in [
            ("within a minute", 60_000),
            ("within ten hours", 36_000_000),
            ("within a week", 7 * 86_400_000),
        ] {
            let (mut a, mut b) = recent(common, 500, span_ms);
            a.root();
            b.root();
            let cost = converge(&mut a, &mut b, ROOM);
            println!("{common} keys, 1,000 differences {name}: {cost:?}");
            assert_eq!(cost.entries, 1000);
            assert_eq!(cost.walks, 1);
            assert!(cost.bytes < 64 << 10, "{cost:?}");
            assert!(cost.frames <= 9, "{cost:?}");
        }
    }

    /// The hard case for a tree in time order: what is missing is strewn over all times.
    #[test]
    fn strewn_differences_still_converge() {
        let all: Vec<Key> = (0..50_000)
            .map(|n| key(1_700_000_000_000 + n * 60_000, n))
            .collect();
        let lack = |which: u64| {
            tree_of(
                all.iter()
                    .enumerate()
                    .filter(move |(n, _)| *n as u64 % 101 != which)
                    .map(|(_, key)| key),
            )
        };
        let (mut a, mut b) = (lack(3), lack(77));
        let cost = converge(&mut a, &mut b, ROOM);
        println!("50,000 keys, 990 strewn differences: {cost:?}");
        assert_eq!(a.len(), 50_000);
        assert!(cost.bytes < 1 << 20, "{cost:?}");
    }

    #[test]
    fn newcomer_asks_for_everything_in_a_few_words() {
        let all: Vec<Key> = (0..20_000)
            .map(|n| key(1_700_000_000_000 + n * 60_000, n))
            .collect();
        for newcomer_opens in [false, true] {
            let (mut full, mut empty) = (tree_of(&all), RadixTree::default());
            let cost = if newcomer_opens {
                converge(&mut empty, &mut full, ROOM)
            } else {
                converge(&mut full, &mut empty, ROOM)
            };
            assert_eq!(cost.entries, 20_000);
            assert!(cost.bytes < 8 << 10 && cost.frames <= 3, "{cost:?}");
        }
    }

    #[test]
    fn one_new_key_costs_little() {
        let (mut a, mut b) = recent(50_000, 0, 1);
        a.insert(key(1_800_000_000_000, 1));
        let cost = converge(&mut a, &mut b, ROOM);
        println!("50,000 keys, one new: {cost:?}");
        assert!(cost.bytes < 6 << 10 && cost.frames <= 3, "{cost:?}");
    }

    proptest! {
        /// Whatever a liar says, the answer is canonical, no longer than allowed, and made in bounded time.
        #[test]
        fn answers_to_lies_are_canonical(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), honest in any::<bool>()) {
            let (a, b) = recent(200, 20, 1000);
            if honest {
                let step = answer(&b, &opening(&a), ROOM, |_| true).step;
                bytes = frame(&step).to_vec();
                for (at, value) in edits {
                    let at = at % bytes.len();
                    bytes[at] = value;
                }
            } else {
                bytes.insert(0, message::KIND_STEP);
            }
            if let Ok(Message::Step { step, .. }) = Message::decode(&bytes.into()) {
                let answer = answer(&a, &step, 4096, |_| true).step;
                let bytes = frame(&answer);
                prop_assert!(bytes.len() <= 4096 + 64);
                let same = matches!(Message::decode(&bytes), Ok(Message::Step { step, .. }) if step == answer);
                prop_assert!(same);
            }
        }
    }
}

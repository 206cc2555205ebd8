//! What is remembered of one connected device: where a walk with it stands, what was asked of it, what it is being given.

use std::collections::{BTreeMap, VecDeque};

use kith_object::id::DeviceId;
use kith_object::time::{Span, Time};

use super::digest::{Key, Path, RadixTree};
use super::message::{Tag, tag};

/// Steps that are answered at once; many times what a walk takes.
const STEPS_BURST: u64 = 64;
/// Steps that are answered per second in the long run.
const STEPS_RATE: u64 = 8;
/// Single fetches this device makes at once of entries announced; well below what the other answers.
const CALLS_BURST: u64 = 24;
/// The same per second in the long run.
const CALLS_RATE: u64 = 3;
/// Steps beyond those that are passed over before it is too much; and per second.
const EXCESS_BURST: u64 = 256;
const EXCESS_RATE: u64 = 8;
/// Entries given to a device beyond what there is four times over; and per second. An honest one asks for each once, unless its answer was lost.
const GIVEN_BURST: u64 = 1024;
const GIVEN_RATE: u64 = 16;
/// Most fetches of one device that wait to be served.
pub(super) const REQUESTS_MAX: usize = 32;
/// Most paths of one device that wait to be served; one step of ours asks for some six thousand at most.
const REQUEST_PATHS_MAX: usize = 32 << 10;
/// Most fetches waited for from one device.
pub(super) const ASKED_MAX: usize = 16;
/// First, and most, entries read from disk at once for one device.
const BATCH_FIRST: usize = 8;
const BATCH_MAX: usize = 32;
/// A batch that came to less than this may be doubled, one above the other limit is halved: entries are between 500 bytes and 1 MiB.
const BATCH_BYTES_LOW: usize = 128 << 10;
const BATCH_BYTES_HIGH: usize = 512 << 10;
/// Most keys remembered as delivered and not yet counted.
pub(super) const DELIVERED_MAX: usize = 16 << 10;

/// One connected device.
#[derive(Debug)]
pub(super) struct Peer {
    /// The root it told last; forgotten once walked.
    pub(super) root: Option<[u8; 32]>,
    /// When to open a walk with it.
    pub(super) due: Option<Time>,
    /// When to tell it our root, after a walk.
    pub(super) tell_due: Option<Time>,
    /// Its answer to a step of ours is waited for.
    pub(super) awaiting: Option<Awaiting>,
    /// Whether the walk under way is our own.
    pub(super) opened: bool,
    /// Steps of it answered in this walk.
    pub(super) steps: u32,
    /// What was asked of it, by number.
    pub(super) asked: BTreeMap<u32, Asked>,
    /// Walks opened, and fetches failed, since something of use came from it.
    pub(super) fruitless: u32,
    /// When something of use came from it.
    pub(super) fruit: Option<Time>,
    /// Our root and its own when a walk was opened last.
    pub(super) walked: Option<([u8; 32], [u8; 32])>,
    /// What it is being given.
    pub(super) serve: Serve,
    /// Bytes handed to the shell for it that are not written yet.
    pub(super) unflushed: usize,
    /// Limits its steps.
    pub(super) steps_credit: Credit,
    /// Limits the steps beyond.
    pub(super) excess_credit: Credit,
    /// Limits the entries it is given.
    pub(super) given_credit: Credit,
    /// Limits our single fetches.
    pub(super) calls_credit: Credit,
}

/// A step of ours is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaiting {
    pub(super) since: Time,
    /// It opened the walk.
    pub(super) opening: bool,
}

/// Paths whose entries were asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) paths: Vec<Path>,
    /// When anything came of it last.
    pub(super) heard: Time,
}

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            root: None,
            due: None,
            tell_due: None,
            awaiting: None,
            opened: false,
            steps: 0,
            asked: BTreeMap::new(),
            fruitless: 0,
            fruit: None,
            walked: None,
            serve: Serve::default(),
            unflushed: 0,
            steps_credit: Credit::new(STEPS_BURST, STEPS_RATE),
            excess_credit: Credit::new(EXCESS_BURST, EXCESS_RATE),
            given_credit: Credit::new(0, GIVEN_RATE),
            calls_credit: Credit::new(CALLS_BURST, CALLS_RATE),
        }
    }

    /// Whether it may be given so many entries more, of so many that there are.
    pub(super) fn may_have(&mut self, now: Time, entries: u64, of: u64) -> bool {
        self.given_credit
            .raise(of.saturating_mul(4).saturating_add(GIVEN_BURST));
        self.given_credit.spend(now, entries)
    }

    /// Whether this device waits for something from it.
    pub(super) fn waits(&self) -> bool {
        self.awaiting.is_some() || !self.asked.is_empty()
    }

    /// Whether nothing is going on with it.
    pub(super) fn idle(&self) -> bool {
        !self.waits() && self.serve.idle()
    }
}

/// Entries on their way to one device.
#[derive(Debug)]
pub(super) struct Serve {
    queue: VecDeque<Request>,
    /// What is being read for it, under which token.
    pub(super) loading: Option<(u64, Batch)>,
    /// How many to read at once.
    batch: usize,
}

#[derive(Debug)]
struct Request {
    number: u32,
    /// Those not yet gone through, the next one last.
    paths: Vec<Path>,
    /// The last key taken of the next path.
    after: Option<Key>,
    /// Read once, and put back: these come first.
    back: VecDeque<Key>,
}

/// Entries read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    /// The number they are given under.
    pub(super) number: u32,
    /// Which, in order.
    pub(super) keys: Vec<Key>,
    /// Whether they are the last under that number.
    pub(super) last: bool,
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            loading: None,
            batch: BATCH_FIRST,
        }
    }
}

impl Serve {
    pub(super) fn idle(&self) -> bool {
        self.queue.is_empty() && self.loading.is_none()
    }

    /// Whether there is something to read.
    pub(super) fn ready(&self) -> bool {
        self.loading.is_none() && !self.queue.is_empty()
    }

    pub(super) fn requests(&self) -> usize {
        self.queue.len()
    }

    /// Takes in paths that are asked for, in order; false if there are too many requests already.
    pub(super) fn ask(&mut self, number: u32, paths: &[Path]) -> bool {
        let waiting: usize = self.queue.iter().map(|request| request.paths.len()).sum();
        if self.queue.len() >= REQUESTS_MAX || waiting + paths.len() > REQUEST_PATHS_MAX {
            return false;
        }
        self.queue.push_back(Request {
            number,
            paths: paths.iter().rev().copied().collect(),
            after: None,
            back: VecDeque::new(),
        });
        true
    }

    /// The keys to give next, as the tree is now.
    pub(super) fn next(&mut self, tree: &RadixTree) -> Option<Batch> {
        let request = self.queue.front_mut()?;
        let back = request.back.len().min(self.batch);
        let mut keys: Vec<Key> = request.back.drain(..back).collect();
        while let Some(path) = request.paths.last() {
            let room = self.batch - keys.len();
            if room == 0 {
                break;
            }
            let more = tree.keys(path, request.after.as_ref(), room);
            request.after = more.last().copied();
            if more.len() < room {
                request.paths.pop();
                request.after = None;
            }
            keys.extend(more);
        }
        let (number, last) = (
            request.number,
            request.paths.is_empty() && request.back.is_empty(),
        );
        if last {
            self.queue.pop_front();
        }
        Some(Batch { number, keys, last })
    }

    /// Puts back keys that came to too much at once.
    pub(super) fn put_back(&mut self, batch: &mut Batch, keys: impl Iterator<Item = Key>) {
        if batch.last {
            batch.last = false;
            self.queue.push_front(Request {
                number: batch.number,
                paths: Vec::new(),
                after: None,
                back: VecDeque::new(),
            });
        }
        if let Some(request) = self.queue.front_mut() {
            // What is left of an earlier putting back comes after.
            let later = std::mem::replace(&mut request.back, keys.collect());
            request.back.extend(later);
        }
    }

    /// Learns from how much a batch came to.
    pub(super) fn weigh(&mut self, len_bytes: usize) {
        if len_bytes < BATCH_BYTES_LOW {
            self.batch = (2 * self.batch).min(BATCH_MAX);
        } else if len_bytes > BATCH_BYTES_HIGH {
            self.batch = (self.batch / 2).max(1);
        }
    }
}

/// So much at once, so much per second in the long run.
#[derive(Debug)]
pub(super) struct Credit {
    /// In thousandths.
    left: u64,
    burst: u64,
    rate: u64,
    at: Time,
}

impl Credit {
    pub(super) fn new(burst: u64, rate: u64) -> Self {
        Self {
            left: burst.saturating_mul(1000),
            burst,
            rate,
            at: Time(0),
        }
    }

    /// Allows more at once, if it is more.
    pub(super) fn raise(&mut self, burst: u64) {
        let more = burst.saturating_sub(self.burst);
        self.burst += more;
        self.left = self.left.saturating_add(more.saturating_mul(1000));
    }

    /// Spends so much, if there is as much.
    pub(super) fn spend(&mut self, now: Time, cost: u64) -> bool {
        let earned = now.since(self.at).as_ms().saturating_mul(self.rate);
        self.at = self.at.max(now);
        self.left = self
            .left
            .saturating_add(earned)
            .min(self.burst.saturating_mul(1000));
        match self.left.checked_sub(cost.saturating_mul(1000)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// Entries that were delivered and do not count yet: being judged, written to disk, or waiting for others.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    tags: BTreeMap<Tag, Delivery>,
    /// In the order they came; may name some that are gone.
    order: VecDeque<Tag>,
}

#[derive(Debug)]
struct Delivery {
    /// Who gave it, if it was fetched.
    from: Option<DeviceId>,
    /// When it came first.
    first: Time,
}

/// For so long a delivered entry is not asked for again.
const DELIVERED_QUIET: Span = Span::from_secs(10);

impl Delivered {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// A later delivery does not renew the time: one that claims an entry over and over could else keep it away for ever.
    pub(super) fn note(&mut self, now: Time, tag: Tag, from: Option<DeviceId>) {
        let delivery = self.tags.entry(tag).or_insert_with(|| {
            self.order.push_back(tag);
            Delivery { from, first: now }
        });
        delivery.from = from.or(delivery.from);
        while self.order.len() > DELIVERED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.tags.remove(&oldest);
            }
        }
    }

    /// The entry counts now; who is to thank?
    pub(super) fn counted(&mut self, key: &Key) -> Option<DeviceId> {
        self.tags.remove(&tag(key))?.from
    }

    /// Whether an entry of that key came a moment ago.
    pub(super) fn recent(&self, now: Time, path: &Path) -> bool {
        let delivery = self.tags.get(&tag(&path.first()));
        delivery.is_some_and(|delivery| now.since(delivery.first) < DELIVERED_QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::TreeId;
    use super::*;

    fn key(n: u8) -> Key {
        Key {
            hlc: u64::from(n),
            id: [n; 32],
        }
    }

    #[test]
    fn requests_are_served_in_order_and_to_the_end() {
        let mut tree = RadixTree::new(TreeId::default());
        for n in 0..20 {
            tree.insert(key(n));
        }
        let mut serve = Serve::default();
        let half = Path::of(&key(16), 15);
        assert!(serve.ask(1, &[half]) && serve.ask(2, &[]) && serve.ask(3, &[Path::ALL]));
        let four = serve.next(&tree).unwrap();
        assert_eq!((four.number, four.keys.len(), four.last), (1, 4, true));
        let none = serve.next(&tree).unwrap();
        assert_eq!((none.number, none.keys.len(), none.last), (2, 0, true));
        let first = serve.next(&tree).unwrap();
        assert_eq!((first.keys, first.last), ((0..8).map(key).collect(), false));
        serve.weigh(0);
        let mut rest = serve.next(&tree).unwrap();
        assert_eq!(
            (rest.keys.clone(), rest.last),
            ((8..20).map(key).collect(), true)
        );
        assert!(serve.idle());
        // What is put back comes again, before the rest, and the end is told only then.
        serve.put_back(&mut rest, (10..20).map(key));
        assert!(!rest.last);
        let again = serve.next(&tree).unwrap();
        assert_eq!(
            (again.number, again.keys, again.last),
            (3, (10..20).map(key).collect(), true)
        );
    }

    #[test]
    fn credit_is_earned_with_time() {
        let mut credit = Credit::new(2, 1);
        assert!(credit.spend(Time(5000), 2));
        assert!(!credit.spend(Time(5999), 1));
        assert!(credit.spend(Time(6000), 1));
        assert!(!credit.spend(Time(1_000_000), 3));
    }

    #[test]
    fn delivered_is_bounded_and_cannot_be_renewed() {
        let mut delivered = Delivered::default();
        let path = Path::of(&key(1), 48);
        delivered.note(Time(0), tag(&key(1)), None);
        assert!(delivered.recent(Time(9_000), &path));
        delivered.note(Time(9_000), tag(&key(1)), Some(DeviceId([1; 32])));
        assert!(!delivered.recent(Time(10_000), &path));
        assert_eq!(delivered.counted(&key(1)), Some(DeviceId([1; 32])));
        for n in 0..u32::try_from(DELIVERED_MAX).unwrap() + 10 {
            delivered.note(Time(0), n.to_be_bytes(), None);
        }
        assert_eq!(delivered.len(), DELIVERED_MAX);
    }
}

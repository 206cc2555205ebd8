//! Which versions keep their content.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::EntryId;
use kith_object::object::ObjectLink;
use kith_object::time::{Span, Time};
use kith_object::tree::FileKind;

use super::tree::Tree;

/// For how many days how many versions of a thing are kept.
///
/// Spec: `protocol/spec/garbage.md`, "Retention".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Days for which everything is kept that was current in them; [`Retention::FOREVER`] for ever.
    pub all: u32,
    /// Days for which the last version of each UTC day is kept.
    pub daily: u32,
    /// Days for which the last version of each UTC month is kept.
    pub monthly: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            all: 30,
            daily: 365,
            monthly: Self::FOREVER,
        }
    }
}

impl Retention {
    /// No end.
    pub const FOREVER: u32 = u32::MAX;

    /// Whether the numbers may stand in a record: none is zero.
    pub fn is_valid(&self) -> bool {
        self.all > 0 && self.daily > 0 && self.monthly > 0
    }
}

/// An object that a version keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// What opens it.
    pub link: ObjectLink,
    /// Whether it is a folder's listing, which names objects itself.
    pub is_listing: bool,
}

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;
/// How far past the newest stamp that counts the present may be taken to be.
const AHEAD_MAX: Span = Span::from_secs(30 * 86_400);

/// When something ceased to be current.
#[derive(Clone, Copy)]
enum Until {
    Current,
    Replaced(Time),
}

fn within(time: Time, days: u32, now: Time) -> bool {
    days == Retention::FOREVER || now.0.saturating_sub(time.0) <= u64::from(days) * DAY_MS
}

/// The UTC month, counted from year 0, of a moment. Method: days from civil, Howard Hinnant.
fn month(time: Time) -> u64 {
    let days = time.0 / DAY_MS + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (month, next_year) = if shifted < 10 {
        (shifted + 2, 0)
    } else {
        (shifted - 10, 1)
    };
    (era * 400 + year_of_era + next_year) * 12 + month
}

impl Tree {
    /// The objects of all versions that keep their content; each link once.
    ///
    /// `now` is the device's clock; what is far past the newest stamp that counts is not believed. Of entries that are not old, this device learned within
    /// the days of [`Retention::all`]: nothing counts as replaced by what they brought, and nothing in them as past its days.
    pub fn kept(
        &self,
        retention: &Retention,
        now: Time,
        is_old: &dyn Fn(&EntryId) -> bool,
    ) -> Vec<Kept> {
        self.kept_of(retention, now, is_old, &|_| true)
    }

    /// As [`Tree::kept`], of versions that these entries brought.
    pub fn kept_of(
        &self,
        retention: &Retention,
        now: Time,
        is_old: &dyn Fn(&EntryId) -> bool,
        is_wanted: &dyn Fn(&EntryId) -> bool,
    ) -> Vec<Kept> {
        let now = self.believed(now);
        // By all of the link: one with another key is another one, and the true one must not be hidden by it.
        let mut kept: BTreeMap<[u8; ObjectLink::BYTES], Kept> = BTreeMap::new();
        for inode in self.rows.all_inodes() {
            for row in self.kept_rows(inode, retention, now, is_old) {
                let version = self.rows.version(row);
                if let Some(link) = self.rows.link_in(row)
                    && is_wanted(&self.rows.info(row).id.entry)
                {
                    let is_listing = version.kind == FileKind::Folder;
                    let found = kept.entry(link.encode()).or_insert_with(|| Kept {
                        link: link.clone(),
                        is_listing,
                    });
                    // The same bytes as a file and as a listing: the listing reaches more.
                    found.is_listing |= is_listing;
                }
            }
        }
        kept.into_values().collect()
    }

    fn believed(&self, now: Time) -> Time {
        let newest = self.rows.newest().map_or(Time(0), |hlc| hlc.time());
        now.min(newest + AHEAD_MAX)
    }

    /// The versions of an inode whose content is kept.
    fn kept_rows(
        &self,
        inode: u32,
        retention: &Retention,
        now: Time,
        is_old: &dyn Fn(&EntryId) -> bool,
    ) -> Vec<u32> {
        let mut rows: Vec<u32> = self.rows.versions_of(inode).collect();
        let heads: BTreeSet<u32> = self.heads(inode).iter().copied().collect();
        let mut replaced: BTreeMap<u32, Time> = BTreeMap::new();
        if rows.len() > heads.len() {
            for row in rows
                .iter()
                .filter(|row| is_old(&self.rows.info(**row).id.entry))
            {
                let at = self.rows.rank(*row).0.time();
                for id in self.rows.replaces(*row) {
                    if let Some(old) = self.rows.find_version(*id) {
                        replaced
                            .entry(old)
                            .and_modify(|first| *first = (*first).min(at))
                            .or_insert(at);
                    }
                }
            }
        }
        rows.sort_unstable_by_key(|row| self.rows.rank(*row));
        let (mut days, mut months) = (BTreeSet::new(), BTreeSet::new());
        let mut kept = Vec::new();
        for row in rows.into_iter().rev() {
            let written = self.rows.rank(row).0.time();
            let version = self.rows.version(row);
            let until = match replaced.get(&row) {
                // A snapshot is kept by its age alone.
                _ if version.kind == FileKind::Folder && !version.deleted => {
                    if is_old(&self.rows.info(row).id.entry) {
                        Until::Replaced(written)
                    } else {
                        Until::Current
                    }
                }
                _ if heads.contains(&row) => Until::Current,
                Some(at) => Until::Replaced(*at),
                // Replaced by what this device learned lately; or by a version that names it from another inode, which none of ours does: as good as current.
                None => Until::Current,
            };
            // The last of its day and month, whether or not it is kept for another reason.
            let last_of_day = days.insert(written.0 / DAY_MS);
            let last_of_month = months.insert(month(written));
            let keep = match until {
                Until::Current => true,
                Until::Replaced(at) => {
                    within(at, retention.all, now)
                        || (last_of_day && within(written, retention.daily, now))
                        || (last_of_month && within(written, retention.monthly, now))
                }
            };
            if keep {
                kept.push(row);
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{ROOT, Record, VersionId, VersionInfo};
    use kith_object::id::{DeviceId, EntryId, InodeId};
    use kith_object::seal::BlockKey;
    use kith_object::time::Hlc;

    const NOW: Time = Time(20_000 * DAY_MS + 1000);

    fn link(byte: u8) -> ObjectLink {
        ObjectLink {
            digest: [byte; 32],
            key: BlockKey::new([1; 32]),
            size: 9,
        }
    }

    fn id(byte: u8) -> VersionId {
        VersionId {
            entry: EntryId([byte; 32]),
            index: 0,
        }
    }

    /// Writes version `byte` of one inode, `days` before now and `ms` after that.
    fn write(tree: &mut Tree, byte: u8, kind: FileKind, days: u64, ms: u64, replaces: &[u8]) {
        let time = Time(NOW.0 - days * DAY_MS + ms);
        let info = VersionInfo {
            id: id(byte),
            author: DeviceId([1; 32]),
            hlc: Hlc::new(time, 0),
        };
        let record = Record {
            inode: InodeId([7; 16]),
            replaces: replaces.iter().map(|byte| id(*byte)).collect(),
            parent: ROOT,
            name: b"a".to_vec(),
            kind,
            link: Some(link(byte)),
            mtime_ms: 0,
            mode: 0o644,
            deleted: false,
        };
        tree.apply(info, record);
    }

    /// A tree in which something was written just now.
    fn fresh() -> Tree {
        let mut tree = Tree::new();
        let info = VersionInfo {
            id: id(255),
            author: DeviceId([1; 32]),
            hlc: Hlc::new(NOW, 0),
        };
        let record = Record {
            inode: InodeId([8; 16]),
            replaces: Vec::new(),
            parent: ROOT,
            name: b"b".to_vec(),
            kind: FileKind::File,
            link: None,
            mtime_ms: 0,
            mode: 0o644,
            deleted: true,
        };
        tree.apply(info, record);
        tree
    }

    fn kept(tree: &Tree, retention: &Retention) -> Vec<u8> {
        let kept = tree.kept(retention, NOW, &|_| true);
        kept.iter().map(|kept| kept.link.digest[0]).collect()
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let day = |days: u64| month(Time(days * DAY_MS));
        assert_eq!(day(0), 1970 * 12);
        assert_eq!(day(30), day(0));
        assert_eq!(day(31), day(0) + 1);
        assert_eq!(day(58), day(0) + 1, "28 February 1970");
        assert_eq!(day(59), day(0) + 2);
        // 29 February and 1 March 2024; 31 December 2024 and the day after.
        assert_eq!(day(19_782) + 1, day(19_783));
        assert_eq!(day(20_088) + 1, day(20_089));
        let months: BTreeSet<u64> = (0..365 * 400 + 97).map(day).collect();
        assert_eq!(months.len(), 4800, "400 years have 4800 months");
    }

    #[test]
    fn current_versions_and_what_was_current_lately_are_kept() {
        let mut tree = fresh();
        let only = Retention {
            all: 30,
            daily: 1,
            monthly: 1,
        };
        write(&mut tree, 1, FileKind::File, 900, 0, &[]);
        assert_eq!(kept(&tree, &only), [1], "current however old");
        // Replaced 31 days ago; its follower 29 days ago, though written long before.
        write(&mut tree, 2, FileKind::File, 31, 0, &[1]);
        write(&mut tree, 3, FileKind::File, 29, 0, &[2]);
        assert_eq!(kept(&tree, &only), [2, 3]);
        // Both sides of a conflict are current.
        write(&mut tree, 4, FileKind::File, 29, 5, &[2]);
        assert_eq!(kept(&tree, &only), [2, 3, 4]);
        assert_eq!(kept(&tree, &Retention::default()), [1, 2, 3, 4]);
    }

    #[test]
    fn one_version_a_day_then_one_a_month() {
        let mut tree = fresh();
        // Two versions each day, 100 to 41 days ago.
        let mut last = Vec::new();
        for n in 0..120u8 {
            write(
                &mut tree,
                n + 1,
                FileKind::File,
                100 - u64::from(n / 2),
                u64::from(n % 2) * 3_600_000,
                &last,
            );
            last = vec![n + 1];
        }
        let days = Retention {
            all: 30,
            daily: 80,
            monthly: 1,
        };
        let by_day = kept(&tree, &days);
        assert!(by_day.iter().all(|byte| byte % 2 == 0), "{by_day:?}");
        assert_eq!(by_day.len(), 40, "from 80 to 41 days ago");
        let months = Retention {
            all: 30,
            daily: 1,
            monthly: Retention::FOREVER,
        };
        let by_month = kept(&tree, &months);
        assert!((3..=4).contains(&by_month.len()), "{by_month:?}");
        assert!(by_month.contains(&120));
    }

    #[test]
    fn snapshots_of_folders_go_by_age() {
        let mut tree = fresh();
        write(&mut tree, 1, FileKind::Folder, 400, 0, &[]);
        let short = Retention {
            all: 30,
            daily: 365,
            monthly: 390,
        };
        assert!(kept(&tree, &short).is_empty());
        let kept = tree.kept(&Retention::default(), NOW, &|_| true);
        assert!(kept[0].is_listing, "the last of its month");
    }

    #[test]
    fn a_version_that_says_it_is_old_replaces_nothing_before_this_device_has_known_it_for_so_long()
    {
        let mut tree = fresh();
        let short = Retention {
            all: 30,
            daily: 1,
            monthly: 1,
        };
        write(&mut tree, 1, FileKind::File, 900, 0, &[]);
        // Stamped a millisecond later, by a thief who wrote it today.
        write(&mut tree, 2, FileKind::File, 900, 1, &[1]);
        let thief = id(2).entry;
        assert_eq!(kept(&tree, &short), [2], "if stamps were believed");
        let kept = tree.kept(&short, NOW, &|entry| *entry != thief);
        let kept: Vec<u8> = kept.iter().map(|kept| kept.link.digest[0]).collect();
        assert_eq!(kept, [1, 2]);
        // Nor does what a folder was drop out the moment it comes.
        write(&mut tree, 3, FileKind::Folder, 400, 0, &[]);
        assert_eq!(tree.kept(&short, NOW, &|_| true).len(), 1);
        assert_eq!(tree.kept(&short, NOW, &|_| false).len(), 3);
    }

    #[test]
    fn a_false_key_does_not_hide_the_true_link() {
        let mut tree = fresh();
        write(&mut tree, 1, FileKind::File, 5, 0, &[]);
        let (info, mut record) = tree.version(id(1)).unwrap();
        let link = record.link.as_mut().unwrap();
        link.key = BlockKey::new([0xee; 32]);
        record.replaces = Vec::new();
        tree.apply(
            VersionInfo {
                id: id(2),
                hlc: Hlc::new(NOW, 0),
                ..info
            },
            record,
        );
        let kept = tree.kept(&Retention::default(), NOW, &|_| true);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0].link.digest, kept[1].link.digest);
    }

    #[test]
    fn clock_far_ahead_ages_nothing_at_once() {
        let mut tree = fresh();
        write(&mut tree, 1, FileKind::File, 3, 0, &[]);
        write(&mut tree, 2, FileKind::File, 2, 0, &[1]);
        let short = Retention {
            all: 40,
            daily: 1,
            monthly: 1,
        };
        let ahead = Time(NOW.0 + 9000 * DAY_MS);
        assert_eq!(tree.kept(&short, ahead, &|_| true).len(), 2);
        // And one far behind frees less.
        assert_eq!(tree.kept(&short, Time(5), &|_| true).len(), 2);
    }

    #[test]
    fn deleted_things_keep_what_retention_says() {
        let mut tree = fresh();
        write(&mut tree, 1, FileKind::File, 100, 0, &[]);
        let info = VersionInfo {
            id: id(2),
            author: DeviceId([1; 32]),
            hlc: Hlc::new(Time(NOW.0 - 50 * DAY_MS), 0),
        };
        let record = Record {
            replaces: vec![id(1)],
            link: None,
            deleted: true,
            ..tree.version(id(1)).unwrap().1
        };
        tree.apply(info, record);
        let month = Retention {
            all: 30,
            daily: 90,
            monthly: 95,
        };
        assert!(kept(&tree, &month).is_empty());
        assert_eq!(kept(&tree, &Retention::default()), [1]);
    }
}

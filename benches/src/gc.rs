//! Garbage collection of a store on the real disk: the walk, the look at all packs, copying out, dropping.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kith_core::collect;
use kith_node::config::Settings;
use kith_node::store::{DiskStore, open_store};
use kith_object::chunk::{Chunker, Profile};
use kith_object::id::SpaceId;
use kith_object::key::{Rng, Secret};
use kith_object::object::{Leaves, ObjectLink, ObjectWriter, Reach};
use kith_object::pack::Class;
use kith_object::seal::{Kind, Opener, Sealer};
use kith_object::store::Verified;

use crate::cpu_seconds;

/// What a collection came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Bytes of packs before.
    pub before: u64,
    /// Bytes that were free again.
    pub freed: u64,
    /// Bytes of blocks copied out.
    pub copied: u64,
    /// Files that were kept, and all that there were.
    pub files: (usize, usize),
    /// Blocks reached.
    pub reached: usize,
    /// Going through what is kept.
    pub walk: Duration,
    /// Looking at all packs.
    pub survey: Duration,
    /// Copying out, flushed.
    pub retire: Duration,
    /// Reading all that is kept where it lies now, and removing files.
    pub drop: Duration,
    /// CPU seconds of all that.
    pub cpu: f64,
}

/// Stores that many random files of `file_bytes`, keeps every third, and collects the rest.
///
/// # Panics
/// If the store fails, or something that is kept cannot be read afterwards.
pub fn measure(home: &Path, files: usize, file_bytes: usize) -> Figures {
    let secret = Secret::new([7; 32]);
    let settings = Settings::default();
    let opened = open_store(home, SpaceId([1; 32]), &Secret::new([3; 32]), settings);
    let (store, _) = opened.expect("a store that opens");
    let mut kept = Vec::new();
    let mut rng = Rng::from_seed([5; 32]);
    let mut bytes = vec![0; file_bytes];
    for number in 0..files {
        rng.fill(&mut bytes);
        let link = put(&store, &secret, &bytes);
        if number % 3 == 0 {
            kept.push(link);
        }
    }
    store.close_packs().expect("packs that close");
    let mut figures = Figures {
        before: store.usage().expect("a store that can be counted").bytes,
        files: (kept.len(), files),
        ..Figures::default()
    };
    let cpu = cpu_seconds();
    let _run = store.begin_run();
    let mut lap = Lap(Instant::now());

    let opener = Opener::new(vec![secret]);
    let mut reach = Reach::new(opener, Leaves::new([2; 32]), BTreeSet::new());
    for link in &kept {
        reach.enter(link.clone(), false);
    }
    collect::walk(&store, &mut reach, &|| false).expect("a walk");
    let (reached, _) = reach.finish();
    assert!(reached.is_complete(), "everything is here");
    figures.reached = reached.len();
    figures.walk = lap.over();

    let survey =
        collect::survey(&store, Some(&reached), &BTreeSet::new(), &|| false).expect("a survey");
    figures.survey = lap.over();

    let reached = Arc::new(reached);
    let mut retired = BTreeMap::new();
    for batch in collect::batches(&survey.candidates) {
        let outcome = collect::retire(&store, &batch, Some(&reached), true).expect("copies");
        figures.copied += outcome.copied_bytes;
        for one in outcome.retired {
            retired.insert(one.pack, one.left_out.into_iter().collect::<BTreeSet<_>>());
        }
    }
    figures.retire = lap.over();
    for (pack, left_out) in &retired {
        let walks = [Arc::clone(&reached)];
        let freed = collect::drop_ripe(&store, pack, left_out, &walks).expect("a pack that goes");
        figures.freed += freed.unwrap_or_default();
    }
    figures.drop = lap.over();
    figures.cpu = cpu_seconds() - cpu;
    for link in &kept {
        let root = store.get(&link.cid()).expect("a store that reads");
        assert!(root.is_some(), "what is kept is there");
    }
    figures
}

fn put(store: &DiskStore, secret: &Secret, bytes: &[u8]) -> ObjectLink {
    let chunker = Arc::new(Chunker::new(secret, Profile::DEFAULT));
    let writer = ObjectWriter::new(Arc::new(Sealer::new(secret)), chunker, Kind::Chunk);
    let mut sink = |block: kith_object::seal::SealedBlock| {
        let verified = Verified::computed(block.cid, &block.bytes);
        let put = store.put_verified(Class::Bulk, verified);
        put.map(|_| ()).map_err(std::io::Error::other)
    };
    let link = writer.finish_with(bytes, &mut sink);
    link.expect("a store that takes blocks")
}

struct Lap(Instant);

impl Lap {
    fn over(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thirds_of_a_small_store_are_collected() {
        let home = tempfile::tempdir().unwrap();
        let figures = measure(home.path(), 60, 1 << 20);
        assert_eq!(figures.files, (20, 60));
        assert!(figures.freed > figures.before * 9 / 10, "{figures:?}");
        assert!(figures.copied < figures.before * 4 / 10, "{figures:?}");
    }
}

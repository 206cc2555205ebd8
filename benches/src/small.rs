//! Many small objects through the object layer into the store, and what they take on disk; names apart.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kith_node::config::Settings;
use kith_node::store::open_store;
use kith_object::chunk::{Chunker, Profile};
use kith_object::id::{Cid, SpaceId};
use kith_object::key::{Rng, Secret};
use kith_object::object::ObjectWriter;
use kith_object::pack::Class;
use kith_object::seal::{Kind, Sealer};
use kith_object::store::Verified;

use crate::cpu_seconds;
use crate::program::settle;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Objects stored a second, the last flush and the closing of the last pack included.
    pub puts: f64,
    /// CPU seconds for all of them.
    pub put_cpu: f64,
    /// Blocks read back a second, one after another in random order.
    pub gets: f64,
    /// Bytes of packs for each byte stored.
    pub packs: f64,
    /// Bytes of the index for each byte stored.
    pub index: f64,
}

/// Stores so many objects of random bytes in an empty folder, flushing every `flush_every` of them, and reads `asked` back.
///
/// # Panics
/// If the store fails or gives back something else.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub fn objects(home: &Path, count: u64, bytes: usize, flush_every: u64, asked: u64) -> Figures {
    let space = SpaceId([5; 32]);
    let (store, _) = open_store(home, space, &Secret::new([3; 32]), Settings::default())
        .expect("a store that opens");
    let secret = Secret::new([1; 32]);
    let sealer = Arc::new(Sealer::new(&secret));
    let chunker = Arc::new(Chunker::new(&secret, Profile::DEFAULT));
    let mut rng = Rng::from_seed([13; 32]);
    let mut object = vec![0; bytes];
    let mut names: Vec<Cid> = Vec::new();
    let (cpu, began) = (cpu_seconds(), Instant::now());
    for number in 1..=count {
        rng.fill(&mut object);
        let writer = ObjectWriter::new(Arc::clone(&sealer), Arc::clone(&chunker), Kind::Chunk);
        let link = writer
            .finish_with(&object, &mut |block| {
                store
                    .put_verified(Class::Bulk, Verified::computed(block.cid, &block.bytes))
                    .map(drop)
                    .map_err(io::Error::other)
            })
            .expect("a block that is written");
        names.push(link.cid());
        if number % flush_every == 0 {
            store.flush().expect("blocks that last");
        }
    }
    store.close_packs().expect("packs that close");
    let puts = count as f64 / began.elapsed().as_secs_f64();
    let put_cpu = cpu_seconds() - cpu;
    let began = Instant::now();
    for _ in 0..asked {
        let at = usize::try_from(rng.below(count)).unwrap_or(0);
        let name = names.get(at).expect("below the count");
        let block = store.get(name).expect("a block that is read");
        assert!(block.is_some(), "a block that is there");
    }
    let gets = asked as f64 / began.elapsed().as_secs_f64();
    drop(store);
    settle();
    let stored = (count * bytes as u64) as f64;
    let share = |folder: &str| {
        let bytes = bytes_under(&home.join(folder)).expect("a folder that is read");
        bytes as f64 / stored
    };
    Figures {
        puts,
        put_cpu,
        gets,
        packs: share("packs"),
        index: share("index"),
    }
}

/// Bytes on disk of all files under a folder, holes left out: a new journal of the index is 64 MB of nothing.
///
/// # Errors
/// Whatever the system says.
pub fn bytes_under(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            bytes_under(&entry.path())?
        } else {
            entry.metadata()?.blocks() * 512
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn small_objects_take_little_more_than_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let figures = super::objects(folder.path(), 3_000, 1024, 1000, 500);
        assert!(figures.puts > 0.0 && figures.gets > 0.0);
        assert!(
            figures.packs > 1.0 && figures.packs < 1.16,
            "{}",
            figures.packs
        );
    }
}

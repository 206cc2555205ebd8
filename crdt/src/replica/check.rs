//! Checks a replica against what its entries say when all is worked out from scratch.

use std::collections::BTreeSet;

use super::Replica;
use crate::access::bits::Bits;
use crate::chain::DocumentKind;

impl Replica {
    /// Panics if what is kept step by step differs from what follows from the entries; for tests and the simulator.
    pub fn check_invariants(&self) {
        let mut covered = Bits::default();
        for at in (0..self.nodes.len()).rev() {
            let at = u32::try_from(at).expect("entries are numbered in 32 bits");
            let node = self.node(at).expect("it is one of the entries");
            assert!(
                node.parents().all(|parent| parent < at),
                "an entry stands before its parent"
            );
            assert_eq!(
                node.counted,
                self.judge(at),
                "an entry counts although it does not, or the other way round"
            );
            if node.counted || covered.contains(at) {
                covered.insert(at);
                for parent in node.parents() {
                    covered.insert(parent);
                }
            }
            assert_eq!(
                node.in_digest,
                covered.contains(at),
                "digests cover the wrong entries"
            );
            assert!(
                !node.told || node.counted,
                "records of an entry that does not count were not taken back"
            );
            assert_eq!(
                self.index.get(&node.id),
                Some(&at),
                "an entry is filed under another name"
            );
        }
        for document in [DocumentKind::Names, DocumentKind::Catalogue] {
            let mut fresh = BTreeSet::new();
            for at in 0..u32::try_from(self.nodes.len()).expect("entries are numbered in 32 bits") {
                if self.node(at).is_some_and(|node| node.document == document) {
                    self.replace_heads(at, &mut fresh);
                }
            }
            let kept = self.heads.get(&document).cloned().unwrap_or_default();
            assert_eq!(
                kept, fresh,
                "heads of a document differ from what its entries say"
            );
        }
        assert!(
            self.fresh.is_empty() && !self.stale,
            "conclusions were not drawn"
        );
    }
}

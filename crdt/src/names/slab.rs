//! Memory for many small rows and names: pages that grow without copying, numbers instead of pointers.

/// Most rows of one sort: what a row number leaves room for beside the two bits of [`super::tree::Item`]. Memory ends long before.
const ROWS_MAX: u32 = 1 << 30;

/// Rows in one page: grows without copying, wastes little.
const PAGE_ROWS: usize = 1024;

/// Rows of one sort, numbered; numbers of removed rows are used again.
pub(super) struct Slab<T> {
    pages: Vec<Vec<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            free: Vec::new(),
        }
    }
}

/// Page and place in it.
fn split(row: u32) -> (usize, usize) {
    let row = usize::try_from(row).expect("addresses have at least 32 bits");
    (row / PAGE_ROWS, row % PAGE_ROWS)
}

impl<T> Slab<T> {
    pub(super) fn get(&self, row: u32) -> &T {
        let (page, at) = split(row);
        self.pages
            .get(page)
            .and_then(|page| page.get(at))
            .expect("row numbers come from this slab")
    }

    pub(super) fn get_mut(&mut self, row: u32) -> &mut T {
        let (page, at) = split(row);
        self.pages
            .get_mut(page)
            .and_then(|page| page.get_mut(at))
            .expect("row numbers come from this slab")
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(row) = self.free.pop() {
            *self.get_mut(row) = value;
            return row;
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE_ROWS) {
            self.pages.push(Vec::with_capacity(PAGE_ROWS));
        }
        let before = (self.pages.len() - 1) * PAGE_ROWS;
        let page = self
            .pages
            .last_mut()
            .expect("pushed above if there was none");
        page.push(value);
        let row = u32::try_from(before + page.len() - 1).unwrap_or(u32::MAX);
        assert!(row < ROWS_MAX, "memory ends before a thousand million rows");
        row
    }

    /// Frees a row; `blank` takes its place until it is used again.
    pub(super) fn remove(&mut self, row: u32, blank: T) {
        *self.get_mut(row) = blank;
        self.free(row);
    }

    /// Lets a row be used again that was made blank already.
    pub(super) fn free(&mut self, row: u32) {
        self.free.push(row);
    }
}

/// A name in the pool: page, offset and length in one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NameAt(u64);

impl NameAt {
    /// The name of rows that are not in use.
    pub(super) const NOWHERE: Self = Self(0);
}

/// Bytes of one page of names. An offset takes 24 bits of [`NameAt`].
const NAME_PAGE_BYTES: usize = 64 * 1024;

/// Names, one after another.
#[derive(Default)]
pub(super) struct Names {
    pages: Vec<Vec<u8>>,
}

/// How far the names went, to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamesMark(usize, usize);

impl Names {
    pub(super) fn insert(&mut self, name: &[u8]) -> NameAt {
        if self
            .pages
            .last()
            .is_none_or(|page| page.len() + name.len() > NAME_PAGE_BYTES)
        {
            self.pages.push(Vec::with_capacity(NAME_PAGE_BYTES));
        }
        let number = self.pages.len() - 1;
        let page = self
            .pages
            .last_mut()
            .expect("pushed above if there was none");
        let at = page.len();
        page.extend_from_slice(name);
        NameAt(((number as u64) << 32) | ((at as u64) << 8) | name.len() as u64)
    }

    pub(super) fn get(&self, name: NameAt) -> &[u8] {
        let part = |shift: u32, bits: u64| {
            usize::try_from((name.0 >> shift) & bits).expect("parts have at most 32 bits")
        };
        let (page, at, len) = (part(32, 0xffff_ffff), part(8, 0x00ff_ffff), part(0, 0xff));
        self.pages
            .get(page)
            .and_then(|page| page.get(at..at + len))
            .expect("names come from this pool")
    }

    pub(super) fn mark(&self) -> NamesMark {
        NamesMark(self.pages.len(), self.pages.last().map_or(0, Vec::len))
    }

    pub(super) fn back_to(&mut self, mark: NamesMark) {
        self.pages.truncate(mark.0);
        if let Some(page) = self.pages.last_mut() {
            page.truncate(mark.1);
        }
    }
}

//! Reads fixed-width fields off a slice; every reading is bounded by it.

/// What is left to read.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// That many 32-byte names, sorted and unique.
    pub(crate) fn names<T>(&mut self, count: usize, name: impl Fn([u8; 32]) -> T) -> Option<Vec<T>>
    where
        T: Ord,
    {
        let bytes = self.take(count.checked_mul(32)?)?;
        let (chunks, _) = bytes.as_chunks::<32>();
        let names: Vec<T> = chunks.iter().map(|chunk| name(*chunk)).collect();
        names
            .is_sorted_by(|one, other| one < other)
            .then_some(names)
    }
}

/// A length that our own limits keep below 2^32.
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("lengths are checked against limits far below 4 GiB")
}

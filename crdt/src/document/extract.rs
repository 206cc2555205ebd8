//! Cuts the values out of an Automerge change without trusting a byte of it.
//!
//! What is cut out is only a guess at what the change says; the caller rebuilds the change from it and compares.

/// Column of value types and lengths, column of the values' bytes.
const VALUE_META: u64 = 0x56;
const VALUE_RAW: u64 = 0x57;
/// Type of a value that is bytes, in the low four bits of its entry in the first of these columns.
const TYPE_BYTES: u64 = 7;

/// What is left to read of a change.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(head)
    }

    /// An unsigned LEB128 number of at most 63 bits.
    fn unsigned(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A signed LEB128 number of at most 63 bits.
    fn signed(&mut self) -> Option<i64> {
        let mut number = 0i64;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let negative = byte & 0x40 != 0;
                return Some(if negative {
                    number | (-1 << (shift + 7))
                } else {
                    number
                });
            }
        }
        None
    }
}

/// The values that a change puts, if it is laid out as ours are; `None` if it is not, or if there are more than `max`.
pub(super) fn values(change: &[u8], max: usize) -> Option<Vec<&[u8]>> {
    let mut cursor = Cursor(change);
    // Magic, checksum, chunk type.
    cursor.take(9)?;
    let len = cursor.unsigned()?;
    if u64::try_from(cursor.0.len()) != Ok(len) {
        return None;
    }
    let dependencies = cursor.unsigned()?;
    cursor.take(dependencies.checked_mul(32)?)?;
    let actor = cursor.unsigned()?;
    cursor.take(actor)?;
    // Sequence number, first operation, time.
    cursor.unsigned()?;
    cursor.unsigned()?;
    cursor.signed()?;
    let message = cursor.unsigned()?;
    cursor.take(message)?;
    let other_actors = cursor.unsigned()?;
    if other_actors != 0 {
        return None;
    }
    let columns = cursor.unsigned()?;
    // Ours have six.
    if columns > 16 {
        return None;
    }
    let mut spans = Vec::new();
    for _ in 0..columns {
        spans.push((cursor.unsigned()?, cursor.unsigned()?));
    }
    let (mut meta, mut raw) = (None, None);
    for (column, len) in spans {
        let bytes = cursor.take(len)?;
        match column {
            VALUE_META => meta = Some(bytes),
            VALUE_RAW => raw = Some(bytes),
            _ => {}
        }
    }
    let mut raw = Cursor(raw?);
    let list = lengths(meta?, max)?
        .into_iter()
        .map(|len| raw.take(len))
        .collect::<Option<Vec<_>>>()?;
    raw.0.is_empty().then_some(list)
}

/// The lengths in a run-length encoded column of value types, all of them bytes.
fn lengths(column: &[u8], max: usize) -> Option<Vec<u64>> {
    let mut cursor = Cursor(column);
    let mut list = Vec::new();
    let len_of = |entry: u64| (entry & 15 == TYPE_BYTES).then_some(entry >> 4);
    while !cursor.0.is_empty() {
        let run = cursor.signed()?;
        let count = usize::try_from(run.unsigned_abs()).ok()?;
        if count == 0 || count > max - list.len() {
            return None;
        }
        if run > 0 {
            let len = len_of(cursor.unsigned()?)?;
            list.resize(list.len() + count, len);
        } else {
            for _ in 0..count {
                list.push(len_of(cursor.unsigned()?)?);
            }
        }
    }
    Some(list)
}

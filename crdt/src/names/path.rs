//! Where something stands in the tree: an absolute path of bytes.

use std::fmt;
use std::str::FromStr;

use kith_object::tree::{NAME_BYTES_MAX, is_name};

/// Longest path, in bytes. File systems stop at 4 KiB, but folders moved into one another by two devices may stand deeper.
pub const PATH_BYTES_MAX: usize = 32 * 1024;

/// An absolute path in the tree: names of any bytes but `/` and NUL, never `.` or `..`, joined by `/`.
///
/// Spec: `protocol/spec/names.md`, "Paths".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Vec<u8>);

/// Why bytes are not a path in the tree, or not a name in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Paths in the tree begin at its root.
    #[error("path does not begin with `/`")]
    NotAbsolute,
    /// A name is `.` or `..`, empty, or holds a byte that no name may hold.
    #[error("path holds a name that cannot be: empty, `.`, `..`, or with a `/` or NUL in it")]
    BadName,
    /// A name is longer than [`NAME_BYTES_MAX`], or the path than [`PATH_BYTES_MAX`].
    #[error("path is too long: names end at {NAME_BYTES_MAX} bytes, paths at {PATH_BYTES_MAX}")]
    TooLong,
}

/// Checks that the bytes may name one file or folder.
///
/// # Errors
/// [`PathError::BadName`], [`PathError::TooLong`].
fn check_name(name: &[u8]) -> Result<(), PathError> {
    match (is_name(name), name.len() > NAME_BYTES_MAX) {
        (true, _) => Ok(()),
        (false, true) => Err(PathError::TooLong),
        (false, false) => Err(PathError::BadName),
    }
}

impl TreePath {
    /// The root folder, `/`.
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// Reads a path; repeated and trailing `/` mean nothing.
    ///
    /// # Errors
    /// [`PathError`] says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.first() != Some(&b'/') {
            return Err(PathError::NotAbsolute);
        }
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        let mut path = Self(Vec::with_capacity(bytes.len()));
        for name in bytes
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            path.push(name)?;
        }
        Ok(path)
    }

    /// The path of that name inside this folder.
    ///
    /// # Errors
    /// [`PathError::BadName`], [`PathError::TooLong`].
    pub fn child(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut path = Self(Vec::with_capacity(self.0.len() + 1 + name.len()));
        path.0.extend_from_slice(&self.0);
        path.push(name)?;
        Ok(path)
    }

    fn push(&mut self, name: &[u8]) -> Result<(), PathError> {
        check_name(name)?;
        if self.0.len() + 1 + name.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        self.0.push(b'/');
        self.0.extend_from_slice(name);
        Ok(())
    }

    /// The folder this stands in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let cut = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(Self(self.0.get(..cut)?.to_vec()))
    }

    /// The last name; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.names().next_back()
    }

    /// The names from the root down.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        // The first piece, before the leading `/`, is empty; the root holds nothing else.
        self.0
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
    }

    /// Whether this is the root folder.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is `other` or stands somewhere inside it.
    pub fn starts_with(&self, other: &TreePath) -> bool {
        self.0
            .strip_prefix(other.0.as_slice())
            .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    }

    /// The bytes, beginning with `/`.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.is_root() {
            b"/".to_vec()
        } else {
            self.0.clone()
        }
    }
}

impl FromStr for TreePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text.as_bytes())
    }
}

/// Bytes that are not UTF-8 show as replacement characters: for people, not for reading back.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str("/");
        }
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreePath({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_come_out_as_they_went_in() {
        let path: TreePath = "/a/b".parse().unwrap();
        assert_eq!(path.to_string(), "/a/b");
        assert_eq!(path.names().collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(path.name(), Some(&b"b"[..]));
        assert_eq!(path.parent(), Some("/a".parse().unwrap()));
        assert_eq!(path.parent().unwrap().parent(), Some(TreePath::root()));
        assert_eq!(TreePath::root().parent(), None);
        assert_eq!(TreePath::root().name(), None);
        assert_eq!(TreePath::root().to_string(), "/");
        assert_eq!("//a///b/".parse(), Ok(path.clone()));
        assert_eq!("/".parse(), Ok(TreePath::root()));
        assert!(path.starts_with(&TreePath::root()) && path.starts_with(&"/a".parse().unwrap()));
        assert!(
            !"/ab"
                .parse::<TreePath>()
                .unwrap()
                .starts_with(&"/a".parse().unwrap())
        );
    }

    #[test]
    fn what_is_no_path_is_refused() {
        assert_eq!("a".parse::<TreePath>(), Err(PathError::NotAbsolute));
        assert_eq!("".parse::<TreePath>(), Err(PathError::NotAbsolute));
        assert_eq!("/a/../b".parse::<TreePath>(), Err(PathError::BadName));
        assert_eq!("/.".parse::<TreePath>(), Err(PathError::BadName));
        assert_eq!(TreePath::parse(b"/a\0b"), Err(PathError::BadName));
        assert_eq!(TreePath::root().child(b"a/b"), Err(PathError::BadName));
        assert_eq!(TreePath::root().child(b""), Err(PathError::BadName));
        assert_eq!(
            TreePath::root().child(&[b'x'; 256]),
            Err(PathError::TooLong)
        );
        assert!(TreePath::parse(b"/\xff\xfe").is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(path) = TreePath::parse(&bytes) {
                prop_assert_eq!(TreePath::parse(&path.to_bytes()), Ok(path));
            }
        }
    }
}

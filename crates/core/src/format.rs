//! Versions of file formats.
use std::fmt;

/// The version of a file's format differs from the one that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherVersion {
    pub found: u32,
    pub expected: u32,
}

impl OtherVersion {
    /// Compares the first bytes of a file with those of this program: seven bytes that name the format, and its version
    /// as a digit or a number below 10. Returns `None` if they are equal or name another format.
    pub fn of(magic: &[u8; 8], bytes: &[u8]) -> Option<Self> {
        let [name @ .., version] = magic;
        let [found] = bytes.get(..8)?.strip_prefix(name)? else { return None };
        let number = |byte: u8| match byte {
            b'0'..=b'9' => Some(u32::from(byte - b'0')),
            0..=9 => Some(u32::from(byte)),
            _ => None,
        };
        let (found, expected) = (number(*found)?, number(*version)?);
        (found != expected).then_some(Self { found, expected })
    }
}

impl fmt::Display for OtherVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "has version {} of its format, but this program reads version {}", self.found, self.expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_version_of_the_same_format_is_one() {
        let of = |bytes: &[u8]| OtherVersion::of(b"LDSTLOG2", bytes).map(|other| (other.found, other.expected));
        assert_eq!(of(b"LDSTLOG1, and the rest"), Some((1, 2)));
        assert_eq!(OtherVersion::of(b"LDANSW\0\x02", b"LDANSW\0\x03"), Some(OtherVersion { found: 3, expected: 2 }));
        for other in [&b"LDSTLOG2"[..], b"LDSTLOG", b"LDSTCKP1", b"LDSTLOGx", b""] {
            assert_eq!(of(other), None);
        }
    }
}

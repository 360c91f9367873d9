//! Ids, parsed once at the door and trusted afterwards.
use std::{fmt, sync::Arc};

/// The longest id that is taken, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("must not be empty")]
    Empty,
    #[error("has {bytes} bytes; the limit is {ID_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("has a control character at byte {position}")]
    ControlCharacter { position: usize },
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong { bytes: text.len() });
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((position, _)) => Err(IdError::ControlCharacter { position }),
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes 1 to 128 bytes without control characters.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(Arc::from(text)))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A product's id, owned by the shop.
    ItemId
}
text_id! {
    /// An event's id: the key of deduplication.
    EventId
}

/// The key of a user's state. A signed-in user and an anonymous visitor never share a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    pub fn signed_in(id: &str) -> Result<Self, IdError> {
        check(id)?;
        Ok(Self(Arc::from(format!("u:{id}"))))
    }

    pub fn visitor(id: &str) -> Result<Self, IdError> {
        check(id)?;
        Ok(Self(Arc::from(format!("v:{id}"))))
    }

    /// Takes what [`UserId::as_str`] gave, for records that come back from the log.
    pub fn from_key(key: &str) -> Option<Self> {
        let id = key.strip_prefix("u:").or_else(|| key.strip_prefix("v:"))?;
        check(id).ok()?;
        Some(Self(Arc::from(key)))
    }

    /// The key, `u:` and the user or `v:` and the visitor.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A number that stands for an item id for the life of the process; see `lodestone-catalog`.
/// It outlives generations, unlike a [`Row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemKey(pub u32);

/// A row of one generation's catalogue. It never leaves the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row(pub u32);

impl Row {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

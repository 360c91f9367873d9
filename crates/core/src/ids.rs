//! Ids. They are validated once, where they enter the process; the types guarantee their limits afterwards.
use std::{fmt, sync::Arc};

/// The length limit of an id, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// The length limit of a name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// A text that is not a name: the id of a rule or of another entry, or the name of a serving configuration or a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name of 1 to {NAME_BYTES_MAX} characters of A-Z, a-z, 0-9, `.`, `_`, `-`")]
pub struct NameError(String);

/// Checks the id of a rule, a set of synonyms or a serving configuration, or the name of an experiment or a catalogue: 1 to
/// [`NAME_BYTES_MAX`] ASCII letters, digits, `.`, `_` and `-`. The error shows up to 40 characters of the text.
pub fn check_name(text: &str) -> Result<(), NameError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
        return Ok(());
    }
    Err(NameError(match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }))
}

/// The reason why a text is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("must not be empty")]
    Empty,
    #[error("must not be white space only")]
    Blank,
    #[error("has {bytes} bytes; the limit is {ID_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("has a control character at byte {position}")]
    ControlCharacter { position: usize },
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.trim().is_empty() {
        return Err(IdError::Blank);
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
            /// Accepts 1 to [`ID_BYTES_MAX`] bytes without control characters that are not all white space.
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
    /// The id of an item, chosen by the shop.
    ItemId
}
text_id! {
    /// The id of an event; deduplication uses it as the key.
    EventId
}

/// The prefix of the keys of anonymous users.
const ANONYMOUS: &str = "a:";

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

    /// Returns the key of an imported event without a user. Each such event has a user of its own, who has no history.
    pub fn anonymous(event: &EventId) -> Self {
        Self(Arc::from(format!("{ANONYMOUS}{event}")))
    }

    /// Returns whether [`UserId::anonymous`] returned the key.
    pub fn is_anonymous(&self) -> bool {
        self.0.starts_with(ANONYMOUS)
    }

    /// Returns the user id of a signed-in user, without the prefix of the key. None for visitors.
    pub fn signed_in_id(&self) -> Option<&str> {
        self.0.strip_prefix("u:")
    }

    pub fn is_signed_in(&self) -> bool {
        self.signed_in_id().is_some()
    }

    /// Parses a key that [`UserId::as_str`] returned, for records read from the log.
    pub fn from_key(key: &str) -> Option<Self> {
        let id = key.strip_prefix("u:").or_else(|| key.strip_prefix("v:"))?;
        check(id).ok()?;
        Some(Self(Arc::from(key)))
    }

    /// Returns the key: `u:` and the user id, or `v:` and the visitor id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An interned item id, valid until the process ends; see `ItemKeys` in `lodestone-catalog`. Unlike a [`Row`], it does
/// not depend on the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemKey(pub u32);

/// A row of the catalogue of one generation. Requests, responses and the log never contain rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row(pub u32);

impl Row {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

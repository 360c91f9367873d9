//! Page and attribution tokens: opaque to clients, and signed, so that only tokens of this server are accepted. Page
//! tokens are also concealed, because they have sort values, such as margins, that users must not see.
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use lodestone_catalog::Position;
use lodestone_core::ids::ItemId;
use lodestone_events::storage;
use lodestone_rules::EntryKind;
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file of the key in the data directory: the key, and the first bytes of its SHA-256.
const FILE: &str = "token.key";
const KEY_BYTES: usize = 32;
const SUM_BYTES: usize = 4;

const SIGNATURE_BYTES: usize = 12;
const ID_BYTES: usize = 16;

/// The kind of a token: its first byte, so that one kind cannot be used as the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    Page = 1,
    Attribution = 2,
    Items = 3,
    Entries = 4,
    Completion = 5,
    Attributes = 6,
}

/// The signing key. It is stored with the log, so that tokens survive a restart.
#[derive(Clone)]
pub struct TokenKey([u8; KEY_BYTES]);

/// The reason why the key cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    #[error(
        "{path} is damaged: {reason}; restore it from a backup, or remove it to create a new key, which makes all \
         page tokens, consistency tokens and attribution tokens so far invalid"
    )]
    Damaged { path: PathBuf, reason: &'static str },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The beginning of a page of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PageToken {
    pub slate: [u8; ID_BYTES],
    /// Number of results before this page.
    pub offset: u32,
    /// The position of the last result before the page, if it is behind the slate.
    pub after: Option<Position>,
}

/// The beginning of a page of a list of items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemsToken {
    /// Identifies the request without its page.
    pub fingerprint: u64,
    /// The last item before the page.
    pub after: ItemId,
}

impl TokenKey {
    pub fn new(key: [u8; KEY_BYTES]) -> Self {
        Self(key)
    }

    /// Reads the key of a data directory, or creates it if there is none. A key that exists is never replaced. Only the
    /// process that has the log open may call this.
    pub(crate) fn open(data: &Path) -> Result<Self, TokenKeyError> {
        let path = data.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes).map_err(|reason| TokenKeyError::Damaged { path, reason }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = random_key();
                let bytes = [&key[..], &Sha256::digest(key)[..SUM_BYTES]].concat();
                storage::replace(&path, &bytes).map_err(|source| TokenKeyError::Io { path, source })?;
                Ok(Self(key))
            }
            Err(source) => Err(TokenKeyError::Io { path, source }),
        }
    }

    /// Returns true if a data directory has a key, damaged or not.
    pub(crate) fn exists(data: &Path) -> bool {
        fs::symlink_metadata(data.join(FILE)).is_ok()
    }

    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let (key, sum) = bytes.split_first_chunk::<KEY_BYTES>().ok_or("it is shorter than a key")?;
        if sum.len() != SUM_BYTES {
            return Err("its length is not that of a key");
        }
        match sum == &Sha256::digest(key)[..SUM_BYTES] {
            true => Ok(Self(*key)),
            false => Err("its checksum does not match"),
        }
    }

    /// Signs a page token.
    pub fn page(&self, token: &PageToken) -> String {
        let mut body = vec![TokenKind::Page as u8];
        body.extend_from_slice(&token.slate);
        body.extend_from_slice(&token.offset.to_le_bytes());
        if let Some(after) = &token.after {
            after.encode(&mut body);
        }
        self.sign(body)
    }

    /// Verifies a page token; none if it is not a page token of this server.
    pub fn parse_page(&self, text: &str) -> Option<PageToken> {
        let body = self.verify(text, TokenKind::Page)?;
        let (slate, rest) = body.split_first_chunk::<ID_BYTES>()?;
        let (offset, rest) = rest.split_first_chunk::<4>()?;
        let after = if rest.is_empty() { None } else { Some(Position::decode(rest)?) };
        Some(PageToken { slate: *slate, offset: u32::from_le_bytes(*offset), after })
    }

    /// Signs the token of the page of a list of items that begins after an item.
    pub fn items(&self, token: &ItemsToken) -> String {
        let mut body = vec![TokenKind::Items as u8];
        body.extend_from_slice(&token.fingerprint.to_le_bytes());
        body.extend_from_slice(token.after.as_str().as_bytes());
        self.sign(body)
    }

    /// Verifies a token of a list of items; none if it is not such a token of this server.
    pub fn parse_items(&self, text: &str) -> Option<ItemsToken> {
        let body = self.verify(text, TokenKind::Items)?;
        let (fingerprint, id) = body.split_first_chunk()?;
        let after = ItemId::parse(std::str::from_utf8(id).ok()?).ok()?;
        Some(ItemsToken { fingerprint: u64::from_le_bytes(*fingerprint), after })
    }

    /// Signs the token of the page of a list of entries of a kind that begins after one of them.
    pub fn entries(&self, kind: EntryKind, after: &str) -> String {
        let mut body = vec![TokenKind::Entries as u8, kind as u8];
        body.extend_from_slice(after.as_bytes());
        self.sign(body)
    }

    /// Verifies a token of a list of this kind; returns the id of the last entry before the page.
    pub fn parse_entries(&self, text: &str, kind: EntryKind) -> Option<String> {
        let body = self.verify(text, TokenKind::Entries)?;
        let (of, after) = body.split_first()?;
        (*of == kind as u8).then(|| String::from_utf8(after.to_vec()).ok())?
    }

    /// Signs the token of the page of the list of attributes that begins after one of them.
    pub fn attributes(&self, after: &str) -> String {
        let mut body = vec![TokenKind::Attributes as u8];
        body.extend_from_slice(after.as_bytes());
        self.sign(body)
    }

    /// Verifies a token of the list of attributes; returns the name of the last attribute before the page.
    pub fn parse_attributes(&self, text: &str) -> Option<String> {
        String::from_utf8(self.verify(text, TokenKind::Attributes)?).ok()
    }

    /// Signs the attribution token of the answer with this id.
    pub fn attribution(&self, answer: [u8; ID_BYTES]) -> String {
        let mut body = vec![TokenKind::Attribution as u8];
        body.extend_from_slice(&answer);
        self.sign(body)
    }

    /// Returns the answer id of an attribution token; none if it is not an attribution token of this server.
    pub fn parse_attribution(&self, text: &str) -> Option<[u8; ID_BYTES]> {
        self.verify(text, TokenKind::Attribution)?.try_into().ok()
    }

    /// Signs the id of a completion of an answer.
    pub fn completion(&self, answer: [u8; ID_BYTES], text: &str) -> String {
        let mut body = vec![TokenKind::Completion as u8];
        body.extend_from_slice(&answer);
        body.extend_from_slice(text.as_bytes());
        self.sign(body)
    }

    /// Returns the answer id and the text of a completion; none if it is not a completion of this server.
    pub fn parse_completion(&self, id: &str) -> Option<([u8; ID_BYTES], String)> {
        let body = self.verify(id, TokenKind::Completion)?;
        let (answer, text) = body.split_first_chunk()?;
        Some((*answer, String::from_utf8(text.to_vec()).ok()?))
    }

    /// Returns a number that identifies the log next to the key.
    pub fn log_id(&self) -> u32 {
        let digest = self.mac(b"log").finalize().into_bytes();
        u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
    }

    fn mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(body);
        mac
    }

    /// Encrypts the body of a page token, or decrypts it: its exclusive or with a stream that the signature of the plain
    /// body selects, so that equal streams only conceal equal bodies.
    fn conceal(&self, body: &mut [u8], signature: &[u8]) {
        let Some((kind, body)) = body.split_first_mut().filter(|(kind, _)| **kind == TokenKind::Page as u8) else {
            return;
        };
        for (counter, part) in (0u32..).zip(body.chunks_mut(32)) {
            // Shorter than the body of a page token, so that a block is never signed.
            let block = [&[*kind, TokenKind::Attribution as u8], signature, &counter.to_le_bytes()].concat();
            let stream = self.mac(&block).finalize().into_bytes();
            part.iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
        }
    }

    fn sign(&self, mut body: Vec<u8>) -> String {
        let signature = self.mac(&body).finalize().into_bytes();
        self.conceal(&mut body, &signature[..SIGNATURE_BYTES]);
        body.extend_from_slice(&signature[..SIGNATURE_BYTES]);
        URL_SAFE_NO_PAD.encode(body)
    }

    fn verify(&self, text: &str, kind: TokenKind) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let signature = bytes.split_off(bytes.len().checked_sub(SIGNATURE_BYTES)?);
        self.conceal(&mut bytes, &signature);
        self.mac(&bytes).verify_truncated_left(&signature).ok()?;
        (bytes.first() == Some(&(kind as u8))).then(|| bytes.split_off(1))
    }
}

/// Returns the answer id of a stored attribution token without a check of its signature, which was checked when the
/// event was written. None if it is not an attribution token.
pub fn answer_of_token(text: &str) -> Option<[u8; ID_BYTES]> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (kind, rest) = bytes.split_first()?;
    let (id, signature) = rest.split_first_chunk::<ID_BYTES>()?;
    (*kind == TokenKind::Attribution as u8 && signature.len() == SIGNATURE_BYTES).then_some(*id)
}

#[expect(clippy::disallowed_methods, reason = "a secret key must not repeat")]
fn random_key() -> [u8; KEY_BYTES] {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::StoredValue;
    use lodestone_core::ids::ItemKey;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_created_once_and_only_its_owner_can_read_it() {
        let data = tempfile::tempdir().unwrap();
        assert!(!TokenKey::exists(data.path()));
        let token = TokenKey::open(data.path()).unwrap().attribution([1; 16]);
        let path = data.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(TokenKey::open(data.path()).unwrap().parse_attribution(&token), Some([1; 16]));
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays_as_it_is() {
        let data = tempfile::tempdir().unwrap();
        TokenKey::open(data.path()).unwrap();
        let path = data.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[7] ^= 1;
        let longer = [&whole[..], b"\n"].concat();
        for damaged in [&flipped[..], &whole[..20], &whole[..34], &longer, &[], &[0; KEY_BYTES + SUM_BYTES]] {
            fs::write(&path, damaged).unwrap();
            let error = TokenKey::open(data.path()).err().unwrap().to_string();
            assert!(error.contains("token.key is damaged") && error.contains("restore it from a backup"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damaged);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(TokenKey::open(data.path()), Err(TokenKeyError::Io { .. })));
    }

    #[test]
    fn only_own_tokens_of_the_right_kind_are_accepted() {
        let key = TokenKey::new([7; 32]);
        let values = vec![StoredValue::Text("mug".into()), StoredValue::Number(0.5), StoredValue::Missing];
        let behind = PageToken { slate: [3; 16], offset: 300, after: Some(Position { values, key: ItemKey(7) }) };
        let bytes = URL_SAFE_NO_PAD.decode(key.page(&behind)).unwrap();
        assert!(!bytes.windows(3).any(|part| part == b"mug"), "a page token shows no sort value");
        assert_eq!(key.parse_page(&key.page(&behind)), Some(behind));
        let page = PageToken { slate: [3; 16], offset: 48, after: None };
        let text = key.page(&page);
        assert_eq!(key.parse_page(&text), Some(page));
        assert_eq!(key.parse_attribution(&text), None);
        assert_eq!(key.parse_attribution(&key.attribution([1; 16])), Some([1; 16]));
        assert_eq!(answer_of_token(&key.attribution([1; 16])), Some([1; 16]));
        assert_eq!((answer_of_token(&text), answer_of_token("no token")), (None, None));
        assert_eq!(TokenKey::new([8; 32]).parse_page(&text), None);
        let completion = key.completion([3; 16], "tea mug");
        assert_eq!(key.parse_completion(&completion), Some(([3; 16], "tea mug".to_owned())));
        assert_eq!((key.parse_completion(&text), TokenKey::new([8; 32]).parse_completion(&completion)), (None, None));
        for garbage in ["", "a", "////", "AAAA", &text[1..]] {
            assert_eq!(key.parse_page(garbage), None);
        }
    }
}

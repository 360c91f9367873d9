//! Page and attribution tokens: opaque to clients, and signed, so that only tokens of this server are accepted.
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

const SIGNATURE_BYTES: usize = 12;
const ID_BYTES: usize = 16;

/// The kind of a token: its first byte, so that one kind cannot be used as the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    Page = 1,
    Attribution = 2,
}

/// The signing key. It is stored with the log, so that tokens survive a restart.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

/// A position in a frozen slate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageToken {
    pub slate: [u8; ID_BYTES],
    /// Number of results before this page.
    pub offset: u32,
}

impl TokenKey {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Signs a page token.
    pub fn page(&self, token: PageToken) -> String {
        let mut body = vec![TokenKind::Page as u8];
        body.extend_from_slice(&token.slate);
        body.extend_from_slice(&token.offset.to_le_bytes());
        self.sign(body)
    }

    /// Verifies a page token; none if it is not a page token of this server.
    pub fn parse_page(&self, text: &str) -> Option<PageToken> {
        let body = self.verify(text, TokenKind::Page)?;
        let (slate, offset) = body.split_at_checked(ID_BYTES)?;
        Some(PageToken { slate: slate.try_into().ok()?, offset: u32::from_le_bytes(offset.try_into().ok()?) })
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

    fn mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(body);
        mac
    }

    fn sign(&self, mut body: Vec<u8>) -> String {
        let signature = self.mac(&body).finalize().into_bytes();
        body.extend_from_slice(&signature[..SIGNATURE_BYTES]);
        URL_SAFE_NO_PAD.encode(body)
    }

    fn verify(&self, text: &str, kind: TokenKind) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let signature = bytes.split_off(bytes.len().checked_sub(SIGNATURE_BYTES)?);
        self.mac(&bytes).verify_truncated_left(&signature).ok()?;
        (bytes.first() == Some(&(kind as u8))).then(|| bytes.split_off(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_tokens_of_the_right_kind_are_accepted() {
        let key = TokenKey::new([7; 32]);
        let page = PageToken { slate: [3; 16], offset: 48 };
        let text = key.page(page);
        assert_eq!(key.parse_page(&text), Some(page));
        assert_eq!(key.parse_attribution(&text), None);
        assert_eq!(key.parse_attribution(&key.attribution([1; 16])), Some([1; 16]));
        assert_eq!(TokenKey::new([8; 32]).parse_page(&text), None);
        for garbage in ["", "a", "////", "AAAA", &text[1..]] {
            assert_eq!(key.parse_page(garbage), None);
        }
    }
}

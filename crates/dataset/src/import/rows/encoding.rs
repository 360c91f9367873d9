//! The encoding of a file's text.
use encoding_rs::{Decoder, DecoderResult, UTF_8};
use std::io::{self, Cursor, Read};

/// Bytes of the longest byte order mark.
const MARK_BYTES: u64 = 3;
/// Bytes that are decoded at once.
const CHUNK_BYTES: usize = 1 << 14;

/// The declared encoding of a file's text.
pub(in crate::import) struct Encoding(Option<&'static encoding_rs::Encoding>);

impl Encoding {
    /// Parses a label of the Encoding Standard. Empty: UTF-8, or UTF-16 with a byte order mark.
    pub(in crate::import) fn parse(label: &str) -> Result<Self, String> {
        if label.is_empty() {
            return Ok(Self(None));
        }
        encoding_rs::Encoding::for_label(label.as_bytes()).map(|encoding| Self(Some(encoding))).ok_or_else(|| {
            format!("file.encoding `{label}` is not known; use a label such as `utf-8`, `windows-1252` or `utf-16le`")
        })
    }

    /// Returns a reader of the text as UTF-8, without a byte order mark. The encoding of a mark has precedence, as in
    /// the Encoding Standard. Malformed UTF-8 is passed on, because the reader of the format refuses it with its place;
    /// malformed bytes of other encodings are errors of the reader.
    pub(super) fn decode(self, mut reader: Box<dyn Read>) -> Box<dyn Read> {
        let mut start = Vec::new();
        let read = reader.by_ref().take(MARK_BYTES).read_to_end(&mut start);
        let rest: Box<dyn Read> = match read {
            Ok(_) => reader,
            Err(error) => Box::new(Failed(Some(error))),
        };
        let (encoding, mark) = match encoding_rs::Encoding::for_bom(&start) {
            Some((encoding, length)) => (encoding, length),
            None => (self.0.unwrap_or(UTF_8), 0),
        };
        let content: Box<dyn Read> = Box::new(Cursor::new(start.split_off(mark)).chain(rest));
        match encoding == UTF_8 {
            true => content,
            false => Box::new(Decoded {
                reader: content,
                decoder: encoding.new_decoder_without_bom_handling(),
                bytes: vec![0; CHUNK_BYTES],
                text: String::new(),
                read: 0,
                state: State::Reading,
            }),
        }
    }
}

/// A reader that failed, with its error.
struct Failed(Option<io::Error>);

impl Read for Failed {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

/// Decodes bytes. The text before malformed bytes is read first, so that the error is that of their record.
struct Decoded {
    reader: Box<dyn Read>,
    decoder: Decoder,
    bytes: Vec<u8>,
    text: String,
    /// Bytes of `text` that were read.
    read: usize,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Reading,
    Malformed,
    /// The file ends within a character.
    Truncated,
    Ended,
}

impl Decoded {
    fn decode_next(&mut self) -> io::Result<()> {
        let count = self.reader.read(&mut self.bytes)?;
        let is_last = count == 0;
        let mut bytes = &self.bytes[..count];
        self.text.clear();
        self.read = 0;
        loop {
            let needed = self.decoder.max_utf8_buffer_length_without_replacement(bytes.len());
            self.text.reserve(needed.unwrap_or(bytes.len()));
            let (result, read) = self.decoder.decode_to_string_without_replacement(bytes, &mut self.text, is_last);
            bytes = &bytes[read..];
            self.state = match result {
                DecoderResult::OutputFull => continue,
                DecoderResult::InputEmpty if is_last => State::Ended,
                DecoderResult::InputEmpty => State::Reading,
                DecoderResult::Malformed(..) if is_last => State::Truncated,
                DecoderResult::Malformed(..) => State::Malformed,
            };
            return Ok(());
        }
    }
}

impl Read for Decoded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let name = self.decoder.encoding().name();
        while self.read == self.text.len() {
            match self.state {
                State::Reading => self.decode_next()?,
                State::Ended => return Ok(0),
                State::Malformed => {
                    return Err(io::Error::other(format!(
                        "its bytes are not {name}; set file.encoding in the mapping to the encoding of the file"
                    )));
                }
                State::Truncated => {
                    let message = format!("it ends within a character of {name}");
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
                }
            }
        }
        let rest = &self.text.as_bytes()[self.read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(label: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut reader = Encoding::parse(label).unwrap().decode(Box::new(Cursor::new(bytes.to_vec())));
        reader.read_to_end(&mut text)?;
        Ok(text)
    }

    proptest! {
        /// Bytes of any encoding are decoded as encoding_rs decodes them at once, or refused as it refuses them.
        #[test]
        fn bytes_are_decoded_in_pieces_as_at_once(
            bytes in proptest::collection::vec(any::<u8>(), 0..50),
            copies in 1_usize..2000,
            label in proptest::sample::select(vec!["shift_jis", "gbk", "windows-1252", "utf-16le", "iso-2022-jp"]),
        ) {
            let bytes = bytes.repeat(copies);
            let (encoding, mark) = encoding_rs::Encoding::for_bom(&bytes)
                .unwrap_or((encoding_rs::Encoding::for_label(label.as_bytes()).unwrap(), 0));
            if encoding != UTF_8 {
                let whole = encoding.decode_without_bom_handling_and_without_replacement(&bytes[mark..]);
                prop_assert_eq!(decode(label, &bytes).ok(), whole.map(|text| text.into_owned().into_bytes()));
            }
        }
    }
}

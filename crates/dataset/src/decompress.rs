//! Decompression of input files.
use std::io::{self, Read};

/// Decompresses a `.gz` or `.zst` file, which it recognises by its name. Returns the name without that extension and a
/// reader of the content. Returns the name and reader of other files unchanged.
pub fn decompress(name: &str, reader: impl Read + 'static) -> io::Result<(&str, Box<dyn Read>)> {
    if let Some(inner) = name.strip_suffix(".gz") {
        return Ok((inner, Box::new(flate2::read::MultiGzDecoder::new(reader))));
    }
    if let Some(inner) = name.strip_suffix(".zst") {
        return Ok((inner, Box::new(zstd::Decoder::new(reader)?)));
    }
    Ok((name, Box::new(reader)))
}

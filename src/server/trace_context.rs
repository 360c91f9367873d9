//! The header `traceparent` of W3C Trace Context, by which a caller says to which trace a call belongs.

/// The caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceParent {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    /// Whether the caller records its span.
    pub(super) is_sampled: bool,
}

/// Length of the header in version 0, and of the part that later versions begin with.
const LENGTH: usize = 55;

impl TraceParent {
    /// Parses `VERSION-TRACE_ID-SPAN_ID-FLAGS`, all in lower-case hexadecimal digits. As the recommendation says, an
    /// invalid header is ignored.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let (known, more) = value.split_at_checked(LENGTH)?;
        let [version] = hex(&known[..2])?;
        // The future version 255 is forbidden, and version 0 has no more fields.
        let is_length_valid = more.is_empty() || version > 0 && more[0] == b'-';
        let is_separated = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        if version == u8::MAX || !is_length_valid || !is_separated {
            return None;
        }
        let (trace_id, span_id): ([u8; 16], [u8; 8]) = (hex(&known[3..35])?, hex(&known[36..52])?);
        let [flags] = hex(&known[53..])?;
        let is_valid = trace_id != [0; 16] && span_id != [0; 8];
        is_valid.then_some(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }
}

/// Parses bytes in lower-case hexadecimal digits.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (value(pair[0])? << 4) | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn the_ids_and_the_sampled_flag_of_a_caller_are_read() {
        let parse = |text: String| TraceParent::parse(text.as_bytes());
        let parent = parse(format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!(u128::from_be_bytes(parent.trace_id), 0x4bf92f3577b34da6a3ce929d0e0e4736);
        assert_eq!(u64::from_be_bytes(parent.span_id), 0x00f067aa0ba902b7);
        assert!(parent.is_sampled);
        assert!(!parse(format!("00-{TRACE}-{SPAN}-02")).unwrap().is_sampled);
        // Fields of later versions are ignored.
        assert_eq!(parse(format!("cc-{TRACE}-{SPAN}-03-more")), Some(parent));
    }

    #[test]
    fn an_invalid_header_is_ignored() {
        let (zero_trace, zero_span) = ("0".repeat(32), "0".repeat(16));
        for text in [
            String::new(),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("01-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{zero_trace}-{SPAN}-01"),
            format!("00-{TRACE}-{zero_span}-01"),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("0\u{e9}-{TRACE}-{SPAN}-01"),
            "é".repeat(40),
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
        }
    }
}

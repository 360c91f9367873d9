//! HTML in the texts of a feed.
use lodestone_core::text::decode_entities;
use std::borrow::Cow;

/// Elements that begin a new line.
const BLOCKS: [&str; 20] = [
    "p",
    "br",
    "div",
    "li",
    "ul",
    "ol",
    "tr",
    "table",
    "tbody",
    "thead",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "section",
    "article",
    "blockquote",
];
/// Elements within a line.
const INLINE: [&str; 24] = [
    "a", "abbr", "b", "big", "center", "code", "em", "font", "i", "iframe", "img", "link", "meta", "s", "small",
    "span", "strong", "strike", "sub", "sup", "td", "th", "u", "wbr",
];
/// Elements whose content is no text.
const HIDDEN: [&str; 2] = ["script", "style"];

/// Greatest length of a tag in bytes. It bounds the search for its end.
const TAG_BYTES_MAX: usize = 4096;
/// How often tags are removed, because the removal of one may leave another: `<scr<b>ipt>`.
const ROUNDS_MAX: usize = 3;

/// Returns the text that a browser shows: entities are decoded, and the tags of HTML are removed. A text without either
/// stays as it is. A `<` that begins no tag of HTML stays, as in `cables < 2 m`.
pub(super) fn visible_text(text: &str) -> Cow<'_, str> {
    // Shops also export escaped tags, so entities come first.
    let mut text = decode_entities(text);
    for _ in 0..ROUNDS_MAX {
        match without_tags(&text) {
            Some(shown) => text = Cow::Owned(shown),
            None => break,
        }
    }
    text
}

/// Returns the text without tags, each line without needless white space; none if it has no tags.
fn without_tags(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    let mut has_tags = false;
    while let Some(start) = rest.find('<') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let Some(tag) = Tag::parse(rest) else {
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        has_tags = true;
        rest = &rest[tag.length..];
        match tag.kind {
            Kind::Block => out.push('\n'),
            Kind::Inline => {}
            Kind::Hidden { end } => {
                let starts = rest.match_indices("</").map(|(at, _)| at);
                let is_end = |at: &usize| {
                    rest.as_bytes()[*at..].get(..end.len()).is_some_and(|tag| tag.eq_ignore_ascii_case(end.as_bytes()))
                };
                rest = starts.into_iter().find(is_end).map_or("", |at| &rest[at..]);
            }
        }
    }
    if !has_tags {
        return None;
    }
    out.push_str(rest);
    let lines = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    Some(lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n"))
}

enum Kind {
    Block,
    Inline,
    /// Its end tag follows, which begins with `end`.
    Hidden {
        end: &'static str,
    },
}

struct Tag {
    kind: Kind,
    /// Bytes up to and with the `>`.
    length: usize,
}

impl Tag {
    /// Parses the tag or comment with which a text begins.
    fn parse(text: &str) -> Option<Self> {
        if text.starts_with("<!--") {
            let length = text.find("-->").map_or(text.len(), |end| end + 3);
            return Some(Self { kind: Kind::Inline, length });
        }
        let length = text.bytes().take(TAG_BYTES_MAX).position(|byte| byte == b'>')? + 1;
        let inside = &text[1..length - 1];
        let (inside, is_end) = match inside.strip_prefix('/') {
            Some(inside) => (inside, true),
            None => (inside, false),
        };
        let name_end = inside.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(inside.len());
        let (name, attributes) = inside.split_at(name_end);
        let attributes = attributes.trim_end_matches('/').trim();
        // `a<b and c>d` is no tag.
        if !attributes.is_empty() && !attributes.contains('=') {
            return None;
        }
        let name = name.to_ascii_lowercase();
        let kind = match name.as_str() {
            "script" if !is_end => Kind::Hidden { end: "</script" },
            "style" if !is_end => Kind::Hidden { end: "</style" },
            name if BLOCKS.contains(&name) => Kind::Block,
            name if INLINE.contains(&name) || HIDDEN.contains(&name) => Kind::Inline,
            _ => return None,
        };
        Some(Self { kind, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_and_entities_become_text() {
        for (html, text) in [
            ("Mug &amp; Saucer", "Mug & Saucer"),
            ("Caf&eacute; <b>noir</b>", "Café noir"),
            ("&lt;p&gt;One&lt;/p&gt;&lt;p&gt;Two&lt;/p&gt;", "One\nTwo"),
            ("<ul><li>a</li><li>b &nbsp; c</li></ul>", "a\nb c"),
            ("<script>alert('x')</script>Mug<style>p {}</style>", "Mug"),
            ("<SCRIPT src=x>never closed", ""),
            ("<!-- hidden -->Mug<br/>red", "Mug\nred"),
            ("Cable < 2 m", "Cable < 2 m"),
            ("a<b and c>d", "a<b and c>d"),
            ("I <3 mugs", "I <3 mugs"),
            ("<mug>", "<mug>"),
            ("R&D; 5 &", "R&D; 5 &"),
            ("Holds\n tea", "Holds\n tea"),
            ("<a href=\"/x\">link</a>", "link"),
            ("<scr<b>ipt>alert(1)</script>Mug", ""),
        ] {
            assert_eq!(visible_text(html), text, "{html}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(<|>|/|&|;|=|é|-->|<!--|<script|</script|<p|[a-z ]){0,20}") {
            prop_assert!(visible_text(&text).len() <= text.len());
        }
    }
}

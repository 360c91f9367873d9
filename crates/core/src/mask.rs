//! Hides the secrets of URLs in what is printed or logged.

/// Stands for a secret.
pub const MASK: &str = "***";

/// Replaces user, password and query of a URL. Another value is returned as it is. The value may be no valid URL, because
/// refusals print it: `/` and `?` in a password do not end it.
pub fn mask_url(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.is_empty() || port.parse::<u16>().is_ok());
    let is_ipv6 = authority.starts_with('[') && authority.ends_with(']');
    let may_have_password = authority.contains(':') && !has_port && !is_ipv6;
    let before_query = rest.find('?').unwrap_or(rest.len());
    let user_end = match authority.contains('@') || may_have_password {
        true => rest[..before_query].rfind('@').or_else(|| rest.rfind('@')),
        false => None,
    };
    let (user, rest) = user_end.map_or((String::new(), rest), |at| (format!("{MASK}@"), &rest[at + 1..]));
    match rest.split_once('?') {
        Some((place, _)) => format!("{scheme}://{user}{place}?{MASK}"),
        None => format!("{scheme}://{user}{rest}"),
    }
}

/// Masks the URLs in a text, each up to the next space or quote.
pub fn mask_urls(text: &str) -> String {
    let is_end = |c: char| c.is_whitespace() || ['"', '\'', '`'].contains(&c);
    let mask = |part: &str| {
        let (word, end) = part.split_at(part.trim_end_matches(is_end).len());
        let url = word.trim_end_matches([':', ';', ',', '.', ')', ']']);
        format!("{}{}{end}", mask_url(url), &word[url.len()..])
    };
    text.split_inclusive(is_end).map(mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_password_and_query_are_masked_and_the_rest_stays() {
        for (url, masked) in [
            ("s3://name:password@bucket/shop?signature=secret", "s3://***@bucket/shop?***"),
            ("https://token@host:8080/a", "https://***@host:8080/a"),
            ("https://host/a?email=a@b", "https://host/a?***"),
            ("https://host?a", "https://host?***"),
            ("https://u:p@host/a?email=a@b", "https://***@host/a?***"),
            // Passwords that should have been encoded.
            ("s3://key:pass/word@bucket/shop", "s3://***@bucket/shop"),
            ("s3://key:pass?word@bucket/shop", "s3://***@bucket/shop"),
            ("s3://key:pass@word@bucket", "s3://***@bucket"),
            // Nothing is secret.
            ("s3://bucket/shop", "s3://bucket/shop"),
            ("s3://bucket/a@b", "s3://bucket/a@b"),
            ("https://host:8080/a@b", "https://host:8080/a@b"),
            ("https://[::1]/a@b", "https://[::1]/a@b"),
            ("http://", "http://"),
            ("dir/a?b@c:d", "dir/a?b@c:d"),
            ("", ""),
        ] {
            assert_eq!(mask_url(url), masked);
            assert_eq!(mask_url(masked), masked, "masked twice");
        }
    }

    #[test]
    fn urls_in_texts_are_masked_up_to_their_end() {
        for (text, masked) in [
            ("store s3://u:p@b/x?sig=1: no region", "store s3://***@b/x?***: no region"),
            ("invalid value 'http://u:p@h' for '--a <URL>'", "invalid value 'http://***@h' for '--a <URL>'"),
            ("\"s3://u:p@b/x?sig=1\" and `https://h/?t=1`", "\"s3://***@b/x?***\" and `https://h/?***`"),
            ("error (for url (https://h/a?sig=é)), twice", "error (for url (https://h/a?***)), twice"),
            ("two\nlines, a:b@c and 100 %?", "two\nlines, a:b@c and 100 %?"),
            ("", ""),
        ] {
            assert_eq!(mask_urls(text), masked);
        }
    }
}

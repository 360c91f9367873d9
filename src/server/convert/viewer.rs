//! The viewer of a request or an event.
use super::shortened;
use crate::server::{proto, violations::Violations};
use lodestone_core::ids::UserId;
use lodestone_pipeline::Viewer;
use std::fmt::Display;

/// Greatest length of a language tag.
const LOCALE_BYTES_MAX: usize = 35;

/// A placeholder for an invalid viewer, whose request is refused.
fn placeholder() -> UserId {
    UserId::visitor("placeholder").expect("a fixed id within the limits")
}

/// Whether a text has the form of a BCP 47 language tag (RFC 5646); its subtags need not be registered.
fn is_language_tag(text: &str) -> bool {
    let mut subtags = text.split('-');
    let language = subtags.next().unwrap_or_default();
    // A tag of private use begins with `x`, and some old tags with `i`.
    let is_prefix = matches!(language, "x" | "X" | "i" | "I") && text.len() > 1;
    let is_language = (2..=8).contains(&language.len()) && language.bytes().all(|byte| byte.is_ascii_alphabetic());
    let is_subtag =
        |subtag: &str| (1..=8).contains(&subtag.len()) && subtag.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_language || is_prefix) && subtags.all(is_subtag)
}

pub(crate) fn viewer(violations: &mut Violations, field: impl Display, viewer: Option<&proto::Viewer>) -> Viewer {
    let Some(viewer) = viewer else {
        violations.add(field, "is missing; set user_id or visitor_id");
        return Viewer {
            user: placeholder(),
            visitor: None,
            session: String::new(),
            locale: String::new(),
            platform: 0,
        };
    };
    let visitor = match viewer.visitor_id.is_empty() {
        true => None,
        false => violations.keep(format_args!("{field}.visitor_id"), UserId::visitor(&viewer.visitor_id)),
    };
    let (user, visitor) = match (viewer.user_id.is_empty(), visitor) {
        (false, visitor) => {
            (violations.keep(format_args!("{field}.user_id"), UserId::signed_in(&viewer.user_id)), visitor)
        }
        (true, Some(visitor)) => (Some(visitor), None),
        (true, None) => {
            if viewer.visitor_id.is_empty() {
                violations.add(&field, "is empty; set user_id or visitor_id, 1 to 128 bytes");
            }
            (None, None)
        }
    };
    if viewer.session_id.len() > 128 {
        violations.add(
            format_args!("{field}.session_id"),
            format!("has {} bytes; the limit is 128", viewer.session_id.len()),
        );
    }
    if viewer.locale.len() > LOCALE_BYTES_MAX {
        let description = format!("has {} bytes; the limit is {LOCALE_BYTES_MAX}", viewer.locale.len());
        violations.add(format_args!("{field}.locale"), description);
    } else if !viewer.locale.is_empty() && !is_language_tag(&viewer.locale) {
        let description = format!(
            "`{}` is not a BCP 47 language tag such as `en-GB`: a language of 2 to 8 letters, and subtags of 1 to 8 \
             letters and digits, joined by `-`",
            viewer.locale
        );
        violations.add(format_args!("{field}.locale"), description);
    }
    let region = &viewer.region_code;
    if !region.is_empty() && (region.len() != 2 || !region.bytes().all(|byte| byte.is_ascii_alphabetic())) {
        let description = format!("`{}` is not an ISO 3166-1 code of 2 letters", shortened(region));
        violations.add(format_args!("{field}.region_code"), description);
    }
    if proto::Platform::try_from(viewer.platform).is_err() {
        violations.add(format_args!("{field}.platform"), format!("{} is not a Platform", viewer.platform));
    }
    Viewer {
        user: user.unwrap_or_else(placeholder),
        visitor,
        session: viewer.session_id.clone(),
        locale: viewer.locale.clone(),
        platform: viewer.platform,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_and_regions_have_the_form_of_their_standards() {
        let fields = |locale: &str, region_code: &str| {
            let (locale, region_code) = (locale.to_owned(), region_code.to_owned());
            let message = proto::Viewer { user_id: "u".into(), locale, region_code, ..Default::default() };
            let mut violations = Violations::default();
            viewer(&mut violations, "viewer", Some(&message));
            violations.found.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
        };
        let long = "en-x-".to_owned() + &"a-".repeat(14) + "aa";
        for locale in ["", "en", "en-GB", "zh-Hans", "de-CH-1901", "sl-rozaj-biske", "x-shop", "i-klingon", &long] {
            assert!(fields(locale, "GB").is_empty(), "{locale}");
        }
        for locale in
            ["!!!", "en_GB", "en GB", "e", "x", "-", "en-", "en--GB", "12", "en-toolongtag", "日本", &(long + "b")]
        {
            assert_eq!(fields(locale, ""), ["viewer.locale"], "{locale}");
        }
        for region in ["!!", "G", "GBR", "12", "ß"] {
            assert_eq!(fields("", region), ["viewer.region_code"], "{region}");
        }
    }

    #[test]
    fn the_user_has_precedence_and_the_visitor_is_kept() {
        let converted = |user_id: &str, visitor_id: &str| {
            let message =
                proto::Viewer { user_id: user_id.into(), visitor_id: visitor_id.into(), ..Default::default() };
            let mut violations = Violations::default();
            let viewer = viewer(&mut violations, "viewer", Some(&message));
            (viewer.user.as_str().to_owned(), viewer.visitor.map(|visitor| visitor.as_str().to_owned()), violations)
        };
        let (user, visitor, violations) = converted("anna", "browser");
        assert_eq!((user.as_str(), visitor.as_deref()), ("u:anna", Some("v:browser")));
        assert!(violations.found.is_empty());
        let (user, visitor, _) = converted("", "browser");
        assert_eq!((user.as_str(), visitor), ("v:browser", None));
        assert!(!converted("", "").2.found.is_empty());
        assert!(!converted("anna", &"x".repeat(129)).2.found.is_empty(), "accepted means used");
    }
}

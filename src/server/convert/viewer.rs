//! The viewer of a request or an event.
use super::{items::offer_key_fields, shortened};
use crate::server::{proto, violations::Violations};
use lodestone_core::{
    ids::UserId,
    viewer::{LOCALE_BYTES_MAX, Locale, Platform, Region, ViewerContext},
};
use lodestone_pipeline::Viewer;
use std::fmt::Display;

/// A placeholder for an invalid viewer, whose request is refused.
fn placeholder() -> UserId {
    UserId::visitor("placeholder").expect("a fixed id within the limits")
}

pub(crate) fn viewer(violations: &mut Violations, field: impl Display, viewer: Option<&proto::Viewer>) -> Viewer {
    let Some(viewer) = viewer else {
        violations.add(field, "is missing; set user_id or visitor_id");
        return Viewer::of_user(placeholder());
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
    let locale = Locale::parse(&viewer.locale);
    if viewer.locale.len() > LOCALE_BYTES_MAX {
        let description = format!("has {} bytes; the limit is {LOCALE_BYTES_MAX}", viewer.locale.len());
        violations.add(format_args!("{field}.locale"), description);
    } else if !viewer.locale.is_empty() && locale.is_none() {
        let description = format!(
            "`{}` is not a BCP 47 language tag such as `en-GB`: a language of 2 to 8 letters, and subtags of 1 to 8 \
             letters and digits, joined by `-`",
            viewer.locale
        );
        violations.add(format_args!("{field}.locale"), description);
    }
    let offers = proto::OfferKey {
        place_id: viewer.place_id.clone(),
        region_code: viewer.region_code.clone(),
        customer_group: viewer.customer_group.clone(),
        currency_code: viewer.currency_code.clone(),
    };
    let offers = offer_key_fields(violations, &field, &offers);
    let region = Region::parse(&offers.region_code);
    let platform = Platform::from_number(viewer.platform);
    if viewer.platform != 0 && platform.is_none() {
        violations.add(format_args!("{field}.platform"), format!("{} is not a Platform", viewer.platform));
    }
    Viewer {
        user: user.unwrap_or_else(placeholder),
        visitor,
        session: viewer.session_id.clone(),
        context: ViewerContext { platform, region, locale },
        offers,
    }
}

/// Validates an ISO 3166-1 code, which may be empty, and returns it in capital letters.
pub(super) fn region(violations: &mut Violations, field: impl Display, code: &str) -> String {
    if !code.is_empty() && (code.len() != 2 || !code.bytes().all(|byte| byte.is_ascii_alphabetic())) {
        violations.add(field, format!("`{}` is not an ISO 3166-1 code of 2 letters", shortened(code)));
    }
    code.to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_kept_or_refused_by_field() {
        let converted = |locale: &str, region_code: &str, platform: i32| {
            let (locale, region_code) = (locale.to_owned(), region_code.to_owned());
            let message = proto::Viewer { user_id: "u".into(), locale, region_code, platform, ..Default::default() };
            let mut violations = Violations::default();
            let context = viewer(&mut violations, "viewer", Some(&message)).context;
            let fields = violations.found.into_iter().map(|violation| violation.field).collect::<Vec<_>>();
            (context.texts().map(str::to_owned), fields)
        };
        assert_eq!(converted("en-GB", "gb", 4), (["android", "GB", "en-GB"].map(str::to_owned), Vec::new()));
        assert_eq!(converted("", "", 0), (["", "", ""].map(str::to_owned), Vec::new()));
        let long = "en-".to_owned() + &"a-".repeat(17);
        for locale in ["en_GB", "e", &long] {
            assert_eq!(converted(locale, "", 0).1, ["viewer.locale"], "{locale}");
        }
        for region in ["!!", "G", "GBR", "ß"] {
            assert_eq!(converted("", region, 0).1, ["viewer.region_code"], "{region}");
        }
        for platform in [7, -1] {
            assert_eq!(converted("", "", platform).1, ["viewer.platform"], "{platform}");
        }
        assert_eq!(converted("-", "-", 7).1.len(), 3, "all violations together");
    }

    #[test]
    fn every_platform_of_the_interface_is_known() {
        let numbers = (0..100).filter(|number| proto::Platform::try_from(*number).is_ok());
        assert!(numbers.filter(|number| *number != 0).eq(Platform::ALL.map(|platform| platform as i32)));
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

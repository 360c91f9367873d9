//! The viewer of a request or an event.
use crate::server::{proto, violations::Violations};
use lodestone_core::ids::UserId;
use lodestone_pipeline::Viewer;
use std::fmt::Display;

/// A placeholder for an invalid viewer, whose request is refused.
fn placeholder() -> UserId {
    UserId::visitor("placeholder").expect("a fixed id within the limits")
}

pub(crate) fn viewer(violations: &mut Violations, field: impl Display, viewer: Option<&proto::Viewer>) -> Viewer {
    let Some(viewer) = viewer else {
        violations.add(field, "is missing; set user_id or visitor_id");
        return Viewer { user: placeholder(), visitor: None, session: String::new(), locale: String::new() };
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
    if viewer.locale.len() > 35 {
        violations.add(format_args!("{field}.locale"), format!("has {} bytes; the limit is 35", viewer.locale.len()));
    }
    if !viewer.region_code.is_empty() && viewer.region_code.len() != 2 {
        violations.add(format_args!("{field}.region_code"), "is not an ISO 3166-1 code of 2 letters");
    }
    if proto::Platform::try_from(viewer.platform).is_err() {
        violations.add(format_args!("{field}.platform"), format!("{} is not a Platform", viewer.platform));
    }
    Viewer {
        user: user.unwrap_or_else(placeholder),
        visitor,
        session: viewer.session_id.clone(),
        locale: viewer.locale.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! Converts the state of bundles to messages, and validates requests of ModelService.
use super::{TEXT_CHARS_MAX, shortened, timestamp};
use crate::server::{proto, violations::Violations};
use lodestone_core::ids::ID_BYTES_MAX;
use lodestone_rollout::{BundleState, BundleStatus, CanaryReport, HealthSummary, ShadowReport};
use std::time::Duration;

/// Validates the name of a bundle.
pub(crate) fn bundle_name(violations: &mut Violations, name: &str) -> String {
    if name.is_empty() || name.len() > ID_BYTES_MAX {
        violations.add("bundle", format!("has {} bytes; it must have 1 to {ID_BYTES_MAX}", name.len()));
    }
    name.to_owned()
}

/// Validates a bundle and its share of the traffic. Returns None for an empty name, which ends the canary or shadow.
pub(crate) fn bundle_share(violations: &mut Violations, name: &str, share: f64) -> Option<(String, f64)> {
    if name.is_empty() {
        if share != 0.0 {
            violations.add("share", format!("is {share}; it must be 0 without a bundle"));
        }
        return None;
    }
    if !(share > 0.0 && share <= 1.0) {
        violations.add("share", format!("is {share}; it must be above 0 and at most 1"));
    }
    Some((bundle_name(violations, name), share))
}

/// Validates the reason of a rollback.
pub(crate) fn reason(violations: &mut Violations, reason: &str) -> String {
    let count = reason.chars().count();
    if count > TEXT_CHARS_MAX {
        let text = shortened(reason);
        violations.add("reason", format!("`{text}` has {count} characters; the limit is {TEXT_CHARS_MAX}"));
    }
    match reason.trim() {
        "" => "requested without a reason".to_owned(),
        reason => reason.to_owned(),
    }
}

pub(crate) fn bundle_to_proto(bundle: &BundleStatus) -> proto::Bundle {
    let is_loaded = bundle.created_at.is_some();
    proto::Bundle {
        name: bundle.name.clone(),
        state: match bundle.state {
            BundleState::Available => proto::BundleState::Available,
            BundleState::Loading => proto::BundleState::Loading,
            BundleState::Current => proto::BundleState::Current,
            BundleState::Kept => proto::BundleState::Kept,
            BundleState::Canary => proto::BundleState::Canary,
            BundleState::Shadow => proto::BundleState::Shadow,
            BundleState::Refused => proto::BundleState::Refused,
            BundleState::RolledBack => proto::BundleState::RolledBack,
        }
        .into(),
        reason: bundle.reason.clone(),
        change_time: bundle.changed_at.map(timestamp),
        create_time: bundle.created_at.map(timestamp),
        trained_until_time: bundle.trained_until.map(timestamp),
        item_count: bundle.item_count as i64,
        load_duration: bundle.load_time.map(duration),
        share: bundle.share,
        window: is_loaded.then(|| window(&bundle.window)),
        shadow: bundle.shadow.as_ref().map(shadow),
        canary: bundle.evaluation.as_ref().map(canary),
    }
}

fn window(summary: &HealthSummary) -> proto::HealthWindow {
    proto::HealthWindow {
        request_count: summary.requests as i64,
        error_count: summary.errors as i64,
        degraded_count: summary.degraded as i64,
        p50: Some(duration(summary.p50)),
        p99: Some(duration(summary.p99)),
    }
}

fn shadow(report: &ShadowReport) -> proto::ShadowReport {
    proto::ShadowReport {
        request_count: report.requests as i64,
        dropped_count: report.dropped as i64,
        rank_correlation: report.rank_correlation,
        overlap_at_10: report.overlap_at_10,
        window: Some(window(&report.own)),
        current_window: Some(window(&report.answering)),
    }
}

fn canary(report: &CanaryReport) -> proto::CanaryReport {
    proto::CanaryReport {
        user_count: report.canary_users as i64,
        conversions_per_user: report.canary_conversions,
        current_user_count: report.current_users as i64,
        current_conversions_per_user: report.current_conversions,
        difference_low: report.difference.map(|(low, _)| low),
        difference_high: report.difference.map(|(_, high)| high),
    }
}

fn duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }
}

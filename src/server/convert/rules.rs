//! Converts rules, sets of synonyms and serving configurations, which are stored as they are sent, and validates them.
use super::{
    filters::{filter, from_message},
    requests::{recommend, search},
};
use crate::server::{
    explain::{LoggedRequest, logged_request},
    proto::{self, rule_action::Action},
    violations::{Violation, Violations},
};
use lodestone_catalog::Filter;
use lodestone_core::units::UnixMillis;
use lodestone_engine::ServingConfigSource;
use lodestone_pipeline::{answers::AnswerRecord, run::RankingRequest};
use lodestone_rules::{
    AttributeDeclaration, CompiledAttribute, CompiledCampaign, CompiledRule, CompiledServingConfig, CompiledSynonyms,
    IncentiveCampaign, Rule, RuleProblem, ServingConfig, SynonymSet,
};
use prost::Message;

/// Converts between a message of the API and its stored form, which has the same fields.
fn converted<From: Message, To: Message + Default>(message: &From) -> To {
    To::decode(message.encode_to_vec().as_slice()).expect("both messages have the same fields")
}

pub(crate) fn rule_to_proto(rule: &CompiledRule) -> proto::Rule {
    converted(&rule.rule)
}

pub(crate) fn synonym_set_to_proto(set: &CompiledSynonyms) -> proto::SynonymSet {
    converted(&set.set)
}

pub(crate) fn serving_config_to_proto(
    config: &CompiledServingConfig,
    source: ServingConfigSource,
) -> proto::ServingConfig {
    let source = match source {
        ServingConfigSource::File => proto::ServingConfigSource::File,
        ServingConfigSource::Api => proto::ServingConfigSource::Api,
    };
    proto::ServingConfig { source: source.into(), ..converted(&config.config) }
}

pub(crate) fn incentive_campaign_to_proto(campaign: &CompiledCampaign) -> proto::IncentiveCampaign {
    converted(&campaign.campaign)
}

/// Validates a campaign. Its times are not read. Returns none if there are violations.
pub(crate) fn incentive_campaign(
    violations: &mut Violations,
    sent: Option<&proto::IncentiveCampaign>,
) -> Option<CompiledCampaign> {
    let Some(sent) = sent else {
        violations.add("campaign", "is missing");
        return None;
    };
    let campaign = IncentiveCampaign { create_time: None, update_time: None, ..converted(sent) };
    let before = violations.found.len();
    let compiled =
        CompiledCampaign::new(campaign).map_err(|problems| add_problems(violations, "campaign", problems)).ok();
    let field = "campaign.currency_code";
    if !violations.found[before..].iter().any(|violation| violation.field == field) {
        violations.keep(field, lodestone_core::currency::check(&sent.currency_code));
    }
    compiled.filter(|_| violations.found.len() == before)
}

/// Validates a rule. Its times are not read. Returns none if there are violations.
pub(crate) fn rule(violations: &mut Violations, sent: Option<&proto::Rule>) -> Option<CompiledRule> {
    let Some(sent) = sent else {
        violations.add("rule", "is missing");
        return None;
    };
    let before = violations.found.len();
    let sent = with_texts(violations, sent);
    let rule = Rule { create_time: None, update_time: None, ..converted(&sent) };
    let compiled = CompiledRule::new(rule).map_err(|problems| add_problems(violations, "rule", problems)).ok();
    compiled.filter(|_| violations.found.len() == before)
}

/// Returns the rule with its filters in the filter language, in which they are stored.
fn with_texts(violations: &mut Violations, sent: &proto::Rule) -> proto::Rule {
    // An invalid filter is replaced by a valid one, so that its problem is not reported twice.
    let written = |filter: Option<Filter>| filter.map_or_else(|| "in_stock".to_owned(), |filter| filter.to_string());
    let mut rule = sent.clone();
    for (index, action) in rule.actions.iter_mut().enumerate() {
        let path = |name: &str| format!("rule.actions[{index}].{name}");
        let mut text =
            |name: &str, sent: &proto::FilterExpression| written(from_message(violations, &path(name), sent));
        let replaced = match &action.action {
            Some(Action::BuryExpression(sent)) => Action::Bury(text("bury_expression", sent)),
            Some(Action::HideExpression(sent)) => Action::Hide(text("hide_expression", sent)),
            Some(Action::FilterExpression(sent)) => Action::Filter(text("filter_expression", sent)),
            Some(Action::Boost(proto::Boost { filter: sent, filter_expression: Some(expression), factor })) => {
                let filter = written(filter(violations, path("boost.filter"), sent, Some(expression)));
                Action::Boost(proto::Boost { filter, filter_expression: None, factor: *factor })
            }
            _ => continue,
        };
        action.action = Some(replaced);
    }
    rule
}

/// Validates a set of synonyms. Its times are not read. Returns none if there are violations.
pub(crate) fn synonym_set(violations: &mut Violations, sent: Option<&proto::SynonymSet>) -> Option<CompiledSynonyms> {
    let Some(sent) = sent else {
        violations.add("synonym_set", "is missing");
        return None;
    };
    let set = SynonymSet { create_time: None, update_time: None, ..converted(sent) };
    CompiledSynonyms::new(set).map_err(|problems| add_problems(violations, "synonym_set", problems)).ok()
}

/// Validates a serving configuration. Its times and source are not read. Returns none if there are violations.
pub(crate) fn serving_config(
    violations: &mut Violations,
    sent: Option<&proto::ServingConfig>,
) -> Option<CompiledServingConfig> {
    let Some(sent) = sent else {
        violations.add("serving_config", "is missing");
        return None;
    };
    CompiledServingConfig::new(stored_serving_config(sent))
        .map_err(|problems| add_problems(violations, "serving_config", problems))
        .ok()
}

/// Returns the configuration as it is stored, without its times.
pub(crate) fn stored_serving_config(sent: &proto::ServingConfig) -> ServingConfig {
    ServingConfig { create_time: None, update_time: None, ..converted(sent) }
}

/// Validates a declaration of an attribute. Its times are not read. Returns none if there are violations.
pub(crate) fn attribute_declaration(
    violations: &mut Violations,
    sent: Option<&proto::AttributeDeclaration>,
) -> Option<CompiledAttribute> {
    let Some(sent) = sent else {
        violations.add("declaration", "is missing");
        return None;
    };
    let declaration = AttributeDeclaration { create_time: None, update_time: None, ..converted(sent) };
    CompiledAttribute::new(declaration).map_err(|problems| add_problems(violations, "declaration", problems)).ok()
}

pub(crate) fn attribute_declaration_to_proto(attribute: &CompiledAttribute) -> proto::AttributeDeclaration {
    converted(&attribute.declaration)
}

/// Adds the problems of an entry, which is the field `message` of the request.
pub(crate) fn add_problems(violations: &mut Violations, message: &str, problems: Vec<RuleProblem>) {
    for RuleProblem { field, description, unknown_field } in problems {
        let violation = Violation::new(format_args!("{message}.{field}"), description);
        violations.found.push(Violation { unknown_field, ..violation });
    }
}

/// Returns the request of a logged answer; none if it cannot be read.
pub(crate) fn ranking_request(record: &AnswerRecord) -> Option<RankingRequest> {
    let mut violations = Violations::default();
    let now = UnixMillis(record.at_ms);
    let request = match logged_request(record)? {
        LoggedRequest::Search(sent) => RankingRequest::Search(search(&mut violations, sent, now)),
        LoggedRequest::Recommend(sent) => RankingRequest::Recommend(recommend(&mut violations, sent, now)),
        // They have no order that a rule or a configuration changes.
        LoggedRequest::Rank(_) | LoggedRequest::Suggest(_) => return None,
    };
    violations.is_empty().then_some(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;
    use proto::query_condition::Kind;

    /// A message with a value in every field that a rule has.
    fn full_rule() -> proto::Rule {
        let time = |seconds| Some(Timestamp { seconds, nanos: 5 });
        let query = |kind| proto::QueryCondition { kind: Some(kind) };
        let terms = proto::SynonymTerms { terms: vec!["a".into()], replacements: vec!["b".into()] };
        let actions = [
            Action::Pin(proto::Pin { item_id: "i".into(), rank: 3 }),
            Action::Boost(proto::Boost { filter: "in_stock".into(), factor: 2.5, filter_expression: None }),
            Action::Bury("price > 1".into()),
            Action::Hide("price > 2".into()),
            Action::Filter("price > 3".into()),
            Action::RedirectUrl("/sale".into()),
            Action::Banner("{}".into()),
            Action::ReplaceQuery("mug".into()),
            Action::AddSynonyms(terms),
        ];
        proto::Rule {
            rule_id: "r".into(),
            title: "t".into(),
            priority: -3,
            condition: Some(proto::RuleCondition {
                queries: ["a", "b", "c", "d"]
                    .map(str::to_owned)
                    .into_iter()
                    .zip([Kind::Exact, Kind::Prefix, Kind::Contains, Kind::Regex])
                    .map(|(text, kind)| query(kind(text)))
                    .collect(),
                categories: vec!["Mugs".into()],
                audiences: vec!["wholesale".into()],
                platforms: vec![1, 6],
                request_types: vec![1, 2, 3],
                start_time: time(1),
                end_time: time(2),
                serving_configs: vec!["default".into()],
            }),
            actions: actions.map(|action| proto::RuleAction { action: Some(action) }).to_vec(),
            create_time: time(3),
            update_time: time(4),
            etag: "e".into(),
        }
    }

    #[test]
    fn the_stored_forms_have_the_fields_of_the_messages() {
        let rule = full_rule();
        assert_eq!(converted::<Rule, proto::Rule>(&converted(&rule)), rule);
        let set = proto::SynonymSet {
            synonym_set_id: "s".into(),
            synonyms: Some(proto::SynonymTerms { terms: vec!["a".into()], replacements: vec!["b".into()] }),
            create_time: rule.create_time,
            update_time: rule.update_time,
            etag: "e".into(),
        };
        assert_eq!(converted::<SynonymSet, proto::SynonymSet>(&converted(&set)), set);
        let exploration = proto::Exploration {
            temperature: 0.5,
            first_slot: Some(1),
            top: Some(2),
            epsilon_slots: vec![3],
            epsilon: Some(0.0),
            epsilon_candidates: Some(4),
            share: Some(0.7),
        };
        let config = proto::ServingConfig {
            serving_config_id: "c".into(),
            source_candidates: Some(1),
            candidates: Some(2),
            query_cosine_min: Some(0.0),
            diversity: Some(0.1),
            repeat_fraction: Some(0.2),
            sold_out: proto::SoldOut::Show.into(),
            ranker: Some(false),
            head_weights: [("purchase".into(), -1.0)].into(),
            exploration: Some(exploration),
            create_time: rule.create_time,
            update_time: rule.update_time,
            etag: "e".into(),
            source: 0,
            objectives: Some(proto::RankingObjectives {
                weights: vec![proto::ObjectiveWeight { objective: 5, weight: 0.5 }],
                ndcg_loss_max: Some(0.0),
            }),
        };
        assert_eq!(converted::<ServingConfig, proto::ServingConfig>(&converted(&config)), config);
        let declaration = proto::AttributeDeclaration {
            name: "size".into(),
            kind: proto::AttributeKind::GeoPoint.into(),
            searchable: true,
            facetable: true,
            create_time: rule.create_time,
            update_time: rule.update_time,
            etag: "e".into(),
        };
        use proto::incentive::Benefit;
        let benefits = [
            Benefit::PercentOff(1.5),
            Benefit::AmountOffMicros(2),
            Benefit::FreeShipping(true),
            Benefit::EarlyAccess(true),
            Benefit::GiftItemId("i".into()),
            Benefit::Points(3),
        ];
        let campaign = proto::IncentiveCampaign {
            campaign_id: "c".into(),
            title: "t".into(),
            currency_code: "EUR".into(),
            budget_micros: 1,
            margin: 0.5,
            holdout_share: 0.1,
            allocation: proto::IncentiveAllocation::Targeted.into(),
            user_limit: 2,
            user_limit_days: 3,
            start_time: rule.create_time,
            end_time: rule.update_time,
            excluded_segments: vec![1, 6],
            excluded_customer_groups: vec!["g".into()],
            incentives: benefits
                .into_iter()
                .map(|benefit| proto::Incentive {
                    incentive_id: "i".into(),
                    benefit: Some(benefit),
                    cost_micros: Some(0),
                    valid_days: 4,
                    user_count_max: 5,
                })
                .collect(),
            minimum_effect: 0.01,
            budget_price: 0.5,
            create_time: rule.create_time,
            update_time: rule.update_time,
            etag: "e".into(),
        };
        let stored = converted::<_, AttributeDeclaration>(&declaration);
        assert_eq!(converted::<_, proto::AttributeDeclaration>(&stored), declaration);
        assert_eq!(converted::<IncentiveCampaign, proto::IncentiveCampaign>(&converted(&campaign)), campaign);
    }

    #[test]
    fn filters_that_are_messages_are_stored_as_texts() {
        let comparison = |field: &str| proto::FilterExpression {
            kind: Some(proto::filter_expression::Kind::Comparison(proto::FilterComparison {
                field: field.into(),
                operator: proto::FilterOperator::LessOrEqual.into(),
                value: Some(proto::FilterValue { kind: Some(proto::filter_value::Kind::Number(5.0)) }),
            })),
        };
        let rule_of = |field: &str| {
            let boost = proto::Boost { filter_expression: Some(comparison(field)), factor: 2.0, ..Default::default() };
            let actions = [
                Action::Boost(boost),
                Action::BuryExpression(comparison(field)),
                Action::HideExpression(comparison(field)),
                Action::FilterExpression(comparison(field)),
            ];
            let actions = actions.map(|action| proto::RuleAction { action: Some(action) }).to_vec();
            proto::Rule { rule_id: "r".into(), actions, ..Default::default() }
        };
        let mut violations = Violations::default();
        let returned = rule_to_proto(&rule(&mut violations, Some(&rule_of("price"))).unwrap());
        let text = "price <= 5".to_owned();
        let boost = proto::Boost { filter: text.clone(), factor: 2.0, filter_expression: None };
        let texts =
            [Action::Boost(boost), Action::Bury(text.clone()), Action::Hide(text.clone()), Action::Filter(text)];
        assert_eq!(returned.actions, texts.map(|action| proto::RuleAction { action: Some(action) }));
        assert!(rule(&mut violations, Some(&rule_of("colour"))).is_none());
        let fields: Vec<&str> = violations.found.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "rule.actions[0].boost.filter_expression.comparison.field",
                "rule.actions[1].bury_expression.comparison.field",
                "rule.actions[2].hide_expression.comparison.field",
                "rule.actions[3].filter_expression.comparison.field"
            ]
        );
    }

    #[test]
    fn a_valid_rule_is_returned_as_it_was_sent() {
        let mut violations = Violations::default();
        let compiled = rule(&mut violations, Some(&full_rule())).unwrap_or_else(|| panic!("{violations:?}"));
        let returned = rule_to_proto(&compiled);
        assert_eq!(returned.etag.len(), 16);
        let sent = full_rule();
        assert_eq!(
            proto::Rule { etag: "e".into(), create_time: sent.create_time, update_time: sent.update_time, ..returned },
            sent
        );
    }
}

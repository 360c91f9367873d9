//! Changes of rules, synonyms, serving configurations, declared attributes and campaigns of incentives.
use lodestone_events::Change;
use lodestone_rules::{
    AttributeDeclaration, Benefit, Incentive, IncentiveCampaign, Rule, RuleAction, RuleActionKind, RuleChange,
    ServingConfig, SynonymSet, SynonymTerms,
};
use rand::{Rng, rngs::StdRng};

/// Returns a random change of a rule, a set of synonyms, a serving configuration, a declared attribute or a campaign.
/// `number` tells the changes apart.
pub(crate) fn random_rule_change(number: usize, random: &mut StdRng) -> Change {
    let id = format!("r{}", random.random_range(0..6));
    let banner = RuleActionKind::Banner(format!("banner {number}"));
    let actions = vec![RuleAction { action: Some(banner) }];
    let terms = SynonymTerms { terms: vec!["mug".to_owned(), format!("cup{number}")], replacements: Vec::new() };
    let candidates = Some(number as i32 % 1000 + 1);
    let campaign = IncentiveCampaign {
        campaign_id: id.clone(),
        currency_code: "EUR".to_owned(),
        budget_micros: number as i64,
        margin: 0.5,
        holdout_share: 0.1,
        allocation: 1,
        user_limit: 1,
        user_limit_days: 30,
        incentives: vec![Incentive {
            incentive_id: "ten".to_owned(),
            benefit: Some(Benefit::PercentOff(10.0)),
            cost_micros: Some(1),
            valid_days: 14,
            user_count_max: 0,
        }],
        ..IncentiveCampaign::default()
    };
    Change::Rule(match random.random_range(0..15) {
        0..3 => RuleChange::PutRule(Rule { rule_id: id, actions, ..Rule::default() }),
        3 => RuleChange::DeleteRule(id),
        4 => RuleChange::PutSynonyms(SynonymSet { synonym_set_id: id, synonyms: Some(terms), ..SynonymSet::default() }),
        5 => RuleChange::DeleteSynonyms(id),
        6..8 => RuleChange::PutServingConfig(ServingConfig { serving_config_id: id, candidates, ..Default::default() }),
        8 => RuleChange::DeleteServingConfig(id),
        9..11 => RuleChange::PutAttribute(AttributeDeclaration {
            name: id,
            kind: 1 + number as i32 % 3,
            facetable: number.is_multiple_of(2),
            ..AttributeDeclaration::default()
        }),
        11 => RuleChange::DeleteAttribute(id),
        12..14 => RuleChange::PutCampaign(campaign),
        _ => RuleChange::DeleteCampaign(id),
    })
}

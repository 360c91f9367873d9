//! Changes of rules, synonyms, serving configurations and declared attributes.
use lodestone_events::Change;
use lodestone_rules::{
    AttributeDeclaration, Rule, RuleAction, RuleActionKind, RuleChange, ServingConfig, SynonymSet, SynonymTerms,
};
use rand::{Rng, rngs::StdRng};

/// Returns a random change of a rule, a set of synonyms, a serving configuration or a declared attribute. `number` tells
/// the changes apart.
pub(crate) fn random_rule_change(number: usize, random: &mut StdRng) -> Change {
    let id = format!("r{}", random.random_range(0..6));
    let banner = RuleActionKind::Banner(format!("banner {number}"));
    let actions = vec![RuleAction { action: Some(banner) }];
    let terms = SynonymTerms { terms: vec!["mug".to_owned(), format!("cup{number}")], replacements: Vec::new() };
    let candidates = Some(number as i32 % 1000 + 1);
    Change::Rule(match random.random_range(0..12) {
        0..3 => RuleChange::PutRule(Rule { rule_id: id, actions, ..Rule::default() }),
        3 => RuleChange::DeleteRule(id),
        4 => RuleChange::PutSynonyms(SynonymSet { synonym_set_id: id, synonyms: Some(terms), ..SynonymSet::default() }),
        5 => RuleChange::DeleteSynonyms(id),
        6..8 => RuleChange::PutServingConfig(ServingConfig { serving_config_id: id, candidates, ..Default::default() }),
        8 => RuleChange::DeleteServingConfig(id),
        9..11 => RuleChange::PutAttribute(AttributeDeclaration {
            name: id,
            kind: 1 + number as i32 % 3,
            facetable: number % 2 == 0,
            ..AttributeDeclaration::default()
        }),
        _ => RuleChange::DeleteAttribute(id),
    })
}

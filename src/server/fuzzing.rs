//! Messages of requests as the services read them, for the fuzz targets in `crates/fuzz`.
use super::{
    convert::{self, Clock},
    proto,
    violations::Violations,
};
use lodestone_catalog::{Filter, ItemChange, ItemWrite, WriteTime};
use lodestone_core::units::UnixMillis;
use lodestone_events::Change;
use lodestone_rules::{CompiledRule, RequestFacts, RuleBook, RuleChange, RuleRequestType, RuleSnapshot};
use prost::Message;
use std::time::Duration;

/// The server's time of all messages, 2026-01-01.
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const CLOCK: Clock = Clock { now: NOW, ahead_max: Duration::from_secs(300) };

/// The messages that are validated field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    Search,
    Recommend,
    Rank,
    Suggest,
    Event,
    Item,
    ItemUpdate,
    Inventory,
    ListItems,
    Rule,
    SynonymSet,
    ServingConfig,
    IncentiveCampaign,
    AttributeDeclaration,
}

/// Decodes and validates a message. Returns whether the server accepts it.
///
/// # Panics
/// If the log would not return an accepted write as it was accepted, if a replay would refuse an accepted entry, if the
/// item of a response would be refused, or if a filter changes when it is formatted and parsed again.
pub fn accepts(kind: MessageKind, bytes: &[u8]) -> bool {
    match kind {
        MessageKind::Search => accepts_with(bytes, search),
        MessageKind::Recommend => accepts_with(bytes, recommend),
        MessageKind::Rank => accepts_with(bytes, rank),
        MessageKind::Suggest => accepts_with(bytes, suggest),
        MessageKind::Event => accepts_with(bytes, event),
        MessageKind::Item => accepts_with(bytes, item),
        MessageKind::ItemUpdate => accepts_with(bytes, item_update),
        MessageKind::Inventory => accepts_with(bytes, inventory),
        MessageKind::ListItems => accepts_with(bytes, list_items),
        MessageKind::Rule => accepts_with(bytes, rule),
        MessageKind::SynonymSet => accepts_with(bytes, synonym_set),
        MessageKind::ServingConfig => accepts_with(bytes, serving_config),
        MessageKind::IncentiveCampaign => accepts_with(bytes, incentive_campaign),
        MessageKind::AttributeDeclaration => accepts_with(bytes, attribute_declaration),
    }
}

/// Calls `validate` with the message, if the bytes are one. Returns whether it has no violation.
fn accepts_with<M: Message + Default>(bytes: &[u8], validate: impl FnOnce(&mut Violations, M)) -> bool {
    let Ok(message) = M::decode(bytes) else { return false };
    let mut violations = Violations::default();
    validate(&mut violations, message);
    violations.is_empty()
}

fn search(violations: &mut Violations, sent: proto::SearchRequest) {
    check_filter(convert::search(violations, sent, NOW).filter);
}

fn recommend(violations: &mut Violations, sent: proto::RecommendRequest) {
    convert::recommend(violations, sent, NOW);
}

fn rank(violations: &mut Violations, sent: proto::RankRequest) {
    convert::check_features(violations, &sent.candidates, &["margin".to_owned()]);
    convert::rank(violations, &sent, NOW);
}

fn suggest(violations: &mut Violations, sent: proto::SuggestRequest) {
    check_filter(convert::suggest(violations, sent).filter);
}

fn list_items(violations: &mut Violations, sent: proto::ListItemsRequest) {
    check_filter(convert::list_items(violations, sent).filter);
}

fn event(violations: &mut Violations, sent: proto::Event) {
    let event = convert::event(violations, "events[0]", &sent, NOW, Some(CLOCK.ahead_max));
    check_write(violations, event.map(Change::Event));
}

fn item(violations: &mut Violations, sent: proto::Item) {
    let item = convert::item(violations, "items[0]", &sent, true);
    if let Some(item) = &item {
        let mut of_response = Violations::default();
        convert::item(&mut of_response, "item", &convert::item_to_proto(item), true);
        assert!(of_response.is_empty(), "the item of a response would be refused: {of_response:?}");
    }
    check_item(violations, item.map(|item| ItemWrite::of_all(item, WriteTime::Received(NOW))));
}

fn item_update(violations: &mut Violations, sent: proto::ItemUpdate) {
    let write = convert::item_update(violations, "updates[0]", &sent, CLOCK);
    check_item(violations, write);
}

fn inventory(violations: &mut Violations, sent: proto::Inventory) {
    let write = convert::inventory(violations, "inventories[0]", &sent, CLOCK);
    check_item(violations, write);
}

fn rule(violations: &mut Violations, sent: proto::Rule) {
    let rule = convert::rule(violations, Some(&sent));
    if let Some(rule) = &rule {
        apply_rule(rule);
    }
    check_entry(violations, rule.map(|rule| RuleChange::PutRule(rule.stored())));
}

fn synonym_set(violations: &mut Violations, sent: proto::SynonymSet) {
    let set = convert::synonym_set(violations, Some(&sent));
    check_entry(violations, set.map(|set| RuleChange::PutSynonyms(set.stored())));
}

fn serving_config(violations: &mut Violations, sent: proto::ServingConfig) {
    let config = convert::serving_config(violations, Some(&sent));
    check_entry(violations, config.map(|config| RuleChange::PutServingConfig(config.stored())));
}

fn incentive_campaign(violations: &mut Violations, sent: proto::IncentiveCampaign) {
    let campaign = convert::incentive_campaign(violations, Some(&sent));
    check_entry(violations, campaign.map(|campaign| RuleChange::PutCampaign(campaign.stored())));
}

fn attribute_declaration(violations: &mut Violations, sent: proto::AttributeDeclaration) {
    let attribute = convert::attribute_declaration(violations, Some(&sent));
    check_entry(violations, attribute.map(|attribute| RuleChange::PutAttribute(attribute.stored())));
}

fn check_filter(filter: Option<Filter>) {
    if let Some(filter) = filter {
        let text = filter.to_string();
        assert_eq!(Filter::parse(&text).as_ref(), Ok(&filter), "{text} is parsed as another filter");
    }
}

fn check_item(violations: &Violations, write: Option<ItemWrite>) {
    check_write(violations, write.map(|write| Change::Item(ItemChange::Write(Box::new(write)))));
}

/// Checks an entry that the rule book stores: the replay of the log must accept what the API accepted.
fn check_entry(violations: &Violations, change: Option<RuleChange>) {
    if let Some(change) = &change {
        RuleBook::default().apply(change.clone()).expect("an accepted entry is valid in the log");
    }
    check_write(violations, change.map(Change::Rule));
}

/// Checks that only a message without violations is written, and that the log returns what was written.
fn check_write(violations: &Violations, change: Option<Change>) {
    assert_eq!(change.is_some(), violations.is_empty(), "{violations:?}");
    if let Some(change) = change {
        let bytes = change.encode();
        // As bytes, because a NaN does not equal itself.
        assert_eq!(Change::decode(1, &bytes).expect("the log reads its records").encode(), bytes);
    }
}

/// Applies a rule to a request.
fn apply_rule(rule: &CompiledRule) {
    // The service refuses regular expressions beyond the limit of all rules.
    if RuleSnapshot::default().check_regexes(rule).is_err() {
        return;
    }
    let snapshot = RuleSnapshot::of(rule.clone()).expect("the regular expressions were compiled before");
    let facts = RequestFacts {
        request_type: RuleRequestType::Search,
        query: Some("red mug 蓝色"),
        categories: &["home", "home > mugs"],
        audiences: &["wholesale".to_owned()],
        platform: 1,
        serving_config: "default",
        at: NOW,
    };
    assert!(snapshot.applying(&facts).count() <= 1);
}

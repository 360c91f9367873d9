//! Messages of the API, as protobuf. The first byte selects the message.
use crate::files::{select, selecting};
use lodestone::server::{
    fuzzing::{self, MessageKind},
    proto,
};
use prost::Message;
use prost_types::{FieldMask, Timestamp};

const KINDS: [MessageKind; 14] = [
    MessageKind::Search,
    MessageKind::Recommend,
    MessageKind::Rank,
    MessageKind::Suggest,
    MessageKind::Event,
    MessageKind::Item,
    MessageKind::ItemUpdate,
    MessageKind::Inventory,
    MessageKind::ListItems,
    MessageKind::Rule,
    MessageKind::SynonymSet,
    MessageKind::ServingConfig,
    MessageKind::IncentiveCampaign,
    MessageKind::AttributeDeclaration,
];

pub(crate) fn accepts(input: &[u8]) -> bool {
    select(input, KINDS.len()).is_some_and(|(selected, bytes)| fuzzing::accepts(KINDS[selected], bytes))
}

fn seed(kind: MessageKind, message: &impl Message) -> Vec<u8> {
    let selected = KINDS.iter().position(|known| *known == kind).expect("KINDS has all kinds");
    selecting(selected, message.encode_to_vec())
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [ranking_seeds(), write_seeds(), entry_seeds()].concat()
}

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer {
        user_id: "u-1".to_owned(),
        session_id: "s-1".to_owned(),
        platform: 1,
        locale: "de-DE".to_owned(),
        region_code: "DE".to_owned(),
        ..Default::default()
    })
}

/// `NOT (price < 5 OR brand IN ("Acme") OR title HAS "mug")`.
fn filter() -> Option<proto::FilterExpression> {
    use proto::{filter_expression::Kind, filter_value};
    let expression = |kind| proto::FilterExpression { kind: Some(kind) };
    let value = |kind| proto::FilterValue { kind: Some(kind) };
    let any_of = vec![
        expression(Kind::Comparison(proto::FilterComparison {
            field: "price".to_owned(),
            operator: proto::FilterOperator::Less.into(),
            value: Some(value(filter_value::Kind::Number(5.0))),
        })),
        expression(Kind::InList(proto::FilterInList {
            field: "brand".to_owned(),
            values: vec![value(filter_value::Kind::Text("Acme".to_owned()))],
        })),
        expression(Kind::HasWords(proto::FilterHasWords { field: "title".to_owned(), text: "mug".to_owned() })),
    ];
    let any_of = expression(Kind::AnyOf(proto::FilterExpressions { expressions: any_of }));
    Some(expression(Kind::Negated(Box::new(any_of))))
}

fn options() -> Option<proto::RankingOptions> {
    Some(proto::RankingOptions {
        context_events: vec![event()],
        exclude_item_ids: vec!["b".to_owned()],
        boosts: vec![proto::Boost { filter: "in_stock".to_owned(), factor: 2.0, filter_expression: None }],
        pins: vec![proto::Pin { item_id: "a".to_owned(), rank: 2 }],
        diversity: Some(0.5),
        read_mask: Some(FieldMask { paths: vec!["title".to_owned(), "attributes.size".to_owned()] }),
        request_id: "r-1".to_owned(),
        audiences: vec!["wholesale".to_owned()],
        ..Default::default()
    })
}

fn event() -> proto::Event {
    proto::Event {
        event_id: "e-1".to_owned(),
        r#type: proto::EventType::View.into(),
        viewer: viewer(),
        lines: vec![proto::EventLine { item_id: "a".to_owned(), ..Default::default() }],
        ..Default::default()
    }
}

fn time(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn item() -> proto::Item {
    use proto::attribute_value::Kind;
    let attributes = [
        ("size", Kind::Number(2.5)),
        ("colour", Kind::Texts(proto::TextList { texts: vec!["red".to_owned(), "blue".to_owned()] })),
        ("organic", Kind::Flag(true)),
        ("since", Kind::Time(Timestamp { seconds: 1_700_000_000, nanos: 0 })),
        ("place", Kind::GeoPoint(proto::GeoPoint { latitude: 52.5, longitude: 13.4 })),
    ];
    let attribute = |(name, kind): (&str, Kind)| (name.to_owned(), proto::AttributeValue { kind: Some(kind) });
    proto::Item {
        item_id: "a".to_owned(),
        title: "Red mug".to_owned(),
        categories: vec!["Home > Mugs".to_owned()],
        brand: "Acme".to_owned(),
        price_micros: Some(5_000_000),
        currency_code: "EUR".to_owned(),
        stock_quantity: Some(3),
        tags: vec!["new".to_owned()],
        attributes: attributes.map(attribute).into_iter().collect(),
        create_time: time(1_700_000_000),
        rating: Some(4.5),
        rating_count: Some(12),
        url: "https://shop.example/a".to_owned(),
        offers: vec![proto::Offer {
            key: Some(proto::OfferKey { place_id: "p-1".to_owned(), ..Default::default() }),
            price_micros: Some(4_000_000),
            stock_quantity: Some(1),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn ranking_seeds() -> Vec<Vec<u8>> {
    let search = proto::SearchRequest {
        viewer: viewer(),
        query: "red mug".to_owned(),
        page_size: 5,
        filter_expression: filter(),
        options: options(),
        facet_specs: vec![
            proto::FacetSpec { field: "brand".to_owned(), value_count: 3, ..Default::default() },
            proto::FacetSpec { field: "price".to_owned(), bounds: vec![1.0, 5.0], ..Default::default() },
        ],
        recommendation_count: 2,
        ..Default::default()
    };
    let recommend = proto::RecommendRequest {
        viewer: viewer(),
        r#type: proto::RecommendType::Similar.into(),
        filter: "in_stock AND price < 5".to_owned(),
        anchor_item_ids: vec!["a".to_owned()],
        options: options(),
        ..Default::default()
    };
    let rank = proto::RankRequest {
        viewer: viewer(),
        candidates: vec![
            proto::RankCandidate { item_id: "a".to_owned(), item: Some(item()), ..Default::default() },
            proto::RankCandidate {
                item_id: "b".to_owned(),
                retrieval_score: Some(0.5),
                features: [("margin".to_owned(), 1.5)].into_iter().collect(),
                ..Default::default()
            },
        ],
        query: "mug".to_owned(),
        options: None,
    };
    let suggest = proto::SuggestRequest {
        viewer: viewer(),
        prefix: "re".to_owned(),
        completion_count: 3,
        filter: "brand = \"Acme\"".to_owned(),
        ..Default::default()
    };
    let list = proto::ListItemsRequest { page_size: 10, filter_expression: filter(), ..Default::default() };
    vec![
        seed(MessageKind::Search, &search),
        seed(MessageKind::Recommend, &recommend),
        seed(MessageKind::Rank, &rank),
        seed(MessageKind::Suggest, &suggest),
        seed(MessageKind::ListItems, &list),
    ]
}

fn write_seeds() -> Vec<Vec<u8>> {
    let purchase = proto::Event {
        r#type: proto::EventType::Purchase.into(),
        lines: vec![proto::EventLine {
            item_id: "a".to_owned(),
            quantity: 1.5,
            price_micros: Some(5_000_000),
            ..Default::default()
        }],
        order_id: "o-1".to_owned(),
        currency_code: "EUR".to_owned(),
        occurred_time: time(1_767_000_000),
        ..event()
    };
    let update = proto::ItemUpdate {
        item: Some(item()),
        update_mask: Some(FieldMask { paths: vec!["price_micros".to_owned(), "attributes.size".to_owned()] }),
        update_time: time(1_767_000_000),
    };
    let inventory = proto::Inventory {
        item_id: "a".to_owned(),
        stock_quantity: Some(7),
        price_micros: Some(3),
        ..Default::default()
    };
    let of_offer = proto::Inventory {
        offer_key: Some(proto::OfferKey { region_code: "DE".to_owned(), ..Default::default() }),
        ..inventory.clone()
    };
    vec![
        seed(MessageKind::Event, &event()),
        seed(MessageKind::Event, &purchase),
        seed(MessageKind::Item, &item()),
        seed(MessageKind::ItemUpdate, &update),
        seed(MessageKind::Inventory, &inventory),
        seed(MessageKind::Inventory, &of_offer),
    ]
}

fn entry_seeds() -> Vec<Vec<u8>> {
    use proto::{query_condition::Kind, rule_action::Action};
    let query = |kind| proto::QueryCondition { kind: Some(kind) };
    let action = |action| proto::RuleAction { action: Some(action) };
    let rule = proto::Rule {
        rule_id: "r-1".to_owned(),
        title: "Mugs".to_owned(),
        condition: Some(proto::RuleCondition {
            queries: vec![
                query(Kind::Regex("^red (mug|cup)s?".to_owned())),
                query(Kind::Contains("mug".to_owned())),
                query(Kind::Prefix("red".to_owned())),
            ],
            categories: vec!["Home > Mugs".to_owned()],
            request_types: vec![1],
            start_time: time(1_767_000_000),
            ..Default::default()
        }),
        actions: vec![
            action(Action::Pin(proto::Pin { item_id: "a".to_owned(), rank: 1 })),
            action(Action::HideExpression(filter().expect("a filter"))),
            action(Action::AddSynonyms(proto::SynonymTerms {
                terms: vec!["mug".to_owned(), "cup".to_owned()],
                replacements: Vec::new(),
            })),
        ],
        ..Default::default()
    };
    let synonyms = proto::SynonymSet {
        synonym_set_id: "s-1".to_owned(),
        synonyms: Some(proto::SynonymTerms {
            terms: vec!["doorbell".to_owned()],
            replacements: vec!["door bell".to_owned(), "chime".to_owned()],
        }),
        ..Default::default()
    };
    let attribute = proto::AttributeDeclaration {
        name: "size".to_owned(),
        kind: proto::AttributeKind::Number.into(),
        facetable: true,
        ..Default::default()
    };
    vec![
        seed(MessageKind::Rule, &rule),
        seed(MessageKind::SynonymSet, &synonyms),
        seed(MessageKind::ServingConfig, &serving_config()),
        seed(MessageKind::IncentiveCampaign, &campaign()),
        seed(MessageKind::AttributeDeclaration, &attribute),
    ]
}

fn serving_config() -> proto::ServingConfig {
    proto::ServingConfig {
        serving_config_id: "c-1".to_owned(),
        candidates: Some(200),
        diversity: Some(0.2),
        head_weights: [("purchase".to_owned(), 1.0)].into_iter().collect(),
        exploration: Some(proto::Exploration { temperature: 0.5, top: Some(10), ..Default::default() }),
        ..Default::default()
    }
}

fn campaign() -> proto::IncentiveCampaign {
    proto::IncentiveCampaign {
        campaign_id: "spring".to_owned(),
        title: "Spring".to_owned(),
        currency_code: "EUR".to_owned(),
        budget_micros: 1_000_000_000,
        margin: 0.4,
        holdout_share: 0.1,
        allocation: proto::IncentiveAllocation::Targeted.into(),
        user_limit: 1,
        user_limit_days: 30,
        incentives: vec![proto::Incentive {
            incentive_id: "ten".to_owned(),
            benefit: Some(proto::incentive::Benefit::PercentOff(10.0)),
            cost_micros: Some(2_000_000),
            valid_days: 14,
            ..Default::default()
        }],
        ..Default::default()
    }
}

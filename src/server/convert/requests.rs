//! Validates and converts requests of RankingService.
use super::{
    TEXT_CHARS_MAX,
    consistency::{LogPosition, log_position},
    events::event,
    filters::filter,
    items::{item, read_mask},
    shortened,
    viewer::viewer,
};
use crate::server::{
    proto,
    violations::{Violation, Violations},
};
use lodestone_catalog::{Field, Filter, Item, OrderBy, OrderByError, ReadMask, limits, path_normal};
use lodestone_core::{ids::ItemId, text::normalize, units::UnixMillis};
use lodestone_pipeline::*;
use prost::Message;
use prost_types::FieldMask;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

const CONTEXT_EVENTS_MAX: usize = 100;
const EXCLUDE_MAX: usize = 1000;
const BOOSTS_MAX: usize = 20;
const PINS_MAX: usize = 50;
const AUDIENCES_MAX: usize = 20;
const ANCHORS_MAX: usize = 50;
const CANDIDATES_MAX: usize = 1000;
/// Candidates with an item of the request; their texts are encoded before they are ranked.
const CANDIDATE_ITEMS_MAX: usize = 100;
/// Values of features of a candidate.
const CANDIDATE_FEATURES_MAX: usize = 64;
const PREFIX_CHARS_MAX: usize = 200;
const VALUE_QUERY_CHARS_MAX: usize = 200;
const VARIANTS_MAX: usize = 100;
const SUGGESTIONS_MAX: usize = 20;
const SERVING_CONFIG_BYTES_MAX: usize = 64;
const PAGE_NUMBER_MAX: i64 = i32::MAX as i64;

/// Parses the mask of the items in an answer, which shoppers may see.
fn answer_mask(violations: &mut Violations, field: &str, sent: Option<&FieldMask>) -> Option<ReadMask> {
    let is_left_out = |name: &String| matches!(name.as_str(), "cost_micros" | "offers");
    if let Some(name) = sent.and_then(|mask| mask.paths.iter().find(|name| is_left_out(name))) {
        let description = format!("answers leave `{name}` out; ListItems returns it");
        violations.notices.push(Violation::new(format!("{field}.paths"), description));
    }
    read_mask(violations, field, sent)
}

fn ids(violations: &mut Violations, field: &str, texts: &[String], limit: usize) -> Vec<ItemId> {
    violations.count(field, texts.len(), limit);
    let parsed = texts.iter().take(limit).enumerate();
    parsed.filter_map(|(i, id)| violations.keep(format!("{field}[{i}]"), ItemId::parse(id))).collect()
}

/// Returns each item of a list once. Adds a notice if an item occurs twice. `path` returns the path of the id with an
/// index.
fn once(
    violations: &mut Violations,
    field: &str,
    ids: Vec<(usize, ItemId)>,
    path: impl Fn(usize) -> String,
) -> Vec<ItemId> {
    let count = ids.len();
    let mut repeated: Option<(usize, ItemId)> = None;
    let (mut known, mut distinct) = (HashSet::with_capacity(count), Vec::with_capacity(count));
    for (index, id) in ids {
        match known.insert(id.clone()) {
            true => distinct.push(id),
            false => _ = repeated.get_or_insert((index, id)),
        }
    }
    if let Some((index, id)) = repeated {
        let description = format!(
            "{} of {count} entries name an item of an earlier entry, the first of them {} `{}`; each item counts once",
            count - distinct.len(),
            path(index),
            shortened(id.as_str())
        );
        violations.notices.push(Violation::new(field, description));
    }
    distinct
}

fn anchors(violations: &mut Violations, texts: &[String]) -> Vec<ItemId> {
    let anchors = ids(violations, "anchor_item_ids", texts, ANCHORS_MAX);
    once(violations, "anchor_item_ids", anchors.into_iter().enumerate().collect(), |index| {
        format!("anchor_item_ids[{index}]")
    })
}

fn options(violations: &mut Violations, options: Option<&proto::RankingOptions>, now: UnixMillis) -> Options {
    let Some(options) = options else { return Options { one_per_group: true, ..Options::default() } };
    violations.count("options.context_events", options.context_events.len(), CONTEXT_EVENTS_MAX);
    let mut context_events = Vec::new();
    for (index, sent) in options.context_events.iter().take(CONTEXT_EVENTS_MAX).enumerate() {
        let path = format!("options.context_events[{index}]");
        context_events.extend(event(violations, &path, sent, now, None));
    }
    if options.request_id.len() > 128 {
        violations.add("options.request_id", format!("has {} bytes; the limit is 128", options.request_id.len()));
    }
    let diversity = options.diversity.map(|diversity| {
        if !(0.0..=1.0).contains(&diversity) {
            violations.add("options.diversity", format!("is {diversity}; it must be within 0 and 1"));
        }
        diversity as f32
    });
    let LogPosition { log, position } =
        log_position(violations, "options.consistency_token", &options.consistency_token);
    Options {
        log_position: position,
        log,
        context_events,
        exclude: ids(violations, "options.exclude_item_ids", &options.exclude_item_ids, EXCLUDE_MAX),
        order_by: order_by(violations, options),
        boosts: boosts(violations, &options.boosts),
        pins: pins(violations, &options.pins),
        diversity,
        read_mask: answer_mask(violations, "options.read_mask", options.read_mask.as_ref()),
        debug: debug(violations, "options.debug_level", options.debug_level),
        request_id: options.request_id.clone(),
        serving_config: serving_config(violations, "options.serving_config", &options.serving_config),
        sold_out: sold_out(violations, options.sold_out),
        one_per_group: !options.all_variants,
        variant_list_size: violations.size("options.variant_list_size", options.variant_list_size, 0, VARIANTS_MAX),
        audiences: audiences(violations, "options.audiences", &options.audiences),
        // That of the metadata of the call.
        priority: Priority::default(),
    }
}

fn audiences(violations: &mut Violations, field: &str, audiences: &[String]) -> Vec<String> {
    violations.count(field, audiences.len(), AUDIENCES_MAX);
    for (index, audience) in audiences.iter().take(AUDIENCES_MAX).enumerate() {
        let (bytes, limit) = (audience.len(), lodestone_rules::limits::AUDIENCE_BYTES);
        if !(1..=limit).contains(&bytes) {
            let description = format!("has {bytes} bytes; it must have 1 to {limit}");
            violations.add(format_args!("{field}[{index}]"), description);
        }
    }
    audiences.to_vec()
}

fn serving_config(violations: &mut Violations, field: &str, name: &str) -> String {
    if name.len() > SERVING_CONFIG_BYTES_MAX {
        let description = format!("has {} bytes; the limit is {SERVING_CONFIG_BYTES_MAX}", name.len());
        violations.add(field, description);
        return String::new();
    }
    name.to_owned()
}

fn order_by(violations: &mut Violations, options: &proto::RankingOptions) -> OrderBy {
    let order = OrderBy::parse(&options.order_by).unwrap_or_else(|problems| {
        for problem in problems {
            match &problem {
                OrderByError::UnknownField(name) => {
                    violations.add_unknown_field("options.order_by", problem.to_string(), name);
                }
                problem => violations.add("options.order_by", problem.to_string()),
            }
        }
        OrderBy::default()
    });
    if !order.is_empty() && options.diversity.is_some_and(|diversity| diversity > 0.0) {
        let description = "does not apply, because options.order_by orders the answer".to_owned();
        violations.notices.push(Violation::new("options.diversity", description));
    }
    order
}

/// Parses the number of a page of a search, from 1.
fn page_number(violations: &mut Violations, request: &proto::SearchRequest, token: &str) -> usize {
    let Some(number) = request.page_number else { return 1 };
    if !(1..=PAGE_NUMBER_MAX).contains(&number) {
        violations.add("page_number", format!("is {number}; it must be within 1 and {PAGE_NUMBER_MAX}"));
    }
    if !token.is_empty() {
        violations.add("page_number", format!("is {number}; leave it out of a request with a page_token"));
    }
    let order_by = request.options.as_ref().map_or("", |options| options.order_by.as_str());
    if !request.query.trim().is_empty() && order_by.trim().is_empty() {
        let description = format!(
            "is {number}; a search with a query and without options.order_by has no page numbers, use page_token"
        );
        violations.add("page_number", description);
    }
    number.max(1) as usize
}

fn boosts(violations: &mut Violations, sent: &[proto::Boost]) -> Vec<Boost> {
    violations.count("options.boosts", sent.len(), BOOSTS_MAX);
    let mut boosts = Vec::new();
    for (index, boost) in sent.iter().take(BOOSTS_MAX).enumerate() {
        let field = format!("options.boosts[{index}].filter");
        if !lodestone_rules::limits::FACTOR.contains(&boost.factor) {
            let description = format!("is {}; it must be within 0.000001 and 100", boost.factor);
            violations.add(format!("options.boosts[{index}].factor"), description);
        }
        match filter(violations, &field, &boost.filter, boost.filter_expression.as_ref()) {
            Some(filter) => boosts.push(Boost { filter, factor: boost.factor as f32 }),
            None if boost.filter.trim().is_empty() && boost.filter_expression.is_none() => {
                violations.add(field, "is empty; it must select the boosted items")
            }
            None => {}
        }
    }
    boosts
}

fn pins(violations: &mut Violations, sent: &[proto::Pin]) -> Vec<Pin> {
    violations.count("options.pins", sent.len(), PINS_MAX);
    let mut pins = Vec::new();
    for (index, pin) in sent.iter().take(PINS_MAX).enumerate() {
        if let Some(first) = sent[..index].iter().position(|other| other.rank == pin.rank) {
            let description = format!("is {}, the rank of pins[{first}]; a rank takes one pin", pin.rank);
            violations.add(format!("options.pins[{index}].rank"), description);
        }
        if let Some(first) = sent[..index].iter().position(|other| other.item_id == pin.item_id) {
            let id = shortened(&pin.item_id);
            let description = format!("is `{id}`, the item of pins[{first}]; an item takes one pin");
            violations.add(format!("options.pins[{index}].item_id"), description);
        }
        if !(1..=PAGE_SIZE_MAX as i32).contains(&pin.rank) {
            let description = format!("is {}; it must be within 1 and {PAGE_SIZE_MAX}", pin.rank);
            violations.add(format!("options.pins[{index}].rank"), description);
        }
        let item = violations.keep(format!("options.pins[{index}].item_id"), ItemId::parse(&pin.item_id));
        pins.extend(item.map(|item| Pin { item, rank: pin.rank.max(1) as usize }));
    }
    pins
}

fn sold_out(violations: &mut Violations, sold_out: i32) -> Option<SoldOut> {
    match proto::SoldOut::try_from(sold_out) {
        Ok(proto::SoldOut::Unspecified) => None,
        Ok(proto::SoldOut::Hide) => Some(SoldOut::Hidden),
        Ok(proto::SoldOut::Last) => Some(SoldOut::Last),
        Ok(proto::SoldOut::Show) => Some(SoldOut::Shown),
        Err(_) => {
            violations.add("options.sold_out", format!("{sold_out} is not a SoldOut"));
            None
        }
    }
}

fn debug(violations: &mut Violations, field: &str, level: i32) -> DebugLevel {
    use proto::DebugLevel as Wire;
    match Wire::try_from(level) {
        Ok(Wire::Unspecified) => DebugLevel::None,
        Ok(Wire::Timings) => DebugLevel::Timings,
        Ok(Wire::Scores) => DebugLevel::Scores,
        Ok(Wire::Features) => DebugLevel::Features,
        Err(_) => {
            violations.add(field, format!("{level} is not a DebugLevel"));
            DebugLevel::None
        }
    }
}

pub(super) fn fingerprint(sent: &[u8]) -> u64 {
    let digest = Sha256::digest(sent);
    u64::from_le_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
}

fn query(violations: &mut Violations, text: &str) -> String {
    violations.characters("query", text, TEXT_CHARS_MAX);
    text.to_owned()
}

pub(crate) fn search(violations: &mut Violations, mut request: proto::SearchRequest, now: UnixMillis) -> SearchRequest {
    let token = std::mem::take(&mut request.page_token);
    let number = page_number(violations, &request, &token);
    request.page_number = None;
    let sent = slate_key(&request, |request| &mut request.options);
    let page = Page { size: violations.page_size(request.page_size), token, number, fingerprint: fingerprint(&sent) };
    let count = violations.size("recommendation_count".to_owned(), request.recommendation_count, 0, PAGE_SIZE_MAX);
    let mut parsed = SearchRequest {
        viewer: viewer(violations, "viewer", request.viewer.as_ref()),
        query: query(violations, &request.query),
        page,
        filter: filter(violations, "filter", &request.filter, request.filter_expression.as_ref()),
        facets: facets(violations, &request.facet_specs),
        dynamic_facet_count: violations.size("dynamic_facet_count", request.dynamic_facet_count, 0, FACETS_MAX),
        options: options(violations, request.options.as_ref(), now),
        fallback: None,
        message: sent,
    };
    if !parsed.options.order_by.is_empty() && !parsed.options.boosts.is_empty() {
        let description = "do not apply, because options.order_by orders all results".to_owned();
        violations.notices.push(Violation::new("options.boosts", description));
    }
    // All fields of the fallback are fields of the search, whose violations are reported already. Its filter is that of
    // the search, so that it has no result if a search without a query has none.
    if count > 0 && violations.is_empty() && !parsed.is_browse() {
        parsed.fallback = Some(Box::new(recommend(violations, recommendations(request, count), now)));
    }
    parsed
}

/// Returns the request for the recommendations of a search without results. Its order and pins are those of the search
/// page.
fn recommendations(search: proto::SearchRequest, count: usize) -> proto::RecommendRequest {
    let options =
        search.options.map(|options| proto::RankingOptions { order_by: String::new(), pins: Vec::new(), ..options });
    proto::RecommendRequest {
        viewer: search.viewer,
        r#type: proto::RecommendType::ForYou.into(),
        page_size: count as i32,
        filter: search.filter,
        filter_expression: search.filter_expression,
        options,
        ..Default::default()
    }
}

fn facets(violations: &mut Violations, sent: &[proto::FacetSpec]) -> Vec<FacetSpec> {
    violations.count("facet_specs", sent.len(), FACETS_MAX);
    let mut specs: Vec<FacetSpec> = Vec::new();
    for (index, sent) in sent.iter().take(FACETS_MAX).enumerate() {
        let path = |name: &str| format!("facet_specs[{index}].{name}");
        let value_count =
            violations.size(path("value_count"), sent.value_count, FACET_VALUES_DEFAULT, FACET_VALUES_MAX);
        let Some(field) = facet_field(&sent.field) else {
            let name = shortened(&sent.field);
            let known = "use category, category_path, brand, tags, price, discount, rating, stock_quantity, in_stock, \
                         availability or attributes.NAME (1 to 64 of A-Z, a-z, 0-9, _)";
            let description = format!("`{name}` is not a facet field; {known}");
            violations.add_unknown_field(path("field"), description, &sent.field);
            continue;
        };
        if specs.iter().any(|spec| spec.field == field) {
            violations.add(
                path("field"),
                format!("`{}` occurs twice; each field may have one facet", shortened(&sent.field)),
            );
        }
        check_bounds(violations, path("bounds"), &field, &sent.bounds);
        let value_query = value_query(violations, path("value_query"), &field, &sent.value_query);
        specs.push(FacetSpec {
            value_count,
            bounds: sent.bounds.clone(),
            multi_select: sent.multi_select,
            value_query,
            parent: parent(violations, path("parent"), &field, &sent.parent),
            field,
        });
    }
    specs
}

/// Returns the normal form of the path whose next level a facet counts.
fn parent(violations: &mut Violations, path: String, field: &Field, text: &str) -> String {
    violations.characters(&path, text, VALUE_QUERY_CHARS_MAX * limits::CATEGORY_LEVELS);
    if !text.is_empty() && *field != Field::CategoryPath {
        violations.add(path, "must be empty for fields other than category_path");
    }
    if text.is_empty() { String::new() } else { path_normal(text) }
}

/// Returns the normal form of a query for a facet's values.
fn value_query(violations: &mut Violations, path: String, field: &Field, text: &str) -> String {
    violations.characters(&path, text, VALUE_QUERY_CHARS_MAX);
    let normal = normalize(text);
    if !text.is_empty() && !has_texts(field) {
        violations.add(path, format!("must be empty for {field}, whose values are not texts"));
    } else if !text.is_empty() && normal.is_empty() {
        violations.add(path, "is white space only");
    }
    normal
}

fn check_bounds(violations: &mut Violations, path: String, field: &Field, bounds: &[f64]) {
    violations.count(&path, bounds.len(), FACET_BOUNDS_MAX);
    if !bounds.is_empty() && !has_ranges(field) {
        violations.add(path, "must be empty for fields other than price and attributes");
    } else if let Some(bound) = bounds.iter().find(|bound| !bound.is_finite()) {
        violations.add(path, format!("has {bound}; bounds must be finite"));
    } else if let Some(pair) = bounds.windows(2).find(|pair| pair[0] >= pair[1]) {
        violations.add(path, format!("has {} before {}; bounds must ascend", pair[0], pair[1]));
    }
}

/// Encodes the fields that determine the slate, without those that may differ between its pages. `options_of` returns
/// the options of the message.
fn slate_key<M: Message + Clone>(
    request: &M,
    options_of: impl Fn(&mut M) -> &mut Option<proto::RankingOptions>,
) -> Vec<u8> {
    let mut request = request.clone();
    let options = options_of(&mut request);
    if let Some(sent) = options {
        sent.request_id.clear();
        sent.consistency_token.clear();
        // Missing options and empty ones are equal.
        if *sent == proto::RankingOptions::default() {
            *options = None;
        }
    }
    request.encode_to_vec()
}

pub(crate) fn recommend(
    violations: &mut Violations,
    mut request: proto::RecommendRequest,
    now: UnixMillis,
) -> RecommendRequest {
    use proto::RecommendType as Wire;
    let token = std::mem::take(&mut request.page_token);
    let sent = slate_key(&request, |request| &mut request.options);
    let size = violations.page_size(request.page_size);
    let page = Page { size, token, number: 1, fingerprint: fingerprint(&sent) };
    let kind = match Wire::try_from(request.r#type) {
        Ok(Wire::ForYou) => RecommendKind::ForYou,
        Ok(Wire::Similar) => RecommendKind::Similar,
        Ok(Wire::BoughtTogether) => RecommendKind::BoughtTogether,
        Ok(Wire::BuyAgain) => RecommendKind::BuyAgain,
        Ok(Wire::Trending) => RecommendKind::Trending,
        Ok(Wire::RecentlyViewed) => RecommendKind::RecentlyViewed,
        Ok(Wire::NewArrivals) => RecommendKind::NewArrivals,
        Ok(Wire::OnSale) => RecommendKind::OnSale,
        Ok(Wire::Unspecified) => {
            violations.add("type", "is not set; choose a RecommendType such as RECOMMEND_TYPE_FOR_YOU");
            RecommendKind::ForYou
        }
        Err(_) => {
            violations.add("type", format!("{} is not a RecommendType", request.r#type));
            RecommendKind::ForYou
        }
    };
    let anchored = matches!(kind, RecommendKind::Similar | RecommendKind::BoughtTogether);
    if !anchored && !request.anchor_item_ids.is_empty() {
        violations.add("anchor_item_ids", "must be empty for types other than SIMILAR and BOUGHT_TOGETHER");
    }
    RecommendRequest {
        viewer: viewer(violations, "viewer", request.viewer.as_ref()),
        kind,
        page,
        filter: match (filter(violations, "filter", &request.filter, request.filter_expression.as_ref()), kind) {
            (Some(filter), RecommendKind::OnSale) => Some(filter.and(Filter::on_sale())),
            (None, RecommendKind::OnSale) => Some(Filter::on_sale()),
            (filter, _) => filter,
        },
        anchors: anchors(violations, &request.anchor_item_ids),
        facets: facets(violations, &request.facet_specs),
        options: options(violations, request.options.as_ref(), now),
        message: sent,
    }
}

pub(crate) fn rank(violations: &mut Violations, request: &proto::RankRequest, now: UnixMillis) -> RankRequest {
    let (all, listed) =
        request.options.as_ref().map_or((false, 0), |options| (options.all_variants, options.variant_list_size));
    for (field, is_set) in [("options.all_variants", all), ("options.variant_list_size", listed > 0)] {
        if is_set {
            let description = "does not apply, because Rank returns all candidates".to_owned();
            violations.notices.push(Violation::new(field, description));
        }
    }
    violations.count("candidates", request.candidates.len(), CANDIDATES_MAX);
    if request.candidates.is_empty() {
        violations.add("candidates", format!("is empty; it must have 1 to {CANDIDATES_MAX} entries"));
    }
    let with_item = request.candidates.iter().filter(|candidate| candidate.item.is_some()).count();
    if with_item > CANDIDATE_ITEMS_MAX {
        let description = format!("has {with_item} entries with an item; the limit is {CANDIDATE_ITEMS_MAX}");
        violations.add_beyond("candidates", description, CANDIDATE_ITEMS_MAX);
    }
    let mut candidates: BTreeMap<ItemId, RankCandidate> = BTreeMap::new();
    let mut ids = Vec::new();
    for (index, sent) in request.candidates.iter().take(CANDIDATES_MAX).enumerate() {
        let Some(candidate) = candidate(violations, index, sent) else { continue };
        ids.push((index, candidate.id.clone()));
        candidates.entry(candidate.id.clone()).or_insert(candidate);
    }
    let ids = once(violations, "candidates", ids, |index| format!("candidates[{index}].item_id"));
    RankRequest {
        viewer: viewer(violations, "viewer", request.viewer.as_ref()),
        candidates: ids.iter().filter_map(|id| candidates.remove(id)).collect(),
        query: query(violations, &request.query),
        // The caller names the results.
        options: Options { one_per_group: false, ..options(violations, request.options.as_ref(), now) },
        message: slate_key(request, |request| &mut request.options),
    }
}

/// Adds a violation for each feature of a candidate that is not declared as one of requests.
pub(crate) fn check_features(violations: &mut Violations, candidates: &[proto::RankCandidate], declared: &[String]) {
    let known = if declared.is_empty() { "none".to_owned() } else { declared.join(", ") };
    for (index, candidate) in candidates.iter().take(CANDIDATES_MAX).enumerate() {
        let mut names: Vec<&String> = candidate.features.keys().filter(|name| !declared.contains(name)).collect();
        names.sort_unstable();
        for name in names.into_iter().take(CANDIDATE_FEATURES_MAX) {
            let name = shortened(name);
            let description = format!("is not a feature of kind `request`; the serving bundle declares {known}");
            violations.add(format_args!("candidates[{index}].features[{name}]"), description);
        }
    }
}

/// Validates a candidate of a Rank. None if its id is invalid.
fn candidate(violations: &mut Violations, index: usize, sent: &proto::RankCandidate) -> Option<RankCandidate> {
    let path = |name: &str| format!("candidates[{index}].{name}");
    let id = violations.keep(path("item_id"), ItemId::parse(&sent.item_id));
    if let Some(score) = sent.retrieval_score.filter(|score| !score.is_finite()) {
        violations.add(path("retrieval_score"), format!("is {score}; it must be finite"));
    }
    violations.count(path("features"), sent.features.len(), CANDIDATE_FEATURES_MAX);
    for (name, value) in sent.features.iter().take(CANDIDATE_FEATURES_MAX).filter(|(_, value)| !value.is_finite()) {
        violations.add(path(&format!("features[{}]", shortened(name))), format!("is {value}; it must be finite"));
    }
    Some(RankCandidate {
        item: sent.item.as_ref().and_then(|item| candidate_item(violations, &path("item"), &sent.item_id, item)),
        retrieval_score: sent.retrieval_score,
        features: sent.features.iter().map(|(name, value)| (name.clone(), *value)).collect(),
        id: id?,
    })
}

/// Validates the item of a candidate, as one that is written.
fn candidate_item(violations: &mut Violations, path: &str, id: &str, sent: &proto::Item) -> Option<Arc<Item>> {
    if !sent.item_id.is_empty() && sent.item_id != id {
        let (of_item, id) = (shortened(&sent.item_id), shortened(id));
        violations.add(format_args!("{path}.item_id"), format!("is `{of_item}`; it must be `{id}`, or empty"));
        return None;
    }
    // The id of the candidate is validated as such.
    ItemId::parse(id).ok()?;
    item(violations, path, &proto::Item { item_id: id.to_owned(), ..sent.clone() }, true).map(Arc::new)
}

pub(crate) fn suggest(violations: &mut Violations, request: proto::SuggestRequest) -> SuggestRequest {
    // A consistency token says nothing that decides the answer.
    let message = proto::SuggestRequest { consistency_token: String::new(), ..request.clone() }.encode_to_vec();
    violations.characters("prefix", &request.prefix, PREFIX_CHARS_MAX);
    let LogPosition { log, position } = log_position(violations, "consistency_token", &request.consistency_token);
    SuggestRequest {
        viewer: viewer(violations, "viewer", request.viewer.as_ref()),
        prefix: request.prefix,
        completion_count: violations.size("completion_count", request.completion_count, 8, SUGGESTIONS_MAX),
        product_count: violations.size("product_count", request.product_count, 4, SUGGESTIONS_MAX),
        filter: filter(violations, "filter", &request.filter, request.filter_expression.as_ref()),
        options: Options {
            log_position: position,
            log,
            read_mask: answer_mask(violations, "read_mask", request.read_mask.as_ref()),
            serving_config: serving_config(violations, "serving_config", &request.serving_config),
            debug: debug(violations, "debug_level", request.debug_level),
            one_per_group: true,
            audiences: audiences(violations, "audiences", &request.audiences),
            ..Options::default()
        },
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(violations: &Violations) -> Vec<&str> {
        violations.found.iter().map(|violation| violation.field.as_str()).collect()
    }

    #[test]
    fn all_violations_of_a_search_are_returned_at_once() {
        let request = proto::SearchRequest {
            query: "x".repeat(2_000_000),
            page_size: -1,
            filter: "price <=".to_owned(),
            options: Some(proto::RankingOptions {
                diversity: Some(f64::NAN),
                boosts: vec![proto::Boost {
                    filter: "in_stock".to_owned(),
                    factor: f64::INFINITY,
                    filter_expression: None,
                }],
                pins: vec![proto::Pin { item_id: String::new(), rank: 0 }],
                debug_level: 99,
                order_by: "colour".to_owned(),
                ..Default::default()
            }),
            page_token: "x".to_owned(),
            page_number: Some(0),
            ..Default::default()
        };
        let mut violations = Violations::default();
        search(&mut violations, request, UnixMillis(0));
        let found = fields(&violations);
        for field in [
            "viewer",
            "query",
            "page_size",
            "filter",
            "options.diversity",
            "options.boosts[0].factor",
            "options.pins[0].rank",
            "options.pins[0].item_id",
            "options.debug_level",
            "options.order_by",
            "page_number",
        ] {
            assert!(found.contains(&field), "{field} is missing in {found:?}");
        }
    }

    #[test]
    fn a_page_size_above_the_limit_is_reduced_with_a_notice() {
        let mut violations = Violations::default();
        assert_eq!(violations.page_size(5000), PAGE_SIZE_MAX);
        assert!(violations.is_empty());
        assert_eq!(violations.notices.len(), 1);
    }

    #[test]
    fn only_the_page_token_and_the_request_id_may_change_between_pages() {
        let request = |token: &str, request_id: &str, query: &str| proto::SearchRequest {
            query: query.to_owned(),
            page_token: token.to_owned(),
            options: Some(proto::RankingOptions { request_id: request_id.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let of = |request| search(&mut Violations::default(), request, UnixMillis(0)).page.fingerprint;
        assert_eq!(of(request("", "1", "mug")), of(request("token", "2", "mug")));
        let without_options = proto::SearchRequest { options: None, ..request("", "", "mug") };
        assert_eq!(of(request("", "1", "mug")), of(without_options));
        assert_ne!(of(request("", "1", "mug")), of(request("", "1", "cup")));
    }

    #[test]
    fn unknown_enums_are_refused_by_name() {
        let mut violations = Violations::default();
        let viewer = proto::Viewer { visitor_id: "v".into(), platform: 77, ..Default::default() };
        let request = proto::RecommendRequest { viewer: Some(viewer), r#type: 42, ..Default::default() };
        recommend(&mut violations, request, UnixMillis(0));
        assert_eq!(fields(&violations), ["type", "viewer.platform"]);
    }
}

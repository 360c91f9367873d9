//! Converts answers of the engine to response messages.
use crate::server::{proto, violations::Violation};
use lodestone_catalog::{AttributeValue, Availability, GeoPoint, Item, Offer};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_index::{Completion, CompletionSource, SearchStrategy};
use lodestone_pipeline::{policy::ScoreParts, serving::ExperimentArm, *};

/// Fields of a response that the server adds to the engine's answer.
#[derive(Default)]
pub(crate) struct Envelope {
    pub request_id: String,
    /// The token of the log position that the answer includes.
    pub consistency_token: String,
    pub notices: Vec<Violation>,
}

fn texts(ids: &[ItemId]) -> Vec<String> {
    ids.iter().map(ItemId::to_string).collect()
}

pub(crate) fn notice(notice: Violation) -> proto::Notice {
    proto::Notice { field: notice.field, description: notice.description }
}

fn info(info: &AnswerInfo, envelope: Envelope) -> proto::AnswerInfo {
    let degradation = |degradation: &Degradation| proto::Degradation {
        code: degradation.code as i32,
        subject: degradation.subject.clone(),
    };
    proto::AnswerInfo {
        generation: info.generation.to_string(),
        degradations: info.degradations.iter().map(degradation).collect(),
        notices: envelope.notices.into_iter().map(notice).collect(),
        user_known: info.user_known,
        unknown_item_ids: texts(&info.unknown_items),
        dropped_pin_item_ids: texts(&info.dropped_pins),
        request_id: envelope.request_id,
        debug: info.debug.as_ref().map(debug),
        serving_config: info.serving_config.clone(),
        serving_config_etag: info.serving_config_etag.clone(),
        experiment_arms: info.arm.iter().map(arm).collect(),
        explored: info.explored,
        visitor_history_used: info.visitor_history_used,
        ranked_count: info.ranked_count as i32,
        applied_rules: info.applied_rules.iter().map(applied_rule).collect(),
        redirect_url: info.redirect_url.clone(),
        banners: info.banners.iter().map(banner).collect(),
    }
}

fn applied_rule(applied: &AppliedRule) -> proto::AppliedRule {
    proto::AppliedRule {
        rule_id: applied.rule.id().to_owned(),
        etag: applied.rule.rule.etag.clone(),
        unused_actions: applied.unused_actions.iter().map(|index| *index as i32).collect(),
    }
}

fn banner(banner: &RuleBanner) -> proto::RuleBanner {
    proto::RuleBanner { rule_id: banner.rule_id.clone(), payload: banner.payload.clone() }
}

fn arm(chosen: &ExperimentArm) -> proto::ExperimentArm {
    proto::ExperimentArm { experiment: chosen.experiment.clone(), arm: chosen.arm.clone() }
}

fn debug(debug: &AnswerDebug) -> proto::AnswerDebug {
    let stage = |(stage, time): &(&str, std::time::Duration)| proto::StageTiming {
        stage: (*stage).to_owned(),
        duration: Some(prost_types::Duration { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }),
    };
    let source = |count: &SourceCount| proto::SourceCount {
        source: count.source.name().to_owned(),
        candidate_count: count.count as i32,
        strategy: count.strategy.map_or("", SearchStrategy::name).to_owned(),
    };
    proto::AnswerDebug {
        stages: debug.stages.iter().map(stage).collect(),
        sources: debug.sources.iter().map(source).collect(),
        head_weights: (debug.head_weights.iter())
            .map(|(name, weight)| proto::NamedScore { name: name.clone(), score: *weight })
            .collect(),
        feature_names: debug.feature_names.clone(),
        objectives: debug.objectives.map(|of| proto::AppliedObjectives {
            share: of.share.into(),
            ndcg_loss: of.ndcg_loss.into(),
            return_risk: of.return_risk.map(f64::from),
        }),
    }
}

fn result(result: RankedItem) -> proto::Result {
    let reason =
        |reason: &Reason| proto::Reason { code: reason.code as i32, evidence_item_ids: texts(&reason.evidence) };
    proto::Result {
        item_id: result.id.to_string(),
        rank: result.rank as i32,
        score: result.score,
        reasons: result.reasons.iter().map(reason).collect(),
        query_match: result.query_match.map_or(0, |query_match| query_match as i32),
        item: result.item.as_deref().map(shown_item),
        debug: result.debug.map(result_debug),
        variant_count: result.variant_count as i32,
        variants: result.variants.iter().map(|variant| self::variant(variant, result.item.is_some())).collect(),
    }
}

/// Returns a variant, whole or only its id.
fn variant(item: &Item, is_whole: bool) -> proto::Item {
    match is_whole {
        true => shown_item(item),
        false => proto::Item { item_id: item.id.to_string(), ..Default::default() },
    }
}

fn result_debug(debug: ResultDebug) -> proto::ResultDebug {
    let named = |name: String, score| proto::NamedScore { name, score };
    proto::ResultDebug {
        source_scores: debug.source_scores.into_iter().map(|(name, score)| named(name.to_owned(), score)).collect(),
        retrieval_score: debug.retrieval_score,
        retrieval_rank: debug.retrieval_rank as i32,
        heads: debug.heads.into_iter().map(|(name, score)| named(name, score)).collect(),
        features: debug.features,
        score_parts: Some(score_parts(&debug.score_parts)),
    }
}

pub(crate) fn score_parts(parts: &ScoreParts) -> proto::ScoreParts {
    proto::ScoreParts {
        base: parts.base.into(),
        match_bonus: parts.match_bonus.into(),
        boost_factor: parts.boost_factor.into(),
    }
}

/// Converts an item as it is stored. Answers have it as users see it ([`Item::shown_at`]).
pub(crate) fn item_to_proto(item: &Item) -> proto::Item {
    let offer = |offer: &Offer| proto::Offer {
        key: Some(proto::OfferKey {
            place_id: offer.key.place_id.to_string(),
            region_code: offer.key.region_code.to_string(),
            customer_group: offer.key.customer_group.to_string(),
            currency_code: offer.key.currency.to_string(),
        }),
        price_micros: offer.price.map(|price| price.micros()),
        original_price_micros: offer.original_price.map(|price| price.micros()),
        stock_quantity: offer.stock_quantity.map(i64::from),
        sale_price_micros: offer.sale_price.map(|price| price.micros()),
        sale_start_time: offer.sale_start.map(super::timestamp),
        sale_end_time: offer.sale_end.map(super::timestamp),
    };
    proto::Item { offers: item.offers.iter().map(offer).collect(), ..shown_item(item) }
}

/// Converts an item of an answer, which has the values that apply to the viewer and no offers.
fn shown_item(item: &Item) -> proto::Item {
    use proto::attribute_value::Kind;
    let attribute = |(name, value): (&String, &AttributeValue)| {
        let kind = match value {
            AttributeValue::Text(text) => Kind::Text(text.clone()),
            AttributeValue::Texts(texts) => Kind::Texts(proto::TextList { texts: texts.clone() }),
            AttributeValue::Number(number) => Kind::Number(*number),
            AttributeValue::Flag(flag) => Kind::Flag(*flag),
            AttributeValue::Time(time) => Kind::Time(super::timestamp(UnixMillis(time.time_ms))),
            AttributeValue::GeoPoint(GeoPoint { latitude, longitude }) => {
                Kind::GeoPoint(proto::GeoPoint { latitude: *latitude, longitude: *longitude })
            }
        };
        (name.clone(), proto::AttributeValue { kind: Some(kind) })
    };
    proto::Item {
        item_id: item.id.to_string(),
        group_id: item.group_id.clone(),
        title: item.title.clone(),
        description: item.description.clone(),
        categories: item.categories.clone(),
        brand: item.brand.clone(),
        price_micros: item.price.map(|price| price.micros()),
        currency_code: item.currency.clone(),
        stock_quantity: item.stock_quantity.map(i64::from),
        tags: item.tags.clone(),
        attributes: item.attributes.iter().map(attribute).collect(),
        original_price_micros: item.original_price.map(|price| price.micros()),
        rating: item.rating,
        rating_count: item.rating_count.map(i64::from),
        url: item.url.clone(),
        image_url: item.image_url.clone(),
        create_time: item.created_at.map(super::timestamp),
        availability: item.stated_availability.map_or(proto::Availability::Unspecified, availability).into(),
        sale_price_micros: item.sale_price.map(|price| price.micros()),
        sale_start_time: item.sale_start.map(super::timestamp),
        sale_end_time: item.sale_end.map(super::timestamp),
        cost_micros: item.cost.map(|cost| cost.micros()),
        offers: Vec::new(),
    }
}

fn availability(availability: Availability) -> proto::Availability {
    match availability {
        Availability::InStock => proto::Availability::InStock,
        Availability::Backorder => proto::Availability::Backorder,
        Availability::Preorder => proto::Availability::Preorder,
        Availability::OutOfStock => proto::Availability::OutOfStock,
        Availability::Discontinued => proto::Availability::Discontinued,
    }
}

fn facets(counted: &Facets) -> Vec<proto::Facet> {
    let value = |value: &FacetValue| match &value.key {
        FacetKey::Text(text) => {
            proto::FacetValue { value: text.clone(), min: None, max: None, item_count: value.item_count as i64 }
        }
        FacetKey::Range(min, max) => {
            proto::FacetValue { value: String::new(), min: *min, max: *max, item_count: value.item_count as i64 }
        }
    };
    let facet = |facet: &Facet| proto::Facet {
        field: facet.field.to_string(),
        values: facet.values.iter().map(value).collect(),
    };
    counted.facets.iter().map(facet).collect()
}

pub(crate) fn search_response(answer: Answer, envelope: Envelope) -> proto::SearchResponse {
    let consistency_token = envelope.consistency_token.clone();
    let request_id = envelope.request_id.clone();
    proto::SearchResponse {
        info: Some(info(&answer.info, envelope)),
        results: answer.results.into_iter().map(result).collect(),
        next_page_token: answer.next_page_token,
        total_size: answer.total_size as i32,
        attribution_token: answer.info.attribution_token,
        consistency_token,
        corrected_query: answer.corrected_query,
        facets: facets(&answer.facets),
        facet_item_count: answer.facets.item_count as i64,
        empty_reason: answer.info.empty_reason.map_or(0, |reason| reason as i32),
        recommendations: answer.recommendations.map(|answer| recommendations(*answer, &request_id)),
    }
}

fn recommendations(answer: Answer, request_id: &str) -> proto::SearchRecommendations {
    let envelope = Envelope { request_id: request_id.to_owned(), ..Envelope::default() };
    proto::SearchRecommendations {
        info: Some(info(&answer.info, envelope)),
        results: answer.results.into_iter().map(result).collect(),
        attribution_token: answer.info.attribution_token,
    }
}

pub(crate) fn recommend_response(answer: Answer, envelope: Envelope) -> proto::RecommendResponse {
    let consistency_token = envelope.consistency_token.clone();
    proto::RecommendResponse {
        info: Some(info(&answer.info, envelope)),
        results: answer.results.into_iter().map(result).collect(),
        next_page_token: answer.next_page_token,
        total_size: answer.total_size as i32,
        attribution_token: answer.info.attribution_token,
        consistency_token,
        facets: facets(&answer.facets),
        facet_item_count: answer.facets.item_count as i64,
    }
}

pub(crate) fn rank_response(answer: Answer, envelope: Envelope) -> proto::RankResponse {
    let consistency_token = envelope.consistency_token.clone();
    proto::RankResponse {
        info: Some(info(&answer.info, envelope)),
        results: answer.results.into_iter().map(result).collect(),
        attribution_token: answer.info.attribution_token,
        consistency_token,
    }
}

pub(crate) fn suggest_response(answer: SuggestAnswer, envelope: Envelope) -> proto::SuggestResponse {
    let consistency_token = envelope.consistency_token.clone();
    let completion = |(completion, completion_id): (Completion, String)| proto::Completion {
        text: completion.text,
        completion_id,
        source: match completion.source {
            CompletionSource::Query => proto::CompletionSource::Query,
            CompletionSource::Title => proto::CompletionSource::Title,
            CompletionSource::Category => proto::CompletionSource::Category,
            CompletionSource::Brand => proto::CompletionSource::Brand,
            CompletionSource::Phrase => proto::CompletionSource::Phrase,
        }
        .into(),
    };
    proto::SuggestResponse {
        info: Some(info(&answer.info, envelope)),
        completions: answer.completions.into_iter().zip(answer.completion_ids).map(completion).collect(),
        products: answer.products.into_iter().map(result).collect(),
        attribution_token: answer.info.attribution_token,
        consistency_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::units::PriceMicros;
    use proptest::prelude::*;
    use prost::Message;
    use std::sync::Arc;

    fn attribute() -> impl Strategy<Value = AttributeValue> {
        prop_oneof![
            ".{0,50}".prop_map(AttributeValue::Text),
            prop::collection::vec(".{0,50}", 1..5).prop_map(AttributeValue::Texts),
            any::<f64>().prop_map(AttributeValue::Number),
            any::<bool>().prop_map(AttributeValue::Flag),
            any::<i64>().prop_map(|ms| AttributeValue::time(UnixMillis(ms))),
            Just(AttributeValue::GeoPoint(GeoPoint { latitude: -89.999, longitude: 179.999 })),
        ]
    }

    prop_compose! {
        fn any_item()(
            texts in (".{0,300}", ".{0,3000}", ".{0,40}"),
            lists in (prop::collection::vec(".{0,40}", 0..10), prop::collection::vec(".{0,40}", 0..50)),
            attributes in prop::collection::btree_map("[a-z]{1,64}", attribute(), 0..100),
            numbers in any::<(Option<u32>, bool)>(),
        ) -> Item {
            let ((title, description, brand), (categories, tags)) = (texts, lists);
            let (stock_quantity, has_time) = numbers;
            Item {
                description, brand, categories, tags, attributes, stock_quantity,
                currency: "EUR".to_owned(),
                price: PriceMicros::new(PriceMicros::MAX),
                original_price: PriceMicros::new(PriceMicros::MAX),
                sale_price: PriceMicros::new(PriceMicros::MAX),
                sale_start: has_time.then_some(UnixMillis(i64::MIN)),
                sale_end: has_time.then_some(UnixMillis(i64::MAX)),
                cost: PriceMicros::new(PriceMicros::MAX),
                stated_availability: Some(Availability::Discontinued),
                rating: Some(0.1),
                rating_count: Some(u32::MAX),
                group_id: "a-group".to_owned(),
                url: "https://shop.test/item".to_owned(),
                image_url: "https://shop.test/image".to_owned(),
                created_at: has_time.then_some(UnixMillis(i64::MAX)),
                ..Item::titled(ItemId::parse("an-id").unwrap(), &title)
            }
        }
    }

    proptest! {
        #[test]
        fn the_size_of_a_result_is_not_underestimated(
            item in any_item(),
            evidence in prop::collection::vec("[a-z]{1,128}", 0..4),
            features in prop::collection::vec(any::<f32>(), 0..60),
        ) {
            let evidence: Vec<_> = evidence.iter().map(|id| ItemId::parse(id).unwrap()).collect();
            let debug = ResultDebug {
                source_scores: vec![("user_vector", f64::MAX); 8],
                retrieval_score: f64::MAX,
                retrieval_rank: i32::MAX as usize,
                heads: vec![("return_visit".to_owned(), f64::MAX); 8],
                score_parts: ScoreParts { base: f32::MAX, match_bonus: 2.0, boost_factor: f32::MAX },
                features,
            };
            let ranked = RankedItem {
                id: item.id.clone(),
                rank: i32::MAX as usize,
                score: f64::MAX,
                reasons: vec![Reason { code: ReasonCode::Candidate, evidence }; 4],
                query_match: Some(QueryMatch::Meaning),
                variant_count: 2,
                variants: vec![Arc::new(item.clone()), Arc::new(item.clone())],
                item: Some(Arc::new(item)),
                debug: Some(debug),
            };
            let bound = ranked.bytes();
            let encoded = result(ranked).encoded_len();
            prop_assert!(encoded <= bound && bound < 2 * encoded + 2000, "{encoded} bytes, bound {bound}");
        }
    }
}

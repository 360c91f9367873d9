//! The request path on one page: [`run`] takes planned requests through every stage. Requests that wait at the same
//! time run together: each model runs once for all of them, so that its weights and its code are fetched once.
use crate::{
    answers::{self, AnswerId, AnswerKind},
    context::{self, RankedCandidates, RankerUse, RequestContext, StageTimes},
    facets::{self, Facet, FacetSpec, Facets},
    features::{AnchoredList, Anchors, FeatureSchema, RecentItem, RequestFeatures},
    fusion::{Candidate, Candidates},
    generation::Generation,
    models::Models,
    products::{self, AnyVariant, VariantPreference},
    request::*,
    retrieve::{self, EligibleRows, RetrievalInput},
    rules::{RuleEffects, RuledRequest},
    serving::Plan,
    slate::{
        self, CurrentItems, FieldTies, MatchedBy, Order, PageStart, PolicyContext, QueryTiers, SearchMatches, Shown,
        Slate,
    },
    source::CandidateSource,
    tail::{Tail, TailMembers, TailOrder},
    trace::{ConfiguredRanking, PolicyRules, Trace},
};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::{Catalog, Field, Filter, Group, Item, OrderBy, Part, Position, SeenGroups};
use lodestone_core::{
    bits,
    ids::{ItemId, ItemKey, Row},
    text,
    units::UnixMillis,
};
use lodestone_events::EventKind;
use lodestone_index::{
    Completion, CompletionSource, LexicalError, MatchMode, MatchScope, MatchingRows, Suggester, check_vector,
    has_prefix,
};
use lodestone_rules::Objective;
use lodestone_state::users::PastQuery;
use lodestone_telemetry::call::StageTime;
use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Instant};

/// Items that a suggestion ranks.
const SUGGEST_CANDIDATES: usize = 50;
/// Completions that are found for each that is returned, because some of them lead to no product.
const COMPLETIONS_FACTOR: usize = 2;
/// Own searches among the completions of a prefix.
const OWN_COMPLETIONS_MAX: usize = 3;
/// Variants of a group from which a list starts.
const GROUP_ANCHORS_MAX: usize = 5;
/// Items named as the evidence of a list's reason.
const EVIDENCE_MAX: usize = 3;

/// A request with its plan.
#[derive(Clone)]
pub struct PlannedRequest {
    pub request: RankingRequest,
    pub answer_id: AnswerId,
    pub plan: Plan,
    /// Whether the log of answers samples this request.
    pub logging: AnswerLogging,
}

/// Whether an answer is recorded in the log of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerLogging {
    Recorded,
    Skipped,
}

impl PlannedRequest {
    /// The same request for an answer that is discarded: warming and shadow traffic.
    pub fn discarded(&self) -> Self {
        Self { logging: AnswerLogging::Skipped, ..self.clone() }
    }
}

impl RuledRequest<'_> {
    /// The context before the first stage.
    fn context<'a>(
        &'a self,
        generation: &'a Generation,
        items: &'a RequestItems,
        now: UnixMillis,
    ) -> RequestContext<'a> {
        let (request, plan) = (&*self.request, &self.planned.plan);
        let mut context = RequestContext::new(generation, &items.catalog, request.viewer(), request.options(), now);
        context.stage_times.extend(self.time);
        context.stage_times.extend(items.time);
        if items.is_failed {
            context.degrade(DegradationCode::EncoderSkipped, "query_encoder");
        }
        context.request_rows.clone_from(&items.rows);
        context.request_features = match request {
            RankingRequest::Rank(request) => request_features(&context, request, generation.schema()),
            RankingRequest::Search(_) | RankingRequest::Recommend(_) => None,
        };
        RequestContext {
            sent_query: request.query(),
            synonyms: self.effects.synonyms.clone(),
            rule_filter: self.effects.filter.clone(),
            limits: plan.retrieval_limits(),
            sold_out: request.sold_out(plan.main().sold_out),
            ranker: match plan.uses_ranker() && !request.is_by_field() {
                true => RankerUse::Scores,
                false => RankerUse::Skipped,
            },
            ..context
        }
    }
}

/// The items that a request ranks.
struct RequestItems {
    /// As the viewer sees it: the generation's or, for a request with items of its own, that with them.
    catalog: Arc<Catalog>,
    /// The rows of the request's own items.
    rows: AHashMap<ItemId, Row>,
    /// The request's own items could not be encoded; it is answered without them.
    is_failed: bool,
    /// The time that encoding took. None: the request has no items of its own.
    time: Option<StageTime>,
}

impl RequestItems {
    fn new(
        request: &RankingRequest,
        generation: &Generation,
        models: &mut Models,
        catalog: &Arc<Catalog>,
        now: UnixMillis,
    ) -> Self {
        let begun = Instant::now();
        let keys = &generation.state.keys;
        let sent = match request {
            RankingRequest::Rank(request) => &request.candidates[..],
            RankingRequest::Search(_) | RankingRequest::Recommend(_) => &[],
        };
        let is_new = |candidate: &&RankCandidate| catalog.row_of(keys, &candidate.id).is_none();
        let sent = sent.iter().filter(|candidate| candidate.item.is_some()).filter(is_new);
        // As if the item were written now.
        let as_written = |item: &Arc<Item>| Item { created_at: item.created_at.or(Some(now)), ..Item::clone(item) };
        let items: Vec<Arc<Item>> = sent.filter_map(|of| of.item.as_ref().map(as_written)).map(Arc::new).collect();
        let unchanged = Self { catalog: catalog.clone(), rows: AHashMap::new(), is_failed: false, time: None };
        if items.is_empty() {
            return unchanged;
        }
        let texts: Vec<&Item> = items.iter().map(Arc::as_ref).collect();
        let embedded = generation.embed(models, &texts).map_err(|error| error.to_string()).and_then(|embedded| {
            let spaces = embedded.iter().flat_map(|vectors| [vectors.user_space(), vectors.query_space()]);
            for vector in spaces {
                check_vector(vector, vector.len()).map_err(|problem| problem.to_string())?;
            }
            Ok(embedded)
        });
        match embedded {
            Ok(embedded) => {
                let ids: Vec<ItemId> = items.iter().map(|item| item.id.clone()).collect();
                let offers = &request.viewer().offers;
                let (catalog, rows) = catalog.with_items(keys, offers, now, items.into_iter().zip(embedded));
                let rows = ids.into_iter().zip(rows).collect();
                let time = Some(StageTime::since("encode_items", begun));
                Self { catalog: Arc::new(catalog), rows, is_failed: false, time }
            }
            Err(error) => {
                tracing::warn!(error, "the items of a request cannot be encoded");
                Self { is_failed: true, time: Some(StageTime::since("encode_items", begun)), ..unchanged }
            }
        }
    }
}

/// The values that a request has for declared features; none if it has none.
fn request_features(
    context: &RequestContext,
    request: &RankRequest,
    schema: &FeatureSchema,
) -> Option<RequestFeatures> {
    let of = |candidate: &RankCandidate| {
        let value = |name: &str| candidate.features.get(name).map(|value| *value as f32);
        Some((context.row_of(&candidate.id)?, schema.of_request().map(value).collect()))
    };
    let with_features = request.candidates.iter().filter(|candidate| !candidate.features.is_empty());
    let values: RequestFeatures = with_features.filter_map(of).collect();
    (!values.is_empty()).then_some(values)
}

/// A field of a request that names fields of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestField {
    Filter,
    OrderBy,
    /// By the index of the facet.
    Facet(usize),
    /// By the index of the boost.
    Boost(usize),
}

/// A request whose answer is a slate.
#[derive(Debug, Clone)]
pub enum RankingRequest {
    Search(SearchRequest),
    Recommend(RecommendRequest),
    Rank(RankRequest),
}

impl RankingRequest {
    fn kind(&self) -> AnswerKind {
        match self {
            Self::Search(_) => AnswerKind::Search,
            Self::Recommend(_) => AnswerKind::Recommend,
            Self::Rank(_) => AnswerKind::Rank,
        }
    }

    /// The message as it is logged.
    fn message(&self) -> &[u8] {
        match self {
            Self::Search(request) => &request.message,
            Self::Recommend(request) => &request.message,
            Self::Rank(request) => &request.message,
        }
    }

    pub fn viewer(&self) -> &Viewer {
        match self {
            Self::Search(request) => &request.viewer,
            Self::Recommend(request) => &request.viewer,
            Self::Rank(request) => &request.viewer,
        }
    }

    pub fn viewer_mut(&mut self) -> &mut Viewer {
        match self {
            Self::Search(request) => &mut request.viewer,
            Self::Recommend(request) => &mut request.viewer,
            Self::Rank(request) => &mut request.viewer,
        }
    }

    pub fn options(&self) -> &Options {
        match self {
            Self::Search(request) => &request.options,
            Self::Recommend(request) => &request.options,
            Self::Rank(request) => &request.options,
        }
    }

    /// The options, which rules extend.
    pub(crate) fn options_mut(&mut self) -> &mut Options {
        match self {
            Self::Search(request) => &mut request.options,
            Self::Recommend(request) => &mut request.options,
            Self::Rank(request) => &mut request.options,
        }
    }

    /// None without a query.
    pub fn query(&self) -> Option<&str> {
        match self {
            Self::Search(request) => Some(request.query.as_str()).filter(|_| !request.is_browse()),
            Self::Recommend(_) => None,
            Self::Rank(request) => Some(request.query.as_str()).filter(|query| !query.trim().is_empty()),
        }
    }

    /// Results of a page.
    fn page_size(&self) -> usize {
        match self {
            Self::Search(request) => request.page.size,
            Self::Recommend(request) => request.page.size,
            Self::Rank(request) => request.candidates.len(),
        }
    }

    pub fn facets(&self) -> &[FacetSpec] {
        match self {
            Self::Search(request) => &request.facets,
            Self::Recommend(request) => &request.facets,
            Self::Rank(_) => &[],
        }
    }

    fn dynamic_facet_count(&self) -> usize {
        match self {
            Self::Search(request) => request.dynamic_facet_count,
            Self::Recommend(_) | Self::Rank(_) => 0,
        }
    }

    pub fn filter(&self) -> Option<&Filter> {
        match self {
            Self::Search(request) => request.filter.as_ref(),
            Self::Recommend(request) => request.filter.as_ref(),
            Self::Rank(_) => None,
        }
    }

    /// The items that the request has, which are not those of the catalogue.
    pub fn sent_items(&self) -> impl Iterator<Item = &Item> {
        let candidates = match self {
            Self::Rank(request) => &request.candidates[..],
            Self::Search(_) | Self::Recommend(_) => &[],
        };
        candidates.iter().filter_map(|candidate| candidate.item.as_deref())
    }

    /// The first field of the request that compares prices, with or without the currency in which it does; none if no
    /// field does. Rules do not count.
    pub fn price_field(&self) -> Option<RequestField> {
        let options = self.options();
        let filter = self.filter().filter(|filter| filter.has_any(Field::is_price)).map(|_| RequestField::Filter);
        let order = || options.order_by.has_any(Field::is_price).then_some(RequestField::OrderBy);
        let facet = || self.facets().iter().position(|spec| spec.field.is_price()).map(RequestField::Facet);
        let is_of_price = |boost: &Boost| boost.filter.has_any(Field::is_price);
        let boost = || options.boosts.iter().position(is_of_price).map(RequestField::Boost);
        filter.or_else(order).or_else(facet).or_else(boost)
    }

    /// What becomes of items that are sold out. `of_config` is the policy of the serving configuration.
    pub fn sold_out(&self, of_config: SoldOut) -> SoldOut {
        let wanted = self.options().sold_out.unwrap_or(of_config);
        // A list of recommendations has no end that they could follow.
        let wanted =
            if matches!((self, wanted), (Self::Recommend(_), SoldOut::Last)) { SoldOut::Hidden } else { wanted };
        let has_condition =
            |filter: &Filter| [Field::InStock, Field::Availability].iter().any(|field| filter.has_condition_on(field));
        let wanted = match wanted {
            // A condition of the filter decides.
            SoldOut::Hidden if self.filter().is_some_and(has_condition) => SoldOut::Shown,
            _ => wanted,
        };
        match (self, wanted) {
            (Self::Recommend(_), SoldOut::Shown) => SoldOut::ShownUnlessDiscontinued,
            _ => wanted,
        }
    }

    /// Item ids in the request that the catalogue may lack.
    fn named_items(&self) -> Vec<&ItemId> {
        match self {
            Self::Search(request) => request.options.exclude.iter().collect(),
            Self::Recommend(request) => request.anchors.iter().collect(),
            Self::Rank(request) => request.candidates.iter().map(|candidate| &candidate.id).collect(),
        }
    }

    /// The order of the slate. Lists that answer a question of their own (trending, new arrivals) keep retrieval's
    /// order; the user's taste would blur it.
    fn order(&self) -> Order {
        match self {
            Self::Recommend(request) => match request.kind {
                RecommendKind::ForYou
                | RecommendKind::BuyAgain
                | RecommendKind::Similar
                | RecommendKind::BoughtTogether
                | RecommendKind::OnSale => Order::Model,
                RecommendKind::Trending | RecommendKind::RecentlyViewed | RecommendKind::NewArrivals => {
                    Order::Retrieval
                }
            },
            Self::Search(_) | Self::Rank(_) => Order::Model,
        }
    }

    fn is_for_you(&self) -> bool {
        matches!(self, Self::Recommend(request) if request.kind == RecommendKind::ForYou)
    }

    /// Whether fields order all results, so that no score does.
    fn is_by_field(&self) -> bool {
        matches!(self, Self::Search(request) if !request.options.order_by.is_empty())
    }

    fn query_tiers(&self) -> QueryTiers {
        match self {
            Self::Search(_) => QueryTiers::Apply,
            Self::Recommend(_) | Self::Rank(_) => QueryTiers::Ignore,
        }
    }
}

/// An answer before the engine adds tokens and pages.
pub struct PipelineAnswer {
    pub slate: Slate,
    /// Of a search: the number of matches; without a query, that of the eligible items. Otherwise that of the slate's
    /// entries.
    pub total_size: usize,
    /// Empty: the sent query was used.
    pub corrected_query: String,
    pub facets: Facets,
    pub info: AnswerInfo,
    pub stage_times: StageTimes,
    pub id: AnswerId,
    /// The catalogue that the answer was computed from.
    pub catalog: Arc<Catalog>,
    /// For the log of answers, if it samples this request.
    pub trace: Option<Box<Trace>>,
}

impl PipelineAnswer {
    /// Whether a model or a source failed. Degradations that the request itself causes do not count.
    pub fn is_degraded(&self) -> bool {
        use DegradationCode::{EncoderSkipped, RankerSkipped, SourceFailed};
        let own = [EncoderSkipped, RankerSkipped, SourceFailed];
        self.info.degradations.iter().any(|degradation| own.contains(&degradation.code))
    }
}

/// Runs requests through every stage and returns their answers in the same order. `now` is the time of all of them.
pub fn run(
    generation: &Generation,
    models: &mut Models,
    requests: &[PlannedRequest],
    now: UnixMillis,
) -> Vec<PipelineAnswer> {
    let (catalog, rules) = (generation.catalog.load_full(), generation.state.rules());
    let ruled: Vec<RuledRequest> = requests.iter().map(|planned| RuledRequest::new(planned, &rules, now)).collect();
    // Each request has the catalogue as its viewer sees it; rows and vectors are the same in all.
    let items = ruled.iter().map(|ruled| {
        let view = catalog.view(&ruled.request.viewer().offers);
        RequestItems::new(&ruled.request, generation, models, &view, now)
    });
    let items: Vec<RequestItems> = items.collect();
    let mut contexts: Vec<RequestContext> =
        ruled.iter().zip(&items).map(|(ruled, items)| ruled.context(generation, items, now)).collect();
    for (context, ruled) in contexts.iter_mut().zip(&ruled) {
        correct_query(context, &ruled.request);
    }
    context::encode_queries(&mut contexts, models);
    context::encode_users(&mut contexts, models);
    for (context, ruled) in contexts.iter_mut().zip(&ruled) {
        retrieve_candidates(context, &ruled.request);
    }
    let ranked = context::rank(&mut contexts, models);
    let in_flight = contexts.into_iter().zip(ranked).zip(&ruled);
    in_flight.map(|((context, ranked), ruled)| respond(context, ranked, ruled, models)).collect()
}

/// Corrects misspelled words of a search if the catalogue has none of the sent ones.
fn correct_query(context: &mut RequestContext, request: &RankingRequest) {
    let RankingRequest::Search(request) = request else { return };
    if request.is_browse() {
        return;
    }
    context.start_stage();
    let shown = EligibleRows::of(context.catalog, context.sold_out);
    let query = context.query_text(&request.query);
    let corrected = context.generation.lexical.correct(query, &|row| shown.contains(row));
    context.corrected_query = corrected.unwrap_or_else(|error| {
        tracing::warn!(%error, "the lexical source failed");
        None
    });
    context.end_stage("correct");
}

/// The first stage: eligible rows, then candidates from the sources that the request needs.
fn retrieve_candidates(context: &mut RequestContext, request: &RankingRequest) {
    context.start_stage();
    check_position(context, request.options());
    context.excluded = request.options().exclude.iter().flat_map(|id| context.named_rows(id)).collect();
    context.eligible = eligible_rows(context, request.filter());
    // Those that are sold out follow all others, so that they are not among the candidates.
    context.retrievable = (context.sold_out == SoldOut::Last).then(|| context.eligible.in_stock(context.catalog));
    context.boosted = boosted_rows(context, request);
    if let RankingRequest::Recommend(request) = request {
        start_from_anchors(context, request);
    }
    let input = context.retrieval_input();
    context.candidates = match request {
        RankingRequest::Search(request) => return search(context, request),
        RankingRequest::Recommend(request) => recommend(&input, context, request.kind),
        RankingRequest::Rank(request) => named_candidates(context, request),
    };
    select_candidates(context, request.options());
    context.end_retrieval();
}

/// Returns the rows that boosts of the request and of its rules raise, of a request whose candidates are a part of the
/// items that it may show, in an order that boosts may change. None: there are none.
fn boosted_rows(context: &RequestContext, request: &RankingRequest) -> Option<EligibleRows<'static>> {
    let is_boosted = match request {
        RankingRequest::Search(_) => !request.is_by_field(),
        RankingRequest::Recommend(request) => {
            matches!(request.kind, RecommendKind::ForYou | RecommendKind::OnSale)
        }
        RankingRequest::Rank(_) => false,
    };
    let raising = request.options().boosts.iter().filter(|boost| is_boosted && boost.factor > 1.0);
    let mut filters = raising.map(|boost| &boost.filter).peekable();
    filters.peek()?;
    let retrievable = context.retrievable.as_ref().unwrap_or(&context.eligible);
    let boosted = retrievable.matching_any(context.catalog, filters);
    (boosted.count() > 0).then_some(boosted)
}

/// Keeps one candidate of each group, if the request asks for that and the catalogue has groups. Then keeps as many
/// candidates as the serving configuration ranks, and of the others those that boosts raise.
fn select_candidates(context: &mut RequestContext, options: &Options) {
    keep_one_per_group(context, options);
    let (limit, boosted) = (context.limits.fused, context.boosted.as_ref());
    if !context.one_per_group && boosted.is_none() {
        return;
    }
    let (mut at, mut boosted_count) = (0, 0);
    context.candidates.list.retain(|candidate| {
        at += 1;
        let is_boosted = at > limit && boosted.is_some_and(|rows| rows.contains(candidate.row));
        boosted_count += usize::from(is_boosted);
        at <= limit || is_boosted && boosted_count <= retrieve::BOOSTED_CANDIDATES_MAX
    });
}

fn keep_one_per_group(context: &mut RequestContext, options: &Options) {
    if !context.one_per_group {
        return;
    }
    let pinned = pinned_rows(context, options);
    let any_variant = match (context.query().is_some(), options.order_by.is_empty()) {
        (true, _) => None,
        (false, true) => Some(AnyVariant::Boosted),
        (false, false) => Some(AnyVariant::ByFields(&options.order_by)),
    };
    let preference = VariantPreference {
        catalog: context.catalog,
        eligible: context.retrievable.as_ref().unwrap_or(&context.eligible),
        pinned: &pinned,
        boosts: &options.boosts,
        any_variant,
    };
    products::keep_one_per_group(&mut context.candidates, &preference);
}

/// Removes the candidates whose group has a pinned variant, except the pinned ones.
fn remove_pinned_groups(context: &mut RequestContext, options: &Options) {
    let (catalog, pinned) = (context.catalog, pinned_rows(context, options));
    if !context.one_per_group || pinned.is_empty() {
        return;
    }
    let groups: AHashSet<Group> = pinned.iter().filter_map(|row| catalog.group_of(*row)).collect();
    context.candidates.list.retain(|candidate| {
        let is_pinned_group = catalog.group_of(candidate.row).is_some_and(|group| groups.contains(&group));
        !is_pinned_group || pinned.contains(&candidate.row)
    });
}

/// The eligible items that the request pins by their own id.
fn pinned_rows(context: &RequestContext, options: &Options) -> Vec<Row> {
    let keys = &context.generation.state.keys;
    let pinned = options.pins.iter().filter_map(|pin| context.catalog.row_of(keys, &pin.item));
    pinned.filter(|row| context.eligible.contains(*row)).collect()
}

/// Policy, facets and the answer's metadata.
fn respond(
    mut context: RequestContext,
    ranked: RankedCandidates,
    ruled: &RuledRequest,
    models: &Models,
) -> PipelineAnswer {
    let (planned, request, effects) = (ruled.planned, &*ruled.request, &ruled.effects);
    let options = request.options();
    let facets = count_facets(&mut context, request);
    context.start_stage();
    let policy = PolicyContext {
        plan: &planned.plan,
        order: request.order(),
        query_tiers: request.query_tiers(),
        mixes_repeats: request.is_for_you(),
        field_ties: if request.is_by_field() { FieldTies::ByKey } else { FieldTies::ByScore },
        keeps_all: matches!(request, RankingRequest::Rank(_)),
        page_size: request.page_size(),
        seed: answers::seed_of(&planned.answer_id),
    };
    let rules = match request {
        RankingRequest::Search(_) | RankingRequest::Recommend(_) => {
            slate::policy_rules(&context, &ranked, options, &policy, models, &|row| context.eligible.contains(row))
        }
        RankingRequest::Rank(_) => {
            let may_pin = |row| context.catalog.is_alive(row) && !context.excluded.contains(&row);
            slate::policy_rules(&context, &ranked, options, &policy, models, &may_pin)
        }
    };
    let (mut slate, arranged) = slate::arrange(&mut context, &ranked, &rules, options, models);
    slate.shown = match request {
        RankingRequest::Search(_) | RankingRequest::Recommend(_) => {
            let filter = joined(request.filter().cloned(), effects.filter.clone());
            Shown::Eligible { filter, sold_out: context.sold_out }
        }
        RankingRequest::Rank(_) => Shown::All,
    };
    slate.offers = request.viewer().offers.clone();
    slate.reason = match request {
        RankingRequest::Search(_) => None,
        RankingRequest::Recommend(request) => reason_of_list(&context, request),
        RankingRequest::Rank(_) => Some(Reason { code: ReasonCode::Candidate, evidence: Vec::new() }),
    };
    let mut total_size = slate.entries.len();
    if let RankingRequest::Search(request) = request {
        total_size = match &context.matches {
            None => products::count(context.catalog, context.eligible.bits(), context.one_per_group),
            Some(matches) => products::count(context.catalog, &matches.rows, context.one_per_group),
        };
        slate.tail = tail(&context, request, &slate, total_size);
    }
    let empty_reason = match request {
        RankingRequest::Search(request) if slate.entries.is_empty() && slate.tail.is_none() => {
            Some(empty_reason(&context, request))
        }
        _ => None,
    };
    let ranked_count = match rules.field_ranks.is_empty() && rules.rankings.iter().any(ConfiguredRanking::uses_model) {
        true => arranged.placed.iter().filter(|placed| placed.candidate.index() < ranked.candidates.list.len()).count(),
        false => 0,
    };
    let searched_query = context.corrected_query.take().or_else(|| effects.replaced_query.clone());
    let corrected_query = searched_query.unwrap_or_default();
    let mut info = AnswerInfo {
        empty_reason,
        unknown_items: unknown_items(&context, request),
        dropped_pins: std::mem::take(&mut slate.dropped_pins),
        serving_config: planned.plan.main().name.clone(),
        serving_config_etag: planned.plan.main().etag.clone(),
        arm: planned.plan.arm.clone(),
        explored: arranged.explored,
        ranked_count,
        applied_rules: effects.applied.clone(),
        redirect_url: effects.redirect_url.clone(),
        banners: effects.banners.clone(),
        ..context.answer_info(std::mem::take(&mut slate.sources), options.debug)
    };
    add_head_weights(&mut info, &rules, options, models);
    let trace = (planned.logging == AnswerLogging::Recorded).then(|| {
        Box::new(Trace {
            id: planned.answer_id,
            at: context.now,
            kind: request.kind(),
            user: request.viewer().user.clone(),
            message: request.message().to_vec(),
            arm: planned.plan.arm.clone(),
            log_position: context.position,
            degradations: context.degradations.clone(),
            corrected_query: corrected_query.clone(),
            applied_rules: effects.applied.clone(),
            catalog: context.catalog.clone(),
            ranked,
            rules,
            arranged,
            completions: Vec::new(),
        })
    });
    let stage_times = context.stage_times;
    PipelineAnswer {
        slate,
        total_size,
        corrected_query,
        facets,
        info,
        stage_times,
        id: planned.answer_id,
        catalog: context.catalog.clone(),
        trace,
    }
}

/// Adds the weights of the heads and the effect of objectives to the debug information, from the level SCORES.
fn add_head_weights(info: &mut AnswerInfo, rules: &PolicyRules, options: &Options, models: &Models) {
    if let (Some(debug), Some(ranking)) = (&mut info.debug, rules.rankings.first())
        && options.debug >= DebugLevel::Scores
    {
        let weights = models.heads.iter().zip(&ranking.weights);
        debug.head_weights = weights.map(|(head, weight)| (head.name.clone(), f64::from(*weight))).collect();
        debug.objectives = ranking.objectives.as_ref().map(|of| AppliedObjectives {
            share: of.blend.share,
            ndcg_loss: of.blend.ndcg_loss,
            return_risk: rules.objective_facts.return_risk.filter(|_| of.mix.has(Objective::Loyalty)),
        });
    }
}

/// Returns the filter of the items that a request and its rules leave.
fn joined(sent: Option<Filter>, of_rules: Option<Filter>) -> Option<Filter> {
    match (sent, of_rules) {
        (Some(sent), Some(of_rules)) => Some(sent.and(of_rules)),
        (sent, of_rules) => sent.or(of_rules),
    }
}

/// Returns why a search has no result.
fn empty_reason(context: &RequestContext, request: &SearchRequest) -> EmptyReason {
    // Without a query, every item matches.
    match request.is_browse() || retrieve::has_match(&context.retrieval_input()) {
        true => EmptyReason::NothingEligible,
        false => EmptyReason::NothingRelevant,
    }
}

/// The items that have the words of a query. Without any, `by` is [`MatchedBy::Meaning`].
///
/// Multi-select facets count matches of a wider filter too. Those of the request's filter are the ones among them that
/// it leaves, as long as it leaves any: the first scope in which one of them matches is that of all.
fn word_matches(context: &mut RequestContext, request: &SearchRequest) -> SearchMatches {
    let loosest = loosest_filter(&request.facets, request.filter.as_ref());
    context.wide_matches = loosest.map(|filter| {
        let eligible = eligible_rows(context, filter.as_ref());
        matches_among(context, &request.query, &eligible)
    });
    let among_wide = context.wide_matches.as_ref().and_then(|wide| wide.among(&context.eligible));
    let matches = among_wide.unwrap_or_else(|| matches_among(context, &request.query, &context.eligible));
    context.end_stage("match");
    matches
}

fn matches_among(context: &RequestContext, sent_query: &str, eligible: &EligibleRows) -> SearchMatches {
    let query = context.query_text(context.query().unwrap_or(sent_query));
    let matching = context.generation.lexical.matching(query, eligible.bits());
    let matching = matching
        .inspect_err(|error| tracing::warn!(%error, "the lexical source failed"))
        .ok()
        .filter(|matching| !bits::is_empty(&matching.rows));
    match matching {
        Some(MatchingRows { rows, exact, scope }) => SearchMatches { rows, exact, by: MatchedBy::Words(scope) },
        None => SearchMatches {
            rows: vec![0; eligible.bits().len()],
            exact: vec![0; eligible.bits().len()],
            by: MatchedBy::Meaning,
        },
    }
}

/// Returns whether a facet counts without the filter's conditions on its field.
fn counts_wider(spec: &FacetSpec, filter: &Filter) -> bool {
    spec.multi_select && filter.has_condition_on(&spec.field)
}

/// Returns the filter without its conditions on the fields of all facets that count without them. None: no facet does.
fn loosest_filter(specs: &[FacetSpec], filter: Option<&Filter>) -> Option<Option<Filter>> {
    let filter = filter?;
    let mut wider = specs.iter().filter(|spec| counts_wider(spec, filter)).peekable();
    wider.peek()?;
    Some(wider.try_fold(filter.clone(), |filter, spec| filter.without(&spec.field)))
}

/// Counts the facets that the request asks for: of a search over its matches, otherwise over all eligible items.
fn count_facets(context: &mut RequestContext, request: &RankingRequest) -> Facets {
    let (specs, dynamic_count) = (request.facets(), request.dynamic_facet_count());
    if specs.is_empty() && dynamic_count == 0 {
        return Facets::default();
    }
    context.start_stage();
    let (catalog, filter) = (context.catalog, request.filter());
    let counted = match &context.matches {
        Some(matches) => &matches.rows[..],
        None => context.eligible.bits(),
    };
    let one_per_group = context.one_per_group;
    let count = |spec: &FacetSpec, rows: &[u64]| facets::count(catalog, spec, rows, one_per_group);
    // What the loosest filter leaves, which has the rows of every facet that counts without conditions.
    let all = loosest_filter(specs, filter).map(|loosest| match (&context.matches, &context.wide_matches) {
        (None, _) => Cow::Owned(eligible_rows(context, loosest.as_ref()).bits().to_vec()),
        (Some(_), wide) => Cow::Borrowed(wide.as_ref().map_or(&[][..], |wide| &wide.rows[..])),
    });
    let facet = |spec: &FacetSpec| match (&all, filter.filter(|filter| counts_wider(spec, filter))) {
        (Some(all), Some(filter)) => count(spec, &rows_with(context, request, all, filter.without(&spec.field))),
        _ => count(spec, counted),
    };
    let item_count = products::count(catalog, counted, one_per_group) as u64;
    let mut facets: Vec<Facet> = specs.iter().map(facet).collect();
    if dynamic_count > 0 {
        let paths = filter.map(|filter| filter.selected_texts(&Field::CategoryPath)).unwrap_or_default();
        // On the page of a category, the next level splits its items.
        let parent = if let [path] = paths[..] { path } else { "" };
        let rules = context.generation.state.rules();
        let refused = |attribute: &str| rules.refuses_facets_of(attribute);
        let chosen = facets::choose(catalog, counted, specs, refused, dynamic_count, parent, one_per_group);
        facets.extend(chosen.iter().map(|spec| count(spec, counted)));
    }
    let facets = Facets { facets, item_count };
    context.end_stage("facets");
    facets
}

/// Returns the rows that a request would count with another filter. `all`: those with a wider filter, by words.
fn rows_with(context: &RequestContext, request: &RankingRequest, all: &[u64], filter: Option<Filter>) -> Vec<u64> {
    let catalog = context.catalog;
    let rows = match &filter {
        Some(filter) => catalog.matching(filter, all),
        None => all.to_vec(),
    };
    let (Some(_), Some(query)) = (&context.matches, request.query()) else { return rows };
    if !bits::is_empty(&rows) {
        return rows;
    }
    // The rows with this filter match the query by fewer words, or by meaning.
    let eligible = eligible_rows(context, filter.as_ref());
    let matches = matches_among(context, query, &eligible);
    if matches.by != MatchedBy::Meaning {
        return matches.rows;
    }
    let input = RetrievalInput { eligible: &eligible, boosted: None, ..context.retrieval_input() };
    let found = retrieve::for_query(&input).map(|found| found.list).unwrap_or_default();
    let mut seen = SeenGroups::default();
    let mut is_new = |row: &Row| !context.one_per_group || catalog.group_of(*row).is_none_or(|group| seen.add(group));
    let rows = found.into_iter().map(|candidate| candidate.row).filter(|row| is_new(row));
    row_bits(catalog, rows.take(context.limits.fused))
}

fn row_bits(catalog: &Catalog, rows: impl Iterator<Item = Row>) -> Vec<u64> {
    bits::of(rows.map(Row::index), catalog.row_count())
}

/// Stores the candidates of a search and, if it has a query, its matches.
fn search(context: &mut RequestContext, request: &SearchRequest) {
    let order = &field_order(context, request);
    if request.is_browse() {
        match order.is_empty() {
            true => {
                context.candidates = retrieve::for_user(&context.retrieval_input());
                select_candidates(context, &request.options);
            }
            false => {
                let (rows, count) = (context.eligible.rows(), context.limits.fused);
                (context.candidates, context.field_position) =
                    first_by_fields(context, order, rows, count, CandidateSource::Catalogue);
                remove_pinned_groups(context, &request.options);
            }
        }
        return context.end_retrieval();
    }
    let mut matches = word_matches(context, request);
    if let (MatchedBy::Words(scope), false) = (matches.by, order.is_empty()) {
        if scope == MatchScope::SomeWords {
            context.degrade(DegradationCode::QueryRelaxed, "");
        }
        let (rows, count) = (retrieve::rows_of(&matches.rows), context.limits.fused);
        (context.candidates, context.field_position) =
            first_by_fields(context, order, rows, count, CandidateSource::Lexical);
        remove_pinned_groups(context, &request.options);
    } else {
        retrieve_for_query(context, matches.by);
        select_candidates(context, &request.options);
        match matches.by {
            MatchedBy::Meaning => {
                matches.rows = row_bits(context.catalog, context.candidates.list.iter().map(|candidate| candidate.row));
                if !order.is_empty() {
                    // All of them are candidates already.
                    let (rows, count) = (retrieve::rows_of(&matches.rows), context.candidates.list.len());
                    (context.candidates, context.field_position) =
                        first_by_fields(context, order, rows, count, CandidateSource::QueryVector);
                    remove_pinned_groups(context, &request.options);
                }
            }
            MatchedBy::Words(MatchScope::SomeWords) => {}
            // Items that match less would precede the matches that are no candidates.
            MatchedBy::Words(scope @ (MatchScope::AllWords | MatchScope::Identifier)) => {
                // Those that follow all others because they are sold out leave room for items that match less.
                let found = match &context.retrievable {
                    Some(retrievable) => Cow::Owned(bits::and(&matches.rows, retrievable.bits())),
                    None => Cow::Borrowed(&*matches.rows),
                };
                let match_count = products::count(context.catalog, &found, context.one_per_group);
                let candidates = &mut context.candidates.list;
                let is_match = |candidate: &Candidate| matches.contains(candidate.row);
                let is_alone = scope == MatchScope::Identifier;
                if is_alone || candidates.iter().filter(|candidate| is_match(candidate)).count() < match_count {
                    candidates.retain(is_match);
                }
            }
        }
    }
    context.matches = Some(matches);
    context.end_retrieval();
}

/// The fields that order a search; in stock first if sold-out items follow the others.
fn field_order(context: &RequestContext, request: &SearchRequest) -> OrderBy {
    let order = &request.options.order_by;
    match context.sold_out == SoldOut::Last && !order.is_empty() {
        true => order.in_stock_first(),
        false => order.clone(),
    }
}

/// Stores the candidates of the lexical and the vector search.
fn retrieve_for_query(context: &mut RequestContext, matched_by: MatchedBy) {
    match retrieve::for_query(&context.retrieval_input()) {
        Ok(found) => {
            let has_all_words = matches!(matched_by, MatchedBy::Words(MatchScope::AllWords | MatchScope::Identifier));
            if !has_all_words && found.full_match_count == 0 && !found.list.is_empty() {
                context.degrade(DegradationCode::QueryRelaxed, "");
            }
            context.candidates = found;
        }
        Err(error) => {
            tracing::warn!(%error, "the lexical source failed");
            context.degrade(DegradationCode::SourceFailed, CandidateSource::Lexical.name());
        }
    }
}

/// Returns the first `count` of ascending rows, in the order of fields, as candidates, and the position of the last
/// one.
fn first_by_fields(
    context: &RequestContext,
    order: &OrderBy,
    rows: impl Iterator<Item = Row>,
    count: usize,
    source: CandidateSource,
) -> (Candidates, Option<Position>) {
    let catalog: &Catalog = context.catalog;
    let one_per_group = context.one_per_group.then_some(catalog);
    let first = catalog.select_by(order, rows, Part { count, one_per_group, ..Part::default() }).rows;
    let last = first.last().map(|(_, position)| position.clone());
    let rows = first.into_iter().map(|(row, _)| (row, 0.0)).collect();
    (retrieve::ordered_rows(catalog, source, rows, count), last)
}

/// The results behind the slate of a search, which has `total_size` results. None if the slate has all of them.
fn tail(context: &RequestContext, request: &SearchRequest, slate: &Slate, total_size: usize) -> Option<Tail> {
    let order = field_order(context, request);
    let members = match &context.matches {
        None => TailMembers::All,
        Some(SearchMatches { by: MatchedBy::Meaning, .. }) => return None,
        Some(SearchMatches { by: MatchedBy::Words(scope), .. }) => {
            let query = context.query().unwrap_or(&request.query).to_owned();
            TailMembers::Matches { query, synonyms: context.synonyms.clone(), scope: *scope }
        }
    };
    // The slate may have items that do not match: pins, and results that match less.
    let has_all = || {
        let in_slate: AHashSet<Row> = slate.shown_products(context.catalog).collect();
        match &context.matches {
            None => context.eligible.count() == in_slate.iter().filter(|row| context.eligible.contains(**row)).count(),
            Some(matches) => retrieve::rows_of(&matches.rows).all(|row| in_slate.contains(&row)),
        }
    };
    (total_size > slate.entries.len() || !has_all()).then(|| Tail {
        order: match (order.is_empty(), &members) {
            (false, _) => TailOrder::Fields(order),
            (true, TailMembers::All) => TailOrder::Popularity,
            (true, TailMembers::Matches { .. }) => TailOrder::Score,
        },
        members,
        one_per_group: context.one_per_group,
        sold_out: context.sold_out,
        start: context.field_position.clone(),
    })
}

/// Stores the anchors of a list that starts from items: those of the request that the catalogue has, otherwise the
/// user's recent items.
fn start_from_anchors(context: &mut RequestContext, request: &RecommendRequest) {
    let list = match request.kind {
        RecommendKind::Similar => AnchoredList::Similar,
        RecommendKind::BoughtTogether => AnchoredList::BoughtTogether,
        RecommendKind::ForYou
        | RecommendKind::BuyAgain
        | RecommendKind::Trending
        | RecommendKind::RecentlyViewed
        | RecommendKind::NewArrivals
        | RecommendKind::OnSale => return,
    };
    let mut anchors = known_anchors(context, &request.anchors);
    if anchors.is_empty() {
        if !request.anchors.is_empty() {
            context.degrade(DegradationCode::AnchorsUnknown, "");
        }
        anchors = context.user.recent.clone();
        if request.anchors.is_empty() && anchors.is_empty() {
            context.degrade(DegradationCode::AnchorsMissing, "");
        }
    }
    context.anchors = Some(Anchors::new(list, anchors, context.catalog));
}

fn recommend(input: &RetrievalInput, context: &RequestContext, kind: RecommendKind) -> Candidates {
    match kind {
        RecommendKind::ForYou | RecommendKind::OnSale => retrieve::for_user(input),
        RecommendKind::Similar => retrieve::similar(input),
        RecommendKind::BoughtTogether => retrieve::bought_together(input),
        RecommendKind::BuyAgain => retrieve::bought_before(input),
        RecommendKind::Trending => retrieve::trending(input),
        RecommendKind::NewArrivals => retrieve::new_arrivals(input),
        RecommendKind::RecentlyViewed => {
            retrieve::ordered_keys(input, CandidateSource::History, recently_viewed(context))
        }
    }
}

/// The request's candidates with known items, in the order of the caller's scores: equal ones, and those without a score,
/// which are last, in the order of the request.
fn named_candidates(context: &RequestContext, request: &RankRequest) -> Candidates {
    let mut sent: Vec<&RankCandidate> = request.candidates.iter().collect();
    let score = |candidate: &RankCandidate| candidate.retrieval_score.unwrap_or(f64::NEG_INFINITY);
    sent.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let shown_score = |of: &RankCandidate| (of.retrieval_score.unwrap_or(0.0) as f32).clamp(f32::MIN, f32::MAX);
    let rows = sent.into_iter().filter_map(|of| Some((context.row_of(&of.id)?, shown_score(of))));
    let found = rows.filter(|(row, _)| !context.excluded.contains(row)).collect();
    retrieve::ordered_rows(context.catalog, CandidateSource::Caller, found, request.candidates.len())
}

/// A Suggest with its plan.
pub struct PlannedSuggest {
    pub request: SuggestRequest,
    pub answer_id: AnswerId,
    pub plan: Plan,
    pub logging: AnswerLogging,
}

/// The answer to a Suggest.
pub struct Suggested {
    pub answer: SuggestAnswer,
    pub stage_times: StageTimes,
    /// None if the answer is not recorded.
    pub trace: Option<Box<Trace>>,
}

/// Completes a prefix and ranks the products that match it, by the configuration of the plan. An empty prefix
/// returns the user's recent queries and items.
pub fn suggest(generation: &Generation, models: &mut Models, planned: &PlannedSuggest, now: UnixMillis) -> Suggested {
    let PlannedSuggest { request, answer_id, plan, logging } = planned;
    let options = &request.options;
    let catalog = generation.catalog.load_full().view(&request.viewer.offers);
    let mut context = RequestContext::new(generation, &catalog, &request.viewer, options, now);
    let rules = generation.state.rules();
    let RuleEffects { applied, filter: rule_filter, .. } =
        RuleEffects::on_suggest(request, &plan.main().name, &rules, now);
    context.synonyms.push(rules.synonyms.clone());
    context.rule_filter = rule_filter;
    context.ranker = if plan.uses_ranker() { RankerUse::Scores } else { RankerUse::Skipped };
    check_position(&mut context, options);
    context.eligible = eligible_rows(&context, request.filter.as_ref());
    let (mut completions, shown_groups) = completions(&context, request);
    context.end_stage("complete");
    let found = suggested_products(&mut context, request, &completions);
    add_titles(&context, request, &found, shown_groups, &mut completions);
    let count = found.len();
    context.candidates = retrieve::ordered_rows(&catalog, CandidateSource::Lexical, found, count);
    context.limits.fused = SUGGEST_CANDIDATES;
    select_candidates(&mut context, options);
    context.end_stage("retrieve");
    let contexts = std::slice::from_mut(&mut context);
    context::encode_users(contexts, models);
    let ranked = context::rank(contexts, models).remove(0);
    let policy = PolicyContext {
        plan,
        order: Order::Model,
        query_tiers: QueryTiers::Ignore,
        mixes_repeats: false,
        field_ties: FieldTies::ByScore,
        keeps_all: false,
        page_size: request.product_count,
        seed: 0,
    };
    let may_pin = |row: Row| context.eligible.contains(row);
    let rules = slate::policy_rules(&context, &ranked, options, &policy, models, &may_pin);
    let (mut slate, arranged) = slate::arrange(&mut context, &ranked, &rules, options, models);
    let filter = joined(request.filter.clone(), context.rule_filter.clone());
    slate.shown = Shown::Eligible { filter, sold_out: SoldOut::Hidden };
    let now = CurrentItems { generation, catalog: &catalog };
    let products = slate.page(generation, now, &PageStart::default(), request.product_count).results;
    let info = AnswerInfo {
        serving_config: plan.main().name.clone(),
        serving_config_etag: plan.main().etag.clone(),
        applied_rules: applied.clone(),
        ..context.answer_info(slate.sources, options.debug)
    };
    let mut answer = SuggestAnswer { completions, products, info, ..SuggestAnswer::default() };
    add_head_weights(&mut answer.info, &rules, options, models);
    let trace = (*logging == AnswerLogging::Recorded).then(|| {
        Box::new(Trace {
            id: *answer_id,
            at: context.now,
            kind: AnswerKind::Suggest,
            user: request.viewer.user.clone(),
            message: request.message.clone(),
            arm: None,
            log_position: context.position,
            degradations: context.degradations.clone(),
            corrected_query: String::new(),
            applied_rules: applied,
            catalog: catalog.clone(),
            ranked,
            rules,
            arranged,
            completions: answer.completions.iter().map(|completion| completion.text.clone()).collect(),
        })
    });
    Suggested { answer, stage_times: context.stage_times, trace }
}

/// The eligible products that match the typed prefix; without a prefix those of the user's history.
fn suggested_products(
    context: &mut RequestContext,
    request: &SuggestRequest,
    completions: &[Completion],
) -> Vec<(Row, f32)> {
    let is_eligible = |row: Row| context.eligible.contains(row);
    if request.prefix.trim().is_empty() {
        let recent = context.user.recent.iter().filter(|recent| is_eligible(recent.row));
        return recent.map(|recent| (recent.row, recent.weight)).collect();
    }
    let search = |count: usize| prefix_matches(context, request, completions, count, &is_eligible);
    let found = context.retrieval_input().widened(SUGGEST_CANDIDATES, search, |found| found);
    found.unwrap_or_else(|error| {
        tracing::warn!(%error, "the lexical source failed");
        context.degrade(DegradationCode::SourceFailed, CandidateSource::Lexical.name());
        Vec::new()
    })
}

/// The products that match the typed prefix or, if there are none, the part of the best completion that corrects it.
fn prefix_matches(
    context: &RequestContext,
    request: &SuggestRequest,
    completions: &[Completion],
    count: usize,
    is_eligible: &dyn Fn(Row) -> bool,
) -> Result<Vec<(Row, f32)>, LexicalError> {
    let lexical = &context.generation.lexical;
    let search = |prefix: &str| lexical.search(context.query_text(prefix), MatchMode::Prefix, count, is_eligible);
    let found = search(&request.prefix)?;
    match completions.iter().find(|completion| !completion.prefix.is_empty()) {
        Some(best) if found.is_empty() => search(&best.prefix),
        _ => Ok(found),
    }
}

/// Completions of the prefix: first the user's own searches, then texts that every user may see, whole titles last.
/// Titles, brands and searches of others are shown only if an eligible item has all their words, phrases of titles only
/// if two products have them: of one product, the title is more useful. Also returns the groups whose titles are shown.
fn completions(context: &RequestContext, request: &SuggestRequest) -> (Vec<Completion>, SeenGroups) {
    let own = |query: &PastQuery| Completion {
        text: query.text.to_string(),
        source: CompletionSource::Query,
        prefix: String::new(),
    };
    let count = request.completion_count;
    if request.prefix.trim().is_empty() {
        return (context.history.queries.iter().rev().take(count).map(own).collect(), SeenGroups::default());
    }
    let affinity = category_affinity(context);
    let affinity = |category: &str| affinity.get(category).copied().unwrap_or(0.0);
    let generation = context.generation;
    let sources = [&generation.titles, generation.state.searches.shared()];
    let wanted = context.retrieval_input().row_count(count * COMPLETIONS_FACTOR);
    let mut shared = Suggester::complete_from(&sources, &request.prefix, wanted, &affinity);
    // Stable, so that the best text stays the first of its part.
    shared.sort_by_key(|completion| completion.source == CompletionSource::Title);
    let mut seen = SeenGroups::default();
    let mut is_useful = |completion: &Completion| {
        let text = context.query_text(&completion.text);
        let is_eligible = |row: Row| context.eligible.contains(row);
        match completion.source {
            CompletionSource::Query | CompletionSource::Brand => {
                generation.lexical.has_match(text, &is_eligible).unwrap_or(false)
            }
            CompletionSource::Phrase => {
                let found = generation.lexical.search(text, MatchMode::All, 1, &is_eligible).unwrap_or_default();
                found.first().is_some_and(|(first, _)| {
                    let group = context.catalog.group_of(*first);
                    let is_first =
                        |row: Row| row == *first || group.is_some() && context.catalog.group_of(row) == group;
                    let is_other = |row: Row| is_eligible(row) && !is_first(row);
                    generation.lexical.has_match(text, &is_other).unwrap_or(false)
                })
            }
            // Titles of a product's variants are one completion.
            CompletionSource::Title => {
                let found = generation.lexical.search(text, MatchMode::All, 1, &is_eligible).unwrap_or_default();
                let group = found.first().and_then(|(row, _)| context.catalog.group_of(*row));
                !found.is_empty() && group.is_none_or(|group| seen.add(group))
            }
            CompletionSource::Category => true,
        }
    };
    let mut completions: Vec<Completion> = Vec::with_capacity(count);
    let own = context.history.queries.iter().rev().filter(|query| has_prefix(&query.text, &request.prefix)).map(own);
    let mut normals: Vec<String> = Vec::with_capacity(count);
    let own = own.take(OWN_COMPLETIONS_MAX).map(|completion| (completion, true));
    for (completion, is_own) in own.chain(shared.into_iter().map(|completion| (completion, false))) {
        if completions.len() == count {
            break;
        }
        let normal = text::normalize(&completion.text);
        if !normals.contains(&normal) && (is_own || is_useful(&completion)) {
            completions.push(completion);
            normals.push(normal);
        }
    }
    (completions, seen)
}

/// Completes with the titles of found products that begin with the prefix, or have a word that does, as long as there are
/// too few completions: few of the texts that are completions of all products lead to one that the answer may show if the
/// filter leaves few.
fn add_titles(
    context: &RequestContext,
    request: &SuggestRequest,
    found: &[(Row, f32)],
    mut shown_groups: SeenGroups,
    completions: &mut Vec<Completion>,
) {
    let mut normals: AHashSet<String> = completions.iter().map(|known| text::normalize(&known.text)).collect();
    for (row, _) in found {
        if completions.len() >= request.completion_count {
            break;
        }
        let title = &context.catalog.get(*row).item.title;
        if has_prefix(title, &request.prefix)
            && normals.insert(text::normalize(title))
            && context.catalog.group_of(*row).is_none_or(|group| shown_groups.add(group))
        {
            let text = title.split_whitespace().collect::<Vec<_>>().join(" ");
            completions.push(Completion { text, source: CompletionSource::Title, prefix: String::new() });
        }
    }
}

/// Declares a degradation if the requested version is ahead of the state. Every acknowledged position is applied before
/// it is acknowledged, so only a position of another server can be ahead.
fn check_position(context: &mut RequestContext, options: &Options) {
    if options.log_position > context.generation.state.applied_position() {
        context.degrade(DegradationCode::StaleState, "users");
    }
}

/// The anchors that the catalogue has.
fn known_anchors(context: &RequestContext, ids: &[ItemId]) -> Vec<RecentItem> {
    let recent = |row: Row| {
        let key = context.catalog.get(row).key;
        RecentItem { row, key, weight: 1.0, kind: EventKind::View, at_s: context.now.seconds_u32() }
    };
    // The first of each id, then the second: a group is as one item, and its further variants follow those of all ids.
    let rows: Vec<Vec<Row>> = ids.iter().map(|id| context.named_rows(id).take(GROUP_ANCHORS_MAX).collect()).collect();
    (0..GROUP_ANCHORS_MAX)
        .flat_map(|at| rows.iter().filter_map(move |rows| rows.get(at)))
        .copied()
        .map(recent)
        .collect()
}

fn recently_viewed(context: &RequestContext) -> Vec<(ItemKey, f32)> {
    let mut viewed: Vec<(ItemKey, f32)> = Vec::new();
    for event in context.history.events.iter().rev() {
        let is_view = matches!(event.kind, EventKind::View | EventKind::Click);
        if is_view && !viewed.iter().any(|(key, _)| *key == event.item) {
            viewed.push((event.item, event.at_s as f32));
        }
    }
    viewed
}

fn category_affinity(context: &RequestContext) -> HashMap<String, f32> {
    let mut affinity = HashMap::new();
    for recent in &context.user.recent {
        for category in context.catalog.get(recent.row).item.category_names() {
            *affinity.entry(category.to_owned()).or_insert(0.0) += recent.weight;
        }
    }
    affinity
}

/// The reason that all results of a list share, with the items from which it starts as evidence. None: each result has
/// its own.
fn reason_of_list(context: &RequestContext, request: &RecommendRequest) -> Option<Reason> {
    let code = match request.kind {
        RecommendKind::Similar => ReasonCode::Similar,
        RecommendKind::BoughtTogether => ReasonCode::BoughtTogether,
        RecommendKind::RecentlyViewed => {
            return Some(Reason { code: ReasonCode::RecentlyViewed, evidence: Vec::new() });
        }
        RecommendKind::ForYou
        | RecommendKind::BuyAgain
        | RecommendKind::Trending
        | RecommendKind::NewArrivals
        | RecommendKind::OnSale => return None,
    };
    let anchors = context.anchors.as_ref().map_or(&[][..], |anchors| &anchors.items);
    let keys = &context.generation.state.keys;
    let evidence = anchors.iter().take(EVIDENCE_MAX).filter_map(|anchor| keys.id(anchor.key)).collect();
    Some(Reason { code, evidence })
}

/// The rows that the response may contain. `filter` is that of the request.
fn eligible_rows<'a>(context: &RequestContext<'a>, filter: Option<&Filter>) -> EligibleRows<'a> {
    let filters = context.rule_filter.iter().chain(filter);
    EligibleRows::for_request(context.catalog, context.sold_out, context.excluded.iter().copied(), filters)
}

fn unknown_items(context: &RequestContext, request: &RankingRequest) -> Vec<ItemId> {
    let keys = &context.generation.state.keys;
    let is_known = |id: &ItemId| match request {
        // Candidates are items.
        RankingRequest::Rank(_) => context.row_of(id).is_some(),
        RankingRequest::Search(_) | RankingRequest::Recommend(_) => {
            context.catalog.named_rows(keys, id).next().is_some()
        }
    };
    let mut seen = AHashSet::new();
    request.named_items().into_iter().filter(|id| !is_known(id) && seen.insert(*id)).cloned().collect()
}

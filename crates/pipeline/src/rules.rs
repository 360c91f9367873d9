//! Merges the actions of the rules that apply into a request, whose pins, boosts, filters and query are the only
//! mechanisms.
use crate::{
    request::{AppliedRule, Boost, Pin, RuleBanner, SuggestRequest},
    run::{PlannedRequest, RankingRequest},
};
use lodestone_catalog::{Field, Filter};
use lodestone_core::{text::normalize, units::UnixMillis};
use lodestone_rules::{Action, CompiledRule, RequestFacts, RuleRequestType, RuleSnapshot, Synonyms};
use lodestone_telemetry::call::StageTime;
use std::{borrow::Cow, sync::Arc, time::Instant};

/// Boosts of rules that apply to one request. With the 20 of the request, a candidate has a bit for each in 64 bits.
pub const RULE_BOOSTS_MAX: usize = 44;
/// Pins of rules that apply to one request.
pub const RULE_PINS_MAX: usize = 100;
/// Filters of rules, also those of hidden items, that apply to one request.
pub const RULE_FILTERS_MAX: usize = 200;
/// Bytes of the banners of an answer, which a client must be able to receive with its results.
pub const RULE_BANNER_BYTES_MAX: usize = 256 << 10;

/// A request after its rules.
pub struct RuledRequest<'a> {
    pub planned: &'a PlannedRequest,
    /// With the pins, boosts and query of the rules.
    pub request: Cow<'a, RankingRequest>,
    pub effects: RuleEffects,
    /// The time that the rules took. None: there are no rules.
    pub time: Option<StageTime>,
}

/// The effects of rules that are not parts of the request.
#[derive(Debug, Default)]
pub struct RuleEffects {
    /// In their order.
    pub applied: Vec<AppliedRule>,
    /// The items that the rules leave. Unlike the filter of the request, facets never count others.
    pub filter: Option<Filter>,
    /// At most [`RULE_FILTERS_MAX`] are joined in `filter`.
    filter_count: usize,
    /// Those of the rules, and those of all requests.
    pub synonyms: Vec<Arc<Synonyms>>,
    /// The query that replaces the one that was sent.
    pub replaced_query: Option<String>,
    /// Empty: no rule redirects.
    pub redirect_url: String,
    pub banners: Vec<RuleBanner>,
}

/// The properties of a request on which rules have conditions.
pub struct RuleInput<'a> {
    request_type: RuleRequestType,
    /// In normal form.
    query: Option<String>,
    categories: Vec<&'a str>,
    audiences: &'a [String],
    platform: i32,
    serving_config: &'a str,
}

impl<'a> RuleInput<'a> {
    /// Returns none for a request to which no rules apply. `serving_config` is its configuration; of an interleaved answer
    /// the first.
    pub fn of(request: &'a RankingRequest, serving_config: &'a str) -> Option<Self> {
        let query = request.query();
        let request_type = match (request, query) {
            (RankingRequest::Search(_), Some(_)) => RuleRequestType::Search,
            (RankingRequest::Search(_), None) => RuleRequestType::Browse,
            (RankingRequest::Recommend(_), _) => RuleRequestType::Recommend,
            (RankingRequest::Rank(_), _) => return None,
        };
        Some(Self {
            request_type,
            query: query.map(normalize),
            categories: categories(request.filter()),
            audiences: &request.options().audiences,
            platform: request.viewer().context.platform.map_or(0, |platform| platform as i32),
            serving_config,
        })
    }

    /// Returns the properties of a Suggest, whose query is not complete yet.
    fn of_suggest(request: &'a SuggestRequest, serving_config: &'a str) -> Self {
        Self {
            request_type: RuleRequestType::Suggest,
            query: None,
            categories: categories(request.filter.as_ref()),
            audiences: &request.options.audiences,
            platform: request.viewer.context.platform.map_or(0, |platform| platform as i32),
            serving_config,
        }
    }

    pub fn facts(&self, at: UnixMillis) -> RequestFacts<'_> {
        RequestFacts {
            request_type: self.request_type,
            query: self.query.as_deref(),
            categories: &self.categories,
            audiences: self.audiences,
            platform: self.platform,
            serving_config: self.serving_config,
            at,
        }
    }
}

/// Returns the normal forms of the categories that a filter selects.
fn categories(filter: Option<&Filter>) -> Vec<&str> {
    let Some(filter) = filter else { return Vec::new() };
    [Field::Category, Field::CategoryPath].iter().flat_map(|field| filter.selected_texts(field)).collect()
}

impl RuleEffects {
    /// Returns the effects of the rules of a snapshot on a Suggest: they only hide items.
    pub(crate) fn on_suggest(
        request: &SuggestRequest,
        serving_config: &str,
        rules: &RuleSnapshot,
        now: UnixMillis,
    ) -> Self {
        let mut effects = Self::default();
        if rules.has_no_rules() {
            return effects;
        }
        let input = RuleInput::of_suggest(request, serving_config);
        for rule in rules.applying(&input.facts(now)) {
            let mut unused_actions = Vec::new();
            for (index, action) in (0u32..).zip(&rule.actions) {
                let is_used = matches!(action, Action::Restrict(filter) if effects.restrict(filter));
                unused_actions.extend((!is_used).then_some(index));
            }
            if unused_actions.len() < rule.actions.len() {
                effects.applied.push(AppliedRule { rule: rule.clone(), unused_actions });
            }
        }
        effects
    }

    /// Returns false if there are too many filters already.
    fn restrict(&mut self, filter: &Filter) -> bool {
        if self.filter_count == RULE_FILTERS_MAX {
            return false;
        }
        self.filter_count += 1;
        self.filter = Some(match self.filter.take() {
            Some(others) => others.and(filter.clone()),
            None => filter.clone(),
        });
        true
    }
}

impl<'a> RuledRequest<'a> {
    /// Applies the rules of a snapshot.
    pub fn new(planned: &'a PlannedRequest, rules: &RuleSnapshot, now: UnixMillis) -> Self {
        let begun = Instant::now();
        let mut ruled =
            Self { planned, request: Cow::Borrowed(&planned.request), effects: RuleEffects::default(), time: None };
        if !rules.has_no_rules()
            && let Some(input) = RuleInput::of(&planned.request, &planned.plan.main().name)
        {
            rules.applying(&input.facts(now)).for_each(|rule| ruled.apply(rule));
            ruled.time = Some(StageTime::since("rules", begun));
        }
        if !rules.synonyms.is_empty() {
            ruled.effects.synonyms.push(rules.synonyms.clone());
        }
        ruled
    }

    fn apply(&mut self, rule: &Arc<CompiledRule>) {
        let mut unused_actions = Vec::new();
        for (index, action) in (0u32..).zip(&rule.actions) {
            if !self.apply_action(rule, action) {
                unused_actions.push(index);
            }
        }
        self.effects.applied.push(AppliedRule { rule: rule.clone(), unused_actions });
    }

    /// Returns false if the action has no effect.
    fn apply_action(&mut self, rule: &CompiledRule, action: &Action) -> bool {
        let (sent, effects) = (self.planned.request.options(), &mut self.effects);
        match action {
            Action::Pin { item, rank } => {
                let pins = &mut self.request.to_mut().options_mut().pins;
                let has_room = pins.len() < sent.pins.len() + RULE_PINS_MAX;
                if has_room {
                    pins.push(Pin { item: item.clone(), rank: *rank });
                }
                has_room
            }
            Action::Boost { filter, factor } => {
                let boosts = &mut self.request.to_mut().options_mut().boosts;
                let has_room = boosts.len() < sent.boosts.len() + RULE_BOOSTS_MAX;
                if has_room {
                    boosts.push(Boost { filter: filter.clone(), factor: *factor });
                }
                has_room
            }
            Action::Restrict(filter) => effects.restrict(filter),
            Action::Redirect(url) => {
                let is_first = effects.redirect_url.is_empty();
                if is_first {
                    effects.redirect_url.clone_from(url);
                }
                is_first
            }
            Action::Banner(payload) => {
                let bytes: usize = effects.banners.iter().map(|banner| banner.payload.len()).sum();
                let has_room = bytes + payload.len() <= RULE_BANNER_BYTES_MAX;
                if has_room {
                    effects.banners.push(RuleBanner { rule_id: rule.id().to_owned(), payload: payload.clone() });
                }
                has_room
            }
            Action::ReplaceQuery(query) => {
                let is_first = effects.replaced_query.is_none();
                if let (true, RankingRequest::Search(request)) = (is_first, self.request.to_mut()) {
                    request.query.clone_from(query);
                    effects.replaced_query = Some(query.clone());
                }
                is_first
            }
            Action::AddSynonyms(synonyms) => {
                effects.synonyms.push(synonyms.clone());
                true
            }
        }
    }
}

//! RuleService: maintains and previews rules.
use super::{
    convert,
    deadline::handler_deadline,
    guard::guarded,
    proto::{self, rule_service_server::RuleService},
    services::Services,
    status,
    violations::Violations,
};
use lodestone_core::units::UnixMillis;
use lodestone_engine::{EntryKind, PagePair, PutMode, RewardPreview, RulePreview};
use lodestone_pipeline::{AttributeUse, RESULTS_BYTES_MAX, run::RequestField};
use lodestone_rules::{Action, CompiledRule, limits};
use prost::Message;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Request, Response, Status};

/// Logged answers that a preview reads.
const PREVIEWED_DEFAULT: usize = 1000;
const PREVIEWED_MAX: usize = 10_000;
/// Rules that a notice about a pin of the same rank names.
const COMPETING_RULES_NAMED: usize = 3;
/// Longest time of a preview, and that of a caller who sets none.
const PREVIEW_DEADLINE: Duration = Duration::from_secs(60);

/// A validated page of a list of rules or sets of synonyms.
pub(crate) struct EntriesPage<P> {
    pub(crate) entries: Vec<P>,
    pub(crate) next_page_token: String,
    pub(crate) notices: Vec<proto::Notice>,
}

impl Services {
    /// Returns a page of entries.
    pub(crate) fn entries_page<T, P: Message>(
        &self,
        all: &BTreeMap<String, Arc<T>>,
        kind: EntryKind,
        (page_size, page_token): (i32, &str),
        converted: impl Fn(&T) -> P,
        id: impl Fn(&T) -> &str,
    ) -> Result<EntriesPage<P>, Status> {
        let mut violations = Violations::default();
        let count = convert::list_size(&mut violations, page_size);
        let notices = checked(violations)?;
        let listed = self.engine.entries_after(all, kind, page_token, count + 1).map_err(status::of)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in listed.iter().take(count) {
            let entry = converted(entry);
            bytes += entry.encoded_len();
            if bytes > RESULTS_BYTES_MAX && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        let has_more = entries.len() < listed.len();
        let last = listed.get(entries.len().wrapping_sub(1)).filter(|_| has_more);
        let next_page_token = last.map(|last| self.engine.entries_token(kind, id(last))).unwrap_or_default();
        Ok(EntriesPage { entries, next_page_token, notices })
    }

    /// Validates a rule, also by the serving configurations that there are. Returns none if it is invalid by itself.
    fn rule(&self, violations: &mut Violations, sent: Option<&proto::Rule>) -> Option<CompiledRule> {
        let compiled = convert::rule(violations, sent);
        let condition = sent.and_then(|rule| rule.condition.as_ref());
        let named = condition.map_or(&[][..], |condition| &condition.serving_configs);
        // A list that is too long has a violation already.
        let named = &named[..named.len().min(limits::CONDITIONS)];
        convert::add_problems(violations, "rule", self.engine.named_config_problems(named));
        compiled
    }

    /// Returns notices about pins of items that the catalogue does not have.
    fn unknown_pins(&self, rule: &CompiledRule) -> Vec<proto::Notice> {
        let notice = |(index, action): (usize, &Action)| match action {
            Action::Pin { item, .. } if self.engine.get_item(item).is_none() => Some(proto::Notice {
                field: format!("rule.actions[{index}].pin.item_id"),
                description: format!(
                    "is `{item}`, which the catalogue does not have; the pin has no effect without it"
                ),
            }),
            _ => None,
        };
        rule.actions.iter().enumerate().filter_map(notice).collect()
    }

    /// Returns notices about pins whose ranks other rules pin too for requests to which the rule applies.
    fn competing_pins(&self, rule: &CompiledRule) -> Vec<proto::Notice> {
        let (rules, now) = (self.engine.rules(), UnixMillis::now());
        let notice = |(index, action): (usize, &Action)| {
            let Action::Pin { rank, .. } = action else { return None };
            let others: Vec<String> =
                rules.competing_pins(rule, *rank, now).map(|of| format!("`{}`", of.id())).collect();
            let named = others.get(..COMPETING_RULES_NAMED).unwrap_or(&others).join(", ");
            let others = match others.len() {
                0 => return None,
                count @ ..=COMPETING_RULES_NAMED => format!("{} {named}", if count == 1 { "rule" } else { "rules" }),
                count => format!("rules {named} and {} more", count - COMPETING_RULES_NAMED),
            };
            Some(proto::Notice {
                field: format!("rule.actions[{index}].pin.rank"),
                description: format!(
                    "is {rank}, which the {others} may pin in the same answers; the first of these pins by priority and id \
                     that can be placed has the rank"
                ),
            })
        };
        rule.actions.iter().enumerate().filter_map(notice).collect()
    }

    /// Writes the rule of a request.
    async fn write_rule(
        &self,
        sent: Option<proto::Rule>,
        mode: impl FnOnce(String) -> PutMode,
        deadline: Instant,
    ) -> Result<WrittenRule, Status> {
        let mut violations = Violations::default();
        let compiled = self.rule(&mut violations, sent.as_ref());
        let Some(rule) = compiled.filter(|_| violations.is_empty()) else {
            return Err(self.refused(violations, deadline).await);
        };
        let mut notices = self.unknown_pins(&rule);
        notices.extend(self.competing_pins(&rule));
        let paths: Vec<String> = sent.iter().flat_map(|rule| &rule.actions).enumerate().map(filter_path).collect();
        for (action, path) in rule.actions.iter().zip(&paths) {
            let (Action::Boost { filter, .. } | Action::Restrict(filter)) = action else { continue };
            let uses = AttributeUse::of_filter(RequestField::Filter, filter);
            let found = self.attribute_notices(uses, |_| path.clone(), deadline).await;
            notices.extend(found.into_iter().map(convert::notice));
        }
        let etag = sent.map(|rule| rule.etag).unwrap_or_default();
        let (written, log_position) = self.engine.put_rule(rule, mode(etag)).await.map_err(status::of)?;
        let consistency_token = self.consistency_token(log_position);
        Ok(WrittenRule { rule: convert::rule_to_proto(&written), consistency_token, notices })
    }
}

/// Returns the path of the filter of an action in a request. Empty: it has none.
fn filter_path((index, sent): (usize, &proto::RuleAction)) -> String {
    use proto::rule_action::Action;
    let name = match &sent.action {
        Some(Action::Boost(boost)) if boost.filter_expression.is_some() => "boost.filter_expression",
        Some(Action::Boost(_)) => "boost.filter",
        Some(Action::Bury(_)) => "bury",
        Some(Action::BuryExpression(_)) => "bury_expression",
        Some(Action::Hide(_)) => "hide",
        Some(Action::HideExpression(_)) => "hide_expression",
        Some(Action::Filter(_)) => "filter",
        Some(Action::FilterExpression(_)) => "filter_expression",
        _ => return String::new(),
    };
    format!("rule.actions[{index}].{name}")
}

/// The result of writing a rule.
struct WrittenRule {
    rule: proto::Rule,
    consistency_token: String,
    notices: Vec<proto::Notice>,
}

/// Refuses a request with violations. Otherwise returns the notices.
pub(crate) fn checked(violations: Violations) -> Result<Vec<proto::Notice>, Status> {
    match violations.is_empty() {
        true => Ok(violations.notices.into_iter().map(convert::notice).collect()),
        false => Err(status::invalid(violations.found)),
    }
}

/// Returns the deadline of a preview.
pub(crate) fn preview_deadline<T>(request: &Request<T>) -> Instant {
    handler_deadline(request.metadata().as_ref(), PREVIEW_DEADLINE, PREVIEW_DEADLINE)
}

/// Returns the number of logged answers that a preview reads.
pub(crate) fn previewed_count(violations: &mut Violations, answer_count: i32) -> usize {
    match answer_count {
        0 => PREVIEWED_DEFAULT,
        count if (1..=PREVIEWED_MAX as i32).contains(&count) => count as usize,
        count => {
            let description = format!("is {count}; it must be within 0 (the default) and {PREVIEWED_MAX}");
            violations.add("answer_count", description);
            0
        }
    }
}

#[tonic::async_trait]
impl RuleService for Services {
    async fn create_rule(
        &self,
        request: Request<proto::CreateRuleRequest>,
    ) -> Result<Response<proto::CreateRuleResponse>, Status> {
        let audited = self.audited(
            &request,
            "RuleService/CreateRule",
            request.get_ref().rule.as_ref().map_or("", |sent| &sent.rule_id),
        );
        let response = async {
            let deadline = self.call_context(&request, None).deadline;
            let written = self.write_rule(request.into_inner().rule, |_| PutMode::Create, deadline).await?;
            let WrittenRule { rule, consistency_token, notices } = written;
            Ok(Response::new(proto::CreateRuleResponse { rule: Some(rule), consistency_token, notices }))
        };
        guarded(&self.metrics, "CreateRule", audited.run(response)).await
    }

    async fn get_rule(
        &self,
        request: Request<proto::GetRuleRequest>,
    ) -> Result<Response<proto::GetRuleResponse>, Status> {
        let response = async {
            let id = request.into_inner().rule_id;
            let rules = self.engine.rules();
            let rule = rules.rules.get(&id).ok_or_else(|| status::entry_not_found(EntryKind::Rule, &id))?;
            Ok(Response::new(proto::GetRuleResponse { rule: Some(convert::rule_to_proto(rule)) }))
        };
        guarded(&self.metrics, "GetRule", response).await
    }

    async fn list_rules(
        &self,
        request: Request<proto::ListRulesRequest>,
    ) -> Result<Response<proto::ListRulesResponse>, Status> {
        let response = async {
            let proto::ListRulesRequest { page_size, page_token } = request.into_inner();
            let rules = self.engine.rules();
            let (kind, page) = (EntryKind::Rule, (page_size, page_token.as_str()));
            let page = self.entries_page(&rules.rules, kind, page, convert::rule_to_proto, |rule| rule.id())?;
            let EntriesPage { entries, next_page_token, notices } = page;
            let total_size = rules.rules.len() as i32;
            Ok(Response::new(proto::ListRulesResponse { rules: entries, next_page_token, total_size, notices }))
        };
        guarded(&self.metrics, "ListRules", response).await
    }

    async fn update_rule(
        &self,
        request: Request<proto::UpdateRuleRequest>,
    ) -> Result<Response<proto::UpdateRuleResponse>, Status> {
        let audited = self.audited(
            &request,
            "RuleService/UpdateRule",
            request.get_ref().rule.as_ref().map_or("", |sent| &sent.rule_id),
        );
        let response = async {
            let deadline = self.call_context(&request, None).deadline;
            let mode = |etag| PutMode::Update { etag };
            let WrittenRule { rule, consistency_token, notices } =
                self.write_rule(request.into_inner().rule, mode, deadline).await?;
            Ok(Response::new(proto::UpdateRuleResponse { rule: Some(rule), consistency_token, notices }))
        };
        guarded(&self.metrics, "UpdateRule", audited.run(response)).await
    }

    async fn delete_rule(
        &self,
        request: Request<proto::DeleteRuleRequest>,
    ) -> Result<Response<proto::DeleteRuleResponse>, Status> {
        let audited = self.audited(&request, "RuleService/DeleteRule", &request.get_ref().rule_id);
        let response = async {
            let proto::DeleteRuleRequest { rule_id, etag } = request.into_inner();
            let deleted = self.engine.delete_entry(EntryKind::Rule, rule_id, etag).await;
            Ok(Response::new(proto::DeleteRuleResponse {
                consistency_token: self.consistency_token(deleted.map_err(status::of)?),
            }))
        };
        guarded(&self.metrics, "DeleteRule", audited.run(response)).await
    }

    async fn preview_rule(
        &self,
        request: Request<proto::PreviewRuleRequest>,
    ) -> Result<Response<proto::PreviewRuleResponse>, Status> {
        let response = async {
            let deadline = preview_deadline(&request);
            let proto::PreviewRuleRequest { rule, answer_count } = request.into_inner();
            let mut violations = Violations::default();
            let rule = self.rule(&mut violations, rule.as_ref());
            let count = previewed_count(&mut violations, answer_count);
            let Some(rule) = rule.filter(|_| violations.is_empty()) else {
                return Err(self.refused(violations, deadline).await);
            };
            let preview = self.engine.preview_rule(rule, count, convert::ranking_request, deadline).await;
            Ok(Response::new(preview_to_proto(preview.map_err(status::of)?)))
        };
        guarded(&self.metrics, "PreviewRule", response).await
    }
}

fn preview_to_proto(preview: RulePreview) -> proto::PreviewRuleResponse {
    let page = |PagePair { answer, query, page }: PagePair| proto::PreviewedPage {
        answer_id: answer,
        query,
        item_ids: page.before,
        new_item_ids: page.after,
    };
    let left_out = |(reason, count): (String, usize)| proto::LeftOutReason { reason, answer_count: count as i32 };
    use proto::RewardType::{Click, Purchase, ReturnVisit};
    let rewards = [Click, Purchase, ReturnVisit].into_iter().zip(preview.estimates);
    proto::PreviewRuleResponse {
        answer_count: preview.answer_count as i32,
        matched_answer_count: preview.matched_count as i32,
        left_out_answer_count: preview.left_out.values().sum::<usize>() as i32,
        left_out_reasons: preview.left_out.into_iter().map(left_out).collect(),
        slot_count: preview.slot_count as i32,
        changed_slot_count: preview.changed_slot_count as i32,
        changed_answer_count: preview.changed_answer_count as i32,
        pages: preview.pages.into_iter().map(page).collect(),
        estimates: rewards.map(|(reward, preview)| estimate(reward, preview)).collect(),
    }
}

fn estimate(reward: proto::RewardType, preview: RewardPreview) -> proto::RewardEstimate {
    let (estimate, refusal) = match preview.estimate {
        Ok(estimate) => (Some(estimate), String::new()),
        Err(refusal) => (None, refusal),
    };
    proto::RewardEstimate {
        reward: reward.into(),
        slot_count: preview.slot_count as i32,
        shown: preview.shown,
        estimate: estimate.map(|(value, ..)| value),
        low: estimate.map(|(_, low, _)| low),
        high: estimate.map(|(.., high)| high),
        refusal,
    }
}

//! Rules and synonyms over gRPC: each condition and action, their order, refusals, durability, previews.
use crate::support::{
    answers::replay,
    bundles::{Shop, search_by},
    grpc::GrpcServer,
    status::{reason, violations},
    wait::wait_until,
};
use lodestone::server::proto::{
    self, RuleRequestType, catalog_service_client::CatalogServiceClient, event_service_client::EventServiceClient,
    explain_service_client::ExplainServiceClient, query_condition::Kind, ranking_service_client::RankingServiceClient,
    rule_action::Action, rule_service_client::RuleServiceClient,
    serving_config_service_client::ServingConfigServiceClient, synonym_service_client::SynonymServiceClient,
};
use lodestone_core::units::UnixMillis;
use lodestone_events::log::{self, CompactMode, Retention};
use lodestone_pipeline::{
    policy::Exploration,
    serving::{Serving, ServingConfig},
};
use lodestone_rollout::HealthBounds;
use prost_types::Timestamp;
use std::{collections::BTreeSet, time::Duration};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

fn rules(server: &GrpcServer) -> RuleServiceClient<Channel> {
    RuleServiceClient::new(server.channel.clone())
}

fn synonyms(server: &GrpcServer) -> SynonymServiceClient<Channel> {
    SynonymServiceClient::new(server.channel.clone())
}

fn ranking(server: &GrpcServer) -> RankingServiceClient<Channel> {
    RankingServiceClient::new(server.channel.clone())
}

fn query(kind: Kind) -> proto::QueryCondition {
    proto::QueryCondition { kind: Some(kind) }
}

fn exact(text: &str) -> Option<proto::RuleCondition> {
    let queries = vec![query(Kind::Exact(text.to_owned()))];
    Some(proto::RuleCondition { queries, ..Default::default() })
}

fn in_category(name: &str) -> Option<proto::RuleCondition> {
    Some(proto::RuleCondition { categories: vec![name.to_owned()], ..Default::default() })
}

fn pin(item: &str, rank: i32) -> Action {
    Action::Pin(proto::Pin { item_id: item.to_owned(), rank })
}

fn boost(filter: &str, factor: f64) -> Action {
    Action::Boost(proto::Boost { filter: filter.to_owned(), factor, filter_expression: None })
}

fn rule(id: &str, condition: Option<proto::RuleCondition>, actions: Vec<Action>) -> proto::Rule {
    let actions = actions.into_iter().map(|action| proto::RuleAction { action: Some(action) }).collect();
    proto::Rule { rule_id: id.to_owned(), condition, actions, ..Default::default() }
}

fn synonym_set(id: &str, terms: &[&str], replacements: &[&str]) -> proto::SynonymSet {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let synonyms = Some(proto::SynonymTerms { terms: texts(terms), replacements: texts(replacements) });
    proto::SynonymSet { synonym_set_id: id.to_owned(), synonyms, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_of_an_item_that_does_not_exist_has_a_notice() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let pinned = |item: &str| rule("pin", exact("blue mug"), vec![pin("i1", 1), pin(item, 2)]);
    let request = proto::CreateRuleRequest { rule: Some(pinned("nosuch")) };
    let created = rules(&server).create_rule(request).await.unwrap().into_inner();
    assert_eq!(created.notices.len(), 1, "{created:?}");
    assert_eq!(created.notices[0].field, "rule.actions[1].pin.item_id");
    assert!(created.notices[0].description.contains("`nosuch`, which the catalogue does not have"), "{created:?}");
    for (item, count) in [("nothing", 1), ("i2", 0)] {
        let request = proto::UpdateRuleRequest { rule: Some(pinned(item)) };
        let updated = rules(&server).update_rule(request).await.unwrap().into_inner();
        assert_eq!(updated.notices.len(), count, "{updated:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_list_replaces_a_page_size_above_the_limit_with_a_notice() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let replaced = proto::Notice {
        field: "page_size".to_owned(),
        description: "1001 is above the limit; 1000 was used".to_owned(),
    };
    let viewer = Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() });
    for (page_size, expected) in [(0, vec![]), (1000, vec![]), (1001, vec![replaced])] {
        let channel = || server.channel.clone();
        let request = proto::ListRulesRequest { page_size, ..Default::default() };
        assert_eq!(rules(&server).list_rules(request).await.unwrap().into_inner().notices, expected);
        let request = proto::ListSynonymSetsRequest { page_size, ..Default::default() };
        assert_eq!(synonyms(&server).list_synonym_sets(request).await.unwrap().into_inner().notices, expected);
        let request = proto::ListServingConfigsRequest { page_size, ..Default::default() };
        let mut configs = ServingConfigServiceClient::new(channel());
        assert_eq!(configs.list_serving_configs(request).await.unwrap().into_inner().notices, expected);
        let request = proto::ListIncentiveCampaignsRequest { page_size, ..Default::default() };
        let mut campaigns = proto::incentive_service_client::IncentiveServiceClient::new(channel());
        assert_eq!(campaigns.list_incentive_campaigns(request).await.unwrap().into_inner().notices, expected);
        let mut catalog = CatalogServiceClient::new(channel());
        let request = proto::ListItemsRequest { page_size, ..Default::default() };
        assert_eq!(catalog.list_items(request).await.unwrap().into_inner().notices, expected);
        let request = proto::ListAttributesRequest { page_size, ..Default::default() };
        assert_eq!(catalog.list_attributes(request).await.unwrap().into_inner().notices, expected);
        // Pages of answers have their own limit, and the same rule.
        let request = proto::SearchRequest { page_size, viewer: viewer.clone(), ..Default::default() };
        let found = ranking(&server).search(request).await.unwrap().into_inner().info.unwrap().notices;
        let of_answer: Vec<(&str, &str)> =
            found.iter().map(|notice| (notice.field.as_str(), notice.description.as_str())).collect();
        let description = format!("{page_size} is above the limit; 200 was used");
        let expected = if page_size == 0 { vec![] } else { vec![("page_size", description.as_str())] };
        assert_eq!(of_answer, expected);
    }
    let refused = rules(&server).list_rules(proto::ListRulesRequest { page_size: -1, ..Default::default() }).await;
    let expected = ("page_size".to_owned(), "is -1; it must be within 0 (the default, 100) and 1000".to_owned());
    assert_eq!(violations(&refused.unwrap_err()), [expected]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_of_a_rank_that_other_rules_pin_has_a_notice() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let notices = |found: Vec<proto::Notice>| -> Vec<(String, String)> {
        found.into_iter().map(|notice| (notice.field, notice.description)).collect()
    };
    let create = async |rule: proto::Rule| {
        let request = proto::CreateRuleRequest { rule: Some(rule) };
        notices(rules(&server).create_rule(request).await.unwrap().into_inner().notices)
    };
    let expected = |action: usize, rank: i32, others: &str| {
        let description = format!(
            "is {rank}, which the {others} may pin in the same answers; the first of these pins by priority and id that can \
             be placed has the rank"
        );
        (format!("rule.actions[{action}].pin.rank"), description)
    };
    assert_eq!(create(rule("a", exact("blue mug"), vec![pin("i1", 1), pin("i3", 2)])).await, []);
    assert_eq!(create(rule("b", exact("red mug"), vec![pin("i2", 1)])).await, [], "no request meets both conditions");
    let of_both = rule("c", None, vec![pin("i4", 3), pin("i5", 1)]);
    assert_eq!(create(of_both).await, [expected(1, 1, "rules `a`, `b`")]);
    assert_eq!(create(rule("d", exact("blue mug"), vec![pin("i6", 2)])).await, [expected(0, 2, "rule `a`")]);
    for id in ["e", "f"] {
        create(rule(id, exact("green lamp"), vec![pin("i7", 1)])).await;
    }
    let update = proto::UpdateRuleRequest { rule: Some(rule("c", None, vec![pin("i8", 1)])) };
    let updated = rules(&server).update_rule(update).await.unwrap().into_inner();
    assert_eq!(notices(updated.notices), [expected(0, 1, "rules `a`, `b`, `e` and 1 more")]);
    server.end().await;
}

async fn create(server: &GrpcServer, rule: proto::Rule) -> proto::Rule {
    try_create(server, rule).await.unwrap()
}

async fn try_create(server: &GrpcServer, rule: proto::Rule) -> Result<proto::Rule, Status> {
    let created = rules(server).create_rule(proto::CreateRuleRequest { rule: Some(rule) }).await?;
    Ok(created.into_inner().rule.unwrap())
}

async fn update(server: &GrpcServer, rule: proto::Rule) -> Result<proto::Rule, Status> {
    let updated = rules(server).update_rule(proto::UpdateRuleRequest { rule: Some(rule) }).await?;
    Ok(updated.into_inner().rule.unwrap())
}

async fn delete(server: &GrpcServer, id: &str, etag: &str) -> Result<(), Status> {
    let request = proto::DeleteRuleRequest { rule_id: id.to_owned(), etag: etag.to_owned() };
    rules(server).delete_rule(request).await.map(drop)
}

async fn delete_all(server: &GrpcServer) {
    for id in listed(server, 1000).await {
        delete(server, &id, "").await.unwrap();
    }
}

/// Returns the ids of all rules, page by page.
async fn listed(server: &GrpcServer, page_size: i32) -> Vec<String> {
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = proto::ListRulesRequest { page_size, page_token };
        let page = rules(server).list_rules(request).await.unwrap().into_inner();
        ids.extend(page.rules.into_iter().map(|rule| rule.rule_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

fn request(query: &str) -> proto::SearchRequest {
    let viewer = proto::Viewer { user_id: "searcher".to_owned(), ..Default::default() };
    proto::SearchRequest { viewer: Some(viewer), query: query.to_owned(), page_size: 40, ..Default::default() }
}

async fn answer(server: &GrpcServer, request: proto::SearchRequest) -> proto::SearchResponse {
    ranking(server).search(request).await.unwrap().into_inner()
}

async fn search(server: &GrpcServer, query: &str) -> proto::SearchResponse {
    answer(server, request(query)).await
}

fn ids(response: &proto::SearchResponse) -> Vec<&str> {
    response.results.iter().map(|result| result.item_id.as_str()).collect()
}

fn applied(info: Option<&proto::AnswerInfo>) -> Vec<&str> {
    info.unwrap().applied_rules.iter().map(|rule| rule.rule_id.as_str()).collect()
}

async fn applied_to(server: &GrpcServer, request: proto::SearchRequest) -> Vec<String> {
    let response = answer(server, request).await;
    applied(response.info.as_ref()).into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_is_in_effect_when_it_is_acknowledged_and_survives_restarts_and_compaction() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let created = create(&server, rule("launch", exact("Blue  MUG"), vec![pin("i30", 1)])).await;
    assert!(created.create_time.is_some() && created.create_time == created.update_time && created.etag.len() == 16);
    let response = search(&server, "blue mug").await;
    assert_eq!(ids(&response)[0], "i30");
    assert_eq!(response.results[0].reasons[0].code(), proto::ReasonCode::Pinned);
    let info = response.info.clone().unwrap();
    assert_eq!(info.applied_rules.len(), 1);
    assert_eq!((&info.applied_rules[0].rule_id[..], &info.applied_rules[0].etag), ("launch", &created.etag));
    assert!(applied(search(&server, "blue mug number").await.info.as_ref()).is_empty());
    assert_eq!(server.metric("rule_answers_total{rule=\"launch\"}"), Some(1));

    // An update needs the current etag.
    let changed = proto::Rule { actions: rule("", None, vec![pin("i36", 1)]).actions, ..created.clone() };
    let updated = update(&server, changed.clone()).await.unwrap();
    assert_eq!((updated.create_time, updated.etag == created.etag), (created.create_time, false));
    let stale = update(&server, changed).await.unwrap_err();
    assert_eq!(reason(&stale), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    assert!(stale.message().contains(&created.etag) && stale.message().contains(&updated.etag), "{stale:?}");
    assert_eq!(reason(&delete(&server, "launch", &created.etag).await.unwrap_err()).0, Code::Aborted);
    assert_eq!(ids(&search(&server, "blue mug").await)[0], "i36");
    let got = rules(&server).get_rule(proto::GetRuleRequest { rule_id: "launch".to_owned() }).await.unwrap();
    assert_eq!(got.into_inner().rule.as_ref(), Some(&updated));

    let again = try_create(&server, rule("launch", None, vec![pin("i1", 1)])).await.unwrap_err();
    assert_eq!(reason(&again), (Code::AlreadyExists, "RULE_EXISTS".to_owned()));
    let unknown = update(&server, rule("none", None, vec![pin("i1", 1)])).await.unwrap_err();
    assert_eq!(reason(&unknown), (Code::NotFound, "RULE_NOT_FOUND".to_owned()));
    assert_eq!(reason(&delete(&server, "none", "").await.unwrap_err()).0, Code::NotFound);
    let unknown = rules(&server).get_rule(proto::GetRuleRequest { rule_id: "x".repeat(9000) }).await.unwrap_err();
    assert_eq!(reason(&unknown).0, Code::NotFound);
    for number in 0..5 {
        create(&server, rule(&format!("extra-{number}"), exact("nothing"), vec![pin("i1", 1)])).await;
    }
    delete(&server, "extra-3", "").await.unwrap();
    let expected = ["extra-0", "extra-1", "extra-2", "extra-4", "launch"];
    assert_eq!(listed(&server, 2).await, expected);
    assert_eq!(server.metric("rules"), Some(5));
    let foreign = proto::ListRulesRequest { page_size: 1, page_token: "x".to_owned() };
    assert_eq!(reason(&rules(&server).list_rules(foreign).await.unwrap_err()).1, "PAGE_TOKEN_INVALID");
    server.end().await;

    for is_compacted in [false, true] {
        let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
        assert_eq!(listed(&server, 1000).await, expected, "compacted: {is_compacted}");
        let response = search(&server, "blue mug").await;
        assert_eq!(ids(&response)[0], "i36");
        assert_eq!(response.info.unwrap().applied_rules[0].etag, updated.etag, "the etag is that of the content");
        server.end().await;
        let compact = || {
            log::compact(
                shop.data_path().join("log").as_path(),
                &Retention::default(),
                UnixMillis::now(),
                CompactMode::Apply,
            )
        };
        let mut compacted = None;
        wait_until("the log is released", Duration::from_secs(60), async || {
            compacted = compact().ok();
            compacted.is_some()
        })
        .await;
        // The first content of `launch`, and `extra-3` with its deletion.
        let dropped = if is_compacted { 0 } else { 3 };
        assert_eq!(compacted.map(|compacted| compacted.rule_changes), Some(dropped));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_condition_selects_its_requests() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let banner = |text: &str| vec![Action::Banner(text.to_owned())];
    let of_queries = |kinds: Vec<Kind>| {
        Some(proto::RuleCondition { queries: kinds.into_iter().map(query).collect(), ..Default::default() })
    };
    let text = str::to_owned;
    let now = UnixMillis::now().0 / 1000;
    let time = |seconds: i64| Some(Timestamp { seconds, nanos: 0 });
    let of = proto::RuleCondition::default;
    let conditions = [
        ("exact", of_queries(vec![Kind::Exact(text("Café  mug"))])),
        ("prefix", of_queries(vec![Kind::Prefix(text("CAF"))])),
        ("contains", of_queries(vec![Kind::Contains(text("mug"))])),
        ("regex", of_queries(vec![Kind::Regex(text("^(cafe|tea) .*g$"))])),
        ("either", of_queries(vec![Kind::Exact(text("nothing")), Kind::Contains(text("lamp"))])),
        ("category", Some(proto::RuleCondition { categories: vec![text("mugs")], ..of() })),
        ("audience", Some(proto::RuleCondition { audiences: vec![text("trade"), text("vip")], ..of() })),
        ("platform", Some(proto::RuleCondition { platforms: vec![proto::Platform::Ios.into()], ..of() })),
        ("browse", Some(proto::RuleCondition { request_types: vec![RuleRequestType::Browse.into()], ..of() })),
        ("recommend", Some(proto::RuleCondition { request_types: vec![RuleRequestType::Recommend.into()], ..of() })),
        ("now", Some(proto::RuleCondition { start_time: time(now - 100), end_time: time(now + 3600), ..of() })),
        ("past", Some(proto::RuleCondition { end_time: time(now - 1), ..of() })),
        ("future", Some(proto::RuleCondition { start_time: time(now + 3600), ..of() })),
        ("both", Some(proto::RuleCondition { categories: vec![text("Mugs")], ..exact("red mug").unwrap() })),
    ];
    for (id, condition) in conditions {
        create(&server, rule(id, condition, banner(id))).await;
    }
    let filtered = |query: &str, filter: &str| proto::SearchRequest { filter: text(filter), ..request(query) };
    assert_eq!(applied_to(&server, request("CAFÉ mug")).await, ["contains", "exact", "now", "prefix", "regex"]);
    assert_eq!(applied_to(&server, request("smug")).await, ["now"], "a part of a word is not contained");
    assert_eq!(applied_to(&server, request("cafeteria lamp")).await, ["either", "now", "prefix"]);
    assert_eq!(applied_to(&server, request("")).await, ["browse", "now"]);
    for filter in ["category = \"MUGS\"", "in_stock AND category IN (\"Lamps\", \"Mugs\")"] {
        assert_eq!(applied_to(&server, filtered("", filter)).await, ["browse", "category", "now"], "{filter}");
    }
    assert_eq!(applied_to(&server, filtered("", "NOT category = \"Mugs\"")).await, ["browse", "now"]);
    let both = filtered("red mug", "category = \"Mugs\"");
    assert_eq!(applied_to(&server, both).await, ["both", "category", "contains", "now"]);
    let mut special = request("x");
    special.options = Some(proto::RankingOptions { audiences: vec![text("vip")], ..Default::default() });
    special.viewer.as_mut().unwrap().platform = proto::Platform::Ios.into();
    assert_eq!(applied_to(&server, special).await, ["audience", "now", "platform"]);
    let recommend = proto::RecommendRequest {
        viewer: request("").viewer,
        r#type: proto::RecommendType::ForYou.into(),
        ..Default::default()
    };
    let response = ranking(&server).recommend(recommend).await.unwrap().into_inner();
    assert_eq!(applied(response.info.as_ref()), ["now", "recommend"]);
    let candidates = vec![proto::RankCandidate { item_id: text("i1"), ..Default::default() }];
    let rank = proto::RankRequest { viewer: request("").viewer, candidates, ..Default::default() };
    let response = ranking(&server).rank(rank).await.unwrap().into_inner();
    assert!(applied(response.info.as_ref()).is_empty(), "candidates are the caller's");
    let mut refused = request("x");
    let audiences = vec!["a".to_owned(), String::new(), "x".repeat(65)];
    refused.options = Some(proto::RankingOptions { audiences, ..Default::default() });
    let refused = violations(&ranking(&server).search(refused).await.unwrap_err());
    assert_eq!(
        refused.iter().map(|(field, _)| &field[..]).collect::<Vec<_>>(),
        ["options.audiences[1]", "options.audiences[2]"]
    );
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_action_has_its_effect_and_the_answer_can_be_replayed() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let plain = search(&server, "blue mug").await;
    let plain_ids = ids(&plain);
    // Titles are `red mug number 0`, `blue lamp number 1`, …
    let act = async |id: &str, query: &str, actions: Vec<Action>| {
        delete_all(&server).await;
        create(&server, rule(id, exact(query), actions)).await;
        let response = search(&server, query).await;
        assert_eq!(applied(response.info.as_ref()), [id]);
        response
    };
    let full = plain.results.iter().filter(|result| result.query_match() == proto::QueryMatch::AllWords);
    let last = plain_ids[full.count() - 1];
    let boosted = act("boost", "blue mug", vec![boost(&format!("item_id = \"{last}\""), 100.0)]).await;
    assert_eq!(ids(&boosted)[0], last);
    let buried = act("bury", "blue mug", vec![Action::Bury(format!("item_id = \"{}\"", plain_ids[0]))]).await;
    let position = ids(&buried).iter().position(|id| *id == plain_ids[0]).unwrap();
    assert!(position > 1, "{position} of {}", plain_ids.len());
    let hidden = act("hide", "blue mug", vec![Action::Hide(format!("item_id = \"{}\"", plain_ids[0]))]).await;
    assert!(!ids(&hidden).contains(&plain_ids[0]));
    assert_eq!(hidden.total_size, plain.total_size - 1, "hidden items are not counted");
    let both = vec![Action::Hide(format!("item_id = \"{last}\"")), pin(last, 1)];
    let response = act("hidden-pin", "blue mug", both).await;
    assert_eq!(response.info.as_ref().unwrap().dropped_pin_item_ids, [last.to_owned()]);
    let filtered = act("filter", "mug", vec![Action::Filter("title HAS \"red\"".to_owned())]).await;
    assert!(filtered.results.len() > 3);
    let red = |id: &str| id[1..].parse::<usize>().unwrap() % 3 == 0;
    assert!(ids(&filtered).iter().all(|id| red(id)), "{:?}", ids(&filtered));
    let shown = vec![Action::RedirectUrl("/sale?x=1".to_owned()), Action::Banner("{\"text\": \"Sale\"}".to_owned())];
    let response = act("shown", "blue mug", shown).await;
    assert_eq!(ids(&response), plain_ids, "neither changes the order");
    let info = response.info.as_ref().unwrap();
    assert_eq!(info.redirect_url, "/sale?x=1");
    assert_eq!(
        info.banners,
        [proto::RuleBanner { rule_id: "shown".to_owned(), payload: "{\"text\": \"Sale\"}".to_owned() }]
    );
    let replaced = act("replace", "Christmas gift", vec![Action::ReplaceQuery("green lamp".to_owned())]).await;
    assert_eq!(replaced.corrected_query, "green lamp");
    assert_eq!(ids(&replaced), ids(&search(&server, "green lamp").await));
    let terms = proto::SynonymTerms { terms: vec!["beaker".to_owned()], replacements: vec!["mug".to_owned()] };
    let expanded = act("synonyms", "blue beaker", vec![Action::AddSynonyms(terms)]).await;
    let matches = |response: &proto::SearchResponse| {
        ids(response)[..response.total_size as usize].iter().map(|id| (*id).to_owned()).collect::<BTreeSet<String>>()
    };
    assert_eq!(matches(&expanded), matches(&plain));
    assert_eq!(expanded.results[0].query_match(), proto::QueryMatch::AllWords);
    let pinned = act("pin", "blue mug", vec![pin("i1", 2), pin("none", 3)]).await;
    assert_eq!(
        (ids(&pinned)[1], &pinned.info.as_ref().unwrap().dropped_pin_item_ids[..]),
        ("i1", &["none".to_owned()][..])
    );

    // The record has the effects, so that the answer is replayed without the rule.
    delete_all(&server).await;
    for (response, id) in [(&boosted, "boost"), (&buried, "bury"), (&filtered, "filter"), (&pinned, "pin")] {
        let request = proto::ReplayAnswerRequest { attribution_token: response.attribution_token.clone() };
        let replay =
            ExplainServiceClient::new(server.channel.clone()).replay_answer(request).await.unwrap().into_inner();
        assert!(replay.identical, "{id}: {}", replay.first_difference);
        assert_eq!(replay.applied_rules.iter().map(|rule| &rule.rule_id[..]).collect::<Vec<_>>(), [id]);
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_rules_hide_are_no_suggestions() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let item = |id: &str, title: &str, brand: &str| proto::Item {
        item_id: id.to_owned(),
        title: title.to_owned(),
        brand: brand.to_owned(),
        ..Default::default()
    };
    let items = vec![
        item("z1", "Zylophone lamp of oak", "Zylocorp"),
        item("z2", "Zylophone lamp of elm", "Zylocorp"),
        item("z3", "Zylophone rug", "Looms"),
    ];
    let written = proto::UpsertItemsRequest { items, update_time: None };
    CatalogServiceClient::new(server.channel.clone()).upsert_items(written).await.unwrap();
    let request = |prefix: &str, audiences: &[&str]| proto::SuggestRequest {
        viewer: Some(proto::Viewer { user_id: "searcher".to_owned(), ..Default::default() }),
        prefix: prefix.to_owned(),
        completion_count: 10,
        product_count: 10,
        audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
        ..Default::default()
    };
    let suggest = async |prefix: &str, audiences: &[&str]| {
        ranking(&server).suggest(request(prefix, audiences)).await.unwrap().into_inner()
    };
    let products = |answer: &proto::SuggestResponse| -> BTreeSet<String> {
        answer.products.iter().map(|product| product.item_id.clone()).collect()
    };
    let texts = |answer: &proto::SuggestResponse| -> BTreeSet<String> {
        answer.completions.iter().map(|completion| completion.text.clone()).collect()
    };
    let set = |texts: &[&str]| -> BTreeSet<String> { texts.iter().map(|text| (*text).to_owned()).collect() };
    let all = set(&["z1", "z2", "z3"]);
    let before = suggest("zylo", &[]).await;
    assert_eq!(products(&before), all);
    assert!(texts(&before).is_superset(&set(&["Zylophone lamp of oak", "Zylocorp"])), "{before:?}");

    // Only rules without conditions on the query, and only their actions that hide items.
    let banner = Action::Banner("{}".to_owned());
    create(&server, rule("query", exact("zylo"), vec![Action::Hide("item_id = \"z3\"".to_owned())])).await;
    create(&server, rule("banner", None, vec![banner.clone(), pin("i1", 1)])).await;
    let untouched = suggest("zylo", &[]).await;
    assert_eq!((products(&untouched), applied(untouched.info.as_ref())), (all, vec![]));
    create(&server, rule("recall", None, vec![banner, Action::Hide("item_id = \"z1\"".to_owned())])).await;
    let answer = suggest("zylo", &[]).await;
    assert_eq!(products(&answer), set(&["z2", "z3"]));
    let shown = texts(&answer);
    assert!(!shown.contains("Zylophone lamp of oak") && shown.contains("Zylophone lamp of elm"), "{shown:?}");
    let info = answer.info.as_ref().unwrap();
    assert_eq!((applied(Some(info)), &info.applied_rules[0].unused_actions[..]), (vec!["recall"], &[0][..]));
    assert_eq!(server.metric("rule_answers_total{rule=\"recall\"}"), Some(1));
    let replayed = replay(&server.channel, &answer.attribution_token).await;
    assert!(replayed.identical, "{}", replayed.first_difference);
    assert_eq!(replayed.applied_rules.len(), 1);

    // The conditions on audiences and types of requests are those of all rules.
    let of_staff = proto::RuleCondition { audiences: vec!["staff".to_owned()], ..Default::default() };
    create(&server, rule("staff", Some(of_staff), vec![Action::Filter("brand = \"Looms\"".to_owned())])).await;
    let lists = RuleRequestType::Recommend.into();
    let of_lists = proto::RuleCondition { request_types: vec![lists], ..Default::default() };
    create(&server, rule("lists", Some(of_lists), vec![Action::Hide("item_id = \"z2\"".to_owned())])).await;
    assert_eq!(products(&suggest("zylo", &["guest"]).await), set(&["z2", "z3"]));
    let of_staff = suggest("zylo", &["guest", "staff"]).await;
    assert_eq!(products(&of_staff), set(&["z3"]));
    assert!(!texts(&of_staff).contains("Zylocorp"), "no eligible product has the brand: {of_staff:?}");
    let wrong = ranking(&server).suggest(request("zylo", &["x", ""])).await.unwrap_err();
    assert_eq!(violations(&wrong)[0].0, "audiences[1]");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_pages_keep_the_filters_of_rules_and_facets_never_count_hidden_items() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let items = (0..8).map(|number| proto::Item {
        item_id: format!("pot-{number}"),
        title: format!("Flower pot {number}"),
        brand: if number % 2 == 0 { "Acme".to_owned() } else { "Other".to_owned() },
        ..Default::default()
    });
    let upsert = proto::UpsertItemsRequest { items: items.collect(), update_time: None };
    CatalogServiceClient::new(server.channel.clone()).upsert_items(upsert).await.unwrap();
    create(&server, rule("no-acme", None, vec![Action::Hide("brand = \"Acme\"".to_owned())])).await;
    let facet = proto::FacetSpec { field: "brand".to_owned(), multi_select: true, ..Default::default() };
    let page = |page_token: String| proto::SearchRequest {
        filter: "brand = \"Other\"".to_owned(),
        facet_specs: vec![facet.clone()],
        page_size: 3,
        page_token,
        ..request("flower pot")
    };
    let first = answer(&server, page(String::new())).await;
    let brands: Vec<&str> = first.facets[0].values.iter().map(|value| value.value.as_str()).collect();
    assert_eq!(brands, ["Other"], "a facet without its own filter keeps the filters of rules");
    let second = answer(&server, page(first.next_page_token.clone())).await;
    let all: BTreeSet<&str> = ids(&first).into_iter().chain(ids(&second)).collect();
    assert_eq!(all, BTreeSet::from(["pot-1", "pot-3", "pot-5", "pot-7"]));
    assert_eq!(second.info.as_ref().unwrap().applied_rules.len(), 1);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_apply_in_the_order_of_priority_and_id() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let prioritised =
        |id: &str, priority: i32, actions| proto::Rule { priority, ..rule(id, exact("blue mug"), actions) };
    let url = |url: &str| Action::RedirectUrl(url.to_owned());
    let replace = |query: &str| Action::ReplaceQuery(query.to_owned());
    create(&server, prioritised("b", 5, vec![pin("i2", 1), url("/b"), replace("red mug")])).await;
    create(&server, prioritised("a", 5, vec![pin("i3", 1), url("/a")])).await;
    create(&server, prioritised("c", 9, vec![pin("none", 1), pin("i5", 2)])).await;
    create(&server, prioritised("d", 1, vec![url("/d"), replace("green mug"), pin("i3", 7)])).await;
    let response = search(&server, "blue mug").await;
    let info = response.info.as_ref().unwrap();
    assert_eq!(applied(Some(info)), ["c", "a", "b", "d"]);
    // The first pin of rank 1 that can be placed is that of `a`; that of `c` names an unknown item.
    assert_eq!(ids(&response)[..2], ["i3", "i5"]);
    assert_eq!(info.dropped_pin_item_ids, ["none", "i2", "i3"]);
    assert_eq!((&info.redirect_url[..], &response.corrected_query[..]), ("/a", "red mug"));
    let unused: Vec<&[i32]> = info.applied_rules.iter().map(|rule| &rule.unused_actions[..]).collect();
    assert_eq!(unused, [&[][..], &[], &[1], &[0, 1]]);
    // Pins of the request precede those of rules.
    let mut own = request("blue mug");
    let pins = vec![proto::Pin { item_id: "i8".to_owned(), rank: 1 }];
    own.options = Some(proto::RankingOptions { pins, ..Default::default() });
    assert_eq!(ids(&answer(&server, own).await)[..2], ["i8", "i5"]);
    // More boosts than there are bits: those beyond the limit are named.
    delete_all(&server).await;
    for number in 0..4 {
        let boosts = (0..15).map(|_| boost("in_stock", 1.01)).collect();
        create(&server, rule(&format!("r{number}"), exact("blue mug"), boosts)).await;
    }
    let info = search(&server, "blue mug").await.info.unwrap();
    let unused: Vec<usize> = info.applied_rules.iter().map(|rule| rule.unused_actions.len()).collect();
    assert_eq!(unused, [0, 0, 1, 15]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synonyms_apply_to_searches_corrections_pages_and_suggestions() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let found = async |server: &GrpcServer, query: &str| {
        let response = search(server, query).await;
        let is_full = response.results.first().map(|result| result.query_match()) == Some(proto::QueryMatch::AllWords);
        if is_full { response.total_size } else { 0 }
    };
    let mugs = found(&server, "mug").await;
    assert_eq!((mugs, found(&server, "goblet").await), (20, 0));
    let set = synonym_set("cups", &["goblet", "mug"], &[]);
    let request = proto::CreateSynonymSetRequest { synonym_set: Some(set.clone()) };
    let created =
        synonyms(&server).create_synonym_set(request.clone()).await.unwrap().into_inner().synonym_set.unwrap();
    assert_eq!(found(&server, "goblet").await, mugs);
    assert_eq!(reason(&synonyms(&server).create_synonym_set(request).await.unwrap_err()).1, "SYNONYM_SET_EXISTS");
    let one_way = synonym_set("night", &["night light"], &["lamp"]);
    let request = proto::CreateSynonymSetRequest { synonym_set: Some(one_way) };
    synonyms(&server).create_synonym_set(request).await.unwrap();
    assert_eq!(found(&server, "Night-Light").await, 20);
    let suggest = proto::SuggestRequest {
        viewer: Some(proto::Viewer { user_id: "s".to_owned(), ..Default::default() }),
        prefix: "goblet num".to_owned(),
        ..Default::default()
    };
    assert!(!ranking(&server).suggest(suggest).await.unwrap().into_inner().products.is_empty());
    // Later pages are found by the same synonyms.
    let first = search_by(&server.engine, "p", "goblet", "", 12).await.unwrap();
    let second = search_by(&server.engine, "p", "goblet", &first.next_page_token, 12).await.unwrap();
    assert_eq!((first.results.len(), second.results.len()), (12, 8));

    let changed = proto::SynonymSet { synonyms: synonym_set("", &["goblet", "lamp"], &[]).synonyms, ..created.clone() };
    let request = proto::UpdateSynonymSetRequest { synonym_set: Some(changed) };
    let updated =
        synonyms(&server).update_synonym_set(request.clone()).await.unwrap().into_inner().synonym_set.unwrap();
    assert_eq!(reason(&synonyms(&server).update_synonym_set(request).await.unwrap_err()).1, "ETAG_MISMATCH");
    let titles = search(&server, "red goblet").await;
    assert!(ids(&titles).iter().take(3).all(|id| id[1..].parse::<usize>().unwrap() % 2 == 1), "{:?}", ids(&titles));
    server.end().await;

    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    assert_eq!(found(&server, "goblet").await, 20, "after a restart");
    let listed =
        synonyms(&server).list_synonym_sets(proto::ListSynonymSetsRequest::default()).await.unwrap().into_inner();
    let sets: Vec<&str> = listed.synonym_sets.iter().map(|set| set.synonym_set_id.as_str()).collect();
    assert_eq!((sets, listed.total_size), (vec!["cups", "night"], 2));
    assert_eq!(listed.synonym_sets[0], updated);
    let request = proto::DeleteSynonymSetRequest { synonym_set_id: "cups".to_owned(), etag: updated.etag };
    synonyms(&server).delete_synonym_set(request.clone()).await.unwrap();
    assert_eq!(found(&server, "goblet").await, 0);
    assert_eq!(reason(&synonyms(&server).delete_synonym_set(request).await.unwrap_err()).1, "SYNONYM_SET_NOT_FOUND");
    let request = proto::GetSynonymSetRequest { synonym_set_id: "cups".to_owned() };
    assert_eq!(reason(&synonyms(&server).get_synonym_set(request).await.unwrap_err()).0, Code::NotFound);
    for (set, fields) in [
        (synonym_set("", &["a"], &[]), vec!["synonym_set.synonym_set_id", "synonym_set.synonyms.terms"]),
        (
            synonym_set("s", &["!", "a b c d e f g h i"], &[""]),
            vec![
                "synonym_set.synonyms.terms[0]",
                "synonym_set.synonyms.terms[1]",
                "synonym_set.synonyms.replacements[0]",
            ],
        ),
        (proto::SynonymSet { synonym_set_id: "s".to_owned(), ..Default::default() }, vec!["synonym_set.synonyms"]),
    ] {
        let request = proto::CreateSynonymSetRequest { synonym_set: Some(set) };
        let refused = violations(&synonyms(&server).create_synonym_set(request).await.unwrap_err());
        assert_eq!(refused.iter().map(|(field, _)| &field[..]).collect::<Vec<_>>(), fields, "{refused:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_rule_is_refused_with_field_value_and_limit() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let time = |seconds: i64| Some(Timestamp { seconds, nanos: 0 });
    let text = str::to_owned;
    // All at once.
    let condition = proto::RuleCondition {
        queries: vec![
            query(Kind::Exact(text(" "))),
            query(Kind::Contains("x".repeat(201))),
            query(Kind::Regex(text("(a"))),
            query(Kind::Regex(text("(a{1000}){1000}"))),
            proto::QueryCondition { kind: None },
        ],
        categories: vec![String::new()],
        audiences: vec![String::new()],
        platforms: vec![99],
        request_types: vec![0],
        start_time: time(2000),
        end_time: time(1000),
        serving_configs: vec![text("no spaces")],
    };
    let actions = vec![
        pin("i1", 3),
        pin("i2", 3),
        pin("i1", 0),
        boost("colour = \"red\"", 0.0),
        Action::Bury(String::new()),
        Action::Hide(text("price <")),
        Action::RedirectUrl(text("javascript:alert(1)")),
        Action::RedirectUrl(text("//evil.test")),
        Action::Banner(String::new()),
        Action::AddSynonyms(proto::SynonymTerms { terms: vec![text("a")], ..Default::default() }),
    ];
    let bad = proto::Rule { title: "x".repeat(201), priority: 1001, ..rule("no spaces", Some(condition), actions) };
    let status = try_create(&server, bad.clone()).await.unwrap_err();
    let refused = violations(&status);
    let omitted: usize = (status.get_error_details().error_info().unwrap().metadata.get("omitted_violations"))
        .map_or(0, |count| count.parse().unwrap());
    let expected = [
        ("rule.rule_id", "`no spaces` is not a name of 1 to 64 characters"),
        ("rule.title", "has 201 characters; the limit is 200"),
        ("rule.priority", "is 1001; it must be within -1000 and 1000"),
        ("rule.condition.queries[0].exact", "is empty; it must have 1 to 200 characters"),
        ("rule.condition.queries[1].contains", "has 201 characters; the limit is 200"),
        ("rule.condition.queries[2].regex", "`(a` is not a regular expression: unclosed group"),
        ("rule.condition.queries[3].regex", "when compiled"),
        ("rule.condition.queries[4]", "is empty; set exact, prefix, contains or regex"),
        ("rule.condition.categories[0]", "is empty"),
        ("rule.condition.audiences[0]", "has 0 bytes; it must have 1 to 64"),
        ("rule.condition.platforms[0]", "99 is not a Platform"),
        ("rule.condition.request_types[0]", "0 is not a RuleRequestType"),
        ("rule.condition.end_time", "is 1000000 ms since 1970, not after the start_time 2000000"),
        ("rule.actions[1].pin.rank", "is 3, the rank of actions[0]; a rank takes one pin"),
        ("rule.actions[2].pin.item_id", "is `i1`, the item of actions[0]; an item takes one pin"),
        ("rule.actions[2].pin.rank", "is 0; it must be within 1 and 200"),
        ("rule.actions[3].boost.factor", "is 0; it must be within 0.000001 and 100"),
        ("rule.actions[3].boost.filter", "at character 0: unknown field colour"),
        ("rule.actions[4].bury", "is empty; it must select items"),
        ("rule.actions[5].hide", "at character 7"),
        ("rule.actions[6].redirect_url", "`javascript:alert(1)` is neither an http or https URL"),
        ("rule.actions[7].redirect_url", "is the second one, after that of actions[6]"),
        ("rule.actions[7].redirect_url", "`//evil.test` is neither an http or https URL"),
        ("rule.actions[8].banner", "is empty; it must have 1 to 10000 characters"),
        ("rule.actions[9].add_synonyms.terms", "has 1 terms; without replacements it must have at least 2"),
        ("rule.condition.serving_configs[0]", "there is no serving configuration `no spaces`; the server has default"),
    ];
    assert_eq!(refused.len() + omitted, expected.len(), "{refused:?}");
    for ((field, description), (wanted, part)) in refused.iter().zip(expected) {
        assert_eq!(field, wanted, "{description}");
        assert!(description.contains(part), "{field}: {description}");
    }
    // Those that did not fit into the status, alone.
    let rest = rule("r", exact("q"), Vec::new());
    let rest = proto::Rule { actions: bad.actions[3..].to_vec(), ..rest };
    let refused = violations(&try_create(&server, rest).await.unwrap_err());
    assert_eq!(refused.len(), 9, "{refused:?}");

    for (rule, field) in [
        (rule("r", None, Vec::new()), "rule.actions"),
        (rule("r", None, vec![Action::ReplaceQuery(text("mug"))]), "rule.actions[0].replace_query"),
        (rule("r", None, (0..21).map(|_| Action::Bury(text("in_stock"))).collect()), "rule.actions"),
        (proto::Rule { actions: vec![proto::RuleAction::default()], ..rule("r", None, Vec::new()) }, "rule.actions[0]"),
        (rule("r", None, vec![Action::Hide(text("colour = \"red\""))]), "rule.actions[0].hide"),
        (rule("r", None, vec![Action::RedirectUrl(text("sale"))]), "rule.actions[0].redirect_url"),
        (rule("r", exact("x"), vec![Action::ReplaceQuery(String::new())]), "rule.actions[0].replace_query"),
        (rule("r", exact("x"), vec![Action::ReplaceQuery(text("!?!"))]), "rule.actions[0].replace_query"),
        (rule("r", None, vec![boost("in_stock", 1e-50)]), "rule.actions[0].boost.factor"),
        (rule("r", in_category(">"), vec![boost("in_stock", 2.0)]), "rule.condition.categories[0]"),
        (rule("r", in_category("Home > "), vec![boost("in_stock", 2.0)]), "rule.condition.categories[0]"),
    ] {
        let refused = violations(&try_create(&server, rule.clone()).await.unwrap_err());
        assert_eq!(refused.iter().map(|(field, _)| &field[..]).collect::<Vec<_>>(), [field], "{refused:?}");
        let preview = proto::PreviewRuleRequest { rule: Some(rule), answer_count: -1 };
        let refused = violations(&rules(&server).preview_rule(preview).await.unwrap_err());
        assert_eq!(refused.iter().map(|(field, _)| &field[..]).collect::<Vec<_>>(), [field, "answer_count"]);
    }
    let missing = rules(&server).create_rule(proto::CreateRuleRequest { rule: None }).await.unwrap_err();
    assert_eq!(violations(&missing), [("rule".to_owned(), "is missing".to_owned())]);
    assert!(listed(&server, 10).await.is_empty(), "nothing was stored");
    // A nested repetition that would backtrack in other engines takes linear time here.
    let evil = proto::RuleCondition { queries: vec![query(Kind::Regex(text("^(a+)+$")))], ..Default::default() };
    create(&server, rule("evil", Some(evil), vec![pin("i1", 1)])).await;
    assert!(applied_to(&server, request(&format!("{}!", "a".repeat(199)))).await.is_empty());
    assert_eq!(applied_to(&server, request(&"a".repeat(200))).await, ["evil"]);
    assert!(applied_to(&server, request(&"a".repeat(201))).await.is_empty(), "longer queries are not compared");
    server.end().await;
}

/// Rules that are each within their limits must not make answers slow or too long to be received.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_apply_together_have_limits() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    for number in 0..13 {
        let hide = (0..20).map(|at| Action::Hide(format!("price = {}", 1_000_000 + number * 20 + at)));
        create(&server, rule(&format!("hide-{number:02}"), None, hide.collect())).await;
        let banners = (0..20).map(|_| Action::Banner("杯".repeat(10_000)));
        create(&server, rule(&format!("tell-{number:02}"), None, banners.collect())).await;
    }
    let response = search(&server, "mug").await;
    assert!(!response.results.is_empty());
    let info = response.info.unwrap();
    let used = |prefix: &str| {
        let rules = info.applied_rules.iter().filter(|rule| rule.rule_id.starts_with(prefix));
        rules.map(|rule| 20 - rule.unused_actions.len()).sum::<usize>()
    };
    // 200 filters, and banners of 30,000 bytes each within 256 KiB.
    assert_eq!((used("hide"), used("tell"), info.banners.len()), (200, 8, 8));
    delete_all(&server).await;

    // Fewer than 500 of these expressions have 1 MiB when compiled.
    let classes = |prefix: &str| proto::RuleCondition {
        queries: (0..50).map(|at| query(Kind::Regex(format!("{prefix}{at}[a-z ]{{80}}x")))).collect(),
        ..Default::default()
    };
    let mut refused = Vec::new();
    for number in 0..10 {
        let condition = Some(classes(&format!("r{number}")));
        if let Err(status) = try_create(&server, rule(&format!("r{number}"), condition, vec![pin("i1", 1)])).await {
            refused = violations(&status);
            break;
        }
    }
    let [(field, description)] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!(field, "rule.condition.queries");
    assert!(description.contains("more than 1048576 bytes when compiled"), "{description}");

    let set = |number: usize| {
        let terms: Vec<String> = (0..63).map(|at| format!("word{number}n{at}")).chain(["heart".to_owned()]).collect();
        synonym_set(&format!("s{number}"), &terms.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    };
    let put = async |set: proto::SynonymSet| {
        let request = proto::CreateSynonymSetRequest { synonym_set: Some(set) };
        synonyms(&server).create_synonym_set(request).await
    };
    for number in 0..4 {
        put(set(number)).await.unwrap();
    }
    let refused = violations(&put(set(4)).await.unwrap_err());
    let description = "`heart` would have 320 meanings in all; the limit is 256";
    assert_eq!(refused, [("synonym_set.synonyms.terms".to_owned(), description.to_owned())]);
    // A set does not count twice when it is replaced.
    let request = proto::UpdateSynonymSetRequest { synonym_set: Some(set(3)) };
    synonyms(&server).update_synonym_set(request).await.unwrap();
    server.end().await;
}

/// Writes clicks on the results of an answer.
async fn click(server: &GrpcServer, user: &str, response: &proto::SearchResponse, count: usize) {
    let events = response.results.iter().take(count).map(|result| proto::Event {
        event_id: format!("{}-{}", response.attribution_token, result.item_id),
        r#type: proto::EventType::Click.into(),
        viewer: Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() }),
        lines: vec![proto::EventLine { item_id: result.item_id.clone(), ..Default::default() }],
        attribution_token: response.attribution_token.clone(),
        ..Default::default()
    });
    let request = proto::WriteEventsRequest { events: events.collect() };
    EventServiceClient::new(server.channel.clone()).write_events(request).await.unwrap();
}

async fn preview(server: &GrpcServer, rule: proto::Rule) -> proto::PreviewRuleResponse {
    let request = proto::PreviewRuleRequest { rule: Some(rule), answer_count: 0 };
    rules(server).preview_rule(request).await.unwrap().into_inner()
}

/// Answers 40 searches of different users, of which every second one clicks on the first result, and waits until the
/// log has them.
async fn log_answers(server: &GrpcServer) {
    for user in 0..40 {
        let viewer = proto::Viewer { user_id: format!("u{user}"), ..Default::default() };
        let search = proto::SearchRequest { viewer: Some(viewer), page_size: 5, ..request("blue mug") };
        let response = answer(server, search).await;
        if user % 2 == 0 {
            click(server, &format!("u{user}"), &response, 1).await;
        }
    }
    wait_for_answers(server, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_reports_changed_slots_and_refuses_effects_that_the_log_does_not_have() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    log_answers(&server).await;
    let now = UnixMillis::now().0 / 1000;
    let later = proto::RuleCondition {
        start_time: Some(Timestamp { seconds: now + 1000, nanos: 0 }),
        ..exact("blue mug").unwrap()
    };
    let same = preview(&server, rule("p", Some(later), vec![Action::Banner("x".to_owned())])).await;
    assert_eq!((same.answer_count, same.matched_answer_count, same.changed_slot_count), (40, 40, 0));
    assert_eq!((same.slot_count, same.left_out_answer_count), (200, 0));
    let clicks = &same.estimates[0];
    assert_eq!((clicks.reward(), clicks.slot_count), (proto::RewardType::Click, 200));
    assert!((clicks.shown - 0.1).abs() < 1e-9, "20 clicks on 200 slots: {clicks:?}");
    let (low, high) = (clicks.low.unwrap(), clicks.high.unwrap());
    assert!((clicks.estimate.unwrap() - 0.1).abs() < 1e-9 && low < 0.1 && high > 0.1, "{clicks:?}");
    assert_eq!((same.estimates[1].reward(), same.estimates[1].shown), (proto::RewardType::Purchase, 0.0));
    let visits = &same.estimates[2];
    assert!(visits.estimate.is_none() && !visits.refusal.is_empty(), "answers are younger than 14 days: {visits:?}");

    let pinned = preview(&server, rule("p", exact("blue mug"), vec![pin("i39", 1)])).await;
    assert_eq!((pinned.changed_answer_count, pinned.pages.len()), (40, 10));
    assert_eq!(pinned.pages[0].new_item_ids[0], "i39");
    assert_eq!(pinned.pages[0].new_item_ids[1..5], pinned.pages[0].item_ids[..4]);
    assert_eq!((&pinned.pages[0].query[..], pinned.pages[0].answer_id.len()), ("blue mug", 36));
    assert!(pinned.estimates[0].refusal.contains("could not show there"), "{:?}", pinned.estimates[0]);
    let first = pinned.pages[0].item_ids[0].clone();
    let hidden =
        preview(&server, rule("p", exact("blue mug"), vec![Action::Hide(format!("item_id = \"{first}\""))])).await;
    assert!(hidden.pages[0].new_item_ids.iter().all(|id| *id != first), "{:?}", hidden.pages[0]);
    let other = preview(&server, rule("p", exact("red lamp"), vec![pin("i39", 1)])).await;
    assert_eq!((other.answer_count, other.matched_answer_count), (40, 0));
    let redirect = preview(&server, rule("p", exact("blue mug"), vec![Action::RedirectUrl("/x".to_owned())])).await;
    assert_eq!((redirect.left_out_answer_count, redirect.left_out_reasons[0].answer_count), (40, 40));
    assert!(redirect.left_out_reasons[0].reason.contains("redirects"));
    assert!(listed(&server, 10).await.is_empty(), "a preview stores nothing");
    // Answers to which the rule applied already are left out.
    create(&server, rule("p", exact("blue mug"), vec![pin("i39", 1)])).await;
    search(&server, "blue mug").await;
    wait_until("the answer is logged", Duration::from_secs(30), async || {
        preview(&server, rule("p", exact("blue mug"), vec![pin("i38", 1)])).await.left_out_answer_count == 1
    })
    .await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_suggest_and_rank_do_not_use_up_the_answers_of_a_preview() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    log_answers(&server).await;
    let viewer = Some(proto::Viewer { user_id: "u1".to_owned(), ..Default::default() });
    for number in 0..30 {
        let typed = proto::SuggestRequest { viewer: viewer.clone(), prefix: "blu".to_owned(), ..Default::default() };
        ranking(&server).suggest(typed).await.unwrap();
        let candidate = proto::RankCandidate { item_id: format!("i{number}"), ..Default::default() };
        let ranked = proto::RankRequest { viewer: viewer.clone(), candidates: vec![candidate], ..Default::default() };
        ranking(&server).rank(ranked).await.unwrap();
    }
    // Records are written in the order of their answers, so the others are in the log when this one is.
    answer(&server, request("red lamp")).await;
    wait_for_answers(&server, 41).await;
    for (count, found) in [(0, 41), (41, 41), (7, 7)] {
        let rule = rule("p", exact("blue mug"), vec![pin("i39", 1)]);
        let request = proto::PreviewRuleRequest { rule: Some(rule), answer_count: count };
        let preview = rules(&server).preview_rule(request).await.unwrap().into_inner();
        assert_eq!((preview.answer_count, preview.matched_answer_count), (found, found - 1), "of {count}");
        let config = proto::ServingConfig { serving_config_id: "c".to_owned(), ..Default::default() };
        let request = proto::PreviewServingConfigRequest { serving_config: Some(config), answer_count: count };
        let mut configs = ServingConfigServiceClient::new(server.channel.clone());
        let preview = configs.preview_serving_config(request).await.unwrap().into_inner();
        assert_eq!((preview.answer_count, preview.left_out_answer_count), (found, 0), "of {count}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_estimates_the_effect_of_a_rule_from_answers_that_explored() {
    let shop = Shop::new();
    let exploration = Exploration { temperature: 20.0, first_slot: 1, top: 3, share: 1.0, ..Exploration::default() };
    let config = ServingConfig { exploration: Some(exploration), ..ServingConfig::default() };
    let server = GrpcServer::start(shop.open_serving(Serving::of(config))).await;
    // Only the item that the order without exploration shows third is ever clicked, and only in the first slot.
    let organic = preview_pages(&server).await;
    let third = organic[2].clone();
    for user in 0..240 {
        let viewer = proto::Viewer { user_id: format!("v{user}"), ..Default::default() };
        let search = proto::SearchRequest { viewer: Some(viewer), page_size: 3, ..request("blue mug") };
        let response = answer(&server, search).await;
        if response.results[0].item_id == third {
            click(&server, &format!("v{user}"), &response, 1).await;
        }
    }
    let rule = rule("p", exact("blue mug"), vec![boost(&format!("item_id = \"{third}\""), 100.0)]);
    wait_for_answers(&server, 241).await;
    let boosted = preview(&server, rule).await;
    assert!(boosted.changed_answer_count > 20, "{boosted:?}");
    let clicks = &boosted.estimates[0];
    let (estimate, low, high) =
        (clicks.estimate.unwrap_or_else(|| panic!("{clicks:?}")), clicks.low.unwrap(), clicks.high.unwrap());
    // About a third of the answers show it first; with the rule all do, so one of three slots is clicked.
    assert!((0.06..0.2).contains(&clicks.shown) && estimate > 2.0 * clicks.shown, "{clicks:?}");
    assert!(low < 0.333 && high > 0.333, "{clicks:?}");
    server.end().await;
}

/// Waits until the log has as many answers.
async fn wait_for_answers(server: &GrpcServer, count: i32) {
    wait_until("the answers are logged", Duration::from_secs(30), async || {
        preview(server, rule("p", None, vec![Action::Banner("x".to_owned())])).await.answer_count >= count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_previewed_pin_shows_what_the_answer_could_show_and_one_variant_of_a_product() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut catalog = CatalogServiceClient::new(server.channel.clone());
    let item = |id: &str, group: &str, price: i64, stock: i64| proto::Item {
        item_id: id.to_owned(),
        group_id: group.to_owned(),
        title: "violet parasol".to_owned(),
        price_micros: Some(price * 1_000_000),
        stock_quantity: Some(stock),
        ..Default::default()
    };
    let items = vec![
        item("small", "parasol", 10, 5),
        item("large", "parasol", 30, 5),
        item("beach", "", 20, 5),
        item("garden", "", 25, 5),
        item("sold-out", "", 10, 0),
        item("costly", "", 900, 5),
    ];
    let written = catalog.upsert_items(proto::UpsertItemsRequest { items, update_time: None }).await.unwrap();
    assert!(written.into_inner().results.iter().all(|result| result.violations.is_empty()));
    let search = proto::SearchRequest {
        filter: "price < 100".to_owned(),
        options: Some(proto::RankingOptions { exclude_item_ids: vec!["garden".to_owned()], ..Default::default() }),
        page_size: 3,
        ..request("violet parasol")
    };
    let shown = answer(&server, search.clone()).await;
    let shown = ids(&shown).into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert!(shown.contains(&"beach".to_owned()) && shown.iter().filter(|id| *id != "beach").count() >= 1, "{shown:?}");
    wait_for_answers(&server, 1).await;
    let pinned = async |id: &str, rank: i32| {
        let preview = preview(&server, rule("p", exact("violet parasol"), vec![pin(id, rank)])).await;
        assert_eq!((preview.matched_answer_count, preview.left_out_answer_count), (1, 0), "{preview:?}");
        preview.pages.first().map_or(shown.clone(), |page| page.new_item_ids.clone())
    };
    for unseen in ["costly", "garden", "sold-out"] {
        assert_eq!(pinned(unseen, 1).await, shown, "{unseen} cannot be in that answer");
    }
    let variant = ["small", "large"].into_iter().find(|id| !shown.contains(&(*id).to_owned())).unwrap();
    let page = pinned(variant, 1).await;
    assert_eq!(page[0], variant);
    assert_eq!(page.iter().filter(|id| ["small", "large"].contains(&id.as_str())).count(), 1, "{page:?}");
    let of_group = pinned("parasol", 1).await;
    assert!(["small", "large"].contains(&of_group[0].as_str()) && shown.contains(&of_group[0]), "{of_group:?}");

    // What was deleted since is neither hidden nor moved.
    catalog.delete_items(proto::DeleteItemsRequest { item_ids: vec!["beach".to_owned()] }).await.unwrap();
    let hiding = vec![Action::Hide("price > 500".to_owned())];
    let hidden = preview(&server, rule("p", exact("violet parasol"), hiding)).await;
    assert_eq!((hidden.matched_answer_count, hidden.changed_slot_count), (1, 0), "{hidden:?}");

    // A rule that has changed since may have hidden what the pin would show.
    let kept = vec![Action::Filter("price < 15".to_owned())];
    create(&server, rule("cheap", exact("violet parasol"), kept)).await;
    let cheap = answer(&server, search).await;
    assert_eq!(ids(&cheap), ["small"]);
    wait_for_answers(&server, 2).await;
    let both = preview(&server, rule("p", exact("violet parasol"), vec![pin("large", 1)])).await;
    assert_eq!((both.matched_answer_count, both.left_out_answer_count, both.changed_answer_count), (2, 0, 1));
    delete(&server, "cheap", "").await.unwrap();
    let unknown = preview(&server, rule("p", exact("violet parasol"), vec![pin("large", 1)])).await;
    assert_eq!(unknown.left_out_answer_count, 1);
    assert!(unknown.left_out_reasons[0].reason.contains("a rule that applied to it has changed"), "{unknown:?}");
    server.end().await;
}

/// Returns the page of a logged answer without exploration.
async fn preview_pages(server: &GrpcServer) -> Vec<String> {
    let viewer = proto::Viewer { user_id: "first".to_owned(), ..Default::default() };
    answer(server, proto::SearchRequest { viewer: Some(viewer), page_size: 3, ..request("blue mug") }).await;
    let mut page = Vec::new();
    wait_until("the answer is logged", Duration::from_secs(30), async || {
        let pinned = preview(server, rule("p", None, vec![pin("i39", 1)])).await;
        page = pinned.pages.first().map_or(Vec::new(), |page| page.item_ids.clone());
        !page.is_empty()
    })
    .await;
    page
}

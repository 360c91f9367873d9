//! Serving configurations over gRPC: changes, the file and its experiments, refusals, durability, replays.
use crate::support::{
    bundles::{Shop, item_id},
    grpc::GrpcServer,
    status::{reason, violations},
    wait::wait_until,
};
use lodestone::server::proto::{
    self, ServingConfigSource, explain_service_client::ExplainServiceClient,
    ranking_service_client::RankingServiceClient, rule_action::Action, rule_service_client::RuleServiceClient,
    serving_config_service_client::ServingConfigServiceClient,
};
use lodestone_core::units::UnixMillis;
use lodestone_engine::OpenError;
use lodestone_events::log::{self, CompactMode, Retention};
use lodestone_pipeline::serving::{Serving, ServingConfig};
use lodestone_rollout::HealthBounds;
use std::{collections::BTreeSet, path::Path, time::Duration};
use tonic::{Code, Status, transport::Channel};

fn configs(server: &GrpcServer) -> ServingConfigServiceClient<Channel> {
    ServingConfigServiceClient::new(server.channel.clone())
}

fn ranking(server: &GrpcServer) -> RankingServiceClient<Channel> {
    RankingServiceClient::new(server.channel.clone())
}

fn config(id: &str) -> proto::ServingConfig {
    proto::ServingConfig { serving_config_id: id.to_owned(), ..Default::default() }
}

async fn create(server: &GrpcServer, config: proto::ServingConfig) -> Result<proto::ServingConfig, Status> {
    let request = proto::CreateServingConfigRequest { serving_config: Some(config) };
    Ok(configs(server).create_serving_config(request).await?.into_inner().serving_config.unwrap())
}

async fn update(server: &GrpcServer, config: proto::ServingConfig) -> Result<proto::ServingConfig, Status> {
    let request = proto::UpdateServingConfigRequest { serving_config: Some(config) };
    Ok(configs(server).update_serving_config(request).await?.into_inner().serving_config.unwrap())
}

async fn get(server: &GrpcServer, id: &str) -> Result<proto::ServingConfig, Status> {
    let request = proto::GetServingConfigRequest { serving_config_id: id.to_owned() };
    Ok(configs(server).get_serving_config(request).await?.into_inner().serving_config.unwrap())
}

async fn delete(server: &GrpcServer, id: &str, etag: &str) -> Result<(), Status> {
    let request = proto::DeleteServingConfigRequest { serving_config_id: id.to_owned(), etag: etag.to_owned() };
    configs(server).delete_serving_config(request).await.map(drop)
}

/// Returns all configurations, page by page.
async fn listed(server: &GrpcServer, page_size: i32) -> Vec<proto::ServingConfig> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = proto::ListServingConfigsRequest { page_size, page_token };
        let page = configs(server).list_serving_configs(request).await.unwrap().into_inner();
        all.extend(page.serving_configs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            assert_eq!(page.total_size as usize, all.len());
            return all;
        }
    }
}

fn ids(configs: &[proto::ServingConfig]) -> Vec<&str> {
    configs.iter().map(|config| config.serving_config_id.as_str()).collect()
}

/// Searches with a configuration; without a name, as the experiments and the default have it.
async fn try_search(server: &GrpcServer, user: &str, named: &str) -> Result<proto::SearchResponse, Status> {
    let request = proto::SearchRequest {
        viewer: Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() }),
        query: "blue mug".to_owned(),
        page_size: 40,
        options: Some(proto::RankingOptions { serving_config: named.to_owned(), ..Default::default() }),
        ..Default::default()
    };
    Ok(ranking(server).search(request).await?.into_inner())
}

async fn search(server: &GrpcServer, named: &str) -> proto::SearchResponse {
    try_search(server, "searcher", named).await.unwrap()
}

/// Name and etag of the configuration of an answer.
fn named(response: &proto::SearchResponse) -> (&str, &str) {
    let info = response.info.as_ref().unwrap();
    (&info.serving_config, &info.serving_config_etag)
}

/// Reads a serving file.
fn serving(directory: &Path, text: &str) -> Serving {
    let path = directory.join("serving.toml");
    std::fs::write(&path, text).unwrap();
    Serving::open(&path, &ServingConfig::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_is_in_effect_when_it_is_acknowledged_and_survives_restarts_and_compaction() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let plain = search(&server, "").await;
    assert_eq!(named(&plain), ("default", ""), "the built-in default has no etag");
    let unknown = try_search(&server, "searcher", "retrieval").await.unwrap_err();
    assert_eq!(reason(&unknown), (Code::NotFound, "SERVING_CONFIG_NOT_FOUND".to_owned()));

    let retrieval = proto::ServingConfig { ranker: Some(false), candidates: Some(7), ..config("retrieval") };
    let created = create(&server, retrieval).await.unwrap();
    assert!(created.create_time.is_some() && created.create_time == created.update_time && created.etag.len() == 16);
    assert_eq!(created.source(), ServingConfigSource::Api);
    let response = search(&server, "retrieval").await;
    assert_eq!(named(&response), ("retrieval", &created.etag[..]));
    assert_eq!(response.info.as_ref().unwrap().ranked_count, 0, "the ranking model does not run");
    assert!(plain.info.as_ref().unwrap().ranked_count > 7);
    assert_eq!(server.metric("serving_config_answers_total{serving_config=\"retrieval\"}"), Some(1));

    // An update needs the current etag. Its answers differ; earlier ones can still be replayed.
    let ranked = proto::ServingConfig { ranker: None, ..created.clone() };
    let updated = update(&server, ranked.clone()).await.unwrap();
    assert_eq!((updated.create_time, updated.etag == created.etag), (created.create_time, false));
    let stale = update(&server, ranked).await.unwrap_err();
    assert_eq!(reason(&stale), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    assert!(stale.message().contains(&updated.etag), "{stale:?}");
    assert_eq!(reason(&delete(&server, "retrieval", &created.etag).await.unwrap_err()).0, Code::Aborted);
    let after = search(&server, "retrieval").await;
    assert_eq!((named(&after), after.info.as_ref().unwrap().ranked_count), (("retrieval", &updated.etag[..]), 7));
    assert_eq!(get(&server, "retrieval").await.unwrap(), updated);
    for (answer, etag) in [(&response, &created.etag), (&after, &updated.etag)] {
        let attribution_token = answer.attribution_token.clone();
        let mut explain = ExplainServiceClient::new(server.channel.clone());
        let mut replayed = None;
        wait_until("the record is readable", Duration::from_secs(60), async || {
            let request = proto::ReplayAnswerRequest { attribution_token: attribution_token.clone() };
            replayed = explain.replay_answer(request).await.ok();
            replayed.is_some()
        })
        .await;
        let replayed = replayed.unwrap().into_inner();
        assert!(replayed.identical, "{}", replayed.first_difference);
        assert_eq!(
            (&replayed.serving_configs[..], &replayed.serving_config_etags[..]),
            (&["retrieval".to_owned()][..], std::slice::from_ref(etag))
        );
    }

    // The default can be replaced, and is the built-in one again without its entry.
    let default = create(&server, proto::ServingConfig { candidates: Some(3), ..config("default") }).await.unwrap();
    assert_eq!(named(&search(&server, "").await), ("default", &default.etag[..]));
    delete(&server, "default", &default.etag).await.unwrap();
    assert_eq!(named(&search(&server, "").await), ("default", ""));

    let again = create(&server, config("retrieval")).await.unwrap_err();
    assert_eq!(reason(&again), (Code::AlreadyExists, "SERVING_CONFIG_EXISTS".to_owned()));
    for unknown in [
        update(&server, config("none")).await.unwrap_err(),
        get(&server, &"x".repeat(9000)).await.unwrap_err(),
        delete(&server, "none", "").await.unwrap_err(),
    ] {
        assert_eq!(reason(&unknown), (Code::NotFound, "SERVING_CONFIG_NOT_FOUND".to_owned()));
    }
    for number in 0..4 {
        create(&server, config(&format!("extra-{number}"))).await.unwrap();
    }
    delete(&server, "extra-2", "").await.unwrap();
    let expected = ["extra-0", "extra-1", "extra-3", "retrieval"];
    assert_eq!(ids(&listed(&server, 2).await), expected);
    assert_eq!(server.metric("serving_configs"), Some(4));
    let foreign = proto::ListServingConfigsRequest { page_size: 1, page_token: "x".to_owned() };
    let foreign = configs(&server).list_serving_configs(foreign).await.unwrap_err();
    assert_eq!(reason(&foreign).1, "PAGE_TOKEN_INVALID");
    server.end().await;

    for is_compacted in [false, true] {
        let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
        assert_eq!(ids(&listed(&server, 1000).await), expected, "compacted: {is_compacted}");
        assert_eq!(named(&search(&server, "retrieval").await), ("retrieval", &updated.etag[..]));
        assert_eq!(get(&server, "retrieval").await.unwrap(), updated);
        server.end().await;
        let mut compacted = None;
        wait_until("the log is released", Duration::from_secs(60), async || {
            let path = shop.data_path().join("log");
            compacted = log::compact(path.as_path(), &Retention::default(), UnixMillis::now(), CompactMode::Apply).ok();
            compacted.is_some()
        })
        .await;
        // The first content of `retrieval`, and `default` and `extra-2` with their deletions.
        let dropped = if is_compacted { 0 } else { 5 };
        assert_eq!(compacted.map(|compacted| compacted.rule_changes), Some(dropped));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_violations_of_a_configuration_are_reported_together_with_their_fields() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let exploration = proto::Exploration {
        temperature: f64::NAN,
        first_slot: Some(0),
        top: Some(251),
        epsilon_slots: vec![201, 200],
        epsilon: Some(1.1),
        epsilon_candidates: Some(-1),
        share: Some(0.0),
    };
    let wrong = proto::ServingConfig {
        source_candidates: Some(0),
        candidates: Some(1001),
        query_cosine_min: Some(-1.5),
        diversity: Some(f64::NAN),
        repeat_fraction: Some(2.0),
        sold_out: 9,
        ranker: Some(false),
        head_weights: [("purchase".to_owned(), 1e9), ("luck".to_owned(), 1.0)].into(),
        exploration: Some(exploration),
        ..config("no spaces")
    };
    let refused = violations(&create(&server, wrong.clone()).await.unwrap_err());
    let fields: BTreeSet<&str> = refused.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "serving_config_id",
        "source_candidates",
        "candidates",
        "query_cosine_min",
        "diversity",
        "repeat_fraction",
        "sold_out",
        "head_weights.purchase",
        "head_weights.luck",
        "head_weights",
        "exploration.temperature",
        "exploration.first_slot",
        "exploration.top",
        "exploration.epsilon_slots[0]",
        "exploration.epsilon_slots",
        "exploration.epsilon",
        "exploration.epsilon_candidates",
        "exploration.share",
    ];
    let expected: Vec<String> = expected.iter().map(|field| format!("serving_config.{field}")).collect();
    assert_eq!(fields, expected.iter().map(String::as_str).collect());
    let described = |field: &str| refused.iter().find(|(found, _)| found == field).map(|(_, text)| text.as_str());
    assert_eq!(described("serving_config.candidates"), Some("is 1001; it must be within 1 and 1000"));
    let luck = described("serving_config.head_weights.luck").unwrap();
    assert!(luck.contains("the bundle a has no head of this name; it has"), "{luck}");
    assert_eq!(violations(&update(&server, wrong).await.unwrap_err()), refused, "an update is checked alike");
    let idle = proto::ServingConfig { exploration: Some(proto::Exploration::default()), ..config("idle") };
    let refused = violations(&create(&server, idle).await.unwrap_err());
    assert!(refused[0].1.contains("explores nothing"), "{refused:?}");
    let missing = configs(&server).create_serving_config(proto::CreateServingConfigRequest::default()).await;
    assert_eq!(violations(&missing.unwrap_err())[0].0, "serving_config");
    assert!(listed(&server, 0).await.is_empty(), "nothing of a refused configuration is stored");

    for number in 0..100 {
        create(&server, config(&format!("c{number}"))).await.unwrap();
    }
    let many = create(&server, config("c100")).await.unwrap_err();
    assert_eq!(reason(&many), (Code::ResourceExhausted, "TOO_MANY_SERVING_CONFIGS".to_owned()));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_of_the_file_are_read_only_and_those_that_are_in_use_stay() {
    let shop = Shop::new();
    let directory = tempfile::tempdir().unwrap();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    for id in ["b", "mixed"] {
        create(&server, config(id)).await.unwrap();
    }
    server.end().await;

    let file = serving(
        directory.path(),
        r#"
        [configs.of_file]
        diversity = 0.25
        [[experiments]]
        name = "half"
        arms = [{ name = "a", config = "of_file", share = 0.4 }, { name = "b", config = "b", share = 0.4 }]
        [[experiments]]
        name = "merged"
        interleave = ["of_file", "mixed"]
        "#,
    );
    let server = GrpcServer::start(shop.reopen_serving(file.clone()).await).await;
    let all = listed(&server, 0).await;
    assert_eq!(ids(&all), ["b", "mixed", "of_file"]);
    let of_file = &all[2];
    assert_eq!((of_file.source(), of_file.diversity), (ServingConfigSource::File, Some(0.25)));
    assert!(of_file.etag.len() == 16 && of_file.create_time.is_none());
    assert_eq!(named(&search(&server, "of_file").await), ("of_file", &of_file.etag[..]));
    assert_eq!(&get(&server, "of_file").await.unwrap(), of_file);
    let exists = create(&server, config("of_file")).await.unwrap_err();
    assert_eq!(reason(&exists), (Code::AlreadyExists, "SERVING_CONFIG_EXISTS".to_owned()));
    for refused in
        [update(&server, config("of_file")).await.unwrap_err(), delete(&server, "of_file", "").await.unwrap_err()]
    {
        assert_eq!(reason(&refused), (Code::FailedPrecondition, "SERVING_CONFIG_READ_ONLY".to_owned()));
    }

    // Arms name configurations of the file and of the API; a change of one reaches its users.
    let mut arms: BTreeSet<(String, String)> = BTreeSet::new();
    for user in 0..40 {
        let info = try_search(&server, &format!("u{user}"), "").await.unwrap().info.unwrap();
        let arm = info.experiment_arms.first().map_or(String::new(), |arm| arm.arm.clone());
        arms.insert((arm, info.serving_config));
    }
    let arms: Vec<(&str, &str)> = arms.iter().map(|(arm, config)| (&arm[..], &config[..])).collect();
    assert_eq!(arms, [("a", "of_file"), ("b", "b"), ("interleaved", "of_file")]);
    let exploration = Some(proto::Exploration { temperature: 1.0, ..Default::default() });
    let exploring = proto::ServingConfig { exploration: exploration.clone(), ..config("mixed") };
    let refused = update(&server, exploring).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "SERVING_CONFIG_IN_USE".to_owned()));
    assert!(refused.message().contains("experiments[1].interleave: `mixed` explores"), "{refused:?}");
    update(&server, proto::ServingConfig { exploration, ..config("b") }).await.unwrap();
    let explored = async || search(&server, "b").await.info.unwrap().explored;
    assert!(explored().await);

    // A rule for one configuration.
    let rule = |configs: &[&str]| proto::Rule {
        rule_id: "of-b".to_owned(),
        condition: Some(proto::RuleCondition {
            serving_configs: configs.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        }),
        actions: vec![proto::RuleAction {
            action: Some(Action::Pin(proto::Pin { item_id: item_id(33).to_string(), rank: 1 })),
        }],
        ..Default::default()
    };
    create(&server, config("c")).await.unwrap();
    let mut rules = RuleServiceClient::new(server.channel.clone());
    let unknown = proto::CreateRuleRequest { rule: Some(rule(&["c", "none"])) };
    let refused = violations(&rules.create_rule(unknown).await.unwrap_err());
    assert_eq!(refused[0].0, "rule.condition.serving_configs[1]");
    assert!(refused[0].1.contains("`none`") && refused[0].1.contains("b, c, default, mixed, of_file"), "{refused:?}");
    rules.create_rule(proto::CreateRuleRequest { rule: Some(rule(&["c", "default"])) }).await.unwrap();
    let pinned = async |named: &str| search(&server, named).await.results[0].item_id == item_id(33).as_str();
    assert!(pinned("c").await && pinned("default").await && !pinned("mixed").await);

    for (id, users) in [("b", "the experiment `half`"), ("mixed", "the experiment `merged`"), ("c", "the rule `of-b`")]
    {
        let refused = delete(&server, id, "").await.unwrap_err();
        assert_eq!(reason(&refused), (Code::FailedPrecondition, "SERVING_CONFIG_IN_USE".to_owned()));
        assert!(refused.message().contains(users), "{refused:?}");
    }
    rules.delete_rule(proto::DeleteRuleRequest { rule_id: "of-b".to_owned(), ..Default::default() }).await.unwrap();
    delete(&server, "c", "").await.unwrap();
    assert_eq!(server.metric("serving_config_answers_total{serving_config=\"c\"}"), None);
    server.end().await;

    // A file that does not fit the configurations of the API is refused before anything is served.
    let clashing = serving(
        directory.path(),
        "[configs.b]\n[[experiments]]\nname = \"e\"\narms = [{ name = \"a\", config = \"b\", share = 0.5 }, { name = \"b\", config = \"gone\", share = 0.5 }]\n",
    );
    let mut refused = String::new();
    wait_until("the log is released", Duration::from_secs(60), async || {
        match shop.try_open_serving(HealthBounds::default(), clashing.clone()) {
            Err(OpenError::Serving(error)) => refused = error.to_string(),
            Err(OpenError::Log(_)) => {}
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("the file was accepted"),
        }
        !refused.is_empty()
    })
    .await;
    assert!(refused.contains("configs.b: the API has a configuration of this name too"), "{refused}");
    assert!(refused.contains("experiments[0].arms[1].config: there is no configuration `gone`"), "{refused}");
    let server = GrpcServer::start(shop.reopen_serving(file).await).await;
    assert_eq!(ids(&listed(&server, 0).await), ["b", "mixed", "of_file"]);
    server.end().await;
}

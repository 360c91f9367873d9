//! Objectives of serving configurations over gRPC: orders, the limit of the loss, replays, previews, refusals.
use crate::{
    loyalty::{self, LoyalShop},
    support::{
        answers::replay,
        grpc::GrpcServer,
        status::{reason, violations},
        wait::wait_until,
    },
};
use lodestone::server::proto::{
    self, Objective, catalog_service_client::CatalogServiceClient, ranking_service_client::RankingServiceClient,
    serving_config_service_client::ServingConfigServiceClient,
};
use lodestone_engine::OpenError;
use lodestone_pipeline::serving::{Serving, ServingConfig};
use lodestone_rollout::HealthBounds;
use std::{collections::BTreeSet, time::Duration};
use tonic::{Code, Status};

const USER: &str = "p7";

fn config(id: &str, weights: &[(Objective, f64)], ndcg_loss_max: Option<f64>) -> proto::ServingConfig {
    let weight = |(objective, weight): &(Objective, f64)| proto::ObjectiveWeight {
        objective: (*objective).into(),
        weight: *weight,
    };
    let objectives = proto::RankingObjectives { weights: weights.iter().map(weight).collect(), ndcg_loss_max };
    proto::ServingConfig { serving_config_id: id.to_owned(), objectives: Some(objectives), ..Default::default() }
}

async fn create(server: &GrpcServer, config: proto::ServingConfig) -> Result<proto::ServingConfig, Status> {
    let request = proto::CreateServingConfigRequest { serving_config: Some(config) };
    let mut client = ServingConfigServiceClient::new(server.channel.clone());
    Ok(client.create_serving_config(request).await?.into_inner().serving_config.unwrap())
}

async fn preview(
    server: &GrpcServer,
    config: proto::ServingConfig,
) -> Result<proto::PreviewServingConfigResponse, Status> {
    let request = proto::PreviewServingConfigRequest { serving_config: Some(config), answer_count: 0 };
    let mut client = ServingConfigServiceClient::new(server.channel.clone());
    Ok(client.preview_serving_config(request).await?.into_inner())
}

/// Writes prices of all items in the order of their numbers, with a cost for the even ones unless `cost` is none.
async fn write_prices(server: &GrpcServer, currency: impl Fn(usize) -> &'static str, cost: Option<f64>) {
    let item = |number: usize| {
        let price = (2 + number * 37 % 41) as i64 * 1_000_000;
        proto::Item {
            item_id: format!("i{number}"),
            title: format!("thing number {number}"),
            price_micros: Some(price),
            currency_code: currency(number).to_owned(),
            cost_micros: cost.filter(|_| number.is_multiple_of(2)).map(|share| (price as f64 * share) as i64),
            ..Default::default()
        }
    };
    let items = (0..40).map(item).collect();
    let request = proto::UpsertItemsRequest { items, update_time: None };
    let answer = CatalogServiceClient::new(server.channel.clone()).upsert_items(request).await.unwrap().into_inner();
    assert!(answer.results.iter().all(|result| result.violations.is_empty()), "{answer:?}");
}

async fn recommend(server: &GrpcServer, named: &str) -> proto::RecommendResponse {
    let options = proto::RankingOptions {
        serving_config: named.to_owned(),
        debug_level: proto::DebugLevel::Scores.into(),
        ..Default::default()
    };
    let request = proto::RecommendRequest {
        viewer: Some(proto::Viewer { user_id: USER.to_owned(), ..Default::default() }),
        r#type: proto::RecommendType::ForYou.into(),
        page_size: 10,
        options: Some(options),
        ..Default::default()
    };
    RankingServiceClient::new(server.channel.clone()).recommend(request).await.unwrap().into_inner()
}

fn order(answer: &proto::RecommendResponse) -> Vec<&str> {
    answer.results.iter().map(|result| result.item_id.as_str()).collect()
}

fn applied(answer: &proto::RecommendResponse) -> Option<proto::AppliedObjectives> {
    answer.info.as_ref().unwrap().debug.as_ref().unwrap().objectives
}

fn head(result: &proto::Result, name: &str) -> f64 {
    let heads = &result.debug.as_ref().unwrap().heads;
    heads.iter().find(|head| head.name == name).unwrap_or_else(|| panic!("{heads:?}")).score
}

/// Returns the price of an item in units.
fn price(result: &proto::Result) -> f64 {
    (2 + result.item_id[1..].parse::<usize>().unwrap() * 37 % 41) as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objectives_order_answers_within_their_limit_and_replays_repeat_them() {
    let shop = LoyalShop::new();
    let server = shop.serve("loyal").await;
    write_prices(&server, |_| "EUR", Some(0.5)).await;
    let whole = |objective, limit| config(&format!("{objective:?}-{limit}"), &[(objective, 1.0)], Some(limit));
    let objectives = [Objective::Purchase, Objective::Revenue, Objective::Margin, Objective::Loyalty];
    for objective in objectives {
        for limit in [0.0, 0.02, 1.0] {
            create(&server, whole(objective, limit)).await.unwrap();
        }
    }
    let relevance = recommend(&server, "").await;
    assert_eq!(applied(&relevance), None);
    let mut tokens = Vec::new();
    for objective in objectives {
        let free = recommend(&server, &format!("{objective:?}-1")).await;
        let effect = applied(&free).unwrap();
        assert_eq!(effect.share, 1.0);
        let value = |result: &proto::Result| match objective {
            Objective::Purchase => head(result, "purchase"),
            Objective::Revenue => head(result, "purchase") * price(result),
            // Costs are half of the price, so that items without one have the same share.
            Objective::Margin => head(result, "purchase") * price(result) * 0.5,
            _ => 1.0 - (1.0 - head(result, "purchase")) * (1.0 - head(result, "return_visit")),
        };
        if objective != Objective::Loyalty {
            let values: Vec<f64> = free.results.iter().map(value).collect();
            assert!(
                values.windows(2).all(|pair| pair[0] >= pair[1] - 1e-5 * pair[1].abs().max(1.0)),
                "{objective:?}: {values:?}"
            );
        }
        let bounded = recommend(&server, &format!("{objective:?}-0.02")).await;
        let effect = applied(&bounded).unwrap();
        assert!(effect.ndcg_loss <= 0.02 + 1e-9 && effect.share <= 1.0, "{effect:?}");
        let none = recommend(&server, &format!("{objective:?}-0")).await;
        assert_eq!(applied(&none).unwrap().ndcg_loss, 0.0);
        let gains = |answer: &proto::RecommendResponse| -> f64 {
            let weights = &answer.info.as_ref().unwrap().debug.as_ref().unwrap().head_weights;
            let gain = |result: &proto::Result| -> f64 {
                weights.iter().map(|weight| weight.score * head(result, &weight.name)).sum::<f64>().max(0.0)
            };
            let discounted = |(slot, result): (usize, &proto::Result)| gain(result) / (slot as f64 + 2.0).log2();
            answer.results.iter().enumerate().map(discounted).sum()
        };
        let ideal = gains(&relevance);
        for (answer, limit) in [(&none, 0.0), (&bounded, 0.02)] {
            let loss = 1.0 - gains(answer) / ideal;
            assert!(loss <= limit + 1e-4, "{objective:?}: a loss of {loss} with the limit {limit}");
        }
        for answer in [&free, &bounded] {
            for result in &answer.results {
                let parts = result.debug.as_ref().unwrap().score_parts.unwrap();
                assert!((parts.base - result.score).abs() < 1e-6, "{parts:?} {}", result.score);
            }
            tokens.push((answer.attribution_token.clone(), applied(answer).unwrap()));
        }
    }
    let revenue = recommend(&server, "Revenue-1").await;
    assert_ne!(order(&revenue), order(&relevance));

    // The risk of the user comes from the loyalty model, for the first horizon of at least 14 days.
    let risk = applied(&recommend(&server, "Loyalty-1").await).unwrap().return_risk.unwrap();
    let scores = loyalty::get(&server, USER).await.unwrap().scores;
    let horizon = scores.iter().find(|score| score.horizon_days >= 14).unwrap();
    let expected = 1.0 - horizon.return_probability.as_ref().unwrap().value;
    assert!((risk - expected).abs() < 1e-5 && risk > 0.0, "{risk} {expected}");
    assert_eq!(applied(&revenue).unwrap().return_risk, None);

    // A record has everything that the order depends on: prices may change and configurations disappear.
    write_prices(&server, |_| "EUR", None).await;
    for objective in objectives {
        let request =
            proto::DeleteServingConfigRequest { serving_config_id: format!("{objective:?}-1"), ..Default::default() };
        ServingConfigServiceClient::new(server.channel.clone()).delete_serving_config(request).await.unwrap();
    }
    for (token, effect) in tokens {
        let replayed = replay(&server.channel, &token).await;
        assert!(replayed.identical, "{}", replayed.first_difference);
        assert_eq!(replayed.objectives, [effect]);
        for slot in &replayed.slots {
            assert!((slot.score_parts.unwrap().base - slot.score).abs() < 1e-6, "{slot:?}");
        }
    }

    // The preview states the cost before a configuration exists.
    let mut previewed = proto::PreviewServingConfigResponse::default();
    wait_until("the answers are on disk", Duration::from_secs(60), async || {
        previewed = preview(&server, config("new", &[(Objective::Revenue, 1.0)], Some(1.0))).await.unwrap();
        previewed.answer_count >= 12
    })
    .await;
    assert_eq!(previewed.left_out_answer_count, 0, "{previewed:?}");
    assert!(previewed.changed_slot_count > 0 && previewed.mean_ndcg_loss > 0.0, "{previewed:?}");
    assert_eq!((previewed.mean_objective_share, previewed.bounded_answer_count), (1.0, 0));
    let bounded = preview(&server, config("new", &[(Objective::Revenue, 1.0)], Some(0.01))).await.unwrap();
    assert!(bounded.largest_ndcg_loss <= 0.01 + 1e-6 && bounded.bounded_answer_count > 0, "{bounded:?}");
    assert!(bounded.mean_ndcg_loss <= previewed.mean_ndcg_loss && bounded.mean_objective_share < 1.0, "{bounded:?}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_objectives_are_refused_with_their_fields() {
    let shop = LoyalShop::new();
    let server = shop.serve("without").await;
    let refused = async |config: proto::ServingConfig| create(&server, config).await.unwrap_err();
    let fields = async |config: proto::ServingConfig| -> BTreeSet<String> {
        let previewed = violations(&preview(&server, config.clone()).await.unwrap_err());
        let found = violations(&refused(config).await);
        assert_eq!(found, previewed, "a preview is checked alike");
        found.into_iter().map(|(field, _)| field.trim_start_matches("serving_config.objectives.").to_owned()).collect()
    };
    let set = |fields: &[&str]| -> BTreeSet<String> { fields.iter().map(|field| (*field).to_owned()).collect() };

    let mut wrong = config("c", &[(Objective::Purchase, -0.1), (Objective::Purchase, f64::NAN)], Some(1.5));
    wrong.objectives.as_mut().unwrap().weights.extend([
        proto::ObjectiveWeight { objective: 0, weight: 2.0 },
        proto::ObjectiveWeight { objective: 9, weight: 0.0 },
    ]);
    let expected = [
        "weights[0].weight",
        "weights[1].objective",
        "weights[1].weight",
        "weights[2].objective",
        "weights[2].weight",
        "weights[3].objective",
        "weights",
        "ndcg_loss_max",
    ];
    assert_eq!(fields(wrong).await, set(&expected));
    assert_eq!(fields(config("c", &[(Objective::Purchase, 0.0)], None)).await, set(&["weights"]));
    assert_eq!(fields(config("c", &[], None)).await, set(&["weights"]));
    let sum = [(Objective::Purchase, 0.6), (Objective::Loyalty, 0.6)];
    assert_eq!(fields(config("c", &sum, None)).await, set(&["weights"]));
    assert_eq!(fields(config("c", &[(Objective::Purchase, 1.0)], Some(-0.1))).await, set(&["ndcg_loss_max"]));
    let click = refused(config("c", &[(Objective::Click, 1.0)], None)).await;
    let found = violations(&click);
    assert_eq!(found[0].0, "serving_config.objectives.weights[0].objective");
    assert!(found[0].1.contains("needs the head `click`"), "{found:?}");
    let idle = proto::ServingConfig { ranker: Some(false), ..config("c", &[(Objective::Purchase, 1.0)], None) };
    assert!(violations(&refused(idle).await)[0].1.contains("no effect"));

    let loyalty = config("c", &[(Objective::Loyalty, 0.5)], None);
    assert_eq!(reason(&refused(loyalty).await), (Code::FailedPrecondition, "LOYALTY_MODEL_MISSING".to_owned()));
    let margin = config("c", &[(Objective::Margin, 0.5)], None);
    write_prices(&server, |_| "EUR", None).await;
    assert_eq!(reason(&refused(margin.clone()).await), (Code::FailedPrecondition, "COSTS_MISSING".to_owned()));
    write_prices(&server, |_| "EUR", Some(0.4)).await;
    create(&server, margin).await.unwrap();
    write_prices(&server, |number| ["EUR", "GBP"][number % 2], None).await;
    let mixed = violations(&refused(config("d", &[(Objective::Revenue, 0.5)], None)).await);
    assert_eq!(mixed[0].0, "serving_config.objectives.weights[0].objective");
    assert!(mixed[0].1.contains("EUR and GBP"), "{mixed:?}");
    // The configuration of before still answers.
    assert_eq!(recommend(&server, "c").await.results.len(), 10);
    server.end().await;

    // A serving file is checked alike.
    let directory = tempfile::tempdir().unwrap();
    let serving = |text: &str| {
        let path = directory.path().join("serving.toml");
        std::fs::write(&path, text).unwrap();
        Serving::open(&path, &ServingConfig::default())
    };
    let wrong = serving("[configs.x]\nobjectives = { weights = { luck = 0.5, revenue = 1.5 } }\n").unwrap_err();
    let text = wrong.to_string();
    assert!(text.contains("configs.x.objectives.weights.luck: is not an objective"), "{text}");
    assert!(text.contains("configs.x.objectives.weights[0].weight: is 1.5"), "{text}");
    let file = serving("[configs.x]\nobjectives = { weights = { loyalty = 0.5 } }\n").unwrap();
    let mut refused = String::new();
    wait_until("the log is released", Duration::from_secs(60), async || {
        match shop.shop.try_open_serving(HealthBounds::default(), file.clone()) {
            Err(OpenError::Serving(error)) => refused = error.to_string(),
            Err(OpenError::Log(_)) => {}
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("the file was accepted"),
        }
        !refused.is_empty()
    })
    .await;
    assert!(refused.contains("configs.x.objectives: loyalty needs a loyalty model"), "{refused}");
}

//! SIGKILL while two connections ask for decisions about the same users: nobody receives more than the allowance, the
//! budget is kept, and an acknowledged decision is returned again. `KILLS=n` sets the number of kills, at most 20; the
//! default is 3.
use crate::{
    incentives::{campaign, request},
    support::{bundles::Shop, number_setting, process::Process},
};
use lodestone::server::proto::{
    self, IncentiveReason, event_service_client::EventServiceClient, incentive_service_client::IncentiveServiceClient,
};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// Users that are asked about in each round.
const USERS: usize = 60;
/// What the incentives of the campaign may cost together, in millionths.
const BUDGET: i64 = 300_000_000;

async fn serve(shop: &Shop) -> Process {
    std::fs::create_dir_all(shop.data_path()).unwrap();
    Process::serve(|command| {
        command.args(["--workers", "1", "--listen", "127.0.0.1:0"]);
        command.arg("--bundle").arg(shop.store_path().join("a")).arg("--data").arg(shop.data_path())
    })
    .await
}

/// Returns a client with a connection of its own.
fn client(process: &Process) -> IncentiveServiceClient<Channel> {
    IncentiveServiceClient::new(process.connect())
}

/// An acknowledged answer.
struct Acknowledged {
    decision_id: String,
    user: String,
    answer: proto::DecideIncentiveResponse,
}

/// Asks for a decision about each user, until the server is killed.
fn ask(
    mut client: IncentiveServiceClient<Channel>,
    connection: &'static str,
    users: Vec<String>,
    answers: mpsc::Sender<Acknowledged>,
) {
    tokio::spawn(async move {
        for user in users {
            let decision_id = format!("{connection} {user}");
            let Ok(answer) = client.decide_incentive(request("c", &decision_id, &user)).await else { return };
            let answer = proto::DecideIncentiveResponse { consistency_token: String::new(), ..answer.into_inner() };
            if answers.send(Acknowledged { decision_id, user, answer }).await.is_err() {
                return;
            }
        }
    });
}

async fn introduce(process: &Process, users: &[String]) {
    let event = |user: &String| proto::Event {
        event_id: format!("view of {user}"),
        r#type: proto::EventType::View.into(),
        viewer: Some(proto::Viewer { user_id: user.clone(), ..Default::default() }),
        lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    let request = proto::WriteEventsRequest { events: users.iter().map(event).collect() };
    EventServiceClient::new(process.connect()).write_events(request).await.unwrap();
}

/// Checks that each acknowledged decision is returned again, and that its user has no further one.
async fn check_acknowledged(process: &Process, acknowledged: &[Acknowledged]) {
    let mut client = client(process);
    for Acknowledged { decision_id, user, answer } in acknowledged.iter().filter(|of| of.answer.decided) {
        let again = client.decide_incentive(request("c", decision_id, user)).await.unwrap().into_inner();
        let again = proto::DecideIncentiveResponse { consistency_token: String::new(), ..again };
        assert_eq!(&again, answer, "{decision_id} was acknowledged");
        let third = client.decide_incentive(request("c", &format!("third {user}"), user)).await.unwrap().into_inner();
        assert_eq!((third.decided, third.reason()), (false, IncentiveReason::UserLimit), "{third:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_connections_share_one_allowance_and_one_budget_across_kills() {
    let kills = number_setting("KILLS", 3).min(20);
    let shop = Shop::new();
    let mut acknowledged: Vec<Acknowledged> = Vec::new();
    let mut users: Vec<String> = Vec::new();
    for round in 0..kills {
        let process = serve(&shop).await;
        if round == 0 {
            let campaign = proto::IncentiveCampaign { budget_micros: BUDGET, ..campaign("c") };
            let request = proto::CreateIncentiveCampaignRequest { campaign: Some(campaign) };
            client(&process).create_incentive_campaign(request).await.unwrap();
        }
        check_acknowledged(&process, &acknowledged).await;
        let asked: Vec<String> = (0..USERS).map(|user| format!("u{round}-{user}")).collect();
        introduce(&process, &asked).await;
        let (answers, mut received) = mpsc::channel(2 * USERS);
        ask(client(&process), "first", asked.clone(), answers.clone());
        ask(client(&process), "second", asked.clone(), answers);
        for _ in 0..10 + round * 17 % USERS {
            acknowledged.push(received.recv().await.expect("the server answers until it is killed"));
        }
        drop(process);
        while let Some(answer) = received.recv().await {
            acknowledged.push(answer);
        }
        users.extend(asked);
    }

    let process = serve(&shop).await;
    check_acknowledged(&process, &acknowledged).await;
    let costs = BTreeMap::from([("ten", 5_000_000), ("shipping", 3_000_000)]);
    let (mut client, mut used) = (client(&process), 0);
    for user in &users {
        // What was not stored is decided now, and only once.
        let mut decided = Vec::new();
        for connection in ["first", "second"] {
            let request = request("c", &format!("{connection} {user}"), user);
            let answer = client.decide_incentive(request).await.unwrap().into_inner();
            decided.extend(answer.decided.then_some(answer.incentive_id));
        }
        assert!(decided.len() <= 1, "{user} has {decided:?}");
        used += decided.first().filter(|id| !id.is_empty()).map_or(0, |id| costs[id.as_str()]);
    }
    let status = proto::GetIncentiveCampaignRequest { campaign_id: "c".to_owned() };
    let found = client.get_incentive_campaign(status).await.unwrap().into_inner().r#use.unwrap();
    assert_eq!((found.used_micros, found.used_micros <= BUDGET), (used, true), "{found:?}");
    assert!(acknowledged.iter().any(|of| of.answer.decided) && used > 0);
}

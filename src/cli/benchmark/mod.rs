//! `lodestone benchmark`
mod ann;
mod events;
mod incentive;
mod models;
mod off_policy;
mod repeat_purchase;
mod search;
mod sequences;

use super::exit::Exit;

#[derive(clap::Subcommand)]
pub(crate) enum Benchmark {
    Ann(ann::AnnArgs),
    Models(models::ModelsArgs),
    Events(events::EventsArgs),
    Search(search::SearchArgs),
    NextItem(sequences::NextItemArgs),
    Sessions(sequences::SessionsArgs),
    NextBasket(sequences::NextBasketArgs),
    EncoderStep(sequences::EncoderStepArgs),
    OffPolicy(off_policy::OffPolicyArgs),
    RepeatPurchase(repeat_purchase::RepeatPurchaseArgs),
    LoyaltyFit(repeat_purchase::LoyaltyFitArgs),
    Incentive(incentive::IncentiveArgs),
}

pub(crate) fn run(command: Benchmark) -> anyhow::Result<Exit> {
    match command {
        Benchmark::Ann(args) => ann::ann(&args),
        Benchmark::Models(args) => models::models(&args),
        Benchmark::Events(args) => events::events(&args),
        Benchmark::Search(args) => search::search(args),
        Benchmark::NextItem(args) => sequences::next_item(args),
        Benchmark::Sessions(args) => sequences::sessions(args),
        Benchmark::NextBasket(args) => sequences::next_basket(args),
        Benchmark::EncoderStep(args) => sequences::encoder_step(&args),
        Benchmark::OffPolicy(args) => off_policy::off_policy(&args),
        Benchmark::RepeatPurchase(args) => repeat_purchase::repeat_purchase(&args),
        Benchmark::LoyaltyFit(args) => repeat_purchase::loyalty_fit(&args),
        Benchmark::Incentive(args) => incentive::incentive(&args),
    }
}

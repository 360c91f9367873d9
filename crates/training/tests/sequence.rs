//! The sequence encoder: a training that diverges, and a warm start.
mod support;

use lodestone_training::sequence::{
    Dropout, EncoderConfig, Interruption, ItemText, SequenceEncoder, SequenceError, Tokens, TrainerState, next_items,
    train_encoder,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use support::{ITEMS, histories};

#[test]
fn a_diverging_loss_stops_training_and_the_error_names_step_and_remedy() {
    let histories = histories(60);
    let sequences: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
    let mut config = EncoderConfig::for_data(&sequences, ITEMS as usize, 1, 1);
    config.learning_rate = 1e38;
    config.dropout = Dropout::NONE;
    let error = train_encoder(
        &next_items(&sequences),
        ITEMS as usize,
        &Default::default(),
        &config,
        &mut Interruption::default(),
        &mut |_| 0.0,
        &mut |_| {},
    );
    let error = error.unwrap_err();
    assert!(matches!(error, SequenceError::Diverged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("step") && text.contains("smaller learning rate"), "{text}");
}

#[test]
fn a_warm_start_reproduces_the_logits_of_the_earlier_encoder() {
    let histories = histories(150);
    let sequences: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
    let samples = next_items(&sequences);
    let mut config = EncoderConfig::for_data(&sequences, ITEMS as usize, 1, 1);
    let text = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        ItemText { vectors: (0..ITEMS * 8).map(|_| rng.random_range(-0.4..0.4)).collect(), width: 8 }
    };
    // The logits of all histories with all items.
    let logits = |encoder: &SequenceEncoder| {
        let queries: Vec<Tokens> = sequences.iter().map(|sequence| Tokens::from(*sequence)).collect();
        let (users, width) = (encoder.encode(&queries), encoder.width());
        let dot = |user: &[f32], item: &[f32]| user.iter().zip(item).map(|(a, b)| a * b).sum::<f32>();
        let items = encoder.item_vectors().chunks(width);
        users.chunks(width).flat_map(|user| items.clone().map(|item| dot(user, item))).collect::<Vec<f32>>()
    };
    let train = |config: &EncoderConfig, text: &ItemText, state| {
        let mut interruption = Interruption { requested: None, state };
        let trained =
            train_encoder(&samples, ITEMS as usize, text, config, &mut interruption, &mut |_| 0.0, &mut |_| {});
        trained.unwrap().encoder
    };
    config.epochs_max = 20;
    let first = train(&config, &text(1), None);
    // The second training has other text vectors and one new item.
    let vector = |item: usize| {
        let direction = &first.item_vectors()[item * first.width()..][..first.width()];
        direction.iter().map(|value| value * first.item_lengths()[item]).collect::<Vec<f32>>()
    };
    let vectors: Vec<Option<Vec<f32>>> = (0..ITEMS as usize).map(|item| (item != 3).then(|| vector(item))).collect();
    let (weights, projection) = (first.flat_weights(), first.text_projection());
    let state = TrainerState::from_encoder(weights, &vectors, &text(2), projection, samples.len(), 1).unwrap();
    config.epochs_max = 0;
    let warm = train(&config, &text(2), Some(state));
    let (before, after) = (logits(&first), logits(&warm));
    let reads_new = |index: usize| sequences[index / ITEMS as usize].contains(&3) || index % ITEMS as usize == 3;
    let known = (0..before.len()).filter(|index| !reads_new(*index));
    let difference = known.map(|index| (before[index] - after[index]).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-3, "{difference}");

    let text = text(1);
    let narrow = TrainerState::from_encoder(first.flat_weights(), &vectors, &text, &[0.0; 16], samples.len(), 1);
    assert!(matches!(narrow, Err(SequenceError::Checkpoint(_))));
}

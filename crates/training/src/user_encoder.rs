//! The user encoder of a bundle: the transformer of `sequence`, trained to predict a user's next interactions, exported
//! to ONNX.
//!
//! Its input is a user's latest events: an item's vector, the kind of the event, and the time since the event before.
//! An item's vector is a vector of its own plus its text's vector times a trained projection, so that an item without
//! events has one too.
use super::{
    Progress,
    onnx::{Attribute, Dim, ExportCheck, GraphWriter, ModelError, compare},
    options::EncoderSettings,
    replay::{BASKET_ITEMS_MAX, Interaction},
    sequence::{
        EncoderConfig, EventTargets, HISTORY_MAX, Interruption, ItemText, Sample, SequenceEncoder, Shape, Tokens,
        TrainedEncoder,
        encoder::{encoder_loss, encoder_quality},
        train_encoder,
        transformer::{BlockWeights, FFN_FACTOR},
    },
};
use ahash::AHashMap;
use lodestone_core::{
    ids::{ItemId, UserId},
    units::{Quantity, UnixMillis},
};
use lodestone_events::{Event, EventKind, RefundLine, Refunds};
use lodestone_pipeline::ranking::{Device, Runtime, UserEncoder, UserInput};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::ops::Range;

/// Size of the encoder's table of event kinds.
const KINDS: usize = 16;
/// Share of the items whose own vectors are dropped in a step.
const RESIDUAL_DROPOUT: f32 = 0.1;
/// Epochs without validation data.
const UNVALIDATED_EPOCHS: usize = 10;
/// An export is checked on histories of about so many lengths, up to the longest.
const CHECKED_LENGTHS: usize = 50;

/// A window of a user's history, at most [`EncoderSettings::events`], and the targets after some of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct UserSample {
    pub items: Vec<u32>,
    pub kinds: Vec<u8>,
    /// ln(1 + days) since the event before.
    pub gaps: Vec<f32>,
    pub targets: Vec<EventTargets>,
}

impl UserSample {
    pub(crate) fn tokens(&self) -> Tokens<'_> {
        Tokens { items: &self.items, kinds: &self.kinds, gaps: &self.gaps }
    }
}

/// With fewer targets in the histories, baskets stand in for histories.
pub(crate) const TARGETS_MIN: usize = 100;
/// Items of a basket that stand in for a history.
const BASKET_STARTS_MAX: usize = 8;

/// Returns windows that stand in for histories: after one item of a basket, the others are the targets. An item that
/// was bought alone is its own target, so that its vector follows from its text.
pub(crate) fn basket_samples(baskets: &[Interaction]) -> Vec<UserSample> {
    let sample = |basket: &Interaction, from: u32| {
        let others = basket.rows.iter().copied().filter(|row| *row != from).take(BASKET_ITEMS_MAX);
        let targets: Vec<u32> = if basket.rows.len() > 1 { others.collect() } else { vec![from] };
        let weight = basket.kind.interest() / targets.len() as f32;
        UserSample {
            items: vec![from],
            kinds: vec![basket.kind as u8],
            gaps: vec![0.0],
            targets: vec![(0, targets.into_iter().map(|row| (row, weight)).collect())],
        }
    };
    let starts = |basket: &Interaction| basket.rows.iter().copied().take(BASKET_STARTS_MAX).collect::<Vec<_>>();
    baskets.iter().flat_map(|basket| starts(basket).into_iter().map(|from| sample(basket, from))).collect()
}

/// One event of a history.
struct Step {
    /// Range in the rows of the history.
    rows: Range<usize>,
    /// The rows before the time of the event. Events at the same time have no order, so none of them is known before
    /// another one.
    known: usize,
    at: UnixMillis,
    kind: EventKind,
}

/// A user's events, oldest first.
#[derive(Default)]
struct History {
    /// Items of all events in order.
    rows: Vec<u32>,
    kinds: Vec<u8>,
    at: Vec<UnixMillis>,
    quantities: Vec<Quantity>,
    steps: Vec<Step>,
}

/// Builds windows of at most `events_max` events of the users' histories. Each positive interaction within `times` that
/// has a history is a target once. The items of one event are a set without order. `events` are in time order; those at
/// or after the end of `times` are ignored. Refunds and what they withdraw are left out, as in serving.
pub(crate) fn user_samples(
    events: &[Event],
    row_of: &AHashMap<ItemId, u32>,
    times: Range<UnixMillis>,
    events_max: usize,
) -> Vec<UserSample> {
    let mut histories: AHashMap<&UserId, History> = AHashMap::new();
    let mut order: Vec<&UserId> = Vec::new();
    for event in events.iter().take_while(|event| event.at < times.end) {
        if !event.kind.needs_items() || event.kind == EventKind::Impression {
            continue;
        }
        let history = histories.entry(&event.user).or_insert_with(|| {
            order.push(&event.user);
            History::default()
        });
        let begin = history.rows.len();
        for (row, line) in event.lines.iter().filter_map(|line| Some((row_of.get(&line.item)?, line))) {
            history.rows.push(*row);
            history.kinds.push(event.kind as u8);
            history.at.push(event.at);
            history.quantities.push(line.quantity);
        }
        let same_time = history.steps.last().filter(|step| step.at == event.at);
        let known = same_time.map_or(begin, |step| step.known);
        history.steps.push(Step { rows: begin..history.rows.len(), known, at: event.at, kind: event.kind });
    }
    histories.values_mut().for_each(History::apply_refunds);
    order.into_iter().flat_map(|user| histories[user].windows(times.start, events_max)).collect()
}

impl History {
    /// Removes the rows that refunds withdraw.
    fn apply_refunds(&mut self) {
        let kinds = self.steps.iter().flat_map(|step| step.rows.clone().map(|_| step.kind));
        let lines = kinds.zip(&self.rows).zip(&self.quantities);
        let line = |((kind, row), quantity): ((EventKind, &u32), &Quantity)| RefundLine {
            item: *row,
            kind,
            thousandths: quantity.thousandths().into(),
        };
        let refunds = Refunds::of(&lines.map(line).collect::<Vec<_>>());
        let kept: Vec<usize> = (0..self.rows.len()).filter(|index| !refunds.is_withdrawn(*index)).collect();
        if kept.len() == self.rows.len() {
            return;
        }
        for step in &mut self.steps {
            let index = |row: usize| kept.partition_point(|kept| *kept < row);
            step.rows = index(step.rows.start)..index(step.rows.end);
            step.known = index(step.known);
        }
        self.rows = kept.iter().map(|index| self.rows[*index]).collect();
        self.kinds = kept.iter().map(|index| self.kinds[*index]).collect();
        self.at = kept.iter().map(|index| self.at[*index]).collect();
        self.quantities = kept.iter().map(|index| self.quantities[*index]).collect();
    }

    /// Returns windows in which each positive interaction since `from`, among the latest [`HISTORY_MAX`] events, is a
    /// target once. A window's first events are targets in the window before, because they have little context here: a
    /// target has at least half of `events_max` events or the whole history before it.
    fn windows(&self, from: UnixMillis, events_max: usize) -> Vec<UserSample> {
        let earliest = self.rows.len().saturating_sub(HISTORY_MAX).max(1);
        let is_target = |step: &&Step| {
            step.at >= from && step.kind.is_positive() && step.known >= earliest && !step.rows.is_empty()
        };
        let targets: Vec<&Step> = self.steps.iter().filter(is_target).collect();
        let (mut windows, mut rest) = (Vec::new(), &targets[..]);
        while let Some(last) = rest.last() {
            let end = last.known;
            let begin = end.saturating_sub(events_max);
            let first = if begin == 0 { 0 } else { begin + events_max / 2 };
            let of_window = rest.partition_point(|step| step.known < first.max(1));
            windows.push(self.window(begin..end, &rest[of_window..]));
            rest = &rest[..of_window];
        }
        windows.reverse();
        windows
    }

    fn window(&self, range: Range<usize>, targets: &[&Step]) -> UserSample {
        let gap = |index: usize| match index == range.start {
            true => 0.0,
            false => self.at[index].days_since(self.at[index - 1]).max(0.0).ln_1p(),
        };
        let mut sample = UserSample {
            items: self.rows[range.clone()].to_vec(),
            kinds: self.kinds[range.clone()].to_vec(),
            gaps: range.clone().map(gap).collect(),
            targets: Vec::with_capacity(targets.len()),
        };
        for step in targets {
            let mut rows = self.rows[step.rows.clone()].to_vec();
            rows.sort_unstable();
            rows.dedup();
            let weight = step.kind.interest() / rows.len() as f32;
            let event = (step.known - 1 - range.start) as u32;
            // Interactions with the same input, such as those at one time, are one target.
            match sample.targets.last_mut().filter(|(last, _)| *last == event) {
                Some((_, items)) => items.extend(rows.into_iter().map(|row| (row, weight))),
                None => sample.targets.push((event, rows.into_iter().map(|row| (row, weight)).collect())),
            }
        }
        sample
    }
}

pub(crate) struct TrainedUserEncoder {
    /// `[items × width]`, length 1.
    pub item_vectors: Vec<f32>,
    /// `[text width × width]`.
    pub text_projection: Vec<f32>,
    /// Weights of the encoder, flat, for a warm start.
    pub weights: Vec<f32>,
    /// Lengths of the item vectors before normalisation, for a warm start.
    pub item_lengths: Vec<f32>,
    pub onnx: Vec<u8>,
    pub check: ExportCheck,
    /// NaN without validation data.
    pub validation_loss: f32,
    /// By step.
    pub validation_losses: Vec<(usize, f32)>,
    pub epochs: usize,
}

/// Training data of the user encoder.
pub(crate) struct UserEncoderData<'a> {
    pub text: &'a ItemText,
    pub item_count: usize,
    pub samples: &'a [UserSample],
    /// For early stopping; may be empty.
    pub validation: &'a [UserSample],
}

/// Trains the encoder and the item vectors, with early stopping on the ranks of the validation targets. The loss grows
/// earlier than the ranks get worse, because the model becomes too sure of them.
pub(crate) fn train_user_encoder(
    data: &UserEncoderData,
    settings: EncoderSettings,
    seed: u64,
    interruption: &mut Interruption,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedUserEncoder, ModelError> {
    let UserEncoderData { text, item_count, samples, validation } = *data;
    if samples.is_empty() {
        return Err(ModelError::TooLittle(
            "the user encoder needs positive interactions before those of its validation".to_owned(),
        ));
    }
    let mut config = config(samples, item_count, settings, seed);
    let targets: Vec<(Tokens, &[(u32, f32)])> = validation.iter().flat_map(targets).collect();
    let samples: Vec<Sample> =
        samples.iter().map(|sample| Sample::Targets { tokens: sample.tokens(), targets: &sample.targets }).collect();
    if targets.is_empty() {
        config.epochs_max = UNVALIDATED_EPOCHS;
    }
    let (mut epoch, mut losses) = (0.0, Vec::new());
    let mut validate = |encoder: &SequenceEncoder| {
        epoch += 1.0;
        // Without validation data, the last epoch is the best.
        if targets.is_empty() {
            return epoch;
        }
        losses.push(encoder_loss(encoder, &targets) as f32);
        encoder_quality(encoder, &targets)
    };
    let trained = train_encoder(&samples, item_count, text, &config, interruption, &mut validate, &mut |step| {
        progress(Progress { stage: "user encoder", ..step });
    })?;
    let TrainedEncoder { encoder, epochs, validation, .. } = trained;
    // After a resumption the losses are those of the later epochs.
    let steps = validation[validation.len().saturating_sub(losses.len())..].iter().map(|(step, _)| *step);
    let onnx = export(&encoder)?;
    let check = check(&encoder, &onnx, runtime)?;
    if encoder.item_vectors().iter().any(|value| !value.is_finite()) {
        return Err(ModelError::NotFinite { model: "user_encoder" });
    }
    Ok(TrainedUserEncoder {
        item_vectors: encoder.item_vectors().to_vec(),
        text_projection: encoder.text_projection().to_vec(),
        weights: encoder.flat_weights().to_vec(),
        item_lengths: encoder.item_lengths().to_vec(),
        onnx,
        check,
        validation_loss: if targets.is_empty() { f32::NAN } else { encoder_loss(&encoder, &targets) as f32 },
        validation_losses: steps.zip(losses).collect(),
        epochs,
    })
}

/// Returns the hyperparameters of an encoder with these settings for data of this size.
fn config(samples: &[UserSample], item_count: usize, settings: EncoderSettings, seed: u64) -> EncoderConfig {
    let lengths = samples.iter().map(|sample| sample.items.len()).collect();
    let targets = samples.iter().map(|sample| sample.targets.len()).sum();
    let threads = rayon::current_num_threads();
    let mut config = EncoderConfig::for_sizes(lengths, targets, item_count, threads, seed);
    let EncoderSettings { width, blocks, events } = settings;
    // Histories in serving may be longer than those of the training data.
    config.shape = Shape { width, heads: 1, blocks, positions: events, kinds: KINDS };
    config.residual_dropout = RESIDUAL_DROPOUT;
    config
}

/// Returns the targets of a sample, each with the events before it.
fn targets(sample: &UserSample) -> impl Iterator<Item = (Tokens<'_>, &[(u32, f32)])> {
    sample.targets.iter().map(|(event, items)| {
        let end = *event as usize + 1;
        let tokens = Tokens { items: &sample.items[..end], kinds: &sample.kinds[..end], gaps: &sample.gaps[..end] };
        (tokens, items.as_slice())
    })
}

/// Exports the encoder as an ONNX graph with the inputs of [`UserEncoder`]. The last block computes the latest event's
/// output only.
fn export(encoder: &SequenceEncoder) -> Result<Vec<u8>, ModelError> {
    let (d, weights) = (encoder.width(), encoder.weights());
    assert_eq!(encoder.shape().heads, 1, "the export writes attention with one head");
    let mut graph = GraphWriter::new("user_encoder");
    let (batch, length) = (|| Dim::Any("batch"), || Dim::Any("length"));
    graph.float_input("items", &[batch(), length(), Dim::Is(d)]);
    graph.int_input("kinds", &[batch(), length()]);
    graph.int_input("positions", &[batch(), length()]);
    graph.float_input("ages", &[batch(), length()]);
    graph.float_input("mask", &[batch(), length()]);
    for (name, axes) in [("axis_0", 0), ("axis_1", 1), ("axis_2", 2), ("axis_last", -1), ("end", i64::MAX)] {
        graph.integers(name, &[axes]);
    }
    graph.weights("one", &[1], &[1.0]);

    // Position 0 is the latest event, which is the last row of the trained table.
    let latest_first: Vec<f32> = weights.positions.chunks_exact(d).rev().flatten().copied().collect();
    for (name, table) in [("position", &latest_first[..]), ("kind", weights.kinds)] {
        graph.weights(&format!("{name}_table"), &[table.len() / d, d], table);
        graph.node("Gather", &[&format!("{name}_table"), &format!("{name}s")], &format!("{name}_vectors"), &[]);
    }
    gaps(&mut graph, weights.gap);
    graph.node("Add", &["items", "position_vectors"], "tokens1", &[]);
    graph.node("Add", &["tokens1", "kind_vectors"], "tokens2", &[]);
    graph.node("Add", &["tokens2", "gap_vectors"], "tokens", &[]);

    // Padding is masked. Each event attends to itself and to earlier events, which have greater positions.
    graph.weights("masked", &[1], &[-MASKED]);
    graph.node("Sub", &["mask", "one"], "mask_less_one", &[]);
    graph.node("Mul", &["mask_less_one", "masked"], "missing2", &[]);
    graph.node("Unsqueeze", &["missing2", "axis_1"], "missing", &[]);
    graph.node("Unsqueeze", &["positions", "axis_1"], "read_positions", &[]);
    graph.node("Unsqueeze", &["positions", "axis_2"], "own_positions", &[]);
    graph.node("Less", &["read_positions", "own_positions"], "is_later", &[]);
    graph.node("Cast", &["is_later"], "later1", &[("to", Attribute::Int(1))]);
    graph.weights("forbidden", &[1], &[MASKED]);
    graph.node("Mul", &["later1", "forbidden"], "later", &[]);
    graph.node("Add", &["missing", "later"], "missing_or_later", &[]);

    let mut x = "tokens".to_owned();
    let last = weights.blocks.len() - 1;
    for (index, block) in weights.blocks.iter().enumerate() {
        let (bias, queries) = match index == last {
            true => ("missing", Queries::Latest),
            false => ("missing_or_later", Queries::All),
        };
        x = write_block(&mut graph, &format!("block{index}"), block, &x, bias, queries);
    }
    graph.node("Squeeze", &[&x, "axis_1"], "latest", &[]);
    write_norm(&mut graph, "latest", "latest_normed", weights.norm);
    graph.normalize("latest_normed", "user");
    graph.output("user", &[batch(), Dim::Is(d)]);
    graph.finish()
}

const MASKED: f32 = -1e4;

/// Events for which a block computes outputs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queries {
    All,
    Latest,
}

/// Computes vectors of ln(1 + days since the event before) from ages, which are ln(1 + days).
fn gaps(graph: &mut GraphWriter, gap: &[f32]) {
    graph.node("Exp", &["ages"], "days_and_one", &[]);
    graph.node("Slice", &["days_and_one", "axis_0", "axis_1", "axis_1"], "oldest", &[]);
    graph.node("Slice", &["days_and_one", "axis_0", "axis_last", "axis_1"], "all_but_latest", &[]);
    graph.node("Concat", &["oldest", "all_but_latest"], "days_before", &[("axis", Attribute::Int(1))]);
    graph.node("Sub", &["days_before", "days_and_one"], "days_between", &[]);
    graph.node("Relu", &["days_between"], "gap_days", &[]);
    graph.node("Add", &["gap_days", "one"], "gap_days_and_one", &[]);
    graph.node("Log", &["gap_days_and_one"], "gaps2", &[]);
    graph.node("Unsqueeze", &["gaps2", "axis_last"], "gaps", &[]);
    graph.weights("gap_vector", &[gap.len()], gap);
    graph.node("Mul", &["gaps", "gap_vector"], "gap_vectors", &[]);
}

/// Writes one block and returns the name of its output.
fn write_block(
    graph: &mut GraphWriter,
    name: &str,
    block: &BlockWeights,
    x: &str,
    bias: &str,
    queries: Queries,
) -> String {
    let d = block.norm.len() / 2;
    let of = |part: &str| format!("{name}.{part}");
    write_norm(graph, x, &of("normed"), block.norm);
    let (mut own, mut own_normed) = (x.to_owned(), of("normed"));
    if queries == Queries::Latest {
        (own, own_normed) = (of("latest"), of("latest_normed"));
        graph.node("Slice", &[x, "axis_last", "end", "axis_1"], &own, &[]);
        graph.node("Slice", &[&of("normed"), "axis_last", "end", "axis_1"], &own_normed, &[]);
    }
    // Scales the weights of the queries instead of the attention scores.
    let scale = 1.0 / (d as f32).sqrt();
    for (part, at, input, scale) in
        [("query", 0, &own_normed, scale), ("key", 1, &of("normed"), 1.0), ("value", 2, &of("normed"), 1.0)]
    {
        let columns = |row: &[f32]| row[at * d..(at + 1) * d].iter().map(|x| x * scale).collect::<Vec<f32>>();
        let (matrix, bias) = block.qkv.split_at(3 * d * d);
        let matrix: Vec<f32> = matrix.chunks_exact(3 * d).flat_map(columns).collect();
        graph.linear(input, &of(part), [d, d], &matrix, &columns(bias));
    }
    graph.node("Transpose", &[&of("key")], &of("keys"), &[("perm", Attribute::Ints(vec![0, 2, 1]))]);
    graph.node("MatMul", &[&of("query"), &of("keys")], &of("scores"), &[]);
    graph.node("Add", &[&of("scores"), bias], &of("biased"), &[]);
    graph.node("Softmax", &[&of("biased")], &of("weights"), &[("axis", Attribute::Int(-1))]);
    graph.node("MatMul", &[&of("weights"), &of("value")], &of("read"), &[]);
    write_linear(graph, &of("read"), &of("attended"), d, block.attended);
    graph.node("Add", &[&own, &of("attended")], &of("hidden"), &[]);
    write_norm(graph, &of("hidden"), &of("hidden_normed"), block.norm_ffn);
    write_linear(graph, &of("hidden_normed"), &of("ffn_in"), d, block.ffn_in);
    graph.gelu(&of("ffn_in"), &of("activated"));
    write_linear(graph, &of("activated"), &of("ffn_out"), FFN_FACTOR * d, block.ffn_out);
    graph.node("Add", &[&of("hidden"), &of("ffn_out")], &of("out"), &[]);
    of("out")
}

fn write_linear(graph: &mut GraphWriter, input: &str, output: &str, inputs: usize, matrix_and_bias: &[f32]) {
    let outputs = matrix_and_bias.len() / (inputs + 1);
    let (matrix, bias) = matrix_and_bias.split_at(inputs * outputs);
    graph.linear(input, output, [inputs, outputs], matrix, bias);
}

fn write_norm(graph: &mut GraphWriter, input: &str, output: &str, gain_and_bias: &[f32]) {
    let (gain, bias) = (format!("{output}.gain"), format!("{output}.bias"));
    let half = gain_and_bias.len() / 2;
    graph.weights(&gain, &[half], &gain_and_bias[..half]);
    graph.weights(&bias, &[half], &gain_and_bias[half..]);
    let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(1e-6))];
    graph.node("LayerNormalization", &[input, &gain, &bias], output, &attributes);
}

/// Compares ONNX Runtime with the trained encoder on random histories of different lengths, alone and in one padded
/// batch.
fn check(encoder: &SequenceEncoder, onnx: &[u8], runtime: &Runtime) -> Result<ExportCheck, ModelError> {
    let (width, events) = (encoder.width(), encoder.shape().positions);
    let mut session = UserEncoder::open(runtime, onnx, width, Device::Cpu)?;
    let mut rng = StdRng::seed_from_u64(7);
    let (mut pairs, mut inputs) = (Vec::new(), Vec::new());
    for length in (1..events).step_by(events.div_ceil(CHECKED_LENGTHS)).chain([events]) {
        let mut days: Vec<f32> = (0..length).map(|_| rng.random_range(0.0..60.0)).collect();
        days.sort_unstable_by(|a, b| b.total_cmp(a));
        let input = UserInput {
            items: (0..length * width).map(|_| rng.random_range(-0.3..0.3)).collect(),
            kinds: (0..length).map(|_| rng.random_range(1..15)).collect(),
            positions: (0..length as i64).rev().collect(),
            ages: days.iter().map(|days| days.ln_1p()).collect(),
        };
        let kinds: Vec<u8> = input.kinds.iter().map(|kind| *kind as u8).collect();
        let gap = |index: usize| if index == 0 { 0.0 } else { (days[index - 1] - days[index]).ln_1p() };
        let gaps: Vec<f32> = (0..length).map(gap).collect();
        let tokens = Tokens { items: &[], kinds: &kinds, gaps: &gaps };
        let expected = encoder.encode_direction(&input.items, tokens);
        pairs.push((expected, session.encode_batch(std::slice::from_ref(&input))?));
        inputs.push(input);
    }
    // In one batch, each history is padded to the longest.
    let batch = session.encode_batch(&inputs)?;
    let alone: Vec<f32> = pairs.iter().flat_map(|(_, alone)| alone.iter().copied()).collect();
    pairs.push((alone, batch));
    compare("user_encoder", &pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{ids::EventId, units::Quantity};
    use lodestone_events::EventLine;

    fn event(kind: EventKind, hour: i64, items: &[u32]) -> Event {
        let line = |item: &u32| EventLine {
            item: ItemId::parse(&item.to_string()).unwrap(),
            quantity: Quantity::ONE,
            price: None,
            rank: 0,
        };
        let (user, at) = (UserId::signed_in("p").unwrap(), UnixMillis(hour * 3_600_000));
        Event { lines: items.iter().map(line).collect(), ..Event::new(EventId::parse("e").unwrap(), kind, user, at) }
    }

    fn samples(events: &[Event], hours: Range<i64>) -> Vec<UserSample> {
        samples_of(events, hours, EncoderSettings::default().events)
    }

    fn samples_of(events: &[Event], hours: Range<i64>, events_max: usize) -> Vec<UserSample> {
        let row_of = (0..1000).map(|item| (ItemId::parse(&item.to_string()).unwrap(), item)).collect();
        let time = |hour: i64| UnixMillis(hour * 3_600_000);
        user_samples(events, &row_of, time(hours.start)..time(hours.end), events_max)
    }

    #[test]
    fn a_basket_is_one_target_set_after_its_history() {
        let events = [
            event(EventKind::Purchase, 0, &[1, 2]),
            event(EventKind::RemoveFromCart, 24, &[1]),
            event(EventKind::Purchase, 48, &[4, 3, 4]),
            event(EventKind::View, 72, &[5]),
        ];
        let [sample] = &samples(&events, 0..100)[..] else { panic!("one window") };
        assert_eq!((&sample.items[..], &sample.kinds[..]), (&[1, 2, 1, 4, 3, 4][..], &[10, 10, 6, 10, 10, 10][..]));
        let day = 2.0f32.ln();
        assert!(sample.gaps.iter().zip([0.0, 0.0, day, day, 0.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6));
        let targets = [(2, vec![(3, 0.5), (4, 0.5)]), (5, vec![(5, 0.4)])];
        assert_eq!(sample.targets, targets);
        assert!(samples(&events, 0..48).is_empty(), "the basket is at the end, which is exclusive");
        assert_eq!(samples(&events, 60..100)[0].targets, targets[1..], "earlier interactions are input only");
    }

    #[test]
    fn events_at_one_time_are_one_target_set() {
        use EventKind::{Purchase, View};
        let events =
            [event(View, 1, &[0]), event(Purchase, 2, &[1]), event(Purchase, 2, &[2]), event(Purchase, 3, &[3])];
        let [sample] = &samples(&events, 0..100)[..] else { panic!("one window") };
        assert_eq!(sample.items, [0, 1, 2]);
        let targets: Vec<(u32, Vec<u32>)> = sample
            .targets
            .iter()
            .map(|(event, items)| (*event, items.iter().map(|(item, _)| *item).collect()))
            .collect();
        assert_eq!(targets, [(0, vec![1, 2]), (2, vec![3])]);
    }

    #[test]
    fn a_purchase_that_was_refunded_in_full_is_neither_input_nor_target() {
        let events = [
            event(EventKind::View, 0, &[7]),
            event(EventKind::Purchase, 24, &[1, 2]),
            event(EventKind::Purchase, 48, &[3]),
            event(EventKind::Refund, 72, &[1]),
            event(EventKind::Refund, 73, &[3]),
            event(EventKind::View, 96, &[5]),
        ];
        let [sample] = &samples(&events, 0..100)[..] else { panic!("one window") };
        assert_eq!((&sample.items[..], &sample.kinds[..]), (&[7, 2][..], &[3, 10][..]));
        assert_eq!(sample.targets, [(0, vec![(2, 1.0)]), (1, vec![(5, 0.4)])]);
        let [early] = &samples(&events, 0..60)[..] else { panic!("one window") };
        assert_eq!(early.items, [7, 1, 2], "a refund at or after the end is not known");
    }

    #[test]
    fn windows_contain_each_interaction_as_target_once_with_enough_context() {
        let events: Vec<Event> = (0..333).map(|hour| event(EventKind::View, hour, &[hour as u32])).collect();
        for events_max in [8, 50, 200] {
            let mut targets = Vec::new();
            for sample in samples_of(&events, 0..1000, events_max) {
                assert!(sample.items.len() <= events_max && sample.gaps[0] == 0.0);
                for (event, items) in &sample.targets {
                    let item = items[0].0;
                    assert_eq!(sample.items[*event as usize] + 1, item, "the target follows its event");
                    assert!(*event as usize + 1 >= (events_max / 2).min(item as usize), "{event} events before {item}");
                    targets.push(item);
                }
            }
            assert_eq!(targets, (1..333).collect::<Vec<u32>>(), "windows of {events_max} events");
        }
    }
}

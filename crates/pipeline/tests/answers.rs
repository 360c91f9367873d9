//! Replay of answers: an answer that is replayed from its record is equal to the bit, whatever rules apply, and a
//! changed record is detected. A stand-in with two heads replaces the models; `tests/server/run.py` replays answers of
//! a real server.
use lodestone_pipeline::{
    answers::{
        AnswerRecord, ExplorationRecord, ObjectiveRecord, ObjectivesRecord, PinRecord, RankingRecord, ReplayError,
        ReplayModels, SlotRecord, encode_columns, replay, seed_of, slate_checksum, team_number,
    },
    policy::{
        BaseScores, BlendInput, CandidateIndex, Exploration, HeadColumns, ObjectiveFacts, ObjectiveMix, PinSlot,
        PolicyInput, Ranking, arrange, blend, joint,
    },
};
use lodestone_rules::Objective;
use proptest::prelude::*;

const FEATURES: usize = 3;
const HEADS: [&str; 2] = ["purchase", "refund"];
const DIMENSIONS: usize = 4;
/// Rows of the bundle. Candidates from this number on are items that were added later.
const BUNDLE_ROWS: usize = 12;

/// A generation whose probabilities are sigmoids of sums of features.
struct StandIn {
    vectors: Vec<Vec<f32>>,
}

impl ReplayModels for StandIn {
    fn probabilities(&mut self, features: &[f32]) -> Result<Vec<f32>, ReplayError> {
        let heads = |row: &[f32]| {
            let sum: f32 = row.iter().sum();
            [sum, sum / 3.0 - row[0]].map(|logit| 1.0 / (1.0 + (-logit).exp()))
        };
        Ok(features.chunks_exact(FEATURES).flat_map(heads).collect())
    }

    fn vector(&self, bundle_row: u32) -> Option<&[f32]> {
        self.vectors.get(bundle_row as usize).map(Vec::as_slice).filter(|_| (bundle_row as usize) < BUNDLE_ROWS)
    }
}

/// Features of candidates, and all options of a shop and a request that affect an answer.
#[derive(Debug, Clone)]
struct Case {
    features: Vec<f32>,
    vectors: Vec<f32>,
    weights: [[f32; HEADS.len()]; 2],
    is_interleaved: bool,
    uses_model: bool,
    diversity: f32,
    repeat_fraction: Option<f32>,
    tiers: Vec<u8>,
    boosts: Vec<(f32, u64)>,
    fields: Option<Vec<u32>>,
    pins: Vec<(Option<usize>, usize)>,
    exploration: Option<Exploration>,
    page_size: usize,
    id: [u8; 16],
    /// The weight of LOYALTY next to REVENUE, and the limit of the loss.
    objectives: Option<(f32, f32)>,
}

fn cases() -> impl Strategy<Value = Case> {
    let exploration = (0f64..2.0, 1usize..4, 1usize..12, prop::collection::btree_set(1usize..9, 0..3), 0f64..1.0)
        .prop_map(|(temperature, first_slot, top, slots, epsilon)| Exploration {
            temperature,
            first_slot,
            top,
            epsilon_slots: slots.into_iter().collect(),
            epsilon,
            epsilon_candidates: 5,
            share: 0.8,
        });
    (1usize..24).prop_flat_map(move |count| {
        (
            (
                prop::collection::vec(-3f32..3.0, count * FEATURES),
                prop::collection::vec(-1f32..1.0, count * DIMENSIONS),
                prop::array::uniform2(prop::array::uniform2(-1f32..2.0)),
                any::<bool>(),
                any::<bool>(),
                (prop::sample::select(vec![0.0f32, 0.3, 0.9]), prop::option::weighted(0.3, 0f32..=1.0)),
            ),
            (
                prop::sample::select(vec![true, false])
                    .prop_flat_map(move |has| prop::collection::vec(0u8..3, if has { count } else { 0 })),
                prop::collection::vec((0.2f32..5.0, any::<u64>()), 0..3),
                prop::option::weighted(0.2, prop::collection::vec(0u32..5, count)),
                prop::collection::vec((prop::option::of(0..count + 2), 1usize..20), 0..4),
                prop::option::of(exploration.clone()),
                1usize..12,
                any::<[u8; 16]>(),
                prop::option::of((0f32..1.0, prop::sample::select(vec![0.0f32, 0.02, 1.0]))),
            ),
        )
            .prop_map(
                |(
                    (features, vectors, weights, is_interleaved, uses_model, (diversity, repeat_fraction)),
                    (tiers, boosts, fields, pins, exploration, page_size, id, objectives),
                )| Case {
                    features,
                    vectors,
                    weights,
                    is_interleaved,
                    uses_model,
                    diversity,
                    repeat_fraction,
                    tiers,
                    boosts,
                    fields,
                    pins,
                    exploration,
                    page_size,
                    id,
                    objectives,
                },
            )
    })
}

impl Case {
    fn count(&self) -> usize {
        self.features.len() / FEATURES
    }

    fn stand_in(&self) -> StandIn {
        StandIn { vectors: self.vectors.chunks_exact(DIMENSIONS).map(<[f32]>::to_vec).collect() }
    }

    /// Arranges an answer as the engine does and returns its record.
    fn record(&self) -> AnswerRecord {
        let count = self.count();
        let heads = if self.uses_model { self.stand_in().probabilities(&self.features).unwrap() } else { Vec::new() };
        let fused: Vec<f32> = self.features.chunks_exact(FEATURES).map(|row| row[1]).collect();
        let counts = [count, count - count / 3];
        let rankings = &self.weights[..1 + usize::from(self.is_interleaved)];
        let scores: Vec<Vec<f32>> = (rankings.iter().zip(counts))
            .map(|(weights, count)| {
                let base = BaseScores { heads: &heads, weights, fused: &fused, tiers: &self.tiers };
                let Some(mix) = self.mix(&heads) else { return base.scores(count).unwrap() };
                let input = BlendInput {
                    mix: &mix,
                    facts: &self.facts(),
                    columns: HeadColumns::new(HEADS.into_iter()),
                    heads: &heads,
                    tiers: &self.tiers,
                    slots: self.page_size,
                };
                base.with_tiers(blend(base.relevance(count).unwrap(), &input).scores)
            })
            .collect();
        let factors: Vec<f32> = self.boosts.iter().map(|boost| boost.0).collect();
        let mask = |at: usize| self.boosts.iter().enumerate().map(|(b, boost)| (boost.1 >> (at % 32) & 1) << b).sum();
        let masks: Vec<u64> = (0..count).map(mask).collect();
        let fields = self.fields.clone().unwrap_or_default();
        let pins: Vec<PinSlot> = self
            .pins
            .iter()
            .map(|(row, rank)| PinSlot { candidate: row.map(|row| CandidateIndex(row as u32)), rank: *rank })
            .collect();
        let exploration = self.exploration.clone().filter(|_| !self.is_interleaved);
        let (diversity, repeat_fraction) = (self.diversity, self.repeat_fraction);
        let ranked: Vec<Ranking> = scores.iter().map(|scores| Ranking { scores, diversity, repeat_fraction }).collect();
        let repeats: Vec<bool> = match repeat_fraction {
            Some(_) => self.features.chunks_exact(FEATURES).map(|row| row[0] > 0.0).collect(),
            None => Vec::new(),
        };
        let seed = seed_of(&self.id);
        let input = PolicyInput {
            rankings: &ranked,
            boost_factors: &factors,
            boost_masks: &masks,
            field_ranks: &fields,
            repeats: &repeats,
            pins: &pins,
            exploration: exploration.as_ref(),
            seed,
        };
        let vectors = self.stand_in().vectors;
        let arranged = arrange(&input, |candidate| &vectors[candidate.index()]);
        let items: Vec<String> = (0..count + 2).map(|number| format!("item {number}")).collect();
        let is_diverse = self.diversity > 0.0 && fields.is_empty();
        let live = self.vectors.get(BUNDLE_ROWS * DIMENSIONS..).unwrap_or_default();
        AnswerRecord {
            id: self.id.to_vec(),
            candidate_count: count as u32,
            features: encode_columns(&self.features, FEATURES),
            feature_count: FEATURES as u32,
            heads: HEADS.map(str::to_owned).to_vec(),
            head_values: heads.clone(),
            rankings: (rankings.iter().zip(counts).enumerate())
                .map(|(at, (weights, count))| RankingRecord {
                    serving_config: format!("config {at}"),
                    serving_config_etag: String::new(),
                    weights: weights.to_vec(),
                    candidate_count: count as u32,
                    diversity: self.diversity,
                    repeat_fraction: self.repeat_fraction,
                    objectives: self.mix(&heads).map(|mix| ObjectivesRecord {
                        weights: (mix.weights.iter())
                            .map(|(objective, weight)| ObjectiveRecord {
                                objective: (*objective).into(),
                                weight: *weight,
                            })
                            .collect(),
                        ndcg_loss_max: mix.ndcg_loss_max,
                        slots: self.page_size as u32,
                        ..ObjectivesRecord::default()
                    }),
                    order: arranged.orders.get(at).cloned().unwrap_or_default(),
                })
                .collect(),
            tiers: self.tiers.clone(),
            fused,
            boost_factors: factors,
            boost_masks: masks,
            field_ranks: fields,
            repeats,
            pins: pins
                .iter()
                .map(|pin| PinRecord { item: pin.candidate.map(|candidate| candidate.0), rank: pin.rank as u32 })
                .collect(),
            exploration: exploration.as_ref().map(ExplorationRecord::from),
            seed,
            explored: arranged.explored,
            slots: (arranged.placed.iter().take(self.page_size))
                .map(|slot| SlotRecord {
                    item: slot.candidate.0,
                    score: slot.score,
                    conditional: slot.conditional,
                    is_pinned: slot.is_pinned,
                    team: team_number(slot.team),
                    reasons: Vec::new(),
                })
                .collect(),
            slate_size: arranged.placed.len() as u32,
            slate_checksum: slate_checksum(
                arranged
                    .placed
                    .iter()
                    .map(|slot| (items[slot.candidate.index()].as_str(), slot.score, slot.conditional)),
            ),
            vector_rows: (0..if is_diverse { count } else { 0 })
                .map(|row| if row < BUNDLE_ROWS { row as u32 + 1 } else { 0 })
                .collect(),
            live_vectors: if is_diverse { encode_columns(live, DIMENSIONS) } else { Vec::new() },
            vector_dimensions: DIMENSIONS as u32,
            organic_items: arranged.organic.iter().map(|slot| slot.candidate.0).collect(),
            organic_scores: arranged.organic.iter().map(|slot| slot.score).collect(),
            pinned_slots: (arranged.placed.iter().zip(1..))
                .filter(|(slot, _)| slot.is_pinned)
                .map(|(_, number)| number)
                .collect(),
            items,
            prices: self.facts().prices,
            return_risk: self.facts().return_risk,
            ..AnswerRecord::default()
        }
    }

    /// The objectives of all rankings; none if the ranking model did not run.
    fn mix(&self, heads: &[f32]) -> Option<ObjectiveMix> {
        let (loyalty, ndcg_loss_max) = self.objectives.filter(|_| !heads.is_empty())?;
        let weights = vec![(Objective::Revenue, 1.0 - loyalty), (Objective::Loyalty, loyalty)];
        Some(ObjectiveMix { weights, ndcg_loss_max })
    }

    fn facts(&self) -> ObjectiveFacts {
        let price = |row: &[f32]| if row[0] < 0.0 { f32::NAN } else { 1.0 + row[0] };
        let prices = self.features.chunks_exact(FEATURES).map(price).collect();
        ObjectiveFacts { prices, margins: Vec::new(), return_risk: Some(0.6) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_replayed_answer_is_equal_to_the_bit(case in cases()) {
        let record = case.record();
        let replayed = replay(&record, &mut case.stand_in()).unwrap();
        prop_assert_eq!(&replayed.difference, &None, "{:?}", case);
        let shown: Vec<u32> = record.slots.iter().map(|slot| slot.item).collect();
        let arranged: Vec<u32> = replayed.arranged.placed.iter().take(shown.len()).map(|slot| slot.candidate.0).collect();
        prop_assert_eq!(shown, arranged);
    }

    #[test]
    fn propensities_are_probabilities_of_the_shown_slots(case in cases()) {
        let record = case.record();
        let propensities = record.propensities(50).unwrap();
        prop_assert_eq!(propensities.len(), record.slots.len());
        for (slot, propensity) in record.slots.iter().zip(&propensities) {
            let probability = propensity.marginal.probability;
            prop_assert!(probability > 0.0 && probability <= 1.0 + 1e-9, "{:?}", propensity);
            if slot.is_pinned {
                prop_assert_eq!((probability, propensity.marginal.standard_error), (1.0, 0.0));
            }
        }
        if record.exploration.is_none() && record.rankings.len() == 1 {
            prop_assert!(propensities.iter().all(|propensity| propensity.marginal.probability == 1.0));
        }
        // A page that was shown has a positive joint probability.
        let conditionals: Vec<f64> = record.slots.iter().map(|slot| slot.conditional).collect();
        prop_assert!(joint(&conditionals) > 0.0);
    }

    #[test]
    fn a_changed_record_is_detected(case in cases(), field in 0usize..6, at in any::<prop::sample::Index>(), bit in 0u32..32) {
        let mut record = case.record();
        let changed = |value: f32| f32::from_bits(value.to_bits() ^ 1 << bit);
        match field {
            0 if !record.head_values.is_empty() => {
                let at = at.index(record.head_values.len());
                record.head_values[at] = changed(record.head_values[at]);
            }
            1 => {
                let at = at.index(record.slots.len());
                record.slots[at].score = changed(record.slots[at].score);
            }
            2 if record.slots.len() > 1 => {
                let last = record.slots.len() - 1;
                record.slots.swap(0, last);
            }
            3 => record.slate_checksum ^= 1 << bit,
            4 => record.slate_size += 1,
            5 => record.slots[0].conditional /= 2.0,
            _ => return Ok(()),
        }
        let replayed = replay(&record, &mut case.stand_in()).unwrap();
        prop_assert!(replayed.difference.is_some());
    }

    #[test]
    fn a_damaged_record_is_an_error_and_no_panic(case in cases(), cut in any::<prop::sample::Index>(), field in 0usize..10) {
        let mut record = case.record();
        match field {
            0 => record.features.truncate(cut.index(record.features.len() + 1)),
            1 => record.items.truncate(cut.index(record.items.len() + 1)),
            2 => record.head_values.truncate(cut.index(record.head_values.len() + 1)),
            3 => record.fused.truncate(cut.index(record.fused.len() + 1)),
            4 => record.vector_rows.iter_mut().for_each(|row| *row = row.wrapping_mul(77_777)),
            5 => record.live_vectors.truncate(cut.index(record.live_vectors.len() + 1)),
            6 => record.candidate_count = record.candidate_count.wrapping_sub(cut.index(40) as u32),
            7 => record.organic_items.truncate(cut.index(record.organic_items.len() + 1)),
            8 => record.slots.iter_mut().for_each(|slot| slot.item = u32::MAX),
            _ => record.rankings.clear(),
        }
        let _ = replay(&record, &mut case.stand_in());
        let _ = record.rows(3);
    }
}

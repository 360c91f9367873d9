//! How the losses of a training went.
use super::Progress;

/// The losses of a training as it went, by stage: `training.json` of a bundle.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct LossCurves {
    /// By name: steps and losses.
    pub curves: Vec<(String, Vec<(usize, f32)>)>,
}

impl LossCurves {
    /// Points that are kept of a curve.
    const POINTS_MAX: usize = 200;

    pub(super) fn note(&mut self, step: Progress) {
        if step.loss.is_finite() {
            if self.curves.last().is_none_or(|(name, _)| name != step.stage) {
                self.curves.push((step.stage.to_owned(), Vec::new()));
            }
            self.curves.last_mut().expect("one was pushed").1.push((step.done, step.loss));
        }
    }

    pub(super) fn add(&mut self, name: &str, points: &[(usize, f32)]) {
        let finite = points.iter().copied().filter(|point| point.1.is_finite());
        self.curves.push((name.to_owned(), finite.collect()));
    }

    /// Means of neighbouring points, so that each curve has at most [`Self::POINTS_MAX`].
    pub(super) fn thinned(&self) -> Self {
        let thin = |points: &Vec<(usize, f32)>| {
            let size = points.len().div_ceil(Self::POINTS_MAX).max(1);
            let mean = |part: &[(usize, f32)]| part.iter().map(|point| point.1).sum::<f32>() / part.len() as f32;
            points.chunks(size).map(|part| (part[part.len() - 1].0, mean(part))).collect()
        };
        Self { curves: self.curves.iter().map(|(name, points)| (name.clone(), thin(points))).collect() }
    }
}

//! Progress bars of long commands, on standard error.
use indicatif::{ProgressBar, ProgressStyle};
use lodestone_training::Progress;

/// `position`: the template's part that shows how much is done, such as `{pos}/{len}`.
pub(crate) fn style(position: &str) -> ProgressStyle {
    let template = format!("{{msg:<28}} [{{bar:30}}] {position} {{per_sec}} {{elapsed}} left {{eta}}");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// The bar of the current training stage. Each stage has its own.
#[derive(Default)]
pub(crate) struct StageBars {
    current: Option<(&'static str, ProgressBar)>,
}

impl StageBars {
    pub(crate) fn show(&mut self, step: Progress) {
        if self.current.as_ref().is_none_or(|(stage, _)| *stage != step.stage) {
            self.finish();
            self.current = Some((step.stage, ProgressBar::new(step.total as u64).with_style(style("{pos}/{len}"))));
        }
        let Some((stage, bar)) = &self.current else { return };
        bar.set_length(step.total as u64);
        bar.set_position(step.done as u64);
        match step.loss.is_finite() {
            true => bar.set_message(format!("{stage} loss {:.4}", step.loss)),
            false => bar.set_message(*stage),
        }
    }

    pub(crate) fn finish(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish();
        }
    }
}

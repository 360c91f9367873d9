//! Formats a report as text and as an HTML page.
use crate::{
    analysis::{ArmCount, Comparison, ExperimentReport, MetricReport},
    interleaving::InterleavingReport,
    plots::{self, Line, PAGE_STYLE, STYLE, Scales, escape, section, short, wide},
};
use lodestone_core::{statistics::SequentialInterval, units::UnixMillis};
use std::fmt::{self, Write};

fn duration(ms: i64) -> String {
    match ms % UnixMillis::DAY {
        0 => format!("{} days", ms / UnixMillis::DAY),
        _ => format!("{} hours", short(ms as f64 / 3_600_000.0)),
    }
}

fn p_value(p: f64) -> String {
    if p < 0.0001 { "below 0.0001".to_owned() } else { format!("{p:.4}") }
}

/// Formats a value that is unknown without users.
fn known(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.5}"))
}

fn bracketed(interval: &SequentialInterval) -> String {
    format!("{:+.5} [{:+.5}, {:+.5}]", interval.difference, interval.low, interval.high)
}

/// The verdict before an arm has enough users for an interval.
const INSUFFICIENT: &str = "insufficient data";

impl Comparison {
    /// The conclusion from the interval.
    fn verdict(&self) -> &'static str {
        match &self.interval {
            None => INSUFFICIENT,
            Some(interval) if interval.low > 0.0 => "higher",
            Some(interval) if interval.high < 0.0 => "lower",
            Some(_) => "not decided",
        }
    }

    fn summary(&self) -> String {
        let Some(interval) = &self.interval else { return INSUFFICIENT.to_owned() };
        let relative = self.relative.map_or_else(String::new, |relative| format!(" ({:+.1} %)", 100.0 * relative));
        format!("{}{relative}, p {}, {}", bracketed(interval), p_value(interval.p), self.verdict())
    }
}

impl ExperimentReport {
    /// Returns known problems of the experiment itself, which make its differences invalid.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(ratio) = self.sample_ratio.as_ref().filter(|ratio| ratio.mismatch) {
            warnings.push(format!(
                "SAMPLE RATIO MISMATCH: the split of users differs from the expected shares (chi-square {:.1}, p {}). \
                 Something loses or adds users in one arm; no difference below is valid.",
                ratio.chi_square,
                p_value(ratio.p)
            ));
        }
        let users: u64 = self.arms.iter().map(|arm| arm.users).sum();
        if self.left_out.several_arms * 100 > users {
            warnings.push(format!(
                "{} users received more than one arm and are excluded; check whether shares changed while the experiment ran",
                self.left_out.several_arms
            ));
        }
        warnings
    }

    /// Returns one self-contained HTML page.
    pub fn page(&self) -> String {
        let mut html = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\"><title>Experiment {0}</title><style>{PAGE_STYLE}{STYLE}p.warning{{color:#cf222e;font-weight:600}}\
             </style></head><body><h1>Experiment {0}</h1><p>{1} to {2}. Outcomes count for {3} after the first answer of a \
             user.</p>",
            escape(&self.experiment),
            UnixMillis(self.from_ms),
            UnixMillis(self.until_ms),
            escape(&duration(self.window_ms))
        );
        for warning in self.warnings() {
            let _ = write!(html, "<p class=\"warning\">{}</p>", escape(&warning));
        }
        self.arms_table(&mut html);
        for metric in &self.metrics {
            metric.section(&mut html, &self.control);
        }
        for interleaving in &self.interleaving {
            section(&mut html, &format!("Interleaving: {}", interleaving.kind), &interleaving.to_string());
        }
        html.push_str("</body></html>\n");
        html
    }

    fn arms_table(&self, html: &mut String) {
        let note = match &self.sample_ratio {
            Some(ratio) => format!("Sample ratio: chi-square {:.2}, p {}.", ratio.chi_square, p_value(ratio.p)),
            None => "One arm, so there is no split to check.".to_owned(),
        };
        section(html, "Arms", &note);
        html.push_str(
            "<table><tr><th></th><th>users</th><th>expected</th><th>counted</th><th>answers</th><th>sessions</th></tr>",
        );
        let users: u64 = self.arms.iter().map(|arm| arm.users).sum();
        for arm in &self.arms {
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&arm.name),
                arm.users,
                arm.expected_share * users as f64,
                arm.counted,
                arm.answers,
                arm.sessions
            );
        }
        let _ = write!(
            html,
            "</table><p>Excluded: {} users in several arms; {} whose window is not over.</p>",
            self.left_out.several_arms, self.left_out.open_window
        );
    }
}

impl MetricReport {
    fn section(&self, html: &mut String, control: &str) {
        section(
            html,
            &self.name,
            "95 % intervals that are valid at every look; an experiment may be stopped when one excludes 0.",
        );
        html.push_str("<div class=\"wide\"><table><tr><th></th><th>mean</th><th>standard deviation</th><th>minus control</th></tr>");
        for arm in &self.arms {
            let comparison = self.comparisons.iter().find(|comparison| comparison.arm == arm.arm);
            let summary = comparison.map_or_else(|| "control".to_owned(), Comparison::summary);
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&arm.arm),
                known(arm.mean),
                known(arm.standard_deviation),
                escape(&summary)
            );
        }
        html.push_str("</table></div>");
        for comparison in self.comparisons.iter().filter(|comparison| comparison.history.len() > 1) {
            let line = |name: &str, of: &dyn Fn(&SequentialInterval) -> f64| Line {
                name: name.to_owned(),
                points: comparison.history.iter().map(|look| (look.users as f64, of(&look.interval))).collect(),
            };
            let difference = format!("{} minus {control}", comparison.arm);
            let lines = [
                line(&difference, &|interval| interval.difference),
                line("lower endpoint", &|interval| interval.low),
                line("upper endpoint", &|interval| interval.high),
                line("no difference", &|_| 0.0),
            ];
            wide(html, &plots::lines(&lines, "users", "difference", Scales::Independent));
        }
    }
}

impl fmt::Display for InterleavingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} users in {} answers; {} on picks of A {}, of B {}; users for A {}, for B {}, even {}; sign test p {}",
            self.users,
            self.answers,
            self.kind,
            self.credits_a,
            self.credits_b,
            self.prefer_a,
            self.prefer_b,
            self.ties,
            p_value(self.p)
        )?;
        match (self.balance_low, self.balance_high) {
            (Some(low), Some(high)) => write!(f, "; balance {:+.4} [{low:+.4}, {high:+.4}]", self.balance),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ExperimentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "experiment {}, {} to {}; outcomes count for {} after the first answer",
            self.experiment,
            UnixMillis(self.from_ms),
            UnixMillis(self.until_ms),
            duration(self.window_ms)
        )?;
        for warning in self.warnings() {
            writeln!(f, "{warning}")?;
        }
        let users: u64 = self.arms.iter().map(|arm| arm.users).sum();
        let [arm, expected, rest @ ..] = ["arm", "expected", "users", "counted", "answers", "sessions"];
        let [of_users, counted, answers, sessions] = rest;
        writeln!(f, "\n{arm:<24} {of_users:>9} {expected:>11} {counted:>9} {answers:>9} {sessions:>9}")?;
        for arm in &self.arms {
            let expected = arm.expected_share * users as f64;
            let name = if arm.name == self.control { format!("{} (control)", arm.name) } else { arm.name.clone() };
            let ArmCount { users, counted, answers, sessions, .. } = arm;
            writeln!(f, "{name:<24} {users:>9} {expected:>11.1} {counted:>9} {answers:>9} {sessions:>9}")?;
        }
        if let Some(ratio) = &self.sample_ratio {
            writeln!(f, "sample ratio: chi-square {:.2}, p {}", ratio.chi_square, p_value(ratio.p))?;
        }
        writeln!(
            f,
            "excluded: {} users in several arms, {} whose window is not over",
            self.left_out.several_arms, self.left_out.open_window
        )?;
        for metric in &self.metrics {
            writeln!(f, "\n{}", metric.name)?;
            for arm in &metric.arms {
                let comparison = metric.comparisons.iter().find(|comparison| comparison.arm == arm.arm);
                let summary = comparison.map_or_else(String::new, Comparison::summary);
                writeln!(f, "{}", format!("  {:<22} {:>9}  {summary}", arm.arm, known(arm.mean)).trim_end())?;
            }
        }
        if !self.metrics.is_empty() && self.arms.len() > 1 {
            writeln!(f, "\n95 % intervals that are valid at every look")?;
        }
        for interleaving in &self.interleaving {
            writeln!(f, "\ninterleaving by {}: {interleaving}", interleaving.kind)?;
        }
        Ok(())
    }
}

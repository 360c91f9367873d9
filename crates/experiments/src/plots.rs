//! Plots as SVG text, and the style sheet of self-contained HTML pages.
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LINES_HEIGHT: f64 = 260.0;
/// The style sheet of the plots.
pub const STYLE: &str = "svg text{font:11px system-ui,sans-serif;fill:#57606a}svg .axis{fill:#1f2328}polyline{fill:none;\
stroke-width:1.8}.grid{stroke:#d8dee4}.diagonal{stroke:#8c959f;stroke-dasharray:4}.interval{stroke:#1f2328}.zero{stroke:#8c959f}";
const COLOURS: [&str; 6] = ["#1f6feb", "#d29922", "#2da44e", "#cf222e", "#8250df", "#57606a"];

/// The style sheet of a page, without that of the plots, [`STYLE`].
pub const PAGE_STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#1f2328;max-width:780px;margin:2em auto;padding:0 1em}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #d0d7de}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2em .8em;text-align:right;\
border-bottom:1px solid #d8dee4;white-space:nowrap}table{font-size:13px}td:first-child,th:first-child{text-align:left}\
svg{display:block;width:100%;min-width:600px;height:auto}.wide{overflow-x:auto}p.note{color:#57606a}";

/// A named line of points.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A named value with its interval.
pub struct Bar {
    pub name: String,
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

impl Bar {
    /// Returns the value, with its interval if it has one.
    fn text(&self) -> String {
        match self.low < self.high {
            true => format!("{} [{}, {}]", short(self.mean), short(self.low), short(self.high)),
            false => short(self.mean),
        }
    }
}

/// A group of bars, one for each series.
pub struct BarGroup {
    pub name: String,
    pub bars: Vec<Bar>,
}

/// Escapes text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Writes a heading and a note.
pub fn section(html: &mut String, title: &str, note: &str) {
    let _ = write!(html, "<h2>{}</h2><p class=\"note\">{}</p>", escape(title), escape(note));
}

/// Writes content that may be wider than a small screen, in a frame that scrolls.
pub fn wide(html: &mut String, content: &str) {
    let _ = write!(html, "<div class=\"wide\">{content}</div>");
}

/// Formats a number for an axis.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.3}"),
        size if size >= 0.0001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// Returns whether a number can be drawn. Axes compute differences of numbers, which must not overflow.
fn is_drawable(value: f64) -> bool {
    value.abs() < 1e300
}

fn drawable(point: &&(f64, f64)) -> bool {
    is_drawable(point.0) && is_drawable(point.1)
}

/// A range between round numbers, with round steps.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
    /// The greatest value.
    last: f64,
}

impl Axis {
    /// Returns an axis around the values that can be drawn, with about four steps of 1, 2 or 5 times a power of ten.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let range = values.filter(|value| is_drawable(*value)).fold(None, |range, value| match range {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        });
        let (low, high) = range.unwrap_or((0.0, 1.0));
        // Differences below the precision of the labels are drawn as a horizontal line.
        let span = if high - low > low.abs().max(high.abs()) * 1e-9 { high - low } else { 1.0_f64.max(high.abs()) };
        let power = 10f64.powf((span / 4.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|size| size * power).find(|step| *step >= span / 4.0);
        let step = step.filter(|step| step.is_normal()).unwrap_or(span);
        let (first, last) = ((low / step + 1e-9).floor() * step, high);
        Self { low: first, high: ((last / step - 1e-9).ceil() * step).max(first + step), step, last }
    }

    /// Ends the axis at the greatest value, so that lines use the whole width.
    fn ending_with_values(self) -> Self {
        Self { high: if self.last > self.low { self.last } else { self.high }, ..self }
    }

    /// Returns the value and the label of each step.
    fn ticks(&self) -> Vec<(f64, String)> {
        let decimals = (-(self.step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize;
        let count = ((self.high - self.low) / self.step + 1e-6).floor() as usize;
        let values = (0..=count).map(|tick| self.low + tick as f64 * self.step);
        // Rounding errors around 0 are not printed.
        let exact = |value: f64| if value.abs() < self.step * 1e-6 { 0.0 } else { value };
        let label = |value: f64| if decimals > 6 { short(value) } else { format!("{value:.decimals$}") };
        values.map(exact).map(|value| (value, label(value))).collect()
    }

    /// Returns the relative position of a value: 0 at the low end, 1 at the high end.
    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// Whether the axes of a line plot are scaled independently, or share one scale from 0 and show the diagonal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    Independent,
    Shared,
}

/// The drawing area of a line plot.
struct Frame {
    x_axis: Axis,
    y_axis: Axis,
}

impl Frame {
    const LEFT: f64 = 64.0;
    const BOTTOM: f64 = 40.0;
    const TOP: f64 = 26.0;
    const RIGHT: f64 = 24.0;

    fn around(lines: &[Line], scales: Scales) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points).filter(drawable);
        match scales {
            Scales::Shared => {
                let both = || points().flat_map(|point| [point.0, point.1]).chain([0.0]);
                Self { x_axis: Axis::around(both()), y_axis: Axis::around(both()) }
            }
            Scales::Independent => {
                let x_axis = Axis::around(points().map(|point| point.0)).ending_with_values();
                Self { x_axis, y_axis: Axis::around(points().map(|point| point.1)) }
            }
        }
    }

    fn x(&self, value: f64) -> f64 {
        Self::LEFT + self.x_axis.share(value) * (WIDTH - Self::LEFT - Self::RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        LINES_HEIGHT - Self::BOTTOM - self.y_axis.share(value) * (LINES_HEIGHT - Self::BOTTOM - Self::TOP)
    }

    fn draw_ticks(&self, svg: &mut String) {
        for (at, label) in self.y_axis.ticks() {
            let y = self.y(at);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                Self::LEFT,
                WIDTH - Self::RIGHT,
                Self::LEFT - 6.0,
                y + 4.0
            );
        }
        for (at, label) in self.x_axis.ticks() {
            let (x, y) = (self.x(at), LINES_HEIGHT - Self::BOTTOM + 16.0);
            let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{label}</text>");
        }
    }

    fn draw_diagonal(&self, svg: &mut String) {
        let (from, to) = (self.x_axis.low, self.x_axis.high);
        let _ = write!(
            svg,
            "<line class=\"diagonal\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            self.x(from),
            self.y(from),
            self.x(to),
            self.y(to)
        );
    }

    /// Draws a line, and its points if they are few.
    fn draw_line(&self, svg: &mut String, line: &Line, colour: &str) {
        let position = |point: &(f64, f64)| format!("{:.1},{:.1}", self.x(point.0), self.y(point.1));
        let path: Vec<String> = line.points.iter().filter(drawable).map(position).collect();
        let _ = write!(svg, "<polyline stroke=\"{colour}\" points=\"{}\"/>", path.join(" "));
        if line.points.len() <= 20 {
            for point in &path {
                let (x, y) = point.split_once(',').unwrap_or(("0", "0"));
                let _ = write!(svg, "<circle fill=\"{colour}\" r=\"3\" cx=\"{x}\" cy=\"{y}\"/>");
            }
        }
    }
}

/// Draws lines over common axes.
pub fn lines(lines: &[Line], x_label: &str, y_label: &str, scales: Scales) -> String {
    const HEIGHT: f64 = LINES_HEIGHT;
    let frame = Frame::around(lines, scales);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    frame.draw_ticks(&mut svg);
    if scales == Scales::Shared {
        frame.draw_diagonal(&mut svg);
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        frame.draw_line(&mut svg, line, colour);
    }
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    legend(&mut svg, &names, Frame::LEFT);
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"axis\" x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1})\">{}</text></svg>",
        (WIDTH + Frame::LEFT) / 2.0,
        HEIGHT - 6.0,
        escape(x_label),
        HEIGHT / 2.0,
        HEIGHT / 2.0,
        escape(y_label)
    );
    svg
}

/// Stacks line plots vertically in one standalone SVG image.
pub fn stacked(lines: &[String]) -> String {
    let height = LINES_HEIGHT * lines.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\"><style>{STYLE}</style>\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    for (index, plot) in lines.iter().enumerate() {
        let position =
            format!("<svg y=\"{}\" width=\"{WIDTH}\" height=\"{LINES_HEIGHT}\" ", LINES_HEIGHT * index as f64);
        svg.push_str(&plot.replacen("<svg ", &position, 1));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Draws groups of horizontal bars with their intervals.
pub fn bars(groups: &[BarGroup]) -> String {
    const LEFT: f64 = 190.0;
    const ROW: f64 = 18.0;
    const TOP: f64 = 26.0;
    let several = groups.iter().any(|group| group.bars.len() > 1);
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let gaps = if several { 8.0 * groups.len() as f64 } else { 0.0 };
    let top = if several { TOP } else { 4.0 };
    let height = top + ROW * rows as f64 + gaps + 4.0;
    let all = || groups.iter().flat_map(|group| &group.bars);
    let low = all().map(|bar| bar.low.min(0.0)).fold(0.0, f64::min);
    let high = all().map(|bar| bar.high.max(bar.mean)).fold(0.0, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    // The text after a bar needs the rest of the width.
    let x = |value: f64| LEFT + (value - low) / span * (WIDTH - LEFT - 180.0);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">");
    let mut at = top;
    for group in groups {
        let middle = at + ROW * group.bars.len() as f64 / 2.0 + 4.0;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            escape(&group.name)
        );
        for (bar, colour) in group.bars.iter().zip(COLOURS.iter().cycle()) {
            let (from, to) = (x(bar.mean.min(0.0)), x(bar.mean.max(0.0)));
            let middle = at + ROW / 2.0;
            let _ = write!(
                svg,
                "<rect fill=\"{colour}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                 <line class=\"interval\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                at + 3.0,
                (to - from).max(0.5),
                ROW - 6.0,
                x(bar.low),
                x(bar.high),
                x(bar.high.max(bar.mean).max(0.0)) + 6.0,
                middle + 4.0,
                bar.text()
            );
            at += ROW;
        }
        at += if several { 8.0 } else { 0.0 };
    }
    if several {
        let names: Vec<&str> = groups.first().map_or(Vec::new(), |g| g.bars.iter().map(|b| b.name.as_str()).collect());
        legend(&mut svg, &names, LEFT);
    }
    let _ = write!(
        svg,
        "<line class=\"zero\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{top}\" y2=\"{height:.0}\"/></svg>",
        x(0.0),
        x(0.0)
    );
    svg
}

fn legend(svg: &mut String, names: &[&str], left: f64) {
    let mut at = left;
    for (name, colour) in names.iter().zip(COLOURS.iter().cycle()) {
        let _ = write!(
            svg,
            "<rect fill=\"{colour}\" x=\"{at:.1}\" y=\"6\" width=\"10\" height=\"10\"/><text x=\"{:.1}\" y=\"15\">{}</text>",
            at + 14.0,
            escape(name)
        );
        at += 30.0 + 7.0 * name.chars().count() as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_contain_all_values_between_round_numbers() {
        for (low, high) in [(0.0, 1.0), (3.2, 3.2), (-7.1, 1333.0), (0.011, 0.0113), (1e-12, 2e-12), (5e8, 6e8)] {
            let axis = Axis::around([high, low, f64::NAN].into_iter());
            assert!(axis.low <= low + 1e-15 && axis.high >= high, "{low} to {high}: {} to {}", axis.low, axis.high);
            let ticks = axis.ticks();
            assert!((2..=7).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
        }
        let labels =
            |values: [f64; 2]| Axis::around(values.into_iter()).ticks().into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(labels([1.0, 1330.0]), ["0", "500", "1000", "1500"]);
        assert_eq!(labels([0.0, 0.226]), ["0.0", "0.1", "0.2", "0.3"]);
    }

    #[test]
    fn plots_contain_no_nan_and_no_unescaped_markup() {
        let odd = [(0.0, f64::NAN), (1.0, 2.0), (f64::INFINITY, 1.0), (f64::MAX, f64::MIN), (2.0, 2.0)];
        let line = |points: &[(f64, f64)]| Line { name: "a<b".to_owned(), points: points.to_vec() };
        let bar = |mean| Bar { name: "\"x\"".to_owned(), mean, low: mean, high: mean };
        let groups = |means: &[f64]| {
            means
                .iter()
                .map(|mean| BarGroup { name: "g&h".to_owned(), bars: vec![bar(*mean), bar(0.0)] })
                .collect::<Vec<_>>()
        };
        for svg in [
            lines(&[line(&odd), line(&[])], "x", "y", Scales::Independent),
            lines(&[line(&[(0.2, 0.3)])], "x", "y", Scales::Shared),
            lines(&[], "x", "y", Scales::Independent),
            bars(&groups(&[0.0, 0.0])),
            bars(&groups(&[-1.0, 3.0])),
            bars(&[]),
        ] {
            assert!(
                !svg.contains("NaN") && !svg.contains("inf") && !svg.contains("a<b") && !svg.contains("g&h"),
                "{svg}"
            );
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>"));
        }
    }
}

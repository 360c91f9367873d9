//! Plots as SVG text, for a page that needs nothing else.
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const COLOURS: [&str; 6] = ["#1f6feb", "#d29922", "#2da44e", "#cf222e", "#8250df", "#57606a"];

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

/// A group of bars, one for each series.
pub struct BarGroup {
    pub name: String,
    pub bars: Vec<Bar>,
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number short enough for an axis.
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

/// Lines over common axes; `diagonal` draws where both are equal.
pub fn lines(lines: &[Line], x_label: &str, y_label: &str, diagonal: bool) -> String {
    const HEIGHT: f64 = 260.0;
    const LEFT: f64 = 64.0;
    const BOTTOM: f64 = 40.0;
    const TOP: f64 = 26.0;
    let points = || lines.iter().flat_map(|line| &line.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        if low > high { (0.0, 1.0) } else { (low, if high > low { high } else { low + 1.0 }) }
    };
    let (mut x_range, mut y_range) = (range(&mut points().map(|p| p.0)), range(&mut points().map(|p| p.1)));
    if diagonal {
        let both = (0.0, x_range.1.max(y_range.1));
        (x_range, y_range) = (both, both);
    }
    let x = |value: f64| LEFT + (value - x_range.0) / (x_range.1 - x_range.0) * (WIDTH - LEFT - 10.0);
    let y = |value: f64| HEIGHT - BOTTOM - (value - y_range.0) / (y_range.1 - y_range.0) * (HEIGHT - BOTTOM - TOP);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let (at_x, at_y) = (x_range.0 + share * (x_range.1 - x_range.0), y_range.0 + share * (y_range.1 - y_range.0));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            WIDTH - 10.0,
            y(at_y),
            y(at_y),
            LEFT - 6.0,
            y(at_y) + 4.0,
            short(at_y),
            x(at_x).min(WIDTH - 24.0),
            HEIGHT - BOTTOM + 16.0,
            short(at_x)
        );
    }
    if diagonal {
        let (from, to) = (x_range.0, x_range.1);
        let _ = write!(
            svg,
            "<line class=\"diagonal\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            x(from),
            y(from),
            x(to),
            y(to)
        );
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> = line
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
            .collect();
        let _ = write!(svg, "<polyline stroke=\"{colour}\" points=\"{}\"/>", path.join(" "));
        if line.points.len() <= 20 {
            for point in &path {
                let (x, y) = point.split_once(',').unwrap_or(("0", "0"));
                let _ = write!(svg, "<circle fill=\"{colour}\" r=\"3\" cx=\"{x}\" cy=\"{y}\"/>");
            }
        }
    }
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    legend(&mut svg, &names, LEFT);
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"axis\" x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1})\">{}</text></svg>",
        (WIDTH + LEFT) / 2.0,
        HEIGHT - 6.0,
        escape(x_label),
        HEIGHT / 2.0,
        HEIGHT / 2.0,
        escape(y_label)
    );
    svg
}

/// Horizontal bars with their intervals, in groups.
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
    let x = |value: f64| LEFT + (value - low) / span * (WIDTH - LEFT - 130.0);
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
                short(bar.mean)
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
    fn plots_have_no_number_that_is_none_and_no_open_markup() {
        let odd = [(0.0, f64::NAN), (1.0, 2.0), (f64::INFINITY, 1.0)];
        let line = |points: &[(f64, f64)]| Line { name: "a<b".to_owned(), points: points.to_vec() };
        let bar = |mean| Bar { name: "\"x\"".to_owned(), mean, low: mean, high: mean };
        let groups = |means: &[f64]| {
            means
                .iter()
                .map(|mean| BarGroup { name: "g&h".to_owned(), bars: vec![bar(*mean), bar(0.0)] })
                .collect::<Vec<_>>()
        };
        for svg in [
            lines(&[line(&odd), line(&[])], "x", "y", false),
            lines(&[line(&[(0.2, 0.3)])], "x", "y", true),
            lines(&[], "x", "y", false),
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

//! Tests that the closed lists of codes are the same in the proto, the program and the documents, in both directions.
use super::proto;
use lodestone_events::EventKind;
use lodestone_index::SearchStrategy;
use lodestone_pipeline::{DegradationCode, QueryMatch, ReasonCode, source::CandidateSource};
use std::collections::{BTreeMap, BTreeSet};

const ANSWER_PROTO: &str = include_str!("../../proto/lodestone/v1/answer.proto");
const CONCEPTS: &str = include_str!("../../docs/concepts.md");
const ERRORS: &str = include_str!("../../docs/errors.md");
const EVENTS: &str = include_str!("../../docs/events.md");

/// Returns the codes of an enum of the proto by number, without the prefix and without the code for "not set".
fn proto_codes<E: TryFrom<i32>>(prefix: &str, name: impl Fn(&E) -> &'static str) -> BTreeMap<i32, String> {
    let code = |number: i32| {
        let name = name(&E::try_from(number).ok()?).strip_prefix(prefix).expect("the names begin with the prefix");
        Some((number, name.to_owned()))
    };
    // Far more numbers than an enum has codes.
    (1..1000).filter_map(code).collect()
}

fn codes<T: Copy>(all: &[T], number: impl Fn(T) -> i32, name: impl Fn(T) -> &'static str) -> BTreeMap<i32, String> {
    all.iter().map(|code| (number(*code), name(*code).to_owned())).collect()
}

/// Returns the first cells, in backticks, of the tables below a heading.
fn documented(document: &str, heading: &str) -> BTreeSet<String> {
    let (_, section) = document.split_once(&format!("\n{heading}\n")).expect("the document has the heading");
    let section = section.split("\n#").next().unwrap_or_default();
    let cell = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    section.lines().filter_map(cell).collect()
}

/// Returns the words of a proto comment from `begin` to the next full stop, without articles and conjunctions.
fn listed_in_proto(begin: &str) -> BTreeSet<String> {
    let lines = ANSWER_PROTO.lines().map(|line| line.trim().trim_start_matches("//").trim());
    let text = lines.collect::<Vec<_>>().join(" ");
    let (_, list) = text.split_once(begin).expect("the proto has the comment");
    let list = list.split('.').next().unwrap_or_default();
    let words = list.split([' ', ',']).filter(|word| !word.is_empty() && *word != "or");
    words.map(str::to_owned).collect()
}

fn names(codes: &BTreeMap<i32, String>) -> BTreeSet<String> {
    codes.values().cloned().collect()
}

#[test]
fn reasons_are_the_same_in_proto_program_and_document() {
    let program = codes(&ReasonCode::ALL, |code| code as i32, ReasonCode::name);
    assert_eq!(program, proto_codes("REASON_CODE_", proto::ReasonCode::as_str_name));
    assert_eq!(names(&program), documented(CONCEPTS, "## Reasons and matches"));
}

#[test]
fn matches_are_the_same_in_proto_program_and_document() {
    let program = codes(&QueryMatch::ALL, |code| code as i32, QueryMatch::name);
    assert_eq!(program, proto_codes("QUERY_MATCH_", proto::QueryMatch::as_str_name));
    assert_eq!(names(&program), documented(CONCEPTS, "### Matches"));
}

#[test]
fn degradations_are_the_same_in_proto_program_and_document() {
    let program = codes(&DegradationCode::ALL, |code| code as i32, DegradationCode::name);
    assert_eq!(program, proto_codes("DEGRADATION_CODE_", proto::DegradationCode::as_str_name));
    assert_eq!(names(&program), documented(ERRORS, "## Degradations"));
}

#[test]
fn sources_are_the_same_in_proto_program_and_document() {
    let program: BTreeSet<String> = CandidateSource::ALL.iter().map(|source| source.name().to_owned()).collect();
    assert_eq!(program, listed_in_proto("The source: "));
    assert_eq!(program, documented(CONCEPTS, "## Two-stage pipeline"));
}

#[test]
fn event_types_are_the_same_in_proto_program_and_document() {
    let program = codes(&EventKind::ALL, |kind| kind as i32, EventKind::name);
    let upper = |(number, name): (&i32, &String)| (*number, name.to_uppercase());
    let upper: BTreeMap<i32, String> = program.iter().map(upper).collect();
    assert_eq!(upper, proto_codes("EVENT_TYPE_", proto::EventType::as_str_name));
    let row = EVENTS.lines().find(|line| line.starts_with("| `type` |")).expect("the document has a row `type`");
    let listed: BTreeSet<String> = row.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert_eq!(names(&program), listed);
}

#[test]
fn the_proto_names_every_search_strategy() {
    for strategy in [SearchStrategy::Walk, SearchStrategy::WidenedWalk, SearchStrategy::Scan] {
        assert!(ANSWER_PROTO.contains(&format!("`{}`", strategy.name())), "{}", strategy.name());
    }
}

//! Lists and declares attributes, and checks the values of items against the declarations.
use crate::{
    engine::Engine,
    error::{EngineError, PageTokenError, RuleError},
    rules::{PutMode, Target},
};
use lodestone_catalog::{AttributeKind, AttributeKindCount, Catalog};
use lodestone_core::ids::ItemId;
use lodestone_pipeline::{AttributePurpose, AttributeUse, request::Priority};
use lodestone_rules::{AttributeDeclaration, CompiledAttribute, EntryKind, RuleChange, RuleSnapshot};
use prost_types::Timestamp;
use std::{
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Instant,
};
use tokio::sync::OwnedRwLockReadGuard;

/// Number of items with values of another kind that are named.
const CONFLICTS_LISTED_MAX: usize = 100;
/// Number of unknown attributes of a request for which similar names are looked for.
const NEAREST_MAX: usize = 8;
/// Greatest length of an unknown name for which similar ones are looked for, in bytes.
const NEAREST_NAME_BYTES_MAX: usize = 64;
/// Greatest number of edit distances for one request. Each takes some microseconds.
const DISTANCES_MAX: usize = 2000;

/// Items whose values of an attribute are of another kind than the declared one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttributeConflicts {
    pub item_count: usize,
    /// The first 100.
    pub items: Vec<ItemId>,
}

/// A page of the attributes of the items, and of the declared ones.
pub struct AttributesPage {
    /// Names with the kinds of their values, the most frequent kind first. None: it is declared, and no item has it.
    pub attributes: Vec<(String, Vec<AttributeKindCount>)>,
    /// Number of all attributes.
    pub total: usize,
    /// Empty: the page is the last.
    pub next_page_token: String,
}

/// A use of an attribute that has no effect in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeProblem {
    pub used: AttributeUse,
    pub reason: AttributeProblemReason,
}

/// Why the use of an attribute has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributeProblemReason {
    /// No item has the attribute, and it is not declared.
    Unknown {
        /// The most similar name of an attribute that an item has or that is declared. None if no name is similar, for
        /// names of more than 64 bytes, and after the first 8 unknown attributes.
        nearest: Option<String>,
    },
    /// The attribute has values of these kinds alone, or is declared with one of them.
    OtherKind(Vec<AttributeKind>),
    /// The request sorts by the attribute, and all items with it have several texts.
    SeveralTexts,
}

/// Held by writes of items from their check against the declarations until they are in effect.
pub struct DeclarationsGuard(#[expect(dead_code, reason = "released when it is dropped")] OwnedRwLockReadGuard<()>);

impl Engine {
    /// Keeps the declarations of attributes as they are until the guard is dropped. Waits while one is written.
    pub async fn hold_declarations(&self) -> DeclarationsGuard {
        DeclarationsGuard(self.declarations.clone().read_owned().await)
    }

    /// Returns a page of the attributes that an item has or that are declared, in the order of their names, with the
    /// kinds of their values; see [`Catalog::attribute_kinds`]. `token` is that of the page before, or empty.
    pub async fn list_attributes(
        &self,
        token: &str,
        count: usize,
        deadline: Instant,
    ) -> Result<AttributesPage, EngineError> {
        let begin = match token {
            "" => Unbounded,
            token => {
                let after = self.tokens.parse_attributes(token);
                Excluded(after.ok_or(EngineError::PageToken(PageTokenError::Foreign))?)
            }
        };
        let catalog = self.generations.current().generation.catalog.load_full();
        let mut all = self.workers.run(Priority::Batch, deadline, move |_| Ok(catalog.attribute_kinds())).await?;
        for name in self.rules().attributes.keys() {
            all.entry(name.clone()).or_default();
        }
        let mut following = all.range((begin, Unbounded)).map(|(name, kinds)| (name.clone(), kinds.clone()));
        let attributes: Vec<_> = following.by_ref().take(count).collect();
        let last = attributes.last().filter(|_| following.next().is_some());
        Ok(AttributesPage {
            next_page_token: last.map(|(name, _)| self.tokens.attributes(name)).unwrap_or_default(),
            attributes,
            total: all.len(),
        })
    }

    /// Returns the uses of attributes that have no effect, in the order of the names, as `uses` are: of an attribute that no
    /// item has and that is not declared the first one, and those that need values of another kind. Without those of unknown
    /// attributes if the workers have no time for them.
    pub async fn attribute_problems(&self, uses: Vec<AttributeUse>, deadline: Instant) -> Vec<AttributeProblem> {
        if uses.is_empty() {
            return Vec::new();
        }
        let (catalog, rules) = (self.generations.current().generation.catalog.load_full(), self.rules());
        let (mut problems, mut unknown): (Vec<AttributeProblem>, Vec<AttributeUse>) = (Vec::new(), Vec::new());
        for used in uses {
            let declared = rules.attributes.get(&used.name).map(|attribute| attribute.kind);
            let accepts = |kind| used.purpose.accepts(kind);
            let has_values = catalog.has_attribute_of(&used.name, accepts);
            if has_values && used.purpose == AttributePurpose::Sort && !catalog.has_sortable_attribute(&used.name) {
                problems.push(AttributeProblem { used, reason: AttributeProblemReason::SeveralTexts });
                continue;
            }
            if has_values || declared.is_some_and(accepts) {
                continue;
            }
            let mut kinds = catalog.kinds_of_attribute(&used.name);
            kinds.extend(declared.filter(|kind| !kinds.contains(kind)));
            match kinds.is_empty() {
                false => problems.push(AttributeProblem { used, reason: AttributeProblemReason::OtherKind(kinds) }),
                true if unknown.last().is_some_and(|known| known.name == used.name) => {}
                true => unknown.push(used),
            }
        }
        if unknown.is_empty() {
            return problems;
        }
        let names = unknown.iter().map(|used| used.name.clone()).collect();
        if let Ok(nearest) = self.nearest_attributes(names, deadline).await {
            problems.extend(unknown.into_iter().zip(nearest).map(|(used, nearest)| {
                let reason = AttributeProblemReason::Unknown { nearest };
                AttributeProblem { used, reason }
            }));
            problems.sort_by(|a, b| a.used.name.cmp(&b.used.name));
        }
        problems
    }

    /// Returns for each name the attribute that an item has or that is declared and that has this name or, otherwise, the
    /// most similar one. None if no name is similar, for names of more than 64 bytes, and after the first 8.
    pub async fn nearest_attributes(
        &self,
        names: Vec<String>,
        deadline: Instant,
    ) -> Result<Vec<Option<String>>, EngineError> {
        let (catalog, rules) = (self.generations.current().generation.catalog.load_full(), self.rules());
        let nearest = move |_: &mut usize| {
            let is_known = |name: &str| rules.attributes.contains_key(name) || catalog.has_attribute(name);
            let mut known = catalog.attribute_names();
            known.extend(rules.attributes.keys().map(String::as_str));
            let mut distances_left = DISTANCES_MAX;
            let mut of = |(index, name): (usize, String)| {
                if index >= NEAREST_MAX || name.len() > NEAREST_NAME_BYTES_MAX {
                    return None;
                }
                if is_known(&name) {
                    return Some(name);
                }
                let near = near_names(&name, known.iter().copied(), deadline, &mut distances_left);
                near.into_iter().find(|name| is_known(name)).map(str::to_owned)
            };
            Ok(names.into_iter().enumerate().map(&mut of).collect())
        };
        self.workers.run(Priority::Interactive, deadline, nearest).await
    }

    /// Returns the items of the current catalogue whose values of an attribute are of another kind.
    pub async fn attribute_conflicts(
        &self,
        name: String,
        kind: AttributeKind,
        deadline: Instant,
    ) -> Result<AttributeConflicts, EngineError> {
        let catalog = self.generations.current().generation.catalog.load_full();
        self.workers.run(Priority::Batch, deadline, move |_| Ok(conflicts(&catalog, &name, kind))).await
    }

    /// Writes a valid declaration, whose times and etag are set here, if no item has a value of another kind. An empty
    /// `etag` replaces whatever there is.
    pub async fn declare_attribute(
        &self,
        declaration: AttributeDeclaration,
        kind: AttributeKind,
        etag: String,
        deadline: Instant,
    ) -> Result<(Arc<CompiledAttribute>, u64), EngineError> {
        let name = declaration.name.clone();
        // No item is written between the check of the items and the declaration.
        let exclusive = tokio::time::timeout_at(deadline.into(), self.declarations.clone().write_owned()).await;
        let exclusive = exclusive.map_err(|_| EngineError::DeadlineExceeded)?;
        let conflicts = self.attribute_conflicts(name.clone(), kind, deadline).await?;
        if conflicts.item_count > 0 {
            return Err(RuleError::AttributeConflict { name, kind, conflicts }.into());
        }
        let change = |rules: &RuleSnapshot, now: Timestamp| {
            let known = rules.attributes.get(&declaration.name).map(|known| &known.declaration);
            let mode = match known {
                None if etag.is_empty() => PutMode::Create,
                _ => PutMode::Update { etag },
            };
            let target = Target { kind: EntryKind::Attribute, id: &declaration.name, count: rules.attributes.len() };
            target.check(known.map(|known| known.etag.as_str()), &mode)?;
            let create_time = known.map_or(Some(now), |known| known.create_time);
            let declaration =
                AttributeDeclaration { create_time, update_time: Some(now), etag: String::new(), ..declaration };
            Ok(RuleChange::PutAttribute(declaration))
        };
        let (rules, position) = self.write_rules_holding(change, exclusive).await?;
        let written = rules.attributes.get(&name).cloned();
        let lost = || EngineError::Internal(format!("the declaration of {name} is not in effect after its write"));
        Ok((written.ok_or_else(lost)?, position))
    }
}

fn conflicts(catalog: &Catalog, name: &str, kind: AttributeKind) -> AttributeConflicts {
    let rows = catalog.rows_with_other_kind(name, kind);
    let items = rows.iter().take(CONFLICTS_LISTED_MAX).map(|row| catalog.get(*row).item.id.clone()).collect();
    AttributeConflicts { item_count: rows.len(), items }
}

/// Returns the names whose edit distance (optimal string alignment) from an unknown one is at most a third of its length,
/// the nearest first. Letter case and `_` do not count. Stops at the deadline, and when no distances are left.
fn near_names<'n>(
    unknown: &str,
    names: impl Iterator<Item = &'n str>,
    deadline: Instant,
    distances_left: &mut usize,
) -> Vec<&'n str> {
    let folded = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let mut counts = [0_i32; 256];
    letters(unknown).for_each(|byte| counts[usize::from(byte)] += 1);
    let unknown = folded(unknown);
    let limit = unknown.len() / 3;
    let mut near: Vec<(usize, &str)> = Vec::new();
    for name in names {
        // Lower bounds of the distance: the difference of the lengths, and the letters that only one of both has.
        let length = letters(name).count();
        if length.abs_diff(unknown.len()) > limit || other_letters(counts, letters(name), length) > limit {
            continue;
        }
        if *distances_left == 0 || Instant::now() >= deadline {
            break;
        }
        *distances_left -= 1;
        let distance = strsim::osa_distance(&unknown, &folded(name));
        if distance <= limit {
            near.push((distance, name));
        }
    }
    near.sort_unstable();
    near.into_iter().map(|(_, name)| name).collect()
}

/// Returns the bytes of a name that count.
fn letters(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().filter(|byte| *byte != b'_').map(|byte| byte.to_ascii_lowercase())
}

/// Returns the number of letters of a name, of `length` letters, that another one with `counts` of letters does not have.
/// Each takes a replacement or an insertion.
fn other_letters(mut counts: [i32; 256], letters: impl Iterator<Item = u8>, length: usize) -> usize {
    let mut common = 0;
    for byte in letters {
        let left = &mut counts[usize::from(byte)];
        common += usize::from(*left > 0);
        *left -= 1;
    }
    length - common
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn near_names_differ_by_a_third_of_their_letters_at_most() {
        let names = ["color", "screen_size", "colors", "weight_g", "kg"];
        for (unknown, expected) in [
            ("colour", &["color", "colors"][..]),
            ("Color", &["color", "colors"]),
            ("clor", &["color"]),
            ("screenSize", &["screen_size"]),
            ("scren_szie", &["screen_size"]),
            ("wieght_g", &["weight_g"]),
            ("gk", &[]),
            ("depth", &[]),
        ] {
            let later = Instant::now() + Duration::from_secs(3600);
            assert_eq!(near_names(unknown, names.into_iter(), later, &mut 100), expected, "{unknown}");
            assert!(near_names(unknown, names.into_iter(), Instant::now(), &mut 100).is_empty(), "the time is over");
        }
    }

    #[test]
    fn few_distances_are_computed() {
        let later = Instant::now() + Duration::from_secs(3600);
        let letters = |number: usize| -> String {
            let letter = |index: usize| char::from(b'a' + (number + index * (1 + number % 5)) as u8 % 26);
            (0..58).map(letter).collect()
        };
        let names: Vec<String> = (0..5000).map(letters).collect();
        let all = || names.iter().map(String::as_str);
        // No name has enough of the same letters.
        let mut left = DISTANCES_MAX;
        assert!(near_names(&"0".repeat(58), all(), later, &mut left).is_empty());
        assert_eq!(left, DISTANCES_MAX);
        // All names could be similar.
        for unknown in [&names[0][..], &names[1][..], "other"] {
            near_names(unknown, std::iter::repeat_n(unknown, 1500), later, &mut left);
        }
        assert_eq!(left, 0);
        assert!(near_names("color", std::iter::once("color"), later, &mut left).is_empty());
    }
}

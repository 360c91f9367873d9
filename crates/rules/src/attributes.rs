//! Declared attributes: the kind of the values of an attribute, and what answers do with them.
use crate::{
    compiled::{Problems, RuleProblem, etag},
    data::AttributeDeclaration,
};
use lodestone_catalog::{AttributeKind, attribute_name};

/// A validated declaration of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct CompiledAttribute {
    /// With its etag.
    pub declaration: AttributeDeclaration,
    pub kind: AttributeKind,
}

impl CompiledAttribute {
    /// Validates a declaration and sets its etag. Returns all mistakes.
    pub fn new(mut declaration: AttributeDeclaration) -> Result<Self, Vec<RuleProblem>> {
        let mut problems = Problems::default();
        if attribute_name(&format!("attributes.{}", declaration.name)).is_none() {
            problems.add("name", "is not a name of 1 to 64 characters of A-Z, a-z, 0-9 and `_`");
        }
        let kind =
            usize::try_from(declaration.kind).ok().and_then(|number| AttributeKind::ALL.get(number.checked_sub(1)?));
        if kind.is_none() {
            let last = AttributeKind::ALL.len();
            problems.add("kind", format!("{} is not an AttributeKind; use 1 to {last}", declaration.kind));
        }
        if let Some(kind) = kind {
            if declaration.searchable && *kind != AttributeKind::Text {
                let description = format!("must not be set for the kind {}; only texts are searched", kind.name());
                problems.add("searchable", description);
            }
            if declaration.facetable && matches!(kind, AttributeKind::Time | AttributeKind::GeoPoint) {
                let description =
                    format!("must not be set for the kind {}; facets count texts, numbers and flags", kind.name());
                problems.add("facetable", description);
            }
        }
        match kind.filter(|_| problems.0.is_empty()) {
            None => Err(problems.0),
            Some(kind) => {
                declaration.etag.clear();
                declaration.etag = etag(&declaration);
                Ok(Self { declaration, kind: *kind })
            }
        }
    }

    pub fn name(&self) -> &str {
        &self.declaration.name
    }

    /// Returns the declaration as the log stores it.
    pub fn stored(&self) -> AttributeDeclaration {
        AttributeDeclaration { etag: String::new(), ..self.declaration.clone() }
    }
}

/// Returns the attributes whose texts are searched: those that are declared searchable, and those of a bundle that are not
/// declared. Ascending.
pub fn searchable_attributes<'a>(
    declared: impl Iterator<Item = &'a CompiledAttribute>,
    of_bundle: &[String],
) -> Vec<String> {
    let mut searchable = of_bundle.to_vec();
    for attribute in declared {
        searchable.retain(|name| name != attribute.name());
        searchable.extend(attribute.declaration.searchable.then(|| attribute.name().to_owned()));
    }
    searchable.sort_unstable();
    searchable.dedup();
    searchable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaration(name: &str, kind: AttributeKind) -> AttributeDeclaration {
        let number = AttributeKind::ALL.iter().position(|known| *known == kind).unwrap() + 1;
        AttributeDeclaration { name: name.to_owned(), kind: number as i32, ..AttributeDeclaration::default() }
    }

    #[test]
    fn all_mistakes_of_a_declaration_are_reported() {
        let fields = |declaration: AttributeDeclaration| -> Vec<String> {
            let problems = CompiledAttribute::new(declaration).unwrap_err();
            problems.into_iter().map(|problem| problem.field).collect()
        };
        assert_eq!(fields(AttributeDeclaration::default()), ["name", "kind"]);
        let time =
            AttributeDeclaration { searchable: true, facetable: true, ..declaration("no spaces", AttributeKind::Time) };
        assert_eq!(fields(time), ["name", "searchable", "facetable"]);
        let number = AttributeDeclaration { searchable: true, ..declaration("size", AttributeKind::Number) };
        assert_eq!(fields(number), ["searchable"]);
        assert_eq!(fields(AttributeDeclaration { kind: 6, ..declaration("a", AttributeKind::Text) }), ["kind"]);
        assert_eq!(fields(AttributeDeclaration { kind: -1, ..declaration("a", AttributeKind::Text) }), ["kind"]);
    }

    #[test]
    fn a_declaration_precedes_the_bundle() {
        let declared = |name: &str, searchable| {
            let declaration = AttributeDeclaration { searchable, ..declaration(name, AttributeKind::Text) };
            CompiledAttribute::new(declaration).unwrap()
        };
        let declared = [declared("color", false), declared("material", true)];
        let of_bundle = ["style".to_owned(), "color".to_owned()];
        assert_eq!(searchable_attributes(declared.iter(), &of_bundle), ["material", "style"]);
    }
}

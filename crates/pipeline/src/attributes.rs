//! The uses of attributes in a request, by which a caller finds those without an effect: of attributes that no item has,
//! and of values of another kind.
use crate::{
    facets::FacetSpec,
    request::SuggestRequest,
    run::{RankingRequest, RequestField},
};
use lodestone_catalog::{AttributeCondition, AttributeKind, Field, Filter};

/// The use of an attribute in a field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeUse {
    pub field: RequestField,
    pub name: String,
    pub purpose: AttributePurpose,
}

/// What a request does with the values of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributePurpose {
    /// Compares them with a value of this kind, as filters write it.
    Compare { kind: AttributeKind, value: String },
    /// Computes the distance to a location, and compares it or sorts by it.
    Distance,
    /// Sorts by them.
    Sort,
    /// Counts them in a facet.
    Count,
    /// Counts them in ranges with bounds of the request.
    CountRanges,
    /// Counts the texts of them that a query finds.
    CountFound,
}

impl AttributePurpose {
    /// Returns true if the purpose has an effect on values of a kind.
    pub fn accepts(&self, kind: AttributeKind) -> bool {
        use AttributeKind::{Flag, GeoPoint, Number, Text, Time};
        match self {
            Self::Compare { kind: compared, .. } => kind == *compared,
            Self::Distance => kind == GeoPoint,
            Self::Sort => matches!(kind, Text | Number | Flag | Time),
            Self::Count => matches!(kind, Text | Number | Flag),
            Self::CountRanges => kind == Number,
            // The values of flags are the texts `true` and `false`.
            Self::CountFound => matches!(kind, Text | Flag),
        }
    }

    /// Returns true for comparisons of one kind, which items fail alike whatever the values are.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Compare { kind, .. }, Self::Compare { kind: other, .. }) => kind == other,
            (purpose, other) => purpose == other,
        }
    }
}

impl AttributeUse {
    /// Returns the uses in a filter, which is a field of a request.
    pub fn of_filter(field: RequestField, filter: &Filter) -> Vec<Self> {
        let purpose = |kind, value| match kind {
            AttributeKind::GeoPoint => AttributePurpose::Distance,
            kind => AttributePurpose::Compare { kind, value },
        };
        let of = |AttributeCondition { attribute, kind, value }: AttributeCondition<'_>| Self {
            field,
            name: attribute.to_owned(),
            purpose: purpose(kind, value),
        };
        distinct(filter.attribute_conditions().into_iter().map(of))
    }

    fn of_order(field: &Field) -> Option<Self> {
        let purpose = match field {
            Field::Distance(_) => AttributePurpose::Distance,
            _ => AttributePurpose::Sort,
        };
        Some(Self { field: RequestField::OrderBy, name: field.attribute()?.to_owned(), purpose })
    }

    fn of_facet(index: usize, spec: &FacetSpec) -> Option<Self> {
        let purpose = match (spec.bounds.is_empty(), spec.value_query.is_empty()) {
            (_, false) => AttributePurpose::CountFound,
            (false, true) => AttributePurpose::CountRanges,
            (true, true) => AttributePurpose::Count,
        };
        Some(Self { field: RequestField::Facet(index), name: spec.field.attribute()?.to_owned(), purpose })
    }
}

impl RankingRequest {
    /// Returns the uses of attributes in the fields of the request, in the order of the names; of a name in the order of
    /// filter, order, facets and boosts. Rules do not count, and neither do attributes of the items that the request has.
    pub fn attribute_uses(&self) -> Vec<AttributeUse> {
        let options = self.options();
        let filter = self.filter().into_iter().flat_map(|filter| AttributeUse::of_filter(RequestField::Filter, filter));
        let order = options.order_by.fields().filter_map(AttributeUse::of_order);
        let facets = self.facets().iter().enumerate().filter_map(|(index, spec)| AttributeUse::of_facet(index, spec));
        let boosts = options.boosts.iter().enumerate();
        let boosts =
            boosts.flat_map(|(index, boost)| AttributeUse::of_filter(RequestField::Boost(index), &boost.filter));
        let is_of_catalog =
            |used: &AttributeUse| self.sent_items().all(|item| !item.attributes.contains_key(&used.name));
        let mut uses: Vec<AttributeUse> =
            filter.chain(order).chain(facets).chain(boosts).filter(is_of_catalog).collect();
        uses.sort_by(|a, b| a.name.cmp(&b.name));
        uses
    }
}

impl SuggestRequest {
    /// Returns the uses of attributes in the filter.
    pub fn attribute_uses(&self) -> Vec<AttributeUse> {
        let filter = self.filter.as_ref();
        filter.map(|filter| AttributeUse::of_filter(RequestField::Filter, filter)).unwrap_or_default()
    }
}

/// Returns the uses of a field in the order of their names, without those that another one is like.
fn distinct(uses: impl Iterator<Item = AttributeUse>) -> Vec<AttributeUse> {
    let mut all: Vec<AttributeUse> = uses.collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut distinct: Vec<AttributeUse> = Vec::with_capacity(all.len());
    for used in all {
        let mut same_name = distinct.iter().rev().take_while(|known| known.name == used.name);
        if !same_name.any(|known| known.purpose.is_like(&used.purpose)) {
            distinct.push(used);
        }
    }
    distinct
}

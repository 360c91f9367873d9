//! The feature schema of a bundle: the built-in features and those that the shop declares.
use super::{FEATURES, FeatureContext, VERSION, affinity::Affinity};
use lodestone_catalog::{Catalog, Field, Filter, PreparedField, PreparedValue};
use lodestone_core::{
    ids::ItemKey,
    toml_error,
    units::UnixMillis,
    viewer::{Locale, Platform, Region, ViewerContext},
};
use lodestone_events::Refunds;
use lodestone_state::users::History;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Maximum number of declared features.
const DECLARED_MAX: usize = 64;
const NAME_CHARS_MAX: usize = 64;
/// Greatest absolute value of a declared number, so that one wrong item cannot exceed the range of f32 in the model.
pub const NUMBER_MAX: f32 = 1e6;
/// Bounds of a half-life in days.
const HALF_LIFE_DAYS: (f64, f64) = (0.1, 10_000.0);
const UTC_OFFSET_HOURS: (f64, f64) = (-14.0, 14.0);
const MISSING: (f64, f64) = (-NUMBER_MAX as f64, NUMBER_MAX as f64);
/// Greatest size of a file of declared features. One with 64 features has some KB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most characters of a name and of a problem in an error.
const SHOWN_NAME_CHARS_MAX: usize = 80;
const SHOWN_PROBLEM_CHARS_MAX: usize = 600;
const NUMBER_FIELDS: &str = "price, original_price, discount, margin, rating, rating_count, stock_quantity, in_stock and \
                             attributes.NAME";
const AFFINITY_FIELDS: &str = "category, brand, tags, price, original_price, discount, margin, currency, rating, \
                               rating_count, stock_quantity, in_stock, availability and attributes.NAME";
const CONTEXT_AFFINITY_FIELDS: &str = "platform, region and language";

/// A feature that a shop declares. `docs/training.md` describes the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeclaredFeature {
    /// A number of the item; a flag counts as 1 or 0.
    Number {
        name: String,
        field: Field,
        /// The value of items without a number.
        #[serde(default)]
        missing: f64,
        /// Replaces x by sign(x) × ln(1 + |x|).
        #[serde(default)]
        log: bool,
        /// Skips the training's check for leaks.
        #[serde(default)]
        known_before: bool,
    },
    /// 1 if the item matches a filter, otherwise 0.
    Match {
        name: String,
        filter: Filter,
        #[serde(default)]
        known_before: bool,
    },
    /// The share of the user's interest in items with the same value of a field.
    Affinity {
        name: String,
        field: Field,
        #[serde(default = "half_life_days")]
        half_life_days: f64,
    },
    /// A value of the request, the same for all candidates: a number of the moment, or 1 if the viewer's value is one of
    /// several, otherwise 0.
    Context {
        name: String,
        field: ContextField,
        /// Added to UTC.
        #[serde(default)]
        utc_offset_hours: f64,
        /// Values of a field of the viewer.
        #[serde(default)]
        values: Vec<String>,
    },
    /// A number that the request has for a candidate.
    Request {
        name: String,
        /// The value of candidates without one.
        #[serde(default)]
        missing: f32,
        /// Replaces x by sign(x) × ln(1 + |x|).
        #[serde(default)]
        log: bool,
    },
    /// How much more often the item was chosen by users with the viewer's value of a field than by others, as of the
    /// training.
    ContextAffinity { name: String, field: ContextField },
}

/// A field of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextField {
    /// 0 to 23.
    Hour,
    /// 0 (Monday) to 6.
    Weekday,
    /// The name of the viewer's platform.
    Platform,
    /// The code of the viewer's country, in upper case.
    Region,
    /// The language of the viewer's locale, in lower case.
    Language,
}

fn half_life_days() -> f64 {
    60.0
}

/// The reason why a schema is invalid.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FeatureError {
    #[error("{0} features are declared; the limit is {DECLARED_MAX}")]
    TooMany(usize),
    #[error("feature `{}`: {}", shortened(.name, SHOWN_NAME_CHARS_MAX), shortened(.problem, SHOWN_PROBLEM_CHARS_MAX))]
    Feature { name: String, problem: String },
    /// The position is counted from 1.
    #[error("feature {position}, which has no name: {}", shortened(.problem, SHOWN_PROBLEM_CHARS_MAX))]
    Unnamed { position: usize, problem: String },
}

impl FeatureError {
    fn new(name: &str, index: usize, problem: String) -> Self {
        match name.is_empty() {
            true => Self::Unnamed { position: index + 1, problem },
            false => Self::Feature { name: name.to_owned(), problem },
        }
    }
}

/// Returns a text with at most `chars_max` characters, because an error repeats what a file has.
fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
        None => text.to_owned(),
    }
}

/// The reason why a file of declared features cannot be used. The caller names the file.
#[derive(Debug, thiserror::Error)]
pub enum FeatureFileError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("has more than {FILE_BYTES_MAX} bytes, the limit of a file of declared features")]
    TooLarge,
    #[error("{}", shortened(.0, SHOWN_PROBLEM_CHARS_MAX))]
    Syntax(String),
    #[error("declares no feature; declare each in a table [[feature]]")]
    Empty,
    #[error(transparent)]
    Feature(#[from] FeatureError),
}

impl DeclaredFeature {
    pub fn name(&self) -> &str {
        match self {
            Self::Number { name, .. } | Self::Match { name, .. } => name,
            Self::Affinity { name, .. } | Self::Context { name, .. } => name,
            Self::ContextAffinity { name, .. } | Self::Request { name, .. } => name,
        }
    }

    /// Returns the value that the catalogue computes for each item; none for a feature of the request.
    pub fn prepared(&self) -> Option<PreparedField> {
        match self {
            Self::Number { field, .. } => Some(PreparedField::Number(field.clone())),
            Self::Match { filter, .. } => Some(PreparedField::Match(filter.clone())),
            Self::Affinity { field, .. } => Some(PreparedField::Labels(field.clone())),
            Self::Context { .. } | Self::ContextAffinity { .. } | Self::Request { .. } => None,
        }
    }

    /// Returns whether the value of an item is beyond ±[`NUMBER_MAX`], to which it is limited.
    pub fn limits(&self, value: &PreparedValue) -> bool {
        match (self, value) {
            (Self::Number { log: false, .. }, PreparedValue::Number(Some(number))) => number.abs() > NUMBER_MAX,
            _ => false,
        }
    }

    /// Returns the field of the viewer that the feature reads, if any.
    pub fn viewer_field(&self) -> Option<ContextField> {
        match self {
            Self::Context { field, .. } | Self::ContextAffinity { field, .. } => {
                Some(*field).filter(|field| field.is_of_viewer())
            }
            _ => None,
        }
    }

    fn check(&self) -> Result<(), String> {
        let name = self.name();
        let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.bytes().all(is_word) {
            return Err(format!("a name is 1 to {NAME_CHARS_MAX} of the characters a to z, 0 to 9 and _"));
        }
        if FEATURES.contains(&name) {
            return Err("this is the name of a built-in feature; choose another one".to_owned());
        }
        let within = |what: &str, value: f64, (least, most): (f64, f64)| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("{what} is {value:?}; it must be {least} to {most}")),
        };
        match self {
            Self::Number { field, missing, .. } => {
                use Field::{Category, CategoryPath, CreateTime, Currency, Description, GroupId, ItemId, Tags, Title};
                if matches!(
                    field,
                    ItemId
                        | GroupId
                        | Title
                        | Description
                        | Category
                        | CategoryPath
                        | Field::Brand
                        | Currency
                        | Tags
                        | CreateTime
                        | Field::Availability
                ) {
                    return Err(format!("{field} is no number; the fields of kind number are {NUMBER_FIELDS}"));
                }
                within("missing", *missing, MISSING)
            }
            Self::Match { .. } => Ok(()),
            Self::Affinity { field, half_life_days, .. } => {
                use Field::{CreateTime, Description, GroupId, ItemId, Title};
                if matches!(field, ItemId | GroupId | Title | Description | CreateTime) {
                    return Err(format!(
                        "almost every item has another {field}; the fields of kind affinity are {AFFINITY_FIELDS}"
                    ));
                }
                within("half_life_days", *half_life_days, HALF_LIFE_DAYS)
            }
            Self::Context { field, utc_offset_hours, values, .. } if field.is_of_viewer() => {
                if *utc_offset_hours != 0.0 {
                    return Err(format!("utc_offset_hours is of the fields hour and weekday, not of {}", field.name()));
                }
                if values.is_empty() {
                    return Err(format!(
                        "values is missing: the feature is 1 if the viewer's {} is one of them, otherwise 0",
                        field.name()
                    ));
                }
                values.iter().try_for_each(|value| field.check_value(value))
            }
            Self::Context { field, utc_offset_hours, values, .. } => match values.is_empty() {
                true => within("utc_offset_hours", *utc_offset_hours, UTC_OFFSET_HOURS),
                false => Err(format!("values is of the fields platform, region and language, not of {}", field.name())),
            },
            Self::ContextAffinity { field, .. } => match field.is_of_viewer() {
                true => Ok(()),
                false => Err(format!(
                    "{} is not known of the viewer; the fields of kind context_affinity are {CONTEXT_AFFINITY_FIELDS}",
                    field.name()
                )),
            },
            Self::Request { missing, .. } => within("missing", f64::from(*missing), MISSING),
        }
    }
}

/// The columns of the feature matrix: the built-in features ([`FEATURES`]), then the declared ones in their order. In
/// files it is the list of the declared ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<DeclaredFeature>", into = "Vec<DeclaredFeature>")]
pub struct FeatureSchema {
    declared: Vec<DeclaredFeature>,
    names: Vec<String>,
}

impl Default for FeatureSchema {
    /// The built-in features alone.
    fn default() -> Self {
        Self { declared: Vec::new(), names: FEATURES.iter().map(|name| (*name).to_owned()).collect() }
    }
}

impl TryFrom<Vec<DeclaredFeature>> for FeatureSchema {
    type Error = FeatureError;

    fn try_from(declared: Vec<DeclaredFeature>) -> Result<Self, FeatureError> {
        if declared.len() > DECLARED_MAX {
            return Err(FeatureError::TooMany(declared.len()));
        }
        let mut schema = Self::default();
        for (index, feature) in declared.iter().enumerate() {
            let name = feature.name().to_owned();
            let checked = match schema.names[FEATURES.len()..].contains(&name) {
                true => Err("two features have this name".to_owned()),
                false => feature.check(),
            };
            checked.map_err(|problem| FeatureError::new(&name, index, problem))?;
            schema.names.push(name);
        }
        Ok(Self { declared, ..schema })
    }
}

impl From<FeatureSchema> for Vec<DeclaredFeature> {
    fn from(schema: FeatureSchema) -> Self {
        schema.declared
    }
}

/// A file of declared features.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureFile {
    /// Parsed one by one, so that an error names the feature.
    #[serde(default)]
    feature: Vec<toml::Table>,
}

/// Returns the problem of a field that does not exist, with the fields of the feature's kind.
fn unknown_field(table: &toml::Table) -> Option<String> {
    let text = |key: &str| table.get(key).and_then(toml::Value::as_str);
    let (kind, field) = (text("kind")?, text("field")?);
    let fields = match kind {
        "number" if Field::parse(field).is_none() => NUMBER_FIELDS,
        "affinity" if Field::parse(field).is_none() => AFFINITY_FIELDS,
        "context_affinity" if ContextField::ALL.iter().all(|of| of.name() != field) => CONTEXT_AFFINITY_FIELDS,
        _ => return None,
    };
    Some(format!("unknown field {}; the fields of kind {kind} are {fields}", shortened(field, SHOWN_NAME_CHARS_MAX)))
}

impl FeatureSchema {
    /// Reads the file of `lodestone train --features FILE`.
    pub fn read(path: &Path) -> Result<Self, FeatureFileError> {
        let mut bytes = Vec::new();
        // The size of a pipe is not known before.
        let read = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if read as u64 > FILE_BYTES_MAX {
            return Err(FeatureFileError::TooLarge);
        }
        let text = String::from_utf8(bytes).map_err(|_| FeatureFileError::Syntax("is not text in UTF-8".to_owned()))?;
        let file: FeatureFile =
            toml::from_str(&text).map_err(|error| FeatureFileError::Syntax(toml_error::one_line(&text, &error)))?;
        if file.feature.is_empty() {
            return Err(FeatureFileError::Empty);
        }
        let declared = file.feature.into_iter().enumerate().map(|(index, table)| {
            let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default().to_owned();
            if let Some(problem) = unknown_field(&table) {
                return Err(FeatureError::new(&name, index, problem));
            }
            table
                .try_into()
                .map_err(|error: toml::de::Error| FeatureError::new(&name, index, error.message().to_owned()))
        });
        let declared: Result<Vec<DeclaredFeature>, FeatureError> = declared.collect();
        Ok(declared.and_then(Self::try_from)?)
    }

    /// In the order of the columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn column_count(&self) -> usize {
        self.names.len()
    }

    pub fn declared(&self) -> &[DeclaredFeature] {
        &self.declared
    }

    /// Returns the values that the catalogue computes for each item.
    pub fn prepared(&self) -> impl Iterator<Item = PreparedField> {
        self.declared.iter().filter_map(DeclaredFeature::prepared)
    }

    /// Returns the fields whose counts the features of kind `context_affinity` need, each once, in the order of the
    /// schema.
    pub fn counted_fields(&self) -> Vec<ContextField> {
        let mut fields: Vec<ContextField> = Vec::new();
        for feature in &self.declared {
            if let DeclaredFeature::ContextAffinity { field, .. } = feature
                && !fields.contains(field)
            {
                fields.push(*field);
            }
        }
        fields
    }

    /// Identifies the definitions of all features. A bundle that was trained with other ones is refused.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(VERSION.to_le_bytes());
        hash.update(FEATURES.join(","));
        if !self.declared.is_empty() {
            hash.update(serde_json::to_vec(&self.declared).expect("texts and finite numbers serialise to JSON"));
        }
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the user's affinities, in the order of the schema.
    pub(super) fn affinities(
        &self,
        history: &History,
        refunds: &Refunds,
        catalog: &Catalog,
        now: UnixMillis,
    ) -> Vec<Affinity> {
        let is_prepared = |feature: &&DeclaredFeature| match feature {
            DeclaredFeature::Number { .. } | DeclaredFeature::Match { .. } | DeclaredFeature::Affinity { .. } => true,
            DeclaredFeature::Context { .. } | DeclaredFeature::ContextAffinity { .. } => false,
            DeclaredFeature::Request { .. } => false,
        };
        let prepared = self.declared.iter().filter(is_prepared).enumerate();
        let of = |(prepared, feature): (usize, &DeclaredFeature)| match feature {
            DeclaredFeature::Affinity { half_life_days, .. } => {
                Some(Affinity::new(history, refunds, catalog, (prepared, *half_life_days as f32), now))
            }
            _ => None,
        };
        prepared.filter_map(of).collect()
    }

    /// Returns the names of the features of kind `request`, in their order.
    pub fn of_request(&self) -> impl Iterator<Item = &str> {
        self.declared.iter().filter(|feature| matches!(feature, DeclaredFeature::Request { .. })).map(|of| of.name())
    }

    /// Appends the declared features of one candidate. `prepared` are the values of [`Self::prepared`], `of_request`
    /// those of [`Self::of_request`]; empty if the request has none for the candidate.
    pub(super) fn append_declared(
        &self,
        out: &mut Vec<f32>,
        context: &FeatureContext,
        prepared: &[PreparedValue],
        affinities: &[Affinity],
        of_request: &[Option<f32>],
        key: ItemKey,
    ) {
        let (mut prepared, mut affinities) = (prepared.iter(), affinities.iter());
        let mut of_request = of_request.iter().copied();
        let scaled = |value: f32, log: bool| match log {
            // An attribute may exceed the range of f32.
            true => value.abs().min(f32::MAX).ln_1p().copysign(value),
            false => value.clamp(-NUMBER_MAX, NUMBER_MAX),
        };
        let number = |value: Option<&PreparedValue>| match value {
            Some(PreparedValue::Number(number)) => *number,
            _ => None,
        };
        for feature in &self.declared {
            out.push(match feature {
                DeclaredFeature::Number { missing, log, .. } => {
                    scaled(number(prepared.next()).unwrap_or(*missing as f32), *log)
                }
                DeclaredFeature::Match { .. } => number(prepared.next()).unwrap_or(0.0),
                DeclaredFeature::Affinity { .. } => {
                    let value = prepared.next();
                    affinities.next().map_or(0.0, |affinity| affinity.share(value))
                }
                DeclaredFeature::Context { field, values, .. } if field.is_of_viewer() => {
                    let is_one =
                        field.value_of(context.viewer).is_some_and(|value| values.iter().any(|of| of == value));
                    f32::from(u8::from(is_one))
                }
                DeclaredFeature::Context { field, utc_offset_hours, .. } => field.at(context.now, *utc_offset_hours),
                DeclaredFeature::ContextAffinity { field, .. } => {
                    let affinity = context.context_counts.affinity(*field, context.viewer);
                    affinity.map_or(0.0, |affinity| affinity.of(key))
                }
                DeclaredFeature::Request { missing, log, .. } => {
                    scaled(of_request.next().flatten().unwrap_or(*missing), *log)
                }
            });
        }
    }
}

impl ContextField {
    const ALL: [Self; 5] = [Self::Hour, Self::Weekday, Self::Platform, Self::Region, Self::Language];

    fn at(self, now: UnixMillis, utc_offset_hours: f64) -> f32 {
        const HOUR: i64 = UnixMillis::DAY / 24;
        let local = now.0.saturating_add((utc_offset_hours * HOUR as f64) as i64);
        match self {
            Self::Hour => (local.rem_euclid(UnixMillis::DAY) / HOUR) as f32,
            // 1970 began on a Thursday.
            Self::Weekday => (local.div_euclid(UnixMillis::DAY) + 3).rem_euclid(7) as f32,
            Self::Platform | Self::Region | Self::Language => 0.0,
        }
    }

    /// Returns the name in declarations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Weekday => "weekday",
            Self::Platform => "platform",
            Self::Region => "region",
            Self::Language => "language",
        }
    }

    /// Returns whether the viewer of a request has the field; otherwise it is one of the moment.
    fn is_of_viewer(self) -> bool {
        matches!(self, Self::Platform | Self::Region | Self::Language)
    }

    /// Returns the viewer's value; none if it is unknown, and for a field of the moment.
    pub fn value_of(self, viewer: &ViewerContext) -> Option<&str> {
        match self {
            Self::Hour | Self::Weekday => None,
            Self::Platform => viewer.platform.map(Platform::name),
            Self::Region => viewer.region.as_ref().map(Region::as_str),
            Self::Language => viewer.locale.as_ref().map(Locale::language),
        }
    }

    /// Checks that viewers can have a value.
    fn check_value(self, value: &str) -> Result<(), String> {
        let is_known = match self {
            Self::Platform => Platform::from_name(value).is_some(),
            Self::Region => Region::parse(value).is_some_and(|region| region.as_str() == value),
            _ => Locale::parse(value).is_some_and(|locale| locale.language() == value),
        };
        let meaning = match self {
            Self::Platform => format!("a platform: {}", Platform::ALL.map(Platform::name).join(", ")),
            Self::Region => "an ISO 3166-1 code in upper case, such as GB".to_owned(),
            _ => "the language of a BCP 47 tag in lower case, such as en".to_owned(),
        };
        is_known.then_some(()).ok_or_else(|| format!("values has `{value}`, which is not {meaning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn parse(text: &str) -> Result<FeatureSchema, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("features.toml");
        fs::write(&path, text).unwrap();
        FeatureSchema::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_declares_features_that_follow_the_built_in_ones() {
        let schema = parse(
            r#"
            [[feature]]
            name = "rating"
            kind = "number"
            field = "attributes.rating"
            missing = 3.5

            [[feature]]
            name = "is_acme"
            kind = "match"
            filter = 'brand = "Acme" AND price < 10'

            [[feature]]
            name = "brand_affinity"
            kind = "affinity"
            field = "brand"

            [[feature]]
            name = "hour"
            kind = "context"
            field = "hour"
            utc_offset_hours = 5.5

            [[feature]]
            name = "in_app"
            kind = "context"
            field = "platform"
            values = ["ios", "android"]

            [[feature]]
            name = "region_affinity"
            kind = "context_affinity"
            field = "region"
            "#,
        )
        .unwrap();
        assert_eq!(
            schema.names()[FEATURES.len()..],
            ["rating", "is_acme", "brand_affinity", "hour", "in_app", "region_affinity"]
        );
        assert_eq!((schema.column_count(), schema.prepared().count()), (FEATURES.len() + 6, 3));
        assert_eq!(schema.counted_fields(), [ContextField::Region]);
        let json = serde_json::to_string(&schema).unwrap();
        let again: FeatureSchema = serde_json::from_str(&json).unwrap();
        assert_eq!((&again, again.hash()), (&schema, schema.hash()));
        assert_ne!(schema.hash(), FeatureSchema::default().hash());
    }

    #[test]
    fn a_wrong_declaration_is_refused_with_its_name_and_the_reason() {
        let feature = |lines: &str| parse(&format!("[[feature]]\n{lines}")).unwrap_err();
        for (lines, reasons) in [
            ("name = \"price\"\nkind = \"number\"\nfield = \"price\"", ["`price`", "built-in"]),
            ("name = \"A b\"\nkind = \"number\"\nfield = \"price\"", ["`A b`", "a to z"]),
            ("name = \"x\"\nkind = \"number\"\nfield = \"brand\"", ["`x`", "brand is no number"]),
            ("name = \"x\"\nkind = \"number\"\nfield = \"colour\"", ["`x`: unknown field colour", "attributes.NAME"]),
            ("name = \"x\"\nkind = \"affinity\"\nfield = \"title\"", ["`x`", "title"]),
            (
                "name = \"x\"\nkind = \"affinity\"\nfield = \"brand\"\nhalf_life_days = 0",
                ["`x`", "half_life_days is 0"],
            ),
            ("name = \"x\"\nkind = \"match\"\nfilter = \"price <\"", ["`x`", "at character 7"]),
            ("name = \"x\"\nkind = \"context\"\nfield = \"city\"", ["`x`", "weekday"]),
            ("name = \"x\"\nkind = \"context\"\nfield = \"region\"", ["`x`", "values is missing"]),
            ("name = \"x\"\nkind = \"context\"\nfield = \"region\"\nvalues = [\"gb\"]", ["`gb`", "upper case"]),
            ("name = \"x\"\nkind = \"context\"\nfield = \"platform\"\nvalues = [\"tv\"]", ["`tv`", "mobile_web"]),
            ("name = \"x\"\nkind = \"context\"\nfield = \"language\"\nvalues = [\"en-GB\"]", ["`en-GB`", "language"]),
            ("name = \"x\"\nkind = \"context\"\nfield = \"hour\"\nvalues = [\"7\"]", ["`x`", "not of hour"]),
            (
                "name = \"x\"\nkind = \"context\"\nfield = \"platform\"\nvalues = [\"ios\"]\nutc_offset_hours = 1",
                ["utc_offset_hours", "not of platform"],
            ),
            ("name = \"x\"\nkind = \"context_affinity\"\nfield = \"hour\"", ["`x`", "platform, region and language"]),
            ("name = \"x\"\nkind = \"magic\"", ["`x`", "affinity"]),
            ("name = \"x\"\nkind = \"number\"\nfield = \"price\"\nlogarithm = true", ["`x`", "logarithm"]),
            ("name = \"x\"\nkind = \"number\"\nfield = \"price\"\nmissing = nan", ["`x`", "missing is NaN"]),
        ] {
            let error = feature(lines);
            assert!(reasons.iter().all(|reason| error.contains(reason)), "{lines}: {error}");
        }
        for (lines, reasons) in [
            ("kind = \"number\"\nfield = \"price\"", vec!["feature 1, which has no name", "name"]),
            ("name = 5\nkind = \"number\"\nfield = \"price\"", vec!["feature 1, which has no name", "string"]),
            ("name = \"\"\nkind = \"number\"\nfield = \"price\"", vec!["feature 1, which has no name", "a to z"]),
            (
                "name = \"x\"\nkind = \"number\"\nfield = \"prise\"",
                vec!["`x`: unknown field prise; the fields of kind number are price, original_price"],
            ),
            (
                "name = \"x\"\nkind = \"affinity\"\nfield = \"brnd\"",
                vec!["unknown field brnd; the fields of kind affinity are category, brand"],
            ),
            (
                "name = \"x\"\nkind = \"context_affinity\"\nfield = \"city\"",
                vec!["unknown field city; the fields of kind context_affinity are platform, region and language"],
            ),
            (
                "name = \"x\"\nkind = \"affinity\"\nfield = \"brand\"\nhalf_life_days = 1e300",
                vec!["half_life_days is 1e300; it must be 0.1 to 10000"],
            ),
        ] {
            let error = feature(lines);
            assert!(reasons.iter().all(|reason| error.contains(reason)), "{lines}: {error}");
            assert!(!error.contains("title") && !error.contains("create_time"), "{error}");
        }
        for field in ["name", "field", "kind"] {
            let values = ["name", "kind", "field"].map(|of| match (of == field, of) {
                (true, _) => format!("{of} = \"{}\"", "y".repeat(5000)),
                (false, "name") => "name = \"x\"".to_owned(),
                (false, "kind") => "kind = \"number\"".to_owned(),
                (false, _) => "field = \"price\"".to_owned(),
            });
            let error = feature(&values.join("\n"));
            assert!(error.len() < 1000, "{} bytes for a long {field}", error.len());
        }
        let twice = "[[feature]]\nname = \"x\"\nkind = \"number\"\nfield = \"price\"\n".repeat(2);
        assert!(parse(&twice).unwrap_err().contains("two features have this name"));
    }

    #[test]
    fn a_file_without_a_feature_or_beyond_the_limit_is_refused_without_its_path() {
        for text in ["", "# none yet\n", "feature = []\n"] {
            assert!(parse(text).unwrap_err().starts_with("declares no feature"), "{text}");
        }
        let long = format!("# {}\n", "x".repeat(FILE_BYTES_MAX as usize));
        assert!(parse(&long).unwrap_err().contains("more than 1048576 bytes"));
        assert!(parse("[[feature]").unwrap_err().contains("line 1"));
        let error = FeatureSchema::read(Path::new("/nowhere/features.toml")).unwrap_err().to_string();
        assert!(error.starts_with("cannot be read: No such file") && !error.contains("nowhere"), "{error}");
    }

    #[test]
    fn hours_and_weekdays_are_those_of_the_declared_offset() {
        // Sunday, 2026-11-29 23:30 UTC.
        let at = UnixMillis(1_795_995_000_000);
        let value = |field: ContextField, offset| field.at(at, offset);
        assert_eq!([0.0, 1.0, -0.5].map(|offset| value(ContextField::Hour, offset)), [23.0, 0.0, 23.0]);
        assert_eq!([0.0, 1.0].map(|offset| value(ContextField::Weekday, offset)), [6.0, 0.0]);
    }
}

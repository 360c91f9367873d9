//! The file of `lodestone serve --catalogs FILE`; `docs/catalogs.md` describes it.
use crate::server::DEFAULT_CATALOG;
use anyhow::{anyhow, bail};
use lodestone_core::{currency, ids::check_name, toml_error};
use lodestone_index::Languages;
use lodestone_pipeline::bundle::read_regular_text;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Greatest number of catalogues in the file.
const CATALOGS_MAX: usize = 20;
/// Greatest number of worker threads of a catalogue.
pub(crate) const WORKERS_MAX: usize = 1024;

/// The bundles, data and texts of a catalogue.
#[derive(Debug, Clone)]
pub(crate) struct CatalogSource {
    /// `default`, or a name of the file.
    pub name: String,
    pub bundle: Option<PathBuf>,
    pub store: Option<String>,
    pub data: PathBuf,
    pub serving: Option<PathBuf>,
    pub synonyms: Option<PathBuf>,
    pub languages: Languages,
    pub currency: Option<String>,
    /// None: one per core.
    pub workers: Option<usize>,
}

impl CatalogSource {
    /// Names a setting of the catalogue: its flag, or its key in the file of `--catalogs`.
    pub(crate) fn setting(&self, key: &str) -> String {
        match self.name == DEFAULT_CATALOG {
            true => format!("--{key}"),
            false => format!("catalogs.{}.{key}", self.name),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    catalogs: BTreeMap<String, CatalogTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogTable {
    bundle: Option<PathBuf>,
    store: Option<String>,
    data: PathBuf,
    serving: Option<PathBuf>,
    synonyms: Option<PathBuf>,
    languages: Option<String>,
    currency: Option<String>,
    workers: Option<usize>,
}

/// Reads the catalogues of a file, which take languages, currency and workers of `default` if they set none. Reports all
/// mistakes at once.
pub(crate) fn read(path: &Path, default: &CatalogSource) -> anyhow::Result<Vec<CatalogSource>> {
    let shown = format!("--catalogs {}", path.display());
    let text = read_regular_text(path, u64::MAX)
        .map_err(|error| anyhow!("{shown}: cannot be read: {error}; check the path and permissions"))?;
    match parse(&text, default) {
        Ok(catalogs) => Ok(catalogs),
        Err(problems) => bail!("{shown}: {}", problems.join("; ")),
    }
}

fn parse(text: &str, default: &CatalogSource) -> Result<Vec<CatalogSource>, Vec<String>> {
    let file: File = toml::from_str(text).map_err(|error| vec![toml_error::one_line(text, &error)])?;
    let (mut problems, mut sources) = (Vec::new(), Vec::new());
    if file.catalogs.len() > CATALOGS_MAX {
        problems.push(format!("catalogs: has {} entries; the limit is {CATALOGS_MAX}", file.catalogs.len()));
    }
    // By data directory: the catalogue that has it.
    let mut data: BTreeMap<PathBuf, String> = BTreeMap::from([(absolute(&default.data), DEFAULT_CATALOG.to_owned())]);
    for (name, table) in file.catalogs {
        let mut add = |field: &str, problem: String| problems.push(format!("catalogs.{name}{field}: {problem}"));
        if let Err(problem) = catalog_name(&name) {
            add("", problem);
        }
        if name == DEFAULT_CATALOG {
            add("", "the flags of `serve` define this catalogue; choose another name".to_owned());
        }
        if table.bundle.is_some() == table.store.is_some() {
            add("", "needs either `bundle` or `store`".to_owned());
        }
        if let Some(other) = data.insert(absolute(&table.data), name.clone()) {
            add(".data", format!("`{}` is the data directory of `{other}` too", table.data.display()));
        }
        if let Some(workers) = table.workers.filter(|workers| !(1..=WORKERS_MAX).contains(workers)) {
            add(".workers", format!("is {workers}; it must be within 1 and {WORKERS_MAX}"));
        }
        let languages = table.languages.as_deref().map(str::parse::<Languages>).transpose();
        let languages = languages.map_err(|error| add(".languages", error.to_string())).ok().flatten();
        let currency = table.currency.as_deref().map(currency_code).transpose();
        let currency = currency.map_err(|error| add(".currency", error)).ok().flatten();
        sources.push(CatalogSource {
            name,
            bundle: table.bundle,
            store: table.store,
            data: table.data,
            serving: table.serving,
            synonyms: table.synonyms,
            languages: languages.unwrap_or_else(|| default.languages.clone()),
            currency: currency.or_else(|| default.currency.clone()),
            workers: table.workers.or(default.workers),
        });
    }
    if problems.is_empty() { Ok(sources) } else { Err(problems) }
}

/// Parses an ISO 4217 code.
pub(crate) fn currency_code(code: &str) -> Result<String, String> {
    currency::parse(code).map_err(|error| error.to_string())
}

/// Checks the name of a catalogue.
pub(crate) fn catalog_name(name: &str) -> Result<&str, String> {
    match check_name(name) {
        Ok(()) => Ok(name),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns a path by which two spellings of a directory are compared, whether it exists or not.
fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default() -> CatalogSource {
        CatalogSource {
            name: DEFAULT_CATALOG.to_owned(),
            bundle: Some("bundle".into()),
            store: None,
            data: "data".into(),
            serving: None,
            synonyms: None,
            languages: Languages::default(),
            currency: None,
            workers: Some(3),
        }
    }

    #[test]
    fn a_catalogue_takes_the_workers_of_the_flags() {
        let text = "[catalogs.outlet]\nstore = \"s\"\ndata = \"outlet\"\n[catalogs.b]\nbundle = \"b\"\ndata = \"b\"\nworkers = 1\n";
        let sources = parse(text, &default()).unwrap();
        let read: Vec<_> = sources.iter().map(|source| (source.name.as_str(), source.workers)).collect();
        assert_eq!(read, [("b", Some(1)), ("outlet", Some(3))]);
        assert_eq!((sources[1].store.as_deref(), &sources[1].bundle), (Some("s"), &None));
    }

    #[test]
    fn a_missing_file_and_a_setting_are_named_as_the_operator_wrote_them() {
        let error = read(Path::new("none.toml"), &default()).unwrap_err().to_string();
        assert!(
            error.starts_with("--catalogs none.toml: cannot be read: ") && error.contains("check the path"),
            "{error}"
        );
        let named = CatalogSource { name: "outlet".to_owned(), ..default() };
        assert_eq!(
            (default().setting("data"), named.setting("data")),
            ("--data".into(), "catalogs.outlet.data".into())
        );
    }

    #[test]
    fn all_mistakes_are_reported_with_their_fields() {
        let text = r#"
            [catalogs.default]
            bundle = "b"
            data = "x"
            [catalogs."no spaces"]
            data = "./data"
            workers = 0
            languages = "xx"
            currency = "euro"
            [catalogs.two]
            bundle = "b"
            store = "s"
            data = "x"
        "#;
        let problems = parse(text, &default()).unwrap_err().join("\n");
        for words in [
            "catalogs.default: the flags of `serve` define this catalogue",
            "catalogs.no spaces: `no spaces` is not a name",
            "catalogs.no spaces: needs either `bundle` or `store`",
            "catalogs.no spaces.data: `./data` is the data directory of `default` too",
            "catalogs.no spaces.workers: is 0; it must be within 1 and 1024",
            "catalogs.no spaces.languages: ",
            "catalogs.no spaces.currency: `euro` is not an ISO 4217 code in use; did you mean EUR?",
            "catalogs.two: needs either `bundle` or `store`",
            "catalogs.two.data: `x` is the data directory of `default` too",
        ] {
            assert!(problems.contains(words), "{words} is missing in\n{problems}");
        }
        assert!(parse("[catalogs.a]\nbundel = \"b\"\n", &default()).unwrap_err()[0].contains("line 2"));
    }
}

//! The settings of `lodestone serve`: a TOML file, the environment and flags. docs/cli.md describes the file.
//!
//! The definition of a setting is its flag. A value of the file becomes the flag `--key=value` if neither a flag nor the
//! environment sets the key, so that the same parsers check it, whatever its origin.
use super::store_options;
use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use lodestone_core::{
    mask::{MASK, mask_url, mask_urls},
    toml_error,
};
use lodestone_pipeline::bundle::read_regular;
use std::{any::TypeId, collections::BTreeMap, ffi::OsString, fmt, path::PathBuf};

/// The id of the flag that names the file.
const CONFIG: &str = "config";
/// Flags that are no settings of a server.
const NO_SETTINGS: [&str; 3] = [CONFIG, "format", "out"];

/// Where the value of a setting comes from, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

/// An effective setting, without secrets.
#[derive(Debug, serde::Serialize)]
struct Setting {
    /// The key in files: the name of the flag with `_` instead of `-`.
    key: String,
    /// None: not set, and there is no default.
    value: Option<String>,
    origin: Origin,
}

/// The effective settings of a server.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Settings {
    /// The file of the settings with the origin `file`.
    file: Option<PathBuf>,
    settings: Vec<Setting>,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            writeln!(f, "file {}", file.display())?;
        }
        let width = self.settings.iter().map(|setting| setting.key.len()).max().unwrap_or_default();
        for Setting { key, value, origin } in &self.settings {
            let origin = match origin {
                Origin::Default => "default",
                Origin::File => "file",
                Origin::Environment => "environment",
                Origin::Flag => "flag",
            };
            writeln!(f, "{key:width$}  {origin:<11}  {}", value.as_deref().unwrap_or("-"))?;
        }
        Ok(())
    }
}

/// The reason why arguments cannot be used.
#[derive(Debug)]
pub(crate) enum ArgumentError {
    /// Of a flag or a variable, without secrets of URLs. Also a request for help.
    Usage(clap::Error),
    /// Of the file: one line with the file, the key, the value and the limit.
    File(String),
}

/// Parses the arguments of the program, with the values of a file for what neither they nor the environment set. Returns
/// the settings of commands with `--config`.
pub(crate) fn parse(command: Command, mut arguments: Vec<OsString>) -> Result<(ArgMatches, Settings), ArgumentError> {
    let leaf = leaf(&command, &arguments).clone();
    let is_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    let file = match config_path(&leaf, &arguments).filter(|_| !is_help) {
        None => None,
        Some(path) => Some(FileValues::read(path, &leaf, &arguments).map_err(ArgumentError::File)?),
    };
    if let Some(file) = &file {
        arguments.extend(leaf.get_arguments().filter_map(|arg| file.argument(arg)));
    }
    let matches = command.try_get_matches_from(arguments).map_err(masked_error).map_err(|error| match &file {
        Some(file) => file.explain(error),
        None => ArgumentError::Usage(error),
    })?;
    let settings = match leaf.get_arguments().any(|arg| arg.get_id() == CONFIG) {
        true => effective(&leaf, &matches, file.as_ref()),
        false => Settings::default(),
    };
    Ok((matches, settings))
}

/// Masks the URLs in the values that an error states.
fn masked_error(mut error: clap::Error) -> clap::Error {
    let masked: Vec<(ContextKind, ContextValue)> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, ContextValue::String(mask_url(text)))),
            ContextValue::Strings(texts) => {
                Some((kind, ContextValue::Strings(texts.iter().map(|text| mask_url(text)).collect())))
            }
            // A suggestion repeats the value.
            ContextValue::StyledStrs(texts) if texts.iter().any(|text| text.to_string().contains("://")) => {
                let masked = texts.iter().map(|text| StyledStr::from(mask_urls(&text.to_string()))).collect();
                Some((kind, ContextValue::StyledStrs(masked)))
            }
            _ => None,
        })
        .collect();
    for (kind, value) in masked {
        error.insert(kind, value);
    }
    error
}

/// Returns the command that the arguments name, such as `config show`.
fn leaf<'a>(command: &'a Command, arguments: &[OsString]) -> &'a Command {
    let mut names = arguments.iter().skip(1);
    let mut leaf = command;
    while let Some(sub) = names.next().and_then(|name| leaf.find_subcommand(name)) {
        leaf = sub;
    }
    leaf
}

/// Returns the file of `--config FILE`, `--config=FILE` or the environment.
fn config_path(leaf: &Command, arguments: &[OsString]) -> Option<PathBuf> {
    let config = leaf.get_arguments().find(|arg| arg.get_id() == CONFIG)?;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|text| text.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    variable(config).map(PathBuf::from)
}

/// Returns true if `--name` or `--name=value` is given. No flag of a server takes a value that begins with a hyphen.
fn is_flag_given(arg: &Arg, arguments: &[OsString]) -> bool {
    let Some(name) = arg.get_long() else { return false };
    arguments.iter().filter_map(|argument| argument.to_str()?.strip_prefix("--")).any(|argument| {
        let given = argument.split_once('=').map_or(argument, |(given, _)| given);
        given == name
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "clap does not report which variables are set before it parses all values"
)]
fn variable(arg: &Arg) -> Option<OsString> {
    arg.get_env().and_then(std::env::var_os)
}

/// Returns the settings that a file may have.
fn settings_of(leaf: &Command) -> impl Iterator<Item = &Arg> {
    leaf.get_arguments().filter(|arg| !NO_SETTINGS.contains(&arg.get_id().as_str()))
}

fn key(arg: &Arg) -> String {
    arg.get_long().unwrap_or_else(|| arg.get_id().as_str()).replace('-', "_")
}

/// The values of a file that neither flags nor the environment set, by key, as text.
struct FileValues {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

impl FileValues {
    fn read(path: PathBuf, leaf: &Command, arguments: &[OsString]) -> Result<Self, String> {
        let shown = format!("--config {}", path.display());
        let bytes = read_regular(&path)
            .map_err(|error| format!("{shown}: cannot be read: {error}; check the path and permissions"))?;
        let text = String::from_utf8(bytes).map_err(|_| format!("{shown}: is not UTF-8"))?;
        let mut values = parse_file(&text, leaf).map_err(|problem| format!("{shown}: {problem}"))?;
        for arg in settings_of(leaf).filter(|arg| is_flag_given(arg, arguments) || variable(arg).is_some()) {
            values.remove(&key(arg));
        }
        Ok(Self { path, values })
    }

    /// Returns the argument by which a value of the file is parsed, if the file has one.
    fn argument(&self, arg: &Arg) -> Option<OsString> {
        let (name, value) = (arg.get_long()?, self.values.get(&key(arg))?);
        match (arg.get_action(), value.as_str()) {
            (ArgAction::SetTrue, "true") => Some(format!("--{name}").into()),
            (ArgAction::SetTrue, _) => None,
            _ => Some(format!("--{name}={value}").into()),
        }
    }

    /// Returns the error in one line if it is about a value of the file.
    fn explain(&self, error: clap::Error) -> ArgumentError {
        let names: Vec<String> = [ContextKind::InvalidArg, ContextKind::PriorArg]
            .into_iter()
            .filter_map(|kind| error.get(kind))
            .flat_map(|value| match value {
                ContextValue::String(text) => vec![text.clone()],
                ContextValue::Strings(texts) => texts.clone(),
                _ => Vec::new(),
            })
            .collect();
        let key_of = |shown: &String| {
            let name = shown.strip_prefix("--")?.split([' ', '=']).next()?;
            Some(name.replace('-', "_")).filter(|key| self.values.contains_key(key))
        };
        let of_file = names.iter().find_map(key_of);
        let shown = format!("--config {}", self.path.display());
        let text = error.to_string();
        let first = text.strip_prefix("error: ").unwrap_or(&text).split("\n\n").next().unwrap_or_default();
        let first = first.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = match (error.kind(), of_file) {
            (ErrorKind::MissingRequiredArgument, _) => {
                format!("{first}; set what is missing in the file, the environment or as a flag")
            }
            (ErrorKind::ArgumentConflict, Some(_)) => format!("{first}; remove one of them"),
            (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(key)) => {
                let value = self.values.get(&key).map_or(String::new(), |value| mask_url(value));
                let allowed = match error.get(ContextKind::ValidValue) {
                    Some(ContextValue::Strings(values)) => format!("it must be one of {}", values.join(", ")),
                    _ => std::error::Error::source(&error).map_or(first, ToString::to_string),
                };
                format!("{key} is `{value}`: {allowed}")
            }
            _ => return ArgumentError::Usage(error),
        };
        ArgumentError::File(format!("{shown}: {line}"))
    }
}

/// Parses a file into texts for the parsers of the flags.
fn parse_file(text: &str, leaf: &Command) -> Result<BTreeMap<String, String>, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| toml_error::one_line(text, &error))?;
    table
        .into_iter()
        .map(|(name, value)| {
            let arg = settings_of(leaf).find(|arg| key(arg) == name).ok_or_else(|| unknown(&name, leaf))?;
            let value = text_of(arg, &value).map_err(|expected| {
                format!("{name} is a TOML {} (`{}`); it must be {expected}", value.type_str(), shortened(&value))
            })?;
            Ok((name, value))
        })
        .collect()
}

/// Returns a value on one line, without secrets of URLs, cut to 60 characters.
fn shortened(value: &toml::Value) -> String {
    mask_urls(&value.to_string()).split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect()
}

fn unknown(name: &str, leaf: &Command) -> String {
    let distance = |known: &str| strsim::damerau_levenshtein(name, known);
    let nearest = settings_of(leaf).map(key).min_by_key(|known| distance(known));
    match nearest.filter(|known| distance(known) <= (name.chars().count() / 3).max(2)) {
        Some(known) => format!("unknown key `{name}`; did you mean `{known}`?"),
        None => format!(
            "unknown key `{name}`; keys are the flags of `lodestone serve --help` with `_`, at the top level of the file"
        ),
    }
}

/// Returns the text of a value, or the type that the setting needs.
fn text_of(arg: &Arg, value: &toml::Value) -> Result<String, &'static str> {
    let parser = arg.get_value_parser().type_id();
    let is_one_of = |types: &[TypeId]| types.iter().any(|id| parser == *id);
    let is_whole = is_one_of(&[TypeId::of::<usize>(), TypeId::of::<u32>(), TypeId::of::<u64>()]);
    let is_real = is_one_of(&[TypeId::of::<f32>(), TypeId::of::<f64>()]);
    match value {
        toml::Value::Boolean(value) if matches!(arg.get_action(), ArgAction::SetTrue) => Ok(value.to_string()),
        _ if matches!(arg.get_action(), ArgAction::SetTrue) => Err("true or false"),
        toml::Value::Integer(value) if is_whole || is_real => Ok(value.to_string()),
        toml::Value::Float(value) if is_real => Ok(value.to_string()),
        _ if is_whole => Err("a whole number"),
        _ if is_real => Err("a number"),
        toml::Value::String(value) if !value.is_empty() => Ok(value.clone()),
        toml::Value::String(_) => Err("a string that is not empty; remove the line to leave it unset"),
        _ => Err("a string"),
    }
}

/// Returns the effective settings in the order of the help, then the variables of object stores.
fn effective(leaf: &Command, matches: &ArgMatches, file: Option<&FileValues>) -> Settings {
    let mut matches = matches;
    while let Some((_, sub)) = matches.subcommand() {
        matches = sub;
    }
    let mut settings: Vec<Setting> = settings_of(leaf)
        .map(|arg| {
            let id = arg.get_id().as_str();
            let key = key(arg);
            let value = matches.get_raw(id).map(|values| {
                let values: Vec<_> = values.map(|value| value.to_string_lossy().into_owned()).collect();
                mask_url(&values.join(","))
            });
            // A switch that is given has no raw value.
            let value = match arg.get_action() {
                ArgAction::SetTrue => Some(matches.get_flag(id).to_string()),
                _ => value,
            };
            let origin = match matches.value_source(id) {
                _ if file.is_some_and(|file| file.values.contains_key(&key)) => Origin::File,
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Environment,
                _ => Origin::Default,
            };
            Setting { key, value, origin }
        })
        .collect();
    // Credentials are among them.
    settings.extend(store_options().map(|(name, _)| Setting {
        key: name.to_uppercase(),
        value: Some(MASK.to_owned()),
        origin: Origin::Environment,
    }));
    Settings { file: file.map(|file| file.path.clone()), settings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;
    use std::fs;

    /// Returns the effective settings with a file, or the error.
    fn show(file: &str, arguments: &[&str]) -> Result<Settings, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lodestone.toml");
        fs::write(&path, file).unwrap();
        let given = ["lodestone", "config", "show", "--config"].map(OsString::from).into_iter();
        let given = given.chain([path.into()]).chain(arguments.iter().map(OsString::from)).collect();
        match parse(Cli::command(), given) {
            Ok((_, settings)) => Ok(settings),
            Err(ArgumentError::File(line)) => Err(line),
            Err(ArgumentError::Usage(error)) => Err(format!("usage: {error}")),
        }
    }

    fn setting(settings: &Settings, key: &str) -> (Option<String>, Origin) {
        let found = settings.settings.iter().find(|setting| setting.key == key).unwrap();
        (found.value.clone(), found.origin)
    }

    const VALID: &str = "bundle = \"b\"\ndata = \"d\"\n";

    #[test]
    fn a_flag_overrides_the_file_and_the_file_overrides_the_default() {
        let file = format!("{VALID}workers = 3\ninsecure = true\nerror_share_max = 1\nconnections_max = 10\n");
        let settings = show(&file, &["--workers=5", "--connections-max", "20"]).unwrap();
        for (key, value, origin) in [
            ("bundle", Some("b"), Origin::File),
            ("workers", Some("5"), Origin::Flag),
            ("connections_max", Some("20"), Origin::Flag),
            ("error_share_max", Some("1"), Origin::File),
            ("insecure", Some("true"), Origin::File),
            ("history_ends_now", Some("false"), Origin::Default),
            ("listen", Some("127.0.0.1:50051"), Origin::Default),
            ("currency", None, Origin::Default),
        ] {
            assert_eq!(setting(&settings, key), (value.map(str::to_owned), origin), "{key}");
        }
        let (value, origin) = setting(&show(&format!("{VALID}insecure = false\n"), &[]).unwrap(), "insecure");
        assert_eq!((value.as_deref(), origin), (Some("false"), Origin::File));
        // A flag also replaces a value of the file that its parser would refuse.
        assert!(show(&format!("{VALID}workers = 0\n"), &["--workers", "1"]).is_ok());
    }

    #[test]
    fn a_mistake_in_the_file_is_one_line_with_the_file_the_key_the_value_and_the_limit() {
        for (lines, parts) in [
            ("worker = 3", vec!["unknown key `worker`; did you mean `workers`?"]),
            ("metrics-listen = \"a:1\"", vec!["did you mean `metrics_listen`?"]),
            ("config = \"other\"", vec!["unknown key `config`"]),
            ("[rollout]\nprobation_seconds = 1", vec!["unknown key `rollout`", "top level"]),
            ("workers = 0", vec!["workers is `0`", "1.."]),
            ("workers = -1", vec!["workers is `-1`"]),
            ("workers = \"3\"", vec!["workers is a TOML string", "a whole number"]),
            ("workers = 1.5", vec!["workers is a TOML float (`1.5`)", "a whole number"]),
            ("serving = 5", vec!["serving is a TOML integer (`5`)", "a string"]),
            ("insecure = \"yes\"", vec!["insecure", "true or false"]),
            ("serving = \"\"", vec!["serving", "not empty"]),
            ("device = \"tpu\"", vec!["device is `tpu`", "one of cpu, cuda"]),
            ("languages = \"xx\"", vec!["languages is `xx`"]),
            ("store = \"s\"", vec!["--bundle", "--store", "remove one of them"]),
            ("tls_cert = \"c\"", vec!["--tls-key", "set what is missing"]),
            ("workers = 1\nworkers = 2", vec!["line ", "duplicate key"]),
            ("workers = = 2", vec!["line 3"]),
        ] {
            let error = show(&format!("{VALID}{lines}\n"), &[]).unwrap_err();
            assert!(error.starts_with("--config ") && error.contains("lodestone.toml: "), "{lines}: {error}");
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{lines}: {error}");
        }
        let error = show("bundle = \"b\"\n", &[]).unwrap_err();
        assert!(error.contains("--data <DIR>") && !error.contains('\n'), "{error}");
        // A mistake in a flag is reported as without a file.
        let error = show(VALID, &["--workers", "0"]).unwrap_err();
        assert!(error.starts_with("usage: "), "{error}");
    }

    #[test]
    fn secrets_of_urls_are_masked() {
        let file = "data = \"d\"\nstore = \"s3://name:password@bucket/shop?signature=secret\"\n";
        let settings = show(file, &[]).unwrap();
        assert_eq!(setting(&settings, "store").0.as_deref(), Some("s3://***@bucket/shop?***"));
        let shown = format!("{settings}{}", serde_json::to_string(&settings).unwrap());
        assert!(["password", "secret", "name:"].iter().all(|secret| !shown.contains(secret)), "{shown}");
    }

    #[test]
    fn refusals_have_no_secrets_of_urls() {
        let url = "https://anna:hunter2@host.test/a?signature=s3cr3t";
        let check = |error: String, part: &str| {
            assert!(error.contains(part), "{part}: {error}");
            assert!(["anna", "hunter2", "s3cr3t"].iter().all(|secret| !error.contains(secret)), "{error}");
        };
        for key in ["jwt_jwks", "otlp_endpoint"] {
            let others = if key == "jwt_jwks" { "jwt_issuer = \"i\"\njwt_audience = \"a\"\n" } else { "" };
            let refused = show(&format!("{VALID}{others}{key} = \"{url}\"\n"), &[]).unwrap_err();
            check(refused, &format!("{key} is `https://***@host.test/a?***`"));
            let flag = format!("--{}={url}", key.replace('_', "-"));
            let arguments = [flag.as_str(), "--jwt-issuer=i", "--jwt-audience=a"];
            let arguments = if key == "jwt_jwks" { &arguments[..] } else { &arguments[..1] };
            check(show(VALID, arguments).unwrap_err(), "invalid value 'https://***@host.test/a?***'");
        }
        check(show(&format!("{VALID}workers = \"{url}\"\n"), &[]).unwrap_err(), "workers is a TOML string");
        check(show(&format!("{VALID}otlp_endpoint = [\"{url}\"]\n"), &[]).unwrap_err(), "https://***@host.test/a?***");
        check(show(VALID, &[url]).unwrap_err(), "unexpected argument");
        check(show(VALID, &["--device", url]).unwrap_err(), "invalid value");
    }
}

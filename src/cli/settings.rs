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
use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
    path::PathBuf,
};

/// The id of the flag that names the file.
const CONFIG: &str = "config";
/// Flags that are no settings of a server.
const NO_SETTINGS: [&str; 3] = [CONFIG, "format", "out"];
/// The beginning of the variables of settings.
const PREFIX: &str = "LODESTONE_";
/// Variables of no flag: the key of clients, and the commit of a build.
const OTHER_VARIABLES: [&str; 2] = ["LODESTONE_API_KEY", "LODESTONE_GIT_COMMIT"];

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
    #[serde(skip)]
    unknown_variables: Vec<String>,
}

impl Settings {
    /// Logs variables that look like settings and are none, such as those with a typing error.
    pub(crate) fn warn_of_unknown_variables(&self) {
        for problem in &self.unknown_variables {
            tracing::warn!("{problem}");
        }
    }
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
    /// Of the file, of a variable or of several settings: one line with the settings, the value and the limit, or the remedy.
    Line(String),
}

/// Parses the arguments of the program, with the values of a file for what neither they nor the environment set. Returns
/// the settings of commands with `--config`.
pub(crate) fn parse(command: Command, mut arguments: Vec<OsString>) -> Result<(ArgMatches, Settings), ArgumentError> {
    let command = with_negative_numbers(command);
    let leaf = leaf(&command, &arguments).clone();
    let unknown_variables = unknown_variables(&command, variables());
    let is_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    let file = match config_path(&leaf, &arguments).filter(|_| !is_help) {
        None => None,
        Some(path) => Some(FileValues::read(path, &leaf, &arguments).map_err(ArgumentError::Line)?),
    };
    let given = arguments.clone();
    if let Some(file) = &file {
        arguments.extend(leaf.get_arguments().filter_map(|arg| file.argument(arg)));
    }
    let origins = Origins { leaf: &leaf, given: &given, file: file.as_ref() };
    let matches =
        command.try_get_matches_from(arguments).map_err(masked_error).map_err(|error| origins.explain(error))?;
    let settings = match has_config(&leaf) {
        true => Settings { unknown_variables, ..effective(&leaf, &matches, file.as_ref()) },
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

/// Accepts `--flag -1` as a value, which the parser of the flag then refuses with its limits.
fn with_negative_numbers(command: Command) -> Command {
    let negative = |arg: Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(negative).mut_subcommands(with_negative_numbers)
}

/// Returns whether a command takes the settings of a server.
fn has_config(leaf: &Command) -> bool {
    leaf.get_arguments().any(|arg| arg.get_id() == CONFIG)
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

/// Returns the names of all variables with [`PREFIX`].
#[expect(
    clippy::disallowed_methods,
    reason = "clap reads the variables that it knows, and not those with a typing error"
)]
fn variables() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| name.starts_with(PREFIX))
}

/// Returns a warning for each variable that is none of a flag.
fn unknown_variables(command: &Command, names: impl Iterator<Item = String>) -> Vec<String> {
    fn add(command: &Command, known: &mut BTreeSet<String>) {
        known.extend(command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())));
        command.get_subcommands().for_each(|sub| add(sub, known));
    }
    let mut known: BTreeSet<String> = OTHER_VARIABLES.map(str::to_owned).into();
    add(command, &mut known);
    // Kubernetes sets such variables for a service whose name begins with `lodestone`.
    let is_of_service = |name: &str| {
        name.contains("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.contains("_PORT_")
            || name.ends_with("_PORT")
    };
    let unknown = names.filter(|name| !known.contains(name) && !is_of_service(name));
    unknown
        .map(|name| {
            let of_settings = known.iter().filter_map(|known| known.strip_prefix(PREFIX));
            match nearest(&name[PREFIX.len()..], of_settings) {
                Some(known) => {
                    format!("the variable {name} is no setting and has no effect; did you mean {PREFIX}{known}?")
                }
                None => format!(
                    "the variable {name} is no setting and has no effect; `lodestone serve --help` lists the variables"
                ),
            }
        })
        .collect()
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
}

/// Where the values of a command line come from.
struct Origins<'a> {
    leaf: &'a Command,
    /// The arguments, without the values of the file.
    given: &'a [OsString],
    file: Option<&'a FileValues>,
}

impl Origins<'_> {
    fn is_of_file(&self, arg: &Arg) -> bool {
        self.file.is_some_and(|file| file.values.contains_key(&key(arg)))
    }

    fn is_of_variable(&self, arg: &Arg) -> bool {
        variable(arg).is_some() && !is_flag_given(arg, self.given)
    }

    /// Returns whether a value comes from a variable with [`PREFIX`], and not one of another program.
    fn is_of_own_variable(&self, arg: &Arg) -> bool {
        let name = arg.get_env().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(PREFIX) && self.is_of_variable(arg)
    }

    /// Names a setting by its origin.
    fn shown(&self, arg: &Arg) -> String {
        let flag = format!("--{}", arg.get_long().unwrap_or_else(|| arg.get_id().as_str()));
        match arg.get_env() {
            _ if self.is_of_file(arg) => format!("`{}` of the file", key(arg)),
            Some(variable) if self.is_of_variable(arg) => format!("{} ({flag})", variable.to_string_lossy()),
            _ => flag,
        }
    }

    /// Returns the error in one line if it is about settings that exclude each other, about a value of a variable or of the
    /// file, or about a missing setting of a server that has others.
    fn explain(&self, error: clap::Error) -> ArgumentError {
        let names = [ContextKind::InvalidArg, ContextKind::PriorArg].into_iter().filter_map(|kind| error.get(kind));
        let names: Vec<String> = names
            .flat_map(|value| match value {
                ContextValue::String(text) => vec![text.clone()],
                ContextValue::Strings(texts) => texts.clone(),
                _ => Vec::new(),
            })
            .collect();
        let arg_of = |shown: &String| {
            let name = shown.strip_prefix("--")?.split([' ', '=', '[']).next()?;
            self.leaf.get_arguments().find(|arg| arg.get_long() == Some(name))
        };
        let args: Vec<&Arg> = names.iter().filter_map(arg_of).collect();
        let of_value = args.first().copied().filter(|arg| self.is_of_file(arg) || self.is_of_variable(arg));
        let text = error.to_string();
        let first = text.strip_prefix("error: ").unwrap_or(&text).split("\n\n").next().unwrap_or_default();
        let first = first.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut is_about_file = args.iter().any(|arg| self.is_of_file(arg));
        let line = match (error.kind(), of_value) {
            (ErrorKind::ArgumentConflict, _) if args.len() > 1 => {
                let mut settings: Vec<String> = args.iter().map(|arg| self.shown(arg)).collect();
                settings.dedup();
                match &settings[..] {
                    [one] => format!("{one} is set several times; remove all but one"),
                    several => format!("{} exclude each other; remove one of them", several.join(" and ")),
                }
            }
            (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(arg)) => {
                let of_file = self.file.and_then(|file| file.values.get(&key(arg)).cloned());
                let name = if of_file.is_some() { key(arg) } else { self.shown(arg) };
                let of_variable = || variable(arg).unwrap_or_default().to_string_lossy().into_owned();
                let value = mask_url(&of_file.unwrap_or_else(of_variable));
                let allowed = match error.get(ContextKind::ValidValue) {
                    Some(ContextValue::Strings(values)) if !values.is_empty() => {
                        format!("it must be one of {}", values.join(", "))
                    }
                    _ => std::error::Error::source(&error).map_or(first, ToString::to_string),
                };
                format!("{name} is `{value}`: {allowed}")
            }
            (ErrorKind::MissingRequiredArgument, _) if has_config(self.leaf) && self.sets_any() => {
                is_about_file = self.file.is_some();
                format!("{first}; set what is missing in the file, the environment or as a flag{}", self.variables())
            }
            _ => return ArgumentError::Usage(error),
        };
        ArgumentError::Line(match self.file.filter(|_| is_about_file) {
            Some(file) => format!("--config {}: {line}", file.path.display()),
            None => line,
        })
    }

    /// Returns whether a flag, a variable with [`PREFIX`] or the file sets anything.
    fn sets_any(&self) -> bool {
        let is_set = |arg: &Arg| is_flag_given(arg, self.given) || self.is_of_own_variable(arg);
        self.file.is_some() || self.leaf.get_arguments().any(is_set)
    }

    /// Names the settings of the environment, because who reads the error may not know of them.
    fn variables(&self) -> String {
        let of_environment = self.leaf.get_arguments().filter(|arg| self.is_of_own_variable(arg));
        let shown: Vec<String> = of_environment.map(|arg| self.shown(arg)).collect();
        if shown.is_empty() { String::new() } else { format!(". The environment sets {}", shown.join(", ")) }
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

/// Returns the known name that is most similar. None if more than a third of the letters differ.
fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let distances = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= (name.chars().count() / 3).max(2)).then_some(known)
}

fn unknown(name: &str, leaf: &Command) -> String {
    let keys: Vec<String> = settings_of(leaf).map(key).collect();
    match nearest(name, keys.iter().map(String::as_str)) {
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
    Settings { file: file.map(|file| file.path.clone()), settings, unknown_variables: Vec::new() }
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
            Err(ArgumentError::Line(line)) => Err(line),
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
            ("workers = 0", vec!["workers is `0`: 0 is not in 1..=1024"]),
            ("workers = -1", vec!["workers is `-1`: -1 is not in 1..=1024"]),
            ("workers = 1025", vec!["workers is `1025`: 1025 is not in 1..=1024"]),
            ("workers = \"3\"", vec!["workers is a TOML string", "a whole number"]),
            ("workers = 1.5", vec!["workers is a TOML float (`1.5`)", "a whole number"]),
            ("serving = 5", vec!["serving is a TOML integer (`5`)", "a string"]),
            ("insecure = \"yes\"", vec!["insecure", "true or false"]),
            ("serving = \"\"", vec!["serving", "not empty"]),
            ("device = \"tpu\"", vec!["device is `tpu`", "one of cpu, cuda"]),
            ("languages = \"xx\"", vec!["languages is `xx`"]),
            ("store = \"s\"", vec!["`bundle` of the file", "`store` of the file", "remove one of them"]),
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

    /// Returns the one line about arguments, or the text of clap.
    fn refused(arguments: &[&str]) -> String {
        match parse(Cli::command(), arguments.iter().map(OsString::from).collect()) {
            Ok(_) => panic!("{arguments:?} are accepted"),
            Err(ArgumentError::Line(line)) => line,
            Err(ArgumentError::Usage(error)) => format!("usage: {error}"),
        }
    }

    #[test]
    fn flags_that_exclude_or_need_each_other_are_one_line_with_the_remedy() {
        let serve = ["lodestone", "serve", "--bundle", "b", "--data", "d"];
        for (more, expected) in [
            (vec!["--store", "s"], "--bundle and --store exclude each other; remove one of them"),
            (vec!["--workers", "1", "--workers", "2"], "--workers is set several times; remove all but one"),
        ] {
            let line = refused(&[&serve[..], &more[..]].concat());
            // The order is that of clap.
            let mut words: Vec<&str> = line.split(' ').collect();
            let mut expected: Vec<&str> = expected.split(' ').collect();
            words.sort_unstable();
            expected.sort_unstable();
            assert_eq!(words, expected, "{line}");
        }
        let line = refused(&[&serve[..], &["--tls-cert", "c"]].concat());
        assert!(line.contains("--tls-key <FILE>") && line.contains("set what is missing"), "{line}");
        assert!(!line.contains('\n'), "{line}");
        let line = refused(&["lodestone", "bundle", "show", "--bundle", "b", "--json", "--format", "table"]);
        assert!(line.contains(" exclude each other; remove one of them") && !line.contains('\n'), "{line}");
        // Without any setting the usage helps more.
        assert!(refused(&["lodestone", "bundle", "show"]).contains("Usage:"));
    }

    #[test]
    fn a_negative_number_is_refused_with_the_limits() {
        let serve = ["lodestone", "serve", "--bundle", "b", "--data", "d"];
        for (flag, limits) in [
            ("--drain-wait", "it must be within 0 and 86400"),
            ("--client-changes-per-day", "-1 is not in 1.."),
            ("--answers-days", "-1 is not in 1..=3650"),
            ("--slow-request-ms", "-1 is not in 0.."),
        ] {
            let text = refused(&[&serve[..], &[flag, "-1"]].concat());
            assert!(text.contains(flag) && text.contains(limits), "{text}");
        }
        let key =
            ["lodestone", "key", "create", "--keys", "k", "--name", "n", "--role", "rank", "--changes-per-day", "-1"];
        let text = refused(&key);
        assert!(text.contains("-1 is not in 1..=9223372036854775807"), "{text}");
    }

    #[test]
    fn a_variable_that_is_no_setting_is_named_with_the_nearest_one() {
        let warnings = |name: &str| unknown_variables(&Cli::command(), std::iter::once(name.to_owned()));
        for known in ["LODESTONE_WORKERS", "LODESTONE_CONFIG", "LODESTONE_API_KEY", "LODESTONE_SHOP_SERVICE_HOST"] {
            assert!(warnings(known).is_empty(), "{known}");
        }
        assert!(warnings("LODESTONE_PORT_50051_TCP").is_empty());
        let typed = warnings("LODESTONE_WORKRES");
        assert!(typed.len() == 1 && typed[0].contains("did you mean LODESTONE_WORKERS?"), "{typed:?}");
        let far = warnings("LODESTONE_COLOUR_OF_THE_SHOP");
        assert!(
            far.len() == 1 && far[0].contains("LODESTONE_COLOUR_OF_THE_SHOP") && far[0].contains("--help"),
            "{far:?}"
        );
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

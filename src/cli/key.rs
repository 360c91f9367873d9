//! `lodestone key`: API keys of `lodestone serve --api-keys`.
use super::{
    exit::Exit,
    numbers::{between, whole},
    output::OutputArgs,
    paths::new_file,
};
use crate::server::{NewKey, Role, check_key_file, check_key_name, read_key_file};
use anyhow::Context;
use clap::Subcommand;
use lodestone_core::{ids::check_name, units::UnixMillis};
use lodestone_events::storage;
use rand::{TryRngCore, rngs::OsRng};
use std::{fmt, fs, io::Write, path::PathBuf};

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    Create(CreateArgs),
}

/// Creates an API key, prints it once, and appends its hash to a key file.
///
/// The key cannot be shown again, because the file has only its hash. To revoke a key, remove its entry from the file. A
/// running server uses the changed file within seconds. An existing file of --out is refused.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone key create --keys keys.toml --name shop --role rank --role events
  lodestone key create --keys keys.toml --name shoes-feed --role catalog --catalog shoes --expires-days 90
  lodestone key create --keys keys.toml --name partner --role rank --requests-per-second 20 --burst 100")]
pub(crate) struct CreateArgs {
    /// The key file. It is created if it does not exist.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    keys: PathBuf,
    /// Name of the key, which the file does not have yet: its user and purpose.
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: String,
    /// What the key may do; several times for several roles. See docs/security.md.
    #[arg(long = "role", value_name = "ROLE", required = true, value_enum)]
    roles: Vec<Role>,
    /// A catalogue that the key may use; several times for several. Default: all catalogues.
    #[arg(long = "catalog", value_name = "NAME", value_parser = catalog)]
    catalogs: Vec<String>,
    /// Days until the key expires. Default: it does not expire.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=3650))]
    expires_days: Option<i64>,
    /// Requests per second. Default: the server's --client-requests-per-second.
    #[arg(long, value_name = "N", value_parser = between(0.001, 1e6))]
    requests_per_second: Option<f64>,
    /// Requests that may come at once after a pause. Default: those of one second.
    #[arg(long, value_name = "N", requires = "requests_per_second", value_parser = whole::<u32>(1..=1_000_000))]
    burst: Option<u32>,
    /// Events and items that the key may write or delete per day in UTC. Default: the server's --client-changes-per-day.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1..=i64::MAX as u64))]
    changes_per_day: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

fn name(text: &str) -> Result<String, String> {
    check_key_name(text).map(|()| text.to_owned())
}

fn catalog(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

#[derive(serde::Serialize)]
struct Created {
    name: String,
    /// The secret. It is stored nowhere.
    key: String,
    roles: Vec<&'static str>,
    /// None: all catalogues.
    catalogs: Option<Vec<String>>,
    /// RFC 3339. None: never.
    expires: Option<String>,
    keys: PathBuf,
}

impl Created {
    /// Everything except the secret.
    fn described(&self) -> String {
        let catalogs = self
            .catalogs
            .as_ref()
            .map_or("all catalogues".to_owned(), |of| format!("the catalogues {}", of.join(", ")));
        let expires = self.expires.as_ref().map_or("does not expire".to_owned(), |at| format!("expires at {at}"));
        format!(
            "This is the key `{}` with the roles {} for {catalogs}. It {expires}, and is not shown again:\n\
             {} has its hash. Clients send it as `authorization: Bearer KEY`.\n",
            self.name,
            self.roles.join(", "),
            self.keys.display()
        )
    }
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.key)?;
        f.write_str(&self.described())
    }
}

pub(crate) fn run(command: &KeyCommand) -> anyhow::Result<Exit> {
    let KeyCommand::Create(args) = command;
    create(args)
}

fn create(args: &CreateArgs) -> anyhow::Result<Exit> {
    // Before the key is in the key file.
    args.output.refuse_existing()?;
    let mut random = [0; 32];
    OsRng.try_fill_bytes(&mut random).context("the random numbers of the operating system")?;
    let key = NewKey::of(random);
    let mut roles: Vec<&'static str> = args.roles.iter().map(|role| role.name()).collect();
    roles.sort_unstable();
    roles.dedup();
    let shown = || format!("--keys {}", args.keys.display());
    let before = match read_key_file(&args.keys) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.with_context(shown)?,
    };
    let names = check_key_file("--keys", &args.keys, &before)?;
    anyhow::ensure!(
        !names.contains(&args.name),
        "--name {}: {} already has a key of this name; choose another name, or remove its entry first",
        args.name,
        args.keys.display()
    );
    let mut entry = String::new();
    if !before.is_empty() {
        entry.push_str(if before.ends_with('\n') { "\n" } else { "\n\n" });
    }
    let list = |values: Vec<&str>| toml::Value::from(values).to_string();
    entry += &format!("[[keys]]\nname = \"{}\"\nhash = \"{}\"\nroles = {}\n", args.name, key.hash, list(roles.clone()));
    if !args.catalogs.is_empty() {
        entry += &format!("catalogs = {}\n", list(args.catalogs.iter().map(String::as_str).collect()));
    }
    let expires_at = |days: i64| -> anyhow::Result<String> {
        let at = jiff::Timestamp::from_millisecond(UnixMillis::now().0 + days * UnixMillis::DAY)?;
        Ok(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    };
    let expires = args.expires_days.map(expires_at).transpose()?;
    if let Some(at) = &expires {
        entry += &format!("expires = {at}\n");
    }
    let limits = [
        ("requests_per_second", args.requests_per_second.map(|value| toml::Value::from(value).to_string())),
        ("burst", args.burst.map(|value| value.to_string())),
        ("changes_per_day", args.changes_per_day.map(|value| value.to_string())),
    ];
    entry.extend(limits.into_iter().filter_map(|(name, value)| Some(format!("{name} = {}\n", value?))));
    check_key_file("--keys", &args.keys, &format!("{before}{entry}"))?;
    // Appended, so that comments, owner and permissions of the file stay.
    let file = match before.is_empty() {
        true => storage::append_private(&args.keys),
        false => fs::OpenOptions::new().append(true).open(&args.keys),
    };
    file.and_then(|mut file| {
        file.write_all(entry.as_bytes())?;
        file.sync_all()
    })
    .with_context(shown)?;
    let created = Created {
        name: args.name.clone(),
        key: key.secret,
        roles,
        catalogs: (!args.catalogs.is_empty()).then(|| args.catalogs.clone()),
        expires,
        keys: args.keys.clone(),
    };
    args.output.write_secret(&created.key, &created.described(), &created)?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{ApiKeys, ClientLimits};
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: CreateArgs,
    }

    #[test]
    fn a_key_with_limits_is_added_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (keys, out) = (directory.path().join("keys.toml"), directory.path().join("key"));
        let (keys_text, out_text) = (keys.display().to_string(), out.display().to_string());
        let create_with = |arguments: &[&str]| {
            // The file of the key before.
            let _ = fs::remove_file(&out);
            let fixed = ["create", "--keys", keys_text.as_str(), "--out", out_text.as_str(), "--role", "rank"];
            Command::try_parse_from([&fixed[..], arguments].concat()).map(|command| create(&command.args).unwrap())
        };
        let limits = ["--requests-per-second", "20", "--burst", "100", "--changes-per-day", "5000"];
        create_with(&[&["--name", "a"][..], &limits].concat()).unwrap();
        create_with(&["--name", "b", "--requests-per-second", "0.5"]).unwrap();
        assert!(create_with(&["--name", "c", "--burst", "5"]).is_err(), "a burst without a rate");
        let text = fs::read_to_string(&keys).unwrap();
        assert!(text.contains("requests_per_second = 20.0\nburst = 100\nchanges_per_day = 5000\n"), "{text}");
        assert!(text.contains("requests_per_second = 0.5\n"), "{text}");
        assert!(ApiKeys::open(&keys, ClientLimits::default()).is_ok());
    }

    #[test]
    fn the_file_of_another_key_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (keys, out) = (path("keys.toml"), path("key"));
        let create_named = |name: &str, format: &str| {
            let arguments =
                ["create", "--keys", &keys, "--out", &out, "--role", "rank", "--name", name, "--format", format];
            create(&Command::try_parse_from(arguments).unwrap().args)
        };
        create_named("a", "table").unwrap();
        let before = [fs::read_to_string(&keys).unwrap(), fs::read_to_string(&out).unwrap()];
        for format in ["table", "json"] {
            let error = format!("{:#}", create_named("b", format).err().unwrap());
            assert!(error.contains(&format!("--out {out}: the file exists")) && error.contains("remove it"), "{error}");
            assert_eq!([fs::read_to_string(&keys).unwrap(), fs::read_to_string(&out).unwrap()], before);
        }
    }

    #[test]
    fn a_key_that_cannot_be_added_is_refused_with_the_flag() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        let hash = NewKey::of([1; 32]).hash;
        let valid = format!("[[keys]]\nname = \"shop\"\nhash = \"{hash}\"\nroles = [\"rank\"]\n");
        let keys = path.display().to_string();
        for (keys, text, part) in [
            (&keys[..], &valid[..], "--name shop: "),
            (&keys, &valid, "already has a key of this name"),
            (&keys, "[[keys]", "keys.toml: line 1"),
            (&keys, "[[keys]", "--keys "),
            // Not a file, as a pipe, which would not answer.
            ("/dev/null", "", "--keys /dev/null"),
        ] {
            fs::write(&path, text).unwrap();
            let command = Command::try_parse_from(["create", "--keys", keys, "--name", "shop", "--role", "rank"]);
            let error = format!("{:#}", create(&command.unwrap().args).err().unwrap());
            assert!(error.contains(part) && !error.contains("--api-keys"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}

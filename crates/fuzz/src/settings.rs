//! Files of a server's operator: settings, catalogues, keys, serving configurations, declared features and mappings,
//! all TOML, and certificates. The first byte of a TOML file selects its kind.
use crate::files::{select, selecting, with_file};
use lodestone::{
    cli,
    server::{Tls, TlsFiles, check_key_file},
};
use lodestone_dataset::import::{Mapping, SHIPPED};
use lodestone_pipeline::{
    features::FeatureSchema,
    serving::{Serving, ServingConfig},
};
use std::path::Path;

const SETTINGS: usize = 0;
const CATALOGS: usize = 1;
const KEYS: usize = 2;
const SERVING: usize = 3;
const FEATURES: usize = 4;
const MAPPING: usize = 5;
const KINDS: usize = 6;

const SETTINGS_SEED: &str = r#"
bundle = "bundle"
data = "data"
workers = 4
listen = "127.0.0.1:50051"
"#;

const CATALOGS_SEED: &str = r#"
[catalogs.shoes]
bundle = "shoes"
data = "data/shoes"
currency = "EUR"
workers = 2

[catalogs.books]
store = "s3://models/books"
data = "data/books"
languages = "en,de"
"#;

const KEYS_SEED: &str = r#"
[[keys]]
name = "feed"
hash = "sha256:9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b9f2b"
roles = ["catalog", "events"]
catalogs = ["shoes"]
expires = 2027-01-31T00:00:00Z
"#;

const SERVING_SEED: &str = r#"
[configs.default]
diversity = 0.1
source_candidates = 100

[configs.explore]
head_weights = { purchase = 1.0, refund = -0.1 }
exploration = { temperature = 0.5, first_slot = 3, top = 20, share = 0.2 }

[[experiments]]
name = "e1"
arms = [{ name = "a", config = "default", share = 0.5 }, { name = "b", config = "explore", share = 0.5 }]
"#;

const FEATURES_SEED: &str = r#"
[[feature]]
name = "margin"
kind = "request"
missing = 0.2

[[feature]]
name = "rating"
kind = "number"
field = "attributes.rating"
missing = 3.0

[[feature]]
name = "own"
kind = "match"
filter = 'brand IN ("Acme")'

[[feature]]
name = "hour"
kind = "context"
field = "hour"
utc_offset_hours = 1
"#;

const MAPPING_SEED: &str = r#"
extends = "google-merchant-center"
[items]
brand = ["maker", "brand"]
[constants]
currency = "EUR"
[clean]
price_unit = 0.01
"#;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let shipped = SHIPPED.map(|(_, text)| selecting(MAPPING, text));
    let own = [
        selecting(SETTINGS, SETTINGS_SEED),
        selecting(CATALOGS, CATALOGS_SEED),
        selecting(KEYS, KEYS_SEED),
        selecting(SERVING, SERVING_SEED),
        selecting(FEATURES, FEATURES_SEED),
        selecting(MAPPING, MAPPING_SEED),
    ];
    own.into_iter().chain(shipped).collect()
}

pub(crate) fn accepts(input: &[u8]) -> bool {
    let Some((kind, content)) = select(input, KINDS) else { return false };
    with_file("settings.toml", content, |path| match kind {
        SETTINGS => cli::fuzzing::accepts_settings(path),
        CATALOGS => cli::fuzzing::accepts_catalogs(path),
        KEYS => check_key_file("--api-keys", path, &String::from_utf8_lossy(content)).is_ok(),
        SERVING => Serving::open(path, &ServingConfig::default()).is_ok(),
        FEATURES => accepts_features(path),
        _ => Mapping::open(&path.display().to_string()).is_ok(),
    })
}

fn accepts_features(path: &Path) -> bool {
    FeatureSchema::read(path).is_ok_and(|schema| {
        // A manifest has the schema as JSON.
        let json = serde_json::to_string(&schema).expect("texts and finite numbers");
        let read: FeatureSchema = serde_json::from_str(&json).expect("a valid schema");
        assert_eq!(read.hash(), schema.hash());
        true
    })
}

/// A certificate with its key in one file, as [`accepts_certificate`] reads it. The key differs from run to run.
pub(crate) fn certificate_seeds() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate().expect("a new key");
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a valid name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a valid certificate");
    vec![format!("{}{}", certificate.pem(), key.serialize_pem()).into_bytes()]
}

/// Uses the input as the server's certificate, as its key and as the authority of clients.
pub(crate) fn accepts_certificate(input: &[u8]) -> bool {
    with_file("tls.pem", input, |path| {
        let path = path.to_owned();
        Tls::open(TlsFiles { certificate: path.clone(), key: path.clone(), client_ca: Some(path) }).is_ok()
    })
}

//! Access: who may call which method on which catalogue.
use super::{
    CATALOG_METADATA, DEFAULT_CATALOG,
    api_keys::{ApiKeys, KEY_PREFIX, KeyHash},
    client::Client,
    jwt::{Jwt, TokenProblem, VerifiedToken},
    status,
    transport::is_client_streaming,
};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use http_body::Frame;
use hyper::body::Bytes;
use lodestone_core::units::UnixMillis;
use lodestone_telemetry::Metrics;
use serde::Deserialize;
use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tonic::{Status, body::Body};
use tower::Service;

/// What a client may do. Roles do not include each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Search, Recommend, Rank, Suggest.
    Rank,
    /// Write events.
    Events,
    /// Read and write items and declarations of attributes.
    Catalog,
    /// Rules, synonyms, serving configurations.
    Rules,
    /// Scores of users, incentives and their campaigns.
    Loyalty,
    /// Personal data: logged answers with their users.
    Privacy,
    /// Bundles: activation, canary, rollback.
    Admin,
    /// Debug levels SCORES and FEATURES of answers, and reflection.
    Debug,
}

impl Role {
    pub const ALL: [Self; 8] =
        [Self::Rank, Self::Events, Self::Catalog, Self::Rules, Self::Loyalty, Self::Privacy, Self::Admin, Self::Debug];

    /// Returns the name in key files and in claims of tokens.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rank => "rank",
            Self::Events => "events",
            Self::Catalog => "catalog",
            Self::Rules => "rules",
            Self::Loyalty => "loyalty",
            Self::Privacy => "privacy",
            Self::Admin => "admin",
            Self::Debug => "debug",
        }
    }
}

/// What a method requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requirement {
    /// Nothing: load balancers have no key.
    Nothing,
    /// A client of any role.
    AnyClient,
    Role(Role),
}

/// The requirement of every method by service. A test compares it with the descriptors of the proto files.
const METHODS: &[(&str, &[&str], Requirement)] = {
    use Requirement::{Nothing, Role as Of};
    &[
        ("lodestone.v1.RankingService", &["Search", "Recommend", "Rank", "Suggest"], Of(Role::Rank)),
        ("lodestone.v1.EventService", &["WriteEvents", "StreamEvents"], Of(Role::Events)),
        // Its responses have the users of answers.
        ("lodestone.v1.ExplainService", &["ReplayAnswer"], Of(Role::Privacy)),
        (
            "lodestone.v1.CatalogService",
            &[
                "UpsertItems",
                "UpdateItems",
                "SetInventory",
                "DeleteItems",
                "ImportItems",
                "PurgeItems",
                "ListItems",
                "GetItem",
                "DeclareAttribute",
                "DeleteAttributeDeclaration",
                "ListAttributes",
            ],
            Of(Role::Catalog),
        ),
        (
            "lodestone.v1.RuleService",
            &["CreateRule", "GetRule", "ListRules", "UpdateRule", "DeleteRule", "PreviewRule"],
            Of(Role::Rules),
        ),
        (
            "lodestone.v1.SynonymService",
            &["CreateSynonymSet", "GetSynonymSet", "ListSynonymSets", "UpdateSynonymSet", "DeleteSynonymSet"],
            Of(Role::Rules),
        ),
        (
            "lodestone.v1.ServingConfigService",
            &[
                "CreateServingConfig",
                "GetServingConfig",
                "ListServingConfigs",
                "UpdateServingConfig",
                "DeleteServingConfig",
                "PreviewServingConfig",
            ],
            Of(Role::Rules),
        ),
        (
            "lodestone.v1.IncentiveService",
            &[
                "CreateIncentiveCampaign",
                "GetIncentiveCampaign",
                "ListIncentiveCampaigns",
                "UpdateIncentiveCampaign",
                "DeleteIncentiveCampaign",
                "DecideIncentive",
            ],
            Of(Role::Loyalty),
        ),
        ("lodestone.v1.LoyaltyService", &["GetLoyalty", "BatchGetLoyalty", "ListAtRisk"], Of(Role::Loyalty)),
        (
            "lodestone.v1.ModelService",
            &["ListBundles", "ActivateBundle", "RollbackBundle", "SetShadow", "SetCanary"],
            Of(Role::Admin),
        ),
        ("grpc.health.v1.Health", &["Check", "Watch"], Nothing),
        ("grpc.reflection.v1.ServerReflection", &["ServerReflectionInfo"], Of(Role::Debug)),
        ("grpc.reflection.v1alpha.ServerReflection", &["ServerReflectionInfo"], Of(Role::Debug)),
    ]
};

/// What the audit log has of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audit {
    /// One line, before the response is sent.
    Read,
    /// A line before the change and one after it, both durable before the response is sent.
    Change,
}

/// The methods in the audit log by service: calls of the roles `admin` and `privacy`, changes of what decides answers, and
/// deletions of items. ImportItems is in it when a full feed deletes items.
pub(super) const AUDITED: &[(&str, &[&str], Audit)] = {
    use Audit::{Change, Read};
    &[
        ("lodestone.v1.ModelService", &["ListBundles"], Read),
        ("lodestone.v1.ModelService", &["ActivateBundle", "RollbackBundle", "SetShadow", "SetCanary"], Change),
        ("lodestone.v1.ExplainService", &["ReplayAnswer"], Read),
        ("lodestone.v1.RuleService", &["CreateRule", "UpdateRule", "DeleteRule"], Change),
        ("lodestone.v1.SynonymService", &["CreateSynonymSet", "UpdateSynonymSet", "DeleteSynonymSet"], Change),
        (
            "lodestone.v1.ServingConfigService",
            &["CreateServingConfig", "UpdateServingConfig", "DeleteServingConfig"],
            Change,
        ),
        (
            "lodestone.v1.IncentiveService",
            &["CreateIncentiveCampaign", "UpdateIncentiveCampaign", "DeleteIncentiveCampaign"],
            Change,
        ),
        (
            "lodestone.v1.CatalogService",
            &["DeleteItems", "PurgeItems", "ImportItems", "DeclareAttribute", "DeleteAttributeDeclaration"],
            Change,
        ),
    ]
};

/// Returns what the audit log has of a method, such as `RuleService/CreateRule`.
pub(super) fn audit_of(method: &str) -> Audit {
    let is_of = |(service, methods, _): &&(&str, &[&str], Audit)| {
        let named = method.split_once('/');
        named.is_some_and(|(of, name)| service.strip_prefix("lodestone.v1.") == Some(of) && methods.contains(&name))
    };
    let found = AUDITED.iter().find(is_of);
    debug_assert!(found.is_some(), "{method} is not in the table");
    found.map_or(Audit::Change, |(_, _, audit)| *audit)
}

/// Returns the requirement of a path, such as `/lodestone.v1.RankingService/Search`. An unknown method needs a client: the
/// response to it says that it does not exist.
fn requirement(path: &str) -> Requirement {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return Requirement::AnyClient;
    };
    let found = METHODS.iter().find(|(name, methods, _)| *name == service && methods.contains(&method));
    found.map_or(Requirement::AnyClient, |(_, _, requirement)| *requirement)
}

/// What a call proves its client by.
#[derive(Clone)]
enum Credential {
    ApiKey(KeyHash),
    Token(Arc<VerifiedToken>),
}

/// A client that may make a call.
struct Admitted {
    client: Arc<Client>,
    credential: Credential,
}

/// Why a call is refused.
enum Refusal {
    Status(Status),
    /// The token names a key that the set does not have. The set may have changed at its URL.
    UnknownTokenKey,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// The ways in which clients authenticate.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) api_keys: Option<Arc<ApiKeys>>,
    pub(super) jwt: Option<Arc<Jwt>>,
}

impl Access {
    fn is_open(&self) -> bool {
        self.api_keys.is_none() && self.jwt.is_none()
    }

    /// Returns the client of a call.
    fn authenticate(&self, headers: &HeaderMap, now: UnixMillis) -> Result<Admitted, Refusal> {
        let sent = headers.get(AUTHORIZATION).ok_or_else(status::api_key_missing)?;
        let secret = bearer(sent.as_bytes()).ok_or_else(status::api_key_missing)?;
        if let Some(jwt) = self.jwt.as_ref().filter(|_| !secret.starts_with(KEY_PREFIX.as_bytes())) {
            return match jwt.authenticate(secret, now) {
                Ok(token) => Ok(Admitted { client: token.client.clone(), credential: Credential::Token(token) }),
                Err(TokenProblem::UnknownKey) => Err(Refusal::UnknownTokenKey),
                Err(problem) => Err(status::token_invalid(&problem.to_string()).into()),
            };
        }
        let found = self.api_keys.as_ref().and_then(|keys| keys.authenticate(secret, now));
        let (hash, client) = found.ok_or_else(status::api_key_invalid)?;
        Ok(Admitted { client, credential: Credential::ApiKey(hash) })
    }

    /// Checks that the client of a call may call a method on a catalogue, and counts the call. None if the method needs no
    /// client.
    fn check(
        &self,
        path: &str,
        headers: &HeaderMap,
        now: UnixMillis,
        metrics: &Metrics,
    ) -> Result<Option<Admitted>, Refusal> {
        let requirement = requirement(path);
        if requirement == Requirement::Nothing {
            return Ok(None);
        }
        let admitted = self.authenticate(headers, now)?;
        let client = &admitted.client;
        // Before the role, so that refused calls count too.
        client.admit_request(metrics)?;
        // The catalogue is checked before it or the method is looked for, so that the status does not depend on its
        // existence. Reflection has none.
        let catalog = headers.get(CATALOG_METADATA).map(|value| value.as_bytes()).filter(|name| !name.is_empty());
        if !path.starts_with("/grpc.") && !client.may_use(catalog.unwrap_or(DEFAULT_CATALOG.as_bytes())) {
            tracing::debug!(client = client.name, "a client may not use a catalogue");
            return Err(status::catalog_denied(catalog.is_some()).into());
        }
        let Requirement::Role(role) = requirement else { return Ok(Some(admitted)) };
        if !client.has(role) {
            tracing::debug!(client = client.name, path, "a client lacks a role");
            return Err(status::role_missing(role.name()).into());
        }
        Ok(Some(admitted))
    }

    /// Fails if a credential that was valid when a stream began no longer is.
    fn check_again(&self, credential: &Credential, now: UnixMillis) -> Result<(), Status> {
        match credential {
            Credential::ApiKey(hash) if self.api_keys.as_ref().is_some_and(|keys| keys.is_valid(hash, now)) => Ok(()),
            Credential::ApiKey(_) => Err(status::api_key_invalid()),
            Credential::Token(token) => match self.jwt.as_ref().map(|jwt| jwt.check_again(token, now)) {
                Some(Err(problem)) => Err(status::token_invalid(&problem.to_string())),
                _ => Ok(()),
            },
        }
    }
}

/// The body of a stream of requests. Its client is checked again whenever a part of it arrives, because streams last for
/// hours.
struct AuthorizedBody {
    inner: Body,
    access: Access,
    credential: Credential,
}

impl http_body::Body for AuthorizedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(http_body::Body::poll_frame(Pin::new(&mut this.inner), context));
        if matches!(&frame, Some(Ok(_)))
            && let Err(status) = this.access.check_again(&this.credential, UnixMillis::now())
        {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.inner)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}

/// Returns the credential in the header `authorization: Bearer CREDENTIAL`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, secret) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(secret.trim_ascii()).filter(|secret| !secret.is_empty())
}

/// The layer that refuses calls whose client may not make them. A server without authentication passes every call.
#[derive(Clone)]
pub(super) struct Authorization<S> {
    inner: S,
    access: Access,
    // Shared, because the layer is cloned for every call.
    metrics: Arc<Metrics>,
}

impl<S> Authorization<S> {
    pub(super) fn new(inner: S, access: Access, metrics: Metrics) -> Self {
        Self { inner, access, metrics: Arc::new(metrics) }
    }
}

impl<S> Authorization<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    /// Passes a call of a client to the services.
    fn forward(&mut self, mut request: Request<Body>, admitted: Option<Admitted>) -> S::Future {
        if let Some(Admitted { client, credential }) = admitted {
            request.extensions_mut().insert(client);
            if is_client_streaming(request.uri().path()) {
                let access = self.access.clone();
                request = request.map(|inner| Body::new(AuthorizedBody { inner, access, credential }));
            }
        }
        // No service and no log needs the secret.
        request.headers_mut().remove(AUTHORIZATION);
        self.inner.call(request)
    }
}

impl<S> Service<Request<Body>> for Authorization<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.access.is_open() {
            return Box::pin(self.forward(request, None));
        }
        let path = request.uri().path();
        match self.access.check(path, request.headers(), UnixMillis::now(), &self.metrics) {
            Ok(admitted) => return Box::pin(self.forward(request, admitted)),
            Err(Refusal::Status(status)) => return Box::pin(std::future::ready(Ok(status.into_http()))),
            Err(Refusal::UnknownTokenKey) => {}
        }
        // The inner service is always ready.
        let mut this = self.clone();
        Box::pin(async move {
            if let Some(jwt) = &this.access.jwt {
                jwt.refresh_for_unknown_key().await;
            }
            let path = request.uri().path();
            match this.access.check(path, request.headers(), UnixMillis::now(), &this.metrics) {
                Ok(admitted) => this.forward(request, admitted).await,
                Err(Refusal::Status(status)) => Ok(status.into_http()),
                Err(Refusal::UnknownTokenKey) => {
                    Ok(status::token_invalid(&TokenProblem::UnknownKey.to_string()).into_http())
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{ClientLimits, NewKey, jwt, proto::DESCRIPTORS};
    use prost::Message;
    use std::{
        collections::{BTreeMap, BTreeSet},
        fs,
    };
    use tonic::Code;
    use tonic_types::StatusExt;

    const SEARCH: &str = "/lodestone.v1.RankingService/Search";

    fn access(text: &str) -> Access {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        fs::write(&path, text).unwrap();
        let keys = ApiKeys::open(&path, ClientLimits::default()).unwrap();
        Access { api_keys: Some(Arc::new(keys)), jwt: None }
    }

    /// Returns the code and the reason of a refused call.
    fn outcome(access: &Access, path: &str, headers: &HeaderMap, now: UnixMillis) -> Result<(), (Code, String)> {
        match access.check(path, headers, now, &Metrics::default()) {
            Ok(_) => Ok(()),
            Err(Refusal::Status(status)) => {
                let secret = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split(' ').next_back());
                assert!(secret.is_none_or(|secret| secret.is_empty() || !status.message().contains(secret)));
                assert!(!status.message().contains("unknown`"), "{status:?}");
                Err((status.code(), status.get_error_details().error_info().unwrap().reason.clone()))
            }
            Err(Refusal::UnknownTokenKey) => panic!("there are no tokens"),
        }
    }

    fn headers(authorization: &str, catalog: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        }
        headers.insert(CATALOG_METADATA, catalog.parse().unwrap());
        headers
    }

    #[test]
    fn the_table_has_exactly_the_methods_of_the_descriptors() {
        let mut methods = BTreeMap::new();
        use tonic_reflection::pb::{v1, v1alpha};
        let of_server = [tonic_health::pb::FILE_DESCRIPTOR_SET, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET];
        let sets = of_server.into_iter().chain([DESCRIPTORS]);
        let sets: Vec<_> = sets.map(|bytes| prost_types::FileDescriptorSet::decode(bytes).unwrap()).collect();
        for file in sets.iter().flat_map(|set| &set.file) {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                let names = service.method.iter().map(|method| method.name().to_owned());
                methods.insert(name, names.collect::<BTreeSet<String>>());
            }
        }
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let listed: BTreeMap<_, _> = METHODS.iter().map(|(name, names, _)| (name.to_string(), texts(names))).collect();
        assert_eq!(listed, methods);
        for role in Role::ALL {
            assert!(METHODS.iter().any(|(_, _, of)| *of == Requirement::Role(role)), "{role:?} allows nothing");
        }
    }

    #[test]
    fn every_method_of_the_roles_admin_and_privacy_is_audited() {
        let audited = |service: &str, method: &str| {
            let found = AUDITED.iter().filter(|(name, methods, _)| *name == service && methods.contains(&method));
            found.count()
        };
        for (service, methods, requirement) in METHODS {
            let must_be = [Role::Admin, Role::Privacy].map(Requirement::Role).contains(requirement);
            for method in *methods {
                let count = audited(service, method);
                assert!(count <= 1 && (!must_be || count == 1), "{service}/{method}");
            }
        }
        for (service, methods, _) in AUDITED {
            let exists = |method: &&str| METHODS.iter().any(|(name, of, _)| name == service && of.contains(method));
            assert!(methods.iter().all(exists), "{service}");
        }
    }

    #[test]
    fn the_document_lists_exactly_the_audited_methods() {
        let document = include_str!("../../docs/security.md");
        let (_, section) = document.split_once("\n## Audit log\n").unwrap();
        // Rows of the form | `Service` | `Method`, `Method` |.
        let rows = section.split("\n## ").next().unwrap_or_default().lines().filter(|line| line.starts_with("| `"));
        let names = |row: &str| row.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in rows.map(names) {
            listed.entry(row[0].clone()).or_default().extend(row[1..].iter().cloned());
        }
        let mut audited: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (service, methods, _) in AUDITED {
            let service = service.strip_prefix("lodestone.v1.").unwrap().to_owned();
            audited.entry(service).or_default().extend(methods.iter().map(ToString::to_string));
        }
        assert_eq!(listed, audited);
    }

    #[test]
    fn a_key_may_call_the_methods_of_its_roles_on_its_catalogues_until_it_expires() {
        let (all, shoes) = (NewKey::of([1; 32]), NewKey::of([2; 32]));
        let file = format!(
            "[[keys]]\nname = \"all\"\nhash = \"{}\"\nroles = [\"rank\", \"admin\"]\n\
             [[keys]]\nname = \"shoes\"\nhash = \"{}\"\nroles = [\"rank\", \"debug\"]\ncatalogs = [\"shoes\"]\n\
             expires = 2030-01-01T00:00:00+01:00\n",
            all.hash, shoes.hash
        );
        let keys = access(&file);
        let end = UnixMillis(1_893_452_400_000);
        let before = UnixMillis(end.0 - 1);
        let denied = Code::PermissionDenied;
        let unknown = Code::Unauthenticated;
        let bearer = |key: &NewKey| format!("Bearer {}", key.secret);
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        for (path, authorization, catalog, now, expected) in [
            (SEARCH, bearer(&all), "", end, Ok(())),
            (SEARCH, bearer(&all), "shoes", end, Ok(())),
            (SEARCH, format!("bearer  {}", all.secret), "unknown", end, Ok(())),
            ("/lodestone.v1.ModelService/SetCanary", bearer(&all), "", end, Ok(())),
            ("/lodestone.v1.EventService/WriteEvents", bearer(&all), "", end, Err((denied, "ROLE_MISSING"))),
            ("/lodestone.v1.ModelService/SetCanary", bearer(&shoes), "shoes", before, Err((denied, "ROLE_MISSING"))),
            (SEARCH, bearer(&shoes), "shoes", before, Ok(())),
            (SEARCH, bearer(&shoes), "shoes", end, Err((unknown, "API_KEY_INVALID"))),
            (SEARCH, bearer(&shoes), "", before, Err((denied, "CATALOG_DENIED"))),
            (SEARCH, bearer(&shoes), "unknown", before, Err((denied, "CATALOG_DENIED"))),
            (SEARCH, bearer(&NewKey::of([3; 32])), "shoes", before, Err((unknown, "API_KEY_INVALID"))),
            (SEARCH, all.secret.clone(), "", end, Err((unknown, "API_KEY_MISSING"))),
            (SEARCH, format!("Basic {}", all.secret), "", end, Err((unknown, "API_KEY_MISSING"))),
            (SEARCH, "Bearer ".to_owned(), "", end, Err((unknown, "API_KEY_MISSING"))),
            (SEARCH, String::new(), "", end, Err((unknown, "API_KEY_MISSING"))),
            ("/grpc.health.v1.Health/Check", String::new(), "", end, Ok(())),
            // Of the server, so of no catalogue.
            (reflection, bearer(&shoes), "", before, Ok(())),
            (reflection, bearer(&all), "", before, Err((denied, "ROLE_MISSING"))),
            (reflection, String::new(), "", before, Err((unknown, "API_KEY_MISSING"))),
            ("/lodestone.v1.RankingService/Unknown", bearer(&shoes), "shoes", before, Ok(())),
            ("/x/y", bearer(&shoes), "", before, Err((denied, "CATALOG_DENIED"))),
            ("/x/y", bearer(&shoes), "unknown", before, Err((denied, "CATALOG_DENIED"))),
            ("/lodestone.v1.RankingService/Unknown", String::new(), "", before, Err((unknown, "API_KEY_MISSING"))),
            ("//", String::new(), "", before, Err((unknown, "API_KEY_MISSING"))),
        ] {
            let found = outcome(&keys, path, &headers(&authorization, catalog), now);
            let expected = expected.map_err(|(code, reason): (Code, &str)| (code, reason.to_owned()));
            assert_eq!(found, expected, "{path} {catalog}");
        }
    }

    #[test]
    fn calls_beyond_the_rate_of_a_key_are_refused_also_those_that_it_may_not_make() {
        let key = NewKey::of([1; 32]);
        // So slow that no request is replenished while the test runs.
        let keys = access(&format!(
            "[[keys]]\nname = \"a\"\nhash = \"{}\"\nroles = [\"rank\"]\nrequests_per_second = 0.001\nburst = 2\n",
            key.hash
        ));
        let sent = headers(&format!("Bearer {}", key.secret), "");
        let call = |path: &str| outcome(&keys, path, &sent, UnixMillis(0)).map_err(|(_, reason)| reason);
        assert_eq!(call("/lodestone.v1.ModelService/SetCanary"), Err("ROLE_MISSING".to_owned()));
        assert_eq!([call(SEARCH), call(SEARCH)], [Ok(()), Err("RATE_LIMITED".to_owned())]);
        assert_eq!(call("/grpc.health.v1.Health/Check"), Ok(()));
        let metrics = Metrics::default();
        let Err(Refusal::Status(status)) = keys.check(SEARCH, &sent, UnixMillis(0), &metrics) else {
            panic!("admitted")
        };
        assert_eq!(status.code(), Code::ResourceExhausted);
        let wait = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
        assert!((900..=1000).contains(&wait.as_secs()), "{wait:?}");
        let text = metrics.text(lodestone_telemetry::Sizes::default());
        assert!(text.contains("lodestone_client_refused_total{client=\"a\",reason=\"rate\"} 1"), "{text}");
    }

    /// Prints the figures that docs/security.md states, each of the fastest of many batches, because other processes take
    /// the cores too: `cargo test --release -p lodestone --lib -- --ignored --nocapture authentication_of_a_call`.
    #[tokio::test]
    #[ignore = "a measurement"]
    async fn authentication_of_a_call_by_one_of_200_keys_and_by_a_token() {
        let key = NewKey::of([1; 32]);
        let others = (2..200).map(|byte| NewKey::of([byte; 32])).enumerate();
        let entry = |name: &str, key: &NewKey| {
            let limits = "requests_per_second = 1000000\nburst = 1000000\nchanges_per_day = 5";
            format!("[[keys]]\nname = \"{name}\"\nhash = \"{}\"\nroles = [\"rank\"]\n{limits}\n", key.hash)
        };
        let others: String = others.map(|(index, key)| entry(&format!("k{index}"), &key)).collect();
        let mut access = access(&format!("{}{others}", entry("a", &key)));
        let (jwt, token) = jwt::tests::of_one_token("[\"rank\"]").await;
        access.jwt = Some(Arc::new(jwt));
        let metrics = Metrics::default();
        for secret in [key.secret, token] {
            let sent = headers(&format!("Bearer {secret}"), "default");
            let batch = |_| {
                let begun = std::time::Instant::now();
                for _ in 0..200 {
                    assert!(access.check(SEARCH, &sent, UnixMillis::now(), &metrics).is_ok());
                }
                begun.elapsed() / 200
            };
            let fastest = (0..50).map(batch).min().unwrap();
            println!("authentication of a call: {fastest:?}");
        }
    }

    #[test]
    fn names_of_roles_are_those_of_the_file_and_of_the_command_line() {
        for role in Role::ALL {
            let flag = clap::ValueEnum::to_possible_value(&role).unwrap();
            assert_eq!(flag.get_name(), role.name());
            let parsed: BTreeMap<String, Role> = toml::from_str(&format!("role = \"{}\"", role.name())).unwrap();
            assert_eq!(parsed["role"], role);
        }
    }
}

//! The format of the log's records: a version byte followed by a protobuf message.
use super::{Attribution, Event, EventKind, EventLine, IncentiveDecision, LogError};
use lodestone_catalog::{
    AttributeTime, AttributeValue, Availability, FieldSet, GeoPoint, Item, ItemChange, ItemField, ItemWrite, Offer,
    OfferField, OfferKey, WriteTime, WrittenFields,
};
use lodestone_core::{
    format::OtherVersion,
    ids::{EventId, ItemId, UserId},
    units::{PriceMicros, Quantity, UnixMillis},
    viewer::{Locale, Platform, Region, ViewerContext},
};
use lodestone_rules::{AttributeDeclaration, IncentiveCampaign, Rule, RuleChange, ServingConfig, SynonymSet};
use prost::Message;
use std::{borrow::Cow, collections::BTreeMap};

/// The version of written records. Readers reject unknown versions.
const VERSION: u8 = 6;

/// A change that a record of the log stores.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Event(Event),
    Item(ItemChange),
    Rule(RuleChange),
    /// A decision about an incentive.
    Decision(IncentiveDecision),
}

impl Change {
    /// Encodes the change as a record.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Event(event) => Self::encode_event(event),
            Self::Item(ItemChange::Write(write)) => encode(Content::Write(WriteRecord::from(&**write))),
            Self::Item(ItemChange::Delete { id, time }) => {
                let (is_stated, at) = match time {
                    WriteTime::Stated(at) => (true, at),
                    WriteTime::Received(at) => (false, at),
                };
                encode(Content::Delete(DeleteRecord { id: id.as_str().to_owned(), at_ms: at.0, is_stated }))
            }
            Self::Rule(change) => encode(match change {
                RuleChange::PutRule(rule) => Content::PutRule(rule.clone()),
                RuleChange::DeleteRule(id) => Content::DeleteRule(id.clone()),
                RuleChange::PutSynonyms(set) => Content::PutSynonyms(set.clone()),
                RuleChange::DeleteSynonyms(id) => Content::DeleteSynonyms(id.clone()),
                RuleChange::PutServingConfig(config) => Content::PutServingConfig(config.clone()),
                RuleChange::DeleteServingConfig(id) => Content::DeleteServingConfig(id.clone()),
                RuleChange::PutAttribute(declaration) => Content::PutAttribute(declaration.clone()),
                RuleChange::DeleteAttribute(name) => Content::DeleteAttribute(name.clone()),
                RuleChange::PutCampaign(campaign) => Content::PutCampaign(campaign.clone()),
                RuleChange::DeleteCampaign(id) => Content::DeleteCampaign(id.clone()),
            }),
            Self::Decision(decision) => encode(Content::Decision(decision.clone())),
        }
    }

    /// Encodes an event as a record.
    pub(super) fn encode_event(event: &Event) -> Vec<u8> {
        encode(Content::Event(EventRecord::from(event)))
    }

    /// Returns the id of the event, of the item, of the rule or another entry, or of the decision.
    pub fn id(&self) -> &str {
        match self {
            Self::Event(event) => event.id.as_str(),
            Self::Item(change) => change.id().as_str(),
            Self::Rule(change) => change.id(),
            Self::Decision(decision) => &decision.decision_id,
        }
    }

    /// Returns the item that the change writes or deletes; `None` for other changes.
    pub fn item_id(&self) -> Option<&ItemId> {
        match self {
            Self::Event(_) | Self::Rule(_) | Self::Decision(_) => None,
            Self::Item(change) => Some(change.id()),
        }
    }

    /// Returns the event type's name, or that of the change such as `upsert_item` or `put_rule`, for counts.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Event(event) => event.kind.name(),
            Self::Item(change) => change.kind_name(),
            Self::Rule(change) => change.kind_name(),
            Self::Decision(_) => "decide_incentive",
        }
    }

    /// Decodes a record that [`Change::encode`] wrote. Errors contain `position`, the record's position in the log.
    pub fn decode(position: u64, bytes: &[u8]) -> Result<Self, LogError> {
        read_change(bytes).map_err(|reason| LogError::Corrupt { position, reason })
    }
}

fn encode(content: Content) -> Vec<u8> {
    let record = ChangeRecord { content: Some(content) };
    let mut bytes = Vec::with_capacity(1 + record.encoded_len());
    bytes.push(VERSION);
    record.encode_raw(&mut bytes);
    bytes
}

type Reason = Cow<'static, str>;

fn read_change(bytes: &[u8]) -> Result<Change, Reason> {
    let (version, message) = bytes.split_first().ok_or("the record is empty")?;
    if *version != VERSION {
        let version = OtherVersion { found: (*version).into(), expected: VERSION.into() };
        return Err(format!("it {version}; read it with the version of lodestone that wrote it").into());
    }
    let record = ChangeRecord::decode(message).map_err(|error| error.to_string())?;
    match record.content.ok_or("the change is missing")? {
        Content::Event(event) => Ok(Change::Event(event.read()?)),
        Content::Write(write) => Ok(Change::Item(ItemChange::Write(Box::new(write.read()?)))),
        Content::Delete(DeleteRecord { id, at_ms, is_stated }) => {
            let at = UnixMillis(at_ms);
            let time = if is_stated { WriteTime::Stated(at) } else { WriteTime::Received(at) };
            Ok(Change::Item(ItemChange::Delete { id: read_item_id(&id)?, time }))
        }
        Content::PutRule(rule) => Ok(Change::Rule(RuleChange::PutRule(rule))),
        Content::DeleteRule(id) => Ok(Change::Rule(RuleChange::DeleteRule(id))),
        Content::PutSynonyms(set) => Ok(Change::Rule(RuleChange::PutSynonyms(set))),
        Content::DeleteSynonyms(id) => Ok(Change::Rule(RuleChange::DeleteSynonyms(id))),
        Content::PutServingConfig(config) => Ok(Change::Rule(RuleChange::PutServingConfig(config))),
        Content::DeleteServingConfig(id) => Ok(Change::Rule(RuleChange::DeleteServingConfig(id))),
        Content::PutAttribute(declaration) => Ok(Change::Rule(RuleChange::PutAttribute(declaration))),
        Content::DeleteAttribute(name) => Ok(Change::Rule(RuleChange::DeleteAttribute(name))),
        Content::PutCampaign(campaign) => Ok(Change::Rule(RuleChange::PutCampaign(campaign))),
        Content::DeleteCampaign(id) => Ok(Change::Rule(RuleChange::DeleteCampaign(id))),
        Content::Decision(decision) => match UserId::from_key(&decision.user) {
            Some(_) => Ok(Change::Decision(decision)),
            None => Err("the user of a decision is not valid".into()),
        },
    }
}

fn read_item_id(text: &str) -> Result<ItemId, Reason> {
    ItemId::parse(text).map_err(|error| format!("an item id {error}").into())
}

fn read_price(micros: Option<i64>) -> Result<Option<PriceMicros>, Reason> {
    micros.map(|micros| PriceMicros::new(micros).ok_or("the price is out of range".into())).transpose()
}

#[derive(Clone, PartialEq, Message)]
struct ChangeRecord {
    #[prost(oneof = "Content", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(message, tag = "1")]
    Event(EventRecord),
    #[prost(message, tag = "2")]
    Write(WriteRecord),
    #[prost(message, tag = "3")]
    Delete(DeleteRecord),
    #[prost(message, tag = "4")]
    PutRule(Rule),
    #[prost(string, tag = "5")]
    DeleteRule(String),
    #[prost(message, tag = "6")]
    PutSynonyms(SynonymSet),
    #[prost(string, tag = "7")]
    DeleteSynonyms(String),
    #[prost(message, tag = "8")]
    PutServingConfig(ServingConfig),
    #[prost(string, tag = "9")]
    DeleteServingConfig(String),
    #[prost(message, tag = "10")]
    PutAttribute(AttributeDeclaration),
    #[prost(string, tag = "11")]
    DeleteAttribute(String),
    #[prost(message, tag = "12")]
    PutCampaign(IncentiveCampaign),
    #[prost(string, tag = "13")]
    DeleteCampaign(String),
    #[prost(message, tag = "14")]
    Decision(IncentiveDecision),
}

#[derive(Clone, PartialEq, Message)]
struct WriteRecord {
    #[prost(message, tag = "1")]
    item: Option<ItemRecord>,
    /// Names of the written fields. Empty, and no values of offers: all.
    #[prost(string, repeated, tag = "2")]
    fields: Vec<String>,
    #[prost(int64, tag = "3")]
    at_ms: i64,
    /// The shop stated the time.
    #[prost(bool, tag = "4")]
    is_stated: bool,
    /// Written values of offers.
    #[prost(message, repeated, tag = "5")]
    offer_fields: Vec<OfferFieldRecord>,
}

/// One value of an offer.
#[derive(Clone, PartialEq, Message)]
struct OfferFieldRecord {
    #[prost(message, optional, tag = "1")]
    key: Option<OfferKeyRecord>,
    /// Its name in the API.
    #[prost(string, tag = "2")]
    field: String,
}

#[derive(Clone, PartialEq, Message)]
struct OfferKeyRecord {
    #[prost(string, tag = "1")]
    place_id: String,
    #[prost(string, tag = "2")]
    region_code: String,
    #[prost(string, tag = "3")]
    customer_group: String,
    #[prost(string, tag = "4")]
    currency: String,
}

#[derive(Clone, PartialEq, Message)]
struct OfferRecord {
    #[prost(message, optional, tag = "1")]
    key: Option<OfferKeyRecord>,
    #[prost(int64, optional, tag = "2")]
    price_micros: Option<i64>,
    #[prost(int64, optional, tag = "3")]
    original_price_micros: Option<i64>,
    #[prost(uint32, optional, tag = "4")]
    stock_quantity: Option<u32>,
    #[prost(int64, optional, tag = "5")]
    sale_price_micros: Option<i64>,
    #[prost(int64, optional, tag = "6")]
    sale_start_ms: Option<i64>,
    #[prost(int64, optional, tag = "7")]
    sale_end_ms: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int64, tag = "2")]
    at_ms: i64,
    #[prost(bool, tag = "3")]
    is_stated: bool,
}

#[derive(Clone, PartialEq, Message)]
struct EventRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int32, tag = "2")]
    kind: i32,
    /// The key with its prefix, as [`UserId::as_str`] returns it.
    #[prost(string, tag = "3")]
    user: String,
    #[prost(string, tag = "4")]
    session: String,
    #[prost(int64, tag = "5")]
    at_ms: i64,
    #[prost(message, repeated, tag = "6")]
    lines: Vec<LineRecord>,
    #[prost(string, tag = "7")]
    query: String,
    #[prost(string, tag = "8")]
    order: String,
    #[prost(uint32, tag = "9")]
    stars: u32,
    #[prost(string, tag = "10")]
    coupon: String,
    #[prost(string, repeated, tag = "11")]
    categories: Vec<String>,
    #[prost(string, tag = "12")]
    currency: String,
    #[prost(oneof = "AttributionRecord", tags = "13, 14")]
    attribution: Option<AttributionRecord>,
    /// The number of the platform; 0: unknown.
    #[prost(int32, tag = "15")]
    platform: i32,
    /// Empty: unknown. The same holds for the locale.
    #[prost(string, tag = "16")]
    region: String,
    #[prost(string, tag = "17")]
    locale: String,
    #[prost(string, tag = "18")]
    completion: String,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum AttributionRecord {
    #[prost(string, tag = "13")]
    Answer(String),
    #[prost(string, tag = "14")]
    Foreign(String),
}

#[derive(Clone, PartialEq, Message)]
struct LineRecord {
    #[prost(string, tag = "1")]
    item: String,
    #[prost(uint32, tag = "2")]
    quantity_thousandths: u32,
    #[prost(int64, optional, tag = "3")]
    price_micros: Option<i64>,
    #[prost(uint32, tag = "4")]
    rank: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ItemRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    title: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, repeated, tag = "4")]
    categories: Vec<String>,
    #[prost(string, tag = "5")]
    brand: String,
    #[prost(int64, optional, tag = "6")]
    price_micros: Option<i64>,
    #[prost(string, tag = "7")]
    currency: String,
    #[prost(uint32, optional, tag = "8")]
    stock_quantity: Option<u32>,
    #[prost(string, repeated, tag = "9")]
    tags: Vec<String>,
    #[prost(btree_map = "string, message", tag = "10")]
    attributes: BTreeMap<String, AttributeRecord>,
    #[prost(int64, optional, tag = "11")]
    created_at_ms: Option<i64>,
    #[prost(int64, optional, tag = "12")]
    original_price_micros: Option<i64>,
    #[prost(double, optional, tag = "13")]
    rating: Option<f64>,
    #[prost(uint32, optional, tag = "14")]
    rating_count: Option<u32>,
    #[prost(string, tag = "15")]
    url: String,
    #[prost(string, tag = "16")]
    image_url: String,
    #[prost(string, tag = "17")]
    group_id: String,
    /// 1 + the position in [`Availability::ALL`], or 0 if none is stated.
    #[prost(uint32, tag = "20")]
    availability: u32,
    #[prost(int64, optional, tag = "21")]
    sale_price_micros: Option<i64>,
    #[prost(int64, optional, tag = "22")]
    sale_start_ms: Option<i64>,
    #[prost(int64, optional, tag = "23")]
    sale_end_ms: Option<i64>,
    #[prost(int64, optional, tag = "24")]
    cost_micros: Option<i64>,
    #[prost(message, repeated, tag = "40")]
    offers: Vec<OfferRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeRecord {
    #[prost(oneof = "ValueRecord", tags = "1, 2, 3, 4, 5, 6")]
    value: Option<ValueRecord>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ValueRecord {
    #[prost(bool, tag = "1")]
    Flag(bool),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(message, tag = "4")]
    Texts(TextsRecord),
    #[prost(int64, tag = "5")]
    TimeMs(i64),
    #[prost(message, tag = "6")]
    GeoPoint(GeoPointRecord),
}

#[derive(Clone, Copy, PartialEq, Message)]
struct GeoPointRecord {
    #[prost(double, tag = "1")]
    latitude: f64,
    #[prost(double, tag = "2")]
    longitude: f64,
}

#[derive(Clone, PartialEq, Message)]
struct TextsRecord {
    #[prost(string, repeated, tag = "1")]
    texts: Vec<String>,
}

impl From<&Event> for EventRecord {
    fn from(event: &Event) -> Self {
        let [_, region, locale] = event.context.texts();
        Self {
            id: event.id.as_str().to_owned(),
            kind: event.kind as i32,
            user: event.user.as_str().to_owned(),
            session: event.session.clone(),
            at_ms: event.at.0,
            lines: event.lines.iter().map(LineRecord::from).collect(),
            query: event.query.clone(),
            order: event.order.clone(),
            stars: u32::from(event.stars),
            coupon: event.coupon.clone(),
            categories: event.categories.clone(),
            currency: event.currency.clone(),
            platform: event.context.platform.map_or(0, |platform| platform as i32),
            region: region.to_owned(),
            locale: locale.to_owned(),
            attribution: match &event.attribution {
                Attribution::None => None,
                Attribution::Answer(token) => Some(AttributionRecord::Answer(token.clone())),
                Attribution::Foreign(token) => Some(AttributionRecord::Foreign(token.clone())),
            },
            completion: event.completion.clone(),
        }
    }
}

impl EventRecord {
    fn read(self) -> Result<Event, Reason> {
        Ok(Event {
            id: EventId::parse(&self.id).map_err(|error| format!("an event id {error}"))?,
            kind: EventKind::from_number(self.kind)
                .ok_or_else(|| format!("the event type {} is unknown", self.kind))?,
            user: UserId::from_key(&self.user).ok_or("the key of the user has neither the prefix u: nor v:")?,
            context: read_context(self.platform, &self.region, &self.locale)?,
            session: self.session,
            at: UnixMillis(self.at_ms),
            lines: self.lines.into_iter().map(LineRecord::read).collect::<Result<_, _>>()?,
            query: self.query,
            order: self.order,
            stars: u8::try_from(self.stars).map_err(|_| "the number of stars is out of range")?,
            coupon: self.coupon,
            categories: self.categories,
            currency: self.currency,
            attribution: match self.attribution {
                None => Attribution::None,
                Some(AttributionRecord::Answer(token)) => Attribution::Answer(token),
                Some(AttributionRecord::Foreign(token)) => Attribution::Foreign(token),
            },
            completion: self.completion,
        })
    }
}

fn read_context(platform: i32, region: &str, locale: &str) -> Result<ViewerContext, Reason> {
    let platform = match platform {
        0 => None,
        number => Some(Platform::from_number(number).ok_or_else(|| format!("the platform {number} is unknown"))?),
    };
    let region = match region {
        "" => None,
        text => Some(Region::parse(text).ok_or("the region is not two letters")?),
    };
    let locale = match locale {
        "" => None,
        text => Some(Locale::parse(text).ok_or("the locale is not a language tag")?),
    };
    Ok(ViewerContext { locale, platform, region })
}

impl From<&EventLine> for LineRecord {
    fn from(line: &EventLine) -> Self {
        Self {
            item: line.item.as_str().to_owned(),
            quantity_thousandths: line.quantity.thousandths(),
            price_micros: line.price.map(PriceMicros::micros),
            rank: line.rank,
        }
    }
}

impl LineRecord {
    fn read(self) -> Result<EventLine, Reason> {
        Ok(EventLine {
            item: read_item_id(&self.item)?,
            quantity: Quantity::from_thousandths(self.quantity_thousandths).ok_or("the quantity is out of range")?,
            price: read_price(self.price_micros)?,
            rank: self.rank,
        })
    }
}

impl From<&ItemWrite> for WriteRecord {
    fn from(write: &ItemWrite) -> Self {
        let (WriteTime::Stated(at) | WriteTime::Received(at)) = write.time;
        let (mut fields, mut offer_fields) = (Vec::new(), Vec::new());
        if let WrittenFields::Some(written) = &write.fields {
            for field in written {
                match field {
                    ItemField::Offer(key, field) => offer_fields.push(OfferFieldRecord {
                        key: Some(OfferKeyRecord::from(key)),
                        field: field.name().to_owned(),
                    }),
                    field => fields.push(field.name().into_owned()),
                }
            }
        }
        Self {
            item: Some(ItemRecord::from(&write.item)),
            fields,
            at_ms: at.0,
            is_stated: matches!(write.time, WriteTime::Stated(_)),
            offer_fields,
        }
    }
}

impl WriteRecord {
    fn read(self) -> Result<ItemWrite, Reason> {
        let field =
            |name: &String| ItemField::parse(name).map_err(|error| Reason::from(format!("a written field {error}")));
        let at = UnixMillis(self.at_ms);
        Ok(ItemWrite {
            item: self.item.ok_or("the written item is missing")?.read()?,
            fields: match self.fields.is_empty() && self.offer_fields.is_empty() {
                true => WrittenFields::All,
                false => {
                    let offers = self.offer_fields.into_iter().map(OfferFieldRecord::read);
                    WrittenFields::Some(self.fields.iter().map(field).chain(offers).collect::<Result<_, _>>()?)
                }
            },
            time: if self.is_stated { WriteTime::Stated(at) } else { WriteTime::Received(at) },
        })
    }
}

impl OfferFieldRecord {
    fn read(self) -> Result<ItemField, Reason> {
        let field = OfferField::ALL.into_iter().find(|field| field.name() == self.field);
        let field = field.ok_or_else(|| format!("the field {} of an offer is unknown", self.field))?;
        Ok(ItemField::Offer(self.key.ok_or("the key of an offer is missing")?.read(), field))
    }
}

impl From<&OfferKey> for OfferKeyRecord {
    fn from(key: &OfferKey) -> Self {
        Self {
            place_id: key.place_id.to_string(),
            region_code: key.region_code.to_string(),
            customer_group: key.customer_group.to_string(),
            currency: key.currency.to_string(),
        }
    }
}

impl OfferKeyRecord {
    fn read(self) -> OfferKey {
        OfferKey {
            place_id: self.place_id.into(),
            region_code: self.region_code.into(),
            customer_group: self.customer_group.into(),
            currency: self.currency.into(),
        }
    }
}

impl From<&Offer> for OfferRecord {
    fn from(offer: &Offer) -> Self {
        Self {
            key: Some(OfferKeyRecord::from(&offer.key)),
            price_micros: offer.price.map(PriceMicros::micros),
            original_price_micros: offer.original_price.map(PriceMicros::micros),
            stock_quantity: offer.stock_quantity,
            sale_price_micros: offer.sale_price.map(PriceMicros::micros),
            sale_start_ms: offer.sale_start.map(|at| at.0),
            sale_end_ms: offer.sale_end.map(|at| at.0),
        }
    }
}

impl OfferRecord {
    fn read(self) -> Result<Offer, Reason> {
        Ok(Offer {
            key: self.key.ok_or("the key of an offer is missing")?.read(),
            price: read_price(self.price_micros)?,
            original_price: read_price(self.original_price_micros)?,
            stock_quantity: self.stock_quantity,
            sale_price: read_price(self.sale_price_micros)?,
            sale_start: self.sale_start_ms.map(UnixMillis),
            sale_end: self.sale_end_ms.map(UnixMillis),
        })
    }
}

impl From<&Item> for ItemRecord {
    fn from(item: &Item) -> Self {
        let attribute = |value: &AttributeValue| AttributeRecord {
            value: Some(match value {
                AttributeValue::Flag(flag) => ValueRecord::Flag(*flag),
                AttributeValue::Number(number) => ValueRecord::Number(*number),
                AttributeValue::Text(text) => ValueRecord::Text(text.clone()),
                AttributeValue::Texts(texts) => ValueRecord::Texts(TextsRecord { texts: texts.clone() }),
                AttributeValue::Time(AttributeTime { time_ms }) => ValueRecord::TimeMs(*time_ms),
                AttributeValue::GeoPoint(GeoPoint { latitude, longitude }) => {
                    ValueRecord::GeoPoint(GeoPointRecord { latitude: *latitude, longitude: *longitude })
                }
            }),
        };
        Self {
            id: item.id.as_str().to_owned(),
            title: item.title.clone(),
            description: item.description.clone(),
            categories: item.categories.clone(),
            brand: item.brand.clone(),
            price_micros: item.price.map(PriceMicros::micros),
            currency: item.currency.clone(),
            stock_quantity: item.stock_quantity,
            tags: item.tags.clone(),
            attributes: item.attributes.iter().map(|(name, value)| (name.clone(), attribute(value))).collect(),
            created_at_ms: item.created_at.map(|at| at.0),
            original_price_micros: item.original_price.map(PriceMicros::micros),
            rating: item.rating,
            rating_count: item.rating_count,
            url: item.url.clone(),
            image_url: item.image_url.clone(),
            group_id: item.group_id.clone(),
            availability: item.stated_availability.map_or(0, availability_number),
            sale_price_micros: item.sale_price.map(PriceMicros::micros),
            sale_start_ms: item.sale_start.map(|at| at.0),
            sale_end_ms: item.sale_end.map(|at| at.0),
            cost_micros: item.cost.map(PriceMicros::micros),
            offers: item.offers.iter().map(OfferRecord::from).collect(),
        }
    }
}

impl ItemRecord {
    fn read(self) -> Result<Item, Reason> {
        let attribute = |(name, record): (String, AttributeRecord)| match record.value {
            Some(ValueRecord::Flag(flag)) => Ok((name, AttributeValue::Flag(flag))),
            Some(ValueRecord::Number(number)) => Ok((name, AttributeValue::Number(number))),
            Some(ValueRecord::Text(text)) => Ok((name, AttributeValue::Text(text))),
            Some(ValueRecord::Texts(list)) => Ok((name, AttributeValue::Texts(list.texts))),
            Some(ValueRecord::TimeMs(time_ms)) => Ok((name, AttributeValue::Time(AttributeTime { time_ms }))),
            Some(ValueRecord::GeoPoint(GeoPointRecord { latitude, longitude })) => {
                let point = GeoPoint::new(latitude, longitude).ok_or("a location is out of range")?;
                Ok((name, AttributeValue::GeoPoint(point)))
            }
            None => Err(Reason::from("an attribute has no value")),
        };
        Ok(Item {
            id: read_item_id(&self.id)?,
            title: self.title,
            description: self.description,
            categories: self.categories,
            brand: self.brand,
            price: read_price(self.price_micros)?,
            currency: self.currency,
            stock_quantity: self.stock_quantity,
            tags: self.tags,
            attributes: self.attributes.into_iter().map(attribute).collect::<Result<_, _>>()?,
            created_at: self.created_at_ms.map(UnixMillis),
            values_at: None,
            absent_fields: FieldSet::default(),
            original_price: read_price(self.original_price_micros)?,
            rating: self.rating,
            rating_count: self.rating_count,
            url: self.url,
            image_url: self.image_url,
            group_id: self.group_id,
            stated_availability: match self.availability.checked_sub(1) {
                None => None,
                Some(at) => Some(*Availability::ALL.get(at as usize).ok_or("the availability is unknown")?),
            },
            sale_price: read_price(self.sale_price_micros)?,
            sale_start: self.sale_start_ms.map(UnixMillis),
            sale_end: self.sale_end_ms.map(UnixMillis),
            cost: read_price(self.cost_micros)?,
            offers: self.offers.into_iter().map(OfferRecord::read).collect::<Result<_, _>>()?,
        })
    }
}

fn availability_number(availability: Availability) -> u32 {
    Availability::ALL.iter().position(|known| *known == availability).map_or(0, |at| at as u32 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecisionDemand, DecisionEffect, DecisionEstimate};
    use lodestone_rules::{Benefit, Incentive, Pin, RuleAction, RuleActionKind, SynonymTerms};
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let line = ("[a-z0-9]{1,9}", 1u32..=1_000_000_000, proptest::option::of(0..=PriceMicros::MAX), 0u32..99)
            .prop_map(|(item, quantity, price, rank)| EventLine {
                item: ItemId::parse(&item).unwrap(),
                quantity: Quantity::from_thousandths(quantity).unwrap(),
                price: price.map(|micros| PriceMicros::new(micros).unwrap()),
                rank,
            });
        let texts = ("\\PC{0,12}", "\\PC{0,12}", "\\PC{0,12}", "\\PC{0,12}", "\\PC{0,12}");
        let attribution = prop_oneof![
            Just(Attribution::None),
            "\\PC{0,12}".prop_map(Attribution::Answer),
            "\\PC{0,12}".prop_map(Attribution::Foreign),
        ];
        let lists = (proptest::collection::vec(line, 0..4), proptest::collection::vec("\\PC{0,5}", 0..4));
        let context = (0i32..=6, "[A-Z]{0,3}", "[a-z]{0,3}(-[A-Z]{2})?").prop_map(|(platform, region, locale)| {
            let platform = Platform::from_number(platform);
            ViewerContext { platform, region: Region::parse(&region), locale: Locale::parse(&locale) }
        });
        let attribution = (attribution, context);
        (0usize..14, "\\PC{0,19}[a-z]", any::<bool>(), any::<i64>(), 0u8..=5, texts, lists, attribution).prop_map(
            |(
                kind,
                id,
                user,
                at,
                stars,
                (session, query, order, coupon, currency),
                (lines, categories),
                (attribution, context),
            )| {
                Event {
                    id: EventId::parse(&id).unwrap(),
                    kind: EventKind::ALL[kind],
                    user: if user { UserId::signed_in(&id) } else { UserId::visitor(&id) }.unwrap(),
                    session,
                    context,
                    at: UnixMillis(at),
                    lines,
                    query,
                    completion: order.clone(),
                    order,
                    stars,
                    coupon,
                    categories,
                    currency,
                    attribution,
                }
            },
        )
    }

    fn offer_key() -> OfferKey {
        OfferKey { place_id: "zurich".into(), region_code: "CH".into(), currency: "CHF".into(), ..OfferKey::default() }
    }

    fn full_item() -> Item {
        Item {
            description: "warm".into(),
            categories: vec!["clothes > hats".into(), "gifts".into()],
            brand: "b".into(),
            price: PriceMicros::new(2_950_000),
            original_price: PriceMicros::new(3_950_000),
            rating: Some(4.7),
            rating_count: Some(12),
            url: "https://shop.test/hat".into(),
            image_url: "/images/hat.webp".into(),
            group_id: "hat".into(),
            sale_price: PriceMicros::new(1_950_000),
            sale_start: Some(UnixMillis(-3)),
            sale_end: Some(UnixMillis(0)),
            cost: PriceMicros::new(0),
            stated_availability: Some(Availability::Discontinued),
            currency: "EUR".into(),
            stock_quantity: Some(0),
            tags: vec!["new".into()],
            attributes: BTreeMap::from([
                ("flag".into(), AttributeValue::Flag(false)),
                ("size".into(), AttributeValue::Number(0.0)),
                ("text".into(), AttributeValue::Text(String::new())),
                ("texts".into(), AttributeValue::Texts(vec!["a".into(), "b".into()])),
                ("time".into(), AttributeValue::time(UnixMillis(-1))),
                ("location".into(), AttributeValue::GeoPoint(GeoPoint { latitude: -90.0, longitude: 0.5 })),
            ]),
            created_at: Some(UnixMillis(0)),
            offers: vec![Offer { price: PriceMicros::new(1), stock_quantity: Some(0), ..Offer::new(offer_key()) }],
            ..Item::titled(ItemId::parse("hat").unwrap(), "Hat")
        }
    }

    proptest! {
        #[test]
        fn decoding_an_encoded_event_returns_the_event(event in event()) {
            let change = Change::Event(event);
            prop_assert_eq!(Change::decode(1, &change.encode()).unwrap(), change);
        }

        #[test]
        fn decoding_any_bytes_does_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Change::decode(1, &bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = Change::decode(1, &bytes);
        }
    }

    #[test]
    fn decoding_encoded_items_and_deletions_returns_them() {
        let (bare, at) = (Item::titled(ItemId::parse("bare").unwrap(), "Bare"), UnixMillis(7));
        let fields = ["stock_quantity", "attributes.size"].map(|name| ItemField::parse(name).unwrap());
        let writes = [
            ItemWrite::of_all(full_item(), WriteTime::Received(at)),
            ItemWrite::of_all(bare, WriteTime::Stated(UnixMillis(-1))),
            ItemWrite { item: full_item(), fields: WrittenFields::Some(fields.into()), time: WriteTime::Stated(at) },
            ItemWrite {
                item: full_item(),
                fields: WrittenFields::Some([ItemField::Offer(offer_key(), OfferField::Price)].into()),
                time: WriteTime::Received(at),
            },
        ];
        let writes = writes.map(|write| ItemChange::Write(Box::new(write)));
        let delete = |time| ItemChange::Delete { id: ItemId::parse("hat").unwrap(), time };
        let deletes = [WriteTime::Received(at), WriteTime::Stated(at)].map(delete);
        for change in writes.into_iter().chain(deletes).map(Change::Item) {
            assert_eq!(Change::decode(1, &change.encode()).unwrap(), change);
        }
    }

    #[test]
    fn decoding_an_encoded_decision_returns_it() {
        let estimate = DecisionEstimate { value: 0.5, low: -1.0, high: 2.0 };
        let decision = IncentiveDecision {
            decision_id: "d-1".into(),
            user: "u:ann".into(),
            campaign_id: "winter".into(),
            incentive_id: "ten".into(),
            at_ms: -7,
            reason: 2,
            propensity: 1.0,
            expires_ms: 9,
            effect: Some(DecisionEffect { purchase_probability: estimate, gain: estimate, expected_cost: 0.0 }),
            demand: vec![DecisionDemand { gain_micros: 5, expected_cost_micros: 0, cost_micros: 7 }],
            budget_price: Some(f64::INFINITY),
            ..IncentiveDecision::default()
        };
        let change = Change::Decision(decision.clone());
        assert_eq!(Change::decode(1, &change.encode()).unwrap(), change);
        let foreign = Change::Decision(IncentiveDecision { user: "ann".into(), ..decision });
        assert!(Change::decode(1, &foreign.encode()).is_err(), "a user without a prefix");
    }

    #[test]
    fn decoding_encoded_changes_of_rules_returns_them() {
        let pin = RuleActionKind::Pin(Pin { item_id: "hat".into(), rank: 1 });
        let actions = vec![RuleAction { action: Some(pin) }];
        let rule = Rule { rule_id: "r".into(), priority: -7, actions, ..Rule::default() };
        let terms = SynonymTerms { terms: vec!["hat".into(), "cap".into()], replacements: Vec::new() };
        let set = SynonymSet { synonym_set_id: "s".into(), synonyms: Some(terms), ..SynonymSet::default() };
        let head_weights = BTreeMap::from([("purchase".to_owned(), 2.0)]);
        let config =
            ServingConfig { serving_config_id: "c".into(), ranker: Some(true), head_weights, ..Default::default() };
        for change in [
            RuleChange::PutRule(rule),
            RuleChange::DeleteRule("r".into()),
            RuleChange::PutSynonyms(set),
            RuleChange::DeleteSynonyms("s".into()),
            RuleChange::PutServingConfig(config),
            RuleChange::DeleteServingConfig("c".into()),
            RuleChange::PutAttribute(AttributeDeclaration {
                name: "size".into(),
                kind: 1,
                searchable: true,
                facetable: true,
                ..AttributeDeclaration::default()
            }),
            RuleChange::DeleteAttribute("size".into()),
            RuleChange::PutCampaign(IncentiveCampaign {
                campaign_id: "winter".into(),
                currency_code: "GBP".into(),
                budget_micros: 5,
                incentives: vec![Incentive {
                    incentive_id: "ten".into(),
                    benefit: Some(Benefit::PercentOff(10.0)),
                    cost_micros: Some(0),
                    ..Incentive::default()
                }],
                ..IncentiveCampaign::default()
            }),
            RuleChange::DeleteCampaign("winter".into()),
        ] {
            let change = Change::Rule(change);
            assert_eq!(Change::decode(1, &change.encode()).unwrap(), change);
        }
    }

    #[test]
    fn an_unknown_version_is_rejected_with_its_position() {
        let id = ItemId::parse("hat").unwrap();
        let mut bytes = Change::Item(ItemChange::Delete { id, time: WriteTime::Received(UnixMillis(0)) }).encode();
        bytes[0] = 9;
        let error = Change::decode(77, &bytes).unwrap_err();
        assert!(matches!(error, LogError::Corrupt { position: 77, .. }));
        let text = error.to_string();
        assert!(text.contains("position 77") && text.contains("version 9") && text.contains("version 6"), "{text}");
    }
}

//! The codec of all messages of the proto files. It bounds the memory of a message before the message is built, and
//! decodes large messages without holding up the calls that share the thread.
//!
//! A field without content takes two bytes on the wire, and hundreds in memory if it is a message: 32 MiB of empty items
//! would take ten gigabytes. Therefore a large message is first scanned: its fields are followed by the descriptors of
//! the proto files, the entries of its batch are counted, and the memory of what would be built is added up and taken
//! from a budget of the process.
use super::{
    catalog_service::ITEMS_MAX, event_service, event_stream, loyalty_service::USERS_MAX, message_memory,
    proto::DESCRIPTORS, services::list_size_refused, status,
};
use prost::{Message, Name, bytes::Buf};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    marker::PhantomData,
    sync::LazyLock,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Messages below this size are decoded at once. In memory they take at most a few MiB.
const SCANNED_BYTES_MIN: usize = 4 << 10;
/// From this size on, decoding takes so long that the thread hands its other calls to another one before.
const BLOCKING_BYTES_MIN: usize = 256 << 10;
/// Greatest memory of a message: 8 times the greatest size on the wire.
const MEMORY_MAX: usize = 256 << 20;
/// prost refuses messages that are nested deeper.
const DEPTH_MAX: usize = 100;

/// The batches of the API by message and field, with the greatest number of their entries. A request with more is refused
/// as a whole, so that nothing of it needs to be built. No request has two of them.
const BATCHES: &[(&str, &str, usize)] = &[
    ("WriteEventsRequest", "events", event_service::EVENTS_MAX),
    ("StreamEventsRequest", "events", event_stream::EVENTS_MAX),
    ("UpsertItemsRequest", "items", ITEMS_MAX),
    ("UpdateItemsRequest", "updates", ITEMS_MAX),
    ("SetInventoryRequest", "inventories", ITEMS_MAX),
    ("DeleteItemsRequest", "item_ids", ITEMS_MAX),
    ("ImportedItems", "items", ITEMS_MAX),
    ("BatchGetLoyaltyRequest", "user_ids", USERS_MAX),
];

/// Memory of a text, list or map in the message that has it.
const LIST_BYTES: usize = 24;
const MAP_BYTES: usize = 48;
const SCALAR_BYTES: usize = 8;
/// Memory of whether a field is set, with alignment.
const PRESENCE_BYTES: usize = 8;

/// What the scan knows about a field.
#[derive(Debug, Clone, Copy)]
struct FieldSchema {
    /// Memory of each occurrence, besides its content.
    element_bytes: usize,
    /// The message in it, as an index of [`Schemas::messages`].
    message: Option<usize>,
    /// Memory of each byte of a packed list of numbers.
    packed_factor: usize,
    /// The batch that its occurrences are entries of, as an index of [`BATCHES`].
    batch: Option<usize>,
}

/// The fields of a message that take memory for each occurrence, by number.
type MessageSchema = BTreeMap<u32, FieldSchema>;

/// All messages of the proto files.
struct Schemas {
    messages: Vec<MessageSchema>,
    by_name: HashMap<String, usize>,
}

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(DESCRIPTORS).expect("the descriptors were compiled by build.rs");
    Schemas::of(&files)
});

impl Schemas {
    fn of(files: &FileDescriptorSet) -> Self {
        let mut descriptors = BTreeMap::new();
        for file in &files.file {
            for message in &file.message_type {
                collect(&mut descriptors, format!(".{}", file.package()), message);
            }
        }
        let indices: HashMap<&str, usize> = descriptors.keys().map(String::as_str).zip(0..).collect();
        let schema = |message: &&DescriptorProto| {
            let with_batch = |field: &FieldDescriptorProto| FieldSchema {
                batch: BATCHES.iter().position(|(of, name, _)| (*of, *name) == (message.name(), field.name())),
                ..field_schema(field, &descriptors, &indices)
            };
            message.field.iter().map(|field| (field.number() as u32, with_batch(field))).collect()
        };
        Self {
            messages: descriptors.values().map(schema).collect(),
            by_name: indices.into_iter().map(|(name, index)| (name[1..].to_owned(), index)).collect(),
        }
    }
}

/// Adds a message and those that it declares, by their full names, such as `.lodestone.v1.Item.AttributesEntry`.
fn collect<'a>(descriptors: &mut BTreeMap<String, &'a DescriptorProto>, scope: String, message: &'a DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(descriptors, name.clone(), nested);
    }
    descriptors.insert(name, message);
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

fn field_schema(
    field: &FieldDescriptorProto,
    descriptors: &BTreeMap<String, &DescriptorProto>,
    indices: &HashMap<&str, usize>,
) -> FieldSchema {
    let bytes = single_bytes(field, descriptors, &mut BTreeSet::new());
    let element_bytes = match field.label() {
        // A list that grows doubles its capacity: half of it more than its elements on average.
        Label::Repeated => bytes + bytes / 2,
        // Allocated separately.
        _ if contains(field.type_name(), field.type_name(), descriptors, &mut BTreeSet::new()) => bytes,
        _ => 0,
    };
    let is_number = !matches!(field.r#type(), Type::Message | Type::String | Type::Bytes);
    FieldSchema {
        batch: None,
        element_bytes,
        message: indices.get(field.type_name()).copied(),
        // Numbers of one byte become eight bytes.
        packed_factor: if is_number && field.label() == Label::Repeated { SCALAR_BYTES } else { 0 },
    }
}

/// Returns the memory of one value of a field in the message that has it. `within` are the messages that contain the
/// field, because prost allocates those that contain themselves separately.
fn single_bytes(
    field: &FieldDescriptorProto,
    descriptors: &BTreeMap<String, &DescriptorProto>,
    within: &mut BTreeSet<String>,
) -> usize {
    match field.r#type() {
        Type::String | Type::Bytes => LIST_BYTES,
        Type::Message => message_bytes(field.type_name(), descriptors, within),
        _ => SCALAR_BYTES,
    }
}

/// Returns true if a message has a field of the type `wanted`, or a message that has one. `seen` are the messages that
/// need not be looked at again.
fn contains(
    name: &str,
    wanted: &str,
    descriptors: &BTreeMap<String, &DescriptorProto>,
    seen: &mut BTreeSet<String>,
) -> bool {
    let Some(message) = descriptors.get(name).filter(|_| seen.insert(name.to_owned())) else { return false };
    let types = message.field.iter().map(FieldDescriptorProto::type_name);
    types.filter(|of| !of.is_empty()).any(|of| of == wanted || contains(of, wanted, descriptors, seen))
}

/// Returns an upper bound of the memory of a message without the contents of its texts, lists and maps.
fn message_bytes(name: &str, descriptors: &BTreeMap<String, &DescriptorProto>, within: &mut BTreeSet<String>) -> usize {
    let Some(message) = descriptors.get(name) else { return 0 };
    if !within.insert(name.to_owned()) {
        return SCALAR_BYTES;
    }
    let (mut bytes, mut oneofs) = (0, BTreeMap::new());
    for field in &message.field {
        let is_map = descriptors.get(field.type_name()).is_some_and(|entry| is_map_entry(entry));
        let is_optional = field.r#type() == Type::Message || field.proto3_optional();
        let of_field = match field.label() {
            Label::Repeated if is_map => MAP_BYTES,
            Label::Repeated => LIST_BYTES,
            _ if is_optional => single_bytes(field, descriptors, within) + PRESENCE_BYTES,
            _ => single_bytes(field, descriptors, within),
        };
        match field.oneof_index {
            None => bytes += of_field,
            // One of them is set.
            Some(oneof) => {
                let greatest = oneofs.entry(oneof).or_insert(PRESENCE_BYTES);
                *greatest = (of_field + PRESENCE_BYTES).max(*greatest);
            }
        }
    }
    within.remove(name);
    bytes + oneofs.values().sum::<usize>()
}

/// Adds up the memory of a message, and counts the entries of its batch.
struct Scan<'a> {
    schemas: &'a Schemas,
    bytes: usize,
    /// The batch as an index of [`BATCHES`], and the number of its entries.
    batch: Option<(usize, usize)>,
    /// False: the scan stopped before the end of the message.
    is_complete: bool,
}

impl Scan<'_> {
    /// Adds the fields of a message. Stops at the first byte that is no field, where decoding fails too, and above
    /// [`MEMORY_MAX`]. None: stopped.
    fn message(&mut self, schema: &MessageSchema, mut from: &[u8], depth: usize) -> Option<()> {
        while !from.is_empty() {
            let tag = varint(&mut from)?;
            let field = schema.get(&u32::try_from(tag >> 3).ok()?);
            self.bytes = self.bytes.saturating_add(field.map_or(0, |field| field.element_bytes));
            if let Some(batch) = field.and_then(|field| field.batch) {
                // Also over several parts of the message, which decoding merges.
                self.batch = Some((batch, self.batch.map_or(0, |(_, count)| count) + 1));
            }
            if self.bytes > MEMORY_MAX {
                return None;
            }
            match tag & 7 {
                0 => {
                    varint(&mut from)?;
                }
                1 => {
                    split(&mut from, 8)?;
                }
                2 => {
                    let length = usize::try_from(varint(&mut from)?).ok()?;
                    let content = split(&mut from, length)?;
                    let Some(field) = field else { continue };
                    match field.message {
                        Some(_) if depth == DEPTH_MAX => return None,
                        Some(inner) => self.message(&self.schemas.messages[inner], content, depth + 1)?,
                        None => self.bytes = self.bytes.saturating_add(content.len() * field.packed_factor),
                    }
                }
                // Groups, of which no message has any, are skipped with the fields in them. Counting these too is safe.
                3 | 4 => {}
                5 => {
                    split(&mut from, 4)?;
                }
                _ => return None,
            }
        }
        Some(())
    }
}

/// Returns the next number of a message, of at most ten bytes.
fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for index in 0..10 {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Returns the next `length` bytes of a message.
fn split<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (content, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(content)
}

/// Scans a message of this name.
fn scan<'a>(schemas: &'a Schemas, name: &str, message: &[u8]) -> Scan<'a> {
    let mut scan = Scan { schemas, bytes: message.len(), batch: None, is_complete: true };
    if let Some(index) = schemas.by_name.get(name) {
        // A message that is malformed is built up to the same byte.
        scan.is_complete = scan.message(&schemas.messages[*index], message, 0).is_some();
    }
    scan
}

/// Returns the approximate memory of a message of this name. Fails if its batch has too many entries, or above
/// [`MEMORY_MAX`].
fn bounded_memory(schemas: &Schemas, name: &str, message: &[u8]) -> Result<usize, Status> {
    let scan = scan(schemas, name, message);
    if let Some((batch, count)) = scan.batch {
        let (_, field, limit) = BATCHES[batch];
        if count > limit {
            let at_least = if scan.is_complete { "" } else { "at least " };
            return Err(list_size_refused(field, format_args!("{at_least}{count}"), limit));
        }
    }
    if scan.bytes > MEMORY_MAX {
        return Err(status::message_memory(message.len(), MEMORY_MAX));
    }
    Ok(scan.bytes)
}

/// The codec of the generated clients and servers: that of tonic-prost, with bounded decoding.
#[derive(Debug, Clone)]
pub(crate) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstDecoder::default())
    }
}

/// Decodes messages within [`MEMORY_MAX`] and the budget of the process.
#[derive(Debug, Clone)]
pub(crate) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        match from.remaining() {
            ..SCANNED_BYTES_MIN => self.0.decode(from),
            SCANNED_BYTES_MIN..BLOCKING_BYTES_MIN => self.scan_and_decode(from),
            _ if may_block() => tokio::task::block_in_place(|| self.scan_and_decode(from)),
            _ => self.scan_and_decode(from),
        }
    }
}

impl<U: Message + Name + Default> BoundedDecoder<U> {
    fn scan_and_decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic passes the message in one piece.
        let memory = bounded_memory(&SCHEMAS, &U::full_name(), from.chunk())?;
        // The call keeps the buffer with the bytes, which were decompressed, as long as the message.
        message_memory::build_within_budget(memory + from.remaining(), || self.0.decode(from))?
    }
}

/// Returns true on a thread whose other tasks can move to another one.
fn may_block() -> bool {
    Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::proto;
    use std::collections::HashMap;
    use tonic_types::StatusExt;

    fn memory_of(schemas: &Schemas, name: &str, message: &[u8]) -> usize {
        scan(schemas, name, message).bytes
    }

    fn memory<M: Message + Name>(message: &M) -> usize {
        memory_of(&SCHEMAS, &M::full_name(), &message.encode_to_vec())
    }

    #[test]
    fn the_memory_of_a_message_is_at_least_that_of_its_parts() {
        let events = vec![proto::Event { lines: vec![proto::EventLine::default(); 7], ..Default::default() }; 100];
        let parts = 100 * size_of::<proto::Event>() + 700 * size_of::<proto::EventLine>();
        let found = memory(&proto::WriteEventsRequest { events });
        assert!((parts..4 * parts).contains(&found), "{found} bytes for parts of {parts}");

        let value = |number: usize| (format!("a{number}"), proto::AttributeValue::default());
        let attributes: HashMap<_, _> = (0..1000).map(value).collect();
        let parts = attributes.len() * size_of::<(String, proto::AttributeValue)>();
        let items = vec![proto::Item { attributes, tags: vec!["t".to_owned(); 1000], ..Default::default() }];
        let parts = parts + size_of::<proto::Item>() + 1000 * size_of::<String>();
        let found = memory(&proto::UpsertItemsRequest { items, ..Default::default() });
        assert!((parts..4 * parts).contains(&found), "{found} bytes for parts of {parts}");

        let bounds = vec![1.0; 1000];
        let facet_specs = vec![proto::FacetSpec { bounds, ..Default::default() }];
        let found = memory(&proto::SearchRequest { facet_specs, ..Default::default() });
        assert!(found >= 8000, "{found} bytes for 1,000 numbers");
    }

    #[test]
    fn ordinary_messages_are_far_from_the_limit_and_empty_parts_are_not() {
        let line = proto::EventLine { item_id: "85123A".to_owned(), quantity: 1.0, ..Default::default() };
        let event = |number: usize| proto::Event {
            event_id: format!("event-{number}"),
            viewer: Some(proto::Viewer { user_id: "12345".to_owned(), ..Default::default() }),
            lines: vec![line.clone(); 20],
            ..Default::default()
        };
        let request = proto::WriteEventsRequest { events: (0..10_000).map(event).collect() };
        let found = memory(&request);
        assert!(found < MEMORY_MAX / 4, "{found} bytes");

        // Field 1 with the length 0.
        let empty = [0x0A, 0].repeat(16 << 20);
        for name in ["WriteEventsRequest", "StreamEventsRequest", "UpsertItemsRequest", "UpdateItemsRequest"] {
            let found = memory_of(&SCHEMAS, &format!("lodestone.v1.{name}"), &empty);
            assert!(found > MEMORY_MAX, "{name}: {found} bytes");
        }
        // One event with millions of lines, field 5.
        let event = [0x2A, 0].repeat(8 << 20);
        let mut request = vec![0x0A_u8];
        prost::encoding::encode_varint(event.len() as u64, &mut request);
        request.extend(event);
        let status = bounded_memory(&SCHEMAS, "lodestone.v1.WriteEventsRequest", &request).unwrap_err();
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
    }

    #[test]
    fn batches_have_the_limits_of_the_api_before_they_are_built() {
        let refused =
            |name: &str, message: &[u8]| bounded_memory(&SCHEMAS, &format!("lodestone.v1.{name}"), message).err();
        for (batch, (name, field, limit)) in BATCHES.iter().enumerate() {
            assert!(
                SCHEMAS.messages.iter().flat_map(BTreeMap::values).any(|schema| schema.batch == Some(batch)),
                "{name} has no field {field}"
            );
            // Field 1 with the length 0, as all of them are.
            let of_size = |count: usize| [0x0A, 0].repeat(count);
            assert!(refused(name, &of_size(*limit)).is_none(), "{name}");
            let status = refused(name, &of_size(limit + 1)).unwrap();
            let details = status.get_error_details();
            assert_eq!(details.bad_request().unwrap().field_violations[0].field, *field);
            let info = details.error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.metadata["limit"].clone()), ("INVALID_REQUEST", limit.to_string()));
            let expected = format!("has {} entries; it must have 1 to {limit}", limit + 1);
            assert!(status.message().contains(&expected), "{status:?}");
        }
        // The parts of a feed's message are merged. Field 2, `items`, with 600 empty items.
        let part = [&[0x12, 0xB0, 9][..], &[0x0A, 0].repeat(600)].concat();
        assert!(refused("ImportItemsRequest", &part).is_none());
        assert!(refused("ImportItemsRequest", &part.repeat(2)).unwrap().message().contains("1200"));
        // The scan stops when the memory of a message is exceeded.
        let status = refused("WriteEventsRequest", &[0x0A, 0].repeat(16 << 20)).unwrap();
        assert!(status.message().contains("at least"), "{status:?}");
    }

    #[test]
    fn nothing_hides_parts_from_the_scan_and_malformed_messages_end_it() {
        let name = "lodestone.v1.UpsertItemsRequest";
        let item = memory_of(&SCHEMAS, name, &[0x0A, 0]);
        assert!(item >= size_of::<proto::Item>());
        // An unknown group with an item in it, then another item.
        assert!(memory_of(&SCHEMAS, name, &[0xF3, 0x07, 0x0A, 0, 0xF4, 0x07, 0x0A, 0]) > 2 * item - 2);
        // Unknown fields of every other type, then an item.
        let unknown = [0xF0, 7, 1, 0xF1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0xF2, 7, 1, 9, 0xF5, 7, 0, 0, 0, 0, 0x0A, 0];
        assert!(memory_of(&SCHEMAS, name, &unknown) > item);
        for malformed in [&[0x0A][..], &[0x0A, 5, 0], &[0xFF; 20], &[0x0F], &[0x08]] {
            assert!(memory_of(&SCHEMAS, name, malformed) < 2 * item);
        }
        assert_eq!(memory_of(&SCHEMAS, "lodestone.v1.Nothing", &[1, 2, 3]), 3);
        // Deep nesting ends before the stack does. Field 6, `negated`, is a filter again.
        let mut filter = Vec::new();
        for _ in 0..2000 {
            let length = u16::try_from(filter.len()).unwrap();
            let length = [(length & 0x7F) as u8 | 0x80, (length >> 7 & 0x7F) as u8 | 0x80, (length >> 14) as u8];
            filter = [&[0x32][..], &length, &filter].concat();
        }
        let found = memory_of(&SCHEMAS, "lodestone.v1.FilterExpression", &filter);
        assert!((DEPTH_MAX * size_of::<proto::FilterExpression>()..MEMORY_MAX).contains(&found), "{found} bytes");
    }
}

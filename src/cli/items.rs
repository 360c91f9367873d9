//! `lodestone items`
use super::{
    client::{ServerArgs, is_repeatable},
    exit::Exit,
    import::{ItemsTimeArgs, MappingArgs, bytes_bar},
    inventory::{PushInventoryArgs, push_inventory},
    output::OutputArgs,
    progress::style,
};
use crate::server::{
    item_to_proto,
    proto::{
        self, ImportCounts, ImportDeletions, ImportItemsRequest, ImportItemsResponse, ImportMode, ImportOptions,
        ImportedItems, ItemStatus, catalog_service_client::CatalogServiceClient, import_items_request::Part,
    },
};
use anyhow::anyhow;
use indicatif::ProgressBar;
use lodestone_catalog::{FieldSet, Item};
use lodestone_core::units::UnixMillis;
use lodestone_dataset::import::{ImportReport, SHRINK_MAX, read_feed};
use prost::Message;
use prost_types::FieldMask;
use std::{fmt, path::PathBuf};
use tonic::{Code, Status};

/// Items and bytes of one message. Texts that changed are encoded before the server answers it.
const MESSAGE_ITEMS: usize = 250;
const MESSAGE_BYTES: usize = 8 << 20;
/// Number of rejected items that the result lists.
const REJECTED_MAX: usize = 20;

/// Commands on the items of a running server.
#[derive(clap::Subcommand)]
pub(crate) enum ItemsCommand {
    Push(PushArgs),
    PushInventory(PushInventoryArgs),
}

pub(crate) fn run(command: &ItemsCommand) -> anyhow::Result<Exit> {
    match command {
        ItemsCommand::Push(args) => push(args),
        ItemsCommand::PushInventory(args) => push_inventory(args),
    }
}

/// Writes the items of a product feed to a running server, without a retrain.
///
/// Each item is written as of the time of the feed: values that the API wrote later stay, and a repeated push changes
/// nothing. Exit code 1 if the server rejected items. See docs/feeds.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone items push --mapping google-merchant-center --items feed.xml --delete-missing --address 127.0.0.1:50051")]
pub(crate) struct PushArgs {
    #[command(flatten)]
    mapping: MappingArgs,
    /// The shop's items: .csv, .tsv, .txt, .jsonl, .json, .xml (also .gz, .zst) or .parquet. One row for each item.
    #[arg(long, value_name = "FILE")]
    items: PathBuf,
    #[command(flatten)]
    time: ItemsTimeArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Deletes the items of the server that the feed does not have. Refused if these are more than 20 %.
    #[arg(long)]
    delete_missing: bool,
    /// Deletes also more than 20 % of the items.
    #[arg(long, requires = "delete_missing")]
    allow_shrink: bool,
    /// Validates the feed, compares it with the server, and writes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The result of `lodestone items push`.
#[derive(serde::Serialize)]
struct Report {
    feed: ImportReport,
    /// Nothing was written: the counts say what would be.
    dry_run: bool,
    created_count: i64,
    replaced_count: i64,
    /// Items that the server has with the same values.
    unchanged_count: i64,
    /// Items whose values are all of a later time than the feed.
    stale_count: i64,
    rejected_count: i64,
    /// At most 20.
    rejected: Vec<String>,
    /// Items of the server that the feed does not have; none without `--delete-missing`.
    deleted_count: Option<i64>,
}

impl Report {
    fn add(&mut self, response: ImportItemsResponse) {
        if let Some(counts) = response.counts {
            let ImportCounts { created_count, replaced_count, unchanged_count, .. } = counts;
            (self.created_count, self.replaced_count, self.unchanged_count) =
                (created_count, replaced_count, unchanged_count);
            (self.stale_count, self.rejected_count) = (counts.stale_count, counts.rejected_count);
        }
        let results = response.results.into_iter().filter_map(|result| result.result);
        for result in results.filter(|result| result.status() == ItemStatus::Rejected) {
            if self.rejected.len() < REJECTED_MAX {
                let problem =
                    |violation: &proto::FieldViolation| format!("{}: {}", violation.field, violation.description);
                let problems: Vec<String> = result.violations.iter().map(problem).collect();
                self.rejected.push(format!("{}: {}", result.item_id, problems.join("; ")));
            }
        }
        self.deleted_count =
            response.deletions.map(|ImportDeletions { item_count, .. }| item_count).or(self.deleted_count);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.feed)?;
        if self.dry_run {
            writeln!(f, "--dry-run: nothing is written; a push would have these results")?;
        }
        writeln!(f, "{:>10} created", self.created_count)?;
        writeln!(f, "{:>10} replaced", self.replaced_count)?;
        writeln!(f, "{:>10} unchanged: the server has the same values", self.unchanged_count)?;
        writeln!(f, "{:>10} stale: their values are later than the feed", self.stale_count)?;
        if let Some(count) = self.deleted_count {
            writeln!(f, "{count:>10} deleted: not in the feed")?;
        }
        writeln!(f, "{:>10} rejected", self.rejected_count)?;
        self.rejected.iter().try_for_each(|rejected| writeln!(f, "{:>10} {rejected}", ""))
    }
}

fn push(args: &PushArgs) -> anyhow::Result<Exit> {
    let mappings = args.mapping.open()?;
    let bar = bytes_bar("read the feed");
    let (items, feed) = read_feed(&mappings, &args.items, args.time.options(args.allow_shrink)?, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let time = feed.items_time_ms.map(UnixMillis);
    let mut report = Report {
        feed,
        dry_run: args.dry_run,
        created_count: 0,
        replaced_count: 0,
        unchanged_count: 0,
        stale_count: 0,
        rejected_count: 0,
        rejected: Vec::new(),
        deleted_count: None,
    };
    let absent = items.first().map(|item| item.absent_fields).unwrap_or_default();
    let options = options(args, time, absent);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(send(&args.server, options, &items, &mut report))?;
    args.output.write(&report)?;
    Ok(Exit::answer(report.rejected_count == 0))
}

/// `absent`: fields that the feed does not have.
fn options(args: &PushArgs, time: Option<UnixMillis>, absent: FieldSet) -> ImportOptions {
    let share = if args.allow_shrink { 1.0 } else { SHRINK_MAX };
    ImportOptions {
        mode: if args.delete_missing { ImportMode::Full } else { ImportMode::Unspecified }.into(),
        update_time: time.map(crate::server::timestamp),
        deleted_share_max: args.delete_missing.then_some(share),
        validate_only: args.dry_run,
        update_mask: (!absent.is_empty())
            .then(|| FieldMask { paths: absent.others().map(|field| field.name().into_owned()).collect() }),
    }
}

async fn send(server: &ServerArgs, options: ImportOptions, items: &[Item], report: &mut Report) -> anyhow::Result<()> {
    let channel = server.connect().await?;
    let (total, is_dry_run) = (items.len(), options.validate_only);
    let bar = ProgressBar::new(total as u64).with_style(style("{pos}/{len}"));
    bar.set_message("write items");
    let parts = messages(items.iter().map(item_to_proto)).into_iter().map(|items| Part::Items(ImportedItems { items }));
    let parts: Vec<Part> = std::iter::once(Part::Options(options)).chain(parts).collect();
    let requests = futures_util::stream::iter(parts.into_iter().map(|part| ImportItemsRequest { part: Some(part) }));
    let failed = |status: Status, done: i64| match status.code() {
        Code::NotFound => anyhow!("{} (--catalog)", status.message()),
        Code::FailedPrecondition => anyhow!("{} (--allow-shrink)", status.message()),
        _ => {
            let is_worth_repeating = is_repeatable(&status) && !is_dry_run;
            let remedy = if is_worth_repeating { "; the same command writes the other items" } else { "" };
            anyhow!("ImportItems failed after {done} of {total} items, {}{remedy}", server.describe(&status))
        }
    };
    let mut done = 0;
    let responses = CatalogServiceClient::new(channel).import_items(requests).await;
    let mut responses = responses.map_err(|status| failed(status, done))?.into_inner();
    while let Some(response) = responses.message().await.map_err(|status| failed(status, done))? {
        done = response.counts.map_or(done, |counts| counts.item_count);
        bar.set_position(done.unsigned_abs());
        report.add(response);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Splits items into messages.
fn messages(items: impl Iterator<Item = proto::Item>) -> Vec<Vec<proto::Item>> {
    let mut messages: Vec<Vec<proto::Item>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = item.encoded_len();
        match messages.last_mut() {
            Some(message) if message.len() < MESSAGE_ITEMS && bytes + size <= MESSAGE_BYTES => {
                message.push(item);
                bytes += size;
            }
            _ => {
                messages.push(vec![item]);
                bytes = size;
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_at_most_250_items_and_8_mib() {
        let item = |bytes: usize| proto::Item { description: "x".repeat(bytes), ..proto::Item::default() };
        let sizes = |items: Vec<proto::Item>| messages(items.into_iter()).iter().map(Vec::len).collect::<Vec<_>>();
        assert!(messages(std::iter::empty()).is_empty());
        assert_eq!(sizes(vec![item(1); 501]), [250, 250, 1]);
        assert_eq!(sizes(vec![item(5 << 20); 3]), [1, 1, 1]);
    }
}

//! `lodestone items push-inventory`
use super::{
    client::{ServerArgs, is_repeatable},
    exit::Exit,
    import::{ItemsTimeArgs, MappingArgs, bytes_bar},
    output::OutputArgs,
    progress::style,
};
use crate::server::{
    proto::{self, Inventory, ItemStatus, OfferKey, SetInventoryRequest, catalog_service_client::CatalogServiceClient},
    timestamp,
};
use anyhow::anyhow;
use indicatif::ProgressBar;
use lodestone_core::units::{PriceMicros, UnixMillis};
use lodestone_dataset::import::{InventoryReport, LocalInventory, read_inventory};
use prost_types::Timestamp;
use std::{fmt, path::PathBuf};
use tonic::Code;

/// Entries of one request.
const REQUEST_ENTRIES: usize = 500;
/// Number of rejected entries that the result lists.
const REJECTED_MAX: usize = 20;

/// Writes stock and prices of stores from a local inventory feed to a running server.
///
/// Each row sets an offer of its item at its place, as of the time of the feed: values that the API wrote later stay, and a
/// repeated push changes nothing. Items that the server does not have are counted. Exit code 1 if the server rejected rows.
/// See docs/feeds.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone items push-inventory --mapping google-local-inventory --inventory stores.tsv --address 127.0.0.1:50051")]
pub(crate) struct PushInventoryArgs {
    #[command(flatten)]
    mapping: MappingArgs,
    /// Stock and prices: .csv, .tsv, .txt, .jsonl, .json, .xml (also .gz, .zst) or .parquet. One row for each item at a
    /// place.
    #[arg(long, value_name = "FILE")]
    inventory: PathBuf,
    #[command(flatten)]
    time: ItemsTimeArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Validates the feed, and writes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The result of `lodestone items push-inventory`. The counts of `feed` are of rows, the others of entries: a row is one, or
/// two if it has a stock and a price in a currency of its own, which is an offer of its own.
#[derive(Default, serde::Serialize)]
struct Report {
    feed: InventoryReport,
    /// Nothing was written.
    dry_run: bool,
    entry_count: usize,
    /// Entries with a difference.
    updated_count: usize,
    /// Entries whose values the server has already.
    unchanged_count: usize,
    /// Entries whose values are all of a later time than the feed.
    stale_count: usize,
    /// Entries of items that the server does not have.
    unknown_count: usize,
    rejected_count: usize,
    /// At most 20.
    rejected: Vec<String>,
}

impl Report {
    fn add(&mut self, result: &proto::ItemResult) {
        match result.status() {
            ItemStatus::Unchanged => self.unchanged_count += 1,
            ItemStatus::Stale => self.stale_count += 1,
            ItemStatus::Unknown => self.unknown_count += 1,
            ItemStatus::Rejected => {
                self.rejected_count += 1;
                if self.rejected.len() < REJECTED_MAX {
                    let problem =
                        |violation: &proto::FieldViolation| format!("{}: {}", violation.field, violation.description);
                    let problems: Vec<String> = result.violations.iter().map(problem).collect();
                    self.rejected.push(format!("{}: {}", result.item_id, problems.join("; ")));
                }
            }
            _ => self.updated_count += 1,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.feed)?;
        if self.dry_run {
            return writeln!(
                f,
                "--dry-run: {} entries of {} rows would be sent; nothing is written",
                self.entry_count, self.feed.kept_count
            );
        }
        writeln!(
            f,
            "{:>10} entries of {} rows sent; a price in a currency of its own is an entry in addition to the stock of its row",
            self.entry_count, self.feed.kept_count
        )?;
        writeln!(f, "{:>10} updated", self.updated_count)?;
        writeln!(f, "{:>10} unchanged: the server has the same values", self.unchanged_count)?;
        writeln!(f, "{:>10} stale: the server has later values than the feed", self.stale_count)?;
        writeln!(f, "{:>10} of items that the server does not have", self.unknown_count)?;
        writeln!(f, "{:>10} rejected", self.rejected_count)?;
        self.rejected.iter().try_for_each(|rejected| writeln!(f, "{:>10} {rejected}", ""))
    }
}

pub(crate) fn push_inventory(args: &PushInventoryArgs) -> anyhow::Result<Exit> {
    let mappings = args.mapping.open()?;
    let bar = bytes_bar("read the feed");
    let (rows, feed) = read_inventory(&mappings, &args.inventory, args.time.options(false)?, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let time = timestamp(UnixMillis(feed.time_ms));
    let entries: Vec<Inventory> = rows.iter().flat_map(|row| entries(row, time)).collect();
    let mut report = Report { feed, dry_run: args.dry_run, entry_count: entries.len(), ..Report::default() };
    if !args.dry_run {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(send(&args.server, entries, &mut report))?;
    }
    args.output.write(&report)?;
    Ok(Exit::answer(report.rejected_count == 0))
}

/// Returns the writes of a row: of its stock, and of its prices, which are another offer if they have a currency of their
/// own.
fn entries(row: &LocalInventory, time: Timestamp) -> Vec<Inventory> {
    let entry = |currency: &str| Inventory {
        item_id: row.item.to_string(),
        offer_key: Some(OfferKey {
            place_id: row.place_id.clone(),
            currency_code: currency.to_owned(),
            ..OfferKey::default()
        }),
        update_time: Some(time),
        ..Inventory::default()
    };
    let stock_quantity = row.stock_quantity.map(i64::from);
    let priced = |entry: Inventory| Inventory {
        price_micros: row.price.map(PriceMicros::micros),
        sale_price_micros: row.sale_price.map(PriceMicros::micros),
        sale_start_time: row.sale_start.map(timestamp),
        sale_end_time: row.sale_end.map(timestamp),
        ..entry
    };
    let of_stock = Inventory { stock_quantity, ..entry("") };
    match (row.price, row.currency.as_str()) {
        (None, _) => vec![of_stock],
        (Some(_), "") => vec![priced(of_stock)],
        (Some(_), code) => {
            let stock = stock_quantity.map(|_| of_stock);
            stock.into_iter().chain([priced(entry(code))]).collect()
        }
    }
}

async fn send(server: &ServerArgs, entries: Vec<Inventory>, report: &mut Report) -> anyhow::Result<()> {
    let mut client = CatalogServiceClient::new(server.connect().await?);
    let (total, mut done) = (entries.len(), 0);
    let bar = ProgressBar::new(total as u64).with_style(style("{pos}/{len}"));
    bar.set_message("write stock and prices");
    for part in entries.chunks(REQUEST_ENTRIES) {
        let written = client.set_inventory(SetInventoryRequest { inventories: part.to_vec() }).await;
        let written = written.map_err(|status| match status.code() {
            Code::NotFound => anyhow!("{} (--catalog)", status.message()),
            _ => {
                let remedy = if is_repeatable(&status) { "; the same command writes the others" } else { "" };
                anyhow!("SetInventory failed after {done} of {total} entries, {}{remedy}", server.describe(&status))
            }
        })?;
        written.into_inner().results.iter().for_each(|result| report.add(result));
        done += part.len();
        bar.set_position(done as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::ItemId;

    #[test]
    fn prices_in_a_currency_of_their_own_are_another_offer_than_the_stock() {
        let time = timestamp(UnixMillis(5));
        let row = |currency: &str, price: Option<i64>, stock: Option<u32>| LocalInventory {
            item: ItemId::parse("mug").unwrap(),
            place_id: "leeds".to_owned(),
            stock_quantity: stock,
            currency: currency.to_owned(),
            price: price.and_then(PriceMicros::new),
            sale_price: None,
            sale_start: None,
            sale_end: None,
        };
        let keys = |row: LocalInventory| -> Vec<(String, Option<i64>, Option<i64>)> {
            let entries = entries(&row, time).into_iter();
            let key =
                |entry: Inventory| (entry.offer_key.unwrap().currency_code, entry.stock_quantity, entry.price_micros);
            entries.map(key).collect()
        };
        assert_eq!(keys(row("", Some(7), Some(2))), [(String::new(), Some(2), Some(7))]);
        let both = [(String::new(), Some(2), None), ("EUR".to_owned(), None, Some(7))];
        assert_eq!(keys(row("EUR", Some(7), Some(2))), both);
        assert_eq!(keys(row("EUR", Some(7), None)), both[1..]);
        assert_eq!(keys(row("", None, Some(0))), [(String::new(), Some(0), None)]);
    }
}

//! Bounds of whole numbers on the command line.
use clap::builder::RangedU64ValueParser;
use std::ops::RangeBounds;

/// Parses a number within the range. The error has the range.
pub(crate) fn within(range: impl RangeBounds<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

//! Files that only commands read, for the fuzz targets in `crates/fuzz`.
use super::{Cli, catalogs, matrix::Matrix, settings};
use clap::CommandFactory;
use lodestone_index::Languages;
use std::{ffi::OsString, path::Path};

/// Returns whether `config show` accepts a file of settings.
pub fn accepts_settings(path: &Path) -> bool {
    let arguments = ["lodestone", "config", "show", "--config"].map(OsString::from);
    settings::parse(Cli::command(), arguments.into_iter().chain([path.into()]).collect()).is_ok()
}

/// Returns whether `serve` accepts a file of catalogues.
pub fn accepts_catalogs(path: &Path) -> bool {
    let default = catalogs::CatalogSource {
        name: crate::server::DEFAULT_CATALOG.to_owned(),
        bundle: Some("bundle".into()),
        store: None,
        data: "data".into(),
        serving: None,
        synonyms: None,
        languages: Languages::default(),
        currency: None,
        workers: None,
    };
    catalogs::read(path, &default).is_ok()
}

/// Returns whether a file, whose name has the extension of its format, is a matrix of vectors.
pub fn accepts_vectors(path: &Path) -> bool {
    Matrix::read(path).is_ok_and(|matrix| {
        (0..matrix.rows()).for_each(|row| assert_eq!(matrix.row(row).len(), matrix.dimensions));
        true
    })
}

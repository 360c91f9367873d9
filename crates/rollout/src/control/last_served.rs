//! The served bundles, saved in the data directory: a restart continues with them.
use crate::{
    routes::Routes,
    store::{Pointer, Store, StoreError},
};
use lodestone_events::storage;
use std::{fs, io, path::Path};

/// File name in the data directory.
const SERVING: &str = "serving.json";

#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct LastServed {
    bundle: String,
    /// The store's current bundle at that time.
    pointer: String,
    /// Bundle and share.
    #[serde(default)]
    pub canary: Option<(String, f64)>,
    /// Bundle and share.
    #[serde(default)]
    pub shadow: Option<(String, f64)>,
}

impl LastServed {
    pub(super) fn of(routes: &Routes, pointer: &Pointer) -> Self {
        Self {
            bundle: routes.current.name().to_owned(),
            pointer: pointer.name.clone(),
            canary: routes.canary.as_ref().map(|canary| (canary.loaded.name().to_owned(), canary.share)),
            shadow: routes.shadow.as_ref().map(|shadow| (shadow.loaded.name().to_owned(), shadow.share)),
        }
    }

    pub(super) fn write(&self, data: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).expect("strings and numbers serialize to JSON");
        storage::replace(&data.join(SERVING), &text)
    }

    /// Reads the served bundles. None if the store's current bundle has changed since.
    pub(super) fn read(data: &Path, pointer: &Pointer) -> Option<Self> {
        let text = fs::read(data.join(SERVING)).ok()?;
        serde_json::from_slice::<Self>(&text).ok().filter(|last| last.pointer == pointer.name)
    }
}

/// Returns the bundle to start with: the last served one, unless the store's current bundle has changed since.
pub fn first_bundle(store: &Store, data: &Path) -> Result<(String, Pointer), StoreError> {
    let pointer = store.current()?.ok_or_else(|| StoreError::Empty { location: store.location().to_owned() })?;
    let last = LastServed::read(data, &pointer).filter(|last| store.manifest(&last.bundle).is_ok());
    Ok((last.map_or_else(|| pointer.name.clone(), |last| last.bundle), pointer))
}

//! A bundle store in an object store. The only file that uses the crate object_store.
use super::files::{Condition, Failure, Files, StoredFile};
use futures_util::TryStreamExt;
use lodestone_events::storage;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion, buffered::BufWriter, parse_url_opts, path::Path,
};
use std::{path, sync::Arc};
use tokio::{
    fs::File,
    io::{self, AsyncWriteExt},
};

/// The methods block and must not be called from a thread of an asynchronous runtime.
pub(super) struct Remote {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: tokio::runtime::Runtime,
}

impl Remote {
    pub(super) fn open(location: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self, Failure> {
        let (objects, prefix) = parse_url_opts(&url::Url::parse(location)?, options)?;
        Self::new(objects.into(), prefix)
    }

    pub(super) fn new(objects: Arc<dyn ObjectStore>, prefix: Path) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { objects, prefix, runtime })
    }

    fn path(&self, path: &str) -> Path {
        path.split('/').fold(self.prefix.clone(), Path::join)
    }
}

impl Files for Remote {
    fn get(&self, path: &str) -> Result<Option<StoredFile>, Failure> {
        self.runtime.block_on(async {
            let object = match self.objects.get(&self.path(path)).await {
                Ok(object) => object,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let version = object.meta.e_tag.clone().unwrap_or_default();
            Ok(Some(StoredFile { version, bytes: object.bytes().await?.to_vec() }))
        })
    }

    fn put(&self, path: &str, bytes: &[u8], condition: &Condition) -> Result<bool, Failure> {
        let mode = match condition {
            Condition::Always => PutMode::Overwrite,
            Condition::Absent => PutMode::Create,
            Condition::Unchanged(version) => {
                PutMode::Update(UpdateVersion { e_tag: Some(version.clone()), version: None })
            }
        };
        let (path, options) = (self.path(path), PutOptions::from(mode));
        match self.runtime.block_on(self.objects.put_opts(&path, bytes.to_vec().into(), options)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn upload(&self, from: &path::Path, path: &str) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let mut file = File::open(from).await?;
            // Uploads large files in parts. The object becomes visible with the last part.
            let mut object = BufWriter::new(self.objects.clone(), self.path(path));
            match io::copy(&mut file, &mut object).await {
                Ok(_) => object.shutdown().await?,
                Err(error) => {
                    // The provider bills parts of unfinished uploads.
                    let _ = object.abort().await;
                    return Err(error.into());
                }
            }
            Ok(())
        })
    }

    fn download(&self, path: &str, to: &path::Path) -> Result<bool, Failure> {
        self.runtime.block_on(async {
            let object = match self.objects.get(&self.path(path)).await {
                Ok(object) => object,
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let (mut file, mut parts) = (File::from_std(storage::create_private(to)?), object.into_stream());
            while let Some(part) = parts.try_next().await? {
                file.write_all(&part).await?;
            }
            file.flush().await?;
            file.sync_all().await?;
            Ok(true)
        })
    }

    fn directories(&self) -> Result<Vec<String>, Failure> {
        let listed = self.runtime.block_on(self.objects.list_with_delimiter(Some(&self.prefix)))?;
        Ok(listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    fn remove(&self, directory: &str, first: &str) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let directory = self.path(directory);
            self.objects.delete(&directory.clone().join(first)).await?;
            let mut objects = self.objects.list(Some(&directory));
            while let Some(object) = objects.try_next().await? {
                self.objects.delete(&object.location).await?;
            }
            Ok(())
        })
    }
}

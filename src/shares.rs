//! The host's folders that guests use, opened before anything is created.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::p9::{Share, ShareError};

use crate::options::shares::SharedFolder;

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {}", path.display())]
pub struct SharesError {
    option: String,
    path: std::path::PathBuf,
    source: ShareError,
}

/// Opens the folders, to be found by their names.
pub fn open(folders: &[SharedFolder]) -> Result<BTreeMap<String, Arc<Share>>, SharesError> {
    let open = |folder: &SharedFolder| {
        let error = |source| SharesError { option: folder.option.clone(), path: folder.path.clone(), source };
        Ok((folder.id.clone(), Share::open(&folder.path, folder.rules).map_err(error)?))
    };
    folders.iter().map(open).collect()
}

//! Base images as they were asked for: where each comes from, and which image that is.
//!
//! It does not know how images are made, nor whether they are still on the machine.

use serde::{Deserialize, Serialize};
use stead_core::api::package::{BaseName, BaseSource};
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;
use stead_core::time::Time;

use crate::store::{Document, Kind, Store, StoreError, Versioned};

/// A base, as it is stored, by its name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) name: BaseName,
    pub(crate) source: BaseSource,
    pub(crate) image: Digest,
    /// The version that it holds, where that is known.
    pub(crate) exact: Option<String>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
    pub(crate) made: Time,
}

impl Document for Base {
    const KIND: Kind = Kind::Base;
}

/// Every base, by name.
///
/// # Errors
/// When one cannot be read: which image it has is not known then.
pub(crate) fn all(store: &Store) -> Result<Vec<Versioned<Base>>, UserError> {
    let listing = store.list::<Base>("")?;
    match listing.damaged.first() {
        None => Ok(listing.found),
        Some(damaged) => Err(UserError::new(
            Code::StateCorrupt,
            damaged.to_string(),
            format!("`stead image base --remove {}`, then make it again", damaged.key),
        )),
    }
}

/// One base. A damaged one counts as none: it is made again.
///
/// # Errors
/// When the store fails.
pub(crate) fn get(store: &Store, name: &BaseName) -> Result<Option<Base>, StoreError> {
    match store.get::<Base>(&name.to_string()) {
        Err(StoreError::Damaged(damaged)) => {
            tracing::error!(%damaged, "a base is made again");
            Ok(None)
        }
        found => Ok(found?.map(|stored| stored.value)),
    }
}

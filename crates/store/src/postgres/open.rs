//! Looks at the server and makes the tables, once, whoever comes first.

use super::{Reads, fault};
use crate::StoreError;
use crate::remote::OpenError;
use tokio_postgres::types::Type;

/// What the tables look like; a newer one is refused.
pub(super) const LAYOUT: u32 = 1;
const OLDEST: i32 = 130_000;

/// The revision found.
pub(super) async fn prepare(reads: &Reads) -> Result<u64, OpenError> {
    let place = || reads.lanes.place().to_owned();
    let (version, shown, lazy) = reads
        .again(|live| async move {
            let sql = "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), current_setting('synchronous_commit')";
            let row = live.query_typed_one(sql, &[]).await?;
            Ok((row.try_get::<_, i32>(0)?, row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)? == "off"))
        })
        .await?;
    if version < OLDEST {
        return Err(OpenError::TooOld { place: place(), found: format!("PostgreSQL {shown}"), needed: "PostgreSQL 13" });
    }
    if lazy {
        tracing::warn!(place = %place(), "synchronous_commit is off: what was acknowledged may be lost when the server crashes");
    }
    let there = reads
        .again(|live| async move {
            let row = live.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(&reads.sql.head_name(), Type::TEXT)]).await?;
            row.try_get::<_, bool>(0)
        })
        .await?;
    if !there {
        make(reads).await?;
    }
    let found = reads
        .again(|live| async move {
            match reads.sql.layout(&live).await {
                Err(error) if fault::missing(&error) => Ok(Err(error.to_string())),
                found => found.map(Ok),
            }
        })
        .await?;
    match found {
        Ok(Some((LAYOUT, revision))) => Ok(revision),
        Ok(Some((found, _))) if found > LAYOUT => Err(OpenError::Newer { place: place(), found }),
        Ok(Some((found, _))) => Err(OpenError::Foreign { place: place(), detail: format!("its layout is {found}") }),
        Ok(None) => Err(OpenError::Store(StoreError::Corrupt { place: place(), detail: "the table head has no row".into() })),
        Err(detail) => Err(OpenError::Foreign { place: place(), detail }),
    }
}

/// In one transaction, so that there is never half of it.
async fn make(reads: &Reads) -> Result<(), StoreError> {
    let script = reads.sql.creation(LAYOUT);
    reads
        .again(|live| {
            let script = script.clone();
            async move { live.batch_execute(&script).await }
        })
        .await
}

//! The schema: telling ours from others, and bringing it up to date.

use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::core::Core;
use super::failure::Failure;
use super::lane::Pauses;
use super::link::Link;
use super::problem;
use crate::error::{Error, ForeignSchema, PostgresProblem, Result};
use crate::method::Record;

/// The version that this crate writes.
const VERSION: i32 = 1;

/// The name in the row that marks a schema of this crate.
const APPLICATION: &str = "wastore";

/// The statements that lead from one version to the next, and those that only PostgreSQL itself understands.
const MIGRATIONS: [(&str, &str); VERSION as usize] =
    [(include_str!("migrations/1.sql"), include_str!("migrations/1.postgres.sql"))];

/// Finds the schema, or makes it if the options allow.
///
/// # Errors
/// [`Error::ForeignSchema`] and [`Error::UnsupportedVersion`], and nothing was changed then; [`Error::Postgres`].
pub(super) async fn prepare(core: &Core, link: &Link, deadline: Instant) -> Result<()> {
    let mut pauses = Pauses::between_attempts();
    loop {
        let failure = match bring_up_to_date(core, link).await {
            Ok(done) => return done,
            Err(failure) => failure,
        };
        // Another process makes the same schema at the same time. Its tables are there a moment later.
        let meets_another = matches!(failure.code(), "23505" | "42P07" | "42P06" | "42710" | "XX000");
        if !(meets_another || failure.is_passing()) || failure.breaks_connection() || Instant::now() >= deadline {
            return Err(failure.into_error(Record::Device));
        }
        pauses.pause().await;
    }
}

async fn bring_up_to_date(core: &Core, link: &Link) -> Result<Result<()>, Failure> {
    let version = match version(core, link).await? {
        Ok(version) => version,
        Err(refused) => return Ok(Err(refused)),
    };
    if version == VERSION {
        return Ok(Ok(()));
    }
    if !core.options.migrate {
        return Ok(Err(problem::of_store(PostgresProblem::Schema)));
    }
    link.command("BEGIN").await?;
    let migrated = migrate(core, link).await;
    link.command(if matches!(migrated, Ok(Ok(()))) { "COMMIT" } else { "ROLLBACK" }).await?;
    migrated
}

/// The version of the schema; 0 if it is not there or is empty.
async fn version(core: &Core, link: &Link) -> Result<Result<i32>, Failure> {
    const OBJECTS: &str = "SELECT (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = n.oid)
            + (SELECT count(*) FROM pg_catalog.pg_proc WHERE pronamespace = n.oid),
            (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = n.oid AND relname = 'store' AND relkind = 'r')
        FROM pg_catalog.pg_namespace n WHERE n.nspname = $1";
    const MARK: &str = "SELECT application, version FROM @.store LIMIT 2";
    let schema = &core.options.schema;
    let foreign = |found| Ok(Err(Error::ForeignSchema { schema: schema.clone(), found }));
    let rows = link.ask(OBJECTS, &[(schema, Type::TEXT)]).await?;
    let (objects, marks): (i64, i64) = match rows.first() {
        Some(row) => (row.try_get(0)?, row.try_get(1)?),
        None => (0, 0),
    };
    if objects == 0 {
        return Ok(Ok(0));
    }
    if marks == 0 {
        return foreign(ForeignSchema::OtherProgram);
    }
    let rows = match link.ask(MARK, &[]).await {
        Ok(rows) => rows,
        // Another table of this name.
        Err(failure) if failure.code() == "42703" => return foreign(ForeignSchema::OtherProgram),
        Err(failure) => return Err(failure),
    };
    let [row] = &rows[..] else { return foreign(ForeignSchema::Altered) };
    let (Ok(application), Ok(version)) = (row.try_get::<_, String>(0), row.try_get::<_, i32>(1)) else {
        return foreign(ForeignSchema::OtherProgram);
    };
    match u32::try_from(version) {
        _ if application != APPLICATION => foreign(ForeignSchema::OtherProgram),
        Ok(found) if version > VERSION => {
            Ok(Err(Error::UnsupportedVersion { what: "database schema version", found, newest: VERSION as u32 }))
        }
        Ok(1..) => Ok(Ok(version)),
        _ => foreign(ForeignSchema::Altered),
    }
}

/// Takes the missing steps in the transaction that is open.
async fn migrate(core: &Core, link: &Link) -> Result<Result<()>, Failure> {
    const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext($1))";
    const EXISTS: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)";
    const MARK: &str = "INSERT INTO @.store (application, version) VALUES ('wastore', $1)
        ON CONFLICT (application) DO UPDATE SET version = excluded.version";
    let schema = &core.options.schema;
    // Two processes would otherwise meet in the server's own tables. If it does nothing, as in CockroachDB, they do,
    // and look again.
    link.ask(LOCK, &[(schema, Type::TEXT)]).await?;
    let version = match version(core, link).await? {
        Ok(version) => version,
        Err(refused) => return Ok(Err(refused)),
    };
    let exists = link.ask(EXISTS, &[(schema, Type::TEXT)]).await?;
    // A role may have the right to a schema and not to make one.
    if !exists.first().map_or(Ok(false), |row| row.try_get(0))? {
        link.command(&core.in_schema("CREATE SCHEMA IF NOT EXISTS @")).await?;
    }
    for (everywhere, postgres) in MIGRATIONS.iter().skip(version.unsigned_abs() as usize) {
        link.command(&core.in_schema(everywhere)).await?;
        link.command(&core.in_schema(postgres)).await?;
    }
    let mark = "CREATE TABLE IF NOT EXISTS @.store (application text PRIMARY KEY, version integer NOT NULL)";
    link.command(&core.in_schema(mark)).await?;
    link.ask(MARK, &[(&VERSION, Type::INT4)]).await?;
    Ok(Ok(()))
}

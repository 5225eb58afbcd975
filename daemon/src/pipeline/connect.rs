//! Before anything is read: is this the source, the slot and the publication that our records are
//! about? A gap is never streamed over.

use std::sync::{Arc, Mutex};

use connectors::postgres::stream::Stream;
use connectors::postgres::version::Version;
use connectors::postgres::wire::Wire;
use connectors::postgres::{Error, Result, control, slot, snapshot, spare};
use schemas::Lsn;
use schemas::config::Config;
use schemas::record::{AckRecord, Fault};

use crate::ack::{SharedUnseen, Unseen};
use crate::store::Store;
use crate::supervisor::Startup;

/// How to begin anew when a slot and a state directory do not belong together any more.
const ANEW: &str = "drop the slot (SELECT pg_drop_replication_slot), run `carveout prepare --apply`, name an empty state_dir, \
    drop what the old moves created, and move the tenants again";

/// Where the pipeline begins.
pub struct Beginning {
    /// Who the source is; every acknowledge record repeats it.
    pub base: AckRecord,
    /// The slot's confirmed position.
    pub acknowledged: Lsn,
    /// The source's `server_version_num`.
    pub server_version: u32,
    /// Delivered transactions that a copy must not count on.
    pub unseen: SharedUnseen,
}

/// Compares slot and record, once at start; makes the first record on a fresh slot.
pub async fn begin(config: &Config, store: &Store) -> anyhow::Result<Beginning> {
    let system = Wire::connect(&config.source.url, "carveout").await?.identify_system().await?;
    let mut client = spare::take(&config.source.url, "start").await?;
    let server_version = Version::supported(&*client).await?.0;
    let slot_name = config.source.slot.clone();
    let slot = required_slot(&client, config).await?;
    let publication = required_publication(&client, config).await?;
    let record = store.ack()?;
    let base = AckRecord {
        system_id: system.system_id.clone(),
        timeline: system.timeline,
        slot: config.source.slot.clone(),
        publication_oid: publication,
        ..AckRecord::default()
    };
    if let Some(record) = &record {
        same_source(&base, record)?;
        if system.wal_lsn < record.position {
            return Err(behind(system.wal_lsn, record.position).into());
        }
        if slot.confirmed_flush > record.position {
            return Err(ahead(&config.source.slot, slot.confirmed_flush, record.position).into());
        }
    }
    claim(&mut client, store, &slot_name, slot.active).await?;
    let unseen = match record {
        Some(record) => Unseen::new(record.unseen, record.fresh_xid),
        None => {
            // Transactions may have committed before the slot that no snapshot shows yet. Their ids
            // are below this one, whatever they wait for; a snapshot's xmax may not be above them.
            let next = snapshot::next_xid(&client).await?;
            let first = AckRecord { position: slot.confirmed_flush, fresh_xid: Some(next), ..base.clone() };
            store.put_ack(&first)?;
            Unseen::new(Vec::new(), Some(next))
        }
    };
    client.keep();
    Ok(Beginning { base, acknowledged: slot.confirmed_flush, server_version, unseen: Arc::new(Mutex::new(unseen)) })
}

/// The slot must be this state directory's.
async fn claim(
    client: &mut connectors::postgres::Client,
    store: &Store,
    slot: &str,
    active: bool,
) -> anyhow::Result<()> {
    if control::claim_slot(client, slot, &store.identity()?).await? {
        return Ok(());
    }
    let text = format!(
        "slot {slot} belongs to another state directory. Start the daemon with that one; if it is lost: {ANEW}"
    );
    Err(if active { Startup::Locked(text) } else { Startup::Refused(text) }.into())
}

/// The same comparison before every connection, against what this daemon has acknowledged; returns where the
/// source's log ends.
pub async fn compare(config: &Config, base: &AckRecord, acknowledged: Lsn) -> Result<Lsn> {
    let client = spare::take(&config.source.url, "start").await?;
    let slot = required_slot(&client, config).await?;
    if required_publication(&client, config).await? != base.publication_oid {
        return Err(Error::state(
            format!("use publication {}", config.source.publication),
            "it was dropped and made again; changes in between are not in the stream. Cancel the moves, then move again",
        ));
    }
    // An answer may be lost: the slot may know more than we heard, never more than we recorded.
    if slot.confirmed_flush > acknowledged {
        return Err(ahead(&config.source.slot, slot.confirmed_flush, acknowledged));
    }
    let end = slot::wal_end(&client).await?;
    client.keep();
    Ok(end)
}

/// The stream must come from the system and the timeline of the record, and from a log that has what was
/// received already.
pub fn same_system(stream: &Stream, base: &AckRecord, received: Lsn) -> Result<()> {
    let system = stream.system();
    let here = AckRecord { system_id: system.system_id.clone(), timeline: system.timeline, ..base.clone() };
    same_source(&here, base)?;
    if system.wal_lsn < received { Err(behind(system.wal_lsn, received)) } else { Ok(()) }
}

fn same_source(here: &AckRecord, record: &AckRecord) -> Result<()> {
    let differs = if here.system_id != record.system_id {
        format!(
            "the server's system identifier is {}, the state directory belongs to {}",
            here.system_id, record.system_id
        )
    } else if here.timeline != record.timeline {
        format!(
            "the server is on timeline {}, the state directory belongs to {} (failover or restore)",
            here.timeline, record.timeline
        )
    } else if here.slot != record.slot {
        format!("the configuration names slot {}, the state directory belongs to {}", here.slot, record.slot)
    } else if here.publication_oid != record.publication_oid {
        "the publication was dropped and made again, or another is named; changes in between are not in the stream"
            .to_owned()
    } else {
        return Ok(());
    };
    let next = format!("Point the configuration at the source that the state belongs to; or begin anew: {ANEW}");
    Err(Error::state("compare the source with the state directory", format!("{differs}. {next}")))
}

async fn required_slot(client: &connectors::postgres::Client, config: &Config) -> Result<slot::Slot> {
    let name = &config.source.slot;
    let doing = || format!("use slot {name}");
    let missing = || {
        Error::state(
            doing(),
            "it does not exist; `carveout prepare --apply` creates it. If it was there before, changes are lost: cancel the moves and move again",
        )
    };
    let slot = slot::find(client, name).await?.ok_or_else(missing)?;
    if slot.confirmed_flush == Lsn::ZERO && slot.wal_status != "lost" && !slot.database.is_empty() {
        return Err(Error::connection(doing(), "somebody is making it; that waits for transactions that are open"));
    }
    if slot.wal_status == "lost" {
        let why = "the server has removed log that it needed (max_slot_wal_keep_size)";
        return Err(Error::state(doing(), format!("{why}; begin anew: {ANEW}")));
    }
    if slot.plugin != "pgoutput" || slot.two_phase {
        return Err(Error::state(doing(), "it was not made by `carveout prepare`; name another one in source.slot"));
    }
    Ok(slot)
}

async fn required_publication(client: &connectors::postgres::Client, config: &Config) -> Result<u32> {
    let name = &config.source.publication;
    let doing = || format!("use publication {name}");
    let missing = || {
        Error::state(
            doing(),
            "it does not exist; `carveout prepare --apply` creates it. If it was there before, cancel the moves and move again",
        )
    };
    let publication = slot::find_publication(client, name).await?.ok_or_else(missing)?;
    if publication.all_tables || publication.filtered || !publication.complete {
        return Err(Error::state(
            doing(),
            "it has row filters or column lists, or does not publish everything; `carveout check` says what is wanted",
        ));
    }
    Ok(publication.oid)
}

fn behind(wal: Lsn, ours: Lsn) -> Error {
    Error::state(
        "compare the source with the state directory",
        format!(
            "the source's log ends at {wal}, before the {ours} that was received: it was restored from a backup. Begin anew: {ANEW}"
        ),
    )
}

fn ahead(slot: &str, confirmed: Lsn, ours: Lsn) -> Error {
    Error::state(
        format!("use slot {slot}"),
        format!(
            "its confirmed position {confirmed} is ahead of the {ours} that this state directory recorded: {} bytes of changes would be missing. \
             An older copy of the state was restored, or somebody else advanced the slot. Use the newer state; or begin anew: {ANEW}",
            confirmed.bytes_since(ours)
        ),
    )
}

/// Whether trying again cannot help.
pub fn is_final(error: &Error) -> bool {
    match error.sqlstate() {
        // Slot gone or lost, publication gone.
        Some("55000" | "42704" | "0A000") => true,
        _ => !error.may_pass(),
    }
}

/// Left free in the file system of `state_dir`: the records need room when a spool takes no more.
const KEPT_FREE_BYTES: u64 = 64 << 20;

const MAKE_ROOM: &str = "find room for what is read";
/// The code of a fault that stands until something more was read.
pub const DISK_FULL: &str = "disk_full";

/// Nothing more is read from the source when there is no room to keep it: the source keeps it then.
pub fn room(config: &Config) -> Result<()> {
    match fs2::available_space(&config.state_dir) {
        Ok(free) if free < KEPT_FREE_BYTES => Err(no_room(config)),
        // What cannot be measured is noticed by the write that fails.
        _ => Ok(()),
    }
}

/// There is no room for spools.
pub fn no_room(config: &Config) -> Error {
    let (dir, least) = (config.state_dir.display(), KEPT_FREE_BYTES >> 20);
    let why = format!("state_dir {dir} has less than {least} MiB free; the source keeps its log meanwhile");
    Error::connection(MAKE_ROOM, why)
}

/// What the pipeline waits for, where a person can do something about it.
pub fn waits_for(config: &Config, error: &Error) -> Option<Fault> {
    let (code, object, next) = match error.sqlstate() {
        _ if error.is_login() => (
            "source_refused",
            "source.url".to_owned(),
            "correct the role, or its password in the database or in password_file, which is read at every login, as are \
             sslcert and sslkey (a password that stands in source.url needs a new start)",
        ),
        None if error.doing == MAKE_ROOM => {
            (DISK_FULL, config.state_dir.display().to_string(), "make room; reading goes on by itself")
        }
        _ => return None,
    };
    Some(Fault::new(code, object, error.to_string(), next))
}

/// How a final error is shown.
pub fn fault(config: &Config, error: &Error) -> Fault {
    let code = match error.sqlstate() {
        Some("55000") => "slot_lost",
        Some("42704") => "slot_or_publication_missing",
        _ => "source_refused",
    };
    Fault::new(
        code,
        format!("slot {}", config.source.slot),
        error.to_string(),
        "mend the cause, then start the daemon again",
    )
}

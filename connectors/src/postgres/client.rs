//! Ordinary connections: tokio-postgres with the session settings that every connection pins.
//! A setting of the database or the role must never change what a value looks like, or how
//! durable a commit is. Nothing is compiled (`jit`): queries of the catalogs look dearer than they are, and compiling one takes
//! some 70 ms of a processor.

use std::sync::Arc;
use std::time::Duration;

use schemas::url::PgUrl;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::ChannelBinding;
use tokio_postgres::{Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::Instrument;

use super::error::Cause;
use super::quote::ident;
use super::{Doing, Error, Result, password, tls};

/// What every session of ours begins with; the replication connection uses the same.
pub const PINNED: &str = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c timezone=UTC \
    -c bytea_output=hex -c lc_monetary=C -c row_security=off -c search_path=pg_catalog -c synchronous_commit=on \
    -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 -c default_transaction_isolation=read\\ committed \
    -c default_transaction_read_only=off -c default_transaction_deferrable=off -c standard_conforming_strings=on \
    -c xmloption=content -c array_nulls=on -c quote_all_identifiers=off -c lock_timeout=0 -c jit=off";

/// What every session is told beside that, as not every version knows it: a copy is one long transaction.
pub(super) const NO_TRANSACTION_TIMEOUT: &str =
    "SELECT set_config('transaction_timeout', '0', false) WHERE current_setting('server_version_num')::int4 >= 170000";

/// The longest wait for a lock on a connection that does not say otherwise. Longer waits are
/// tried again from the outside, where they can be seen.
const LOCK_TIMEOUT: &str = "-c lock_timeout=10s";

/// Settings of a connection that applies changes: sets are joined to tables by their key, always,
/// and planned once.
pub const APPLY: &str = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off \
    -c enable_mergejoin=off";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects for `purpose`, which shows in `application_name`.
pub async fn connect(url: &PgUrl, purpose: &str) -> Result<Client> {
    connect_with(url, purpose, "").await
}

/// Connects with further session settings (`-c name=value …`).
pub async fn connect_with(url: &PgUrl, purpose: &str, settings: &str) -> Result<Client> {
    let doing = || format!("connect to {url}");
    let tls = tls::config(url)?;
    let mut config = Config::new();
    config.host(url.host.as_deref().unwrap_or("localhost")).port(url.port);
    config.application_name(format!("carveout {purpose}"));
    config.options(format!("{} {PINNED} {LOCK_TIMEOUT} {settings}", url.options.as_deref().unwrap_or("")));
    // Zero means without end; nothing of ours waits so long for one attempt.
    let timeout = url.connect_timeout.filter(|seconds| *seconds > 0).map_or(CONNECT_TIMEOUT, Duration::from_secs);
    config.tcp_user_timeout(DEAD_PEER_TIMEOUT).keepalives_idle(DEAD_PEER_TIMEOUT);
    config.user(url.role());
    if let Some(dbname) = &url.dbname {
        config.dbname(dbname);
    }
    if let Some(password) = password::of(url)? {
        config.password(password.expose());
    }
    // The login counts too: a server may accept and then not answer.
    let connected = async {
        match tls {
            None => {
                config.ssl_mode(tokio_postgres::config::SslMode::Disable);
                let (client, connection) = config.connect(NoTls).await.doing(doing())?;
                begin(client, connection).await
            }
            Some(tls) => {
                config.ssl_mode(tokio_postgres::config::SslMode::Require);
                config.channel_binding(match url.channel_binding.as_deref() {
                    Some("require") => ChannelBinding::Require,
                    Some("disable") => ChannelBinding::Disable,
                    _ => ChannelBinding::Prefer,
                });
                let tls = MakeRustlsConnect::new(Arc::unwrap_or_clone(tls));
                let (client, connection) = config.connect(tls).await.doing(doing())?;
                begin(client, connection).await
            }
        }
    };
    let late = |_| Error::connection(doing(), format!("no answer within {} s", timeout.as_secs()));
    tokio::time::timeout(timeout, connected).await.map_err(late)?.map_err(|error| say_grant(url, error))
}

/// Who may not connect to the database is told what lets him.
fn say_grant(url: &PgUrl, error: Error) -> Error {
    match (&error.cause, url.database()) {
        (Cause::Server { sqlstate, message, .. }, Some(database)) if sqlstate == "42501" => {
            let sql = format!("GRANT CONNECT ON DATABASE {} TO {}", ident(database), ident(url.role()));
            Error::server(error.doing, sqlstate, &format!("{message}; mend it with {sql}"))
        }
        _ => error,
    }
}

/// Carries the session's messages. The client notices by itself when its connection ends; the reason reaches the next query.
async fn begin<S, T>(client: Client, connection: Connection<S, T>) -> Result<Client>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let task = async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    };
    tokio::spawn(task.in_current_span());
    client.batch_execute(NO_TRANSACTION_TIMEOUT).await.doing("set transaction_timeout")?;
    Ok(client)
}

//! Whether the stream's values come in binary or as text. Text is asked for when a published column travels as text:
//! the whole stream is of one form. Before the first row of a table its description comes, and what that says of its
//! types counts: they may be older, or newer, than what the catalogs said when the stream began.

use std::collections::HashSet;

use bytes::Bytes;
use connectors::postgres::pgoutput::{self, Message};
use connectors::postgres::{Error, Result, spare, types};
use schemas::config::Source;

/// The server cannot print a value in binary: an element of an array, as a rule.
const NO_BINARY_OUTPUT: &str = "42883";

/// The form of the stream.
#[derive(Default)]
pub(super) struct Form {
    /// The stream has met what the catalogs do not show any more, or did not show yet.
    met_text: bool,
    /// The types that are known to travel in binary; `None` while the stream is text.
    binary: Option<HashSet<u32>>,
    stale: bool,
}

impl Form {
    /// Whether a stream that begins now is binary.
    pub async fn decide(&mut self, source: &Source) -> Result<bool> {
        self.binary = None;
        if !self.met_text {
            let client = spare::take(&source.url, "start").await?;
            let published = types::published(&client, &source.publication).await?;
            if types::text_only(&client, &published).await?.is_empty() {
                self.binary = Some(published.into_iter().collect());
            }
            client.keep();
        }
        Ok(self.binary.is_some())
    }

    /// Looks at the types of a table, where this message describes one in a binary stream: no row of it is taken as long as one of
    /// them travels as text.
    pub async fn admit(&mut self, source: &Source, message: &Bytes) -> Result<()> {
        let Some(known) = &mut self.binary else { return Ok(()) };
        let Message::Relation(relation) = pgoutput::decode(message)? else { return Ok(()) };
        let unknown = relation.columns.iter().map(|column| column.type_oid).filter(|oid| !known.contains(oid));
        let unknown: Vec<u32> = unknown.collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let client = spare::take(&source.url, "types").await?;
        let as_text = types::text_only(&client, &unknown).await?;
        client.keep();
        if as_text.is_empty() {
            known.extend(unknown);
            return Ok(());
        }
        self.met_text = true;
        let doing = format!("read changes of {}.{}", relation.schema, relation.name);
        Err(Error::connection(doing, "a column travels as text, and the stream is binary"))
    }

    /// The same for the catalogs as they are now, where a type may have changed without a word in the stream.
    pub async fn review(&mut self, source: &Source) -> Result<()> {
        if !std::mem::take(&mut self.stale) || self.binary.is_none() {
            return Ok(());
        }
        let client = spare::take(&source.url, "types").await?;
        let published = types::published(&client, &source.publication).await?;
        self.met_text = !types::text_only(&client, &published).await?.is_empty();
        client.keep();
        match self.met_text {
            false => Ok(()),
            true => Err(Error::connection("read the stream", "a column travels as text, and the stream is binary")),
        }
    }

    /// A move begins: its tables are to be looked at.
    pub fn doubt(&mut self) {
        self.stale = true;
    }

    /// Whether a stream that ended like this goes on as text.
    pub fn gives_way(&mut self, error: &Error) -> bool {
        let met = self.binary.is_some() && (self.met_text || error.sqlstate() == Some(NO_BINARY_OUTPUT));
        if met {
            (self.met_text, self.binary) = (true, None);
        }
        met
    }
}

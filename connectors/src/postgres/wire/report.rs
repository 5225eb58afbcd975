//! What the server reports in the middle of anything else: its errors and its notices.
//!
//! Never repeats a DETAIL: it may hold values of a row.

use super::super::{Error, Result};

/// What the server reports: an ErrorResponse or a NoticeResponse, without its DETAIL.
pub(in crate::postgres) struct Report {
    severity: String,
    sqlstate: String,
    message: String,
}

impl Report {
    /// Reads the fields (manual, "Error and Notice Message Fields"); one that is missing is empty.
    pub(in crate::postgres) fn read(body: &[u8]) -> Report {
        let field = |kind: u8| {
            let mut fields = body.split(|&byte| byte == 0).filter_map(|field| field.split_first());
            let value = fields.find(|(first, _)| **first == kind).map_or(&[][..], |(_, value)| value);
            String::from_utf8_lossy(value).into_owned()
        };
        Report { severity: field(b'V'), sqlstate: field(b'C'), message: field(b'M') }
    }

    /// As an error.
    pub(in crate::postgres) fn into_error(self) -> Error {
        Error::server("wait for the server", &self.sqlstate, &self.message)
    }

    /// As a notice. One warning is an error to us: 18 and later go on without a publication that
    /// is missing (55000, "skipped loading publication"), and so without its rows.
    pub(super) fn heed(self) -> Result<()> {
        if self.severity == "WARNING" && self.sqlstate == "55000" {
            return Err(self.into_error());
        }
        tracing::debug!(severity = self.severity, sqlstate = self.sqlstate, "server notice: {}", self.message);
        Ok(())
    }
}

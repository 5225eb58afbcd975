//! The client's certificate: `sslcert` and `sslkey`, read at every login, so that they can be renewed while the daemon
//! runs (PostgreSQL manual, "Client Certificates").
//!
//! Never takes a key that others can read, as libpq does not, and never shows anything of what is in the files.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustls::AlertDescription;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemas::url::PgUrl;

use super::{Error, Result};

/// The certificate with those of the authorities between, and its key.
type Ours = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What the URL's files hold; `None` where it names none.
pub(super) fn files(url: &PgUrl) -> Result<Option<Ours>> {
    let (certificate, key) = match (&url.sslcert, &url.sslkey) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        _ => {
            let why = "sslcert and sslkey belong together: name both files";
            return Err(Error::state(format!("connect to {url}"), why));
        }
    };
    // Files may just be written anew: this passes.
    let wrong = |what: &str, path: &str, why: &str| {
        Error::login(format!("connect to {url}"), format!("cannot use {what} {path}: {why}"))
    };
    let chain = chain(certificate).map_err(|why| wrong("sslcert", certificate, &why))?;
    let key = private_key(key).map_err(|why| wrong("sslkey", key, &why))?;
    Ok(Some((chain, key)))
}

fn chain(path: &str) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err("there is no certificate in PEM in it".to_owned()),
    }
}

/// The key in a file, or why it is not taken.
fn private_key(path: &str) -> std::result::Result<PrivateKeyDer<'static>, String> {
    let about = fs::metadata(path).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    // As in libpq: root may let a group read it.
    let others = if about.uid() == 0 { 0o037 } else { 0o077 };
    if about.mode() & others != 0 {
        let mode = about.mode() & 0o7777;
        return Err(format!("others may read it (mode {mode:04o}): chmod 0600, or 0640 where it belongs to root"));
    }
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&pem);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        let why = "it is protected by a password, which is not supported: write it without (openssl pkey -in … -out …), mode 0600";
        return Err(why.to_owned());
    }
    // The parser's message may quote the file.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| "there is no private key in PEM in it".to_owned())
}

/// Certificate and key that cannot be used together.
pub(super) fn unfit(url: &PgUrl, error: &rustls::Error) -> Error {
    let why = match error {
        rustls::Error::InconsistentKeys(_) => "the key in sslkey is not that of the certificate in sslcert".to_owned(),
        error => format!("sslcert and sslkey cannot be used: {error}"),
    };
    Error::login(format!("connect to {url}"), why)
}

/// What the server has against the client's certificate, when that is why it ended the connection.
pub(super) fn refusal(error: &rustls::Error) -> Option<String> {
    let rustls::Error::AlertReceived(alert) = error else { return None };
    let why = match alert {
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet: renew it",
        AlertDescription::CertificateRevoked => "it was revoked: get another one",
        AlertDescription::UnknownCA => {
            "it does not know the authority that issued it: use another one, or add that authority to its ssl_ca_file"
        }
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError => "it cannot use it",
        AlertDescription::CertificateRequired => "it wants one: name it in sslcert and sslkey",
        _ => return None,
    };
    Some(format!("the server refuses the client's certificate (sslcert): {why}"))
}

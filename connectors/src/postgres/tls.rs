//! TLS by rustls, as `sslmode` asks for it (PostgreSQL manual, "SSL Support"), for both kinds of connection.
//!
//! Never falls back to an open connection: `allow` and `prefer` are refused, and a server that offers no TLS too.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use schemas::url::{PgUrl, SslMode};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::der::Decode;

use super::{Error, Result};

mod certificate;

/// The authorities of the operating system.
const SYSTEM: &str = "system";

/// How to speak TLS with the server behind `url`; `None`: without.
pub(super) fn config(url: &PgUrl) -> Result<Option<Arc<ClientConfig>>> {
    let doing = || format!("connect to {url}");
    let mode = url.effective_sslmode();
    let ours = certificate::files(url)?;
    let socket = url.host.as_deref().is_some_and(|host| host.starts_with('/'));
    if ours.is_some() && (socket || mode == SslMode::Disable) {
        let why =
            "sslcert needs TLS, and this connection is without: say sslmode=verify-full, and a host that is no socket";
        return Err(Error::state(doing(), why));
    }
    let binding_needed = url.channel_binding.as_deref() == Some("require");
    // A socket within the machine carries no TLS, as in libpq.
    if socket {
        return Ok(None);
    }
    let names = match mode {
        SslMode::Disable if binding_needed => {
            return Err(Error::state(doing(), "channel_binding=require needs TLS, and sslmode=disable says without"));
        }
        SslMode::Disable => return Ok(None),
        SslMode::Allow | SslMode::Prefer => {
            let why = format!("sslmode={mode} may end without TLS; say disable, require, verify-ca or verify-full");
            return Err(Error::state(doing(), why));
        }
        // As in libpq: with an authority at hand, `require` checks it.
        SslMode::Require if url.sslrootcert.is_none() => Names::Unchecked,
        SslMode::Require | SslMode::VerifyCa => Names::Any,
        SslMode::VerifyFull => Names::Same,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match names {
        Names::Unchecked => Arc::new(Lenient { chain: None, provider: Arc::clone(&provider) }),
        names => {
            let roots = Arc::new(roots(url)?);
            let chain = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            let chain = chain.map_err(|error| Error::state(doing(), error))?;
            match names {
                Names::Same => chain,
                _ => Arc::new(Lenient { chain: Some(chain), provider: Arc::clone(&provider) }),
            }
        }
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::state(doing(), error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match ours {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            config.with_client_auth_cert(chain, key).map_err(|error| certificate::unfit(url, &error))?
        }
    };
    Ok(Some(Arc::new(config)))
}

/// Whose name the certificate has to have.
#[derive(Clone, Copy)]
enum Names {
    /// The host's.
    Same,
    /// Anybody's, from a known authority.
    Any,
    /// Nothing is checked: the connection is secret, its other end unknown.
    Unchecked,
}

fn roots(url: &PgUrl) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let file = url.sslrootcert.as_deref().unwrap_or(SYSTEM);
    let found = match file {
        SYSTEM => rustls_native_certs::load_native_certs().certs,
        file => CertificateDer::pem_file_iter(file)
            .and_then(|certificates| certificates.collect())
            .map_err(|error| Error::state(format!("read sslrootcert {file}"), error))?,
    };
    let (good, _) = store.add_parsable_certificates(found);
    match good {
        0 => Err(Error::state(
            format!("connect to {url}"),
            format!(
                "no authority was found to check the server's certificate against (sslrootcert: {file}); name its file in sslrootcert"
            ),
        )),
        _ => Ok(store),
    }
}

/// What a server that offers no TLS is answered with.
pub(super) const NOT_OFFERED: &str =
    "the server does not offer TLS; turn it on there (ssl = on), or over a trusted network say sslmode=disable";

/// Why a handshake failed: a connection that went may come again, a certificate that does not fit will not.
pub(super) fn handshake(doing: impl Into<String>, error: &io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        None => Error::connection(doing, error),
        Some(refused) => match certificate::refusal(refused) {
            Some(why) => Error::login(doing, why),
            None => Error::state(doing, format!("{refused}{}", next(refused))),
        },
    }
}

/// What the server has against the client's certificate, when it ended a connection for that: since TLS 1.3 it
/// looks at it only after the handshake.
pub(super) fn refused(error: &io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<rustls::Error>().and_then(certificate::refusal)
}

/// What to do about it.
fn next(error: &rustls::Error) -> &'static str {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            "; name the file of the authority that issued it in sslrootcert"
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "; use a name that the certificate has, or sslmode=verify-ca"
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => "; renew it",
        AlertReceived(_) => "; the server refused (does it want another version of TLS?)",
        _ => "",
    }
}

/// A certificate whomever it names: from a known authority, or without a chain to check any, whose key the
/// server has to have nevertheless.
#[derive(Debug)]
struct Lenient {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        use rustls::Error::InvalidCertificate;
        let Some(known) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match known.verify_server_cert(certificate, chain, name, ocsp, now) {
            // The name is looked at last: everything else was found good.
            Err(InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The host's name for the handshake.
pub(super) fn server_name(url: &PgUrl) -> Result<ServerName<'static>> {
    let host = url.host.clone().unwrap_or_else(|| "localhost".to_owned());
    ServerName::try_from(host).map_err(|error| Error::state(format!("connect to {url}"), error))
}

/// What a login over TLS is bound to (RFC 5929, `tls-server-end-point`): the hash of the server's
/// certificate, by the algorithm that its signature uses; `None` where that names none.
pub(super) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let hash = match parsed.signature_algorithm.oid.to_string().as_str() {
        // MD5 and SHA-1 count as SHA-256; then RSA and ECDSA with SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2" => Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(certificate).to_vec(),
        _ => return None,
    };
    Some(hash)
}

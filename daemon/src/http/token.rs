//! The bearer token: made once, kept in a file that only its owner reads, compared without telling how
//! far a guess was right. It must never be printed or logged.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Random bytes of a token that is made here.
const TOKEN_BYTES: usize = 32;
/// The longest token file that is read, in bytes.
const FILE_LIMIT_BYTES: u64 = 4096;
/// The mode of a token file that is made here.
const OWNER_ONLY: u32 = 0o600;
/// The permission bits of everybody else.
const WORLD: u32 = 0o007;

/// A token, which shows as `…`.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// A token from text; what cannot stand in a header is refused.
    pub fn new(text: &str) -> Result<Token> {
        let text = text.trim();
        ensure!(!text.is_empty(), "the token is empty");
        ensure!(text.bytes().all(|b| b.is_ascii_graphic()), "the token has other characters than printable ASCII");
        Ok(Token(text.to_owned()))
    }

    /// Reads the token file, and makes it with a random token when it is missing. Called by `run`.
    pub fn read_or_make(path: &Path) -> Result<Token> {
        let created = OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(path);
        match created {
            Ok(mut file) => {
                let token = random().context("make a token")?;
                let written = writeln!(file, "{token}").and_then(|()| file.sync_all());
                written.with_context(|| format!("write the token file {}", path.display()))?;
                Ok(Token(token))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Token::read(path),
            Err(error) => Err(error).with_context(|| format!("make the token file {}", path.display())),
        }
    }

    /// Reads the token file. Called by the commands.
    pub fn read(path: &Path) -> Result<Token> {
        let what = || format!("read the token file {}", path.display());
        let file = File::open(path).with_context(what)?;
        let mode = file.metadata().with_context(what)?.permissions().mode();
        if mode & WORLD != 0 {
            tracing::warn!(path = %path.display(), "everybody on this machine may read the token file; chmod 600 it");
        }
        let mut text = String::new();
        file.take(FILE_LIMIT_BYTES).read_to_string(&mut text).with_context(what)?;
        Token::new(&text).with_context(|| format!("{} (remove the file, and `carveout run` makes a new one)", what()))
    }

    /// The value of the header `Authorization`.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether a header `Authorization` carries this token (RFC 6750, section 2.1).
    pub fn opens(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked("Bearer ".len())) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ") && same(given.trim_ascii(), self.0.as_bytes())
    }
}

/// Compares in a time that depends on the length of `given` only.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let mut difference = u8::from(given.len() != expected.len());
    for (at, byte) in given.iter().enumerate() {
        difference |= black_box(byte ^ expected[at % expected.len()]);
    }
    black_box(difference) == 0
}

fn random() -> Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_the_token_opens() {
        let token = Token::new("s3cret\n").unwrap();
        assert!(token.opens(Some(b"Bearer s3cret")));
        assert!(token.opens(Some(b"bearer  s3cret")));
        let wrong: [&[u8]; 9] = [
            b"",
            b"s3cret",
            b"Bearer",
            b"Bearer ",
            b"Bearer s3cre",
            b"Bearer s3crets",
            b"Bearer s3creT",
            b"Basic s3cret",
            b"Bearer s3crets3cret",
        ];
        for header in wrong {
            assert!(!token.opens(Some(header)), "{header:?}");
        }
        assert!(!token.opens(None));
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn a_missing_file_is_made_for_its_owner_only_and_read_again() {
        let folder = std::env::temp_dir().join(format!("carveout-token-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("token");
        let made = Token::read_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
        assert_eq!(made.0.len(), 2 * TOKEN_BYTES);
        assert_eq!(Token::read_or_make(&path).unwrap().0, made.0);
        fs::write(&path, "\n").unwrap();
        let error = format!("{:#}", Token::read_or_make(&path).unwrap_err());
        assert!(error.contains("empty"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }
}

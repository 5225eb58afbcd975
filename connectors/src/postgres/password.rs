//! Passwords that lie in files. A file is read again for every login, so that a password can change while the
//! daemon runs. What is in it must never come into an error.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use schemas::url::{PgUrl, Secret};

use super::{Error, Result};

/// The longest password file that is read, in bytes.
const FILE_LIMIT_BYTES: u64 = 64 << 10;

/// The password to log in with: the URL's own, or what its file holds now.
pub fn of(url: &PgUrl) -> Result<Option<Secret>> {
    match (&url.password, &url.password_file) {
        (Some(password), _) => Ok(Some(password.clone())),
        (None, None) => Ok(None),
        // It may just be written anew: this passes.
        (None, Some(path)) => read(path).map(Some).map_err(|why| Error::connection(format!("connect to {url}"), why)),
    }
}

/// The password in a file; or why it cannot be used.
pub fn read(path: &Path) -> std::result::Result<Secret, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("cannot use password file {}: {why}", path.display());
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_LIMIT_BYTES).read_to_string(&mut text));
    read.map_err(|error| wrong(&error))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() { Err(wrong(&"it is empty")) } else { Ok(Secret::new(password)) }
}

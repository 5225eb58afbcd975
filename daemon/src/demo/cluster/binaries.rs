//! Finds PostgreSQL's programs on this machine. It must never install or download anything: where they are
//! missing, the error says how to get them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use super::stdout;

/// The major version that this Carveout supports; preferred when several are installed.
pub const SUPPORTED_MAJOR: u32 = 15;

/// Where PostgreSQL's programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Folder that holds `initdb` and `postgres`.
    pub dir: PathBuf,
    /// What `postgres --version` says, for example `postgres (PostgreSQL) 15.18`.
    pub version: String,
    /// Major version; may be another than [`SUPPORTED_MAJOR`] when nothing else is installed.
    pub major: u32,
}

impl Binaries {
    /// Looks at `PGBIN` (and then nowhere else), `pg_config --bindir`, `PATH`, and the folders of packages.
    /// Among what it finds it takes the supported version, otherwise the first. The error says what to install.
    pub fn find() -> Result<Binaries> {
        if let Some(dir) = env::var_os("PGBIN") {
            return Binaries::in_folder(Path::new(&dir)).context("use PGBIN from the environment");
        }
        let folders = candidate_folders().into_iter();
        let found: Vec<Binaries> = folders.flat_map(|dir| Binaries::in_folder(&dir)).collect();
        let best = found.iter().find(|one| one.major == SUPPORTED_MAJOR);
        best.or(found.first()).cloned().context(
            "PostgreSQL's programs (initdb, postgres) were not found; install them with \
             `apt-get install postgresql-15` (Debian, Ubuntu), or set PGBIN to the folder that holds them",
        )
    }

    /// The programs of exactly this folder.
    fn in_folder(dir: &Path) -> Result<Binaries> {
        for program in ["initdb", "postgres"] {
            let file = dir.join(program);
            ensure!(file.is_file(), "{} is missing", file.display());
        }
        let version = stdout(Command::new(dir.join("postgres")).arg("--version"))?;
        let number = version.split(") ").nth(1).unwrap_or_default();
        let digits = number.split(|c: char| !c.is_ascii_digit()).next();
        let major = digits.and_then(|digits| digits.parse().ok());
        let major = major.with_context(|| format!("{version:?} names no version"))?;
        let dir = dir.to_owned();
        Ok(Binaries { dir, version, major })
    }

    /// Path of one program: in [`Binaries::dir`], otherwise on `PATH` (Debian keeps wrappers there).
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let own = Some(self.dir.join(name)).filter(|file| file.is_file());
        own.or_else(|| on_path(name)).with_context(|| {
            let (dir, major) = (self.dir.display(), self.major);
            format!("{name} is neither in {dir} nor on PATH; `apt-get install postgresql-{major}` has it")
        })
    }
}

/// Folders that may hold PostgreSQL's programs, best first, possibly twice.
fn candidate_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(dir) = stdout(Command::new("pg_config").arg("--bindir")) {
        folders.push(PathBuf::from(dir));
    }
    let real = on_path("initdb").and_then(|path| fs::canonicalize(path).ok());
    folders.extend(real.and_then(|path| path.parent().map(Path::to_owned)));
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut majors: Vec<(u32, PathBuf)> = debian
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    folders.extend(majors.into_iter().map(|(_, dir)| dir));
    folders.push(PathBuf::from("/usr/local/pgsql/bin"));
    folders.push(PathBuf::from(format!("/opt/homebrew/opt/postgresql@{SUPPORTED_MAJOR}/bin")));
    folders.push(PathBuf::from("/opt/homebrew/bin"));
    folders
}

/// The first file of this name on `PATH`.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

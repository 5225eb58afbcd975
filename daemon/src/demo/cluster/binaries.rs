//! Finds PostgreSQL's programs on this machine: installed ones, and those that `.ci/fetch-postgres` put beside
//! the build. It must never install or download anything: where they are missing, the error says how to get them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use connectors::postgres::version::SUPPORTED;

use super::stdout;

/// Where PostgreSQL's programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Folder that holds `initdb` and `postgres`.
    pub dir: PathBuf,
    /// What `postgres --version` says, for example `postgres (PostgreSQL) 15.18`.
    pub version: String,
    /// Major version, one of [`SUPPORTED`].
    pub major: u32,
}

impl Binaries {
    /// Looks at `PGBIN` (and then nowhere else), `pg_config --bindir`, `PATH`, the folders of packages, and what
    /// was fetched. Takes the first of a supported version. The error says what to install.
    pub fn find() -> Result<Binaries> {
        if let Some(dir) = env::var_os("PGBIN") {
            let found = Binaries::in_folder(Path::new(&dir)).context("use PGBIN from the environment")?;
            let (first, last) = (SUPPORTED.start(), SUPPORTED.end());
            ensure!(found.supported(), "PGBIN holds {}; PostgreSQL {first} to {last} are supported", found.version);
            return Ok(found);
        }
        let folders = installed_folders().into_iter().chain(SUPPORTED.rev().flat_map(fetched_folders));
        let mut found = folders.filter_map(|dir| Binaries::in_folder(&dir).ok());
        found.find(Binaries::supported).context(
            "PostgreSQL's programs (initdb, postgres) were not found; install them with \
             `apt-get install postgresql` (Debian, Ubuntu), or set PGBIN to the folder that holds them",
        )
    }

    /// Programs of exactly this major version: `PGBIN` where it is that, then what is installed, then what was
    /// fetched.
    pub fn of(major: u32) -> Result<Binaries> {
        let own = env::var_os("PGBIN").map(PathBuf::from);
        let folders = own.into_iter().chain(installed_folders()).chain(fetched_folders(major));
        let mut found = folders.filter_map(|dir| Binaries::in_folder(&dir).ok());
        found.find(|found| found.major == major).with_context(|| {
            format!("PostgreSQL {major} is neither installed nor fetched: run `sh .ci/fetch-postgres {major}`")
        })
    }

    fn supported(&self) -> bool {
        SUPPORTED.contains(&self.major)
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

    /// These programs where other users can run them: fetched ones may lie in a folder that only root passes, and
    /// are then copied into `dir`.
    pub(super) fn within_reach(&self, dir: &Path) -> Result<Binaries> {
        let shut = |dir: &Path| fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o001 == 0);
        let root = self.dir.parent().filter(|_| self.dir.ancestors().any(shut));
        let Some(root) = root else { return Ok(self.clone()) };
        let copy = dir.join("postgresql");
        stdout(Command::new("cp").arg("-R").arg(root).arg(&copy)).context("copy PostgreSQL's programs")?;
        Ok(Binaries { dir: copy.join("bin"), ..self.clone() })
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

/// Folders where packages put PostgreSQL's programs, best first, possibly twice.
fn installed_folders() -> Vec<PathBuf> {
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
    for major in SUPPORTED.rev() {
        folders.push(PathBuf::from(format!("/usr/pgsql-{major}/bin")));
        folders.push(PathBuf::from(format!("/opt/homebrew/opt/postgresql@{major}/bin")));
    }
    folders.push(PathBuf::from("/opt/homebrew/bin"));
    folders
}

/// Where `.ci/fetch-postgres` puts a version: `postgresql/MAJOR` in the build's folder, which this program (in
/// `release`) or this test (in `release/deps`) lies in.
fn fetched_folders(major: u32) -> Vec<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    program.ancestors().skip(2).take(2).map(|dir| dir.join(format!("postgresql/{major}/bin"))).collect()
}

/// The first file of this name on `PATH`.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

//! The folder of one run, and the sweep of folders whose process was killed. It must never signal a process
//! or remove a folder that this program did not make: stale ones are known by name, owner, dead creator and
//! command line together.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use anyhow::{Context, Result, ensure};

use super::{POLL, signal, stdout};

/// Folders of ours are named by this, the creator's pid, and a number.
const FOLDER_PREFIX: &str = "carveout-";
/// Names of folders that outlive their process (`CARVEOUT_KEEP`) start like this: the sweep leaves them.
const KEPT_PREFIX: &str = "kept-carveout-";
/// Longest wait for a process of a stale folder to end.
const STALE_DEADLINE: Duration = Duration::from_secs(15);

/// A folder under the system's temporary one that clusters, logs and configurations of one run live in.
/// Goes with its contents on drop, unless the environment has `CARVEOUT_KEEP`; declare it *after* the
/// clusters inside it, so that it is dropped last.
#[derive(Debug)]
pub struct ScratchFolder {
    path: PathBuf,
}

impl ScratchFolder {
    /// Sweeps what killed processes left, then makes a folder that an unprivileged user can pass through.
    pub fn create() -> Result<ScratchFolder> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if let Err(error) = sweep_stale() {
            eprintln!("some folders of processes that are gone stay: {error:#}");
        }
        let prefix = if keep() { KEPT_PREFIX } else { FOLDER_PREFIX };
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("{prefix}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.with_context(|| format!("create {}", path.display()))?,
            }
            fs::set_permissions(&path, PermissionsExt::from_mode(0o711)).context("open the folder")?;
            return Ok(ScratchFolder { path });
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if keep() {
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// Ends the servers of folders whose creator is gone (killed with -9), and removes those folders. Only what
/// our own user made is looked at. A `<name>.pid` file beside the clusters is treated like a server's.
pub fn sweep_stale() -> Result<()> {
    let own_uid = own_uid()?;
    let temporary = fs::read_dir(env::temp_dir()).context("read the temporary folder")?;
    for entry in temporary.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let digits = name.strip_prefix(FOLDER_PREFIX).and_then(|rest| rest.split('-').next());
        let Some(creator) = digits.and_then(|digits| digits.parse().ok()) else {
            continue;
        };
        // DirEntry::metadata does not follow a symbolic link, so nobody can point us elsewhere.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() && metadata.uid() == own_uid && command_line(creator).is_none() {
            end_processes(&entry.path())?;
            // Another process may be sweeping the same folder; what is left is found again next time.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
    Ok(())
}

/// Ends the processes whose pid files stand in a stale folder, if their command lines still name it.
fn end_processes(folder: &Path) -> Result<()> {
    let own = folder.to_string_lossy().into_owned() + "/";
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let server = entry.path().join("data/postmaster.pid");
        // A server stops at once by QUIT; of other programs only KILL is known to end them.
        let (file, name) = if server.is_file() { (server, "QUIT") } else { (entry.path(), "KILL") };
        let is_pid_file = file.extension().is_some_and(|end| end == "pid");
        let Some(pid) = pid_file(&file).filter(|_| is_pid_file) else {
            continue;
        };
        let ours = || command_line(pid).is_some_and(|line| line.contains(&own));
        if ours() {
            // It may end between the look and the signal: only its staying counts.
            signal(pid, name).ok();
            let deadline = Instant::now() + STALE_DEADLINE;
            while ours() {
                ensure!(Instant::now() < deadline, "process {pid} of {own} does not end");
                thread::sleep(POLL);
            }
        }
    }
    Ok(())
}

/// The process that a pid file's first line names.
fn pid_file(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Arguments of a living process, joined by spaces; none when there is no such process.
fn command_line(pid: u32) -> Option<String> {
    if Path::new("/proc/self/cmdline").exists() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        return Some(String::from_utf8_lossy(&line).replace('\0', " "));
    }
    stdout(Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()])).ok()
}

pub(super) fn keep() -> bool {
    env::var_os("CARVEOUT_KEEP").is_some()
}

pub(super) fn own_uid() -> Result<u32> {
    let uid = stdout(Command::new("id").arg("-u"))?;
    uid.parse().context("read the output of id -u")
}

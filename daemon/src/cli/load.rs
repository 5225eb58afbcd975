//! Reading the configuration file, and a look at the files that hold its secrets. Relative paths are
//! relative to the working directory. A secret must never come into an error.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use connectors::postgres::password;
use schemas::config::Config;

use super::exit::{Exit, Failure};

/// The longest configuration file that is read, in bytes.
const FILE_LIMIT_BYTES: u64 = 4 << 20;

/// The configuration, with files that hold its passwords: for those who connect to databases.
pub fn load(path: &Path) -> Result<Config, Failure> {
    let config = read(path)?;
    check_passwords(&config)?;
    Ok(config)
}

/// The configuration without what lies in other files: for those who only ask the daemon.
pub fn read(path: &Path) -> Result<Config, Failure> {
    let shown = path.display().to_string();
    let text = text(path).map_err(|error| {
        refuse(
            &shown,
            format!("cannot read the configuration {shown}: {error}"),
            "name the configuration file with -c FILE",
        )
    })?;
    let environment = |name: &str| std::env::var(name).ok();
    Config::parse(&text, &environment).map_err(|error| {
        let said = error.to_string();
        let message = match error.place() {
            // As compilers write it, so that editors find the place.
            Some(at) => {
                let place = format!("line {}, column {}: ", at.line, at.column);
                format!("{shown}:{}:{}: {}", at.line, at.column, said.strip_prefix(&place).unwrap_or(&said))
            }
            None => format!("{shown}: {said}"),
        };
        refuse(&shown, message, "docs/configuration.md describes every key")
    })
}

/// Each `password_file` can be used now. It is read again at every login.
pub fn check_passwords(config: &Config) -> Result<(), Failure> {
    let targets = &config.tenant_strategy.database_config.password_file;
    for (key, file) in
        [("source.password_file", &config.source.password_file), ("database_config.password_file", targets)]
    {
        if let Some(Err(why)) = file.as_deref().map(password::read) {
            return Err(refuse(key, format!("{key}: {why}"), "the file holds the password and nothing else"));
        }
    }
    Ok(())
}

fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_LIMIT_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn refuse(object: &str, message: String, next: &str) -> Failure {
    Failure::new(Exit::Usage, "configuration", object, message, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::url::PgUrl;
    use std::fs;
    use std::path::PathBuf;

    /// A folder of its own, with a configuration in it.
    fn scene(name: &str, yaml: &str) -> (PathBuf, PathBuf) {
        let folder = std::env::temp_dir().join(format!("carveout-load-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("carveout.yaml");
        fs::write(&path, yaml.replace("FOLDER", &folder.display().to_string())).unwrap();
        (folder, path)
    }

    #[test]
    fn passwords_come_from_their_files_and_only_where_there_is_none() {
        let (folder, path) = scene(
            "passwords",
            "source: {url: 'postgresql://a@h/d', password_file: FOLDER/one}\ntenancy: {key: t}\ntenant_strategy:\n  \
             database_config: {tenant_database_pattern: 'postgresql://a@h/d_{tenant}', admin_url: 'postgresql://b:own@h/d', password_file: FOLDER/two}\n",
        );
        fs::write(folder.join("one"), "first \n").unwrap();
        fs::write(folder.join("two"), "second\r\n").unwrap();
        let config = load(&path).unwrap();
        let exposed = |url: &PgUrl| password::of(url).unwrap().unwrap().expose().to_owned();
        let targets = &config.tenant_strategy.database_config;
        assert_eq!(exposed(&config.source.url), "first ");
        assert_eq!(exposed(targets.tenant_database_pattern.as_ref().unwrap()), "second");
        assert_eq!(exposed(targets.admin_url.as_ref().unwrap()), "own");
        fs::write(folder.join("one"), "rotated\n").unwrap();
        assert_eq!(exposed(&config.source.url), "rotated");
        fs::write(folder.join("two"), "\n").unwrap();
        let failure = load(&path).unwrap_err();
        assert!(failure.exit == Exit::Usage && failure.fault.message.contains("is empty"), "{failure:?}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let (folder, path) =
            scene("mistake", "source:\n  url: postgresql://a@h/d\ntenancy: {key: t}\nhttp: {listen: nowhere}\n");
        let failure = read(&path).unwrap_err();
        let start = format!("{}:4:", path.display());
        assert!(failure.exit == Exit::Usage && failure.fault.message.starts_with(&start), "{failure:?}");
        assert!(!failure.fault.message.contains("line 4"), "{failure:?}");
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(read(&path).err().map(|failure| failure.exit), Some(Exit::Usage));
    }
}

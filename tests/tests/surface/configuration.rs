//! Mistakes in the configuration and on the command line; no server takes part.

use anyhow::{Result, ensure};
use daemon::demo::cluster::{ScratchFolder, free_port};

use super::run;

/// What is wrong, and where it is said to be: line, column, and words.
const MISTAKES: [(&str, &str, &str); 8] = [
    ("limits: {memory: 1GiB, memry: 1}\n", ":3:24:", "limits.memry"),
    ("limits:\n  copy_parallel: many\n", ":4:18:", "limits.copy_parallel"),
    ("auto_start: perhaps\n", ":3:13:", "neither true nor false"),
    ("http: {listen: everywhere}\n", ":3:16:", "http.listen"),
    ("tenant_strategy:\n  tenant_overrides:\n    \"7\": datbase\n", ":5:10:", "datbase"),
    ("tenant_strategy: {database_config: {tenant_schema_pattern: shop}}\n", ":3:60:", "{tenant}"),
    ("log: {level: \"${CARVEOUT_TEST_UNSET}\"}\n", ":3:14:", "CARVEOUT_TEST_UNSET"),
    ("log: {level: info\n", ":", "yaml"),
];

/// INTERFACE: every mistake is named with file, line, column and key; the exit code is 2; every command that
/// reads the file says the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_configuration_is_named_with_line_and_column() -> Result<()> {
    let folder = ScratchFolder::create()?;
    let path = folder.path().join("carveout.yaml");
    for (lines, place, words) in MISTAKES {
        std::fs::write(
            &path,
            format!("source: {{url: \"postgresql://me:c4nary@nowhere.invalid/shop\"}}\ntenancy: {{key: bid}}\n{lines}"),
        )?;
        for command in [&["check"][..], &["run"], &["status"], &["move", "7", "--to", "schema"]] {
            let said = run(&path, command).await?;
            said.assert(2, &[&format!("{}{place}", path.display()), words])?;
            ensure!(!format!("{said:?}").contains("c4nary"), "{said:#?}");
        }
    }
    run(&folder.path().join("missing.yaml"), &["check"]).await?.assert(2, &["missing.yaml", "-c FILE"])
}

/// INTERFACE: exit code 2 for wrong usage, 3 where nobody answers; commands and options of later versions are
/// refused as such.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_and_absent_daemons_have_their_exit_codes() -> Result<()> {
    let folder = ScratchFolder::create()?;
    let path = folder.path().join("carveout.yaml");
    let (port, token) = (free_port()?, folder.path().join("token"));
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n")?;
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    std::fs::write(
        &path,
        format!(
            "source: {{url: \"postgresql://me@127.0.0.1:{}/shop?sslmode=disable\"}}\ntenancy: {{key: bid}}\n\
             state_dir: \"{}/state\"\nhttp: {{listen: \"127.0.0.1:{port}\", token_file: \"{}\"}}\n",
            free_port()?,
            folder.path().display(),
            token.display(),
        ),
    )?;
    for args in
        [&["mvoe", "7"][..], &["move"], &["move", "7", "--to", "mars"], &["verify", ""], &["check", "--output", "xml"]]
    {
        run(&path, args).await?.assert(2, &[])?;
    }
    for target in ["postgresql://u:hunter2@eu/x", "postgresql://u@eu/x?password=hunter2", "eu:hunter2@x"] {
        let said = run(&path, &["move", "7", "--to", "database", "--target", target]).await?;
        said.assert(2, &["--target-password-file"])?;
        anyhow::ensure!(!format!("{said:?}").contains("hunter2"), "{said:?}");
    }
    run(&path, &["move", "7", "--target-password-file", "x"]).await?.assert(2, &["--target"])?;
    for later in ["assess", "apply"] {
        run(&path, &[later, "7"]).await?.assert(2, &[later, "not in this version"])?;
    }
    for args in
        [&["status"][..], &["status", "7"], &["move", "7", "--to", "schema"], &["verify", "7"], &["cancel", "7"]]
    {
        run(&path, args).await?.assert(3, &[&format!("127.0.0.1:{port}"), "carveout run"])?;
    }
    for args in [&["check"][..], &["prepare"], &["run"]] {
        run(&path, args).await?.assert(3, &["127.0.0.1"])?;
    }
    for args in [&["--help"][..], &["move", "--help"], &["--version"], &["completions", "bash"]] {
        run(&path, args).await?.assert(0, &["carveout"])?;
    }
    Ok(())
}

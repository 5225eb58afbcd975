//! TLS as `sslmode` asks for it, on both kinds of connection: certificates right and wrong, a login bound to the
//! channel, and never an open connection where a closed one was asked for.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{Auth, ClusterOptions, StopMode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair, date_time_ymd};
use tests::daemon::Daemon;
use tests::scene::{Configuration, Scene};

use crate::carve::phase;
use crate::surface::{Desk, TABLES, run};

const PASSWORD: &str = "over-tls";

/// Makes certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Ok(Authority(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key for these names, valid up to the end of that year.
    fn issue(&self, names: &[&str], year: i32) -> Result<(String, String)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.sign(CertificateParams::new(names)?, year)
    }

    /// The same for a role: its name is the certificate's common name.
    fn issue_to(&self, role: &str, year: i32) -> Result<(String, String)> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, role);
        self.sign(params, year)
    }

    fn sign(&self, mut params: CertificateParams, year: i32) -> Result<(String, String)> {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate()?;
        let issuer: &Issuer<'static, KeyPair> = &self.0;
        Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
    }
}

/// A desk that asks for passwords, with `secret` beside its configuration.
async fn desk() -> Result<Desk> {
    let options = ClusterOptions { auth: Auth::Scram(PASSWORD.to_owned()), ..ClusterOptions::default() };
    let scene = Scene::single(options).await?;
    let source = scene.source_client().await?;
    source.batch_execute(TABLES).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, text.replace("postgres@", &format!("postgres:{PASSWORD}@")))?;
    Ok(Desk { source, config, scene })
}

/// Gives the server this certificate, or takes TLS away, and starts it again.
async fn serve(desk: &mut Desk, certificate: Option<&(String, String)>) -> Result<()> {
    if let Some((certificate, key)) = certificate {
        for (file, content) in [("server.crt", certificate), ("server.key", key)] {
            let object = "SELECT lo_from_bytea(0, convert_to($1, 'UTF8'))";
            let object: u32 = desk.source.query_one(object, &[content]).await?.get(0);
            desk.source.execute("SELECT lo_export($1, $2)", &[&object, &file]).await.context("write the file")?;
        }
        desk.sql("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; chmod 600 server.key'").await?;
    }
    desk.sql(&format!("ALTER SYSTEM SET ssl = {}", if certificate.is_some() { "on" } else { "off" })).await?;
    desk.scene.source.stop(StopMode::Fast)?;
    desk.scene.source.start_again()?;
    desk.source = desk.scene.source_client().await?;
    Ok(())
}

/// The configuration with other parameters behind both URLs' question marks, and another host.
fn reach(desk: &Desk, text: &str, host: &str, parameters: &str) -> Result<()> {
    let text = text.replace("sslmode=disable", parameters).replace("127.0.0.1:", &format!("{host}:"));
    // The daemon's own address stays.
    let text = text.replace(&format!("listen: \"{host}:"), "listen: \"127.0.0.1:");
    Ok(std::fs::write(&desk.config, text)?)
}

/// N03: ten certificates and settings that are wrong, and those that are right, each told apart in words.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_right_and_wrong_are_told_apart() -> Result<()> {
    let mut desk = desk().await?;
    let text = std::fs::read_to_string(&desk.config)?;
    let (ours, theirs) = (Authority::new("ours")?, Authority::new("theirs")?);
    let file = |name: &str, content: String| -> Result<String> {
        let path = desk.scene.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let (root, empty) = (file("root.crt", ours.pem())?, file("empty.crt", String::new())?);
    let local = ["localhost", "127.0.0.1"];
    let good = ours.issue(&local, 2090)?;
    let (elsewhere, expired) = (ours.issue(&["db.example.com"], 2090)?, ours.issue(&local, 2021)?);
    let foreign = theirs.issue(&local, 2090)?;
    let own = {
        let key = KeyPair::generate()?;
        let names = local.map(str::to_owned).to_vec();
        (CertificateParams::new(names)?.self_signed(&key)?.pem(), key.serialize_pem())
    };
    let full = format!("sslmode=verify-full&sslrootcert={root}");
    let ca = format!("sslmode=verify-ca&sslrootcert={root}");
    const FINE: &str = "pg_create_logical_replication_slot";
    let cases = [
        ("good", Some(&good), "localhost", full.clone(), 1, FINE),
        ("good, by address", Some(&good), "127.0.0.1", full.clone(), 1, FINE),
        ("good, bound", Some(&good), "localhost", format!("{full}&channel_binding=require"), 1, FINE),
        (
            "system's authorities",
            Some(&good),
            "localhost",
            "sslmode=verify-full&sslrootcert=system".into(),
            2,
            "sslrootcert",
        ),
        (
            "no such root file",
            Some(&good),
            "localhost",
            "sslmode=verify-full&sslrootcert=/nowhere.crt".into(),
            2,
            "/nowhere.crt",
        ),
        (
            "empty root file",
            Some(&good),
            "localhost",
            format!("sslmode=verify-full&sslrootcert={empty}"),
            2,
            "no authority",
        ),
        ("prefer", Some(&good), "localhost", "sslmode=prefer".into(), 2, "sslmode=prefer may end without TLS"),
        ("other host", Some(&elsewhere), "localhost", full.clone(), 2, "not valid for name"),
        ("other host, any name", Some(&elsewhere), "localhost", ca.clone(), 1, FINE),
        ("expired", Some(&expired), "localhost", full.clone(), 2, "expired"),
        ("expired, any name", Some(&expired), "localhost", ca.clone(), 2, "expired"),
        ("unknown authority", Some(&foreign), "localhost", full.clone(), 2, "UnknownIssuer"),
        ("unknown authority, any name", Some(&foreign), "localhost", ca.clone(), 2, "UnknownIssuer"),
        ("unknown authority, require", Some(&foreign), "localhost", "sslmode=require".into(), 1, FINE),
        (
            "unknown authority, require with a root",
            Some(&foreign),
            "localhost",
            format!("sslmode=require&sslrootcert={root}"),
            2,
            "UnknownIssuer",
        ),
        ("signed by itself", Some(&own), "localhost", full.clone(), 2, "UnknownIssuer"),
        ("no TLS", None, "localhost", full.clone(), 2, "does not offer TLS"),
        ("no TLS, require", None, "localhost", "sslmode=require".into(), 2, "does not offer TLS"),
        (
            "no TLS, bound",
            None,
            "localhost",
            "sslmode=disable&channel_binding=require".into(),
            2,
            "channel_binding=require needs TLS",
        ),
        ("no TLS, disable", None, "localhost", "sslmode=disable".into(), 1, FINE),
    ];
    let mut served: Option<Option<&(String, String)>> = None;
    for (case, certificate, host, parameters, code, words) in &cases {
        if served != Some(*certificate) {
            serve(&mut desk, *certificate).await.context(*case)?;
            served = Some(*certificate);
        }
        reach(&desk, &text, host, parameters)?;
        let said = run(&desk.config, &["check"]).await?;
        said.assert(*code, &[words]).with_context(|| format!("{case}: check"))?;
        ensure!(!format!("{said:?}").contains(PASSWORD), "{said:#?}");
        if *code != 1 {
            // The replication connection is ours, and says the same.
            let said = run(&desk.config, &["run"]).await?;
            ensure!([1, 2].map(Some).contains(&said.code), "{case}: {said:#?}");
            said.assert(said.code.unwrap_or(0), &[words]).with_context(|| format!("{case}: run"))?;
        }
    }
    Ok(())
}

/// N03, N06: a whole move with every connection over TLS and bound to it; nothing of ours speaks openly, and a
/// server that takes TLS away is not followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_over_tls_has_no_open_connection() -> Result<()> {
    let mut desk = desk().await?;
    let text = std::fs::read_to_string(&desk.config)?;
    let ours = Authority::new("ours")?;
    let root = desk.scene.path().join("root.crt");
    std::fs::write(&root, ours.pem())?;
    serve(&mut desk, Some(&ours.issue(&["localhost"], 2090)?)).await?;
    let parameters = format!("sslmode=verify-full&sslrootcert={}&channel_binding=require", root.display());
    reach(&desk, &text, "localhost", &parameters)?;
    let mut daemon = desk.work().await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        desk.carve(&daemon, tenant, to).await?;
        desk.sql(
            "UPDATE orders SET note = 'over TLS'; INSERT INTO events SELECT n, 'more' FROM generate_series(0, 4) n",
        )
        .await?;
        desk.assert_equal(&daemon, tenant, to).await?;
    }
    let open = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name LIKE 'carveout%' AND NOT s.ssl";
    ensure!(desk.ask(open).await? == "0", "an open connection");
    let closed = open.replace("NOT s.ssl", "s.ssl");
    ensure!(desk.ask(&closed).await?.parse::<u32>()? >= 3, "too few connections over TLS");
    // Without TLS on the other side: not followed, and the stream goes on when it is back.
    serve(&mut desk, None).await?;
    let fault = tests::wait::until("a stream that is away", crate::settle::SOON, async || {
        let ready = daemon.get("/readyz").await?;
        ensure!(ready.status == 503 && daemon.log()?.contains("does not offer TLS"), "{ready:?}");
        Ok(ready)
    });
    fault.await?;
    let open = desk.ask("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'carveout%'").await?;
    ensure!(open == "0", "{open} open connections");
    daemon.terminate().await?;
    serve(&mut desk, Some(&ours.issue(&["localhost"], 2090)?)).await?;
    daemon = Daemon::start(&desk.config).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    desk.assert_equal(&daemon, "1", "schema").await
}

/// Writes a client's certificate and key as libpq wants them; the URL's parameters for them.
fn client_files(desk: &Desk, name: &str, (certificate, key): &(String, String)) -> Result<String> {
    let [crt, own] = ["crt", "key"].map(|kind| desk.scene.path().join(format!("{name}.{kind}")));
    std::fs::write(&crt, certificate)?;
    std::fs::write(&own, key)?;
    std::fs::set_permissions(&own, PermissionsExt::from_mode(0o600))?;
    Ok(format!("&sslcert={}&sslkey={}", crt.display(), own.display()))
}

/// Issue 4: a server that lets in nobody without a certificate: a whole move with one, renewed while the daemon
/// runs; a wrong one, an expired one, none and one that is not taken are told apart in words.
#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_right_and_wrong_are_told_apart() -> Result<()> {
    let mut desk = desk().await?;
    let text = std::fs::read_to_string(&desk.config)?.replace(&format!(":{PASSWORD}@"), "@");
    let (ours, theirs) = (Authority::new("ours")?, Authority::new("theirs")?);
    let root = desk.scene.path().join("root.crt");
    std::fs::write(&root, ours.pem())?;
    let object = "SELECT lo_from_bytea(0, convert_to($1, 'UTF8'))";
    for (file, content) in [
        ("clients.crt", ours.pem()),
        // The test's own session has no TLS.
        ("pg_hba.conf", "hostnossl all postgres 127.0.0.1/32 scram-sha-256\nhostssl all all all cert\n".to_owned()),
    ] {
        let object: u32 = desk.source.query_one(object, &[&content]).await?.get(0);
        desk.source.execute("SELECT lo_export($1, $2)", &[&object, &file]).await.context("write the file")?;
    }
    desk.sql("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").await?;
    serve(&mut desk, Some(&ours.issue(&["localhost"], 2090)?)).await?;
    let full = format!("sslmode=verify-full&sslrootcert={}", root.display());
    let good = client_files(&desk, "good", &ours.issue_to("postgres", 2090)?)?;
    let other = client_files(&desk, "other", &ours.issue_to("somebody", 2090)?)?;
    let expired = client_files(&desk, "expired", &ours.issue_to("postgres", 2021)?)?;
    let foreign = client_files(&desk, "foreign", &theirs.issue_to("postgres", 2090)?)?;
    let (certificate, key) = (ours.issue_to("postgres", 2090)?.0, ours.issue_to("postgres", 2090)?.1);
    let mixed = client_files(&desk, "mixed", &(certificate.clone(), key.clone()))?;
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n".to_owned();
    let locked = client_files(&desk, "locked", &(certificate.clone(), locked))?;
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nc2VjcmV0\n-----END RSA PRIVATE KEY-----\n";
    let old = client_files(&desk, "old", &(certificate.clone(), old.to_owned()))?;
    let empty = client_files(&desk, "empty", &(String::new(), key.clone()))?;
    let open = client_files(&desk, "open", &(certificate, key))?;
    std::fs::set_permissions(desk.scene.path().join("open.key"), PermissionsExt::from_mode(0o644))?;
    const FINE: &str = "pg_create_logical_replication_slot";
    let cases = [
        ("good", format!("{full}{good}"), 1, FINE),
        ("none", full.clone(), 3, "requires a valid client certificate"),
        ("another role's", format!("{full}{other}"), 3, "certificate authentication failed for user \"postgres\""),
        ("expired", format!("{full}{expired}"), 3, "the client's certificate (sslcert): it has expired"),
        ("unknown authority", format!("{full}{foreign}"), 3, "does not know the authority that issued it"),
        ("another's key", format!("{full}{mixed}"), 3, "the key in sslkey is not that of the certificate"),
        ("key with a password", format!("{full}{locked}"), 3, "locked.key: it is protected by a password"),
        ("key with a password, old form", format!("{full}{old}"), 3, "old.key: it is protected by a password"),
        ("no certificate in it", format!("{full}{empty}"), 3, "empty.crt: there is no certificate in PEM in it"),
        ("key for all to read", format!("{full}{open}"), 3, "open.key: others may read it (mode 0644)"),
        (
            "no such file",
            format!("{full}&sslcert=/nowhere.crt&sslkey=/nowhere.key"),
            3,
            "cannot use sslcert /nowhere.crt",
        ),
        ("no key", format!("{full}&sslcert=/nowhere.crt"), 2, "sslcert and sslkey belong together"),
        ("without TLS", format!("sslmode=disable{good}"), 2, "sslcert needs TLS"),
    ];
    for (case, parameters, code, words) in &cases {
        reach(&desk, &text, "localhost", parameters)?;
        run(&desk.config, &["check"]).await?.assert(*code, &[words]).with_context(|| format!("{case}: check"))?;
        if *code != 1 {
            // The replication connection is ours, and says the same.
            let said = run(&desk.config, &["run"]).await?;
            ensure!([1, 2, 3].map(Some).contains(&said.code), "{case}: {said:#?}");
            said.assert(said.code.unwrap_or(0), &[words]).with_context(|| format!("{case}: run"))?;
        }
    }
    reach(&desk, &text, "localhost", &format!("{full}{good}"))?;
    let daemon = desk.work().await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        desk.carve(&daemon, tenant, to).await?;
        desk.assert_equal(&daemon, tenant, to).await?;
    }
    let named = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                 WHERE a.application_name LIKE 'carveout%' AND s.client_dn = '/CN=postgres'";
    ensure!(desk.ask(named).await?.parse::<u32>()? >= 3, "too few connections with a certificate");
    // One that has expired is tried again until it was renewed.
    let still_good = ours.issue_to("postgres", 2090)?;
    client_files(&desk, "good", &ours.issue_to("postgres", 2021)?)?;
    desk.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'carveout%'").await?;
    tests::wait::until("a stream that is refused", crate::settle::SOON, async || {
        let fault = daemon.status().await?["source"]["fault"].clone();
        ensure!(
            fault["code"] == "source_refused"
                && fault["message"].as_str().is_some_and(|why| why.contains("it has expired")),
            "{fault}"
        );
        Ok(())
    })
    .await?;
    desk.sql("INSERT INTO orders SELECT n % 5, 3000 + n, 'meanwhile' FROM generate_series(1, 50) n").await?;
    client_files(&desk, "good", &still_good)?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        phase(&daemon, tenant, &["streaming"]).await?;
        desk.assert_equal(&daemon, tenant, to).await?;
    }
    Ok(())
}

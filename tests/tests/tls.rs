//! TLS as `sslmode` asks for it, on both kinds of connection: certificates right and wrong, a login bound to the
//! channel, and never an open connection where a closed one was asked for.

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
        let mut params = CertificateParams::new(names)?;
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
        (
            "client certificate",
            Some(&good),
            "localhost",
            format!("{full}&sslcert=c&sslkey=k"),
            2,
            "client certificates",
        ),
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

//! Encrypted connections: certificates of an authority of one's own, and what clients say about those that are wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::support::*;

/// Makes certificates with `openssl`.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let authority = Self { dir: tempfile::tempdir().expect("a directory") };
        let mut request = authority.openssl(&["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        request.args(["-nodes", "-days", "3", "-subj", "/CN=authority"]);
        run(request.arg("-keyout").arg(authority.path("ca.key")).arg("-out").arg(authority.certificate()));
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The authority's own certificate.
    fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    fn openssl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    /// Issues a certificate for a name that is valid between two times (`YYYYMMDDHHMMSSZ`), as the files `tls.pem` and
    /// `tls.key`.
    fn issue(&self, name: &str, from: &str, until: &str) {
        let mut request = self.openssl(&["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        run(request.args(["-subj", "/CN=mirror", "-keyout", "tls.key", "-out", "tls.csr"]));
        let config = format!(
            "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\n\
             policy = any\nunique_subject = no\nx509_extensions = names\n[any]\ncommonName = supplied\n[names]\n\
             subjectAltName = {name}\n"
        );
        std::fs::write(self.path("ca.conf"), config).expect("ca.conf");
        std::fs::write(self.path("index"), "").expect("index");
        std::fs::write(self.path("serial"), "1000").expect("serial");
        let mut sign =
            self.openssl(&["ca", "-batch", "-notext", "-config", "ca.conf", "-startdate", from, "-enddate", until]);
        run(sign.args(["-cert", "ca.pem", "-keyfile", "ca.key", "-in", "tls.csr", "-out", "tls.pem"]));
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const PAST: &str = "20200101000000Z";
const FUTURE: &str = "20490101000000Z";

/// Serves the tree of a world within TLS alone.
fn serve(world: &World, authority: &Authority) -> Server {
    let config = world.path("mirror.toml");
    let text = format!(
        "[daemon]\nlisten = []\ntls_listen = '127.0.0.1:0'\ntls_certificate = '{}'\ntls_key = '{}'\nserve_private = true\n\
         [[repository]]\nname = 'repo'\nroot = '{}'\nstore = '{}'\n",
        authority.path("tls.pem").display(),
        authority.path("tls.key").display(),
        world.src().display(),
        world.path("store").display(),
    );
    std::fs::write(&config, text).expect("mirror.toml");
    let mut command = stillmirror(&["serve", "--config"]);
    command.arg(config);
    Server::spawn_on(command, "listening for TLS clients on ")
}

fn pull(world: &World, server: &Server, scheme: &str, ca_file: &Path) -> Output {
    let mut command = stillmirror(&["pull", "--json"]);
    command.arg(format!("{scheme}://{}/repo", server.address)).arg(world.dest());
    command.arg("--store").arg(world.path("dest-store")).arg("--ca-file").arg(ca_file).output().expect("pull runs")
}

#[test]
fn pull_and_list_work_within_tls_and_trust_only_the_given_authority() {
    let (world, authority, other) = (World::with_tree(), Authority::new(), Authority::new());
    world.index();
    authority.issue("IP:127.0.0.1", PAST, FUTURE);
    let server = serve(&world, &authority);
    let output = pull(&world, &server, "stillmirrors", &other.certificate());
    assert_fails(
        &output,
        5,
        &["no secure connection to", "not signed by an authority that is trusted here", "--ca-file"],
    );
    json(&pull(&world, &server, "stillmirrors", &authority.certificate()));
    assert_same_tree(&world.src(), &world.dest());

    let mut list = stillmirror(&["list", &format!("stillmirrors://{}/repo/dists", server.address)]);
    let listed = list.arg("--ca-file").arg(authority.certificate()).output().expect("list runs");
    assert_exit(&listed, 0);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("stable"));

    // Without TLS on a port for it, and the other way round.
    let output = pull(&world, &server, "stillmirror", &authority.certificate());
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let plain = world.serve();
    let output = pull(&world, &plain, "stillmirrors", &authority.certificate());
    assert_fails(&output, 5, &["it does not speak TLS at this port"]);
}

#[test]
fn a_certificate_that_is_expired_or_for_another_name_is_refused_with_the_reason() {
    let (world, authority) = (World::with_tree(), Authority::new());
    world.index();
    for (name, from, until, reason) in [
        ("IP:127.0.0.1", PAST, "20200102000000Z", "its certificate has expired"),
        ("IP:127.0.0.1", "20480101000000Z", FUTURE, "its certificate is not valid yet"),
        ("DNS:mirror.example", PAST, FUTURE, "its certificate is not for this name"),
    ] {
        authority.issue(name, from, until);
        let server = serve(&world, &authority);
        let output = pull(&world, &server, "stillmirrors", &authority.certificate());
        assert_fails(&output, 5, &["no secure connection to", reason]);
        assert!(!world.dest().exists());
    }
}

#[test]
fn a_certificate_is_replaced_at_a_hangup_and_a_wrong_pair_is_named() {
    let (world, authority) = (World::with_tree(), Authority::new());
    world.index();
    authority.issue("IP:127.0.0.1", PAST, "20200102000000Z");
    let server = serve(&world, &authority);
    let hang_up = || run(Command::new("kill").arg("-HUP").arg(server.pid().to_string()));
    let key = std::fs::read(authority.path("tls.key")).expect("tls.key");
    authority.issue("IP:127.0.0.1", PAST, FUTURE);
    let new_key = std::fs::read(authority.path("tls.key")).expect("tls.key");
    std::fs::write(authority.path("tls.key"), key).expect("tls.key");
    hang_up();
    let line = server.logged("does not belong to the certificate");
    assert!(line.contains("tls.key") && line.contains("tls.pem"), "{line}");
    assert_fails(&pull(&world, &server, "stillmirrors", &authority.certificate()), 5, &["has expired"]);
    std::fs::write(authority.path("tls.key"), new_key).expect("tls.key");
    hang_up();
    server.logged("the configuration was reloaded");
    json(&pull(&world, &server, "stillmirrors", &authority.certificate()));
}

#[test]
fn a_file_of_authorities_that_has_none_is_named() {
    let (world, authority) = (World::with_tree(), Authority::new());
    world.index();
    authority.issue("IP:127.0.0.1", PAST, FUTURE);
    let server = serve(&world, &authority);
    for file in [authority.path("tls.key"), authority.path("missing")] {
        let output = pull(&world, &server, "stillmirrors", &file);
        assert_fails(&output, 1, &["cannot use the certificates in", &file.display().to_string()]);
    }
}

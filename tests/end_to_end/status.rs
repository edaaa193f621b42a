//! What operators see: the access log, metrics, the status page and `stillmirror status`. The real `promtool` judges the
//! metrics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::*;

/// A daemon with the repositories `repo`, which is listed, and `secret`, which is not, and with sockets for its status.
struct Observed {
    world: World,
    server: Server,
    /// The address of the socket for metrics and status.
    http: String,
}

/// The answer to an HTTP request.
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Observed {
    fn new() -> Self {
        let world = World::with_tree();
        let mut config = "[daemon]\nlisten = '127.0.0.1:0'\nmetrics_listen = '127.0.0.1:0'\nserve_private = true\n\
                          status_socket = 'status.sock'\n"
            .to_owned();
        for (name, list) in [("repo", true), ("secret", false)] {
            config += &format!(
                "[[repository]]\nname = '{name}'\ncomment = 'a <test>'\nroot = 'src'\nstore = 'store-{name}'\nlist = {list}\n"
            );
        }
        std::fs::write(world.path("mirror.toml"), config).unwrap();
        let mut index = stillmirror(&["index", "--config"]);
        assert_exit(&index.arg(world.path("mirror.toml")).output().unwrap(), 0);
        Self::serve(world)
    }

    fn serve(world: World) -> Self {
        let mut serve = stillmirror(&["serve", "--log", "json", "--config"]);
        serve.arg(world.path("mirror.toml"));
        let mut server = Server::spawn(serve);
        // The rest of the line is JSON.
        server.address.truncate(server.address.find('"').unwrap());
        let line = server.logged("metrics and status at http://");
        let (_, rest) = line.split_once("at http://").unwrap();
        let http = rest.split('/').next().unwrap().to_owned();
        Self { world, server, http }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    fn ask(&self, request: &str) -> Answer {
        let mut socket = TcpStream::connect(&self.http).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A server that has refused the beginning may not take the rest.
        let _ = socket.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Answer { code, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// Returns the metrics: the value of each name with its labels.
    fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.get("/metrics").body;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap())).unwrap())
            .collect()
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).body).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.world.path("status.sock")
    }

    /// Pulls `repo` with the stock client. Returns what is logged of the session.
    fn rsync(&self) -> Value {
        let source = format!("rsync://{}/repo/", self.server.address);
        let output = Command::new("rsync").args(["-aH", &source]).arg(self.world.path("by-rsync")).output().unwrap();
        assert_exit(&output, 0);
        self.session("rsync")
    }

    /// Pulls `repo` with the native client. Returns what is logged of the session.
    fn pull(&self) -> Value {
        self.world.pull(&self.server);
        self.session("native")
    }

    /// Returns the next line of the access log for a session of this dialect.
    fn session(&self, dialect: &str) -> Value {
        let wanted = format!("\"dialect\":\"{dialect}\"");
        let line: Value = serde_json::from_str(&self.server.logged(&wanted)).unwrap();
        assert_eq!(line["target"], "stillmirror::access");
        line["fields"].clone()
    }
}

/// Returns the sum of all values whose name begins and whose labels contain `words`.
fn sum(metrics: &BTreeMap<String, f64>, name: &str, words: &[&str]) -> f64 {
    let is_meant = |key: &str| key.split('{').next() == Some(name) && words.iter().all(|word| key.contains(word));
    metrics.iter().filter(|(key, _)| is_meant(key)).map(|(_, value)| value).sum()
}

#[test]
fn sessions_of_both_dialects_are_logged_with_the_same_fields() {
    let observed = Observed::new();
    let (rsync, native) = (observed.rsync(), observed.pull());
    let names = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&rsync), names(&native));
    for line in [&rsync, &native] {
        assert_eq!((&line["repository"], &line["cause"], &line["exit"]), (&"repo".into(), &"done".into(), &0.into()));
        assert_eq!((&line["generation"], &line["address"]), (&1.into(), &"127.0.0.1".into()));
        assert!(line["bytes_sent"].as_u64() > line["bytes_literal"].as_u64(), "{line}");
        assert!(line["bytes_received"].as_u64() > Some(50) && line["requests"].as_u64() > Some(3), "{line}");
    }
    // One of the files is a hard link to another.
    assert_eq!((&rsync["files"], &rsync["user"]), (&13.into(), &"".into()));
    let denied = Command::new("rsync").arg(format!("rsync://{}/no such", observed.server.address)).output().unwrap();
    assert_exit(&denied, 5);
    let line = observed.session("rsync");
    assert_eq!((&line["cause"], &line["exit"]), (&"unknown_repository".into(), &5.into()));
    assert_eq!((&line["repository"], &line["reason"]), (&"no such".into(), &"Unknown module 'no such'".into()));
}

#[test]
fn metrics_pass_promtool_and_agree_with_the_log_and_the_status() {
    let observed = Observed::new();
    let (rsync, native) = (observed.rsync(), observed.pull());
    let text = observed.get("/metrics");
    assert!(text.head.contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool judges the metrics: install it (tests/prepare)");
    promtool.stdin.take().unwrap().write_all(text.body.as_bytes()).unwrap();
    let judged = promtool.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&judged.stderr), "", "{}", text.body);
    assert_exit(&judged, 0);

    let metrics = observed.metrics();
    let status = observed.json("/status.json");
    for (dialect, line) in [("rsync", &rsync), ("native", &native)] {
        let labels = [format!("dialect=\"{dialect}\"")];
        let total = |name: &str| sum(&metrics, name, &labels.each_ref().map(String::as_str));
        let logged = |name: &str| line[name].as_f64().unwrap();
        assert_eq!(total("stillmirror_sent_bytes_total"), logged("bytes_sent"), "{dialect}");
        assert_eq!(total("stillmirror_sent_bytes_total"), status["sent_bytes"][dialect].as_f64().unwrap());
        assert_eq!(total("stillmirror_received_bytes_total"), logged("bytes_received"), "{dialect}");
        assert_eq!(total("stillmirror_content_bytes_total"), logged("bytes_literal"), "{dialect}");
        assert_eq!(total("stillmirror_connections_ended_total"), 1.0, "{dialect}");
        assert_eq!(total("stillmirror_session_seconds_count"), 1.0, "{dialect}");
        assert_eq!(total("stillmirror_sessions"), 0.0, "{dialect}");
    }
    assert_eq!(sum(&metrics, "stillmirror_sent_files_total", &["rsync", "repo"]), rsync["files"].as_f64().unwrap());
    let repository = |name: &str| metrics[&format!("stillmirror_repository_{name}{{repository=\"repo\"}}")];
    let mirror = &status["mirrors"][0];
    assert_eq!((repository("up"), repository("failed"), repository("generation")), (1.0, 0.0, 1.0));
    assert_eq!(repository("size_bytes"), mirror["bytes"].as_f64().unwrap());
    assert_eq!(repository("published_timestamp_seconds"), mirror["last_update_ts"].as_f64().unwrap());
    let files = metrics["stillmirror_repository_entries{repository=\"repo\",type=\"file\"}"];
    assert_eq!(files, mirror["files"].as_f64().unwrap());
    let traffic = &status["traffic"];
    let in_plot = |kind: &str| traffic[kind].as_array().unwrap().iter().filter_map(Value::as_u64).sum::<u64>();
    assert_eq!(Some(in_plot("rsync")), status["sent_bytes"]["rsync"].as_u64());
    assert_eq!(Some(in_plot("native")), status["sent_bytes"]["native"].as_u64());

    let accept =
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n";
    let open = observed.ask(accept);
    assert!(open.head.contains("application/openmetrics-text") && open.body.ends_with("# EOF\n"), "{}", open.body);
}

#[test]
fn clients_choose_no_labels() {
    let observed = Observed::new();
    for name in ["made-up", "'\"}\\", "x\u{7f}"] {
        let wanted = format!("rsync://{}/{name}/", observed.server.address);
        assert_exit(&Command::new("rsync").arg(wanted).output().unwrap(), 5);
        observed.session("rsync");
    }
    let metrics = observed.metrics();
    assert_eq!(sum(&metrics, "stillmirror_connections_ended_total", &["cause=\"unknown_repository\""]), 3.0);
    let repositories = metrics.keys().filter_map(|key| key.split_once("repository=\"")?.1.split('"').next());
    assert!(repositories.into_iter().all(|name| ["", "repo", "secret"].contains(&name)), "{metrics:?}");
}

#[test]
fn the_status_has_what_mirror_monitors_read_and_hides_what_is_unlisted() {
    let observed = Observed::new();
    let status = observed.json("/status.json");
    let mirrors = status["mirrors"].as_array().unwrap();
    let [mirror] = mirrors.as_slice() else { panic!("{status}") };
    assert_eq!((&mirror["name"], &mirror["status"]), (&"repo".into(), &"success".into()));
    assert!(mirror["last_update"].as_str().is_some_and(|text| text.ends_with(" +0000")), "{mirror}");
    assert_eq!(mirror["size"], "1.8M");
    assert_eq!((&status["ready"], &status["draining"]), (&true.into(), &false.into()));
    let port: u16 = observed.server.address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(status["ports"]["native"], port);
    let page = observed.get("/");
    assert!(page.head.contains("content-security-policy: default-src 'none'; script-src 'sha256-"), "{}", page.head);
    assert!(page.body.starts_with("<!doctype html>") && !page.body.contains("//cdn"), "{}", page.body);
    let asked = stillmirror(&["status", "--json", "--socket"]).arg(observed.socket()).output().unwrap();
    assert_eq!(json(&asked)["mirrors"].as_array().map(Vec::len), Some(2), "the operator sees all");
}

#[test]
fn the_status_command_shows_a_table_and_names_the_socket_if_nobody_answers() {
    let observed = Observed::new();
    observed.rsync();
    assert_eq!(std::fs::metadata(observed.socket()).unwrap().permissions().mode() & 0o777, 0o660);
    let status = || stillmirror(&["status", "--socket"]).arg(observed.socket()).output().unwrap();
    let shown = status();
    assert_exit(&shown, 0);
    let text = String::from_utf8_lossy(&shown.stdout);
    let row = text.lines().find(|line| line.starts_with("repo ")).unwrap();
    assert!(row.contains("success") && row.contains("1.8 MB"), "{text}");
    std::fs::rename(observed.world.path("src"), observed.world.path("moved")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !String::from_utf8_lossy(&status().stdout).contains("repo: cannot open the root") {
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&status().stdout));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(observed.json("/status.json")["mirrors"][0]["error"], Value::Null, "the public sees no paths");
    assert_eq!(observed.json("/status.json")["mirrors"][0]["status"], "failed");
    let nobody = stillmirror(&["status", "--socket", "/nowhere/status.sock"]).output().unwrap();
    assert_fails(
        &nobody,
        10,
        &["cannot connect to /nowhere/status.sock, the status socket of the daemon: No such file"],
    );
    let other = observed.world.path("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    let answer = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read(&mut [0; 4096]);
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
    });
    let strange = stillmirror(&["status", "--socket"]).arg(&other).output().unwrap();
    assert_fails(&strange, 5, &["no status of a stillmirror daemon"]);
    answer.join().unwrap();
}

#[test]
fn a_daemon_that_shuts_down_or_has_nothing_to_serve_is_not_ready() {
    let observed = Observed::new();
    let ready = observed.get("/ready");
    let body: Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!((ready.code, &body["ready"], &body["draining"]), (200, &true.into(), &false.into()));
    let repositories = body["repositories"].as_array().unwrap();
    assert!(repositories.iter().all(|one| one["generation"] == 1 && one["age"].as_i64() >= Some(0)), "{body}");
    // A session that goes on while the daemon drains: a stock client that does not read.
    let mut slow = TcpStream::connect(&observed.server.address).unwrap();
    slow.write_all(b"@RSYNCD: 31.0 md5 md4\nrepo\n").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while observed.json("/status.json")["sessions"]["rsync"] != 1 {
        assert!(Instant::now() < deadline, "the session begins");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(observed.server.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut draining = observed.get("/ready");
    while draining.code == 200 {
        assert!(Instant::now() < deadline, "{}", draining.body);
        draining = observed.get("/ready");
    }
    let body: Value = serde_json::from_str(&draining.body).unwrap();
    assert_eq!((draining.code, &body["ready"], &body["draining"]), (503, &false.into(), &true.into()));
    slow.shutdown(Shutdown::Both).unwrap();

    let observed = Observed::new();
    // The answer comes once everything is open.
    assert_eq!(observed.get("/ready").code, 200);
    for repository in ["repo", "secret"] {
        std::fs::remove_file(observed.world.path(&format!("store-{repository}/current"))).unwrap();
    }
    assert_eq!(observed.get("/ready").code, 200, "what is open is served on");
    let Observed { world, server, .. } = observed;
    drop(server);
    assert_eq!(Observed::serve(world).get("/ready").code, 503);
}

#[test]
fn invalid_requests_get_an_answer_and_cost_others_nothing() {
    let observed = Observed::new();
    assert_eq!(observed.get("/nothing").code, 404);
    let post = observed.ask("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_eq!(post.code, 405);
    assert!(post.head.contains("allow: get, head"), "{}", post.head);
    let head = observed.ask("HEAD /status.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((head.code, head.body.as_str()), (200, ""));
    assert_eq!(observed.ask("\x16\x03\x01 garbage\r\n\r\n").code, 400);
    let endless = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    assert_eq!(observed.ask(&endless).code, 431);
    // Connections that say nothing take places, and less than all of them leave some for others.
    let _silent: Vec<_> = (0..60).map(|_| TcpStream::connect(&observed.http).unwrap()).collect();
    assert_eq!(observed.get("/ready").code, 200);
}

#[test]
fn a_mirror_tells_how_far_behind_its_sender_it_is() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    world.pull(&origin);
    let config = format!(
        "[daemon]\nlisten = '127.0.0.1:0'\nserve_private = true\nstatus_socket = 'mirror.sock'\n[[repository]]\nname = 'repo'\n\
         root = '{}'\nstore = '{}'\n",
        world.dest().display(),
        world.path("dest-store").display()
    );
    std::fs::write(world.path("mirror.toml"), config).unwrap();
    let mut serve = stillmirror(&["serve", "--config"]);
    serve.arg(world.path("mirror.toml"));
    let mirror = Server::spawn(serve);
    let entry = || {
        let asked = stillmirror(&["status", "--json", "--socket"]).arg(world.path("mirror.sock")).output().unwrap();
        json(&asked)["mirrors"][0].clone()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let until = |is_wanted: &dyn Fn(&Value) -> bool| {
        while !is_wanted(&entry()) {
            assert!(Instant::now() < deadline, "{}", entry());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until(&|entry| entry["lag"] == 0 && entry["sender"]["generation"] == 1);
    // Times have seconds.
    std::thread::sleep(Duration::from_millis(1100));
    std::fs::write(world.src().join("README"), "news").unwrap();
    world.index();
    // Pulls that bring nothing new. The first ones may come before the origin serves what was indexed.
    while world.pull_command(&origin).args(["--min-free", "1000TiB"]).output().unwrap().status.code() != Some(11) {
        assert!(Instant::now() < deadline, "the origin serves what was indexed");
    }
    until(&|entry| entry["lag"].as_i64() > Some(0) && entry["sender"]["generation"] == 2);
    let shown = stillmirror(&["status", "--socket"]).arg(world.path("mirror.sock")).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("behind its sender"), "{shown:?}");
    world.pull(&origin);
    until(&|entry| entry["lag"] == 0 && entry["generation"] == 2);
    drop(mirror);
}

#[test]
fn the_alert_rules_pass_promtool_and_name_only_metrics_that_exist() {
    let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for (what, file) in [("check", "stillmirror.rules.yml"), ("test", "stillmirror.rules.test.yml")] {
        let judged =
            Command::new("promtool").args([what, "rules", file]).current_dir(deploy.join("prometheus")).output();
        assert_exit(&judged.expect("promtool judges the rules: install it (tests/prepare)"), 0);
    }
    let dashboard = std::fs::read_to_string(deploy.join("grafana/stillmirror.json")).unwrap();
    let _: Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let rules = std::fs::read_to_string(deploy.join("prometheus/stillmirror.rules.yml")).unwrap();
    let observed = Observed::new();
    observed.rsync();
    let text = observed.get("/metrics").body;
    let known: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let words = [rules, dashboard].concat();
    let words = words.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named = words.filter(|word| word.starts_with("stillmirror_") || word.starts_with("process_"));
    let missing: Vec<_> = named.filter(|name| !known.contains(&name.strip_suffix("_bucket").unwrap_or(name))).collect();
    assert!(missing.is_empty(), "{missing:?} are not in {known:?}");
}

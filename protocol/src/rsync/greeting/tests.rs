use super::*;

fn greeting(version: u32, input: &[u8]) -> Greeting {
    let version = Version::new(version).expect("a version");
    let mut greeting = Greeting::new(GreetingOffer { version, greeted: false, motd: b"" });
    greeting.output();
    greeting.receive(input);
    greeting
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

#[test]
fn the_lower_version_wins_and_a_pre_release_counts_as_the_version_before() {
    for (ours, theirs, number) in [
        (32, "@RSYNCD: 32.0 md5\n", 32),
        (32, "@RSYNCD: 27\n", 27),
        (29, "@RSYNCD: 32.0 md5\n", 29),
        (32, "@RSYNCD: 31.0\n", 31),
        (32, "@RSYNCD: 31.14\n", 30),
        (31, "@RSYNCD: 32.3 md5\n", 31),
        (32, "@RSYNCD: 40.0 sha512\r\n", 32),
    ] {
        let mut greeting = greeting(ours, format!("{theirs}pub\n").as_bytes());
        assert_eq!(greeting.next(), Ok(Some(Event::Module(b"pub".to_vec()))), "{theirs}");
        assert_eq!(greeting.version().number(), number, "{theirs}");
    }
}

#[test]
fn an_invalid_greeting_is_the_clients_fault() {
    let omitted = |what, greeting: &str| Fault::Omitted { what, greeting: greeting.to_owned() };
    for (line, fault) in [
        ("GET / HTTP/1.1\r\n", Fault::Greeting),
        ("@RSYNCD: \n", Fault::Greeting),
        ("@RSYNCD: x\n", Fault::Greeting),
        ("@RSYNCD: 30\n", omitted("subprotocol value", "@RSYNCD: 30")),
        ("@RSYNCD: 32.0\n", omitted("digest name list", "@RSYNCD: 32.0")),
        ("@RSYNCD: 26\n", Fault::Version(26)),
        ("@RSYNCD: 27.1\n", Fault::Version(27)),
        ("@RSYNCD: 0.1\n", Fault::Version(0)),
        ("@RSYNCD: 99999999999999999999\n", Fault::Greeting),
        ("@RSYNCD: 29\0\n", Fault::Line),
    ] {
        assert_eq!(greeting(32, line.as_bytes()).next(), Err(fault), "{line}");
    }
    assert_eq!(greeting(32, &[b'a'; limits::RSYNC_LINE]).next(), Ok(None));
    assert_eq!(greeting(32, &[b'a'; limits::RSYNC_LINE + 1]).next(), Err(Fault::Line));
}

#[test]
fn the_greeting_names_digests_from_protocol_30_on() {
    let ours = |version| text(hello(Version::new(version).expect("a version")));
    assert_eq!(ours(32), "@RSYNCD: 32.0 sha512 sha256 sha1 md5 md4\n");
    assert_eq!(ours(30), "@RSYNCD: 30.0 sha512 sha256 sha1 md5 md4\n");
    assert_eq!(ours(29), "@RSYNCD: 29\n");
}

#[test]
fn the_message_of_the_day_ends_with_an_empty_line() {
    let offer = GreetingOffer { version: Version::OLDEST, greeted: false, motd: b"Welcome" };
    assert_eq!(text(Greeting::new(offer).output()), "@RSYNCD: 27\nWelcome\n\n");
}

#[test]
fn modules_are_listed_in_stock_columns() {
    for command in ["#list", ""] {
        let mut greeting = greeting(32, format!("@RSYNCD: 31.0\n{command}\n").as_bytes());
        assert_eq!(greeting.next(), Ok(Some(Event::ListModules)));
        greeting.list([("pub", "all of it"), ("a-very-long-name-of-it", "two\nlines")]);
        let columns = "pub            \tall of it\na-very-long-name-of-it\ttwo lines\n@RSYNCD: EXIT\n";
        assert_eq!(text(greeting.output()), columns);
    }
}

#[test]
fn early_input_is_skipped_and_other_commands_are_unknown() {
    let mut early = greeting(32, b"@RSYNCD: 31.0\n#early_input=5\na\nb\0cpub\n");
    assert_eq!(early.next(), Ok(Some(Event::Module(b"pub".to_vec()))));
    for (command, fault) in [
        ("#early_input=5121", Fault::EarlyInput),
        ("#early_input=-1", Fault::EarlyInput),
        ("#status", Fault::Command("#status".to_owned())),
    ] {
        let mut greeting = greeting(32, format!("@RSYNCD: 31.0\n{command}\n").as_bytes());
        assert_eq!(greeting.next(), Err(fault));
    }
}

#[test]
fn input_is_not_read_until_the_caller_answers() {
    let mut greeting = greeting(32, b"@RSYNCD: 31.0\npub\n--server\0--sender\0.\0pub/\0\0rest");
    assert!(matches!(greeting.next(), Ok(Some(Event::Module(_)))));
    assert_eq!(greeting.next(), Ok(None));
    greeting.accept();
    assert!(matches!(greeting.next(), Ok(Some(Event::Arguments(_)))));
    assert_eq!(text(greeting.output()), "@RSYNCD: OK\n");
    assert_eq!(greeting.into_rest(), b"rest");
}

#[test]
fn a_refusal_is_one_line_of_text() {
    let mut greeting = greeting(32, b"@RSYNCD: 31.0\nx\n");
    assert!(greeting.next().is_ok());
    greeting.refuse("Unknown module 'x\n@RSYNCD: OK'");
    assert_eq!(text(greeting.output()), "@ERROR: Unknown module 'x @RSYNCD: OK'\n");
}

#[test]
fn a_client_without_a_common_digest_cannot_be_challenged() {
    let mut greeting = greeting(32, b"@RSYNCD: 32.0 sha9\npub\n");
    assert!(greeting.next().is_ok());
    assert_eq!(greeting.challenge("c".to_owned()), Err(Fault::AuthDigest));
}

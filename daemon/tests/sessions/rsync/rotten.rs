//! Files whose content is no longer the indexed one, although their metadata is unchanged.

use std::io::Write;
use std::sync::{Arc, Mutex};

use stillmirror_protocol::entry::{Entry, Kind};
use stillmirror_protocol::rsync::digest::{Algorithm, Hasher};

use super::support::{dest, rsync};
use crate::support::{Fixture, index_changing, noise};

/// Collects the log of all threads, because extents are sent on a thread of their own.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_file_that_keeps_failing_its_digest_is_logged_once_with_its_path() {
    let fixture = Fixture::new();
    let large = noise(3_000_000);
    for (name, content) in [("good", &large[..]), ("dir/bad", &large), ("small", b"small"), ("worse", b"worse")] {
        fixture.write(name, content);
    }
    let change = |path: &[u8], entry: &mut Entry| {
        let Kind::File { digests, .. } = &mut entry.kind else { return };
        let mut hasher = Hasher::new(Algorithm::Md5, 0);
        hasher.update(&std::fs::read(fixture.root().join(std::str::from_utf8(path).unwrap())).unwrap());
        digests.md5.copy_from_slice(&hasher.finish());
        // As if the disk had changed a byte since.
        digests.md5[0] ^= u8::from(path.ends_with(b"bad") || path == b"worse");
    };
    index_changing(&fixture.root(), &fixture.store(), 100, |content| content, &change);
    let log = Log::default();
    let sink = log.clone();
    let logging = tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).finish();
    tracing::subscriber::set_global_default(logging).unwrap();
    let server = fixture.serve().await;
    for protocol in ["--protocol=30", "--protocol=32", "--protocol=32"] {
        let _ = std::fs::remove_dir_all(dest(&fixture));
        let ran = rsync(&server, &["-r", "--checksum-choice=md5", protocol], "repo/", Some(&dest(&fixture))).await;
        ran.exits(23).says("dir/bad failed verification").says("worse failed verification");
        assert!(dest(&fixture).join("good").exists() && dest(&fixture).join("small").exists());
    }
    let lines = log.lines("the content of a file differs from the index");
    assert_eq!(lines.len(), 2, "{lines:?}");
    for name in ["\"dir/bad\"", "\"worse\""] {
        assert!(lines.iter().any(|line| line.contains(name) && line.contains("repository=\"repo\"")), "{lines:?}");
    }
}

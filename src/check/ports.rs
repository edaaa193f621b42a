//! The addresses that the daemon will listen on: whether they are free, and who has them otherwise.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use rustix::io::Errno;
use stillmirror_daemon::Port;

use super::finding::Report;
use crate::config::Config;
use crate::serve::sockets;

/// A process that listens on a port.
struct Holder {
    pid: u32,
    /// The name of its program.
    name: String,
}

pub(super) fn check(config: &Config, report: &mut Report) {
    report.section("ports");
    let clients = config.daemon.sockets();
    for &(address, port) in &clients {
        let key = match port {
            Port::All => "listen",
            Port::Rsync => "rsync_listen",
            Port::Tls => "tls_listen",
        };
        check_address(key, address, sockets::serves_ipv4(address, &clients), report);
    }
    for listen in &config.daemon.metrics_listen.0 {
        check_address("metrics_listen", listen.0, true, report);
    }
}

fn check_address(key: &str, address: SocketAddr, serves_ipv4: bool, report: &mut Report) {
    let what = format!("`{key}` {address}");
    let Err(error) = sockets::bind(address, serves_ipv4) else { return report.ok(format!("{what} is free")) };
    match Errno::from_io_error(&error) {
        Some(Errno::ADDRINUSE) => match holder(address.port()) {
            Some(Holder { pid, name }) if name == "stillmirror" => {
                report.note(format!("{what}: a daemon is running there (process {pid})"));
            }
            Some(Holder { pid: 1, name }) => {
                report.note(format!("{what}: {name} (process 1) has it, as a socket unit that starts the daemon"));
            }
            Some(Holder { pid, name }) => report.error(
                format!("{what}: '{name}' (process {pid}) listens there"),
                &format!("stop it first, or choose another port for `{key}`"),
            ),
            None => report.error(
                format!("{what}: another process listens there"),
                &format!("stop it first (`ss -ltnp` as root shows it), or choose another port for `{key}`"),
            ),
        },
        Some(Errno::ACCESS | Errno::PERM) => report.note(format!(
            "{what}: this user may not listen there; the packaged service may (CAP_NET_BIND_SERVICE or a socket unit)"
        )),
        Some(Errno::ADDRNOTAVAIL) => report.error(
            format!("{what}: this host does not have the address (now)"),
            &format!("correct `{key}`, or start the daemon after the network is up"),
        ),
        _ => report.error(format!("{what}: {error}"), ""),
    }
}

/// Returns who listens on a TCP port. `None` if the kernel does not tell this process.
fn holder(port: u16) -> Option<Holder> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, port))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbered = processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    numbered.find(|(_, dir)| has_socket(dir, &inodes)).map(|(pid, dir)| {
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default().trim_end().to_owned();
        Holder { pid, name }
    })
}

/// Returns the inodes of the sockets in a table of the kernel's that listen on `port`.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let listens = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.split_once(':')?;
        let is_it = u16::from_str_radix(local_port, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        fields.get(9).filter(|_| is_it)?.parse().ok()
    };
    table.lines().skip(1).filter_map(listens).collect()
}

fn has_socket(process: &Path, inodes: &[u64]) -> bool {
    let is_it = |entry: io::Result<fs::DirEntry>| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        inodes.contains(&inode).then_some(())
    };
    fs::read_dir(process.join("fd")).is_ok_and(|mut descriptors| descriptors.find_map(is_it).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_names_the_sockets_that_listen_on_a_port() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0369 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:0369 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1
   2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
   3: broken
";
        assert_eq!(listeners(table, 873), [4711]);
        assert_eq!(listeners(table, 8080), [4713]);
        assert!(listeners(table, 1).is_empty());
    }

    #[test]
    fn a_port_that_this_process_listens_on_is_found_with_its_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = holder(listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(found.pid, std::process::id());
        assert!(!found.name.is_empty());
    }
}

"""The framework of the comparisons: servers, clients, meters and the record of a run.

A script calls `main`, which makes a `Bench` and passes it to the script's `run`. That starts servers, measures, prints
tables with `Bench.table`, and states its claims with `Bench.check` and `Bench.at_most`.
"""
import argparse
import contextlib
import csv
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

NAME = 'bench'
RUNS = pathlib.Path(__file__).resolve().parent.parent / 'runs'
# Limit on the figures per run in the table of all runs.
FIGURES = 8
GIB = 1 << 30
TICK = os.sysconf('SC_CLK_TCK')


def main(doc, options, body):
    """Parse the command line, run `body(bench)`, print the verdicts and save the run. Exit with 1 if a verdict failed.

    Without --stillmirror, only the peers are measured.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stillmirror', metavar='BINARY', help='the binary to measure (default: measure only the peers)')
    parser.add_argument('--work', metavar='DIR', help='directory for scratch data (default: the temporary directory)')
    parser.add_argument('--keep', action='store_true', help='keep the scratch data')
    parser.add_argument('--save', metavar='PART', nargs='?', const='', help=f'write the raw run to benches/{RUNS.name}/, replacing the previous one of this script and part')
    for flag, settings in options:
        parser.add_argument(flag, **settings)
    # All clients of these scripts have the same address, so its limit is lifted.
    os.environ.setdefault('STILLMIRROR_DAEMON__CONNECTIONS_PER_ADDRESS', '0')
    # The stock daemons of these scripts read files as root, so stillmirror must do so as well.
    os.environ.setdefault('STILLMIRROR_DAEMON__SERVE_PRIVATE', 'true')
    bench = Bench(parser.parse_args())
    with bench.scratch():
        body(bench)
    sys.exit(bench.finish())


class Bench:
    """One run of one script: its arguments, scratch directory, tables and verdicts."""

    def __init__(self, args):
        self.args = args
        self.script = pathlib.Path(sys.argv[0]).stem
        self.started = datetime.datetime.now(datetime.timezone.utc)
        self.stillmirror = Stillmirror(args.stillmirror, self) if args.stillmirror else None
        self.tables, self.verdicts = {}, []
        self.work = None

    @contextlib.contextmanager
    def scratch(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix=f'{self.script}-', dir=self.args.work))
        try:
            yield
        finally:
            if self.args.keep:
                print(f'scratch data: {self.work}')
            else:
                shutil.rmtree(self.work, ignore_errors=True)

    def table(self, title, rows):
        """Print rows (dicts with the same keys) and record them for the raw run."""
        self.tables.setdefault(title, []).extend(rows)
        keys = list(dict.fromkeys(key for row in rows for key in row))
        cells = [keys] + [[show(row.get(key, '')) for key in keys] for row in rows]
        widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
        print(f'\n{title}')
        for line in cells:
            print('  ' + '  '.join(cell.ljust(width) if index == 0 else cell.rjust(width)
                                   for index, (cell, width) in enumerate(zip(line, widths))))
        sys.stdout.flush()

    def at_most(self, what, value, limit):
        """Claim that `value` is at most `limit`."""
        self.check(f'{what}: {show(value)}, at most {show(limit)}', value is not None and value <= limit)

    def check(self, what, passed):
        """Claim that `what` holds, and record whether it does."""
        self.verdicts.append({'what': what, 'passed': bool(passed)})
        print(f'{"ok  " if passed else "FAIL"} {what}', flush=True)

    def finish(self):
        failed = [verdict['what'] for verdict in self.verdicts if not verdict['passed']]
        print(f'\n{len(self.verdicts) - len(failed)} of {len(self.verdicts)} claims hold')
        for what in failed:
            print(f'  FAIL {what}')
        if self.args.save is not None:
            RUNS.mkdir(exist_ok=True)
            path = RUNS / f'{"-".join(filter(None, (self.script, self.args.save)))}.json'
            record = self.record()
            path.write_text(compact(record))
            append_to_history(record, self.args.save)
            print(f'raw run: benches/{RUNS.name}/{path.name}')
        return 1 if failed else 0

    def record(self):
        plain = {key: without_folders(value) for key, value in vars(self.args).items()}
        return {'script': self.script, 'date': self.started.isoformat(timespec='seconds'), 'arguments': plain,
                'host': host_facts(self.args.stillmirror, self.args.work), 'tables': self.tables,
                'verdicts': self.verdicts}

    # The peers.

    def rsyncd(self, root, prefix=(), address='127.0.0.1'):
        port = free_port()
        config = self.work / f'rsyncd-{port}.conf'
        config.write_text(f'use chroot = no\nuid = root\ngid = root\nlock file = {self.work}/rsyncd-{port}.lock\n'
                          f'[{NAME}]\npath = {root}\nread only = yes\n')
        argv = ['rsync', '--daemon', '--no-detach', f'--config={config}', f'--address={address}', f'--port={port}']
        return Server(self, 'rsync', argv, address, port, prefix)

    def nginx(self, root, directives=''):
        port = free_port()
        folder = self.work / f'nginx-{port}'
        folder.mkdir()
        temporary = ''.join(f'{kind}_temp_path {folder}/{kind};\n'
                            for kind in ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
        config = folder / 'nginx.conf'
        config.write_text(f'user root;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n'
                          f'events {{}}\nhttp {{\nlog_format bytes "$status $request_length $bytes_sent $request";\n'
                          f'access_log {folder}/access.log bytes;\n{temporary}{directives}\n'
                          f'server {{ listen 127.0.0.1:{port}; root {root}; }}\n}}\n')
        server = Server(self, 'http', ['nginx', '-p', str(folder), '-c', str(config), '-g', 'daemon off;'],
                        '127.0.0.1', port)
        server.access_log = folder / 'access.log'
        return server


class Stillmirror:
    """The command line under test. Every call returns the report that `--json` printed."""

    def __init__(self, binary, bench):
        self.binary, self.bench = os.path.abspath(binary), bench

    def index(self, root, store, *more, **popen):
        return self.run('index', '--root', root, '--store', store, '--name', NAME, '--json', *more, **popen)

    def serve(self, root, store, *more, prefix=(), address='127.0.0.1'):
        port = free_port()
        argv = self.argv('serve', '--root', root, '--store', store, '--name', NAME, '--listen', f'{address}:{port}', *more)
        return Server(self.bench, 'stillmirror', argv, address, port, prefix)

    def pull(self, url, dest, store, *more, prefix=(), accept=(0,)):
        return self.run('pull', url, dest, '--store', store, '--delete', '--json', '--quiet', *more,
                        prefix=prefix, accept=accept)

    def pull_generation(self, generation, *pull, patience=30, **options):
        """Pull until the daemon serves `generation`. It notices a new generation by itself, after a short time."""
        deadline = time.monotonic() + patience
        while True:
            # Until then, files may be newer than the served generation, and pulls may end with 24.
            report = self.pull(*pull, accept=(0, 24), **options)
            if report.get('generation') == generation and report['exit'] == 0:
                return report
            if time.monotonic() > deadline:
                raise SystemExit(f'generation {generation} is not served after {patience} s: {report}')
            time.sleep(0.1)

    def run(self, *words, prefix=(), accept=(0,), **popen):
        """Run a command to its end. Adds `exit` (its exit code) and `wall` (seconds of the whole process) to the report."""
        argv = [*prefix, *self.argv(*words)]
        seconds, done = timed(argv, capture_output=True, **popen)
        if done.returncode not in accept:
            raise SystemExit(f'exit {done.returncode}: {" ".join(argv)}\n{done.stderr.decode(errors="replace")}')
        lines = done.stdout.decode(errors='replace').strip().splitlines()
        report = json.loads(lines[-1]) if lines and lines[-1].startswith('{') else {}
        return report | {'exit': done.returncode, 'wall': seconds}

    def argv(self, *words):
        return [self.binary, *map(str, words)]


def compact(record):
    """Format a raw run as JSON, with tables as columns and rows, and one row or verdict per line."""
    tables = {}
    for title, rows in record['tables'].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        tables[title] = {'columns': columns, 'rows': [[row.get(key) for key in columns] for row in rows]}
    head = {key: value for key, value in record.items() if key not in ('tables', 'verdicts')}
    lines = [f' {json.dumps(key)}: {json.dumps(value)},' for key, value in head.items()]
    lines.append(' "tables": {')
    for number, (title, table) in enumerate(tables.items(), 1):
        rows = ',\n'.join(f'   {json.dumps(row)}' for row in table['rows'])
        lines.append(f'  {json.dumps(title)}: {{"columns": {json.dumps(table["columns"])}, "rows": [')
        lines.append(f'{rows}]}}{"," if number < len(tables) else ""}' if rows else f'  ]}}{"," if number < len(tables) else ""}')
    verdicts = ',\n'.join(f'  {json.dumps(verdict)}' for verdict in record['verdicts'])
    lines.append(f' }},\n "verdicts": [\n{verdicts}]')
    return '{\n' + '\n'.join(lines) + '\n}\n'


def append_to_history(record, name):
    """Append a line about a run to the table of all runs."""
    path = RUNS / 'runs.csv'
    is_new = not path.exists()
    host = record['host']
    verdicts = record['verdicts']
    figures = [verdict['what'].rsplit(', at most', 1)[0] for verdict in verdicts if ', at most' in verdict['what']]
    with open(path, 'a', newline='') as file:
        table = csv.writer(file, lineterminator='\n')
        if is_new:
            table.writerow(['date', 'commit', 'script', 'run', 'host', 'load', 'claims that hold', 'figures'])
        table.writerow([
            record['date'], host['commit'], record['script'], name, f'{host["cores"]} x {host["cpu"]}', f'{host["load_average"][0]:.1f}',
            f'{sum(verdict["passed"] for verdict in verdicts)} of {len(verdicts)}', '; '.join(figures[:FIGURES])])


class Server:
    """A child process that listens. As a context manager, it terminates the process by its pid."""

    def __init__(self, bench, scheme, argv, address, port, prefix=()):
        self.url = f'{scheme}://{address}:{port}' + ('' if scheme == 'http' else f'/{NAME}')
        self.address, self.port = address, port
        self.log = bench.work / f'{scheme}-{port}.log'
        start = time.monotonic()
        with open(self.log, 'wb') as log:
            self.process = subprocess.Popen([*prefix, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid, self.is_watched = self.process.pid, bool(prefix)
        self.wait_until_listening()
        self.seconds_to_listen = time.monotonic() - start

    def wait_until_listening(self, patience=60):
        deadline = time.monotonic() + patience
        while not listens(self.pid, self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f'{self.process.args[0]} does not listen:\n{self.log.read_text(errors="replace")}')
            time.sleep(0.001)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.is_watched:
            # The process that watches the server ends with it; the reverse is not true.
            for pid in self.processes() - {self.pid}:
                os.kill(pid, signal.SIGTERM)
        else:
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def processes(self):
        """Return the pids of this process and of all its descendants."""
        parents = {}
        for entry in os.listdir('/proc'):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry)] = int(stat_fields(int(entry))[1])
        family, grown = {self.pid}, True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in family} - family
            family |= more
            grown = bool(more)
        return family

    def cpu(self):
        """Wait until the server is idle and return its CPU seconds so far: all threads, live and reaped children."""
        last = -1
        while (ticks := self.ticks()) != last:
            last = ticks
            time.sleep(0.3)
        return ticks / TICK

    def ticks(self):
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                total += sum(int(field) for field in stat_fields(pid)[11:15])
        return total

    def memory(self):
        """Return bytes over all processes: resident, its anonymous part, and private memory that is not a clean file page."""
        total = {'resident': 0, 'anonymous': 0, 'private_dirty': 0}
        for pid in self.processes():
            with contextlib.suppress(OSError), open(f'/proc/{pid}/smaps_rollup') as lines:
                facts = {line.split(':')[0]: int(line.split()[1]) for line in lines if line.endswith('kB\n')}
                total['resident'] += facts['Rss'] * 1024
                total['anonymous'] += facts['Anonymous'] * 1024
                total['private_dirty'] += facts['Private_Dirty'] * 1024
        return total

    def bytes_read_from_disk(self):
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError), open(f'/proc/{pid}/io') as lines:
                total += sum(int(line.split()[1]) for line in lines if line.startswith('read_bytes'))
        return total


class Sampler:
    """Samples a server's memory at short intervals and records its peak, and its growth since the start."""

    def __init__(self, server, interval=0.05):
        self.server, self.interval, self.idle, self.over = server, interval, server.memory(), threading.Event()
        self.peak, self.processes = dict(self.idle), 1
        self.thread = threading.Thread(target=self.sample)

    def sample(self):
        while not self.over.wait(self.interval):
            now = self.server.memory()
            self.peak = {key: max(self.peak[key], now[key]) for key in now}
            self.processes = max(self.processes, len(self.server.processes()))

    def growth(self, key='private_dirty'):
        return self.peak[key] - self.idle[key]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


# Running.


def timed(argv, **popen):
    if 'input' not in popen:
        popen.setdefault('stdin', subprocess.DEVNULL)
    return clock(lambda: subprocess.run([str(word) for word in argv], **popen))


def clock(function, *args):
    start = time.monotonic()
    result = function(*args)
    return time.monotonic() - start, result


def must(argv, **popen):
    """Run a peer or a tool to its end. Returns the seconds and its output. A failure ends the script."""
    seconds, done = timed(argv, capture_output=True, **popen)
    if done.returncode:
        raise SystemExit(f'exit {done.returncode}: {" ".join(map(str, argv))}\n{done.stderr.decode(errors="replace")}')
    return seconds, done.stdout.decode(errors='replace')


def rsync_stat(out, name):
    """Return a figure of `rsync --stats`."""
    line = next(line for line in out.splitlines() if line.startswith(name))
    return int(line.partition(':')[2].split()[0].replace(',', ''))


def rsync_bytes(out):
    """Return (sent, received) as the client counts them."""
    return rsync_stat(out, 'Total bytes sent'), rsync_stat(out, 'Total bytes received')


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def listens(pid, port):
    """Return whether the process's network namespace has a listener on `port`.

    Asks the kernel instead of connecting, which leaves no trace in the server and works across network namespaces.
    """
    with contextlib.suppress(OSError), open(f'/proc/{pid}/net/tcp') as lines:
        return any(line.split()[3] == '0A' and int(line.split()[1].rpartition(':')[2], 16) == port
                   for line in list(lines)[1:])
    return False


# Meters.


def stat_fields(pid):
    """Return the fields of /proc/PID/stat after the command's name: [0] is the state, [1] the parent."""
    with open(f'/proc/{pid}/stat') as file:
        return file.read().rpartition(')')[2].split()


def drop_caches():
    os.sync()
    pathlib.Path('/proc/sys/vm/drop_caches').write_text('3\n')


def warm(paths):
    with open(os.devnull, 'wb') as nowhere:
        timed(['cat', *paths], stdout=nowhere)


@contextlib.contextmanager
def held(paths):
    """Load these files into the page cache and lock them there. A host that reclaims memory takes cold pages in seconds."""
    hold = """
import mmap, os, resource, signal, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
maps = []
for path in sys.stdin.buffer.read().split(b'\\0'):
    file = os.open(path, os.O_RDONLY)
    if os.fstat(file).st_size:
        maps.append(mmap.mmap(file, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE | 0x2000, prot=mmap.PROT_READ))  # MAP_LOCKED
    os.close(file)
print('held', flush=True)
signal.pause()
"""
    # A process may have 65,530 maps, and each of these holds a descriptor.
    groups = [paths[at:at + 15_000] for at in range(0, len(paths), 15_000)]
    holders = []
    try:
        for group in groups:
            holder = subprocess.Popen([sys.executable, '-c', hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            holders.append(holder)
            holder.stdin.write(b'\0'.join(map(os.fsencode, group)))
            holder.stdin.close()
        if any(holder.stdout.readline() != b'held\n' for holder in holders):
            sys.exit('cannot lock files in the page cache')
        yield
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def cached_bytes(paths):
    """Return how many bytes of these files are in the page cache."""
    _, out = must(['fincore', '--bytes', '--noheadings', '--raw', '--output', 'RES', *paths])
    return sum(int(line) for line in out.split())


def device_of(path):
    device = os.stat(path).st_dev
    folder = pathlib.Path(f'/sys/dev/block/{os.major(device)}:{os.minor(device)}')
    if not folder.exists():
        raise SystemExit(f'{path} is not on a block device, so its reads cannot be counted')
    return folder


def bytes_read(device):
    return int((device / 'stat').read_text().split()[2]) * 512


def disk_usage(path):
    """Return the total apparent size of all files below `path`, in bytes."""
    return sum(entry.stat().st_size for entry in pathlib.Path(path).rglob('*') if entry.is_file())


# Facts about the host, and formatting.


def host_facts(binary, work):
    def first_line(*argv):
        with contextlib.suppress(OSError):
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            return done.stdout.strip().partition('\n')[0] if done.returncode == 0 else None
        return None

    model = next((line.partition(':')[2].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')),
                 platform.machine())
    return {
        'kernel': platform.release(), 'cpu': model, 'cores': os.cpu_count(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB, 1),
        'filesystem': first_line('stat', '-f', '-c', '%T', work or tempfile.gettempdir()),
        'load_average': os.getloadavg(),
        'rsync': first_line('rsync', '--version'), 'nginx': first_line('nginx', '-v'),
        'zsync': first_line('zsync', '-V'), 'stillmirror': first_line(binary, '--version') if binary else None,
        'commit': first_line('git', '-C', str(RUNS.parent), 'describe', '--always', '--dirty'),
    }


def without_folders(value):
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return os.path.basename(os.path.normpath(value)) if isinstance(value, str) and os.sep in value else value


def show(value):
    if isinstance(value, float):
        return f'{value:.3f}' if abs(value) < 10 else f'{value:.1f}'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'{value:,}'
    return '-' if value is None else str(value)


median = statistics.median

#!/usr/bin/env python3
"""Pulls with random source trees, random states of the destination and random command lines, for any number of cases.

The generator and the comparison are a test of this repository, tests/end_to_end/rsync/destinations.rs, which this script
builds. A stock client pulls into two copies of a destination, from a stock daemon and from stillmirror. The exit code, the
output, and everything in and next to the destination must be the same. Failures are shrunk to small cases. Without
--stillmirror, the second daemon is a stock one too.
"""
import json
import os
import pathlib
import subprocess

import bench

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEST = 'rsync::destinations::every_state_of_a_destination_becomes_what_a_stock_daemon_makes_of_it'


def run(b):
    args, path = b.args, b.work / 'report.json'
    settings = {'CASES': args.cases, 'SEED': args.seed, 'JOBS': args.jobs, 'SHRUNK': args.shrunk, 'PROTOCOL': args.protocol,
                'WITHOUT': args.without, 'REPORT': path, 'JUDGED': None if b.stillmirror else 'stock'}
    environment = {f'DESTINATIONS_{name}': str(value) for name, value in settings.items() if value is not None}
    environment |= {'TMPDIR': str(b.work)} | ({'STILLMIRROR_BINARY': b.stillmirror.binary} if b.stillmirror else {})
    # The test prints failures as they occur. The verdict is in the report.
    subprocess.run([test_binary(), '--exact', TEST, '--nocapture'], env=os.environ | environment,
                   stdout=subprocess.DEVNULL, check=False)
    # A raw run must not contain the names of this machine's folders.
    report = json.loads(path.read_text().replace(str(b.work), 'WORK'))
    b.table('cases', [{key: report[key] for key in ('cases', 'same', 'known')} |
                      {'differ': len(report['failures']), 'unsteady': len(report['unsteady'])}])
    b.table('exit codes of stock', [{'exit': exit_code, 'cases': count, 'such as': command}
                                    for exit_code, (count, command) in report['exits'].items()])
    for what in ('options', 'features'):
        b.table(what, [{what: name, 'cases': count} for name, count in report[what].items()])
    print(f'\n{len(report["options"])} options and {len(report["features"])} features of destinations')
    b.tables |= {'failures': report['failures'], 'unsteady': report['unsteady']}
    b.check(f'{report["cases"]} destinations are the same as with a stock daemon', not report['failures'])


def test_binary():
    """Build the test with cargo and return its path. --stillmirror names the daemon that it tests."""
    words = ['cargo', 'test', '--test', 'end_to_end', '--no-run', '--message-format=json']
    built = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    messages = (json.loads(line) for line in built.stdout.splitlines())
    return next(message['executable'] for message in messages
                if message['reason'] == 'compiler-artifact' and message['target']['name'] == 'end_to_end')


bench.main(__doc__, [
    ('--cases', dict(type=int, default=3000)),
    ('--seed', dict(type=int, default=1, help='seed of the first source tree')),
    ('--jobs', dict(type=int, default=4, help='source trees served at once (default: %(default)s)')),
    ('--shrunk', dict(type=int, default=20, help='number of failures to shrink (default: %(default)s)')),
    ('--protocol', dict(type=int, choices=range(27, 33), help='only this protocol version')),
    ('--without', dict(metavar='OPTIONS', help='options not to use, separated by spaces')),
], run)

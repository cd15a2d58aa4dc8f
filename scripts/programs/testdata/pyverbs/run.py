"""Runs rdma-core's pyverbs tests and reports each on a line of its own.

usage: run.py DIRECTORY [FIRST]

DIRECTORY holds the package "tests" of rdma-core. FIRST is how many tests to
leave out from the start: where a test crashed the process, the next run goes
on behind it. Lines on the standard output, each written at once:

    total N
    start I ID
    end I ok|skipped|failed|error [reason]
"""

import sys
import unittest

out = sys.stdout
directory, first = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
sys.argv[1:] = []
sys.path[:0] = [directory, directory + "/tests"]

from args_parser import parser  # noqa: E402

parser.parse_args()

import tests  # noqa: E402


def flat(suite):
    for t in suite:
        if isinstance(t, unittest.TestSuite):
            yield from flat(t)
        else:
            yield t


def say(*words):
    out.write(" ".join(str(w).replace("\n", " ") for w in words) + "\n")
    out.flush()


loader = unittest.TestLoader()
suite = unittest.TestSuite(loader.loadTestsFromModule(m) for m in tests.__test_modules__)
every = sorted({t.id(): t for t in flat(suite)}.items())
say("total", len(every))
for i, (name, test) in enumerate(every):
    if i < first:
        continue
    say("start", i, name)
    r = unittest.TestResult()
    test.run(r)
    if r.errors:
        say("end", i, "error", r.errors[0][1].strip().splitlines()[-1])
    elif r.failures:
        say("end", i, "failed", r.failures[0][1].strip().splitlines()[-1])
    elif r.skipped:
        say("end", i, "skipped", r.skipped[0][1])
    else:
        say("end", i, "ok")

# SPDX-License-Identifier: GPL-2.0-only
"""KTAP output: functions registered with @test, run in order by main()."""

import re
import sys
import time
import traceback

_tests = []


class Failure(AssertionError):
    pass


def test(function):
    _tests.append((function.__name__.replace("_", " "), function, ()))
    return function


def case(name, function, *args):
    """Registers one case of a table."""
    _tests.append((name, function, args))


def check(condition, message):
    if not condition:
        raise Failure(message)


def equal(got, want, what):
    if got != want:
        raise Failure(f"{what}: got {got!r}, want {want!r}")


def same_bytes(got, want, what):
    """Compares contents and names the first sector that differs."""
    if got == want:
        return
    if len(got) != len(want):
        raise Failure(f"{what}: {len(got)} bytes, want {len(want)}")
    sectors = [s for s in range(0, len(got), 512)
               if got[s:s + 512] != want[s:s + 512]]
    s = sectors[0]
    raise Failure(f"{what}: {len(sectors)} sectors differ, the first at {s}: "
                  f"got {bytes(got[s:s + 16]).hex()}, "
                  f"want {bytes(want[s:s + 16]).hex()}")


def note(text):
    for line in str(text).splitlines():
        print(f"# {line}", flush=True)


def main(prepare=None, cleanup=None, after_each=None):
    """Runs what is registered; arguments choose tests by regular expression."""
    patterns = [a.replace("_", " ") for a in sys.argv[1:]]
    chosen = [t for t in _tests if not patterns or
              any(re.search(p, t[0]) for p in patterns)]
    print("KTAP version 1", flush=True)
    print(f"1..{len(chosen)}", flush=True)
    failed = 0
    if prepare:
        prepare()
    for number, (name, function, args) in enumerate(chosen, 1):
        start = time.monotonic()
        word = "ok"
        try:
            function(*args)
        except Failure as e:
            note(e)
            word = "not ok"
        except Exception:
            note(traceback.format_exc())
            word = "not ok"
        if after_each:
            try:
                after_each()
            except Exception:
                note(traceback.format_exc())
                word = "not ok"
        failed += word != "ok"
        note(f"{time.monotonic() - start:.1f} s")
        print(f"{word} {number} {name}", flush=True)
    if cleanup:
        cleanup()
    sys.exit(1 if failed else 0)

# SPDX-License-Identifier: GPL-2.0-only
"""Runs all test jobs, a few beside each other, and counts their results.

Every job is a command that prints KTAP. What it planned and did not report, a
skip, an exit status without a failed test: all are failures.
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import threading
import time

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROJECT = os.path.dirname(TESTS)
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or
                     os.path.expanduser("~/.cache"), "dm-qcow2")
SLOTS = 2

# Anything of this in a console log is a failure.
REPORTS = re.compile(
    r"\bBUG\b|\bWARNING:|KASAN|UBSAN|KCSAN|kmemleak: \d+ new|"
    r"possible (circular|recursive|irq)|inconsistent lock state|"
    r"suspicious RCU|Call Trace|general protection|Oops|lockdep|"
    r"blocked for more than|rcu.*stall|soft lockup|bad unlock balance|"
    r"sleeping function called|refcount_t:|list_(add|del) corruption")

# An emulated CPU that gets no time from a busy host: the kernel's timers notice.
STARVED = re.compile(r"WARNING: .* at kernel/(time/hrtimer|sched/deadline)\.c")


def reports(lines):
    """The lines that tell of a fault, without traces of a starved CPU."""
    out, starved = [], False
    for line in lines:
        if "[ cut here ]" in line:
            starved = False
        elif STARVED.search(line):
            starved = True
        elif "end trace" in line:
            starved = False
        elif REPORTS.search(line) and not starved:
            out.append(line.rstrip())
    return out


RESULT = re.compile(r"^( *)(not ok|ok) +(\d+) *-? *(.*)$")
PLAN = re.compile(r"^( *)1\.\.(\d+)")
COMMENT = re.compile(r"^ *# ?(.*)$")
FEW = 20    # lines that a failed test says of itself, in the report


class Ktap:
    """Counts the leaves of a KTAP document."""

    def __init__(self):
        self.passed = []
        self.failed = []
        self.why = {}       # by the name of a failed test: what it said
        self.comments = []  # since the last result
        self.levels = {}

    def _level(self, indent):
        return self.levels.setdefault(indent, {"plan": None, "seen": 0,
                                               "leaves": 0, "bad": 0})

    def _close_below(self, indent):
        """Ends the documents nested in the result that has just come."""
        leaves = bad = 0
        for deeper in [i for i in self.levels if i > indent]:
            level = self.levels.pop(deeper)
            missing = (level["plan"] or 0) - level["seen"]
            if level["plan"] is None or missing > 0:
                self.failed += ["a planned test that did not run"] * max(
                    1, missing)
                bad += 1
            leaves += level["leaves"]
            bad += level["bad"]
        return leaves, bad

    def line(self, text):
        """Returns the failure that a line tells of, or None."""
        plan = PLAN.match(text)
        if plan:
            self._level(len(plan[1]))["plan"] = int(plan[2])
            return None
        result = RESULT.match(text)
        if not result:
            self._comment(text)
            return None
        indent, word, _, name = result.groups()
        comments, self.comments = self.comments, []
        leaves, bad = self._close_below(len(indent))
        level = self._level(len(indent))
        level["seen"] += 1
        good = word == "ok" and "# SKIP" not in name
        level["bad"] += not good or bad > 0
        level["leaves"] += leaves or 1
        if leaves and (good or bad):
            return None     # its own tests have been counted
        (self.passed if good else self.failed).append(name)
        if good:
            return None
        self.why.setdefault(name, comments)
        return name

    def _comment(self, text):
        comment = COMMENT.match(text)
        if comment:
            self.comments = self.comments[1 - FEW:] + [comment[1]]

    def end(self):
        self._close_below(0)
        level = self.levels.get(0)
        if not level or level["plan"] is None:
            self.failed.append("no test plan")
        else:
            missing = level["plan"] - level["seen"]
            self.failed += ["a planned test that did not run"] * missing


class Job:
    """name: command; after: names of jobs to wait for; timeout: seconds."""

    def __init__(self, name, command, after=(), console=False, timeout=2700):
        self.name = name
        self.command = command
        self.after = after
        self.console = console
        self.timeout = timeout
        self.state = "waiting"
        self.last = ""
        self.ktap = Ktap()


class Runner:
    def __init__(self, jobs, results):
        self.jobs = jobs
        self.results = results
        self.start = time.monotonic()
        self.change = threading.Condition()

    def say(self, text):
        t = int(time.monotonic() - self.start)
        print(f"[{t // 60:2}:{t % 60:02}] {text}", flush=True)

    def path(self, job, suffix):
        return os.path.join(self.results, job.name + suffix)

    def run(self):
        threading.Thread(target=self._heartbeat, daemon=True).start()
        with self.change:
            while True:
                waiting = [j for j in self.jobs if j.state == "waiting"]
                running = [j for j in self.jobs if j.state == "running"]
                if not waiting and not running:
                    break
                done = {j.name for j in self.jobs if j.state == "done"}
                present = {j.name for j in self.jobs}
                ready = [j for j in waiting
                         if not (set(j.after) & present) - done]
                if ready and len(running) < SLOTS:
                    job = ready[0]
                    job.state = "running"
                    threading.Thread(target=self._run_job, args=(job,),
                                     daemon=True).start()
                    continue
                self.change.wait()

    def _heartbeat(self):
        while True:
            time.sleep(60)
            running = [f"{j.name} ({j.last or 'starting'})"
                       for j in self.jobs if j.state == "running"]
            self.say("running: " + ", ".join(running))

    def _run_job(self, job):
        self.say(f"{job.name} started")
        begin = time.monotonic()
        try:
            self._execute(job)
        except Exception as e:
            job.ktap.failed.append(f"cannot run: {e}")
        took = time.monotonic() - begin
        passed, failed = len(job.ktap.passed), len(job.ktap.failed)
        self.say(f"{job.name}: {passed} passed, {failed} failed "
                 f"({took:.0f} s)")
        with self.change:
            job.state = "done"
            self.change.notify_all()

    def _execute(self, job):
        env = dict(os.environ, DMQCOW2_CONSOLE=self.path(job, ".console"))
        command = [a.replace("@CONSOLE@", env["DMQCOW2_CONSOLE"])
                   for a in job.command]
        with open(self.path(job, ".err"), "w") as err, \
                open(self.path(job, ".log"), "w") as log:
            process = subprocess.Popen(
                command, cwd=PROJECT, stdin=subprocess.DEVNULL, env=env,
                stdout=subprocess.PIPE, stderr=err, text=True,
                errors="replace")
            timer = threading.Timer(job.timeout, process.terminate)
            timer.start()
            for line in process.stdout:
                log.write(line)
                log.flush()
                line = line.rstrip("\n")
                failure = job.ktap.line(line)
                if RESULT.match(line):
                    job.last = line.strip()
                if failure:
                    self.say(f"{job.name}: FAILED {failure}")
            code = process.wait()
            late = not timer.is_alive()
            timer.cancel()
        job.ktap.end()
        if late:
            job.ktap.failed.append(f"took more than {job.timeout} s")
        if code and not job.ktap.failed:
            job.ktap.failed.append(f"exit status {code}")
        if code:
            self._tail(job)
        if job.console:
            self._scan(job)

    def _tail(self, job):
        with open(self.path(job, ".err"), errors="replace") as f:
            lines = f.read().splitlines()[-8:]
        for line in lines:
            self.say(f"{job.name}: | {line}")

    def _scan(self, job):
        try:
            with open(self.path(job, ".console"), errors="replace") as f:
                bad = reports(f)
        except FileNotFoundError:
            bad = ["there is no console log"]
        if bad:
            job.ktap.failed.append("a clean console log")
            self.say(f"{job.name}: FAILED console log: {bad[0]}")
        else:
            job.ktap.passed.append("a clean console log")


def vm(*options):
    return ["scripts/vm", "--quiet-console", "--log", "@CONSOLE@", "--timeout",
            "14400", "--disk", "4G", *options, "--"]


def suite(*patterns):
    """The programs of tests/vm that match, all of them without patterns."""
    names = sorted(os.path.basename(p) for p in
                   glob.glob(os.path.join(TESTS, "vm", "target-*")) +
                   glob.glob(os.path.join(TESTS, "vm", "setup-*"))
                   if os.access(p, os.X_OK))
    chosen = [n for n in names if not patterns or
              any(re.match(p, n) for p in patterns)]
    return ["tests/vm/suite"] + chosen


def matrix(long):
    """For the other kernels: all, or what depends on the kernel most."""
    if long:
        return suite()
    return ["tests/vm/suite", "target-write.py=65536,snapshots,flush",
            "target-by-hand.sh=suspend,error_if,internal"]


def target(long):
    if long:
        return suite("target-")
    return ["tests/vm/suite", "target-refuse.py", "target-write.py",
            "target-read.py=raw",
            "target-compressed.py=mixed.*zstd,neighbours,damaged,limit",
            "target-jobs.py", "target-light.py",
            "target-datafile.py=preallocated,nothing,refused,neighbours:_4",
            "target-luks.py=sparse,plain_text,lower",
            "target-by-hand.sh=documented,fio_jobs_4k,live,error_if,"
            "failed_metadata,suspend,internal"]


def setup(long):
    if long:
        return suite("setup-")
    return suite("setup-(open|files|look|check)") + [
        "setup-many.sh=20,kill_snapshot_at_12",
        "setup-resize.sh=mounted,partitions,cannot",
        "setup-devices.sh=fills,error$",
        "setup-internal.sh=closed,open,view$",
        "setup-luks.sh=open_write,passphrases",
        "setup-datafile.sh=open_write,names",
        "setup-commit.sh=active_plain,top_compressed", "setup-pull.sh=delete",
        "setup-copy.sh=finish$"]


def debug(long):
    """On the debug kernel: all, or a way through each file of the module."""
    if long:
        return ["tests/vm/suite", "--kmemleak"] + suite()[1:] + [
            "measure-locks.py"]
    return ["tests/vm/suite", "--kmemleak",
            "target-write.py=65536.*over_qcow2,snapshots:_4096,zero_clusters,"
            "limit,flush",
            "target-read.py=raw_bottom",
            "target-jobs.py=active.*512.*into.*65536,populate.*131072.*4096,grow.*4096",
            "target-compressed.py=neighbours",
            "target-light.py=many.*64,fail$,take_over",
            "target-by-hand.sh=suspend,error_if,failed_metadata",
            "setup-open.sh=open_write", "measure-locks.py"]


def only_long(root):
    """What takes too long for each change: jobs of the chain operations killed
    at many instants, their speed and pauses, 20 minutes of them at random, and
    all commands on chains of all kinds; what an I/O costs, and what many and
    large images do; ten minutes without memory; scripts/vm itself; and half an
    hour of the fuzzer."""
    return [
        Job("vm-selftest", ["tests/vm-selftest.sh"], root, timeout=5400),
        # Both make the fuzzer's seeds.
        Job("fuzz", ["tests/fuzz/run"], ["unit"], timeout=14400),
        Job("killed", vm() + ["tests/vm/suite", "killed-chain.sh"], root, True,
            14400),
        Job("measure", vm() + ["tests/vm/suite", "measure-chain.py"], root,
            True, 14400),
        Job("instructions", vm("--icount") +
            ["tests/vm/suite", "measure-instructions.py"], root, True, 5400),
        Job("scale", vm("--memory", "8192", "--disk", "16G") +
            ["tests/vm/suite", "measure-scale.py"], root, True, 14400),
        Job("stress", vm("--debug") + ["tests/vm/suite", "stress-chain.py"],
            ["debug-kernel"], True, 14400),
        Job("mixes", vm("--disk", "256M") +
            ["tests/vm/stress-mixes.py", "--seeds", "100"], root, True, 14400),
        Job("memory", vm("--debug", "--memory", "1024") +
            ["tests/vm/suite", "stress-memory.py"], ["debug-kernel"], True,
            14400),
    ]


def minutes(long, few):
    """The seconds after which a job hangs."""
    return 14400 if long else 60 * few


def jobs_of_check(long):
    """In the order in which they start, once what they wait for is done. The
    debug kernel takes longest: it is started first, and what runs on it comes
    next, so that it is not left over for the end."""
    root = ["stable-root"]
    return [
        Job("unit", ["make", "-s", "-j2", "-C", "tests", "unit"]),
        Job("stable-root", ["tests/static", "root", "stable"]),
        Job("debug-kernel", ["tests/static", "debug-kernel"], root,
            timeout=7200),
        Job("debug", vm("--debug") + debug(long), ["debug-kernel"], True,
            minutes(long, 45)),
        Job("static", ["tests/static", "all"], root),
        Job("target", vm() + target(long), root, True, minutes(long, 45)),
        Job("setup", vm() + setup(long), root, True, minutes(long, 45)),
        Job("crash", ["tests/crash/run", "--log", "@CONSOLE@", "--points",
                      "2000" if long else "150"] +
            (["--faults"] if long else []), root, True, minutes(long, 40)),
        Job("crash-jobs", ["tests/crash/jobs", "--log", "@CONSOLE@",
                           "--points", "200" if long else "25"], root, True,
            minutes(long, 40)),
        Job("crash-commands", ["tests/crash/commands", "--log", "@CONSOLE@"] +
            (["--points", "200", "--rerun", "5"] if long else
             ["--points", "10", "--rerun", "1", "--only", "commit-delete",
              "--only", "commit-active", "--only", "copy-pivot"]), root, True,
            minutes(long, 40)),
        Job("differential", ["tests/differential/run", "--log", "@CONSOLE@",
                             "--vm=--quiet-console", "--vm=--timeout",
                             "--vm=14400", "--seeds", "400" if long else "16"],
            root, True, minutes(long, 40)),
        Job("hostile", ["tests/hostile/run"] +
            (["--random", "3000"] if long else
             ["--stable", "--random", "60", "--only", "tiny", "--only", "old",
              "--only", "zstd", "--only", "subclusters"]),
            ["debug-kernel"] if long else root, True, minutes(long, 40)),
        Job("kselftest", ["tests/kselftest/run-vm"] +
            (["--all"] if long else []), root, True, minutes(long, 45)),
        Job("oldstable", vm("--suite", "oldstable") + matrix(long), root, True,
            minutes(long, 45)),
        Job("testing", vm("--suite", "testing") + matrix(long), root, True,
            minutes(long, 45)),
    ] + (only_long(root) if long else [])


def main():
    parser = argparse.ArgumentParser(prog="tests/run-check")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--results", default=os.path.join(CACHE, "results"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    jobs = [j for j in jobs_of_check(args.long) if not args.names or
            any(re.fullmatch(n, j.name) for n in args.names)]
    if not jobs:
        parser.error("no test has such a name")
    shutil.rmtree(args.results, ignore_errors=True)
    os.makedirs(args.results)
    print(f"logs: {args.results}", flush=True)
    runner = Runner(jobs, args.results)
    runner.run()
    passed = failed = 0
    for job in jobs:
        passed += len(job.ktap.passed)
        failed += len(job.ktap.failed)
        for name in job.ktap.failed:
            print(f"FAILED {job.name}: {name}")
            for line in job.ktap.why.get(name, []):
                print(f"    | {line}")
    print(f"{passed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run QEMU for scripts/vm: pass its streams on and end it in time.

JOB is the directory shared with the guest. It holds three FIFOs written by
QEMU (stdout, stderr, console) and, once the command has ended, the file
"status": exit status, bytes of stdout, bytes of stderr. QEMU is killed when
that many bytes have arrived, so nothing depends on the guest's shutdown.

Several emulated CPUs and a kernel that patches its own code now and then do not
agree (seen: an oops at a jump label half written, early in the boot). A VM that
ends before the guest made the file "started", and so before our module was
loaded, is started once more.
"""

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import time

HANG = 124
PANIC = 125
TAIL = 60           # lines of the log shown after a crash
DRAIN = 20          # seconds without a byte until the rest counts as lost
BUFFER = 1 << 20

PANIC_SIGNS = (b"Kernel panic - not syncing", b"Oops: ", b"---[ end trace")
HANG_SIGNS = (b"softlockup: hung tasks", b"hung_task: blocked tasks",
              b"Hard LOCKUP")


class Interrupted(Exception):
    pass


class TimedOut(Exception):
    pass


def say(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data):]


class Stream:
    """One FIFO from QEMU and where its bytes go."""

    def __init__(self, path, sinks, text=False):
        if os.path.exists(path):
            os.unlink(path)
        os.mkfifo(path)
        # Open for writing too: QEMU comes later and goes earlier.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.sinks = sinks
        self.text = text
        self.count = 0

    def pump(self):
        """Pass on what is there; false when nothing is."""
        try:
            data = os.read(self.fd, BUFFER)
        except BlockingIOError:
            return False
        self.count += len(data)
        if self.text:
            data = data.replace(b"\r", b"")
        for sink in self.sinks:
            write_all(sink, data)
        return True


class Machine:
    def __init__(self, args):
        self.args = args
        self.log = os.open(args.log, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o644)
        console = [self.log] if args.quiet_console else [self.log, 2]
        job = args.job
        self.stdout = Stream(f"{job}/stdout", [1])
        self.stderr = Stream(f"{job}/stderr", [2])
        self.console = Stream(f"{job}/console", console, text=True)
        self.streams = {s.fd: s
                        for s in (self.stdout, self.stderr, self.console)}
        # Its own session keeps it from the terminal's Ctrl-C, setpriv ties
        # its life to ours even if we are killed.
        self.qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--"] + args.qemu,
            stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)

    def kill(self):
        if self.qemu.poll() is None:
            self.qemu.kill()
            self.qemu.wait()

    def pump(self, timeout):
        ready = select.select(list(self.streams), [], [], timeout)[0]
        for fd in ready:
            self.streams[fd].pump()
        return bool(ready)

    def pump_rest(self):
        for stream in self.streams.values():
            while stream.pump():
                pass

    def result(self):
        """The guest's word: (status, stdout bytes, stderr bytes) or None."""
        try:
            with open(f"{self.args.job}/status") as f:
                line = f.read()
        except FileNotFoundError:
            return None
        if not line.endswith("\n"):
            return None
        return tuple(int(word) for word in line.split())

    def drain(self, out, err):
        last = time.monotonic()
        while self.stdout.count < out or self.stderr.count < err:
            if self.pump(0.1):
                last = time.monotonic()
            elif time.monotonic() - last > DRAIN or self.qemu.poll() is not None:
                say("the end of the command's output is lost")
                return

    def run(self):
        """Returns the command's exit status, or None if the VM ended first."""
        while True:
            ended = self.qemu.poll() is not None
            result = self.result()
            if result:
                self.drain(*result[1:])
                # Kernel messages that the command caused.
                while self.pump(0.02):
                    pass
                return result[0]
            if ended:
                self.pump_rest()
                return None
            self.pump(0.05)

    def console_text(self):
        size = os.fstat(self.log).st_size
        return os.pread(self.log, size, 0)


def explain(machine, timed_out):
    """Says why there is no exit status; returns ours."""
    text = machine.console_text()
    if timed_out or any(sign in text for sign in HANG_SIGNS):
        what, status = "hang", HANG
    elif any(sign in text for sign in PANIC_SIGNS):
        what, status = "kernel panic", PANIC
    else:
        what, status = "the VM ended without a result", PANIC
    if timed_out:
        what += f": no end after {machine.args.timeout} s"
    if machine.args.quiet_console:
        tail = b"\n".join(text.splitlines()[-TAIL:])
        write_all(2, tail + b"\n")
    say(f"{what} (console log: {keep_log(machine.args)})")
    return status


def keep_log(args):
    """A log nobody asked for is worth keeping after a crash."""
    if not args.crash_log:
        return args.log
    os.makedirs(os.path.dirname(args.crash_log), exist_ok=True)
    shutil.copyfile(args.log, args.crash_log)
    return args.crash_log


def interrupted(signum, _frame):
    raise Interrupted(signum)


def timed_out(_signum, _frame):
    raise TimedOut


def supervise(args):
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupted)
    signal.signal(signal.SIGALRM, timed_out)
    machine = None
    try:
        machine = Machine(args)
        signal.alarm(args.timeout)
        status = machine.run()
        if status is None and not os.path.exists(f"{args.job}/started"):
            machine.kill()
            say("the kernel did not boot; once more")
            machine = Machine(args)
            status = machine.run()
        signal.alarm(0)
        return explain(machine, False) if status is None else status
    except TimedOut:
        return explain(machine, True)
    finally:
        if machine:
            machine.kill()
        shutil.rmtree(args.job, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--crash-log")
    parser.add_argument("--timeout", type=int, required=True)
    parser.add_argument("--quiet-console", action="store_true")
    parser.add_argument("qemu", nargs="+")
    args = parser.parse_args()
    try:
        return supervise(args)
    except (Interrupted, BrokenPipeError) as error:
        signum = error.args[0] if isinstance(error, Interrupted) else signal.SIGPIPE
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


if __name__ == "__main__":
    sys.exit(main())

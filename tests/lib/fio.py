# SPDX-License-Identifier: GPL-2.0-only
"""What an I/O takes, as fio counts."""

import json
import subprocess


def nanoseconds(path, rw, block, depth, size, *more):
    """Of an I/O to a device or file, of which size bytes are used; block: bytes of
    an I/O; depth: I/Os in flight. With scripts/vm --icount that is instructions."""
    done = subprocess.run(
        ["fio", "--name=measure", f"--filename={path}", f"--rw={rw}",
         f"--bs={block}", "--direct=1", "--ioengine=libaio",
         f"--iodepth={depth}", f"--size={size}", "--group_reporting",
         "--output-format=json", *more],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        check=True)
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio on {path}: error {job['error']}")
    return 1e9 / max(job["read"]["iops"], job["write"]["iops"])

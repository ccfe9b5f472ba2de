#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What `make bench` makes of its figures."""

import copy
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "bench"))
import host  # before the modules of lib/
import ktap
import report

FOUR = dict(zip(report.WHAT, (10000, 10500, 180000, 190000)))
LOOP = dict(zip(report.WHAT, (23000, 24000, 200000, 210000)))
RESULTS = {
    "cost": {
        "steady": {"dm-linear": FOUR, "dm-qcow2": dict(FOUR),
                   "dm-snapshot": {"4k read": 11000},
                   "dm-linear on loop": LOOP, "dm-qcow2 on loop": dict(LOOP)},
        "first": {"dm-qcow2": 40000, "dm-qcow2, subclusters": 30000,
                  "dm-qcow2 on loop": 45001},
        "depth": {"1": 10000, "16": 12000},
        "flush": {"dm-linear": 4000, "dm-qcow2": 4100},
        "fsync": {"dm-qcow2 on loop": 50000, "qemu-nbd": 100000}},
    "clock": {
        "rates": {"dm-linear": {what: 50000 for what in report.WHAT}},
        "two jobs": {
            "dm-linear": {"4k read, 1": 10000, "4k read, 2": 20000,
                          "4k write, 1": 10000, "4k write, 2": 18000},
            "dm-qcow2": {"4k read, 1": 9000, "4k read, 2": 18000,
                         "4k write, 1": 10000, "4k write, 2": 17000}},
        "compressed": {
            "zlib": {"dm-qcow2 on loop": {"4k": 30, "buffered": 30},
                     "qemu-nbd": {"4k": 2, "buffered": 10}}}},
}


def verdicts(results):
    return {name: report.met(value, limit, least)
            for name, value, limit, least in report.targets(results)}


@ktap.test
def what_is_at_the_limit_is_met():
    found = verdicts(RESULTS)
    missed = [name for name, met in found.items() if not met]
    ktap.equal(missed, ["first write: clusters on a file",
                        "4k write: two jobs beside one, of dm-linear's"],
               "missed")


@ktap.test
def each_target_can_be_missed():
    worse = copy.deepcopy(RESULTS)
    for name, found in worse["cost"]["steady"].items():
        if name.startswith("dm-qcow2"):
            worse["cost"]["steady"][name] = {k: v * 1.06
                                             for k, v in found.items()}
    worse["cost"]["first"] = {k: 60001 for k in worse["cost"]["first"]}
    worse["cost"]["depth"]["16"] = 12100
    worse["cost"]["flush"]["dm-qcow2"] = 5000
    worse["cost"]["fsync"]["qemu-nbd"] = 99000
    for key in "4k read, 2", "4k write, 2":
        worse["clock"]["two jobs"]["dm-qcow2"][key] = 15000
    worse["clock"]["compressed"]["zlib"]["dm-qcow2 on loop"] = {
        "4k": 5, "buffered": 29}
    met = [name for name, good in verdicts(worse).items() if good]
    ktap.equal(met, [], "met")


@ktap.test
def half_of_the_figures_make_a_table():
    for part in "cost", "clock":
        text = report.table({part: RESULTS[part]})
        ktap.check("Targets" in text, text)


@ktap.test
def the_table_has_all_figures():
    lines = [line.split() for line in report.table(RESULTS).splitlines()]
    for line in ("dm-linear 10,000 10,500 180,000 190,000 -",
                 "dm-snapshot 11,000 - - - -", "qemu-nbd 2 10",
                 "first write: clusters on a file 45,001 45,000 MISSED"):
        ktap.check(line.split() in lines, f"no line {line!r} in {lines}")


host.main()

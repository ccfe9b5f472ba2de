# SPDX-License-Identifier: GPL-2.0-only
"""The figures of tests/bench/guest.py as a table, as plots, and beside the targets."""

import os
import subprocess
import tempfile

WHAT = ("4k read", "4k write", "512k read", "512k write")
OURS, LINEAR = "dm-qcow2", "dm-linear"


def _aligned(head, rows):
    """Lines of a table: the first column to the left, the others to the right."""
    rows = [[str(cell) for cell in row] for row in [head] + rows]
    width = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                      for i, (cell, w) in enumerate(zip(row, width))).rstrip()
            for row in rows]


def _number(value):
    return "-" if value is None else f"{value:,}"


def _sections(results):
    """Title, head and rows of each table"""
    if "cost" in results:
        cost = results["cost"]
        yield ("Instructions of an I/O, everything included",
               ["", *WHAT, "first 4k write"],
               [[name, *(_number(cost["steady"].get(name, {}).get(what))
                         for what in WHAT), _number(cost["first"].get(name))]
                for name in cost["steady"]])
        yield ("Instructions of other things", ["", "instructions"],
               [[f"4k read of the base under {n} overlays", _number(value)]
                for n, value in cost["depth"].items()] +
               [[f"flush with nothing dirty, {name}", _number(value)]
                for name, value in cost["flush"].items()] +
               [[f"4k write and fsync, {name}", _number(value)]
                for name, value in cost["fsync"].items()])
    if "clock" in results:
        clock = results["clock"]
        yield ("I/Os a second on two CPUs: the rows compare, no more",
               ["", *WHAT],
               [[name, *(_number(found[what]) for what in WHAT)]
                for name, found in clock["rates"].items()])
        yield ("Two jobs on one device, I/Os of one job", ["", *WHAT[:2]],
               [[name, *(f"{_gain(found, what):.2f}" for what in WHAT[:2])]
                for name, found in clock["two jobs"].items()])
        for kind, found in clock["compressed"].items():
            heads = list(found[OURS + " on loop"])
            yield (f"Sequential reads of clusters compressed by {kind}, MiB/s",
                   ["", *heads], [[name, *(_number(rates[what])
                                           for what in heads)]
                                  for name, rates in found.items()])


def _gain(found, what):
    return found[f"{what}, 2"] / found[f"{what}, 1"]


def table(results):
    lines = []
    for title, head, rows in _sections(results):
        lines += [title, "", *_aligned(head, rows), ""]
    checked = targets(results)
    if checked:
        lines += ["Targets", "", *_aligned(
            ["", "is", "limit", ""],
            [[what, f"{value:,.2f}" if value < 100 else f"{value:,.0f}",
              ("at least " if least else "") + f"{limit:,}",
              "met" if met(value, limit, least) else "MISSED"]
             for what, value, limit, least in checked])]
    return "\n".join(lines)


def met(value, limit, least):
    return value >= limit if least else value <= limit


def targets(results):
    """What is to be reached: name, figure, limit, whether it is a lower one"""
    out = []
    if "cost" in results:
        out += _cost_targets(results["cost"])
    if "clock" in results:
        two = results["clock"]["two jobs"]
        out += [(f"{what}: two jobs beside one, of {LINEAR}'s",
                 _gain(two[OURS], what) / _gain(two[LINEAR], what), 0.95, True)
                for what in WHAT[:2]]
        out += [(f"{kind}, {what}: times qemu-nbd", rate / found["qemu-nbd"][what],
                 3, True)
                for kind, found in results["clock"]["compressed"].items()
                for what, rate in found[f"{OURS} on loop"].items()]
    return out


def _cost_targets(cost):
    steady, first = cost["steady"], cost["first"]
    for what in WHAT:
        yield (f"{what}, of {LINEAR}",
               steady[OURS][what] / steady[LINEAR][what],
               1.05 if what.startswith("4k") else 1.02, False)
    for what in WHAT:
        yield (f"{what}, of {LINEAR}, both on loop",
               steady[f"{OURS} on loop"][what] /
               steady[f"{LINEAR} on loop"][what], 1.03, False)
    yield ("first write: subclusters", first[f"{OURS}, subclusters"], 30000,
           False)
    yield ("first write: clusters on a file", first[f"{OURS} on loop"], 45000,
           False)
    yield ("first write: clusters on a block device", first[OURS], 60000, False)
    yield ("4k read under 16 overlays, of under 1",
           cost["depth"]["16"] / cost["depth"]["1"], 1.2, False)
    # What one flush more or less of a few thousand instructions is
    yield (f"flush with nothing dirty, of {LINEAR}",
           cost["flush"][OURS] / cost["flush"][LINEAR], 1.05, False)
    yield ("4k write and fsync: qemu-nbd, of ours",
           cost["fsync"]["qemu-nbd"] / cost["fsync"][f"{OURS} on loop"], 2, True)


PLOT = """\
set terminal svg size 900,{height} font "sans,13" background rgb "white"
set output "{out}"
set title "{title}"
set style data histogram
set style histogram clustered gap 1
set style fill solid 0.9 border -1
set boxwidth 0.9
set grid y
set logscale y 10
set format y "%.0s%c"
set ylabel "{unit}"
set xtics rotate by -25
set key outside top horizontal
set datafile missing "-"
plot for [i=2:{columns}] "{data}" using i:xtic(1) title columnheader(i)
"""


def _plot(path, title, unit, head, rows):
    def cell(value):
        return f'"{value}"' if isinstance(value, str) else \
            "-" if value is None else str(value)

    with tempfile.NamedTemporaryFile("w", suffix=".dat") as data:
        for row in [["", *head]] + rows:
            data.write(" ".join(cell(value) for value in row) + "\n")
        data.flush()
        script = PLOT.format(out=path, title=title, unit=unit, height=480,
                             data=data.name, columns=len(head) + 1)
        subprocess.run(["gnuplot"], input=script, text=True, check=True)


def plots(results, directory):
    """Writes an SVG for each kind of figure; returns their names."""
    todo = []
    if "cost" in results:
        cost = results["cost"]
        todo.append(("cost.svg", "Instructions of an I/O", "instructions", WHAT,
                     [[name, *(found.get(what) for what in WHAT)]
                      for name, found in cost["steady"].items()]))
        todo.append(("first-write.svg", "First 4k write to a cluster",
                     "instructions", ["first 4k write"],
                     [[name, value] for name, value in cost["first"].items()]))
    if "clock" in results:
        todo.append(("clock.svg", "I/Os a second on two CPUs", "I/Os a second",
                     WHAT, [[name, *(found[what] for what in WHAT)]
                            for name, found in
                            results["clock"]["rates"].items()]))
    for name, *rest in todo:
        _plot(os.path.join(directory, name), *rest)
    return [name for name, *_ in todo]

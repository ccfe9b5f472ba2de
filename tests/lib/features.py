#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Checks the tables of Documentation/qcow2-features.rst: each row has all its
columns, and the tests that it names exist."""

import os
import re
import sys

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLES = os.path.join(os.path.dirname(TESTS), "Documentation",
                      "qcow2-features.rst")
COLUMNS = 5

# How a file of tests says that it has one
DEFINITIONS = {".c": r"cmocka_unit_test\({}\)", ".sh": r"^{}\(\)$",
               ".py": r"^def {}\("}


def rows(lines):
    """(line number, cells) of all tables"""
    inside = False
    for number, line in enumerate(lines, 1):
        if line.startswith(".. csv-table::"):
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and line.strip() and not line.strip().startswith(":"):
            yield number, [cell.strip() for cell in line.split("|")]


def has_test(path, name):
    with open(path) as f:
        text = f.read()
    kind = os.path.splitext(path)[1]
    return kind in DEFINITIONS and re.search(
        DEFINITIONS[kind].format(re.escape(name)), text, re.M)


def wrong_test(reference):
    """What is wrong with a reference to a test, or None"""
    name, _, test = reference.partition(":")
    path = os.path.join(TESTS, name)
    if not os.path.isfile(path):
        return f"there is no tests/{name}"
    if test and not has_test(path, test):
        return f"tests/{name} has no test {test}"
    return None


def wrong_row(cells):
    """Yields what is wrong with a row."""
    if len(cells) != COLUMNS:
        yield f"{len(cells)} columns, not {COLUMNS}"
        return
    if not all(cells[:3]):
        yield "an empty cell: all but the refusals must say something"
    references = re.findall(r"``([^`]+)``", cells[4])
    if not references:
        yield "no test is named"
    yield from filter(None, map(wrong_test, references))


def main():
    with open(TABLES) as f:
        table = list(rows(f.read().splitlines()))
    faults = [(number, fault) for number, cells in table
              for fault in wrong_row(cells)]
    for number, fault in faults:
        print(f"{TABLES}:{number}: {fault}")
    if not table:
        sys.exit(f"{TABLES}: no tables")
    sys.exit(1 if faults else 0)


main()

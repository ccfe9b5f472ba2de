# SPDX-License-Identifier: GPL-2.0-only
"""The images that crash, and how they are worked on.

name      of the test
create    options of qemu-img create
size      of the guest's disk, MiB
device    MiB; large enough for all that the internal snapshots keep
filled    how much of the disk holds data at the start, percent
packed    the data at the start is compressed, where that makes it shorter
backing   (options, size in MiB) of a layer below
ops       operations for a thousand crash points of all images together
flushes   of 1000 operations
edits     c1 makes the internal snapshot s1, d1 deletes it; evenly over the run
interval  commit_interval_ms of the module
bitmap    the image has a dirty bitmap
features  of the table line
virgin    what the device held before: a pattern, or zeroes (and zero_from)
data      an external data file, on the end of the device; "raw": one that reads
          the same by itself
"""

IMAGES = [
    # Many clusters to an L2 table, big copy-on-write.
    dict(name="64k", create="cluster_size=64k", size=16, device=72,
         filled=30, edits="c1,c2,d1", bitmap=True),
    # The refcount table fills a cluster every 8 MiB.
    dict(name="512", create="cluster_size=512", size=8, device=40,
         filled=85, edits="c1,c2,d1,c3", ops=600),
    # A refcount block every 32 KiB, the table moves every 2 MiB.
    dict(name="512-refcount64", create="cluster_size=512,refcount_bits=64",
         size=3, device=24, filled=55, edits="c1,c2,d2", ops=600, interval=50),
    # No refcount above 1: no internal snapshots.
    dict(name="4k-refcount1", create="cluster_size=4k,refcount_bits=1",
         size=8, device=24, filled=40, interval=100),
    dict(name="4k-v2", create="cluster_size=4k,compat=0.10", size=8,
         device=32, filled=20, edits="c1,c2,d1"),
    # Longer than the layer below, which has smaller clusters.
    dict(name="backing", create="cluster_size=32k", size=12, device=48,
         filled=10, backing=("cluster_size=4k", 5), edits="c1,d1"),
    # No zero clusters to hide the layer below, which has larger clusters.
    dict(name="v2-backing", create="cluster_size=4k,compat=0.10", size=8,
         device=32, filled=10, backing=("cluster_size=64k", 5), edits="c1"),
    # Reads allocate, too.
    dict(name="copy-on-read", create="cluster_size=16k", size=12, device=48,
         backing=("cluster_size=64k", 14), edits="c1",
         features=("copy_on_read",)),
    # Nothing was ever there: the target may rely on it.
    dict(name="zero-from", create="cluster_size=64k", size=16, device=56,
         filled=10, virgin="zero", interval=100, edits="c1"),
    # Subclusters of 2 KiB: parts of clusters come and go.
    dict(name="subclusters", create="cluster_size=64k,extended_l2=on", size=16,
         device=72, filled=30, edits="c1,c2,d1"),
    # Subclusters of 4 KiB over a shorter layer that has them, too.
    dict(name="subclusters-backing",
         create="cluster_size=128k,extended_l2=on", size=12, device=64,
         filled=10, backing=("cluster_size=64k,extended_l2=on", 5),
         edits="c1,d1"),
    # A subcluster is a sector: only whole ones are written.
    dict(name="subclusters-zero-from",
         create="cluster_size=16k,extended_l2=on", size=12, device=48,
         filled=10, virgin="zero", interval=100, edits="c1"),
    # Writes take clusters out of their compressed neighbours' host clusters.
    dict(name="compressed", create="cluster_size=64k", size=16, device=72,
         filled=60, packed=True, edits="c1,c2,d1"),
    # Short ones over a layer that shows again where they are discarded
    dict(name="compressed-v2-backing",
         create="cluster_size=8k,compat=0.10", size=12, device=48, filled=40,
         packed=True, backing=("cluster_size=64k", 8), edits="c1,d1"),
    # Data at the guest's offsets; places are written again before what dropped
    # them is durable.
    dict(name="data-file", create="cluster_size=64k", size=16, device=40,
         filled=30, data="on"),
    dict(name="data-file-subclusters",
         create="cluster_size=64k,extended_l2=on", size=16, device=40,
         filled=30, data="on", interval=100),
    # Entries become durable before data.
    dict(name="data-file-raw", create="cluster_size=16k", size=16, device=40,
         data="raw"),
]

DEFAULTS = dict(filled=0, backing=None, ops=450, flushes=90, edits="",
                interval=1000, bitmap=False, features=(), virgin="pattern",
                skip_flush=0, data=None, packed=False)

# Where each flush of the commit is needed most, and what misses it.
FAULTS = [
    (0, "64k", "no flush left out"),
    (1, "64k", "the flush of phase 1a left out"),
    (2, "512-refcount64", "the flush of phase 1b left out"),
    (4, "64k", "the flush of phase 2 left out"),
    (1, "subclusters", "the flush of phase 1a left out"),
    (17, "data-file", "the flushes of phase 1a left out"),
]


def image(name):
    return next(dict(DEFAULTS, **o) for o in IMAGES if o["name"] == name)


def images():
    return [dict(DEFAULTS, **o) for o in IMAGES]

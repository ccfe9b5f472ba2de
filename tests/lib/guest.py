# SPDX-License-Identifier: GPL-2.0-only
"""Somebody who uses a device while the test does something to it."""

import random
import threading

import fixture as fx


class Guest(threading.Thread):
    """Writes, discards and zeroes at random, and keeps a model."""

    def __init__(self, dev, model, seed, zeroes=True):
        super().__init__()
        self.dev = dev
        self.model = model
        self.rng = random.Random(seed)
        self.zeroes = zeroes
        self.done = False
        self.error = None
        self.count = 0

    def one(self):
        size = len(self.model)
        length = self.rng.choice([1, 2, 8, 8, 64, 128, 300]) * 512
        offset = self.rng.randint(0, (size - length) // 512) * 512
        kind = self.rng.random()
        if kind < 0.7 or not self.zeroes:
            data = fx.pattern(f"g{self.count}", length)
            self.dev.write(offset, data, fua=kind < 0.05)
        else:
            data = bytes(length)
            (self.dev.punch if kind < 0.85 else self.dev.zeroout)(offset,
                                                                   length)
        self.model[offset:offset + length] = data
        if kind > 0.98:
            self.dev.flush()

    def run(self):
        try:
            while not self.done:
                self.one()
                self.count += 1
        except Exception as e:
            self.error = e

    def stop(self):
        self.done = True
        self.join()
        if self.error:
            raise self.error

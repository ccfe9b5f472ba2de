# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
debug_kernel_ensure() { die $STATUS_SETUP "no debug kernel yet"; }

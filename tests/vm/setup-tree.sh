#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup tree: images in directories and of devices.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

overlay()
{
	qemu-img create -q -f qcow2 -u -b "$2" -F "$3" "$1" 32M
}

# base.raw <- a <- b <- open; a <- c <- sub/d; a loop; one without its base
forest()
{
	truncate -s 32M base.raw
	mkdir sub
	overlay a base.raw raw
	overlay b a qcow2
	overlay c a qcow2
	overlay sub/d ../c qcow2
	overlay l1 l2 qcow2
	overlay l2 l1 qcow2
	overlay lost nowhere qcow2
	echo garbage >garbage
}

names()
{
	grep -o '[^ /]*  \(qcow2\|raw\|missing\)' | sed 's/  .*//' | xargs
}

test_directory()
{
	forest
	qcow2setup tree . >out
	cat out
	equal "$(names <out)" "base.raw a b c d l1 l2 nowhere lost" "images"
	grep -q '^`-- a  qcow2, 32 MiB, .* on disk, shared$' out
	grep -q '^    |-- b ' out
	grep -q "^        \`-- $PWD/sub/d " out
	grep -q 'nowhere  missing$' out
	qcow2setup tree "$PWD" >out2
	cmp out out2
	qcow2setup tree . --json >json
	equal "$(jq -r '.[0].overlays[0].overlays | length' json)" 2 "overlays"
	equal "$(jq -r '[.. | objects | select(.shared) | .image] | join(" ")' json)" \
		"$PWD/a" "shared images"
	equal "$(jq -r '[.. | objects | select(.missing) | .image] | join(" ")' json)" \
		"$PWD/nowhere" "missing images"
}

test_device()
{
	forest
	qcow2setup open ./b vm
	qcow2setup open ./c other --read-only
	qcow2setup tree vm >out
	cat out
	equal "$(names <out)" "base.raw a b c" "images"
	grep -q 'b  .*open as vm (rw)' out
	grep -q 'c  .*open as other (ro)' out
	grep -q 'a  .*in .*\[1\], in .*\[1\], shared' out
	qcow2setup tree vm --json >json
	equal "$(jq -r '.[0].overlays[0].open | map(.name) | sort | join(" ")' json)" \
		"other vm" "devices"
	equal "$(jq -r '.[0].overlays[0].overlays[0].open[0].writes' json)" \
		true "writes"
	qcow2setup close vm
	qcow2setup close other
	fails qcow2setup tree vm
	fails qcow2setup tree ./none
}

test_image()
{
	forest
	qcow2setup tree ./lost >out
	equal "$(names <out)" "nowhere lost" "images"
	qcow2setup tree sub/d >out
	equal "$(names <out)" "base.raw a c d" "images"
}

# A raw disk in which a guest has put a header
test_raw_with_header()
{
	qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw disk 1M
	overlay top disk raw
	qcow2setup tree . >out
	cat out
	equal "$(names <out)" "disk top" "images"
	grep -q 'disk  raw' out
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup open --partitions.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

partitioned()
{
	truncate -s 64M disk.raw
	sfdisk -q disk.raw
	qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
}

test_gpt()
{
	partitioned <<-'TABLE'
		label: gpt
		start=2048, size=16384
		start=18432, size=32768
	TABLE
	qcow2setup open ./disk.qcow2 vm --partitions
	equal "$(blockdev --getsz /dev/mapper/vm1)" 16384 "first partition"
	equal "$(blockdev --getsz /dev/mapper/vm2)" 32768 "second partition"
	mkfs.ext4 -q /dev/mapper/vm2
	mkdir mnt
	mount /dev/mapper/vm2 mnt
	echo hello >mnt/file
	got=0
	qcow2setup close vm 2>out || got=$?
	equal "$got" 5 "exit code"
	matches "$(cat out)" "Partition vm2 is still in use.*$PWD/mnt" "message"
	test -b /dev/mapper/vm1
	umount mnt
	equal "$(qcow2setup status vm --json | jq -c '.partitions | sort')" \
		'["vm1","vm2"]' "partitions"
	qcow2setup close vm
	nothing_left
	# A snapshot under mounted partitions
	qcow2setup open ./disk.qcow2 vm0 --partitions
	mount /dev/mapper/vm0p2 mnt
	qcow2setup snapshot vm0 over.qcow2
	equal "$(cat mnt/file)" hello "file"
	umount mnt
	qcow2setup close vm0
	nothing_left
	qemu-img check disk.qcow2
}

test_dos_with_logical_partitions()
{
	partitioned <<-'TABLE'
		label: dos
		start=2048, size=8192, type=83
		start=10240, size=65536, type=5
		start=12288, size=8192, type=83
	TABLE
	qcow2setup open ./disk.qcow2 vm --partitions --read-only
	equal "$(blockdev --getsz /dev/mapper/vm5)" 8192 "logical partition"
	equal "$(blockdev --getro /dev/mapper/vm5)" 1 "read-only"
	fails test -e /dev/mapper/vm2
	qcow2setup close vm
	nothing_left
}

test_none()
{
	qemu-img create -q -f qcow2 disk.qcow2 64M
	qcow2setup open ./disk.qcow2 vm --partitions 2>out
	matches "$(cat out)" 'no partition table' "message"
	qcow2setup close vm
	nothing_left
}

# A name that is taken undoes the whole open.
test_name_taken()
{
	partitioned <<-'TABLE'
		label: gpt
		start=2048, size=16384
		start=18432, size=32768
	TABLE
	dmsetup create vm2 --table '0 8 zero'
	got=0
	qcow2setup open ./disk.qcow2 vm --partitions || got=$?
	equal "$got" 5 "exit code"
	dmsetup remove vm2
	nothing_left
}

main "$@"

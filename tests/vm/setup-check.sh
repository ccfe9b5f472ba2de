#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup: checking and repairing, beside open devices.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# set_bits FILE OFFSET BYTE
set_bits()
{
	printf '%b' "\\x$3" |
		dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

test_check_refuses_open_images()
{
	local option

	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qcow2setup open ./top.qcow2 vm
	for option in "" --repair; do
		# shellcheck disable=SC2086 # or none
		exits 1 'top.qcow2.* vm' qcow2setup check ./top.qcow2 $option
		# shellcheck disable=SC2086
		exits 1 'base.qcow2.* vm' qcow2setup check ./base.qcow2 $option
	done
	qcow2setup close vm
	qcow2setup check ./top.qcow2
	qcow2setup check ./base.qcow2 --repair
}

# A device that is removed by hand leaves the file as long as it was made, like a
# crash.
test_check_cuts_what_a_crash_left()
{
	local length

	qemu-img create -q -f qcow2 a.qcow2 64M
	qcow2setup open ./a.qcow2 vm
	dd if=/dev/urandom of=/dev/mapper/vm bs=64k count=3 oflag=direct \
		conv=notrunc,fsync status=none
	dmsetup remove vm
	qcow2setup list
	length=$(stat -c %s a.qcow2)
	[ "$length" -gt $((64 << 20)) ] || die "the file is not longer"
	exits 0 'behind the last cluster' qcow2setup check ./a.qcow2
	equal "$(stat -c %s a.qcow2)" "$length" "length"
	exits 0 'Cut off' qcow2setup check ./a.qcow2 --repair
	[ "$(stat -c %s a.qcow2)" -lt $((1 << 20)) ] || die "it was not cut"
	qemu-img check a.qcow2
	qcow2setup open ./a.qcow2 vm
	qcow2setup close vm
}

test_open_repairs()
{
	qemu-img create -q -f qcow2 -o lazy_refcounts=on a.qcow2 64M
	qemu-io -c 'write -P 7 0 1M' a.qcow2 >/dev/null
	set_bits a.qcow2 79 01
	exits 4 'check --repair /.*--repair or' qcow2setup open ./a.qcow2 vm
	exits 1 'do not go together' \
		qcow2setup open ./a.qcow2 vm --repair --read-only
	qcow2setup open ./a.qcow2 vm --read-only
	exits 5 'vm' qcow2setup open ./a.qcow2 vm2 --repair
	qcow2setup close vm
	qcow2setup open ./a.qcow2 vm --repair
	qemu-io -f raw -c 'read -P 7 0 1M' /dev/mapper/vm >out
	fails grep failed out
	qcow2setup close vm
	qemu-img check a.qcow2
	# Nothing to repair
	qcow2setup open ./a.qcow2 vm --repair
	qcow2setup close vm
	# What cannot be repaired is not opened: L1 beyond the end
	set_bits a.qcow2 79 01
	set_bits a.qcow2 42 7f
	exits 4 '' qcow2setup open ./a.qcow2 vm --repair
	fails test -e /dev/mapper/vm
}

test_check_of_a_block_device()
{
	local loop

	truncate -s 16M disk
	loop=$(attach disk)
	qemu-img create -q -f qcow2 "$loop" 4M
	qemu-io -f qcow2 -c 'write 0 1M' "$loop" >/dev/null
	exits 0 'No errors' qcow2setup check "$loop"
	exits 0 'No errors' qcow2setup check "$loop" --repair
	qcow2setup open "$loop" vm
	exits 1 'vm' qcow2setup check "$loop"
	qcow2setup close vm
	losetup -d "$loop"
}

main "$@"

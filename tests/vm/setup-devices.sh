#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup and images on block devices: partitions, logical volumes (linear
# devices: all that the kernel knows of them), and what becomes of writes when one
# is full.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# volume MIB: the logical volume lv, of so many MiB, new or longer
volume()
{
	local table="0 $(($1 * 2048)) linear /dev/ram0 0"

	if dmsetup info lv >/dev/null 2>&1; then
		# As lvextend does it
		dmsetup load lv --table "$table"
		dmsetup suspend lv
		dmsetup resume lv
	else
		modprobe brd rd_nr=1 rd_size=131072
		dmsetup create lv --table "$table"
	fi
}

remove_volume()
{
	dmsetup remove lv
	rmmod brd
}

# no_space_timeout SECONDS: how long a write waits; the default may not be enough
# in a slow machine.
no_space_timeout()
{
	echo "$1" >/sys/module/dm_qcow2/parameters/no_space_timeout
}

kernel_mode_is()
{
	[ "$(qcow2setup status vm --json | jq -r .kernel.mode)" = "$1" ]
}

events()
{
	dmsetup info -c --noheadings -o events vm
}

# write_data FIRST COUNT: so many MiB of the file data, to where they are in it
write_data()
{
	dd if=data of=/dev/mapper/vm bs=1M skip="$1" seek="$1" count="$2" \
		oflag=direct conv=notrunc status=none
}

# Longer than the image; what is beside it is not touched.
test_a_partition()
{
	local part

	scsi_disk dev_size_mb=48
	head -c 48M /dev/zero | tr '\0' n >"$disk"
	printf 'label: gpt\nsize=20MiB\nsize=10MiB\n' | sfdisk -q "$disk"
	part=${disk}1
	wait_for 10 test -b "${disk}2"
	dd if="${disk}2" bs=1M status=none | sha256sum >beside
	dd if="$disk" bs=1M skip=32 status=none | sha256sum >behind
	qemu-img create -q -f qcow2 "$part" 8M
	qcow2setup open "$part" vm
	equal "$(qcow2setup status vm --json | jq -r '.layers[0].device')" \
		"$part" "device"
	equal "$(qcow2setup status vm --json | jq '.kernel."total-clusters"')" \
		320 "clusters"
	equal "$(losetup -n -O BACK-FILE)" "$part" "holders of locks"
	exits 1 'lock' qemu-io -c 'write 0 512' "$part"
	exits 5 'open for writing as device vm' qcow2setup open "$part" b
	# Nor can the table of the partitions change under it.
	fails blockdev --rereadpt "$disk"
	io vm -c 'write -P 1 0 8M' -c 'discard 2M 2M' -c 'write -P 2 3M 1M' \
		-c 'read -P 1 0 2M' -c 'read -P 0 2M 1M' -c 'read -P 2 3M 1M'
	qcow2setup close vm
	equal "$(losetup -n -O BACK-FILE)" "" "holders of locks"
	equal "$(blockdev --getsize64 "$part")" $((20 << 20)) "partition"
	dd if="${disk}2" bs=1M status=none | sha256sum | cmp - beside
	dd if="$disk" bs=1M skip=32 status=none | sha256sum | cmp - behind
	qemu-img check "$part"
	qcow2setup open "$part" vm
	io vm -c 'read -P 1 4M 4M' -c 'read -P 0 2M 1M' -c 'read -P 2 3M 1M'
	qcow2setup close vm
	nothing_left
	rmmod scsi_debug
}

# The event comes early enough to extend the volume; if nobody does, writes wait,
# and nothing is lost.
test_a_volume_that_fills_up()
{
	local count dd

	volume 12
	qemu-img create -q -f qcow2 /dev/mapper/lv 32M
	dd if=/dev/urandom of=data bs=1M count=22 status=none
	qcow2setup open /dev/mapper/lv vm
	no_space_timeout 300
	matches "$(qcow2setup status vm)" 'no space: *writes wait' "status"
	equal "$(qcow2setup status vm --json | jq -r '."no-space"')" queue \
		"no space"
	count=$(events)
	write_data 0 8
	equal "$(events)" "$count" "events before the watermark"
	write_data 8 3
	equal "$(events)" $((count + 1)) "events behind it"
	kernel_mode_is rw
	write_data 11 11 &
	dd=$!
	wait_for 60 kernel_mode_is no_space
	equal "$(events)" $((count + 2)) "events without space"
	kill -0 "$dd"
	# What is there can be read and written.
	write_data 0 2
	cmp -n $((11 << 20)) data /dev/mapper/vm
	kill -0 "$dd"
	volume 32
	wait "$dd"
	kernel_mode_is rw
	cmp -n $((22 << 20)) data /dev/mapper/vm
	qcow2setup close vm
	qemu-img check /dev/mapper/lv
	qemu-img convert -f qcow2 -O raw /dev/mapper/lv raw
	cmp -n $((22 << 20)) data raw
	no_space_timeout 60
	remove_volume
	nothing_left
}

test_no_space_error()
{
	volume 12
	qemu-img create -q -f qcow2 /dev/mapper/lv 32M
	dd if=/dev/urandom of=data bs=1M count=30 status=none
	exits 1 "'full' is neither queue .*error" \
		qcow2setup open /dev/mapper/lv vm --no-space=full
	exits 1 'do not go together' \
		qcow2setup open /dev/mapper/lv vm --no-space=error --read-only
	exits 1 'is not an option of close' qcow2setup close vm --no-space=error
	qcow2setup open /dev/mapper/lv vm --no-space=error
	matches "$(qcow2setup status vm)" 'no space: *writes fail' "status"
	equal "$(qcow2setup status vm --json | jq -r '."no-space"')" error \
		"no space"
	fails write_data 0 20 2>err
	matches "$(cat err)" 'No space left' "error"
	kernel_mode_is no_space
	# What is there can be read and written.
	write_data 0 2
	cmp -n $((10 << 20)) data /dev/mapper/vm
	# What is given back is used again, after a commit that makes that last.
	blkdiscard -o $((4 << 20)) -l $((4 << 20)) /dev/mapper/vm
	write_data 25 3
	kernel_mode_is rw
	fails write_data 4 4 2>err
	matches "$(cat err)" 'No space left' "error"
	volume 32
	write_data 4 4
	kernel_mode_is rw
	cmp -n $((8 << 20)) data /dev/mapper/vm
	cmp -i $((25 << 20)) -n $((3 << 20)) data /dev/mapper/vm
	qcow2setup close vm
	qemu-img check /dev/mapper/lv
	remove_volume
	nothing_left
}

keeps_error()
{
	local words

	words=$(dmsetup table vm)
	matches "$words" ' error_if_no_space( |$)' "table after $1"
	[[ $words != *explicit_zeroes* ]] || die "job's features are left: $words"
	equal "$(qcow2setup status vm --json | jq -r '."no-space"')" error \
		"status after $1"
}

# What it held is given back though nobody but a holder of locks has the volume open.
test_commit_of_a_volume()
{
	volume 12
	qemu-img create -q -f qcow2 base 8M
	qemu-img create -q -f qcow2 -b "$PWD/base" -F qcow2 /dev/mapper/lv
	qcow2setup open /dev/mapper/lv vm
	io vm -c 'write -P 1 0 1M'
	qcow2setup commit vm
	qcow2setup close vm
	qemu-img check /dev/mapper/lv
	qemu-img check base
	remove_volume
}

# However the table changes
test_no_space_error_is_kept()
{
	qemu-img create -q -f qcow2 base 8M
	qcow2setup open ./base vm --no-space=error
	keeps_error open
	io vm -c 'write -P 1 0 1M'
	qcow2setup snapshot vm ./one
	keeps_error snapshot
	io vm -c 'write -P 2 1M 1M'
	qcow2setup resize vm 16M
	keeps_error resize
	qcow2setup snapshot vm=two
	keeps_error 'group snapshot'
	io vm -c 'write -P 3 2M 1M'
	qcow2setup commit vm
	keeps_error commit
	qcow2setup revert vm one three
	keeps_error revert
	io vm -c 'write -P 4 3M 1M'
	qcow2setup pull vm --base ./base
	keeps_error pull
	qcow2setup copy vm ./four --pivot
	keeps_error 'copy --pivot'
	io vm -c 'read -P 1 0 1M' -c 'read -P 2 1M 1M' -c 'read -P 4 3M 1M'
	qcow2setup close vm
	# It belongs to the device, not to the image.
	qcow2setup open ./four vm
	equal "$(qcow2setup status vm --json | jq -r '."no-space"')" queue \
		"opened again"
	qcow2setup close vm
	qcow2setup open ./four vm --read-only
	equal "$(qcow2setup status vm --json | jq -r '."no-space"')" null \
		"read-only"
	qcow2setup close vm
}

main "$@"

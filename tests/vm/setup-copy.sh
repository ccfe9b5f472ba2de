#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup copy: to qcow2 and raw, whole and shallow, open and closed, with and
# without going on in the copy.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# allocated FILE: bytes on the disk
allocated()
{
	echo $(($(stat -c %b "$1") * 512))
}

test_closed()
{
	chain shorter
	contents active qcow2 >sum
	copy_chain before .
	qcow2setup copy ./active one.qcow2
	equal "$(contents one.qcow2 qcow2)" "$(<sum)" "qcow2"
	equal "$(backing one.qcow2)" none "link"
	qcow2setup copy ./active one.raw --format raw
	equal "$(contents one.raw raw)" "$(<sum)" "raw"
	qcow2setup copy ./active top.qcow2 --shallow
	equal "$(contents top.qcow2 qcow2)" "$(<sum)" "shallow"
	equal "$(backing top.qcow2)" sn3 "link"
	check_images one.qcow2 top.qcow2
	[ "$(allocated one.raw)" -lt $((14 << 20)) ] || die "not sparse"
	for image in base sn1 sn2 sn3 active; do
		cmp "$image" "before/$image"
	done
	exits 5 'already exists' qcow2setup copy ./active one.raw
	exits 1 'for devices that write' qcow2setup copy ./active x --pivot
	all_gone
}

# copy_finish KIND
copy_finish()
{
	chain "$1"
	qcow2setup open ./active vm
	before=$(device_contents vm)
	qcow2setup copy vm one.qcow2
	equal "$(layers vm)" "active sn3 sn2 sn1 base" "layers"
	qemu-io -f raw -c 'write -P 77 0 2M' /dev/mapper/vm >/dev/null
	qcow2setup copy vm one.raw --format raw --finish
	qcow2setup open ./one.qcow2 copy
	equal "$(device_contents copy)" "$before" "qcow2"
	qcow2setup close copy
	equal "$(sha256sum <one.raw)" "$(device_contents vm)" "raw"
	qcow2setup close vm
	check_images one.qcow2 active
	all_gone
}

test_finish()
{
	copy_finish mixed
}

test_finish_compressed()
{
	copy_finish compressed
}

test_finish_datafile()
{
	copy_finish datafile
}

test_finish_subclusters()
{
	copy_finish subclusters
}

# copy_pivot KIND
copy_pivot()
{
	chain "$1"
	copy_chain before .
	qcow2setup open ./active vm
	before=$(device_contents vm)
	qcow2setup copy vm top.qcow2 --shallow --pivot
	equal "$(layers vm)" "top.qcow2 sn3 sn2 sn1 base" "layers"
	equal "$(device_contents vm)" "$before" "shallow"
	qcow2setup copy vm one.qcow2 --pivot
	equal "$(layers vm)" "one.qcow2" "layers"
	equal "$(device_contents vm)" "$before" "whole"
	qcow2setup copy vm one.raw --format raw --pivot
	equal "$(layers vm)" "one.raw" "layers"
	equal "$(device_contents vm)" "$before" "raw"
	qemu-io -f raw -c 'write -P 78 3M 1M' /dev/mapper/vm >/dev/null
	before=$(device_contents vm)
	qcow2setup close vm
	equal "$(sha256sum <one.raw)" "$before" "contents"
	check_images top.qcow2 one.qcow2
	for image in base sn1 sn2 sn3; do
		cmp "$image" "before/$image"
	done
	all_gone
}

test_pivot()
{
	copy_pivot mixed
}

test_pivot_compressed()
{
	copy_pivot compressed
}

test_pivot_datafile()
{
	copy_pivot datafile
}

test_pivot_subclusters()
{
	copy_pivot subclusters
}

# What was on the device before must not show through.
# It is a loop device that is full, or broken even.
test_full_file_system()
{
	local format

	qemu-img create -q -f qcow2 active 64M
	qemu-io -c 'write -P 7 0 40M' active >/dev/null
	truncate -s 20M small
	mkfs.ext4 -q small
	mkdir mnt
	mount -o loop small mnt
	for format in raw qcow2; do
		exits 4 'file system of .*/mnt/copy is full' \
			qcow2setup copy ./active mnt/copy --format "$format"
		qcow2setup open ./active vm
		exits 4 'file system of .*/mnt/copy is full' \
			qcow2setup copy vm mnt/copy --format "$format"
		qcow2setup close vm
		equal "$(ls mnt)" 'lost+found' "files"
	done
	umount mnt
	all_gone
}

test_block_device()
{
	modprobe brd rd_nr=2 rd_size=40960
	dd if=/dev/urandom of=/dev/ram0 bs=1M status=none || true
	chain plain
	qcow2setup open ./active vm
	before=$(device_contents vm)
	qcow2setup copy vm /dev/ram0 --format raw
	equal "$(head -c 24M /dev/ram0 | sha256sum)" "$before" "raw"
	qcow2setup copy vm /dev/ram1 --pivot
	equal "$(device_contents vm)" "$before" "qcow2"
	qcow2setup close vm
	qcow2setup open /dev/ram1 vm
	equal "$(device_contents vm)" "$before" "opened again"
	qcow2setup close vm
	all_gone
	rmmod brd
}

is_locked()
{
	[ -n "$(locked /dev/ram0)" ]
}

# From the first sector that is written to the last; what looks for stray locks in
# between finds that these are not.
test_a_raw_device_is_locked()
{
	local write=(qemu-io -f raw -c 'write 0 512' /dev/ram0)

	modprobe brd rd_nr=1 rd_size=40960
	chain plain
	qcow2setup open ./active vm
	qcow2setup copy vm /dev/ram0 --format raw --pivot --bandwidth 4M --detach
	wait_for 20 is_locked
	while qcow2setup jobs --json | jq -e '.[0].state == "running"'; do
		exits 1 'lock' "${write[@]}"
		qcow2setup list
		exits 1 'lock' "${write[@]}"
		sleep 1
	done
	qcow2setup wait vm
	equal "$(layers vm)" ram0 "layers"
	equal "$(locked /dev/ram0)" "100-101 103-103 201-201 203-203" "locks"
	exits 1 'lock' "${write[@]}"
	qcow2setup close vm
	"${write[@]}"
	all_gone
	rmmod brd
}

# What others have at DEST, or behind it, stays theirs.
test_same_name()
{
	chain plain
	contents active qcow2 >sum
	qemu-img create -q -f qcow2 other 4M
	qcow2setup open ./active vm
	for format in qcow2 raw; do
		qcow2setup copy vm copy --format "$format" --bandwidth 4M --detach
		wait_for 20 test -e copy.qcow2setup.partial
		exits 5 'copy.qcow2setup.partial' \
			qcow2setup copy ./other copy --format "$format"
		qcow2setup wait vm
		equal "$(contents copy "$format")" "$(<sum)" "$format"
		rm copy
		qcow2setup copy vm copy --format "$format" --bandwidth 8M --detach
		echo mine >copy
		exits 5 'by somebody else' qcow2setup wait vm
		equal "$(<copy)" mine "the other file"
		fails test -e copy.qcow2setup.partial
		rm copy
	done
	qcow2setup close vm
	# An empty file is taken, as by create.
	touch copy
	qcow2setup copy ./active copy
	equal "$(contents copy qcow2)" "$(<sum)" "over an empty file"
	# Its owner has said who may read it.
	for format in raw qcow2; do
		mkdir -p there
		: >there/copy
		chmod 600 there/copy
		chown 1000:1001 there/copy
		ln -sf there/copy link
		qcow2setup copy ./active link --format "$format"
		equal "$(stat -c '%a %u %g' there/copy)" '600 1000 1001' "owner"
		equal "$(contents there/copy "$format")" "$(<sum)" "contents"
		[ -L link ]
		rm there/copy
	done
	all_gone
}

# Clearing the device is a part of the job: it is seen, paced, and stopped.
test_clearing()
{
	local job

	modprobe brd rd_nr=1 rd_size=40960
	dd if=/dev/urandom of=/dev/ram0 bs=1M status=none || true
	dd if=/dev/ram0 of=end bs=1M skip=22 count=2 status=none
	chain plain
	qcow2setup open ./active vm
	equal "$(cat /sys/block/ram0/queue/write_zeroes_max_bytes)" 0 "command"
	qcow2setup copy vm /dev/ram0 --format raw --bandwidth 512K --detach
	sleep 2
	job=$(qcow2setup jobs --json)
	echo "$job"
	jq -e ".[0] | .done > 0 and .done < 16 * 1024 * 1024" <<<"$job"
	jq -e ".[0].total >= 24 * 1024 * 1024" <<<"$job"
	# Meanwhile others are not held up.
	qcow2setup create ./other 1M
	qcow2setup cancel vm
	equal "$(qcow2setup jobs --json | jq length)" 0 "jobs"
	equal "$(layers vm)" "active sn3 sn2 sn1 base" "layers"
	# It had not come that far.
	dd if=/dev/ram0 bs=1M skip=22 count=2 iflag=direct status=none | cmp - end
	qcow2setup close vm
	all_gone
	rmmod brd
}

main "$@"

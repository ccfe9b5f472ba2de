#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup: other sizes of what is in use.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# sizes DEVICE IMAGE BYTES: of the device, and in the header, which is read past
# the page cache
sizes()
{
	equal "$(blockdev --getsize64 "/dev/mapper/$1")" "$3" "size of $1"
	equal "$(qcow2setup info "$2" --json | jq '."virtual-size"')" "$3" \
		"size of $2"
}

test_a_mounted_device_gets_longer()
{
	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qcow2setup open ./top.qcow2 vm
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt
	mount /dev/mapper/vm mnt
	head -c 8M /dev/urandom >mnt/one
	sha256sum mnt/one >sum
	qcow2setup resize vm +1G --json >out
	equal "$(jq -c '[.name, ."old-size", ."virtual-size"]' out)" \
		"[\"vm\",$((64 << 20)),$((1088 << 20))]" "report"
	sizes vm ./top.qcow2 $((1088 << 20))
	resize2fs /dev/mapper/vm 2>&1
	# More than there was room for in an image of 64 MiB
	head -c 80M /dev/zero | tr '\0' x >mnt/two
	sync
	umount mnt
	e2fsck -fn /dev/mapper/vm
	qcow2setup close vm
	qemu-img check top.qcow2
	qcow2setup open ./top.qcow2 vm --read-only
	mount -o ro /dev/mapper/vm mnt
	sha256sum -c sum
	equal "$(tr -d x <mnt/two | wc -c)" 0 "what was written behind the old end"
	umount mnt
	exits 4 'read-only' qcow2setup resize vm +1G
	qcow2setup close vm
}

# While somebody writes and flushes
test_resize_under_load()
{
	local size=$((64 << 20)) i

	qemu-img create -q -f qcow2 -o cluster_size=512 a.qcow2 64M
	qcow2setup open ./a.qcow2 vm
	fio --name=load --filename=/dev/mapper/vm --direct=1 --bs=4k \
		--rw=randwrite --size=8M --verify=crc32c --fsync=16 \
		--verify_fatal=1 --time_based --runtime=600 \
		--output=fio.out &
	sleep 2
	for i in 1 2 3 4 5; do
		size=$((size + (i << 21) + 512))
		qcow2setup resize vm "$size"
		sizes vm ./a.qcow2 "$size"
	done
	kill -INT $!
	wait $! || true
	fails grep -i 'verify: bad\|error=' fio.out
	io vm -c "read -P 0 64M $((size - (64 << 20)))"
	# It is one table later what it was before.
	qcow2setup snapshot vm b.qcow2
	sizes vm ./b.qcow2 "$size"
	fails grep extend <(dmsetup table vm)
	qcow2setup close vm
	qemu-img check a.qcow2
	qemu-img check b.qcow2
}

test_partitions_stay()
{
	qemu-img create -q -f qcow2 a.qcow2 64M
	qcow2setup open ./a.qcow2 vm
	echo ',32M' | sfdisk -q /dev/mapper/vm
	qcow2setup close vm
	qcow2setup open ./a.qcow2 vm --partitions
	mkfs.ext4 -q /dev/mapper/vm1
	mkdir mnt
	mount /dev/mapper/vm1 mnt
	echo text >mnt/file
	qcow2setup resize vm 128M
	sizes vm ./a.qcow2 $((128 << 20))
	equal "$(blockdev --getsize64 /dev/mapper/vm1)" $((32 << 20)) \
		"size of the partition"
	equal "$(cat mnt/file)" text "the file"
	umount mnt
	qcow2setup close vm
	fails test -e /dev/mapper/vm1
}

test_what_cannot_get_longer()
{
	local size=$((32 << 20))

	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 32M
	qcow2setup open ./top.qcow2 vm
	exits 4 'base.qcow2 is longer' qcow2setup resize vm 48M
	exits 5 'cannot become shorter' qcow2setup resize vm 16M
	exits 5 'cannot become shorter' qcow2setup resize vm --shrink -1M
	exits 1 'not a size' qcow2setup resize vm 1Q
	exits 5 'vm' qcow2setup resize ./top.qcow2 48M
	exits 5 'vm' qcow2setup resize ./base.qcow2 128M
	sizes vm ./top.qcow2 "$size"
	dmsetup suspend vm
	exits 5 'suspended' qcow2setup resize vm 48M
	dmsetup resume vm
	qcow2setup close vm
	exits 4 'vm is not active' qcow2setup resize vm 48M
	# What only the kernel sees: the device goes on.
	qemu-img create -q -f qcow2 a.qcow2 $((size + 1024))
	qemu-io -c "write -c -P 5 $size 1k" a.qcow2 >/dev/null
	qcow2setup open ./a.qcow2 vm
	exits 4 'compressed' qcow2setup resize vm 48M
	io vm -c "read -P 5 $size 1k" -c "write -P 6 0 64k" -c "read -P 6 0 64k"
	sizes vm ./a.qcow2 $((size + 1024))
	qcow2setup close vm
	qemu-img check a.qcow2
	qcow2setup resize ./a.qcow2 48M
	qcow2setup open ./a.qcow2 vm
	sizes vm ./a.qcow2 $((48 << 20))
	io vm -c "read -P 5 $size 1k" -c "read -P 0 $((size + 1024)) 15M"
	qcow2setup close vm
}

# The kernel refused, and nobody was left who could have loaded the old table.
test_recovers_from_a_refused_resize()
{
	local layer size=$((32 << 20)) uuid

	qemu-img create -q -f qcow2 a.qcow2 $((size + 1024))
	qemu-io -c "write -c -P 5 $size 1k" a.qcow2 >/dev/null
	qcow2setup open ./a.qcow2 vm
	layer=$(dmsetup table vm | cut -d ' ' -f 5-6)
	uuid=$(dmsetup info -c --noheadings -o uuid vm)
	jq -n --arg uuid "$uuid" --argjson sectors $(((size + 1024) / 512)) \
		'{operation: "pivot", name: "vm", $uuid, $sectors}' \
		>/run/qcow2setup/journal
	dmsetup load vm --table "0 98304 qcow2 1 $layer - 1 extend"
	fails dmsetup resume vm
	matches "$(dmsetup info vm)" SUSPENDED "state"
	qcow2setup list
	matches "$(dmsetup info vm)" ACTIVE "state"
	sizes vm ./a.qcow2 $((size + 1024))
	io vm -c "read -P 5 $size 1k" -c "write -P 6 0 64k" -c "read -P 6 0 64k"
	qcow2setup close vm
	qemu-img check a.qcow2
}

test_raw_gets_longer()
{
	local loop

	head -c 4M /dev/zero | tr '\0' y >raw
	qcow2setup open ./raw vm --backing-format raw=raw
	qcow2setup resize vm 6M
	equal "$(stat -c %s raw)" $((6 << 20)) "length"
	equal "$(blockdev --getsize64 /dev/mapper/vm)" $((6 << 20)) "size"
	io vm -c 'read -P 0x79 0 4M' -c 'read -P 0 4M 2M' -c 'write -P 1 5M 1M'
	qcow2setup close vm
	truncate -s 4M disk
	loop=$(attach disk)
	qcow2setup open "$loop" vm --backing-format "$loop=raw"
	exits 4 'make it longer first' qcow2setup resize vm 8M
	truncate -s 8M disk
	losetup -c "$loop"
	qcow2setup resize vm 8M
	equal "$(blockdev --getsize64 /dev/mapper/vm)" $((8 << 20)) "size"
	io vm -c 'write -P 1 7M 1M' -c 'read -P 1 7M 1M'
	qcow2setup close vm
	losetup -d "$loop"
}

test_resize_on_a_block_device()
{
	local loop

	truncate -s 64M disk
	loop=$(attach disk)
	qemu-img create -q -f qcow2 "$loop" 16M
	qcow2setup open "$loop" vm
	io vm -c 'write -P 1 15M 1M'
	qcow2setup resize vm 1T
	sizes vm "$loop" $((1 << 40))
	io vm -c 'read -P 1 15M 1M' -c 'write -P 2 1023G 1M' \
		-c 'read -P 2 1023G 1M' -c 'read -P 0 16M 16M'
	qcow2setup close vm
	qemu-img check "$loop"
	losetup -d "$loop"
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup snapshot: live, under a busy file system, with overlays made before,
# on block devices; its failures, and its death.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

pair()
{
	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qcow2setup open ./top.qcow2 vm
}

test_closed_image()
{
	qemu-img create -q -f qcow2 a.qcow2 64M
	mkdir sub
	qcow2setup snapshot ./a.qcow2 b.qcow2
	qcow2setup snapshot ./a.qcow2 sub/c.qcow2
	equal "$(qemu-img info --output=json b.qcow2 |
		jq -r '."backing-filename" + " " + ."backing-filename-format"')" \
		"a.qcow2 qcow2" "link"
	equal "$(qemu-img info --output=json sub/c.qcow2 |
		jq -r '."full-backing-filename"')" "$PWD/a.qcow2" "link"
	exits 5 'already exists' qcow2setup snapshot ./a.qcow2 b.qcow2
	qcow2setup snapshot ./a.qcow2 b.qcow2 --existing
	exits 4 'not of the image' qcow2setup snapshot ./b.qcow2 sub/c.qcow2 \
		--existing
}

test_live()
{
	pair
	qemu-io -f raw -c 'write -P 1 0 4M' /dev/mapper/vm >/dev/null
	size=$(blockdev --getsize64 /dev/mapper/vm)
	qcow2setup snapshot vm s1.qcow2
	equal "$(layers vm)" "s1.qcow2 top.qcow2 base.qcow2" "layers"
	equal "$(blockdev --getsize64 /dev/mapper/vm)" "$size" "size"
	sha256sum top.qcow2 base.qcow2 >sums
	qemu-io -f raw -c 'write -P 2 1M 1M' /dev/mapper/vm >/dev/null
	qcow2setup snapshot vm s2.qcow2 --json >out
	equal "$(jq -r .overlay out)" "$PWD/s2.qcow2" "overlay"
	qemu-io -f raw -c 'write -P 3 2M 1M' -c 'read -P 1 0 1M' \
		-c 'read -P 2 1M 1M' -c 'read -P 3 2M 1M' \
		-c 'read -P 1 3M 1M' /dev/mapper/vm >out
	fails grep failed out
	sha256sum -c sums
	qcow2setup close vm
	sha256sum -c sums
	qemu-io -c 'read -P 1 0 1M' -c 'read -P 2 1M 1M' -c 'read -P 3 2M 1M' \
		s2.qcow2 >out
	qemu-io -c 'read -P 1 0 4M' top.qcow2 >>out
	fails grep failed out
	qemu-img check s2.qcow2
	qemu-img check s1.qcow2
	qemu-img check top.qcow2
	nothing_left
}

# Each snapshot must hold a consistent file system, and the last all data.
test_busy_file_system()
{
	pair
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt
	mount /dev/mapper/vm mnt
	(
		i=0
		until [ -e stop ]; do
			i=$((i + 1))
			head -c 200000 /dev/urandom >mnt/f$((i % 20))
			[ $((i % 5)) != 0 ] || sync -f mnt
		done
	) &
	writer=$!
	for i in 1 2 3; do
		sleep 1
		qcow2setup snapshot vm "s$i.qcow2"
	done
	sleep 1
	touch stop
	wait "$writer"
	(cd mnt && sha256sum f*) >sums
	umount mnt
	e2fsck -fn /dev/mapper/vm
	mount -o ro /dev/mapper/vm mnt
	(cd mnt && sha256sum --quiet -c ../sums)
	umount mnt
	qcow2setup close vm
	for i in top.qcow2 s1.qcow2 s2.qcow2 s3.qcow2; do
		qemu-img check "$i"
		# Frozen, not crashed: no journal to replay
		qcow2setup open "./$i" one --read-only
		e2fsck -fn /dev/mapper/one
		qcow2setup close one
	done
	nothing_left
}

test_existing_overlay()
{
	pair
	qemu-img create -q -f qcow2 -u -b top.qcow2 -F qcow2 good.qcow2 64M
	qemu-img create -q -f qcow2 -u -b top.qcow2 -F qcow2 long.qcow2 65M
	qemu-img create -q -f qcow2 -u -b top.qcow2 -F qcow2 small.qcow2 63M
	qemu-img create -q -f qcow2 -u -b base.qcow2 -F qcow2 other.qcow2 64M
	qemu-img create -q -f qcow2 -u -b top.qcow2 -F raw raw.qcow2 64M
	qemu-img create -q -f qcow2 alone.qcow2 64M
	cp alone.qcow2 full.qcow2
	qemu-io -c 'write 0 64k' full.qcow2 >/dev/null
	qemu-img rebase -q -u -b top.qcow2 -F qcow2 full.qcow2
	exits 4 'too small' qcow2setup snapshot vm small.qcow2 --existing
	exits 4 'not of the image' qcow2setup snapshot vm other.qcow2 --existing
	exits 4 'takes its backing file for raw' \
		qcow2setup snapshot vm raw.qcow2 --existing
	exits 4 'no backing file' qcow2setup snapshot vm alone.qcow2 --existing
	exits 4 'not empty' qcow2setup snapshot vm full.qcow2 --existing
	exits 4 'does not exist' qcow2setup snapshot vm none.qcow2 --existing
	exits 5 'already exists' qcow2setup snapshot vm good.qcow2
	exits 4 'backing chain|not of the image|no backing' \
		qcow2setup snapshot vm base.qcow2 --existing
	equal "$(layers vm)" "top.qcow2 base.qcow2" "layers"
	qcow2setup snapshot vm good.qcow2 --existing
	equal "$(layers vm)" "good.qcow2 top.qcow2 base.qcow2" "layers"
	qcow2setup close vm
	qemu-img rebase -q -u -b good.qcow2 -F qcow2 long.qcow2
	qcow2setup open ./good.qcow2 vm
	qcow2setup snapshot vm long.qcow2 --existing
	equal "$(blockdev --getsize64 /dev/mapper/vm)" $((64 << 20)) "size"
	qcow2setup close vm
	nothing_left
}

# preallocated IMAGE: an overlay whose clusters are there, and are not read yet
preallocated()
{
	qemu-img create -q -f qcow2 -u -b "$PWD/top.qcow2" -F qcow2 \
		-o extended_l2=on,cluster_size=128k,preallocation=metadata \
		"$1" 64M
}

# goes_on IMAGE: a snapshot into it, which must be written without new clusters
goes_on()
{
	local used

	used=$(image_end "$1")
	qcow2setup snapshot vm "$1" --existing
	qemu-io -f raw -c 'read -P 1 0 1M' -c 'write -P 2 5000 100000' \
		-c 'read -P 1 0 5000' -c 'read -P 2 5000 100000' \
		-c 'read -P 1 105000 943576' /dev/mapper/vm >out
	fails grep failed out
	qcow2setup close vm
	equal "$(image_end "$1")" "$used" "end of the last cluster"
	qemu-img check "$1"
	qcow2setup open ./top.qcow2 vm --read-only
	qemu-io -r -f raw -c 'read -P 1 0 1M' /dev/mapper/vm >out
	fails grep failed out
	qcow2setup close vm
	# It has data now.
	exits 4 'not empty' qcow2setup snapshot ./top.qcow2 "$1" --existing
}

# image_end IMAGE: where its last cluster ends
image_end()
{
	qemu-img check -U --output=json "$1" | jq '."image-end-offset"'
}

test_preallocated_overlay()
{
	pair
	qemu-io -f raw -c 'write -P 1 0 1M' /dev/mapper/vm >/dev/null
	preallocated file.qcow2
	goes_on ./file.qcow2
	modprobe brd rd_nr=1 rd_size=131072
	qcow2setup open ./top.qcow2 vm
	preallocated /dev/ram0
	goes_on /dev/ram0
	nothing_left
	rmmod brd
}

test_refused()
{
	pair
	dmsetup suspend vm
	exits 5 'suspended' qcow2setup snapshot vm s.qcow2
	dmsetup resume vm
	exits 4 'No such file' qcow2setup snapshot vm none/s.qcow2
	exits 5 'open for writing as device vm' qcow2setup snapshot vm top.qcow2
	exits 5 'a lower layer of device vm' qcow2setup snapshot vm base.qcow2
	exits 4 'not active' qcow2setup snapshot other s.qcow2
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt
	mount /dev/mapper/vm mnt
	qemu-img create -q -f qcow2 mnt/s.qcow2 -b "$PWD/top.qcow2" -F qcow2
	exits 1 'is on device vm' qcow2setup snapshot vm mnt/new.qcow2
	exits 1 'is on device vm' qcow2setup snapshot vm mnt/s.qcow2 --existing
	exits 1 'is on device vm itself' qcow2setup copy vm mnt/new.qcow2
	qemu-img create -q -f raw mnt/raw 4M
	exits 1 'cannot stand on it' qcow2setup rebase vm -b mnt/raw -F raw
	fails test -e mnt/new.qcow2
	umount mnt
	qcow2setup close vm
	qcow2setup open ./top.qcow2 vm --read-only
	exits 4 'read-only' qcow2setup snapshot vm s.qcow2
	qcow2setup close vm
	fails test -e s.qcow2
	nothing_left
}

# A file system in a file on the device itself: the kernel would wait for ever. The
# overlay is on a partition, and what lies in between is not ours.
test_on_the_device_by_a_loop()
{
	pair
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt inner
	mount /dev/mapper/vm mnt
	truncate -s 20M mnt/disk
	echo '2048,,L' | sfdisk -q mnt/disk
	loop=$(losetup --find --show --partscan mnt/disk)
	wait_for 10 test -b "${loop}p1"
	mkfs.ext4 -q "${loop}p1"
	mount "${loop}p1" inner
	exits 1 'is on device vm' timeout 60 qcow2setup snapshot vm inner/new
	exits 1 'is on device vm itself' timeout 60 qcow2setup copy vm inner/new
	umount inner
	losetup -d "$loop"
	umount mnt
	qcow2setup close vm
	nothing_left
}

# No table can be loaded over a chain that the kernel refuses: here, because
# its overlay's clusters are smaller than a block.
test_failure_leaves_nothing()
{
	scsi_disk sector_size=4096 dev_size_mb=64
	pair
	before=$(dmsetup table vm)
	qemu-img create -q -f qcow2 -o cluster_size=512 -u -b "$PWD/top.qcow2" \
		-F qcow2 "$disk" 64M
	fails qcow2setup snapshot vm "$disk" --existing
	equal "$(dmsetup table vm)" "$before" "table"
	equal "$(dmsetup info -c --noheadings -o tables_loaded,suspended vm)" \
		"Live:Active" "state"
	equal "$(losetup -n -O BACK-FILE | grep -c "$disk")" 0 "holders of locks"
	equal "$(find /run/qcow2setup -name journal)" "" "journal"
	qemu-io -f raw -c 'write -P 5 0 1M' /dev/mapper/vm >/dev/null
	qcow2setup snapshot vm s.qcow2
	qcow2setup close vm
	nothing_left
	rmmod scsi_debug
}

# Logical volumes, as far as the kernel can tell: no loop device for the data,
# but the locks, and one that nobody reads to hold them.
test_block_devices()
{
	modprobe brd rd_nr=3 rd_size=131072
	for i in 0 1 2; do
		dmsetup create "lv$i" --table "0 262144 linear /dev/ram$i 0"
	done
	qcow2setup create /dev/mapper/lv0 64M
	qcow2setup create /dev/mapper/lv1 -b /dev/mapper/lv0 -F qcow2
	qcow2setup open /dev/mapper/lv1 vm
	matches "$(dmsetup table vm)" "qcow2 2 qcow2 253:1 - qcow2 253:0 -$" "table"
	equal "$(losetup -n -O BACK-FILE | sort | xargs)" \
		"/dev/mapper/lv0 /dev/mapper/lv1" "holders of locks"
	exits 1 'lock' qemu-io -c 'write 0 512' /dev/mapper/lv1
	exits 1 'lock' qemu-io -c 'write 0 512' /dev/mapper/lv0
	exits 5 'open for writing as device vm' qcow2setup open /dev/dm-1 b
	exits 5 'open for writing as device vm' qcow2setup create /dev/dm-1 1M
	qemu-io -f raw -c 'write -P 1 0 1M' /dev/mapper/vm >/dev/null
	qemu-img create -q -f qcow2 -u -b /dev/mapper/lv1 -F qcow2 \
		/dev/mapper/lv2 64M
	qcow2setup snapshot vm /dev/mapper/lv2 --existing
	equal "$(layers vm)" "lv2 lv1 lv0" "layers"
	equal "$(losetup -n -O BACK-FILE | sort | xargs)" \
		"/dev/mapper/lv0 /dev/mapper/lv1 /dev/mapper/lv2" \
		"holders of locks"
	qemu-io -f raw -c 'write -P 2 0 512k' /dev/mapper/vm >/dev/null
	qcow2setup close vm
	equal "$(losetup -n -O BACK-FILE)" "" "holders of locks"
	qemu-img check /dev/mapper/lv2
	qemu-io -c 'read -P 2 0 512k' -c 'read -P 1 512k 512k' \
		/dev/mapper/lv2 >out
	fails grep failed out
	# After a plain dmsetup remove the next command clears the holders.
	qcow2setup open /dev/mapper/lv2 vm
	dmsetup remove vm
	qcow2setup list
	equal "$(losetup -n -O BACK-FILE)" "" "holders of locks"
	mkfs.ext4 -q -F /dev/mapper/lv0
	mkdir mnt
	mount /dev/mapper/lv0 mnt
	exits 5 'in use' qcow2setup create /dev/mapper/lv0 1M
	umount mnt
	for i in 0 1 2; do
		dmsetup remove "lv$i"
	done
	nothing_left
	rmmod brd
}

main "$@"

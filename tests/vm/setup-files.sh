#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup and the files of images: locks, the unaligned tail, growth,
# truncation, and what is left behind.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

pair()
{
	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
}

length()
{
	stat -c %s "$1"
}

is_locked()
{
	[ -n "$(locked "$1")" ]
}

no_devices()
{
	[ "$(dmsetup ls)" = "No devices found" ]
}

no_loops()
{
	[ -z "$(losetup -n -O BACK-FILE)" ]
}

test_locks_of_both_roles()
{
	pair
	qcow2setup open ./top.qcow2 vm
	equal "$(locked top.qcow2)" "100-101 103-103 201-201 203-203" "top"
	equal "$(locked base.qcow2)" "100-100 201-201 203-203" "base"
	# QEMU keeps away from the top, and does not write to the base.
	exits 1 'lock' qemu-img info top.qcow2
	exits 1 'lock' qemu-io -c 'write 0 512' top.qcow2
	exits 1 'lock' qemu-io -c 'write 0 512' base.qcow2
	qemu-img info base.qcow2
	# The roles change with a snapshot.
	qcow2setup snapshot vm over.qcow2
	equal "$(locked top.qcow2)" "100-100 201-201 203-203" "old top"
	equal "$(locked over.qcow2)" "100-101 103-103 201-201 203-203" "new top"
	qemu-img info top.qcow2
	exits 1 'lock' qemu-io -c 'write 0 512' top.qcow2
	qcow2setup close vm
	equal "$(locked top.qcow2)$(locked base.qcow2)" "" "after close"
	nothing_left
}

# held by qemu-io until its standard input ends
test_images_that_qemu_has_open()
{
	pair
	mkfifo pipe
	qemu-io top.qcow2 <pipe >/dev/null &
	exec 9>pipe
	wait_for 20 is_locked top.qcow2
	exits 5 'another program' qcow2setup open ./top.qcow2 vm
	exits 5 'another program' qcow2setup open ./top.qcow2 vm --read-only
	exits 5 'another program' \
		qcow2setup create ./over.qcow2 -b top.qcow2 -F qcow2
	exec 9>&-
	wait
	equal "$(length top.qcow2)" 196616 "length of a refused image"
	qemu-io base.qcow2 <pipe >/dev/null &
	exec 9>pipe
	wait_for 20 is_locked base.qcow2
	exits 5 'another program' qcow2setup open ./top.qcow2 vm
	exec 9>&-
	wait
	qemu-io -r top.qcow2 <pipe >/dev/null &
	exec 9>pipe
	wait_for 20 is_locked top.qcow2
	exits 5 'another program' qcow2setup open ./top.qcow2 vm
	qcow2setup open ./top.qcow2 vm --read-only
	qcow2setup close vm
	exec 9>&-
	wait
	nothing_left
}

# A new image ends 8 bytes into a sector, where its L1 table is.
test_tail_of_a_lower_layer()
{
	pair
	printf 'the end' >tail.raw
	truncate -s 65536 tail.raw
	printf 'the end' >>tail.raw
	qemu-img create -q -f qcow2 -b tail.raw -F raw over.qcow2
	sha256sum base.qcow2 tail.raw >sums
	qcow2setup open ./top.qcow2 vm
	qcow2setup open ./over.qcow2 raw
	matches "$(dmsetup ls)" 'qcow2-tail-.*qcow2-tail-' "helper devices"
	qemu-io -f raw -c 'read -P 0 0 64M' /dev/mapper/vm >out
	fails grep failed out
	equal "$(dd if=/dev/mapper/raw bs=7 count=1 iflag=skip_bytes \
		skip=65536 status=none)" "the end" "last sector"
	# Shared, and gone with the last user, without our help.
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top2.qcow2
	qcow2setup open ./top2.qcow2 vm2
	equal "$(dmsetup ls | grep -c tail)" 2 "helper devices"
	dmsetup remove vm
	dmsetup remove vm2
	dmsetup remove raw
	wait_for 10 no_devices
	equal "$(losetup -n -O BACK-FILE)" "" "loop devices"
	sha256sum -c sums
	qcow2setup list
	nothing_left
}

test_growth_and_truncation()
{
	qemu-img create -q -f qcow2 a.qcow2 1G
	before=$(length a.qcow2)
	qcow2setup open ./a.qcow2 vm
	[ "$(length a.qcow2)" -gt $((1 << 30)) ] || die "the file did not grow"
	[ "$(stat -c %b a.qcow2)" -lt 1024 ] || die "the file is not sparse"
	qcow2setup close vm
	equal "$(length a.qcow2)" "$before" "length of an unwritten image"
	qcow2setup open ./a.qcow2 vm
	fio --name=w --filename=/dev/mapper/vm --rw=randwrite --bs=64k \
		--size=1G --io_size=8M --direct=1 --iodepth=8 \
		--ioengine=libaio >out || { cat out; exit 1; }
	used=$(qcow2setup status vm --json | jq '.kernel."used-clusters"')
	qcow2setup close vm
	equal "$(length a.qcow2)" $((used * 65536)) "length after writing"
	qemu-img check a.qcow2
	# Never below the length at open, even if all is discarded.
	before=$(length a.qcow2)
	qcow2setup open ./a.qcow2 vm
	blkdiscard /dev/mapper/vm
	qcow2setup close vm
	equal "$(length a.qcow2)" "$before" "length after a discard"
	qemu-img check a.qcow2
	nothing_left
}

test_no_grow()
{
	qemu-img create -q -f qcow2 a.qcow2 64M
	qcow2setup open ./a.qcow2 vm --no-grow
	equal "$(length a.qcow2)" 197120 "length"
	qcow2setup close vm
	equal "$(length a.qcow2)" 196616 "length after close"
}

# ext4 ends at 16 TiB, and a limit of the process long before.
test_growth_ends_at_limits()
{
	qemu-img create -q -f qcow2 a.qcow2 40T
	qcow2setup open ./a.qcow2 vm 2>out
	matches "$(cat out)" 'file system ends' "message"
	[ "$(length a.qcow2)" -gt $((15 << 40)) ] || die "length $(length a.qcow2)"
	qcow2setup close vm
	qemu-img create -q -f qcow2 b.qcow2 1G
	(ulimit -f $((256 << 10)) && qcow2setup open ./b.qcow2 vm) 2>out
	[ "$(length b.qcow2)" -le $((256 << 20)) ] || die "length $(length b.qcow2)"
	[ "$(length b.qcow2)" -gt $((250 << 20)) ] || die "length $(length b.qcow2)"
	qcow2setup close vm
}

# An empty FAT16 of 64 MiB (mkfs.vfat need not be there): boot sector, two FATs
fat()
{
	python3 - "$1" <<-'PY'
		import struct, sys
		boot = b'\xeb\x3c\x90' + b'MKDOSFS ' + struct.pack(
			'<HBHBHHBHHHII', 512, 4, 1, 2, 512, 0, 0xf8, 128, 32,
			64, 0, 131072)
		boot += b'\x80\0\x29' + b'1234' + b'NO NAME    ' + b'FAT16   '
		fat = b'\xf8\xff\xff\xff'.ljust(128 * 512, b'\0')
		disk = open(sys.argv[1], 'wb')
		disk.write(boot.ljust(510, b'\0') + b'\x55\xaa' + 2 * fat)
		disk.truncate(64 << 20)
	PY
}

test_file_system_without_sparse_files()
{
	fat disk
	mkdir mnt
	mount -t vfat -o loop disk mnt
	qemu-img create -q -f qcow2 mnt/a.qcow2 32M
	qcow2setup open mnt/a.qcow2 vm 2>out || { cat out; exit 1; }
	matches "$(cat out)" 'No sparse files' "message"
	equal "$(length mnt/a.qcow2)" 197120 "length"
	qcow2setup close vm
	umount mnt
}

# Metadata that cannot be trusted does not say what may be cut off.
test_no_truncation_of_a_corrupt_image()
{
	qemu-img create -q -f qcow2 a.qcow2 64M
	qcow2setup open ./a.qcow2 vm
	qemu-io -f raw -c 'write -P 1 0 1M' /dev/mapper/vm >/dev/null
	sync
	dmsetup suspend vm
	# The corrupt bit, as QEMU sets it
	printf '\002' | dd of=a.qcow2 bs=1 seek=79 conv=notrunc status=none
	qcow2setup close vm || true
	[ "$(length a.qcow2)" -gt $((64 << 20)) ] || die "it was cut"
}

test_memory_file_system()
{
	mkdir mnt
	mount -t tmpfs none mnt
	qemu-img create -q -f qcow2 mnt/a.qcow2 64M
	qcow2setup open "$PWD/mnt/a.qcow2" vm
	qemu-io -f raw -c 'write -P 1 0 1M' /dev/mapper/vm >/dev/null
	qcow2setup close vm
	qemu-img check mnt/a.qcow2
	umount mnt
}

# With max_part, the numbers of loop devices leave some for partitions: those of
# another's disk are none of ours.
test_loops_with_partitions()
{
	local before

	rmmod loop
	modprobe loop max_part=7
	truncate -s 8M disk
	printf 'label: dos\nsize=2MiB\nsize=2MiB\n' | sfdisk -q disk
	losetup /dev/loop0 disk
	wait_for 10 test -b /dev/loop0p2
	before=$(sha256sum <disk)
	head -c 2M /dev/zero | tr '\0' r >raw
	head -c 100 /dev/zero | tr '\0' t >>raw
	qemu-img create -q -f qcow2 -b raw -F raw sn1
	qemu-img create -q -f qcow2 -b sn1 -F qcow2 top
	qcow2setup open ./top vm
	equal "$(layers vm)" "top sn1 raw" "layers"
	equal "$(locked top)" "100-101 103-103 201-201 203-203" "locks"
	io vm -c 'read -P 114 0 2M' -c 'read -P 116 2M 100' -c 'write -P 5 0 1M'
	qcow2setup commit vm
	equal "$(layers vm)" "sn1 raw" "layers"
	exits 5 'open for writing as device vm' qcow2setup open ./sn1 other
	qcow2setup close vm
	equal "$(sha256sum <disk)" "$before" "another's disk"
	qemu-io -c 'read -P 5 0 1M' -c 'read -P 114 1M 1M' sn1 | (! grep failed)
	losetup -d /dev/loop0
	wait_for 10 rmmod loop
	modprobe loop
	nothing_left
}

test_loops_do_direct_io()
{
	pair
	qcow2setup open ./top.qcow2 vm
	equal "$(losetup -n -O DIO,BACK-FILE | awk '/qcow2$/ { print $1 }' |
		xargs)" "1 1" "direct I/O"
	equal "$(losetup -n -O AUTOCLEAR | sort -u | xargs)" 1 "autoclear"
	dmsetup remove vm
	wait_for 10 no_loops
	equal "$(locked top.qcow2)" "" "locks after dmsetup remove"
	qcow2setup list
	nothing_left
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup and external data files: their names, locks, lengths, the table
# column, snapshots, copies, and what is left behind.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# with_data IMAGE SIZE [OPTIONS]: an image with the data file IMAGE.data
with_data()
{
	qemu-img create -q -f qcow2 -o "data_file=$1.data${3:+,$3}" "$1" "$2"
	qemu-io -f qcow2 -c "write -P 1 0 100k" -c "write -P 2 5M 2M" "$1" \
		>/dev/null
}

# write_device NAME: some sectors here and there
write_device()
{
	local at

	for at in 0 3 77 5000 11111; do
		dd if=/dev/urandom of="/dev/mapper/$1" bs=4608 count=1 \
			seek=$((at * 512)) oflag=direct,seek_bytes status=none
	done
}

test_open_write_close()
{
	with_data top 16M
	truncate -s 6M top.data
	qcow2setup open ./top vm
	equal "$(locked top)" "100-101 103-103 201-201 203-203" "image"
	equal "$(locked top.data)" "100-101 103-103 201-201 203-203" "data"
	equal "$(stat -c %s top.data)" $((16 << 20)) "length of the data file"
	matches "$(dmsetup table vm)" 'qcow2 1 qcow2 [0-9:]+ [0-9]+:' table
	qcow2setup status vm
	equal "$(qcow2setup status vm --json |
		jq -r '.layers[0]."data-file".filename')" "$PWD/top.data" "status"
	exits 1 'lock' qemu-io -c 'write 0 512' top
	exits 1 'lock' qemu-io -f raw -c 'write 0 512' top.data
	exits 5 'vm' qcow2setup open ./top other
	exits 5 'vm' qcow2setup open ./top.data other --backing-format ./top.data=raw
	equal "$(dd if=/dev/mapper/vm bs=1M skip=5 count=1 iflag=direct \
		status=none | tr -d '\2' | wc -c)" 0 "data"
	write_device vm
	before=$(device_contents vm)
	qcow2setup close vm
	equal "$(contents top qcow2)" "$before" "contents"
	check_images top
	[ "$(stat -c %s top)" -lt $((1 << 20)) ] || die "the image was not cut"
	qcow2setup open ./top vm --read-only
	equal "$(locked top.data)" "100-100 201-201 203-203" "data, to be read"
	equal "$(device_contents vm)" "$before" "read-only"
	qcow2setup close vm
	nothing_left
}

test_a_raw_data_file()
{
	with_data top 16M data_file_raw=on
	qcow2setup open ./top vm
	write_device vm
	blkdiscard -o 5M -l 1M /dev/mapper/vm
	before=$(device_contents vm)
	truncate -s 16M base
	exits 4 'raw image' qcow2setup rebase vm -b base -F raw
	qcow2setup close vm
	equal "$(head -c 16M top.data | sha256sum)" "$before" "the data file"
	equal "$(contents top qcow2)" "$before" "contents"
	equal "$(qemu-img info --output=json top |
		jq '."format-specific".data."data-file-raw"')" true "the flag"
	equal "$(qcow2setup info ./top --json |
		jq '."format-specific".data."data-file-raw"')" true "info"
	check_images top
	nothing_left
}

test_refused()
{
	with_data top 16M
	truncate -s 6M top.data
	exits 4 'too short' qcow2setup open ./top vm --read-only
	rm top.data
	exits 4 'top.data' qcow2setup open ./top vm
	ln top top.data
	exits 4 'itself' qcow2setup open ./top vm
	nothing_left
}

# A name is that of a file beside the image, and never a protocol.
test_names()
{
	local name

	mkdir dir
	(cd dir && with_data top 16M)
	qcow2setup open dir/top vm
	qcow2setup close vm
	qcow2setup check dir/top
	for name in 'json:{"driver":"file","filename":"top.data"}' file:top.data; do
		(cd dir && qemu-img amend -q -o "data_file=${name//,/,,}" --image-opts \
			driver=qcow2,file.filename=top,data-file.filename=top.data)
		exits 4 "dir/${name%%[{]*}" qcow2setup open dir/top vm
	done
	mv dir/top.data dir/file:top.data
	qcow2setup open dir/top vm
	equal "$(layers vm)" top "layers"
	qcow2setup close vm
	nothing_left
}

# Whoever has the data file open has the image open.
test_users()
{
	with_data base 16M
	qemu-img create -q -f qcow2 -b base -F qcow2 top
	cp base twin
	qcow2setup open ./twin other --read-only
	exits 5 'other' qcow2setup commit ./top --force
	qcow2setup close other
	exits 5 'twin stands on .*base.data' qcow2setup commit ./top
	rm twin
	qcow2setup commit ./top --delete
	check_images base
	nothing_left
}

# Between deleting an image and deleting its data file: the file system of one of
# them makes the command wait there.
test_killed_while_deleting()
{
	local mid data

	disk_to_freeze
	while read -r mid data; do
		with_data base 16M
		# Relative names would have both where the link is.
		qemu-img create -q -f qcow2 -b "$PWD/base" -F qcow2 \
			-o "data_file=$PWD/$data" "$mid"
		qemu-io -f qcow2 -c 'write -P 3 1M 1M' "$mid" >/dev/null
		qemu-img create -q -f qcow2 -b "$PWD/$mid" -F qcow2 top
		qcow2setup open ./top vm
		killed_while_deleting 2 qcow2setup commit vm --top "./$mid" \
			--base ./base --delete
		qcow2setup list
		fails test -e "$mid"
		fails test -e "$data"
		equal "$(layers vm)" "top base" "layers"
		qcow2setup close vm
		check_images base top
		rm -f top base.data base
	done <<-EOF
	mnt/mid mid.data
	mid mnt/mid.data
	EOF
	wait_for 5 umount mnt
	# What became of the last one
	qcow2setup jobs --clean
	nothing_left
}

# What was behind the end of the data file is not shown.
test_resize()
{
	local raw

	for raw in off on; do
		with_data "$raw" 16M "data_file_raw=$raw"
		dd if=/dev/urandom of="$raw.data" bs=1M seek=16 count=3 \
			conv=notrunc status=none
		qcow2setup open "./$raw" vm
		write_device vm
		sum=$(head -c 16M /dev/mapper/vm | sha256sum)
		qcow2setup resize vm 24M
		equal "$(stat -c %s "$raw.data")" $((24 << 20)) "the data file"
		equal "$(head -c 16M /dev/mapper/vm | sha256sum)" "$sum" "before"
		equal "$(tail -c +$(((16 << 20) + 1)) /dev/mapper/vm | tr -d '\0' |
			wc -c)" 0 "the new part"
		write_device vm
		before=$(device_contents vm)
		qcow2setup close vm
		equal "$(contents "$raw" qcow2)" "$before" "contents"
		[ "$raw" = off ] ||
			equal "$(sha256sum <"$raw.data")" "$before" "data file"
		check_images "$raw"
	done
	nothing_left
}

# Another file of that name is none of ours.
test_a_data_file_that_was_replaced()
{
	with_data a 16M
	qcow2setup open ./a vm
	mv a.data moved
	echo other >a.data
	before=$(stat -c '%s %Y %Z' a.data)
	exits 5 'not the external data file' qcow2setup resize vm 24M
	equal "$(stat -c '%s %Y %Z' a.data)" "$before" "the other file"
	mv moved a.data
	qcow2setup resize vm 24M
	qcow2setup close vm
	check_images a
	nothing_left
}

# A lower layer's data file is never made longer, nor is its end lost.
test_the_end_of_a_lower_data_file()
{
	with_data base 16M
	truncate -s $((15 << 20)) base.data
	printf '%700s' x >>base.data
	exits 4 'too short' qcow2setup open ./base vm --read-only
	truncate -s $((16 << 20)) base.data
	printf '%100s' x >>base.data
	qemu-img create -q -f qcow2 -b base -F qcow2 top
	sum=$(contents top qcow2)
	before=$(sha256sum base.data)
	qcow2setup open ./top vm
	equal "$(device_contents vm)" "$sum" "contents"
	write_device vm
	sum=$(device_contents vm)
	qcow2setup close vm
	equal "$(contents top qcow2)" "$sum" "written"
	equal "$(sha256sum base.data)" "$before" "data file"
	nothing_left
}

test_a_block_device()
{
	local disk

	truncate -s 16M disk
	disk=$(attach disk)
	qemu-img create -q -f qcow2 -o "data_file=$disk" top 16M
	qcow2setup open ./top vm
	write_device vm
	sum=$(device_contents vm)
	exits 5 'in use|vm' qcow2setup open ./top other
	qcow2setup close vm
	equal "$(contents top qcow2)" "$sum" "contents"
	qcow2setup open ./top vm --read-only
	equal "$(device_contents vm)" "$sum" "read-only"
	qcow2setup close vm
	losetup -d "$disk"
	nothing_left
}

test_snapshot_copy_commit()
{
	with_data top 16M
	qcow2setup open ./top vm
	qcow2setup snapshot vm over
	equal "$(locked top.data)" "100-100 201-201 203-203" "data of the old top"
	matches "$(dmsetup table vm)" 'qcow2 2 qcow2 [0-9:]+ - qcow2 [0-9:]+ [0-9]' \
		"table"
	sum=$(sha256sum top.data)
	write_device vm
	equal "$(sha256sum top.data)" "$sum" "data file below a snapshot"
	before=$(device_contents vm)
	qcow2setup copy vm copy.qcow2
	equal "$(contents copy.qcow2 qcow2)" "$before" "copy"
	equal "$(qemu-img info --output=json copy.qcow2 |
		jq -r '."format-specific".data."data-file" // "none"')" none "copy"
	qcow2setup commit vm
	equal "$(device_contents vm)" "$before" "committed"
	equal "$(locked top.data)" "100-101 103-103 201-201 203-203" "data"
	equal "$(layers vm)" top "layers"
	qcow2setup close vm
	equal "$(contents top qcow2)" "$before" "contents"
	check_images top
	nothing_left
}

test_killed()
{
	local n

	with_data top 16M
	for n in 1 2 3 5 8 13 21; do
		qcow2setup open ./top vm >/dev/null 2>&1 &
		sleep "0.$(printf %02d "$n")"
		kill -9 $! 2>/dev/null || true
		wait $! || true
		qcow2setup list >/dev/null
		qcow2setup close vm >/dev/null 2>&1 || true
	done
	qcow2setup open ./top vm
	qcow2setup close vm
	check_images top
	nothing_left
}

main "$@"

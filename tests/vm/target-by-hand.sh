#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The target driven with losetup, dmsetup and QEMU's tools, as an administrator
# without qcow2setup would: the documented example, suspend and internal
# snapshots, live snapshots, no space.

HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$HERE/lib.sh"

# table SIZE_MIB LAYER...: prints a table line. LAYER is FORMAT:DEVICE; $features
# are words to append.
table()
{
	local mib=$1 layer line

	shift
	line="0 $((mib * 2048)) qcow2 $#"
	for layer; do
		line+=" ${layer%%:*} ${layer#*:} -"
	done
	echo "$line${features:+ $features}"
}

# json_of DEVICE: how qemu-img opens the loop device of a mapped image.
json_of()
{
	printf 'json:{"driver":"qcow2","backing":null,"file":{"driver":"host_device","filename":"%s","cache":{"direct":true}}}' "$1"
}

# The example of the documentation, as it stands there.
test_the_documented_example()
{
	local rst=$HERE/../../Documentation/dm-qcow2.rst

	[ -e "$rst" ] || rst=$HERE/dm-qcow2.rst
	awk '/^Example$/ { on = 1 } on && /^  / { print; lines++ } \
		on && lines && /^[^ ]/ { exit }' "$rst" >example
	cat example
	grep -q '^  dmsetup create' example
	bash -eu example
}

test_suspend_snapshot_resume()
{
	image a.qcow2 64M
	grown a.qcow2 256M
	loop=$(attach a.qcow2)
	dmsetup create vm --table "$(table 64 "qcow2:$loop")"
	qemu-io -f raw -c 'write -P 1 0 8M' /dev/mapper/vm
	dmsetup suspend vm
	qemu-img check "$(json_of "$loop")"
	qemu-img snapshot -c before "$(json_of "$loop")"
	dmsetup resume vm
	qemu-io -f raw -c 'write -P 2 4M 8M' -c 'read -P 1 0 4M' \
		-c 'read -P 2 4M 8M' /dev/mapper/vm | tee out
	fails grep -q 'verification failed' out
	dmsetup suspend vm
	qemu-img snapshot -c after "$(json_of "$loop")"
	qemu-img snapshot -d before "$(json_of "$loop")"
	qemu-img snapshot -a after "$(json_of "$loop")"
	dmsetup resume vm
	qemu-io -f raw -c 'write -P 3 0 64k' /dev/mapper/vm
	dmsetup remove vm
	losetup -d "$loop"
	qemu-img check a.qcow2
	qemu-io -c 'read -P 3 0 64k' -c 'read -P 1 64k 4032k' \
		-c 'read -P 2 4M 8M' a.qcow2 | tee out
	fails grep -q 'verification failed' out
	qemu-img convert -l snapshot.name=after -O raw a.qcow2 after.raw
	qemu-io -f raw -c 'read -P 1 0 4M' -c 'read -P 2 4M 8M' after.raw |
		tee out
	fails grep -q 'verification failed' out
}

mode_is()
{
	[ "$(status_word vm 1)" = "$1" ]
}

fio_verify()
{
	local name=$1

	shift
	fio --name="$name" --filename=/dev/mapper/vm --direct=1 \
		--ioengine=libaio --iodepth=8 --randrepeat=1 --verify=crc32c \
		--verify_fatal=1 --output-format=terse "$@" >"fio-$name.out" 2>&1 || {
		cat "fio-$name.out"
		die "fio $name"
	}
}

# Random writes read back and verified by jobs beside each other.
fio_jobs()
{
	local cluster=$1

	image base.qcow2 96M
	qemu-io -c 'write -P 1 0 96M' base.qcow2
	qemu-img create -q -f qcow2 -o "cluster_size=$cluster" -b base.qcow2 \
		-F qcow2 top.qcow2 96M
	grown top.qcow2 512M
	base=$(attach base.qcow2 --read-only)
	top=$(attach top.qcow2)
	sum=$(sha256sum base.qcow2)
	dmsetup create vm --table "$(table 96 "qcow2:$top" "qcow2:$base")"
	fio_verify mixed --rw=randrw --bsrange=512-128k --blockalign=512 \
		--numjobs=4 --size=20M --offset_increment=24M --fsync=32 \
		--io_size=3M
	fio_verify again --rw=randwrite --bs=4k --numjobs=4 --size=12M \
		--offset_increment=24M --io_size=2M
	fio_verify trim --rw=randtrimwrite --bs=64k --numjobs=2 --size=16M \
		--offset_increment=40M --verify=0
	dmsetup remove vm
	losetup -d "$top" "$base"
	qemu-img check top.qcow2
	equal "$(sha256sum base.qcow2)" "$sum" "the base"
}

test_fio_jobs_64k_clusters()
{
	fio_jobs 65536
}

test_fio_jobs_4k_clusters()
{
	fio_jobs 4096
}

test_fio_jobs_512_byte_clusters()
{
	fio_jobs 512
}

# Overlays are put under a device while fio writes and verifies. A checksum costs
# an emulated CPU ten times as much as a comparison.
test_live_snapshots_under_fio()
{
	local n

	image layer0 64M
	grown layer0 80M
	layers="qcow2:$(attach layer0)"
	dmsetup create vm --table "$(table 64 "$layers")"
	fio_verify live --rw=randwrite --bsrange=4k-64k --size=48M \
		--io_size=48M --numjobs=1 --time_based=0 --verify_backlog=64 &
	fio=$!
	for n in 1 2 3; do
		sleep 1
		qemu-img create -q -f qcow2 -u -b layer$((n - 1)) -F qcow2 \
			"layer$n" 64M
		grown "layer$n" 80M
		layers="qcow2:$(attach "layer$n") $layers"
		# shellcheck disable=SC2086 # one layer a word
		dmsetup load vm --table "$(table 64 $layers)"
		dmsetup resume vm
		cp --sparse=always layer$((n - 1)) frozen$((n - 1))
	done
	wait "$fio"
	for n in 0 1 2; do
		cmp "layer$n" "frozen$n"
	done
	dd if=/dev/mapper/vm of=device bs=1M conv=sparse status=none
	dmsetup remove vm
	losetup -D
	for n in 0 1 2 3; do
		qemu-img check "layer$n"
	done
	qemu-img convert -O raw layer3 flat
	cmp flat device
}

# A device of 8 MiB for an image of 64 MiB.
small_volume()
{
	qemu-img create -q -f qcow2 image 64M
	truncate -s 8M image
	loop=$(attach image)
}

test_error_if_no_space()
{
	small_volume
	features='1 error_if_no_space'
	dmsetup create vm --table "$(table 64 "qcow2:$loop")"
	dd if=/dev/zero of=/dev/mapper/vm bs=64k count=32 oflag=direct
	fails dd if=/dev/urandom of=/dev/mapper/vm bs=1M count=32 oflag=direct 2>err
	cat err
	grep -q 'No space left' err
	equal "$(status_word vm 1)" no_space mode
	# what is there can be read and written
	dd if=/dev/mapper/vm of=/dev/null bs=1M count=4 iflag=direct
	dd if=/dev/zero of=/dev/mapper/vm bs=64k count=16 oflag=direct
	dmsetup remove vm
	losetup -d "$loop"
	qemu-img check image
}

# Writes wait; a larger device and a reload let them go on.
test_no_space_queues_until_the_device_grows()
{
	small_volume
	dmsetup create vm --table "$(table 64 "qcow2:$loop")"
	events=$(dmsetup info -c --noheadings -o events vm)
	dd if=/dev/urandom of=data bs=1M count=32
	dd if=data of=/dev/mapper/vm bs=1M oflag=direct &
	dd=$!
	wait_for 30 mode_is no_space
	[ "$(dmsetup info -c --noheadings -o events vm)" != "$events" ] ||
		die "no dm event"
	kill -0 "$dd"
	truncate -s 128M image
	losetup -c "$loop"
	dmsetup load vm --table "$(table 64 "qcow2:$loop")"
	dmsetup suspend --noflush --nolockfs vm
	dmsetup resume vm
	wait "$dd"
	mode_is rw
	cmp -n $((32 << 20)) data /dev/mapper/vm
	dmsetup remove vm
	losetup -d "$loop"
	qemu-img check image
	qemu-img convert -O raw image raw
	cmp -n $((32 << 20)) data raw
}

# Removing what waits for space must not hang.
test_no_space_and_remove()
{
	small_volume
	dmsetup create vm --table "$(table 64 "qcow2:$loop")"
	dd if=/dev/urandom of=/dev/mapper/vm bs=1M count=32 oflag=direct &
	dd=$!
	wait_for 30 mode_is no_space
	dmsetup load vm --table "0 131072 error"
	dmsetup suspend --noflush --nolockfs vm
	dmsetup resume vm
	fails wait "$dd"
	dmsetup remove --retry vm
	losetup -d "$loop"
	qemu-img check image
}

# A failed metadata write makes the device read-only and says why.
test_a_failed_metadata_write()
{
	modprobe -a dm-mod dm-flakey
	image image 64M
	grown image 256M
	loop=$(attach image)
	sectors=$(blockdev --getsz "$loop")
	dmsetup create below --table "0 $sectors linear $loop 0"
	dmsetup create vm --table "$(table 64 qcow2:/dev/mapper/below)"
	events=$(dmsetup info -c --noheadings -o events vm)
	dd if=/dev/urandom of=/dev/mapper/vm bs=64k count=4 oflag=direct conv=fsync
	dmsetup load below --table "0 $sectors flakey $loop 0 0 60 1 error_writes" ||
		dmsetup load below --table "0 $sectors flakey $loop 0 0 60"
	dmsetup suspend --nolockfs below
	dmsetup resume below
	fails dd if=/dev/urandom of=/dev/mapper/vm bs=64k count=4 seek=8 \
		oflag=direct conv=fsync
	wait_for 10 mode_is failed
	[ "$(status_word vm 10)" != - ] || die "no reason in the status"
	[ "$(dmsetup info -c --noheadings -o events vm)" != "$events" ] ||
		die "no dm event"
	fails dd if=/dev/zero of=/dev/mapper/vm bs=64k count=1 oflag=direct
	dmsetup load below --table "0 $sectors linear $loop 0"
	dmsetup suspend --nolockfs below
	dmsetup resume below
	dd if=/dev/mapper/vm of=/dev/null bs=64k count=4 iflag=direct
	dmsetup remove vm
	dmsetup remove below
	losetup -d "$loop"
	rc=0
	qemu-img check image || rc=$?
	# leaks at the worst
	[ "$rc" = 0 ] || [ "$rc" = 3 ]
}

# A file system on the device, the device under memory pressure.
test_a_file_system_and_shrinkers()
{
	image image 256M
	grown image 512M
	loop=$(attach image)
	dmsetup create vm --table "$(table 256 "qcow2:$loop")"
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt
	mount -o discard /dev/mapper/vm mnt
	for n in 1 2 3; do
		cp -a /usr/lib/x86_64-linux-gnu/perl-base "mnt/$n"
		sync
		echo 2 >/proc/sys/vm/drop_caches
		[ "$n" = 3 ] || rm -r "mnt/$n"
	done
	cp /bin/bash mnt/
	fstrim mnt
	umount mnt
	mount /dev/mapper/vm mnt
	cmp /bin/bash mnt/bash
	diff -r /usr/lib/x86_64-linux-gnu/perl-base mnt/3
	umount mnt
	dmsetup remove vm
	losetup -d "$loop"
	qemu-img check image
}

# Many devices at once over one base.
test_twenty_chains_over_one_base()
{
	image base 16M
	qemu-io -c 'write -P 9 0 16M' base
	base=$(attach base --read-only)
	for n in $(seq 20); do
		qemu-img create -q -f qcow2 -u -b base -F qcow2 "top$n" 16M
		grown "top$n" 64M
		loop=$(attach "top$n")
		dmsetup create "vm$n" --table "$(table 16 "qcow2:$loop" "qcow2:$base")"
	done
	for n in $(seq 20); do
		dd if=/dev/zero of="/dev/mapper/vm$n" bs=512 count=1 seek="$n" \
			oflag=direct 2>/dev/null &
	done
	wait
	for n in $(seq 20); do
		dmsetup remove "vm$n"
	done
	losetup -D
	for n in 1 7 20; do
		qemu-img check -q "top$n"
	done
}

# A snapshot as a device of its own beside the live one.
test_internal_snapshot_by_id()
{
	image a.qcow2 16M
	qemu-io -c 'write -P 1 0 4M' a.qcow2
	qemu-img snapshot -c one a.qcow2
	qemu-img convert -O raw a.qcow2 one.raw
	grown a.qcow2 64M
	loop=$(attach a.qcow2)
	dmsetup create vm --table "$(table 16 "qcow2:$loop")"
	features="2 snapshot 1"
	dmsetup create old --readonly --table "$(table 16 "qcow2:$loop")"
	matches "$(dmsetup table old)" '- 2 snapshot 1$' "table line"
	qemu-io -f raw -c 'write -P 2 1M 8M' -c 'write -P 3 4k 12k' \
		/dev/mapper/vm
	sync
	cmp /dev/mapper/old one.raw
	dmsetup remove old
	fails dmsetup create old --table "$(table 16 "qcow2:$loop")"
	features="2 snapshot 7"
	fails dmsetup create old --readonly --table "$(table 16 "qcow2:$loop")"
	features=
	dmsetup remove vm
	losetup -d "$loop"
	qemu-img check a.qcow2
}

main "$@"

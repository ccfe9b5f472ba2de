#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup internal, and open --snapshot: snapshots within images, closed and
# open, beside a device that is written to.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# names NAME|IMAGE: "ID:name ..." of its internal snapshots
names()
{
	qcow2setup internal list "$1" --json |
		jq -r '.[] | .id + ":" + .name' | xargs
}

# put FILE OFFSET LENGTH VALUE: a big-endian number
put()
{
	printf "%0$(($3 * 2))x" "$4" |
		python3 -c 'import sys, binascii
sys.stdout.buffer.write(binascii.unhexlify(sys.stdin.read()))' |
		dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# get FILE OFFSET LENGTH
get()
{
	od -A n -t "u$3" --endian=big -j "$2" -N "$3" "$1" | tr -d ' '
}

state()
{
	dmsetup info -c --noheadings -o tables_loaded,suspended "$1"
}

is_active()
{
	[ "$(state vm)" = "Live:Active" ]
}

sectors()
{
	blockdev --getsz "/dev/mapper/$1"
}

# slow_qemu_img: one that waits for a file "go" after it has said so in "here"
slow_qemu_img()
{
	mkdir -p slow
	cat >slow/qemu-img <<-END
		#!/bin/bash
		touch "$PWD/here"
		while [ ! -e "$PWD/go" ]; do sleep 0.1; done
		exec /usr/bin/qemu-img "\$@"
	END
	chmod +x slow/qemu-img
}

# start_slow COMMAND...: runs it with that, until qemu-img has started; its process
# is $main
start_slow()
{
	rm -f here go
	PATH=$PWD/slow:$PATH "$@" >slow.out 2>&1 &
	main=$!
	wait_for 30 test -e here
}

test_closed()
{
	qemu-img create -q -f qcow2 base 8M
	qemu-img create -q -f qcow2 -b base -F qcow2 a 8M
	qemu-io -c 'write -P 1 0 1M' a
	qcow2setup internal create ./a one
	qemu-img resize -q a 16M
	qemu-io -c 'write -P 2 0 1M' a
	qcow2setup internal create ./a two
	equal "$(names ./a)" "1:one 2:two" "snapshots"
	qemu-img info --output=json a |
		jq '.snapshots[] | keys | .[]' | sort -u >theirs
	qcow2setup internal list ./a --json |
		jq '.[] | del(."virtual-size") | keys | .[]' | sort -u >ours
	diff theirs ours
	qcow2setup internal apply ./a 1
	equal "$(size_of a qcow2)" $((8 << 20)) "size"
	qemu-io -c 'read -P 1 0 1M' a | (! grep failed)
	qcow2setup internal delete ./a one
	equal "$(names ./a)" "2:two" "snapshots"
	exits 5 'already' qcow2setup internal create ./a two
	exits 4 "no internal snapshot '1'" qcow2setup internal apply ./a 1
	qcow2setup open ./a vm
	exits 5 'open for writing as device vm' qcow2setup internal create ./a x
	exits 5 'lower layer of device vm' qcow2setup internal create ./base x
	qcow2setup close vm
	qemu-io -r -c 'sleep 3000' a &
	sleep 1
	exits 5 'locked' qcow2setup internal create ./a x
	wait
	exits 4 'not a qcow2 image' qcow2setup internal list ./theirs
	exits 1 'Only.*freeze' qcow2setup internal create ./a x --fsfreeze /
	check_images a base
	nothing_left
}

test_open()
{
	qemu-img create -q -f qcow2 -o cluster_size=4k a 32M
	qcow2setup open ./a vm
	io vm -c 'write -P 1 0 4M' -c 'write -P 9 30M 1M'
	qcow2setup internal create vm one
	io vm -c 'read -P 1 0 4M' -c 'write -P 2 1M 2M' -c 'discard 30M 1M'
	qcow2setup internal create vm two
	io vm -c 'write -P 3 0 8k' -c 'read -P 1 8k 8k'
	equal "$(names vm)" "1:one 2:two" "snapshots"
	exits 5 'already' qcow2setup internal create vm one
	qcow2setup internal apply vm one
	io vm -c 'read -P 1 0 4M' -c 'read -P 9 30M 1M' -c 'write -P 4 0 4k'
	qcow2setup internal delete vm 1
	io vm -c 'read -P 4 0 4k' -c 'read -P 1 4k 4092k' -c 'write -P 5 2M 4k'
	equal "$(names vm)" "2:two" "snapshots"
	qcow2setup internal apply vm two
	io vm -c 'read -P 1 0 1M' -c 'read -P 2 1M 2M' -c 'read -P 1 3M 1M' \
		-c 'read -P 0 30M 1M'
	equal "$(state vm)" "Live:Active" "state"
	qcow2setup close vm
	check_images a
	nothing_left
}

# Images of all kinds, with compressed clusters, too
test_kinds()
{
	local options one two

	for options in cluster_size=512 cluster_size=2M compat=0.10 \
		extended_l2=on,cluster_size=16k refcount_bits=4 \
		refcount_bits=64 lazy_refcounts=on,compression_type=zstd; do
		echo "$options"
		RANDOM=7
		qemu-img create -q -f qcow2 -o "$options" a 12M
		# Compressed clusters in one host cluster share its refcount.
		[ "$options" = refcount_bits=4 ] ||
			qemu-io -c 'write -c -P 77 4M 2M' a
		fill a qcow2 $((12 << 20)) 1
		qcow2setup open ./a vm
		one=$(device_contents vm)
		qcow2setup internal create vm one
		fill /dev/mapper/vm raw $((12 << 20)) 40
		two=$(device_contents vm)
		qcow2setup internal create vm two
		fill /dev/mapper/vm raw $((12 << 20)) 80
		qcow2setup internal apply vm two
		equal "$(device_contents vm)" "$two" "second"
		fill /dev/mapper/vm raw $((12 << 20)) 120
		qcow2setup internal delete vm two
		qcow2setup internal apply vm one
		equal "$(device_contents vm)" "$one" "first"
		qcow2setup close vm
		check_images a
	done
	nothing_left
}

# What is written over is needed twice: the file gets longer with each snapshot.
test_room()
{
	qemu-img create -q -f qcow2 a 24M
	qcow2setup open ./a vm
	for i in 1 2 3 4; do
		io vm -c "write -P $i 0 24M"
		qcow2setup internal create vm "s$i"
	done
	io vm -c 'write -P 9 0 24M'
	equal "$(status_word vm 1)" rw "mode"
	qcow2setup close vm
	check_images a
	for i in 1 2 3 4; do
		qemu-img convert -l "snapshot.name=s$i" -O raw a out
		qemu-io -r -f raw -c "read -P $i 0 24M" out | (! grep failed)
	done
	nothing_left
}

test_size()
{
	qemu-img create -q -f qcow2 a 8M
	qemu-io -c 'write -P 1 0 8M' a
	qcow2setup internal create ./a small
	qemu-img resize -q a 24M
	qemu-io -c 'write -P 2 4M 20M' a
	qcow2setup open ./a vm
	qcow2setup internal create vm large
	qcow2setup internal apply vm small
	equal "$(sectors vm)" $((8 << 11)) "size"
	io vm -c 'read -P 1 0 8M' -c 'write -P 3 0 1M'
	qcow2setup internal apply vm large
	equal "$(sectors vm)" $((24 << 11)) "size"
	io vm -c 'read -P 1 0 4M' -c 'read -P 2 4M 20M' -c 'write -P 3 0 24M'
	qcow2setup close vm
	check_images a
	# Version 2 has no sizes.
	qemu-img create -q -f qcow2 -o compat=0.10 v2 8M
	qcow2setup open ./v2 vm
	io vm -c 'write -P 1 0 1M'
	qcow2setup internal create vm one
	io vm -c 'write -P 2 0 2M'
	qcow2setup internal apply vm one
	io vm -c 'read -P 1 0 1M' -c 'read -P 0 1M 1M'
	qcow2setup close vm
	check_images v2
	nothing_left
}

state_size()
{
	qcow2setup internal list "$1" --json | jq '.[0]."vm-state-size"'
}

# read_state PATTERN: the state of a virtual machine that the image has now
read_state()
{
	qemu-io -c "read -b -P $1 0 256k" a | (! grep failed)
}

# It lies behind the end of the disk, as far as QEMU knows, which put it there.
# Recorded is 0, not nothing: the snapshot is not as long as the image is now.
test_size_of_0()
{
	qemu-img create -q -f qcow2 a.qcow2 0
	qemu-img snapshot -c nothing a.qcow2
	qcow2setup resize ./a.qcow2 1M
	equal "$(qcow2setup internal list ./a.qcow2 --json |
		jq '.[0]."virtual-size"')" 0 "size of the snapshot"
	exits 4 'virtual size of 0' \
		qcow2setup open ./a.qcow2 old --snapshot nothing
	qcow2setup open ./a.qcow2 vm
	io vm -c 'write -P 1 0 1M'
	exits 4 'virtual size of 0' qcow2setup internal apply vm nothing
	io vm -c 'read -P 1 0 1M'
	qcow2setup close vm
	qcow2setup internal apply ./a.qcow2 nothing
	equal "$(qemu-img info --output=json a.qcow2 | jq '."virtual-size"')" 0 \
		"size of the image"
	qemu-img check -q a.qcow2
}

test_vm_state()
{
	qemu-img create -q -f qcow2 -o cluster_size=4k a 8M
	qemu-io -c 'write -P 1 0 8M' -c 'write -b -P 7 0 256k' a
	qemu-img snapshot -c one a
	put a $(($(get a 64 8) + 32)) 4 $((256 << 10))
	put a $(($(get a 64 8) + 40)) 8 $((256 << 10))
	qemu-io -c 'write -P 2 0 8M' -c 'write -b -P 8 0 256k' a
	equal "$(state_size ./a)" $((256 << 10)) "size of the state"
	qcow2setup open ./a vm
	qcow2setup internal create vm two
	io vm -c 'write -P 3 0 8M' -c 'discard 0 2M'
	qcow2setup internal delete vm two
	equal "$(state_size vm)" $((256 << 10)) "size of the state"
	qcow2setup internal apply vm one
	io vm -c 'read -P 1 0 8M' -c 'write -P 4 0 8M' -c 'discard 4M 4M'
	# It would become a part of the disk.
	exits 4 'virtual machine' qcow2setup resize vm +8M
	io vm -c 'read -P 4 0 4M'
	qcow2setup close vm
	check_images a
	read_state 7
	qcow2setup resize ./a +8M
	qemu-io -c 'read -P 0 8M 8M' a | (! grep failed)
	qcow2setup internal apply ./a one
	equal "$(size_of a qcow2)" $((8 << 20)) "size"
	read_state 7
	check_images a
	nothing_left
}

# Under a mounted file system, which must be consistent in the snapshot.
test_mounted()
{
	qemu-img create -q -f qcow2 a 64M
	qcow2setup open ./a vm
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt old
	mount /dev/mapper/vm mnt
	echo yesterday >mnt/file
	(while echo x >>mnt/log; do sleep 0.01; done) 2>/dev/null &
	busy=$!
	qcow2setup internal create vm day1
	echo today >mnt/file
	# frozen by us, on the device itself
	qcow2setup internal create vm day2 --fsfreeze "$PWD/mnt"
	echo >>mnt/log
	exits 5 'in use: mounted on' qcow2setup internal apply vm day1
	kill "$busy"
	wait || true
	qcow2setup open ./a old --snapshot day1
	mount -o ro,noload /dev/mapper/old old
	equal "$(cat old/file)" yesterday "file in the snapshot"
	umount old
	fsck.ext4 -fn /dev/mapper/old
	qcow2setup close old
	umount mnt
	qcow2setup internal apply vm 1
	mount /dev/mapper/vm mnt
	equal "$(cat mnt/file)" yesterday "file"
	umount mnt
	qcow2setup internal apply vm day2
	mount /dev/mapper/vm mnt
	equal "$(cat mnt/file)" today "file"
	umount mnt
	qcow2setup close vm
	check_images a
	nothing_left
}

test_refused()
{
	qemu-img create -q -f qcow2 base 8M
	qemu-img create -q -f qcow2 -b base -F qcow2 a
	qemu-img snapshot -c one a
	qcow2setup open ./a vm
	exec 8</dev/mapper/vm
	sleep 1000 &
	exec 8<&-
	exits 5 'in use: process sleep' qcow2setup internal apply vm one
	# Standing still does not make anybody forget what he has read.
	dmsetup suspend vm
	exits 5 'suspended' qcow2setup internal apply vm one
	dmsetup resume vm
	kill $!
	wait $! || true
	dmsetup create upon --table "0 2048 linear /dev/mapper/vm 0"
	exits 5 'in use: .*upon' qcow2setup internal apply vm one
	dmsetup remove upon
	exits 4 "no internal snapshot 'x'" qcow2setup internal delete vm x
	exits 1 '1 to 255 bytes' qcow2setup internal create vm ''
	exits 4 'not active' qcow2setup internal create other x
	exits 1 'Only.*freeze' qcow2setup internal delete vm one --fsfreeze /
	exits 1 'Wrong number' qcow2setup internal create vm
	exits 1 'list, create' qcow2setup internal make vm x
	dmsetup suspend vm
	exits 5 'suspended' qcow2setup internal create vm x
	dmsetup resume vm
	qcow2setup close vm
	qcow2setup open ./a vm --read-only
	exits 4 'read-only' qcow2setup internal create vm x
	qcow2setup close vm
	qemu-img create -q -f raw plain 1M
	qcow2setup open ./plain vm --backing-format ./plain=raw
	exits 4 'raw' qcow2setup internal create vm x
	exits 4 'raw' qcow2setup internal list vm
	qcow2setup close vm
	# One bit is no room for a second reference.
	qemu-img create -q -f qcow2 -o refcount_bits=1 one 8M
	qcow2setup open ./one vm
	exits 4 'refcounts of 1 bits' qcow2setup internal create vm x
	qcow2setup close vm
	check_images a base one
	nothing_left
}

# qemu-img fails, is missing, or dies: the device goes on.
test_failing_qemu_img()
{
	qemu-img create -q -f qcow2 a 8M
	qcow2setup open ./a vm
	io vm -c 'write -P 1 0 1M'
	qcow2setup internal create vm one
	io vm -c 'write -P 2 0 1M'
	mkdir bad
	printf '#!/bin/bash\necho it was me >&2\nexit 1\n' >bad/qemu-img
	chmod +x bad/qemu-img
	PATH=$PWD/bad:$PATH exits 4 'it was me' qcow2setup internal create vm x
	# shellcheck disable=SC2016 # for that shell
	printf '#!/bin/bash\nkill -9 $$\n' >bad/qemu-img
	PATH=$PWD/bad:$PATH exits 4 'killed' qcow2setup internal delete vm one
	PATH=$PWD/bad:$PATH exits 4 'apply it again' \
		qcow2setup internal apply vm one
	equal "$(state vm)" "Live:Active" "state"
	io vm -c 'read -P 2 0 1M'
	# Killed once only: it is carried out.
	cat >bad/qemu-img <<-END
		#!/bin/bash
		[ -e "$PWD/killed" ] || { touch "$PWD/killed"; kill -9 \$\$; }
		exec /usr/bin/qemu-img "\$@"
	END
	PATH=$PWD/bad:$PATH qcow2setup internal apply vm one
	io vm -c 'read -P 1 0 1M'
	qcow2setup close vm
	check_images a
	nothing_left
}

# What the kernel could not write is not in the image: no snapshot of that
test_failing_disk()
{
	local table

	modprobe dm-flakey
	truncate -s 64M disk
	loop=$(attach disk)
	table="0 131072 linear $loop 0"
	dmsetup create lv --table "$table"
	qemu-img create -q -f qcow2 /dev/mapper/lv 16M
	echo 600000 >/sys/module/dm_qcow2/parameters/commit_interval_ms
	qcow2setup open /dev/mapper/lv vm
	io vm -c 'write -P 1 0 1M'
	dd if=/dev/zero of=/dev/mapper/vm bs=64k seek=20 count=1 oflag=direct \
		status=none
	dmsetup reload lv --table "0 131072 flakey $loop 0 0 3600 1 error_writes"
	dmsetup resume lv
	exits 4 'could not write everything' qcow2setup internal create vm one
	dmsetup reload lv --table "$table"
	dmsetup resume lv
	equal "$(state vm)" "Live:Active" "state"
	equal "$(names vm)" "" "snapshots"
	dmsetup suspend vm
	dmsetup resume vm
	qcow2setup internal create vm one
	io vm -c 'read -P 1 0 1M' -c 'write -P 2 0 1M'
	echo 1000 >/sys/module/dm_qcow2/parameters/commit_interval_ms
	qcow2setup close vm
	check_images /dev/mapper/lv
	dmsetup remove lv
	losetup -d "$loop"
	nothing_left
}

# Who is killed, while qemu-img is at work: the command, the process that is to
# resume, or both. The device goes on at the latest with the next command.
test_killed()
{
	qemu-img create -q -f qcow2 a 8M
	qcow2setup open ./a vm
	slow_qemu_img
	io vm -c 'write -P 1 0 1M'
	# the command: the other one finishes
	start_slow qcow2setup internal create vm one
	equal "$(state vm)" "Live:Suspended" "state"
	kill -9 "$main"
	touch go
	wait_for 30 is_active
	equal "$(names vm)" "1:one" "snapshots"
	io vm -c 'write -P 2 0 1M'
	# the other one: the command resumes, but not under a qemu-img at work
	start_slow qcow2setup internal create vm two
	kill -9 "$(pgrep -x -P "$main" qcow2setup)"
	sleep 2
	equal "$(state vm)" "Live:Suspended" "state"
	touch go
	fails wait "$main"
	equal "$(state vm)" "Live:Active" "state"
	equal "$(names vm)" "1:one 2:two" "snapshots"
	io vm -c 'write -P 3 0 1M'
	# both: the next command waits for qemu-img
	start_slow qcow2setup internal create vm three
	kill -9 "$main" "$(pgrep -x -P "$main" qcow2setup)"
	(sleep 2; touch go) &
	equal "$(names vm)" "1:one 2:two 3:three" "snapshots"
	equal "$(state vm)" "Live:Active" "state"
	io vm -c 'read -P 3 0 1M'
	# all of them, while they apply: it is applied
	start_slow qcow2setup internal apply vm two
	kill -9 "$main" "$(pgrep -x -P "$main" qcow2setup)"
	pkill -KILL -f "$PWD/slow/qemu-img"
	equal "$(names vm)" "1:one 2:two 3:three" "snapshots"
	equal "$(state vm)" "Live:Active" "state"
	io vm -c 'read -P 2 0 1M'
	wait || true
	qcow2setup close vm
	check_images a
	nothing_left
}

# The same at any instant
test_killed_anywhere()
{
	local n=0 delay action

	qemu-img create -q -f qcow2 a 8M
	qcow2setup open ./a vm
	io vm -c 'write -P 1 0 1M'
	qcow2setup internal create vm one
	for delay in 0.02 0.06 0.1 0.15 0.2 0.3 0.4 0.6; do
		for action in create apply delete; do
			n=$((n + 1))
			case $action in
			create) last=s$n ;;
			apply) last=one ;;
			delete) last=s$((n - 2)) ;;
			esac
			setsid qcow2setup internal "$action" vm "$last" \
				>/dev/null 2>&1 &
			main=$!
			sleep "$delay"
			pkill -KILL -x qcow2setup || true
			[ $((n % 2)) = 0 ] || pkill -KILL -x qemu-img || true
			wait "$main" || true
			echo "$action after $delay: $(names vm)"
			equal "$(state vm)" "Live:Active" "state"
			io vm -c 'read -P 1 0 1M'
		done
	done
	qcow2setup close vm
	# What a killed qemu-img leaves is lost clusters and no more.
	qemu-img check -q -r leaks a || true
	check_images a
	nothing_left
}

# Yesterday's state beside today's, which is being written
test_view()
{
	qemu-img create -q -f qcow2 base 16M
	qemu-io -c 'write -P 7 8M 4M' base
	qemu-img create -q -f qcow2 -b base -F qcow2 -o cluster_size=16k a 16M
	qemu-io -c 'write -P 1 0 6M' -c 'write -z 10M 1M' a
	qcow2setup internal create ./a one
	qemu-img convert -O raw a one.raw
	qcow2setup open ./a vm
	qcow2setup open ./a old --snapshot one
	equal "$(qcow2setup list --json |
		jq -r '.[] | select(.name == "old") | .snapshot')" 1 "snapshot"
	matches "$(qcow2setup status old)" 'snapshot: 1' "status"
	fio --name=today --filename=/dev/mapper/vm --direct=1 --bs=4k-64k \
		--ioengine=libaio --iodepth=8 --rw=randrw --size=16M --io_size=8M \
		--fsync=16 >fio.out 2>&1 &
	fio=$!
	while kill -0 "$fio" 2>/dev/null; do
		cmp one.raw /dev/mapper/old
		blockdev --flushbufs /dev/mapper/old
	done
	wait "$fio" || { cat fio.out; die "fio"; }
	# Others are made, applied and deleted meanwhile.
	qcow2setup internal create vm two
	io vm -c 'write -P 3 0 8M' -c 'discard 8M 8M'
	qcow2setup internal apply vm two
	qcow2setup internal delete vm two
	exits 5 'open as device old' qcow2setup internal delete vm one
	exits 5 'open as device old' qcow2setup internal delete vm 1
	exits 4 'shows internal snapshot' qcow2setup internal create old x
	exits 4 'shows internal snapshot' qcow2setup pull old
	exits 4 'read-only' qcow2setup snapshot old overlay
	blockdev --flushbufs /dev/mapper/old
	cmp one.raw /dev/mapper/old
	fails dd if=/dev/zero of=/dev/mapper/old bs=4k count=1 status=none
	# Each of both may come and go.
	qcow2setup close vm
	exits 5 'snapshot open as device old' qcow2setup internal create ./a x
	exits 5 'in use|snapshot open' qcow2setup rebase ./a -b '' -F raw
	fails qemu-io -c 'write 0 4k' a
	qcow2setup open ./a vm
	io vm -c 'write -P 4 0 16M'
	cmp one.raw /dev/mapper/old
	# The old top is shown by both in different ways.
	qcow2setup snapshot vm over
	equal "$(layers vm)" "over a base" "layers"
	io vm -r -c 'read -P 4 0 16M'
	cmp one.raw /dev/mapper/old
	qcow2setup close vm
	qcow2setup close old
	check_images a base over
	nothing_left
}

# With what is not a plain cluster
test_view_kinds()
{
	local options

	for options in extended_l2=on,cluster_size=16k compat=0.10 \
		compression_type=zstd,cluster_size=512 cluster_size=2M; do
		echo "$options"
		RANDOM=9
		qemu-img create -q -f qcow2 -o "$options" a 12M
		qemu-io -c 'write -c -P 77 4M 2M' a
		fill a qcow2 $((12 << 20)) 1
		qemu-img convert -O raw a one.raw
		qcow2setup internal create ./a one
		qcow2setup open ./a vm
		qcow2setup open ./a old --snapshot one
		fill /dev/mapper/vm raw $((12 << 20)) 40
		cmp one.raw /dev/mapper/old
		qcow2setup internal create vm two
		fill /dev/mapper/vm raw $((12 << 20)) 80
		qcow2setup internal apply vm one
		fill /dev/mapper/vm raw $((12 << 20)) 120
		qcow2setup internal delete vm two
		blockdev --flushbufs /dev/mapper/old
		cmp one.raw /dev/mapper/old
		qcow2setup close vm
		qcow2setup close old
		check_images a
	done
	nothing_left
}

test_view_size()
{
	qemu-img create -q -f qcow2 a 6M
	qemu-io -c 'write -P 1 0 6M' a
	qemu-img snapshot -c small a
	qemu-img resize -q a 12M
	qemu-io -c 'write -P 2 0 12M' a
	qemu-img snapshot -c 'large one' a
	qemu-img resize -q --shrink a 3M
	qcow2setup open ./a old --snapshot small
	qcow2setup open ./a older --snapshot 'large one'
	qcow2setup open ./a vm
	equal "$(sectors old) $(sectors older) $(sectors vm)" \
		"$((6 << 11)) $((12 << 11)) $((3 << 11))" "sizes"
	io old -r -c 'read -P 1 0 6M'
	io older -r -c 'read -P 2 0 12M'
	qcow2setup internal apply vm small
	equal "$(sectors vm)" $((6 << 11)) "size"
	qcow2setup open ./a third --snapshot small
	for i in vm old older third; do
		qcow2setup close "$i"
	done
	exits 4 'no internal snapshot' qcow2setup open ./a old --snapshot 7
	exits 1 'not an option of create' qcow2setup create ./b 1M --snapshot 7
	check_images a
	nothing_left
}

# Locks of an image on a block device are held by loop devices that nobody reads.
test_block_device()
{
	truncate -s 64M disk
	loop=$(attach disk)
	dmsetup create lv --table "0 131072 linear $loop 0"
	qemu-img create -q -f qcow2 /dev/mapper/lv 16M
	qcow2setup open /dev/mapper/lv vm
	io vm -c 'write -P 1 0 4M'
	qcow2setup internal create vm one
	io vm -c 'write -P 2 0 4M'
	qcow2setup open /dev/mapper/lv old --snapshot one
	io old -r -c 'read -P 1 0 4M'
	qcow2setup close vm
	fails qemu-io -c 'write 0 4k' /dev/mapper/lv
	qcow2setup open /dev/mapper/lv vm
	io vm -c 'read -P 2 0 4M' -c 'write -P 3 0 4M'
	io old -r -c 'read -P 1 0 4M'
	qcow2setup close old
	fails qemu-io -r -c 'read 0 4k' /dev/mapper/lv
	qcow2setup internal apply vm one
	io vm -c 'read -P 1 0 4M'
	qcow2setup close vm
	qcow2setup internal delete /dev/mapper/lv one
	check_images /dev/mapper/lv
	dmsetup remove lv
	losetup -d "$loop"
	nothing_left
}

# Snapshot tables that lie, past the command and with the target alone
test_hostile()
{
	local table

	qemu-img create -q -f qcow2 good 8M
	qemu-io -c 'write -P 1 0 8M' good
	qemu-img snapshot -c one good
	table=$(get good 64 8)
	truncate -s %512 good
	# l1_table_offset beyond the end, unaligned; l1_size too large, too small
	# for the size; sizes; the L1 table over the header, the snapshot table,
	# the refcount table
	for what in "0 8 0x7fffff0000" "0 8 0x30200" "8 4 0xffffffff" "8 4 0x400001" \
		"8 4 0" "48 8 0x7fffffffffffffff" "48 8 0x100000000000" \
		"36 4 0xffffffff" "12 2 0xffff" "0 8 0" "0 8 $table" \
		"0 8 0x10000"; do
		read -r offset length value <<<"$what"
		cp good bad
		put bad $((table + offset)) "$length" $((value))
		echo "$what: $(qcow2setup open ./bad old --snapshot 1 2>&1)"
		if dmsetup info old >/dev/null 2>&1; then
			dd if=/dev/mapper/old of=/dev/null bs=1M status=none || true
			qcow2setup close old
		fi
		loop=$(attach bad --read-only)
		if dmsetup create old --readonly --table \
			"0 16384 qcow2 1 qcow2 $loop - 2 snapshot 1" 2>/dev/null; then
			dd if=/dev/mapper/old of=/dev/null bs=1M status=none || true
			dmsetup remove old
		fi
		losetup -d "$loop"
	done
	matches "$(kernel_log)" 'L1 table' "kernel log"
	# 65536 snapshots, all of zeroes
	cp good bad
	truncate -s +4M bad
	put bad 60 4 65536
	put bad 64 8 $(($(stat -c %s good) / 65536 * 65536 + 65536))
	exits 4 'no internal snapshot' timeout 60 \
		qcow2setup open ./bad old --snapshot 1
	nothing_left
}

main "$@"

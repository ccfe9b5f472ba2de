# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# For VM tests written in shell. A test script defines functions test_*, then
# calls main: each runs in a subshell with "set -e" in an empty directory on an
# ext4 of /dev/vda, its output goes to KTAP comments, and everything it leaves
# (device-mapper devices, loop devices, mounts below $SCRATCH) is a failure.
#
# Arguments of the script choose tests by pattern.

SCRATCH=/scratch

die()
{
	echo "failed: $*"
	exit 1
}

# equal GOT WANT WHAT
equal()
{
	[ "$1" = "$2" ] || die "$3: got '$1', want '$2'"
}

# matches GOT REGEX WHAT
matches()
{
	[[ $1 =~ $2 ]] || die "$3: got '$1', want a match of '$2'"
}

# fails COMMAND...: the command must fail.
fails()
{
	if "$@"; then
		die "should have failed: $*"
	fi
}

# exits CODE REGEX COMMAND...: the command's exit code, and what it says
exits()
{
	local code=$1 regex=$2 said got=0

	shift 2
	said=$("$@" 2>&1) || got=$?
	echo "$ $* -> $got: $said"
	equal "$got" "$code" "exit code of $*"
	matches "$said" "$regex" "message of $*"
}

# nothing_left: no device, no loop, no state of qcow2setup
nothing_left()
{
	equal "$(losetup -n -O BACK-FILE)" "" "loop devices"
	equal "$(dmsetup ls 2>/dev/null)" "No devices found" "dm devices"
	equal "$(find /run/qcow2setup -type f ! -name lock)" "" "state files"
	equal "$(find /var/lib/qcow2setup -type f 2>/dev/null)" "" "lasting ones"
	equal "$(find /dev/mapper -type b)" "" "nodes"
}

# layers NAME: the names of a device's images, top first
layers()
{
	qcow2setup status "$1" --json | jq -r '.layers[].image' |
		sed 's,.*/,,' | xargs
}

# table_words NAME: the table without the numbers of devices, and without zero_from,
# which ends with the first suspend
table_words()
{
	dmsetup table "$1" | sed 's/ 2 zero_from .*//' | tr -d '0-9:'
}

# has_layers NAME COUNT
has_layers()
{
	[ "$(dmsetup table "$1" | awk '{ print $4 }')" = "$2" ]
}

# disk_to_freeze: an ext4 on mnt/
disk_to_freeze()
{
	truncate -s 64M disk
	mkfs.ext4 -q disk
	mkdir mnt
	mount -o loop disk mnt
}

# killed_while_deleting COUNT COMMAND...: kills it when the device vm has COUNT layers
# and it waits to delete a file in mnt/, which is frozen
killed_while_deleting()
{
	local count=$1 pid

	shift
	fsfreeze -f mnt
	"$@" &
	pid=$!
	wait_for 60 has_layers vm "$count"
	sleep 2
	kill -KILL "$pid"
	fsfreeze -u mnt
	wait "$pid" || true
}

# io DEVICE OPTION...: qemu-io on it; no command may fail
io()
{
	local device=$1

	shift
	qemu-io -f raw "$@" "/dev/mapper/$device" | (! grep failed)
}

# locked FILE: the lock bytes held on it, each range once a holder
locked()
{
	awk -v inode=":$(stat -c %i "$1")\$" \
		'$2 == "OFDLCK" && $6 ~ inode { print $7 "-" $8 }' /proc/locks |
		sort | xargs
}

# attach FILE [OPTION...]: prints a loop device on it, direct I/O.
attach()
{
	local file=$1

	shift
	losetup --find --show --direct-io=on "$@" "$file"
}

# image NAME SIZE [OPTION...]: makes a qcow2 image, its length a whole number of
# sectors: a loop device hides the rest. Prints nothing.
image()
{
	local name=$1 size=$2

	shift 2
	qemu-img create -q -f qcow2 "$@" "$name" "$size"
	truncate -s %512 "$name"
}

# grown NAME SIZE: a file that can become as long as its image needs.
grown()
{
	truncate -s ">$2" "$1"
}

# status_word NAME N: word N of the target's status (1 is the mode).
status_word()
{
	local words

	read -ra words <<<"$(dmsetup status "$1")"
	echo "${words[$2 + 2]}"
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for()
{
	local end=$((SECONDS + $1))

	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || die "waited too long for: $*"
		sleep 0.2
	done
}

find_scsi_disk()
{
	disk=$(echo /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*)
	disk=/dev/${disk##*/}
	[ -b "$disk" ]
}

# scsi_disk [OPTION...]: sets $disk to a disk in memory; options of scsi_debug.
# Unload that module at the end.
scsi_disk()
{
	modprobe sd_mod
	modprobe scsi_debug "$@"
	wait_for 10 find_scsi_disk
}

# kernel_log: the kernel messages since the test started.
kernel_log()
{
	dmesg | sed "1,/dm-qcow2-test $BASHPID_OF_TEST\$/d"
}

mount_scratch()
{
	modprobe loop
	mkdir -p $SCRATCH
	mountpoint -q $SCRATCH && return
	mkfs.ext4 -q -F /dev/vda && mount -o discard /dev/vda $SCRATCH
}

# Removes what a test left, and tells of it.
clean_up()
{
	local left name names loop file

	left=$(dmsetup ls 2>/dev/null | grep -v '^No devices')
	names=$(awk '{print $1}' <<<"$left")
	for name in $names; do
		# A suspended or queueing device would not go.
		dmsetup wipe_table --noflush --nolockfs "$name" >/dev/null 2>&1
		dmsetup resume "$name" >/dev/null 2>&1
	done
	awk -v dir="$SCRATCH/" 'index($2, dir) == 1 { print $2 }' /proc/mounts |
		sort -r | xargs -r umount
	for name in $names; do
		dmsetup remove --retry "$name" >/dev/null 2>&1
	done
	for loop in /sys/block/loop*/loop/backing_file; do
		[ -e "$loop" ] || continue
		file=$(cat "$loop")
		left+="${left:+ }loop on $file"
		loop=${loop#/sys/block/}
		losetup -d "/dev/${loop%%/*}"
	done
	[ -z "$left" ] || echo "left behind: $left"
	cd / && rm -rf "${SCRATCH:?}"/*
	[ -z "$left" ]
}

run_test()
{
	local name=$1 number=$2 log=/tmp/ktap-log.$$ start=$SECONDS rc

	export BASHPID_OF_TEST=$$-$number
	echo "dm-qcow2-test $BASHPID_OF_TEST" >/dev/kmsg
	(
		set -euo pipefail
		cd $SCRATCH
		"test_$name"
	) >$log 2>&1 </dev/null
	rc=$?
	clean_up >>$log 2>&1 || rc=1
	[ $rc = 0 ] || sed 's/^/# /' $log
	echo "# $((SECONDS - start)) s"
	[ $rc = 0 ] || printf 'not '
	echo "ok $number $name"
	rm -f $log
	return $rc
}

main()
{
	local names number=0 failed=0 name status

	names=$(declare -F | sed -n 's/^declare -f test_//p' |
		grep -E "$(IFS='|'; echo "${*:-.}")")
	echo "KTAP version 1"
	# shellcheck disable=SC2086 # one word a name
	set -- $names
	echo "1..$#"
	mount_scratch >&2 || exit 1
	for name; do
		number=$((number + 1))
		# not "run_test || ...": that would disable its "set -e"
		run_test "$name" $number
		status=$?
		[ $status = 0 ] || failed=1
	done
	exit $failed
}

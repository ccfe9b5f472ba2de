#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Operations on chains under a guest that writes, reads back and discards all the
# time; cancelled; killed.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# start_guest: fio on the device, until stop_guest. Each block is verified.
start_guest()
{
	fio --name=guest --filename=/dev/mapper/vm --direct=1 --rw=randrw \
		--bsrange=4k-64k --blockalign=4k --size=16M --offset=4M \
		--ioengine=libaio --iodepth=8 --verify=crc32c \
		--verify_backlog=64 --verify_fatal=1 --time_based \
		--runtime=600 >fio.log 2>&1 &
	guest=$!
	sleep 2
}

stop_guest()
{
	kill -0 "$guest" || {
		cat fio.log
		die "fio ended before"
	}
	kill -INT "$guest"
	wait "$guest" || true
	fails grep -iE 'verify:|bad |error=' fio.log
}

# The guest does not touch the first 4 MiB.
still_part()
{
	dd if=/dev/mapper/vm bs=1M count=4 iflag=direct status=none | sha256sum
}

# beside COMMAND...: with a guest at work; then the image reads as the device.
beside()
{
	local before still

	start_guest
	still=$(still_part)
	"$@"
	sleep 1
	stop_guest
	equal "$(still_part)" "$still" "what the guest does not write"
	before=$(device_contents vm)
	top=$(layers vm | cut -d' ' -f1)
	qcow2setup close vm
	check_images "$top"
	qcow2setup open "./$top" vm
	equal "$(device_contents vm)" "$before" "contents"
}

test_lower_layers()
{
	chain mixed
	qcow2setup open ./active vm
	beside qcow2setup commit vm --top sn2 --base base
	beside qcow2setup pull vm --into sn3
	equal "$(layers vm)" "active sn3" "layers"
	qcow2setup close vm
	check_images sn3 base
	all_gone
}

test_active()
{
	chain mixed
	qcow2setup open ./active vm
	beside qcow2setup commit vm --base sn1
	equal "$(layers vm)" "sn1 base" "layers"
	beside qcow2setup flatten vm
	equal "$(layers vm)" "sn1" "layers"
	qcow2setup close vm
	all_gone
}

test_copy()
{
	chain mixed
	qcow2setup open ./active vm
	beside qcow2setup copy vm one --pivot
	equal "$(layers vm)" "one" "layers"
	qcow2setup close vm
	all_gone
}

# The table without the numbers of devices; zero_from ends with the first suspend.
table_words()
{
	dmsetup table vm | sed 's/ 2 zero_from .*//' | tr -d '0-9:'
}

# A job that was stopped leaves the chain as it was.
test_cancel()
{
	chain plain
	qcow2setup open ./active vm
	before=$(device_contents vm)
	table=$(table_words)
	for command in "commit vm --top sn3 --base base" "commit vm" \
		"flatten vm" "copy vm one --pivot"; do
		# shellcheck disable=SC2086 # words
		qcow2setup $command --bandwidth 100K --detach
		exits 5 'job' qcow2setup close vm
		exits 5 'job' qcow2setup snapshot vm s.qcow2
		qcow2setup cancel vm
		equal "$(table_words)" "$table" "table"
		equal "$(device_contents vm)" "$before" "contents"
		equal "$(dmsetup ls | wc -l)" 1 "devices"
	done
	qcow2setup close vm
	all_gone
}

# kill_job COMMAND: SIGKILL after a moment that is a bit longer each time, then
# the same command to its end.
kill_job()
{
	local pid i

	for i in 1 3 6 10 15 21; do
		# shellcheck disable=SC2086 # words
		qcow2setup $1 --bandwidth 2M >job.log 2>&1 &
		pid=$!
		sleep "$(printf '%d.%d' $((i / 8)) $((i % 8)))"
		kill -KILL "$pid" 2>/dev/null || break
		wait "$pid" || true
		equal "$(device_contents vm)" "$before" "killed: $1"
	done
	# shellcheck disable=SC2086 # words
	qcow2setup $1 || matches "$(layers vm)" "$2" "layers"
	equal "$(device_contents vm)" "$before" "run again: $1"
	matches "$(layers vm)" "$2" "layers"
	equal "$(dmsetup ls | wc -l)" 1 "devices"
}

test_killed()
{
	chain mixed
	contents active qcow2 >sum
	qcow2setup open ./active vm
	before=$(device_contents vm)
	kill_job "commit vm --top sn2 --base sn1" "^active sn3 sn1 base$"
	kill_job "pull vm --into sn3 --base base" "^active sn3 base$"
	kill_job "copy vm one --shallow --pivot" "^one sn3 base$"
	# What stands on the base besides would be in the way.
	rm active sn1 sn2
	kill_job "commit vm --base base" "^base$"
	qcow2setup close vm
	equal "$(contents base qcow2)" "$(<sum)" "contents"
	all_gone
}

main "$@"

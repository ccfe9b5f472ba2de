#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Operations on chains under a guest that writes and reads back, or reads all that
# there is, all the time; cancelled.

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

test_copy_finish()
{
	chain mixed
	qcow2setup open ./active vm
	beside qcow2setup copy vm one
	equal "$(layers vm)" "active sn3 sn2 sn1 base" "layers"
	check_images one
	qcow2setup close vm
	all_gone
}

test_delete()
{
	chain mixed
	qcow2setup open ./active vm
	beside qcow2setup delete vm sn2
	beside qcow2setup delete vm sn1 --down
	equal "$(layers vm)" "active sn3 base" "layers"
	qcow2setup close vm
	check_images sn3 base
	all_gone
}

test_rebase()
{
	chain mixed
	qemu-img create -q -f qcow2 other 20M
	fill other qcow2 $((20 << 20)) 121
	qcow2setup open ./active vm
	beside qcow2setup rebase vm -b sn1 -F qcow2
	equal "$(layers vm)" "active sn1 base" "layers"
	beside qcow2setup rebase vm -b other -F qcow2
	equal "$(layers vm)" "active other" "layers"
	beside qcow2setup rebase vm -b ''
	equal "$(layers vm)" "active" "layers"
	qcow2setup close vm
	all_gone
}

# A job that was stopped leaves the chain as it was.
test_cancel()
{
	chain plain
	qcow2setup open ./active vm
	before=$(device_contents vm)
	table=$(table_words vm)
	for command in "commit vm --top sn3 --base base" "commit vm" \
		"flatten vm" "copy vm one --pivot"; do
		# shellcheck disable=SC2086 # words
		qcow2setup $command --bandwidth 10K --detach
		exits 5 'job' qcow2setup close vm
		exits 5 'job' qcow2setup snapshot vm s.qcow2
		qcow2setup cancel vm
		equal "$(table_words vm)" "$table" "table"
		equal "$(device_contents vm)" "$before" "contents"
		equal "$(dmsetup ls | wc -l)" 1 "devices"
	done
	qcow2setup close vm
	all_gone
}

# make_reuse IMAGE: its L2 tables are shared with a snapshot, and clusters of its
# own are free, partly overwritten, or zero. With a data file there are no snapshots.
make_reuse()
{
	local snapshot=(qemu-img snapshot)

	[ ! -e "$1.data" ] || snapshot=(:)
	"${snapshot[@]}" -c one "$1"
	fill "$1" qcow2 15000000 150
	qemu-io -c 'discard 2M 3M' -c 'write -z 7M 1M' -c 'write -P 9 2500k 700' \
		"$1" >/dev/null
	"${snapshot[@]}" -c two "$1"
	fill "$1" qcow2 15000000 170
	"${snapshot[@]}" -d one "$1"
}

# coherent KIND COMMAND...: commands, each one word, while all is being read
coherent()
{
	local kind=$1 image words

	shift
	chain "$kind"
	make_reuse base
	# The layers above were made on what base was then.
	for image in sn1 sn2 sn3; do
		fill "$image" qcow2 15000000 190
		qemu-io -c 'discard 1M 2M' -c 'write -z 4M 2M' \
			-c 'write -P 7 6000k 300k' "$image" >/dev/null
	done
	qemu-img convert -O raw active want.raw
	qcow2setup open ./active vm
	for words; do
		# shellcheck disable=SC2086 # words
		while_read want.raw qcow2setup $words --bandwidth 3M
	done
	image=$(layers vm | cut -d' ' -f1)
	qcow2setup close vm
	check_images "$image" base
	qemu-img compare -q -F raw "$image" want.raw
	all_gone
	rm -f base sn1 sn2 sn3 active ./*.data
}

# both_ways KIND: all merged down, then up
both_ways()
{
	coherent "$1" "commit vm --top sn2 --base sn1" \
		"commit vm --top sn1 --base base" "commit vm --base base --force"
	coherent "$1" "pull vm --into sn2 --base base" "pull vm --into sn3" \
		"flatten vm"
}

# What a merge frees in its destination and uses again is not what the chain reads
# at that moment.
test_coherence()
{
	both_ways plain
	both_ways mixed
}

test_coherence_shorter()
{
	both_ways shorter
}

test_coherence_old()
{
	both_ways old
}

test_coherence_subclusters()
{
	both_ways subclusters
}

test_coherence_compressed()
{
	both_ways compressed
}

test_coherence_datafile()
{
	both_ways datafile
}

main "$@"

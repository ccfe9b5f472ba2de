#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup: many at a time, and ended at any instant.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

nothing_left_at_all()
{
	nothing_left
	equal "$(grep -c OFDLCK /proc/locks)" 0 "locks"
}

test_20_opens_and_closes_at_once()
{
	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-io -c 'write -P 1 0 1M' base.qcow2 >/dev/null
	# An odd length: a helper device is shared, too.
	truncate -s +1 base.qcow2
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top1.qcow2
	sha256sum base.qcow2 >sums
	for i in $(seq 2 20); do
		cp top1.qcow2 "top$i.qcow2"
	done
	for i in $(seq 20); do
		qcow2setup open "./top$i.qcow2" "vm$i" &
	done
	wait
	equal "$(dmsetup ls --target qcow2 | grep -c vm)" 20 "devices"
	equal "$(losetup -n -O BACK-FILE | grep -c base.qcow2)" 1 "loops of base"
	equal "$(losetup -n -O BACK-FILE | grep -c top)" 20 "loops of tops"
	for i in $(seq 20); do
		dd if=sums of="/dev/mapper/vm$i" conv=notrunc status=none &
	done
	wait
	for i in $(seq 20); do
		qcow2setup close "vm$i" &
	done
	wait
	nothing_left_at_all
	sha256sum -c sums
	qemu-img check top7.qcow2
}

test_one_image_opened_by_20_at_once()
{
	qemu-img create -q -f qcow2 a.qcow2 64M
	for i in $(seq 20); do
		qcow2setup open ./a.qcow2 "vm$i" 2>/dev/null &
	done
	wait
	equal "$(dmsetup ls --target qcow2 | grep -c vm)" 1 "devices"
	qcow2setup close "$(qcow2setup list --json | jq -r '.[0].name')"
	nothing_left_at_all
	equal "$(stat -c %s a.qcow2)" 196616 "length"
}

# A process that is killed at a random instant of the time it takes
killed_snapshot()
{
	local delay=$1 overlay=$2 pid

	qcow2setup snapshot vm "$overlay" 2>/dev/null &
	pid=$!
	sleep "$delay"
	kill -9 "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || true
}

microseconds()
{
	local now=$EPOCHREALTIME

	echo "${now/./}"
}

# The device runs on one of both chains at once, before the next command cleans
# up; what was written is there; then nothing is left of the other chain.
check_round()
{
	local round=$1 overlay=$2 layers files

	timeout 60 dd if="pattern$round" of=/dev/mapper/vm bs=64k seek="$round" \
		oflag=direct conv=notrunc status=none || die "the device hangs"
	qcow2setup status vm --json >out
	layers=$(jq -r '.layers[0].image, (.layers | length), .suspended' out |
		xargs)
	if [ "${layers%% *}" = "$PWD/$overlay" ]; then
		new=$((new + 1))
		top=$overlay
		depth=$((depth + 1))
	else
		old=$((old + 1))
		[ ! -e "$overlay" ] || die "stray overlay in round $round"
	fi
	equal "$layers" "$PWD/$top $depth false" "chain after round $round"
	[ ! -e /run/qcow2setup/journal ] || die "journal after round $round"
	files=(/sys/block/loop*/loop/backing_file)
	equal "${#files[@]}" "$depth" "loop devices after round $round"
	equal "$(dmsetup info -c --noheadings -o tables_loaded vm)" "Live" \
		"tables after round $round"
}

kill_snapshot()
{
	local start took delay top=first.qcow2 depth=2 new=0 old=0 round
	local rounds=$1

	for round in $(seq "$rounds"); do
		head -c 65536 /dev/zero |
			tr '\0' "\\$(printf %03o "$round")" >"pattern$round"
	done
	qemu-img create -q -f qcow2 top.qcow2 64M
	qcow2setup open ./top.qcow2 vm
	start=$(microseconds)
	qcow2setup snapshot vm first.qcow2
	took=$(($(microseconds) - start))
	for round in $(seq "$rounds"); do
		delay=$(((RANDOM * 32768 + RANDOM) % (took * 11 / 10)))
		delay=$(printf '%d.%06d' $((delay / 1000000)) \
			$((delay % 1000000)))
		killed_snapshot "$delay" "s$round.qcow2"
		check_round "$round" "s$round.qcow2"
	done
	echo "$old on the old chain, $new on the new one"
	for round in $(seq "$rounds"); do
		cmp -n 65536 "pattern$round" /dev/mapper/vm 0 \
			$((round * 65536)) ||
			die "what round $round wrote is not there"
	done
	qcow2setup close vm
	nothing_left_at_all
	qemu-img check "$top"
}

test_kill_snapshot_at_12_instants()
{
	kill_snapshot 12
}

test_kill_snapshot_at_50_instants()
{
	kill_snapshot 50
}

test_kill_open_and_close()
{
	local round pid

	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2
	for round in $(seq 8); do
		qcow2setup open ./a.qcow2 vm 2>/dev/null &
		pid=$!
		sleep "0.$((RANDOM % 10))"
		kill -9 "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
		qcow2setup list --json >out
		if [ "$(jq length out)" = 0 ]; then
			nothing_left_at_all
			equal "$(stat -c %s a.qcow2)" 196616 "length"
			continue
		fi
		qcow2setup close vm &
		pid=$!
		sleep "0.$((RANDOM % 10))"
		kill -9 "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
		qcow2setup list --json >out
		[ "$(jq length out)" = 0 ] || qcow2setup close vm
		nothing_left_at_all
		equal "$(stat -c %s a.qcow2)" 196616 "length"
	done
	qemu-img check a.qcow2
}

main "$@"

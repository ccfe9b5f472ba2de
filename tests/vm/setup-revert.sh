#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup revert: a device goes on from one of its lower images.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# base <- sn1 <- active, each with a write of its own
chain()
{
	qemu-img create -q -f qcow2 base 32M
	qcow2setup open ./base vm
	io vm -c 'write -P 1 0 1M'
	qcow2setup snapshot vm sn1
	io vm -c 'write -P 2 0 512k'
	qcow2setup snapshot vm active
	io vm -c 'write -P 3 0 64k'
}

test_lower_image()
{
	chain
	sha256sum base sn1 >sums
	qcow2setup revert vm sn1 fresh --json >out
	equal "$(jq -r .kept out)" "$PWD/active" "what is kept"
	equal "$(layers vm)" "fresh sn1 base" "layers"
	io vm -c 'read -P 2 0 512k' -c 'read -P 1 512k 512k'
	io vm -c 'write -P 4 0 32k'
	qcow2setup revert vm 'vm[2]' again
	equal "$(layers vm)" "again base" "layers"
	io vm -c 'read -P 1 0 1M' -c 'write -P 5 0 1k'
	# The top itself: as a snapshot
	qcow2setup revert vm again more
	equal "$(layers vm)" "more again base" "layers"
	io vm -c 'read -P 5 0 1k'
	sha256sum -c sums
	qcow2setup close vm
	sha256sum -c sums
	for i in active fresh again more; do
		qemu-img check "$i"
	done
	qemu-io -c 'read -P 3 0 64k' -c 'read -P 2 64k 448k' active | (! grep failed)
	qemu-io -c 'read -P 4 0 32k' -c 'read -P 2 32k 480k' fresh | (! grep failed)
	# What was the top is no longer than it has to be.
	[ "$(stat -c %s active)" -lt 2000000 ]
	nothing_left
}

# The device is as long as what it shows.
test_size()
{
	qemu-img create -q -f raw base.raw 10M
	qemu-io -f raw -c 'write -P 9 0 10M' base.raw >/dev/null
	qemu-img create -q -f qcow2 -b base.raw -F raw top 32M
	qcow2setup open ./top vm
	equal "$(blockdev --getsize64 /dev/mapper/vm)" $((32 << 20)) "size"
	qcow2setup revert vm base.raw fresh
	equal "$(blockdev --getsize64 /dev/mapper/vm)" $((10 << 20)) "size"
	io vm -c 'read -P 9 0 10M' -c 'write -P 1 9M 1M'
	qcow2setup close vm
	qemu-img check fresh
	nothing_left
}

test_refused()
{
	chain
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt
	mount /dev/mapper/vm mnt
	exits 5 'in use: mounted on' qcow2setup revert vm sn1 fresh
	umount mnt
	exec 8</dev/mapper/vm
	sleep 1000 &
	exec 8<&-
	exits 5 'in use: process sleep' qcow2setup revert vm sn1 fresh
	kill $!
	wait $! || true
	exits 4 'does not exist' qcow2setup revert vm none fresh
	qemu-img create -q -f qcow2 other 32M
	exits 4 'not a layer of vm' qcow2setup revert vm other fresh
	exits 4 'has 3 layers: there is no' qcow2setup revert vm 'vm[3]' fresh
	exits 5 'lower layer' qcow2setup revert vm base sn1
	exits 4 'not active' qcow2setup revert other base fresh
	exits 1 'Wrong number' qcow2setup revert vm base
	qemu-img create -q -f qcow2 -b sn1 -F qcow2 wrong
	exits 4 'not of the image' qcow2setup revert vm base wrong --existing
	equal "$(layers vm)" "active sn1 base" "layers"
	fails test -e fresh
	qcow2setup close vm
	nothing_left
}

# Of a chain that is not open: the overlay is all there is to do.
test_closed()
{
	chain
	exits 5 'device vm' qcow2setup revert ./active base fresh
	qcow2setup close vm
	sha256sum base sn1 active >sums
	qcow2setup revert ./active './active[1]' fresh --json >out
	equal "$(jq -r .kept out)" "$PWD/active" "what is kept"
	equal "$(jq -r '."backing-file"' out)" "$PWD/sn1" "layer"
	mkdir sub
	equal "$(qcow2setup revert ./active base sub/more)" \
		"Kept: $PWD/active" "what is said"
	equal "$(qemu-img info --output=json sub/more |
		jq -r '."full-backing-filename"')" "$PWD/base" "link"
	qemu-img create -q -f qcow2 -b base -F qcow2 mine
	qcow2setup revert ./active base mine --existing
	exits 4 'not of the image' qcow2setup revert ./active sn1 mine --existing
	exits 4 'not a layer of' qcow2setup revert ./active fresh again
	exits 4 'there is no' qcow2setup revert ./active './active[3]' again
	exits 5 'already exists' qcow2setup revert ./active base fresh
	fails test -e again
	sha256sum -c sums
	qemu-io -c 'read -P 2 0 512k' -c 'read -P 1 512k 512k' fresh |
		(! grep failed)
	qemu-io -c 'read -P 1 0 1M' sub/more | (! grep failed)
	nothing_left
}

# plans COMMAND...: a dry run changes nothing; prints what it said
plans()
{
	local before

	before=$(ls; dmsetup table; sha256sum base sn1 mine)
	qcow2setup "$@" --dry-run >/tmp/plan.out
	qcow2setup "$@" --dry-run --json >/tmp/plan.json
	equal "$(ls; dmsetup table; sha256sum base sn1 mine)" "$before" "all"
	cat /tmp/plan.out
}

# both WORD: the plans for a device and for images are the same
both()
{
	plans revert "$1" base fresh
	matches "$(</tmp/plan.out)" "link: $PWD/fresh to base" "plan"
	equal "$(jq -r .operation /tmp/plan.json)" revert "operation"
	equal "$(jq -r '.unneeded[]' /tmp/plan.json | xargs)" \
		"$PWD/active $PWD/sn1" "not needed"
	plans revert "$1" base mine --existing
	equal "$(jq .relinked /tmp/plan.json)" null "link"
	plans snapshot "$1" fresh
	equal "$(jq -r '.written[]' /tmp/plan.json)" "$PWD/fresh" "written"
	equal "$(jq -r '.relinked."backing-file"' /tmp/plan.json)" active "link"
	exits 4 'not of the image' \
		qcow2setup snapshot "$1" mine --existing --dry-run
	exits 4 'not of the image' \
		qcow2setup revert "$1" sn1 mine --existing --dry-run
	exits 5 'already exists' qcow2setup snapshot "$1" mine --dry-run
}

test_dry_run()
{
	chain
	qemu-img create -q -f qcow2 -u -b base -F qcow2 mine 32M
	both vm
	plans snapshot vm=fresh
	equal "$(jq -r '.[].operation' /tmp/plan.json)" snapshot "array"
	exec 8</dev/mapper/vm
	exits 5 'in use' qcow2setup revert vm base fresh --dry-run
	exec 8<&-
	qcow2setup close vm
	both ./active
	nothing_left
}

test_existing()
{
	chain
	qemu-img create -q -f qcow2 -u -b base -F qcow2 mine 32M
	qcow2setup revert vm base mine --existing
	equal "$(layers vm)" "mine base" "layers"
	qcow2setup close vm
	nothing_left
}

test_killed()
{
	chain
	n=0
	for delay in 0.05 0.1 0.15 0.2 0.3; do
		n=$((n + 1))
		setsid qcow2setup revert vm base "new$n" >/dev/null 2>&1 &
		main=$!
		sleep "$delay"
		pkill -KILL -x qcow2setup || true
		wait "$main" || true
		qcow2setup list >/dev/null
		equal "$(dmsetup info -c --noheadings \
			-o tables_loaded,suspended vm)" "Live:Active" "state"
		echo "$delay: $(layers vm)"
		matches "$(layers vm)" '^(active sn1|new[0-9]) base$' "layers"
	done
	qcow2setup close vm
	nothing_left
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup pull, flatten, delete: chains of all kinds, open and closed.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# check_pull INTO LINK: after a pull; the chain as it was is before/
check_pull()
{
	local image

	equal "$(contents active qcow2)" "$(<sum)" "contents"
	equal "$(backing "$1")" "$2" "link of $1"
	check_images "$1"
	for image in base sn1 sn2 sn3 active; do
		[ "$image" = "$1" ] || cmp "$image" "before/$image"
	done
}

# pull KIND open|closed INTO BASE LINK...: BASE is - for none
pull()
{
	local kind=$1 how=$2 into base args before

	shift 2
	chain "$kind"
	contents active qcow2 >sum
	copy_chain before .
	while [ $# -gt 0 ]; do
		into=$1 base=$2
		shift 2
		echo "== $kind $how $into over $base"
		args=(--into "$into")
		[ "$base" = - ] || args+=(--base "$base")
		if [ "$how" = open ]; then
			qcow2setup open ./active vm
			before=$(device_contents vm)
			qcow2setup pull vm "${args[@]}"
			equal "$(device_contents vm)" "$before" "device"
			qcow2setup close vm
		else
			qcow2setup pull ./active "${args[@]}"
		fi
		check_pull "$into" "${base/-/none}"
		copy_chain . before
	done
	all_gone
}

test_open_mixed()
{
	pull mixed open sn3 base sn2 base active sn1 active -
}

test_open_shorter()
{
	pull shorter open sn3 sn1 sn3 - active base active -
}

test_open_old()
{
	pull old open sn2 - active -
}

test_open_raw()
{
	pull raw-short open sn1 - active base
}

test_open_subclusters()
{
	pull subclusters open sn2 base active sn1 active -
}

test_open_datafile()
{
	pull datafile open sn2 base active sn1 active -
}

test_closed_datafile()
{
	pull datafile closed active base sn3 sn1
}

test_closed_mixed()
{
	pull mixed closed active base active - sn3 sn1
}

test_closed_shorter()
{
	pull shorter closed active base active - sn3 sn1
}

test_closed_subclusters()
{
	pull subclusters closed active base sn2 base
}

test_open_compressed()
{
	pull compressed open sn3 base active sn1 active -
}

test_closed_compressed()
{
	pull compressed closed active base sn2 base
}

# same IMAGE...: as they were
same()
{
	local image

	for image; do
		cmp "$image" "before/$image"
	done
}

test_delete()
{
	chain mixed
	contents active qcow2 >sum
	copy_chain before .
	qcow2setup open ./active vm
	exits 1 'merged --down only' qcow2setup delete vm active
	exits 1 'merged --up only' qcow2setup delete vm 'vm[4]' --down
	qcow2setup delete vm 'vm[2]'
	fails test -e sn2
	equal "$(layers vm)" "active sn3 sn1 base" "layers"
	same sn1 base
	qcow2setup delete vm sn1 --down --keep
	equal "$(layers vm)" "active sn3 base" "layers"
	same sn1
	qcow2setup close vm
	equal "$(contents active qcow2)" "$(<sum)" "contents"
	qcow2setup delete ./active sn3 --up
	fails test -e sn3
	equal "$(contents active qcow2)" "$(<sum)" "contents"
	check_images active base
	all_gone
}

# What somebody builds on while the job runs is not deleted.
test_delete_used_meanwhile()
{
	chain plain
	contents active qcow2 >sum
	contents sn2 qcow2 >sum2
	qcow2setup open ./active vm
	qcow2setup delete vm sn2 --bandwidth 2M --detach
	qcow2setup create ./other -b sn2 -F qcow2
	qcow2setup wait vm >out 2>&1
	grep -q 'sn2, which was to be deleted, is kept' out
	grep -q '^not needed any more: .*/sn2$' out
	fails grep '^deleted' out
	equal "$(layers vm)" "active sn3 sn1 base" "layers"
	equal "$(contents other qcow2)" "$(<sum2)" "the other overlay"
	rm other sn2
	qcow2setup close vm
	equal "$(contents active qcow2)" "$(<sum)" "contents"
	all_gone
}

# The kernel splits messages at a byte that is in the middle of characters.
test_names()
{
	local base

	for base in 'base.追加' 'base voilà' "base'\"\\ ,=:%" $'base\r\n\t\v'; do
		qemu-img create -q -f qcow2 "./$base" 4M
		qemu-io -c "write -P 1 0 64k" "./$base" >/dev/null
		qemu-img create -q -f qcow2 mid -b "./$base" -F qcow2
		qemu-io -c "write -P 2 64k 64k" mid >/dev/null
		qemu-img create -q -f qcow2 top -b mid -F qcow2
		contents top qcow2 >sum
		qcow2setup open ./top vm
		qcow2setup delete vm mid
		qcow2setup close vm
		equal "$(contents top qcow2)" "$(<sum)" "contents over $base"
		rm -- top "$base"
	done
}

# A snapshot's contents come from the backing file as well.
test_internal_snapshots()
{
	chain plain
	qemu-img snapshot -c one sn2
	qemu-img snapshot -c one active
	contents active qcow2 >sum
	qcow2setup open ./active vm
	exits 4 'internal snapshots' qcow2setup pull vm --into sn2
	exits 4 'internal snapshots' qcow2setup commit vm --top sn2 --base base
	exits 4 'internal snapshots' qcow2setup flatten vm
	exits 4 'internal snapshots' qcow2setup commit vm
	exits 4 'would lose their contents' qcow2setup delete vm sn2
	exits 4 'would lose their contents' \
		qcow2setup pull vm --into sn3 --base sn1 --delete
	qcow2setup delete vm sn2 --force --dry-run
	qcow2setup commit vm --top sn3 --base sn2
	equal "$(layers vm)" "active sn2 sn1 base" "layers"
	qcow2setup close vm
	equal "$(contents active qcow2)" "$(<sum)" "contents"
	check_images sn2 active
	all_gone
}

# A device that takes an I/O in more pieces than there are tags below it ends it
# with EAGAIN late, if it must not wait: each time anew.
test_base_in_pieces()
{
	local loop before i

	head -c 1M /dev/urandom >raw
	loop=$(attach raw)
	for ((i = 0; i < 2048; i++)); do
		echo "$i 1 linear $loop $((i * 97 % 2048))"
	done | dmsetup create pieces
	qcow2setup create mid -b /dev/mapper/pieces -F raw
	qcow2setup create top -b mid -F qcow2
	qcow2setup open ./top vm
	before=$(device_contents vm)
	timeout 60 qcow2setup pull vm --into mid
	equal "$(layers vm)" "top mid" "layers"
	equal "$(device_contents vm)" "$before" "contents"
	qcow2setup close vm
	dmsetup remove pieces
	losetup -d "$loop"
	check_images mid top
	all_gone
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup commit: all ranges of chains of all kinds, open and closed, beside
# qemu-img commit; under a busy guest; killed.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# Top and base of each range below the active image, and the image above
RANGES="
sn3 base active
sn2 base sn3
sn1 base sn2
sn2 sn1 sn3
sn3 sn2 active
sn3 sn1 active
"

format_of()
{
	if [ "$1" = base ]; then
		case $2 in
		raw*) echo raw ;;
		*) echo qcow2 ;;
		esac
	else
		echo qcow2
	fi
}

# check_range KIND TOP BASE ABOVE: after a commit; the chain as it was is before/
check_range()
{
	local kind=$1 top=$2 base=$3 above=$4 image format

	format=$(format_of "$base" "$kind")
	equal "$(contents active qcow2)" "$(<sum)" "contents, $kind $top..$base"
	equal "$(backing "$above")" "$base" "link of $above"
	for image in base sn1 sn2 sn3 active; do
		if [ "$image" != "$base" ] && [ "$image" != "$above" ]; then
			cmp "$image" "before/$image"
		elif [ "$(format_of "$image" "$kind")" = qcow2 ]; then
			check_images "$image"
		fi
	done
	is_short "$kind" && return
	copy_chain qemu before
	(cd qemu && qemu-img commit -q -d -b "$base" "$top")
	equal "$(contents "$base" "$format")" \
		"$(cd qemu && contents "$base" "$format")" \
		"as qemu-img commit, $kind $top..$base"
	rm -r qemu
}

# commit_ranges KIND open|closed [TOP..BASE...]
commit_ranges()
{
	local kind=$1 how=$2 top base above

	shift 2
	chain "$kind"
	contents active qcow2 >sum
	copy_chain before .
	while read -r top base above; do
		[ -n "$top" ] || continue
		[ $# = 0 ] || [[ " $* " = *" $top..$base "* ]] || continue
		echo "== $kind $how $top..$base"
		"commit_$how" "$top" "$base"
		check_range "$kind" "$top" "$base" "$above"
		copy_chain . before
	done <<<"$RANGES"
	all_gone
}

commit_open()
{
	local before

	qcow2setup open ./active vm
	before=$(device_contents vm)
	qcow2setup commit vm --top "$1" --base "$2"
	equal "$(device_contents vm)" "$before" "contents of the device"
	qcow2setup close vm
}

commit_closed()
{
	qcow2setup commit ./active --top "$1" --base "$2"
}

test_open_plain()
{
	commit_ranges plain open sn3..base sn1..base
}

test_open_mixed()
{
	commit_ranges mixed open
}

test_open_shorter()
{
	commit_ranges shorter open
}

test_open_growing()
{
	commit_ranges growing open sn3..base sn2..sn1
}

test_open_old()
{
	commit_ranges old open sn3..base sn2..sn1
}

test_open_raw()
{
	commit_ranges raw open sn3..base sn1..base
}

test_open_raw_short()
{
	commit_ranges raw-short open sn3..base sn1..base
}

test_open_subclusters()
{
	commit_ranges subclusters open sn3..base sn2..sn1
}

test_open_datafile()
{
	commit_ranges datafile open sn3..base sn3..sn2 sn2..sn1
}

test_closed_datafile()
{
	commit_ranges datafile closed sn2..base sn3..sn2
}

test_active_datafile()
{
	commit_active datafile sn2 base
}

test_closed_mixed()
{
	commit_ranges mixed closed sn3..base sn2..base sn3..sn2
}

test_closed_shorter()
{
	commit_ranges shorter closed sn3..base sn2..sn1
}

test_closed_raw_short()
{
	commit_ranges raw-short closed sn3..base
}

test_closed_subclusters()
{
	commit_ranges subclusters closed sn3..base sn3..sn2
}

test_open_compressed()
{
	commit_ranges compressed open sn3..base sn1..base sn3..sn1
}

test_closed_compressed()
{
	commit_ranges compressed closed sn2..base sn3..sn2
}

# commit_top KIND BASE...: of a closed chain the active image itself
commit_top()
{
	local kind=$1 base image

	shift
	chain "$kind"
	contents active qcow2 >sum
	copy_chain before .
	for base; do
		echo "== $kind closed active into $base"
		qcow2setup commit ./active --base "$base"
		equal "$(contents "$base" "$(format_of "$base" "$kind")")" \
			"$(<sum)" "contents of $base"
		[ "$(format_of "$base" "$kind")" = raw ] || check_images "$base"
		for image in base sn1 sn2 sn3; do
			[ "$image" = "$base" ] || cmp "$image" "before/$image"
		done
		copy_chain . before
	done
	all_gone
}

test_top_mixed()
{
	commit_top mixed sn3 base
}

test_top_compressed()
{
	commit_top compressed sn3 base
}

test_top_raw()
{
	commit_top raw base
}

# commit_active KIND BASE...: the chain's device goes on in BASE.
commit_active()
{
	local kind=$1 base image before

	shift
	chain "$kind"
	copy_chain before .
	for base; do
		echo "== $kind active into $base"
		qcow2setup open ./active vm
		before=$(device_contents vm)
		# The clusters that it gives back are nobody's concern.
		qcow2setup commit vm --base "$base" 2>said
		equal "$(<said)" "" "warnings"
		equal "$(device_contents vm)" "$before" "contents"
		equal "$(layers vm | cut -d' ' -f1)" "$base" "top"
		for image in base sn1 sn2 sn3; do
			[ "$image" = "$base" ] || cmp "$image" "before/$image"
		done
		# The old top is an empty overlay of the new one.
		equal "$(backing active)" "$base" "link of the old top"
		qemu-io -f raw -c 'write -P 99 1M 1M' /dev/mapper/vm >/dev/null
		before=$(device_contents vm)
		qcow2setup close vm
		qcow2setup open "./$base" vm --backing-format \
			"$base=$(format_of "$base" "$kind")"
		equal "$(device_contents vm)" "$before" "contents of $base"
		qcow2setup close vm
		[ "$(format_of "$base" "$kind")" = raw ] || check_images "$base"
		check_images active
		copy_chain . before
	done
	all_gone
}

test_active_plain()
{
	commit_active plain sn3 base
}

test_active_mixed()
{
	commit_active mixed sn3 sn2
}

test_active_growing()
{
	commit_active growing base sn2
}

test_active_subclusters()
{
	commit_active subclusters sn2 base
}

test_active_compressed()
{
	commit_active compressed sn3 base
}

test_active_raw()
{
	commit_active raw-short base
}

# The machine stops when the layers are out of the chain, and one of the files is gone.
test_reboot()
{
	local before commit

	disk_to_freeze
	chain plain
	mv sn3 mnt/
	ln -s mnt/sn3 sn3
	commit=(qcow2setup commit vm --top ./sn3 --base ./sn1 --delete)
	qcow2setup open ./active vm
	before=$(device_contents vm)
	killed_while_deleting 3 "${commit[@]}"
	wait_for 5 umount mnt
	dmsetup remove vm
	wait_for 5 no_loops
	rm -r /run/qcow2setup sn3
	test -e sn2
	qcow2setup open ./active vm
	equal "$(layers vm)" "active sn1 base" "layers"
	"${commit[@]}" >said
	grep "deleted: $PWD/sn2" said
	fails test -e sn2
	equal "$(device_contents vm)" "$before" "contents"
	exits 4 'does not exist' "${commit[@]}"
	qcow2setup close vm
	check_images active sn1 base
	all_gone
}

# The commit was killed long before its end, and the image below is opened by the name
# of the device: that is no sign of a commit.
test_killed_and_base_opened()
{
	local before commit=(qcow2setup commit vm --delete)

	qemu-img create -q -f qcow2 base 24M
	qemu-img create -q -f qcow2 -b base -F qcow2 top
	qemu-io -c 'write -P 1 0 16M' top >/dev/null
	before=$(contents top qcow2)
	qcow2setup open ./top vm
	"${commit[@]}" --bandwidth 256K &
	sleep 3
	kill -KILL $!
	wait $! || true
	qcow2setup close vm
	qcow2setup open ./base vm --read-only
	qcow2setup list
	exits 1 'has no backing file' "${commit[@]}" --bandwidth 256K
	qcow2setup close vm
	test -e top
	equal "$(contents top qcow2)" "$before" "contents"
	qcow2setup open ./top vm
	"${commit[@]}" | grep "deleted: $PWD/top"
	fails test -e top
	equal "$(device_contents vm)" "$before" "contents of the base"
	qcow2setup close vm
	check_images base
	all_gone
}

# longer_base: a top image of 1M over a base of 2M, which has something everywhere
longer_base()
{
	head -c 2M /dev/zero | tr '\0' b >bottom
	qemu-img create -q -f qcow2 -b bottom -F raw base
	qemu-io -c 'write -P 3 1M 256k' base >/dev/null
	qemu-img create -q -f qcow2 -b base -F qcow2 top 1M
	qemu-io -c 'write -P 5 512k 64k' top >/dev/null
}

# What the top image hid does not come up, whatever is done then to the device, which
# is shorter than the image; and a closed chain comes to the same.
test_active_into_a_longer_base()
{
	local before

	longer_base
	mkdir closed
	cp bottom base top closed/
	(cd closed && qcow2setup commit ./top)
	qcow2setup open ./top vm
	before=$(device_contents vm)
	qcow2setup commit vm
	equal "$(device_contents vm)" "$before" "contents"
	exits 4 'shorter than .*base, .*resize vm 2097152' qcow2setup flatten vm
	exits 4 'shorter than .*base' qcow2setup pull vm --dry-run
	exits 4 'shorter than .*base' qcow2setup rebase vm -b ''
	qcow2setup copy vm ./copy
	equal "$(contents copy qcow2)" "$before" "contents of a copy"
	qcow2setup copy vm ./copy.raw --format raw
	equal "$(sha256sum <copy.raw)" "$before" "contents of a raw one"
	qcow2setup copy vm ./shallow --shallow
	equal "$(contents shallow qcow2)" "$before" "contents of a shallow one"
	qcow2setup resize vm 2M
	io vm -c 'read -P 0 1M 1M'
	qcow2setup flatten vm
	qcow2setup close vm
	equal "$(contents base qcow2)" "$(cd closed && contents base qcow2)" \
		"contents of the base, as of a closed chain"
	check_images base top copy shallow closed/base
	all_gone
}

test_active_into_a_longer_raw_base()
{
	longer_base
	rm base
	qemu-img rebase -q -u -b bottom -F raw top
	qcow2setup open ./top vm
	qcow2setup commit vm
	qcow2setup close vm
	qemu-io -f raw -c 'read -P 98 576k 448k' -c 'read -P 0 1M 1M' bottom |
		(! grep failed)
	all_gone
}

# The rest of a block device is zeroed while other commands may run: who has it from
# then on is locked all the same.
test_active_into_a_longer_raw_device()
{
	modprobe brd rd_nr=1 rd_size=24576
	dd if=/dev/zero of=/dev/ram0 bs=1M count=24 oflag=direct status=none
	qemu-img create -q -f qcow2 -b /dev/ram0 -F raw top 16M
	qemu-io -c 'write -P 5 512k 64k' top >/dev/null
	qcow2setup open ./top vm
	qcow2setup commit vm
	qcow2setup list
	equal "$(locked /dev/ram0)" "100-101 103-103 201-201 203-203" "locks"
	exits 1 'lock' qemu-io -f raw -c 'write 0 512' /dev/ram0
	io vm -c 'read -P 5 512k 64k' -c 'read -P 0 1M 15M'
	qcow2setup close vm
	all_gone
	rmmod brd
}

# A block device that was only read is written from now on.
test_active_raw_device()
{
	local before write=(qemu-io -f raw -c 'write 0 512' /dev/ram0)

	modprobe brd rd_nr=1 rd_size=24576
	chain raw
	dd if=base of=/dev/ram0 bs=1M oflag=direct status=none
	qemu-img rebase -q -u -b /dev/ram0 -F raw sn1
	qcow2setup open ./active vm
	equal "$(locked /dev/ram0)" "100-100 201-201 203-203" "locks of a reader"
	before=$(device_contents vm)
	qcow2setup commit vm --base /dev/ram0 --bandwidth 8M --detach
	while qcow2setup jobs --json | jq -e '.[0].state == "running"'; do
		qcow2setup list
		exits 1 'lock' "${write[@]}"
		sleep 1
	done
	qcow2setup wait vm
	qcow2setup list
	equal "$(locked /dev/ram0)" "100-101 103-103 201-201 203-203" "locks"
	exits 1 'lock' "${write[@]}"
	equal "$(device_contents vm)" "$before" "contents"
	qcow2setup close vm
	"${write[@]}"
	all_gone
	rmmod brd
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup rebase: open and closed, beside qemu-img rebase.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# as_qemu NEW FORMAT: the chain before/ after qemu-img rebase reads the same.
as_qemu()
{
	copy_chain qemu before
	cp --sparse=always other other-base qemu/
	(cd qemu && qemu-img rebase -b "$1" ${2:+-F "$2"} active)
	equal "$(cd qemu && contents active qcow2)" "$(contents active qcow2)" \
		"as qemu-img rebase to '$1'"
	rm -r qemu
}

# rebase open|closed NEW FORMAT: the contents must stay.
rebase()
{
	local how=$1 before

	shift
	echo "== $how to '$1'"
	if [ "$how" = open ]; then
		qcow2setup open ./active vm
		before=$(device_contents vm)
		qcow2setup rebase vm -b "$1" ${2:+-F "$2"}
		equal "$(device_contents vm)" "$before" "device"
		qcow2setup close vm
	else
		qcow2setup rebase ./active -b "$1" ${2:+-F "$2"}
	fi
	equal "$(contents active qcow2)" "$(<sum)" "contents"
	equal "$(backing active)" "${1:-none}" "link"
	check_images active
}

# other: a chain of its own, partly like the first
other_chain()
{
	qemu-img create -q -f raw other-base 18M
	fill other-base raw $((18 << 20)) 101
	qemu-img create -q -f qcow2 -b other-base -F raw other 20M
	fill other qcow2 $((20 << 20)) 121
}

all_rebases()
{
	local image

	chain "$1"
	other_chain
	contents active qcow2 >sum
	copy_chain before .
	for new in base "" other; do
		format=qcow2
		[ -n "$new" ] || format=''
		rebase "$2" "$new" "$format"
		is_short "$1" || as_qemu "$new" "$format"
		for image in base sn1 sn2 sn3; do
			cmp "$image" "before/$image"
		done
		copy_chain . before
	done
	all_gone
}

test_closed_mixed()
{
	all_rebases mixed closed
}

test_closed_shorter()
{
	all_rebases shorter closed
}

test_closed_subclusters()
{
	all_rebases subclusters closed
}

test_closed_compressed()
{
	all_rebases compressed closed
}

test_open_compressed()
{
	all_rebases compressed open
}

test_closed_datafile()
{
	all_rebases datafile closed
}

test_open_datafile()
{
	all_rebases datafile open
}

test_open_mixed()
{
	all_rebases mixed open
}

test_open_subclusters()
{
	all_rebases subclusters open
}

test_open_shorter()
{
	all_rebases shorter open
}

# Nothing is copied that reads the same in the new chain.
test_equal_chain()
{
	chain plain
	contents active qcow2 >sum
	copy_chain before .
	qemu-img convert -O qcow2 sn3 flat
	rebase closed flat qcow2
	equal "$(stat -c %s active)" "$(stat -c %s before/active)" "length"
	all_gone
}

# A layer of the chain itself by its number: the link and the format follow.
test_by_number()
{
	chain raw
	contents active qcow2 >sum
	qcow2setup open ./active vm
	exits 4 'there is no vm.5' qcow2setup rebase vm -b 'vm[5]'
	exits 1 'is raw, not qcow2' qcow2setup rebase vm -b 'vm[4]' -F qcow2
	exits 4 'own backing file|loop' qcow2setup rebase vm -b 'vm[0]'
	qcow2setup rebase vm -b 'vm[2]'
	equal "$(layers vm)" "active sn2 sn1 base" "layers"
	qcow2setup close vm
	equal "$(backing active)" sn2 "link"
	qcow2setup rebase ./active -b './active[3]'
	equal "$(backing active)" base "link"
	equal "$(qemu-img info --output=json active |
		jq -r '."backing-filename-format"')" raw "format"
	equal "$(contents active qcow2)" "$(<sum)" "contents"
	check_images active
	all_gone
}

test_unsafe()
{
	chain plain
	mkdir moved
	mv sn3 moved/
	for image in base sn1 sn2; do
		ln "$image" "moved/$image"
	done
	exits 4 'sn3' qcow2setup rebase ./active -b moved/sn3 -F qcow2
	qcow2setup rebase ./active -b moved/sn3 -F qcow2 -u
	equal "$(backing active)" moved/sn3 "link"
	qcow2setup open ./active vm
	exits 5 'not for an open device' \
		qcow2setup rebase vm -b moved/sn3 -F qcow2 -u
	exits 5 'device vm' qcow2setup rebase ./active -b moved/sn3 -F qcow2 -u
	qcow2setup close vm
	exits 1 'format .* missing' qcow2setup rebase ./active -b moved/sn3
	exits 1 'new backing file is missing' qcow2setup rebase ./active
	exits 4 'own backing file|loop' \
		qcow2setup rebase ./active -b active -F qcow2
	all_gone
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup: looking at what is open.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# same_map DEVICE IMAGE: as qemu-img sees it, which must be told not to lock
same_map()
{
	qcow2setup map "$1" --json |
		jq -c '.[] | del(.compressed, .filename)' >ours
	qemu-img map -U --output=json "$2" |
		jq -c '.[] | del(.compressed)' >theirs
	[ -s ours ] || die "there is no map"
	diff ours theirs || die "maps of $1 differ"
}

test_map_of_a_device()
{
	local layers

	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-io -c 'write -c 0 256k' -c 'write 1M 1M' base.qcow2 >/dev/null
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qcow2setup open ./top.qcow2 vm
	same_map vm "$PWD/top.qcow2"
	# What no flush has written out yet
	dd if=/dev/urandom of=/dev/mapper/vm bs=64k count=3 seek=7 \
		oflag=direct conv=notrunc status=none
	blkdiscard -z -o 2M -l 1M /dev/mapper/vm
	same_map vm "$PWD/top.qcow2"
	layers=$(qcow2setup map vm --json | jq -c '[.[].depth] | unique')
	equal "$layers" "[0,1]" "layers"
	matches "$(qcow2setup map vm)" \
		"0x70000 +0x30000 +0x[0-9a-f]+ +$PWD/top.qcow2" "text"
	dmsetup suspend vm
	same_map vm "$PWD/top.qcow2"
	dmsetup resume vm
	qcow2setup close vm
	qcow2setup open ./top.qcow2 vm --read-only
	same_map vm "$PWD/top.qcow2"
	qcow2setup close vm
	fails qcow2setup map vm
}

# same_info FILE FILE: of QEMU's, without what newer ones say of the file below
same_info()
{
	jq -S 'del(.[]."file-length", .[]."block-device")' "$1" >ours
	jq -S 'del(.[].children)' "$2" >theirs
	diff ours theirs || die "they differ"
}

test_info_of_a_device()
{
	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-img snapshot -c before base.qcow2
	qemu-img bitmap --add base.qcow2 changes
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qcow2setup open ./top.qcow2 vm
	dd if=/dev/urandom of=/dev/mapper/vm bs=64k count=3 oflag=direct \
		conv=notrunc,fsync status=none
	qcow2setup info vm --backing-chain --json >ours.json
	qemu-img info -U --backing-chain --output=json "$PWD/top.qcow2" \
		>theirs.json
	same_info ours.json theirs.json
	matches "$(qcow2setup info vm)" 'disk size:' "text"
	qcow2setup close vm
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup: open and close, what is shown, chains and their links, refusals.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# chain: base.qcow2 <- middle.qcow2 <- top.qcow2, 64 MiB, in the directory
chain()
{
	qemu-img create -q -f qcow2 base.qcow2 64M
	qemu-io -c 'write -P 1 0 4M' base.qcow2 >/dev/null
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2
	qemu-io -c 'write -P 2 2M 4M' middle.qcow2 >/dev/null
	qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2
}

json()
{
	jq -r "$@"
}

test_open_write_close()
{
	chain
	sha256sum base.qcow2 middle.qcow2 >sums
	qcow2setup open ./top.qcow2 vm
	qemu-io -f raw -c 'read -P 1 0 2M' -c 'read -P 2 2M 4M' \
		-c 'write -P 3 1M 2M' -c 'read -P 0 6M 1M' /dev/mapper/vm >out
	fails grep failed out
	qcow2setup close vm
	qemu-io -c 'read -P 1 0 1M' -c 'read -P 3 1M 2M' -c 'read -P 2 3M 3M' \
		top.qcow2 >out
	fails grep failed out
	qemu-img check top.qcow2
	sha256sum -c sums
}

test_what_is_shown()
{
	chain
	qcow2setup open ./top.qcow2 vm --json >out
	equal "$(json .device out)" /dev/mapper/vm "device"
	qcow2setup list --json >out
	equal "$(json '.[0].name' out)" vm "name in the list"
	equal "$(json '.[0].layers' out)" 3 "layers in the list"
	matches "$(qcow2setup list)" "vm .*$PWD/top.qcow2" "list"
	qcow2setup status vm --json >out
	equal "$(json .size out)" $((64 << 20)) "size"
	equal "$(json '.layers[0].image' out)" "$PWD/top.qcow2" "top"
	equal "$(json '.layers[2].image' out)" "$PWD/base.qcow2" "bottom"
	equal "$(json '.layers[0]."file-length"' out)" \
		"$(stat -c %s top.qcow2)" "length"
	equal "$(json '.layers[0]."file-allocated"' out)" \
		"$(($(stat -c %b top.qcow2) * 512))" "allocation"
	equal "$(json .kernel.mode out)" rw "mode"
	matches "$(qcow2setup status vm)" "vm is active" "status"
	qcow2setup info vm --backing-chain --json >out
	equal "$(json length out)" 3 "images of the device"
	equal "$(json '.[1]."backing-filename"' out)" base.qcow2 "link"
	qcow2setup close vm
	exits 4 'vm is not active' qcow2setup status vm
	exits 4 'vm is not active' qcow2setup close vm
	qcow2setup info ./top.qcow2 --json >out
	equal "$(json '."virtual-size"' out)" $((64 << 20)) "virtual size"
	matches "$(qcow2setup info ./top.qcow2 --backing-chain)" 'base.qcow2' \
		"info"
	equal "$(qcow2setup list --json)" '[]' "empty list"
}

test_parameters()
{
	chain
	exits 0 'Usage' qcow2setup --help
	exits 0 '^qcow2setup [0-9]' qcow2setup --version
	exits 1 'No command' qcow2setup
	exits 1 "Unknown command 'opne'" qcow2setup opne ./top.qcow2 vm
	exits 1 'number of arguments' qcow2setup open ./top.qcow2
	exits 1 'not an option of close' qcow2setup close vm --read-only
	exits 1 'not a device name' qcow2setup open ./top.qcow2 a/b
	exits 1 'not a device name' qcow2setup open ./top.qcow2 'a b'
	exits 1 'not a device name' qcow2setup open ./top.qcow2 ..
	exits 1 'device name has' qcow2setup open ./top.qcow2 ''
	exits 1 'device name has' qcow2setup open ./top.qcow2 \
		"$(printf '%0128d' 0)"
	exits 4 'not exist' qcow2setup open ./none.qcow2 vm
	exits 4 'neither a file' qcow2setup open . vm
	exits 4 'neither a file' qcow2setup open /dev/null vm
	echo text >text
	exits 4 'not a qcow2 image' qcow2setup open ./text vm
	setpriv --reuid 65534 --clear-groups true || die "no setpriv"
	exits 2 '.' setpriv --reuid 65534 --clear-groups \
		"$(command -v qcow2setup)" list
	qcow2setup open ./top.qcow2 vm
	qemu-img create -q -f qcow2 other.qcow2 1M
	exits 5 'already exists' qcow2setup open ./other.qcow2 vm
	dmsetup create foreign --table '0 8 zero'
	exits 4 'not a qcow2 device' qcow2setup close foreign
	dmsetup remove foreign
	qcow2setup close vm
}

test_module_is_missing()
{
	local modprobe

	chain
	modprobe=$(cat /proc/sys/kernel/modprobe)
	rmmod dm_qcow2
	echo /bin/false >/proc/sys/kernel/modprobe
	exits 4 'is the module dm-qcow2 installed' \
		qcow2setup open ./top.qcow2 vm
	echo "$modprobe" >/proc/sys/kernel/modprobe
	nothing_left
	modprobe dm-qcow2
	qcow2setup open ./top.qcow2 vm
	qcow2setup close vm
	exits 1 'image is empty' qcow2setup open '' vm
}

test_read_only_is_shared()
{
	chain
	sha256sum ./*.qcow2 >sums
	qcow2setup open ./top.qcow2 one --read-only
	qcow2setup open "$PWD/../${PWD##*/}/top.qcow2" two --read-only
	equal "$(blockdev --getro /dev/mapper/two)" 1 "read-only"
	qemu-io -r -f raw -c 'read -P 1 0 2M' /dev/mapper/one >out
	fails grep failed out
	equal "$(losetup -n -O BACK-FILE | grep -c "$PWD/")" 3 "loop devices"
	exits 5 'open read-only as device one|open read-only as device two' \
		qcow2setup open ./top.qcow2 three
	exits 5 'is a lower layer of device' qcow2setup open ./middle.qcow2 three
	qcow2setup close one
	qcow2setup close two
	sha256sum -c sums
}

test_in_use_is_refused_by_name()
{
	chain
	ln -s top.qcow2 link.qcow2
	ln top.qcow2 hard.qcow2
	qcow2setup open ./top.qcow2 vm
	exits 5 'open for writing as device vm' qcow2setup open ./link.qcow2 b
	exits 5 'open for writing as device vm' qcow2setup open ./hard.qcow2 b
	exits 5 'open for writing as device vm' \
		qcow2setup open --read-only ./hard.qcow2 b
	exits 5 'a lower layer of device vm' qcow2setup open ./base.qcow2 b
	exits 5 'open for writing as device vm' \
		qcow2setup create ./over.qcow2 -b top.qcow2 -F qcow2
	exits 5 'open for writing as device vm' \
		qcow2setup snapshot ./top.qcow2 over.qcow2
	exits 5 'vm is an open device' \
		qcow2setup create ./over.qcow2 -b vm -F qcow2
	exits 5 'open for writing as device vm' qcow2setup create ./top.qcow2 1M
	exits 5 'a lower layer of device vm' qcow2setup create ./base.qcow2 1M
	fails test -e over.qcow2
	# Beside a device that only reads it, an overlay is fine.
	qcow2setup create ./beside.qcow2 -b middle.qcow2 -F qcow2
	qcow2setup open ./beside.qcow2 b
	exec 9</dev/mapper/vm
	exits 5 "vm is still in use: .*process .*$$|vm is still in use: .*process" \
		qcow2setup close vm
	exec 9<&-
	qcow2setup close b
	qcow2setup close vm
}

test_busy_mount_is_named()
{
	qcow2setup create ./a.qcow2 64M
	qcow2setup open ./a.qcow2 vm
	mkfs.ext4 -q /dev/mapper/vm
	mkdir mnt
	mount /dev/mapper/vm mnt
	exits 5 "mounted on $PWD/mnt" qcow2setup close vm
	umount mnt
	qcow2setup close vm
}

test_links()
{
	mkdir -p a b
	qemu-img create -q -f qcow2 b/base.qcow2 8M
	qemu-io -c 'write -P 7 0 1M' b/base.qcow2 >/dev/null
	for link in ../b/base.qcow2 "$PWD/b/base.qcow2" file:../b/base.qcow2 \
		"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"$PWD/b/base.qcow2\"}}" \
		"json:{\"driver\":\"qcow2\",\"file.driver\":\"file\",\"file.filename\":\"$PWD/b/base.qcow2\"}" \
		"json:{\"driver\":\"file\",\"filename\":\"$PWD/b/base.qcow2\"}"; do
		rm -f a/top.qcow2
		qemu-img create -q -f qcow2 -u -b "$link" -F qcow2 a/top.qcow2 8M
		(cd / && qcow2setup open "$OLDPWD/a/top.qcow2" vm)
		qemu-io -f raw -c 'read -P 7 0 1M' /dev/mapper/vm >out
		fails grep failed out
		qcow2setup close vm
	done
	for link in nbd://localhost/x 'json:{"driver":"nbd","host":"x"}' \
		'json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"b/base.qcow2"}}' \
		'json:{"driver":"qcow2","file":{"driver":"https","url":"x"}}' \
		'json:{nonsense'; do
		rm -f a/top.qcow2
		qemu-img create -q -f qcow2 a/plain.qcow2 8M
		qemu-img rebase -q -u -b "$link" -F qcow2 a/plain.qcow2
		exits 4 'not supported|neither a file|not valid JSON' \
			qcow2setup open a/plain.qcow2 vm
	done
}

test_json_link_to_a_device()
{
	modprobe brd rd_nr=1 rd_size=65536
	qemu-img create -q -f qcow2 /dev/ram0 8M
	qemu-img create -q -f qcow2 -u -F qcow2 -b \
		'json:{"driver":"qcow2","file":{"driver":"host_device","filename":"/dev/ram0"}}' \
		top.qcow2 8M
	qcow2setup open ./top.qcow2 vm
	equal "$(qcow2setup status vm --json | json '.layers[1].device')" \
		/dev/ram0 "device of the layer"
	qcow2setup close vm
	rmmod brd
}

test_loops_and_holes_in_a_chain()
{
	chain
	qemu-img create -q -f qcow2 loop.qcow2 64M
	qemu-img rebase -q -u -b top.qcow2 -F qcow2 loop.qcow2
	qemu-img rebase -q -u -b loop.qcow2 -F qcow2 base.qcow2
	exits 4 'loop' qcow2setup open ./top.qcow2 vm
	exits 4 'loop' qcow2setup info ./top.qcow2 --backing-chain
	rm loop.qcow2
	exits 4 "$PWD/loop.qcow2 of $PWD/base.qcow2: No such file" \
		qcow2setup open ./top.qcow2 vm
}

# Overwrites the name of the header extension, so that no format is recorded.
forget_format()
{
	python3 - "$1" <<-'PY'
		import sys
		data = bytearray(open(sys.argv[1], 'rb').read())
		at = data.index(bytes.fromhex('e2792aca'))
		data[at:at + 4] = b'\x77\x77\x77\x77'
		open(sys.argv[1], 'r+b').write(data)
	PY
}

test_formats_are_never_guessed()
{
	truncate -s 8M disk.raw
	qemu-img create -q -f qcow2 -b disk.raw -F raw top.qcow2
	# A raw disk with a header in it stays a raw disk.
	qemu-img create -q -f qcow2 -b /etc/passwd -F raw -u evil.qcow2 8M
	dd if=evil.qcow2 of=disk.raw conv=notrunc status=none
	qcow2setup open ./top.qcow2 vm
	cmp -n 65536 evil.qcow2 /dev/mapper/vm
	qcow2setup close vm
	forget_format top.qcow2
	exits 4 'not safe: give it with --backing-format' \
		qcow2setup open ./top.qcow2 vm
	exits 1 'not in the chain' qcow2setup open ./top.qcow2 vm \
		--backing-format disk.raw=raw --backing-format ./other=raw
	exits 1 'not supported' qcow2setup open ./top.qcow2 vm \
		--backing-format disk.raw=vmdk
	exits 1 'needs IMAGE=FORMAT' qcow2setup open ./top.qcow2 vm \
		--backing-format raw
	qcow2setup open ./top.qcow2 vm --backing-format disk.raw=raw
	cmp -n 65536 evil.qcow2 /dev/mapper/vm
	qcow2setup close vm
	qemu-img create -q -f qcow2 -b disk.raw -F raw top2.qcow2
	exits 1 'cannot be opened as qcow2' qcow2setup open ./top2.qcow2 vm \
		--backing-format disk.raw=qcow2
	qemu-img create -q -f qcow2 -u -b disk.raw -F vmdk top3.qcow2 8M
	exits 4 "'vmdk' is not supported" qcow2setup open ./top3.qcow2 vm
	qcow2setup open ./top3.qcow2 vm --backing-format disk.raw=raw
	cmp -n 65536 evil.qcow2 /dev/mapper/vm
	qcow2setup close vm
}

# poke FILE OFFSET BYTE...: overwrites bytes (octal)
poke()
{
	# shellcheck disable=SC2059 # the bytes are the format
	printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

test_subclusters()
{
	qemu-img create -q -f qcow2 base.qcow2 8M
	qemu-io -f qcow2 -c 'write -P 1 0 4M' base.qcow2 >/dev/null
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 \
		-o extended_l2=on,cluster_size=128k ext.qcow2
	qcow2setup open ./ext.qcow2 vm
	qemu-io -f raw -c 'write -P 2 1M 4k' -c 'write -P 3 5M 1k' \
		/dev/mapper/vm >/dev/null
	qcow2setup close vm
	equal "$(qcow2setup info ./ext.qcow2 --json |
		json '."format-specific".data."extended-l2"')" \
		true extended-l2
	qemu-img check -q -f qcow2 ext.qcow2
	qemu-io -f qcow2 -c 'read -P 2 1M 4k' -c 'read -P 1 1028k 124k' \
		-c 'read -P 3 5M 1k' -c 'read -P 0 5121k 127k' ext.qcow2
	equal "$(qemu-img map -f qcow2 --output=json ext.qcow2 |
		json '[.[] | select(.depth == 0 and .data)] | length')" 2 \
		"extents in the top image"
}

test_features_are_refused_by_name()
{
	qemu-img create -q -f qcow2 --object secret,id=s,data=x \
		-o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 8M
	exits 4 'legacy AES' qcow2setup open ./aes.qcow2 vm
	qemu-img create -q -f qcow2 bad.qcow2 8M
	poke bad.qcow2 79 '\002'
	exits 4 'marked as corrupt' qcow2setup open ./bad.qcow2 vm
	qcow2setup open ./bad.qcow2 vm --read-only
	qcow2setup close vm
	poke bad.qcow2 79 '\001'
	exits 4 'marked as dirty' qcow2setup open ./bad.qcow2 vm
	poke bad.qcow2 79 '\000'
	poke bad.qcow2 73 '\001'
	exits 4 'not known here: bit 48' qcow2setup open ./bad.qcow2 vm
	# Its own feature table knows the name.
	python3 - <<-'PY'
		data = bytearray(open('bad.qcow2', 'rb').read())
		at = data.index(bytes.fromhex('6803f857')) + 8
		data[at:at + 48] = b'\0\x30' + b'frobnication'.ljust(46, b'\0')
		open('bad.qcow2', 'r+b').write(data)
	PY
	exits 4 "'frobnication' \(bit 48\)" qcow2setup open ./bad.qcow2 vm
	poke bad.qcow2 73 '\000'
	poke bad.qcow2 23 '\040'
	exits 4 'cluster_bits' qcow2setup open ./bad.qcow2 vm
	equal "$(stat -c %s bad.qcow2)" 196616 "length of a refused image"
}

test_no_device_of_size_0()
{
	qemu-img create -q -f qcow2 nothing.qcow2 0
	exits 4 'virtual size of 0.*qcow2setup resize' \
		qcow2setup open ./nothing.qcow2 vm
	exits 4 'virtual size of 0' \
		qcow2setup open ./nothing.qcow2 vm --read-only
	equal "$(qcow2setup info ./nothing.qcow2 --json | json '."virtual-size"')" \
		0 "size"
	qcow2setup resize ./nothing.qcow2 1M
	qcow2setup open ./nothing.qcow2 vm
	io vm -c 'read -P 0 0 1M' -c 'write -P 1 1000k 24k'
	qcow2setup close vm
	qemu-img check -q nothing.qcow2
}

# An image of no bytes owns zeroes from its first byte on, whatever is below it.
test_layers_of_size_0()
{
	qemu-img create -q -f qcow2 base.qcow2 1M
	qemu-io -c 'write -P 1 0 1M' base.qcow2 >/dev/null
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 0
	qcow2setup create ./top.qcow2 1M -b mid.qcow2 -F qcow2
	qcow2setup open ./top.qcow2 vm
	io vm -c 'read -P 0 0 1M' -c 'write -P 2 64k 1k' -c 'read -P 0 65k 63k'
	exits 4 'virtual size of 0' qcow2setup revert vm 'vm[1]' over.qcow2
	fails test -e over.qcow2
	# What was hidden stays so when the layer goes.
	qcow2setup pull vm --base base.qcow2
	equal "$(layers vm)" "top.qcow2 base.qcow2" "layers"
	io vm -c 'read -P 0 0 64k' -c 'read -P 2 64k 1k' -c 'read -P 0 65k 959k'
	qcow2setup close vm
	# Closed, and the other way
	exits 4 'virtual size of 0' qcow2setup flatten ./mid.qcow2
	qcow2setup rebase ./top.qcow2 -b mid.qcow2 -F qcow2
	qcow2setup commit ./top.qcow2 --base mid.qcow2
	equal "$(qcow2setup info ./mid.qcow2 --json | json '."virtual-size"')" \
		$((1 << 20)) "size of what it was merged into"
	qcow2setup open ./mid.qcow2 vm
	io vm -c 'read -P 0 0 64k' -c 'read -P 2 64k 1k' -c 'read -P 0 65k 959k'
	qcow2setup close vm
	qemu-img check -q mid.qcow2
}

test_raw_layer_of_size_0()
{
	: >base.raw
	qcow2setup create ./top.qcow2 1M -b base.raw -F raw
	qcow2setup open ./top.qcow2 vm
	io vm -c 'read -P 0 0 1M' -c 'write -P 2 64k 1k'
	qcow2setup close vm
	qcow2setup commit ./top.qcow2
	equal "$(stat -c %s base.raw)" $((1 << 20)) "length"
	qemu-io -f raw -c 'read -P 0 0 64k' -c 'read -P 2 64k 1k' \
		-c 'read -P 0 65k 959k' base.raw | (! grep failed)
}

test_raw_image()
{
	truncate -s 1000000 disk.raw
	exits 4 'not a qcow2 image' qcow2setup open ./disk.raw vm
	qcow2setup open ./disk.raw vm --backing-format disk.raw=raw
	equal "$(blockdev --getsize64 /dev/mapper/vm)" 1000448 "size"
	qemu-io -f raw -c 'write -P 9 999936 512' /dev/mapper/vm >/dev/null
	qcow2setup close vm
	qemu-io -f raw -c 'read -P 9 999936 512' disk.raw >out
	fails grep failed out
}

test_create()
{
	qcow2setup create ./a.qcow2 64M -o cluster_size=4k --json >out
	equal "$(json '."virtual-size"' out)" $((64 << 20)) "size"
	equal "$(qcow2setup info ./a.qcow2 --json | json '."cluster-size"')" \
		4096 "cluster size"
	exits 5 'already exists' qcow2setup create ./a.qcow2 64M
	exits 1 'needs a SIZE' qcow2setup create ./b.qcow2
	exits 1 'not a size' qcow2setup create ./b.qcow2 64Q
	exits 1 'go together' qcow2setup create ./b.qcow2 -b a.qcow2
	exits 1 'not supported' qcow2setup create ./b.qcow2 -b a.qcow2 -F vdi
	exits 1 '-b and -F' qcow2setup create ./b.qcow2 1M \
		-o backing_file=a.qcow2,backing_fmt=qcow2
	exits 4 'none.qcow2: No such file' \
		qcow2setup create ./b.qcow2 -b none.qcow2 -F qcow2
	exits 4 'qemu-img failed' qcow2setup create ./b.qcow2 1M -o nonsense=1
	fails test -e b.qcow2
	exits 4 'No such file' qcow2setup create ./none/b.qcow2 1M
	# Relative links begin at the image that holds them.
	mkdir sub
	qcow2setup create sub/b.qcow2 -b ../a.qcow2 -F qcow2
	equal "$(qemu-img info --output=json sub/b.qcow2 |
		json '."backing-filename"')" ../a.qcow2 "link"
	equal "$(qemu-img info --output=json sub/b.qcow2 |
		json '."virtual-size"')" $((64 << 20)) "size of the overlay"
	exits 5 'already exists' qcow2setup create ./a.qcow2 -b a.qcow2 -F qcow2
	qcow2setup create plain.qcow2 1M
	test -e plain.qcow2
}

# One device cannot be recovered as long as somebody has it open.
test_others_go_on_beside_what_cannot_be_recovered()
{
	local uuid

	qemu-img create -q -f qcow2 a.qcow2 4M
	qemu-img create -q -f qcow2 b.qcow2 4M
	qcow2setup open ./a.qcow2 vm
	uuid=$(dmsetup info -c --noheadings -o uuid vm)
	jq --arg uuid "$uuid" \
		'{operation: "open", name: "vm", $uuid, state: .}' \
		/run/qcow2setup/device/vm.json >/run/qcow2setup/journal
	exec 9</dev/mapper/vm
	dmsetup suspend vm
	matches "$(qcow2setup open ./b.qcow2 other 2>&1)" \
		"interrupted 'open' of device vm" "said"
	equal "$(qcow2setup list 2>&1 | grep interrupted)" "" "said again"
	exits 5 "interrupted 'open'" qcow2setup close vm
	exits 5 "interrupted 'open'" qcow2setup resize vm 8M
	io other -c 'write -P 1 0 64k' -c 'read -P 1 0 64k'
	qcow2setup close other
	matches "$(dmsetup info vm)" SUSPENDED "state"
	dmsetup resume vm
	exec 9<&-
	qcow2setup list
	io vm -c 'write -P 1 0 64k' -c 'read -P 1 0 64k'
	qcow2setup close vm
	qemu-img check a.qcow2
	equal "$(ls /run/qcow2setup/unfinished)" "" "what is left"
}

main "$@"

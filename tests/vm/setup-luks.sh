#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup and LUKS: passphrases, where the key is and where it is not, chains of
# encrypted and plain images and what is done to them, what is refused, and what is
# left behind.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

# The passphrase of image NAME is in keys/NAME: words for qemu-img, for qcow2setup
SECRETS=()
KEYS=()

# key NAME PASSPHRASE
key()
{
	mkdir -p keys
	printf %s "$2" >"keys/$1"
	SECRETS+=(--object "secret,id=$1,file=keys/$1")
	KEYS+=(--key-file "$1=keys/$1")
}

# node IMAGE [FORMAT]: JSON of the image with all below it, for QEMU
node()
{
	local info name below=null

	info=$(qemu-img info -U --output=json -f "${2:-qcow2}" "$1")
	name=$(jq -r '."backing-filename" // empty' <<<"$info")
	[ -z "$name" ] ||
		below=$(node "$name" "$(jq -r '."backing-filename-format"' <<<"$info")")
	jq -c --arg name "$1" --argjson below "$below" '
		{driver: .format, file: {driver: "file", filename: $name}} +
		if .format != "qcow2" then {} else {backing: $below} end +
		if .encrypted then {encrypt: {format: "luks",
			"key-secret": ($name | sub(".*/"; ""))}} else {} end' <<<"$info"
}

# secret_contents IMAGE: the checksum of what QEMU reads
secret_contents()
{
	qemu-img convert "${SECRETS[@]}" -O raw "json:$(node "$1")" contents.raw
	sha256sum <contents.raw
	rm -f contents.raw
}

# sound IMAGE...
sound()
{
	local image

	for image; do
		qemu-img check -q "${SECRETS[@]}" "json:$(node "$image")" ||
			die "qemu-img check $image"
	done
}

# plain NAME SIZE [OPTIONS] [BACKING]
plain()
{
	qemu-img create -q -f qcow2 ${3:+-o "$3"} ${4:+-u -b "$4" -F qcow2} "$1" \
		"$2"
}

# encrypted NAME SIZE PASSPHRASE [OPTIONS] [BACKING]
encrypted()
{
	key "$1" "$3"
	qemu-img create -q -f qcow2 "${SECRETS[@]}" -o \
		"encrypt.format=luks,encrypt.key-secret=$1,encrypt.iter-time=10${4:+,$4}" \
		${5:+-u -b "$5" -F qcow2} "$1" "$2"
}

# change IMAGE PATTERN: writes, zeroes and discards by QEMU
change()
{
	local commands=() i offset

	for i in 1 2 3 4 5 6; do
		random 0 $((11 << 20))
		offset=$REPLY
		case $i in
		5) commands+=(-c "write -z $offset 300k") ;;
		6) commands+=(-c "discard $offset 300k") ;;
		*) commands+=(-c "write -P $(($2 + i)) $offset 200k") ;;
		esac
	done
	qemu-io "${SECRETS[@]}" "${commands[@]}" "json:$(node "$1")" >/dev/null
}

# write_device NAME: some sectors here and there
write_device()
{
	local at

	for at in 0 3 77 5000 11111 20000; do
		dd if=/dev/urandom of="/dev/mapper/$1" bs=4608 count=1 \
			seek=$((at * 512)) oflag=direct,seek_bytes status=none
	done
}

# Encrypted and plain images, with two passphrases: base sn1 sn2 sn3 active
secret_chain()
{
	seed
	encrypted base 12M one
	change base 10
	plain sn1 12M cluster_size=4k base
	change sn1 20
	encrypted sn2 12M two cluster_size=4k,extended_l2=off sn1
	change sn2 30
	plain sn3 12M extended_l2=on sn2
	change sn3 40
	encrypted active 12M one cluster_size=32k sn3
	change active 50
}

# no_keys: none of ours is in a keyring
no_keys()
{
	! grep qcow2setup /proc/keys
}

# all_closed: neither devices nor keys
all_closed()
{
	all_gone
	no_keys || die "keys are left"
}

test_open_write_close()
{
	local table

	encrypted top 12M secret
	qemu-io "${SECRETS[@]}" -c 'write -P 7 0 300k' "json:$(node top)" >/dev/null
	qcow2setup open ./top vm --key-file keys/top
	matches "$(dmsetup table vm)" 'qcow2 1 qcow2 [0-9:]+ [0-9]+:' "table"
	table=$(dmsetup table --showkeys --target crypt)
	matches "$table" ':64:logon:qcow2setup:[0-9a-f-]+ 0 7:[0-9]+ 0$' "dm-crypt"
	grep -q 'logon .*qcow2setup:' /proc/keys || die "the key is in no keyring"
	equal "$(qcow2setup status vm --json | jq '.layers[0].encrypted')" true status
	qcow2setup status vm | grep -q 'encrypted (LUKS)'
	exits 1 'lock' qemu-io "${SECRETS[@]}" -c 'write 0 512' "json:$(node top)"
	exits 5 'vm' qcow2setup open ./top other --key-file keys/top
	equal "$(head -c 300k /dev/mapper/vm | tr -d '\7' | wc -c)" 0 "data"
	seq -f 'plain text %09g' 100000 >text
	truncate -s 2M text
	dd if=text of=/dev/mapper/vm bs=1M seek=3 oflag=direct status=none
	write_device vm
	before=$(device_contents vm)
	qcow2setup close vm
	all_closed
	fails grep -q 'plain text' top
	equal "$(secret_contents top)" "$before" "contents"
	sound top
	[ "$(stat -c %s top)" -lt $((12 << 20)) ] || die "the file was not cut"
	qcow2setup open ./top vm --read-only --key-file top=keys/top
	equal "$(device_contents vm)" "$before" "read-only"
	fails dd if=/dev/zero of=/dev/mapper/vm bs=512 count=1 oflag=direct
	qcow2setup close vm
	all_closed
}

test_passphrases()
{
	encrypted top 4M secret
	printf wrong >wrong
	exits 2 'No key slot of .*top=FILE' qcow2setup open ./top vm --key-file wrong
	exits 2 'No key slot' qcow2setup open ./top vm --key-file ./top=wrong
	exits 2 'key-file' qcow2setup open ./top vm
	exits 4 'none' qcow2setup open ./top vm --key-file none
	exits 1 '' qcow2setup open ./top vm --key-file =
	all_closed
	# A line of standard input, or all of it
	echo secret | qcow2setup open ./top vm
	qcow2setup close vm
	echo wrong | exits 2 'No key slot' qcow2setup open ./top vm
	printf secret | qcow2setup open ./top vm --key-file -
	qcow2setup close vm
	echo secret | exits 2 'No key slot' qcow2setup open ./top vm --key-file -
	all_closed
}

# Three tries at a terminal, which shows nothing
test_a_terminal()
{
	encrypted top 4M secret
	cat >ask.py <<-'EOF'
	import os, pty, sys
	pid, fd = pty.fork()
	if not pid:
	    os.execvp("qcow2setup", ["qcow2setup", "open", "./top", "vm"])
	said = b""
	for word in sys.argv[1:]:
	    while said.count(b"Enter passphrase for") < sys.argv.index(word):
	        said += os.read(fd, 4096)
	    # Entered once nothing is shown any more
	    import time; time.sleep(1)
	    os.write(fd, word.encode() + b"\n")
	try:
	    while data := os.read(fd, 4096):
	        said += data
	except OSError:
	    pass
	print(said.decode())
	sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
	EOF
	python3 ask.py wrong other secret >said
	grep -q 'No key slot' said
	fails grep -E '^(wrong|other|secret)' said
	qcow2setup close vm
	exits 2 'No key slot' python3 ask.py wrong other third
	all_closed
}

test_chains()
{
	local before other

	secret_chain
	before=$(secret_contents active)
	exits 2 'sn2' qcow2setup open ./active vm --key-file keys/base
	all_closed
	# One passphrase for two images, another for the third
	qcow2setup open ./active vm --key-file keys/base --key-file keys/sn2
	equal "$(device_contents vm)" "$before" "contents"
	# What is below is shared, by those who know its passphrase.
	plain other 12M '' sn2
	other=$(secret_contents other)
	exits 2 'base' qcow2setup open ./other vm2 --key-file sn2=keys/sn2 </dev/null
	qcow2setup open ./other vm2 "${KEYS[@]}"
	equal "$(dmsetup ls --target crypt | wc -l)" 3 "dm-crypt devices"
	equal "$(device_contents vm2)" "$other" "the other one"
	write_device vm
	before=$(device_contents vm)
	qcow2setup close vm
	write_device vm2
	qcow2setup close vm2
	all_closed
	equal "$(secret_contents active)" "$before" "written"
	sound base sn1 sn2 sn3 active other
}

test_snapshot()
{
	local before

	encrypted top 12M secret
	qcow2setup open ./top vm "${KEYS[@]}"
	write_device vm
	exits 2 'over1.*key-file' qcow2setup snapshot vm ./over1
	[ ! -e over1 ] || die "the overlay is left"
	key over1 another
	qcow2setup snapshot vm ./over1 --key-file ./over1=keys/over1
	equal "$(dmsetup ls --target crypt | wc -l)" 2 "dm-crypt devices"
	write_device vm
	qcow2setup snapshot vm ./over2 --plain
	equal "$(layers vm)" "over2 over1 top" "layers"
	write_device vm
	before=$(device_contents vm)
	equal "$(qemu-img info -U --output=json over1 | jq .encrypted)" true "over1"
	equal "$(qemu-img info -U --output=json over2 | jq .encrypted)" null "over2"
	qcow2setup close vm
	all_closed
	equal "$(secret_contents over2)" "$before" "contents"
	sound over2 over1 top
	# One that exists; back to it
	encrypted over3 12M third '' over1
	qcow2setup open ./over1 vm "${KEYS[@]}"
	exits 2 'over3' qcow2setup snapshot vm over3 --existing
	qcow2setup snapshot vm over3 --existing "${KEYS[@]}"
	write_device vm
	key over4 fourth
	qcow2setup revert vm top ./over4 --key-file keys/over4
	equal "$(layers vm)" "over4 top" "layers"
	before=$(device_contents vm)
	equal "$(secret_contents top)" "$before" "as top"
	qcow2setup close vm
	all_closed
	equal "$(secret_contents over4)" "$before" "contents"
	sound over3 over4
	# Closed: no passphrases but that of what is made
	key over5 fifth
	exits 2 'over5.*key-file' qcow2setup revert ./over4 top ./over5
	[ ! -e over5 ] || die "the overlay is left"
	qcow2setup revert ./over4 top ./over5 --key-file keys/over5
	equal "$(backing over5)" top "link"
	equal "$(secret_contents over5)" "$(secret_contents top)" "as top, closed"
	qcow2setup snapshot ./over5 ./over6 --plain
	sound over5 over6
	all_closed
}

# at_work [open|closed] COMMAND...: what it reads stays.
at_work()
{
	local how=$1 before

	shift
	before=$(secret_contents active)
	echo "== $how $*"
	if [ "$how" = open ]; then
		qcow2setup open ./active vm "${KEYS[@]}"
		equal "$(device_contents vm)" "$before" "before: $*"
		"$@"
		equal "$(device_contents vm)" "$before" "after: $*"
		qcow2setup close vm
	else
		"$@" "${KEYS[@]}"
	fi
	all_closed
	equal "$(secret_contents active)" "$before" "closed: $*"
}

test_commit()
{
	secret_chain
	# Plain into encrypted, encrypted into plain, encrypted into encrypted
	at_work open qcow2setup commit vm --top sn3 --base sn2
	at_work closed qcow2setup commit ./active --top sn2 --base sn1
	at_work open qcow2setup commit vm --top sn1 --base base
	sound base active
}

test_commit_active()
{
	local before

	secret_chain
	qcow2setup open ./active vm "${KEYS[@]}"
	write_device vm
	before=$(device_contents vm)
	qcow2setup commit vm --base sn2 --delete
	equal "$(layers vm)" "sn2 sn1 base" "layers"
	write_device vm
	qcow2setup commit vm --delete
	equal "$(layers vm)" "sn1 base" "layers"
	qcow2setup commit vm --delete
	equal "$(layers vm)" "base" "layers"
	write_device vm
	before=$(device_contents vm)
	qcow2setup close vm
	all_closed
	equal "$(secret_contents base)" "$before" "contents"
	sound base
}

# What a merge frees in its destination and uses again, or has encrypted once more,
# is not what the chain reads at that moment.
test_coherence()
{
	secret_chain
	qemu-img convert "${SECRETS[@]}" -O raw "json:$(node active)" want.raw
	qcow2setup open ./active vm "${KEYS[@]}"
	while_read want.raw qcow2setup commit vm --top sn3 --base sn2 --delete \
		--bandwidth 3M
	while_read want.raw qcow2setup pull vm --into sn2 --base base --delete \
		--bandwidth 3M
	while_read want.raw qcow2setup commit vm --top sn2 --delete \
		--bandwidth 3M
	while_read want.raw qcow2setup commit vm --bandwidth 3M --delete
	qcow2setup close vm
	all_closed
	qemu-img compare -q "${SECRETS[@]}" --image-opts \
		"driver=qcow2,encrypt.key-secret=base,file.filename=base" \
		driver=raw,file.filename=want.raw
	sound base
}

# Without --delete its clusters stay in use until somebody gives its passphrase.
test_commit_kept()
{
	local before said

	encrypted base 12M one
	encrypted top 12M two '' base
	qcow2setup open ./top vm "${KEYS[@]}"
	write_device vm
	before=$(device_contents vm)
	said=$(qcow2setup commit vm 2>&1)
	matches "$said" 'top is empty.*check --repair' "warning"
	equal "$(layers vm)" "base" "layers"
	equal "$(device_contents vm)" "$before" "committed"
	qcow2setup close vm
	all_closed
	exits 1 'top.*key-file' qcow2setup check ./top --repair
	qcow2setup check ./top --repair --key-file keys/top
	equal "$(secret_contents top)" "$before" "the old top"
	equal "$(secret_contents base)" "$before" "contents"
	sound base top
}

# A plan tells without passphrases.
test_plans()
{
	secret_chain
	qcow2setup commit ./active --top sn3 --base sn2 --dry-run
	qcow2setup rebase ./active -b sn1 -F qcow2 --dry-run
	qcow2setup copy ./active ./copy --dry-run
	exits 1 'plain' qcow2setup copy ./active ./copy --format raw --dry-run
	qcow2setup snapshot ./active ./over --dry-run
	qcow2setup revert ./active sn2 ./over --dry-run
	qcow2setup open ./active vm "${KEYS[@]}"
	qcow2setup snapshot vm ./over --dry-run
	qcow2setup revert vm sn2 ./over --dry-run
	qcow2setup close vm
	equal "$(ls -d over copy 2>/dev/null || true)" "" "made"
	all_closed
}

test_pull()
{
	secret_chain
	at_work open qcow2setup pull vm --into sn3 --base sn1
	at_work closed qcow2setup pull ./active --base sn1
	at_work open qcow2setup flatten vm
	equal "$(backing active)" none "link"
	sound active
}

test_delete_rebase()
{
	secret_chain
	at_work open qcow2setup delete vm sn3
	[ ! -e sn3 ] || die "it is still there"
	at_work closed qcow2setup delete ./active sn1 --down
	encrypted fresh 12M new
	change fresh 70
	exits 2 'fresh' qcow2setup rebase ./active -b fresh -F qcow2 \
		--key-file base=keys/base --key-file sn2=keys/sn2 \
		--key-file active=keys/active
	at_work closed qcow2setup rebase ./active -b fresh -F qcow2
	equal "$(backing active)" fresh "link"
	qcow2setup open ./active vm "${KEYS[@]}"
	exits 2 'sn2' qcow2setup rebase vm -b sn2 -F qcow2
	before=$(device_contents vm)
	qcow2setup rebase vm -b sn2 -F qcow2 "${KEYS[@]}"
	equal "$(device_contents vm)" "$before" "rebased"
	qcow2setup close vm
	all_closed
	equal "$(secret_contents active)" "$before" "contents"
	sound active
}

test_copy()
{
	local before

	secret_chain
	before=$(secret_contents active)
	key copy another
	qcow2setup open ./active vm "${KEYS[@]}"
	exits 2 'copy.*key-file' qcow2setup copy vm ./copy
	exits 1 'plain' qcow2setup copy vm ./copy.raw --format raw
	qcow2setup copy vm ./copy --key-file copy=keys/copy
	equal "$(secret_contents copy)" "$before" "copy"
	equal "$(qemu-img info --output=json copy | jq .encrypted)" true "copy"
	qcow2setup copy vm ./copy.raw --format raw --plain
	equal "$(sha256sum <copy.raw)" "$before" "raw copy"
	key moved third
	qcow2setup copy vm ./moved --pivot --key-file moved=keys/moved
	equal "$(layers vm)" moved "layers"
	write_device vm
	before=$(device_contents vm)
	qcow2setup close vm
	all_closed
	equal "$(secret_contents moved)" "$before" "moved"
	qcow2setup copy ./moved ./again "${KEYS[@]}" --plain
	equal "$(contents again qcow2)" "$before" "closed"
	sound copy moved
	all_closed
}

# memory_locked PID: kilobytes of a process that stay out of swap space
memory_locked()
{
	awk '/^VmLck:/ { print $2 }' "/proc/$1/status"
}

# The process in the background holds passphrases and keys as well.
test_detached()
{
	local pid

	encrypted top 12M secret
	change top 10
	key copy another
	qcow2setup open ./top vm --key-file keys/top
	qcow2setup copy vm ./copy --key-file copy=keys/copy --bandwidth 64K \
		--detach
	pid=$(qcow2setup jobs --json | jq '.[0].pid')
	[ "$(memory_locked "$pid")" -gt 0 ] || die "nothing is locked in memory"
	qcow2setup cancel vm
	qcow2setup close vm
	all_closed
	sound top
}

# What is in the image goes through qemu-img, which needs the passphrase.
test_internal_snapshots()
{
	local before first

	encrypted top 12M secret
	change top 1
	first=$(secret_contents top)
	qcow2setup open ./top vm "${KEYS[@]}"
	exits 2 'top.*key-file' qcow2setup internal create vm one
	qcow2setup internal create vm one --key-file keys/top
	write_device vm
	before=$(device_contents vm)
	exits 2 'top' qcow2setup open ./top old --snapshot one
	qcow2setup open ./top old --snapshot one --key-file keys/top
	equal "$(device_contents old)" "$first" "snapshot"
	equal "$(device_contents vm)" "$before" "beside it"
	write_device vm
	equal "$(device_contents old)" "$first" "snapshot, later"
	qcow2setup close old
	qcow2setup internal apply vm one --key-file keys/top
	equal "$(device_contents vm)" "$first" "applied"
	write_device vm
	before=$(device_contents vm)
	qcow2setup close vm
	all_closed
	qcow2setup internal delete ./top one --key-file keys/top
	equal "$(secret_contents top)" "$before" "contents"
	sound top
}

# The file gets longer, and what decrypts it with it.
test_resize()
{
	local before

	encrypted top 5M secret cluster_size=4k
	qcow2setup open ./top vm "${KEYS[@]}"
	write_device vm 2>/dev/null || true
	qcow2setup resize vm 60M
	equal "$(head -c 60M /dev/mapper/vm | tail -c 50M | tr -d '\0' | wc -c)" 0 new
	dd if=/dev/urandom of=/dev/mapper/vm bs=1M count=50 seek=8 oflag=direct \
		status=none
	before=$(device_contents vm)
	qcow2setup close vm
	all_closed
	equal "$(secret_contents top)" "$before" "contents"
	sound top
	qcow2setup resize ./top 64M "${KEYS[@]}"
	qcow2setup resize ./top --shrink 60M --key-file keys/top
	equal "$(secret_contents top)" "$before" "back"
	qcow2setup check ./top --key-file keys/top
}

test_a_data_file()
{
	local before

	encrypted top 12M secret data_file=top.data
	change top 1
	qcow2setup open ./top vm "${KEYS[@]}"
	matches "$(dmsetup table --target crypt)" ' 0 7:[0-9]+ 0$' "dm-crypt"
	write_device vm
	key over another
	qcow2setup snapshot vm ./over --key-file keys/over
	write_device vm
	before=$(device_contents vm)
	qcow2setup commit vm
	equal "$(device_contents vm)" "$before" "committed"
	qcow2setup resize vm 16M
	write_device vm
	before=$(device_contents vm)
	qcow2setup close vm
	all_closed
	equal "$(secret_contents top)" "$before" "contents"
	sound top
}

# No loop device shows it, and the same device is read and written through.
test_a_block_device()
{
	local disk before

	truncate -s 40M disk
	disk=$(attach disk)
	key "${disk##*/}" secret
	qemu-img create -q -f qcow2 "${SECRETS[@]}" -o \
		"encrypt.format=luks,encrypt.key-secret=${disk##*/},encrypt.iter-time=10" \
		"$disk" 12M
	qcow2setup open "$disk" vm --key-file keys/*
	write_device vm
	key over another
	qcow2setup snapshot vm ./over --key-file keys/over
	write_device vm
	before=$(device_contents vm)
	qcow2setup commit vm
	equal "$(device_contents vm)" "$before" "committed"
	qcow2setup close vm
	no_keys
	qcow2setup open "$disk" vm --key-file "$disk=keys/${disk##*/}"
	equal "$(device_contents vm)" "$before" "opened again"
	qcow2setup close vm
	losetup -d "$disk"
	all_closed
}

# header_of IMAGE: where the LUKS header is
header_of()
{
	grep -obUa LUKS "$1" | head -n 1 | cut -d: -f1
}

# poke IMAGE OFFSET TEXT
poke()
{
	printf %b "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

test_refused()
{
	local header

	plain old 4M
	poke old 32 '\0\0\0\1'
	exits 4 'legacy AES.*predicted.*convert' qcow2setup open ./old vm
	encrypted top 4M secret
	header=$(header_of top)
	cp top bad
	# Words of the header go into a table line.
	poke bad $((header + 40)) 'xts-plain64 x'
	exits 4 'QEMU does not know' qcow2setup open ./bad vm --key-file keys/top
	cp top bad
	poke bad $((header + 8)) 'capi:'
	exits 4 'QEMU does not know' qcow2setup open ./bad vm --key-file keys/top
	cp top bad
	poke bad "$header" 'none'
	exits 4 'no LUKS header' qcow2setup open ./bad vm --key-file keys/top
	cp top bad
	# Another key than that which the digest is of
	poke bad $((header + 112)) 'xxxx'
	exits 2 'No key slot' qcow2setup open ./bad vm --key-file keys/top
	all_closed
}

# Whatever a command has made goes with the next one.
test_killed()
{
	local n

	encrypted base 4M secret
	encrypted top 4M secret '' base
	for n in 1 4 8 13 19 26 34 43 53; do
		qcow2setup open ./top vm --key-file keys/top >/dev/null 2>&1 &
		sleep "$((n / 10)).$((n % 10))"
		kill -9 $! 2>/dev/null || true
		wait $! || true
		qcow2setup list >/dev/null
		qcow2setup close vm >/dev/null 2>&1 || true
		all_closed
	done
	# Without our help
	qcow2setup open ./top vm --key-file keys/top
	dmsetup remove vm
	qcow2setup list
	all_closed
	sound top
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# What an operation on a chain is going to do, whom it would harm, and what it
# says of the images afterwards.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

all_sums()
{
	sha256sum base sn1 sn2 sn3 active
	dmsetup table 2>/dev/null || true
	ls
}

# plans COMMAND...: a dry run changes nothing; prints what it said
plans()
{
	local before

	touch plan.out plan.json
	before=$(all_sums)
	qcow2setup "$@" --dry-run >plan.out
	qcow2setup "$@" --dry-run --json >plan.json
	equal "$(all_sums)" "$before" "files and tables"
	echo "== $*"
	cat plan.out
	jq -e .operation plan.json
}

# names KEY: the images that the plan has under that key
names()
{
	jq -r ".$1[]" plan.json | sed 's,.*/,,' | sort | xargs
}

# bytes data|zero: how much the plan says
bytes()
{
	jq ".\"$1-bytes\"" plan.json
}

# mapped IMAGE [DEPTH]: bytes of data in a chain, or in its image so deep
mapped()
{
	qemu-img map -U --output=json "$1" | jq "[.[] | select(.data and
		(.depth == ${2-.depth})) | .length] | add"
}

all_plans()
{
	local before

	local chain=$1

	plans commit "$chain" --top sn2 --base base
	equal "$(names read)" "sn1 sn2" "read"
	equal "$(names written)" "base" "written"
	equal "$(names invalid)" "sn1" "invalid"
	equal "$(names unneeded)" "sn2" "unneeded"
	equal "$(jq -r '.relinked."backing-file"' plan.json)" base "link"
	matches "$(<plan.out)" 'invalid then: [^ ]*/sn1' "plan"
	plans commit "$chain" --top sn2 --base base --delete
	equal "$(names deleted)" "sn1 sn2" "deleted"
	plans pull "$chain" --into sn3 --base base
	equal "$(names written) $(names unneeded)" "sn3 sn1 sn2" "pull"
	plans flatten "$chain"
	equal "$(names written)" "active" "flatten"
	equal "$(jq -r '.relinked."backing-file"' plan.json)" null "link"
	plans delete "$chain" sn2
	equal "$(names deleted) $(names written)" "sn2 sn3" "delete"
	plans delete "$chain" sn2 --down
	equal "$(names deleted) $(names written)" "sn2 sn1" "delete --down"
	plans rebase "$chain" -b base -F qcow2
	equal "$(names written)" "active" "rebase"
	equal "$(names read)" "sn1 sn2 sn3" "read by rebase"
	[ "$(bytes data)" -gt 0 ]
	plans copy "$chain" new
	equal "$(names written)" "new" "copy"
	equal "$(bytes data)" "$(mapped active)" "copied"
	equal "$(bytes zero)" 0 "zeroes"
	plans copy "$chain" new --shallow
	equal "$(bytes data)" "$(mapped active 0)" "copied"
	fails test -e new
}

test_dry_run()
{
	chain mixed
	all_plans ./active
	plans rebase ./active -u -b base -F qcow2
	equal "$(names written)" "active" "rebase -u"
	equal "$(jq -r '.relinked."backing-file"' plan.json)" base "link"
	qcow2setup open ./active vm
	all_plans vm
	plans commit vm
	equal "$(names written) $(names invalid)" "sn3 " "commit of the active image"
	plans copy vm new --pivot
	equal "$(names unneeded)" "active base sn1 sn2 sn3" "copy --pivot"
	qcow2setup close vm
	all_gone
}

test_what_is_said()
{
	chain growing
	sha256sum sn1 sn2 >sums
	qcow2setup commit ./active --top sn2 --base base >out
	matches "$(<out)" "now invalid: $PWD/sn1" "said"
	matches "$(<out)" "not needed any more: $PWD/sn2" "said"
	sha256sum -c sums
	# base has become as long as sn2.
	equal "$(size_of base qcow2)" $((15 << 20)) "size"
	qcow2setup commit ./active --base sn3 --top active --json >out
	equal "$(jq -r 'select(.unneeded) | .unneeded[]' out)" "$PWD/active" "said"
	# Those that stand on what goes are in the way.
	exits 5 "$PWD/active stands on $PWD/sn3" qcow2setup commit ./sn3 --delete
	rm active sn1 sn2
	qcow2setup commit ./sn3 --delete >out
	matches "$(<out)" "deleted: $PWD/sn3" "said"
	fails test -e sn3
	check_images base
	all_gone
}

# That it cannot become as long as it must is said before anything is copied.
test_cannot_grow()
{
	qemu-img create -q -f qcow2 -o compat=0.10 base 4M
	qemu-io -c 'write -P 1 0 4M' base >/dev/null
	qemu-img snapshot -c one base
	qemu-img create -q -f qcow2 -b base -F qcow2 sn1 8M
	qemu-io -c 'write -P 2 1M 6M' sn1 >/dev/null
	qemu-img create -q -f qcow2 -b sn1 -F qcow2 active
	sha256sum base sn1 active >sums
	exits 4 'base has internal snapshots, and is of version 2' \
		qcow2setup commit ./active --top sn1
	qcow2setup open ./active vm
	exits 4 'base has internal snapshots, and is of version 2' \
		qcow2setup commit vm --base base
	qcow2setup close vm
	sha256sum -c sums
	all_gone
}

# Whoever else stands on an image that is about to change is named.
test_other_overlays()
{
	local command

	chain plain
	mkdir elsewhere
	qemu-img create -q -f qcow2 -b sn1 -F qcow2 other
	qemu-img create -q -f qcow2 -b "$PWD/base" -F qcow2 elsewhere/far
	for command in "commit ./active --top sn2 --base base" \
		"delete ./active sn1 --down" "delete ./active sn1"; do
		# shellcheck disable=SC2086 # words
		exits 5 "$PWD/other stands on $PWD/sn1" qcow2setup $command
		# shellcheck disable=SC2086 # words
		exits 5 'Other overlays' qcow2setup $command --dry-run
	done
	# Its contents stay what they are.
	plans pull ./active --into sn3 --base base
	rm other
	exits 5 "far stands on $PWD/base" qcow2setup commit ./active \
		--top sn1 --base base --search elsewhere
	exits 0 "far stands on $PWD/base, and will not read" qcow2setup commit \
		./active --top sn1 --base base --search elsewhere --force
	equal "$(backing sn2)" base "link"
	check_images base sn2
	all_gone
}

gone()
{
	! kill -0 "$1" 2>/dev/null
}

test_in_use()
{
	local pid before

	chain plain
	before=$(contents active qcow2)
	qemu-img create -q -f qcow2 -b sn1 -F qcow2 other
	qcow2setup open ./other other --read-only
	exits 5 "in use" qcow2setup commit ./active --top sn2 --base sn1
	exits 5 "in use" qcow2setup commit ./active --top sn2 --base sn1 --force
	matches "$(qcow2setup commit ./active --top sn2 --base sn1 2>&1)" \
		"other" "the device is named" || true
	# What is written reads the same afterwards, but not for a device that
	# knows where everything was.
	exits 5 "sn1.* other" qcow2setup pull ./active --into sn1
	exits 5 "sn1.* other" qcow2setup pull ./active --into sn1 --force
	exits 5 "sn1.* other" qcow2setup delete ./active base --up
	qcow2setup open ./active vm
	exits 5 "sn1.* other" qcow2setup pull vm --into sn1
	exits 5 "sn1.* other" qcow2setup flatten vm --into 'vm[3]'
	qcow2setup close vm
	qcow2setup close other
	# Overlays do not mind.
	qcow2setup pull ./active --into sn1
	check_images base sn1
	equal "$(backing sn1)" none "link"
	equal "$(contents active qcow2)" "$before" "contents"
	rm other
	# QEMU has it open.
	qemu-nbd --fork --persistent -f qcow2 -r -k "$PWD/sock" \
		--pid-file="$PWD/pid" sn2
	pid=$(<pid)
	exits 5 'locked' qcow2setup commit ./active --top sn2 --base sn1
	exits 5 'locked' qcow2setup commit ./active --top sn2 --base sn1 --force
	kill "$pid"
	wait_for 10 gone "$pid"
	qcow2setup commit ./active --top sn2 --base sn1
	check_images sn1
	all_gone
}

test_unknown_layers()
{
	chain plain
	exits 4 'not' qcow2setup commit ./active --top none --base base
	exits 4 'there is no' qcow2setup commit ./active --top './active[7]'
	exits 1 '' qcow2setup commit ./active --top base --base sn1
	exits 4 '' qcow2setup commit ./none
	exits 4 'not active' qcow2setup commit none
	exits 1 '' qcow2setup pull ./active --base active
	qcow2setup open ./active vm
	exits 5 'vm' qcow2setup commit ./active
	exits 4 'there is no' qcow2setup commit vm --top 'vm[7]'
	exits 5 'not for an open device' qcow2setup rebase vm -u -b base -F qcow2
	qcow2setup close vm
	all_gone
}

main "$@"

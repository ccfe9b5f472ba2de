#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Long jobs killed at 50 random instants each: the chain is valid and reads the
# same, and the same command once more finishes it.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=chains.sh
. "$(dirname "$0")/chains.sh"

ROUNDS=50

# milliseconds: of the uptime
milliseconds()
{
	local up

	read -r up _ </proc/uptime
	echo "${up/./}0"
}

# run_for MILLISECONDS COMMAND...: killed after that time, if not over before
run_for()
{
	local time=$1 pid

	shift
	"$@" >job.log 2>&1 &
	pid=$!
	sleep "$(printf '%d.%03d' $((time / 1000)) $((time % 1000)))"
	kill -KILL "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || true
}

same_device()
{
	cmp want.raw /dev/mapper/vm || die "contents of the device, $*"
}

# again WANT COMMAND...: to the end; there is nothing to be done where the first
# one had come that far
again()
{
	local want=$1 said

	shift
	said=$("$@" 2>&1) && return
	[[ $(chain_of) =~ $want ]] || die "run again: $* said: $said"
}

# chain_of: the names of the images, whether open or not
chain_of()
{
	if [ -e /dev/mapper/vm ]; then
		layers vm
	else
		qemu-img info -U --backing-chain --output=json "$top" |
			jq -r '.[].filename' | sed 's,.*/,,' | xargs
	fi
}

# killed_open MILLISECONDS WANT COMMAND...: WANT is the chain, a regular expression
killed_open()
{
	local time=$1 want=$2

	shift 2
	qcow2setup open ./active vm
	run_for "$time" "$@"
	same_device "killed after $time ms"
	qcow2setup jobs --clean
	equal "$(dmsetup ls | awk '{ print $1 }')" vm "devices"
	again "$want" "$@"
	same_device "run again"
	matches "$(layers vm)" "$want" "layers"
	top=$(layers vm | cut -d' ' -f1)
	qcow2setup close vm
}

# killed_closed: the same on images that nobody has open
killed_closed()
{
	local time=$1 want=$2

	shift 2
	run_for "$time" "$@"
	qcow2setup jobs --clean
	equal "$(dmsetup ls 2>/dev/null)" "No devices found" "devices"
	qemu-img compare -q -F raw active want.raw ||
		die "closed, killed after $time ms"
	again "$want" "$@"
}

# fresh_chain: the images as they were
fresh_chain()
{
	rm -f base sn1 sn2 sn3 active copy
	copy_chain . before
	top=active
}

# time_of HOW COMMAND...: milliseconds that it takes if nobody kills it
time_of()
{
	local how=$1 start

	shift
	[ "$how" = closed ] || qcow2setup open ./active vm
	start=$(milliseconds)
	"$@" >job.log 2>&1 || die "$* said: $(<job.log)"
	whole=$(($(milliseconds) - start))
	[ "$how" = closed ] || qcow2setup close vm
}

# kill_rounds HOW WANT COMMAND...: HOW is open or closed
kill_rounds()
{
	local how=$1 want=$2 whole round

	shift 2
	chain mixed
	qemu-img convert -O raw active want.raw
	copy_chain before .
	time_of "$how" "$@"
	echo "$whole ms: $*"
	for ((round = 0; round < ROUNDS; round++)); do
		fresh_chain
		"killed_$how" $((RANDOM % whole)) "$want" "$@"
		qemu-img compare -q -F raw "$top" want.raw ||
			die "contents of $top, round $round"
		check_images "$top"
	done
	all_gone
}

test_commit()
{
	kill_rounds open '^active sn3 sn1 base$' \
		qcow2setup commit vm --top sn2 --base sn1
}

test_commit_active()
{
	kill_rounds open '^sn2 sn1 base$' qcow2setup commit vm --base sn2
}

test_commit_closed()
{
	kill_rounds closed '^active sn3 sn1 base$' \
		qcow2setup commit ./active --top sn2 --base sn1
}

test_pull()
{
	kill_rounds open '^active sn3 base$' \
		qcow2setup pull vm --into sn3 --base base
}

test_flatten()
{
	kill_rounds open '^active$' qcow2setup flatten vm
}

test_pull_closed()
{
	kill_rounds closed '^active base$' qcow2setup pull ./active --base base
}

test_delete()
{
	kill_rounds open '^active sn3 sn1 base$' qcow2setup delete vm sn2 --down
}

test_copy()
{
	kill_rounds open '^copy sn3 sn2 sn1 base$' \
		qcow2setup copy vm copy --shallow --pivot
}

test_rebase()
{
	kill_rounds open '^active sn1 base$' \
		qcow2setup rebase vm -b sn1 -F qcow2
}

main "$@"

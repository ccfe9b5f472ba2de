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

# Less to copy: more of the instants are where tables and links change.
CHAIN_KINDS=${CHAIN_KINDS//24M/8M}

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

# again WANT COMMAND...: to the end. A job that nobody knows of has come to its end,
# or was forgotten: the same words may mean something else now.
again()
{
	local want=$1 said

	shift
	if [ "$(qcow2setup jobs --json | jq length)" = 0 ]; then
		! [[ $(chain_of) =~ $want ]] || ! test -e "${made:-.}" || return 0
		[ -z "$forced" ] || set -- "$@" "$forced"
	fi
	said=$("$@" 2>&1) || die "run again: $* said: $said"
}

# clean ROUND: every second time only
clean()
{
	[ $(($1 % 2)) = 0 ] || qcow2setup jobs --clean
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

# killed_open ROUND MILLISECONDS WANT COMMAND...: WANT is the chain, a regular
# expression
killed_open()
{
	local round=$1 time=$2 want=$3

	shift 3
	qcow2setup open ./active vm
	run_for "$time" "$@"
	same_device "killed after $time ms"
	clean "$round"
	qcow2setup list >/dev/null
	equal "$(dmsetup ls | awk '{ print $1 }')" vm "devices"
	[ $((round % 2)) = 0 ] || fails test -e copy.qcow2setup.partial
	not_long "$(layers vm | cut -d' ' -f1)"
	again "$want" "$@"
	same_device "run again"
	matches "$(layers vm)" "$want" "layers"
	top=$(layers vm | cut -d' ' -f1)
	qcow2setup close vm
}

# killed_closed: the same on images that nobody has open
killed_closed()
{
	local round=$1 time=$2 want=$3

	shift 3
	run_for "$time" "$@"
	clean "$round"
	qcow2setup list >/dev/null
	equal "$(dmsetup ls 2>/dev/null)" "No devices found" "devices"
	not_long
	qemu-img compare -q -F raw active want.raw ||
		die "closed, killed after $time ms"
	again "$want" "$@"
	matches "$(chain_of)" "$want" "layers"
}

# not_long [IMAGE]: no file is longer than it was, or has to be (in whole blocks, for
# loop devices that read it), but for the one
# that a device writes to
not_long()
{
	local image length before end

	for image in base sn1 sn2 sn3 active; do
		[ "$image" != "${1-}" ] || continue
		[ -e "$image" ] || continue
		length=$(stat -c %s "$image")
		before=$(stat -c %s "before/$image")
		[ "$length" -gt $((before + 4096)) ] || continue
		# The old active image, where nobody was left to give back its clusters
		qemu-img check -U --output=json "$image" >check.json 2>/dev/null ||
			[ $? = 3 ]
		end=$(jq '."image-end-offset"' check.json)
		[ "$length" -le $((end + 4096)) ] ||
			die "$image has $length bytes, and uses $end"
	done
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

# check_files: what is gone, and what there is now
check_files()
{
	[ -z "$deleted" ] || fails test -e "$deleted"
	[ -n "$made" ] || return 0
	check_images "$made"
	qemu-img compare -q -F raw "$made" want.raw || die "contents of $made"
}

# kill_rounds HOW WANT COMMAND...: HOW is open or closed; $deleted is the file
# that must be gone then, if any, $made the one that must be there; $forced is what
# the command needs in addition where nobody knows of the job any more
deleted='' made='' forced=''
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
		"killed_$how" "$round" $((RANDOM % whole)) "$want" "$@"
		qemu-img compare -q -F raw "$top" want.raw ||
			die "contents of $top, round $round"
		[ "$top" = copy ] || not_long
		check_images "$top"
		check_files
	done
	all_gone
}

test_commit()
{
	kill_rounds open '^active sn3 sn1 base$' \
		qcow2setup commit vm --top sn2 --base sn1
}

# Forgotten, the layers that it has merged already are overlays as any others.
test_commit_active()
{
	forced=--force
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
	deleted=sn2
	kill_rounds open '^active sn3 sn1 base$' qcow2setup delete vm sn2 --down
}

test_delete_closed()
{
	deleted=sn2
	kill_rounds closed '^active sn3 sn1 base$' \
		qcow2setup delete ./active sn2
}

# Run again, the layers have other numbers.
test_delete_by_number()
{
	deleted=sn2
	kill_rounds open '^active sn3 sn1 base$' qcow2setup delete vm 'vm[2]'
}

test_copy()
{
	kill_rounds open '^copy sn3 sn2 sn1 base$' \
		qcow2setup copy vm copy --shallow --pivot
}

test_copy_finish()
{
	made=copy
	kill_rounds open '^active sn3 sn2 sn1 base$' \
		qcow2setup copy vm copy --finish
}

test_copy_closed()
{
	made=copy
	kill_rounds closed '^active sn3 sn2 sn1 base$' \
		qcow2setup copy ./active copy --shallow
}

test_rebase()
{
	kill_rounds open '^active sn1 base$' \
		qcow2setup rebase vm -b sn1 -F qcow2
}

test_rebase_closed()
{
	kill_rounds closed '^active sn1 base$' \
		qcow2setup rebase ./active -b sn1 -F qcow2
}

main "$@"

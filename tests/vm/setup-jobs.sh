#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup jobs, wait, cancel, --detach, --bandwidth, with a commit as the job.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

state()
{
	qcow2setup jobs --json | jq -r '.[] | .name + " " + .state' | xargs
}

# base <- sn1 <- active; sn1 has 16 MiB to commit
chain()
{
	qemu-img create -q -f qcow2 base 64M
	qemu-img create -q -f qcow2 -b base -F qcow2 sn1
	qemu-io -c 'write -P 1 0 16M' sn1 >/dev/null
	qemu-img create -q -f qcow2 -b sn1 -F qcow2 active
	qcow2setup open ./active vm
}

# slow OPTION...: a commit that takes a minute, where a command may take seconds
slow()
{
	qcow2setup commit vm --top sn1 --bandwidth 256K "$@"
}

finish()
{
	cmp -n $((16 << 20)) /dev/mapper/vm <(tr '\0' '\1' </dev/zero)
	qcow2setup close vm
	nothing_left
}

test_detach_and_wait()
{
	chain
	exits 0 'Job vm is under way' qcow2setup commit vm --top sn1 \
		--bandwidth 8M --detach
	equal "$(state)" "vm running" "jobs"
	matches "$(qcow2setup jobs)" 'vm +commit +running' "jobs"
	exits 0 '100%' qcow2setup wait vm
	equal "$(state)" "" "jobs"
	equal "$(layers vm)" "active base" "layers"
	exits 4 'no job' qcow2setup wait vm
	finish
}

test_cancel()
{
	chain
	slow --detach
	sleep 1
	exits 5 'has a job: commit' qcow2setup snapshot vm new
	exits 5 'has a job: commit' qcow2setup close vm
	exits 5 'has a job: commit' slow
	exits 0 '' qcow2setup cancel vm
	equal "$(state)" "" "jobs"
	equal "$(layers vm)" "active sn1 base" "layers"
	exits 4 'no job' qcow2setup cancel vm
	qcow2setup commit vm --top sn1 --bandwidth 256K &
	sleep 2
	kill -TERM $!
	fails wait $!
	equal "$(layers vm)" "active sn1 base" "layers"
	# Once more, to the end
	qcow2setup commit vm --top sn1
	equal "$(layers vm)" "active base" "layers"
	finish
}

# A job that is over had to have another name than its subject: the next one has no
# second record beside that, which would tell that there is no job.
test_one_record_of_a_subject()
{
	mkdir other
	qemu-img create -q -f qcow2 other/base 16M
	qemu-img create -q -f qcow2 -b base -F qcow2 other/sn1
	qemu-img create -q -f qcow2 -b sn1 -F qcow2 other/vm
	chain
	qcow2setup commit ./other/vm --top ./other/sn1 --detach
	wait_for 20 has_state "vm done"
	qcow2setup snapshot vm new
	qcow2setup commit vm --top active --base sn1 --detach
	wait_for 60 qcow2setup wait ./other/vm
	wait_for 20 has_state "vm.2 done"
	slow --detach
	equal "$(state)" "vm.2 running" "jobs"
	exits 5 'has a job: commit' qcow2setup snapshot vm newer
	qcow2setup cancel vm
	equal "$(layers vm)" "new sn1 base" "layers"
	finish
}

# Who waited for a job is late, and another one of the same name runs by then.
test_wait_for_another_job()
{
	chain
	qcow2setup copy vm ./one --bandwidth 4M --detach
	qcow2setup wait vm >said 2>&1 &
	waiter=$!
	sleep 1
	kill -STOP "$waiter"
	wait_for 60 has_state "vm done"
	slow --detach
	kill -CONT "$waiter"
	fails wait "$waiter"
	grep 'is over' said
	equal "$(state)" "vm running" "jobs"
	qcow2setup cancel vm
	equal "$(layers vm)" "active sn1 base" "layers"
	finish
}

# An image that is being merged is not one to build on.
test_no_overlays_of_what_is_merged()
{
	local format

	for format in raw qcow2; do
		qemu-img create -q -f "$format" base 64M
		qemu-img create -q -f qcow2 -b base -F "$format" sn1
		qemu-io -c 'write -P 1 0 16M' sn1 >/dev/null
		qemu-img create -q -f qcow2 -b sn1 -F qcow2 sn2
		qemu-io -c 'write -P 1 0 1M' sn2 >/dev/null
		qemu-img create -q -f qcow2 -b sn2 -F qcow2 active
		qcow2setup open ./active vm
		qcow2setup commit vm --top sn2 --base base --bandwidth 256K \
			--detach
		exits 5 'base' qcow2setup create ./new -b sn1 -F qcow2
		exits 5 'base' qcow2setup create ./new -b sn2 -F qcow2
		exits 5 'base' qcow2setup snapshot ./sn1 new
		fails test -e new
		qcow2setup cancel vm
		finish
	done
}

# has_layers LAYER...
has_layers()
{
	[ "$(layers vm)" = "$*" ]
}

# The lower layers are merged first: then it can be stopped, and taken up, again.
test_second_stage()
{
	chain
	qemu-io -f raw -c 'write -P 1 0 16M' /dev/mapper/vm >/dev/null
	qcow2setup commit vm --base base --delete --bandwidth 4M --detach
	wait_for 60 has_layers active base
	sleep 1
	exits 0 'run the command again' qcow2setup cancel vm
	equal "$(layers vm)" "active base" "layers"
	equal "$(state)" "vm cancelled" "jobs"
	qcow2setup commit vm --base base --delete --bandwidth 4M --detach
	qcow2setup wait vm >out 2>&1
	grep -q '^deleted: .*/sn1$' out
	grep -q '^deleted: .*/active$' out
	fails test -e sn1
	fails test -e active
	equal "$(layers vm)" "base" "layers"
	equal "$(state)" "" "jobs"
	finish
}

test_not_root()
{
	qcow2setup list
	exits 2 'Permission denied' setpriv --reuid=65534 --clear-groups \
		"$(command -v qcow2setup)" jobs
	exits 2 'Permission denied' setpriv --reuid=65534 --clear-groups \
		"$(command -v qcow2setup)" wait vm
}

test_events()
{
	chain
	qcow2setup commit vm --top sn1 --bandwidth 4M --json >out
	cat out
	equal "$(jq -r 'select(.event) | .event' out | uniq | xargs)" \
		"start progress end" "events"
	equal "$(jq -r 'select(.event == "end") | .state' out)" "done" "state"
	finish
}

# events FILE WANT STATE: the kinds of events, a regular expression, and the state
# that the last tells of
events()
{
	cat "$1"
	matches "$(jq -r .event "$1" | uniq | xargs)" "^$2$" "events"
	equal "$(jq -rs '.[-1].state' "$1")" "$3" "state"
}

has_copied()
{
	[ "$(qcow2setup jobs --json | jq '.[0].done')" -gt 0 ]
}

test_events_of_another_process()
{
	chain
	slow --detach
	wait_for 20 has_copied
	qcow2setup cancel vm --json >out
	events out "start (progress )?end" cancelled
	equal "$(layers vm)" "active sn1 base" "layers"
	qcow2setup commit vm --top sn1 --bandwidth 8M --detach
	qcow2setup wait vm --json >out
	events out "start progress end" "done"
	finish
}

# on_terminal FILE: the bar of a commit, and what is beside it
on_terminal()
{
	tr '\r' '\n' <"$1" >lines
	grep -qE '^commit vm \[#+ *\] +[0-9]+%, .* of 16[^ ]* MiB, .*/s, [0-9:]+ left' \
		lines || die "no progress bar: $(head -c 2000 lines)"
}

# Nobody reads what it says any more: as when its terminal goes.
test_reader_gone()
{
	chain
	{ slow --json || echo $? >code; } | head -n 1
	equal "$(<code)" 4 "exit code"
	equal "$(dmsetup ls)" "$(dmsetup ls | grep -w vm)" "devices"
	equal "$(state)" "" "jobs"
	equal "$(layers vm)" "active sn1 base" "layers"
	finish
}

# Who started a job may be stopped at his terminal: others need the lock.
test_detach_without_a_reader()
{
	chain
	mkfifo pipe
	exec 3<>pipe
	timeout 2 dd if=/dev/zero of=pipe bs=1k oflag=nonblock status=none || true
	qcow2setup commit vm --top sn1 --bandwidth 4M --detach >pipe &
	starter=$!
	wait_for 30 test -e /run/qcow2setup/jobs/vm.json
	timeout 20 qcow2setup create ./other 1M
	cat <&3 >/dev/null &
	reader=$!
	wait "$starter"
	kill "$reader"
	exec 3<&-
	exits 0 '' qcow2setup wait vm
	finish
}

test_terminal()
{
	chain
	exits 4 'ancelled' script -qec \
		"qcow2setup commit vm --top sn1 --bandwidth 1M" typescript \
		< <(sleep 4 && printf '\003')
	on_terminal typescript
	equal "$(state)" "" "jobs"
	equal "$(layers vm)" "active sn1 base" "layers"
	script -qec "qcow2setup commit vm --top sn1 --bandwidth 8M" typescript \
		</dev/null >/dev/null
	on_terminal typescript
	matches "$(grep '^commit' lines | tail -n 1)" '100%' "the last line"
	equal "$(layers vm)" "active base" "layers"
	finish
}

test_closed_image()
{
	chain
	qcow2setup close vm
	exits 0 'Job active is under way' qcow2setup commit ./active --top sn1 \
		--bandwidth 4M --detach
	exits 5 '' qcow2setup open ./active vm
	exits 0 '' qcow2setup wait ./active
	qcow2setup open ./active vm
	equal "$(layers vm)" "active base" "layers"
	finish
}

# The process is gone: nobody waits for ever, and what it left goes.
test_killed()
{
	chain
	before=$(table_words vm)
	slow --detach
	sleep 1
	pkill -KILL -x qcow2setup
	sleep 0.5
	equal "$(state)" "vm dead" "jobs"
	exits 4 'was killed' qcow2setup wait vm
	qcow2setup jobs --clean
	equal "$(state)" "" "jobs"
	equal "$(dmsetup ls | awk '{ print $1 }')" "vm" "devices"
	equal "$(layers vm)" "active sn1 base" "layers"
	equal "$(table_words vm)" "$before" "table"
	# What it had written so far; it was made much longer for that.
	[ "$(stat -c %s base)" -lt 4000000 ]
	qcow2setup commit vm --top sn1
	[ "$(stat -c %s base)" -lt 18000000 ]
	equal "$(layers vm)" "active base" "layers"
	finish
}

# Without udev a helper that is killed as it removes a device leaves the node. Nodes
# of devices that are there stay.
test_killed_as_it_removes()
{
	local node=/dev/mapper/qcow2-job-1-2

	mknod "$node-from" b 253 200
	dmsetup create qcow2-job-1-2-to --table '0 8 zero'
	test -b "$node-to"
	qcow2setup jobs --clean
	fails test -e "$node-from"
	test -b "$node-to"
	dmsetup remove qcow2-job-1-2-to
	nothing_left
}

# is_longer FILE BYTES
is_longer()
{
	[ "$(stat -c %s "$1")" -gt "$2" ]
}

# The next command finds out by itself, and its own result is no longer either.
# When the device goes on in the base already, and its state is that of the old top:
# the base is not cut to where that began.
test_killed_before_the_note()
{
	local state=/run/qcow2setup/device/vm.json

	qemu-img create -q -f qcow2 base 64M
	qemu-io -c 'write -P 1 0 1M' base >/dev/null
	truncate -s 40M base
	qemu-img create -q -f qcow2 -b base -F qcow2 active
	qcow2setup open ./active vm
	cp "$state" old
	qcow2setup commit vm
	cp "$state" new
	cp old "$state"
	jq '{name: "vm", subject: "vm", operation: "commit", command: "",
	     state: "running", pid: 4194304, start: 1, notes: {grown: .}}' \
		new >/run/qcow2setup/jobs/vm.json
	qcow2setup list
	equal "$(jq -c '[.length, .layers[].path]' "$state")" \
		"[$((40 << 20)),\"$PWD/base\"]" "state"
	cp old "$state"
	qcow2setup close vm
	[ "$(stat -c %s base)" -ge $((40 << 20)) ] || die "base was cut"
	qcow2setup check ./base --repair
	qcow2setup jobs --clean
	nothing_left
}

test_killed_closed()
{
	chain
	qcow2setup close vm
	qcow2setup commit ./active --top sn1 --bandwidth 1M --detach
	wait_for 20 is_longer base 64000000
	sleep 1
	pkill -KILL -x qcow2setup
	wait_for 10 has_state "active dead"
	qcow2setup list
	[ "$(stat -c %s base)" -lt 6000000 ]
	qemu-img check base
	qcow2setup commit ./active --top sn1 --bandwidth 1M --detach
	wait_for 20 is_longer base 64000000
	pkill -KILL -x qcow2setup
	wait_for 10 has_state "active dead"
	qcow2setup commit ./active --top sn1
	[ "$(stat -c %s base)" -lt 18000000 ]
	qemu-img check base
	qcow2setup open ./active vm
	equal "$(layers vm)" "active base" "layers"
	finish
}

has_state()
{
	[ "$(state)" = "$1" ]
}

# killed_copy WORD OPTION...: what it had made goes with its record, and nothing
# that others have put there
killed_copy()
{
	local word=$1

	shift
	qcow2setup copy "$word" copy "$@" --bandwidth 1M --detach
	wait_for 20 test -e copy.qcow2setup.partial
	sleep 2
	pkill -KILL -x qcow2setup
	wait_for 10 has_state "${word##*/} dead"
	qcow2setup jobs --clean
	fails test -e copy.qcow2setup.partial
	fails test -e copy
	equal "$(state)" "" "jobs"
	# Another file of that name stays.
	qcow2setup copy "$word" copy "$@" --bandwidth 1M --detach
	wait_for 20 test -e copy.qcow2setup.partial
	pkill -KILL -x qcow2setup
	wait_for 10 has_state "${word##*/} dead"
	mv copy.qcow2setup.partial mine
	echo mine >copy.qcow2setup.partial
	qcow2setup jobs --clean
	equal "$(<copy.qcow2setup.partial)" mine "another file"
	rm copy.qcow2setup.partial mine
}

test_killed_copy()
{
	local format

	chain
	for format in qcow2 raw; do
		killed_copy vm --format "$format"
	done
	qcow2setup close vm
	for format in qcow2 raw; do
		killed_copy ./active --format "$format"
	done
	nothing_left
}

main "$@"

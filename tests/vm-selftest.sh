#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Tests scripts/vm itself, on the suite or kernel that the arguments choose:
# tests/vm-selftest.sh [--suite SUITE | --debug]. Needs no module. Prints KTAP.

# shellcheck disable=SC2016 # the guest's shell expands what is quoted here
set -uo pipefail

VM=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/scripts/vm
OPTIONS=("$@")
DIR=$(mktemp -d "${TMPDIR:-/var/tmp}/vm-selftest.XXXXXX")
trap 'rm -rf "$DIR"' EXIT

# vm [OPTION]... -- COMMAND...: what goes to standard error is kept aside.
vm()
{
	"$VM" "${OPTIONS[@]}" --no-build "$@" 2>"$DIR/stderr"
}

test_stdout_is_exact()
{
	head -c 3000000 /dev/urandom >"$DIR/random"
	printf 'a\r\nb\n\0\4no newline' >>"$DIR/random"
	vm --bind "$DIR" -- cat "$DIR/random" >"$DIR/out" &&
		cmp "$DIR/random" "$DIR/out"
}

test_slow_reader_gets_everything()
{
	vm -- sh -c 'head -c 8000000 /dev/zero' |
		{ sleep 20; [ "$(wc -c)" = 8000000 ]; }
}

test_stderr_and_reopened_streams()
{
	[ "$(vm -- sh -c 'echo out >/dev/stdout; echo err >/dev/stderr')" = out ] &&
		grep -qx err "$DIR/stderr"
}

test_exit_status()
{
	vm -- sh -c 'exit 77'
	[ $? = 77 ]
}

test_arguments_and_directory()
{
	[ "$(vm -- sh -c 'printf "%s|" "$PWD" "$@"' x 'a  b' '' '$c"' $'d\ne')" = \
		"$(cd "$(dirname "$VM")/.." && pwd -P)|a  b||\$c\"|"$'d\ne|' ]
}

test_what_is_left_running_does_not_hold_the_end()
{
	[ "$(vm --timeout 300 -- sh -c 'sleep 1000 & yes >/dev/null & echo end')" = end ]
}

test_bound_directory_is_writable()
{
	mkdir -p "$DIR/a b,c"
	vm --bind "$DIR/a b,c" -- sh -c 'echo guest >"$1/file"' x "$DIR/a b,c" &&
		[ "$(cat "$DIR/a b,c/file")" = guest ]
}

test_disks_in_order()
{
	[ "$(vm --disk 96M --disk 32M -- lsblk -bdno NAME,SIZE |
		tr -s ' \n' ' ')" = "vda 100663296 vdb 33554432 " ]
}

test_modules_load_by_themselves()
{
	vm --disk 600M -- sh -ec '
		mkfs.xfs -q /dev/vda
		mount -t xfs /dev/vda /mnt
		echo "0 1024 flakey /dev/ram0 0 1 0" >/tmp/table
		modprobe brd rd_nr=1 rd_size=65536
		dmsetup create x /tmp/table
		[ "$(blockdev --getsize64 /dev/ram0)" = 67108864 ]
		test -b /dev/mapper/x'
}

test_cpus_and_memory()
{
	[ "$(vm --cpus 2 --memory 1500 -- sh -c '
		nproc
		awk "/MemTotal/ { print (\$2 > 1200000 && \$2 < 1536000) }" /proc/meminfo
		' | tr '\n' ' ')" = "2 1 " ]
}

# start_time: seconds of CPU time that the start of a machine and its end take;
# unlike the seconds on the clock, not those of others
start_time()
{
	local TIMEFORMAT='%U %S'

	{ time vm -- true; } 2>&1 | awk '{ print $1 + $2 }'
}

# What is kept from the first start is there now.
test_a_shell_within_10_seconds()
{
	local took

	took=$(start_time)
	echo "# $took s"
	awk -v took="$took" 'BEGIN { exit !(took > 0.1 && took < 10) }'
}

# The same program takes the same number of instructions, give or take the
# interrupts, and so the same time.
test_icount_is_one_steady_cpu()
{
	vm --icount -- python3 -c '
import os, time
def spin():
    start = time.perf_counter()
    for i in range(300000):
        pass
    return time.perf_counter() - start
spin()
times = [spin() for i in range(3)]
assert os.cpu_count() == 1
assert max(times) < 1.1 * min(times), times'
}

test_panic_has_its_own_status()
{
	vm --log "$DIR/log" -- sh -c 'echo c >/proc/sysrq-trigger'
	[ $? = 125 ] && grep -q 'sysrq triggered crash' "$DIR/log" &&
		grep -q 'kernel panic' "$DIR/stderr"
}

test_hang_has_its_own_status()
{
	vm --timeout 60 -- sleep 1000
	[ $? = 124 ]
}

test_a_wrong_command_line_is_refused()
{
	vm --suite nonsense -- true
	[ $? = 2 ] && ! vm -- && ! vm --disk 1x -- true
}

# interrupt SIGNAL: whether QEMU ends with a scripts/vm that gets SIGNAL.
interrupt()
{
	local pid qemu

	# A shell has its background processes ignore SIGINT.
	env --default-signal "$VM" "${OPTIONS[@]}" --no-build -- \
		sleep 1000 >/dev/null 2>&1 &
	pid=$!
	for _ in {1..300}; do
		qemu=$(pgrep -P "$pid" -f '^qemu-system') && break
		sleep 0.1
	done
	[ -n "$qemu" ] || return
	sleep 1
	kill -s "$1" "$pid"
	wait "$pid" 2>/dev/null
	for _ in {1..50}; do
		[ -e "/proc/$qemu" ] || return 0
		sleep 0.1
	done
	return 1
}

test_sigint_ends_qemu() { interrupt INT; }
test_sigterm_ends_qemu() { interrupt TERM; }
test_sighup_ends_qemu() { interrupt HUP; }
test_sigkill_ends_qemu() { interrupt KILL; }

main()
{
	local tests test n=0 failed=0

	mapfile -t tests < <(declare -F | sed -n 's/^declare -f test_//p')
	echo "KTAP version 1"
	echo "1..${#tests[@]}"
	for test in "${tests[@]}"; do
		n=$((n + 1))
		if "test_$test"; then
			echo "ok $n $test"
		else
			echo "not ok $n $test"
			sed 's/^/# /' "$DIR/stderr"
			failed=1
		fi
	done
	return $failed
}

main

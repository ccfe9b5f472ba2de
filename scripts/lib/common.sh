# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What every part of scripts/vm needs: messages, exit statuses, the cache and
# its locks, and packages on the host.

# Exit statuses of scripts/vm that are not the command's own. The help text in
# scripts/vm is their documentation; lib/supervise.py knows HANG and PANIC too.
# shellcheck disable=SC2034 # used by the others
readonly STATUS_USAGE=2
readonly STATUS_SETUP=122
# shellcheck disable=SC2034
readonly STATUS_BUILD=123

CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/dm-qcow2"

say()
{
	printf 'vm: %s\n' "$*" >&2
}

die()
{
	local status=$1

	shift
	say "$*"
	exit "$status"
}

# with_lock FILE COMMAND...: runs COMMAND in a subshell while holding FILE, so
# that two scripts/vm started at once do the work once.
with_lock()
{
	local file=$1

	shift
	mkdir -p "$(dirname "$file")"
	(
		exec {lock}>"$file"
		flock "$lock"
		"$@"
	)
}

hash_of()
{
	sha256sum | cut -c1-12
}

# need_on_host PROGRAM=PACKAGE...: installs the packages of missing programs.
need_on_host()
{
	local pair missing=()

	for pair; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} -eq 0 ] && return

	command -v apt-get >/dev/null ||
		die "$STATUS_SETUP" "please install: ${missing[*]}"
	say "installing ${missing[*]}"
	with_lock "$CACHE/lock/apt" apt_install "${missing[@]}"
}

apt_install()
{
	export DEBIAN_FRONTEND=noninteractive
	local get=(apt-get -q -y -o DPkg::Lock::Timeout=600)

	{ "${get[@]}" install --no-install-recommends "$@" ||
		{ "${get[@]}" update &&
		  "${get[@]}" install --no-install-recommends "$@"; }
	} >&2 </dev/null || die "$STATUS_SETUP" "cannot install $*"
}
